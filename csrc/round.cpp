// The loops on the CPU, and nothing but the loops. Compiled once per instruction set, with
// LPT_BUILD naming the result; threads and the choice of the set are in library.cpp.
#include "lean.h"
#include "loop.h"
#include "stream.h"
#include "transpose.h"

namespace {

template <class T, int MODE, bool FLAT>
void run_plain(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
               const lpt_rule &rule, bool large) {
    typedef typename lpt_carrier<T>::bits U;
    lpt_each_inside<MODE>(
        x, y, first, last, rule, c.inside, large,
        [=](U u, uint32_t random) {
            return lpt_round_plain<T, MODE, FLAT, LPT_INSIDE>(u, c, random);
        },
        [=](U u, uint32_t random) {
            return lpt_round_plain<T, MODE, FLAT, LPT_ALL_ENDS>(u, c, random);
        });
}

template <class T, int MODE, int SUBNORMALS>
void run_roomy(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
               const lpt_rule &rule, bool large) {
    typedef typename lpt_carrier<T>::bits U;
    lpt_each_inside<MODE>(
        x, y, first, last, rule, c.inside, large,
        [=](U u, uint32_t random) {
            return lpt_round_roomy<T, MODE, LPT_INSIDE, SUBNORMALS>(u, c, random);
        },
        [=](U u, uint32_t random) {
            return lpt_round_roomy<T, MODE, LPT_ALL_ENDS, SUBNORMALS>(u, c, random);
        });
}

template <class T, int MODE, bool PLAIN>
void run(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c, const lpt_rule &rule,
         bool large) {
    typedef typename lpt_carrier<T>::bits U;
    if (PLAIN && MODE <= LPT_STOCHASTIC && c.roomy)
        run_roomy<T, MODE, LPT_GRADUAL>(x, y, first, last, c, rule, large);
    else if (!PLAIN && MODE <= LPT_STOCHASTIC && c.gapped)
        c.subnormals == LPT_NONE ? run_roomy<T, MODE, LPT_NONE>(x, y, first, last, c, rule, large)
                                 : run_roomy<T, MODE, LPT_FLUSH>(x, y, first, last, c, rule, large);
    else if (PLAIN && MODE <= LPT_STOCHASTIC && lpt_carrier<T>::width == 32)
        c.flat ? run_plain<T, MODE, true>(x, y, first, last, c, rule, large)
               : run_plain<T, MODE, false>(x, y, first, last, c, rule, large);
    else {
        const lpt_rare<T> rare = lpt_make_rare(c);
        lpt_each<MODE>(x, y, first, last, rule, [=](U u, uint32_t random) {
            return lpt_round<T, MODE, PLAIN>(u, c, rare, random);
        });
    }
}

template <class T, bool PLAIN>
void run_mode(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule, bool large) {
    lpt_with_mode(rule.mode, [&](auto mode) {
        run<T, decltype(mode)::value, PLAIN>(x, y, first, last, c, rule, large);
    });
}

template <class T>
void run_cell(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule, bool large) {
    if (c.plain)
        run_mode<T, true>(x, y, first, last, c, rule, large);
    else
        run_mode<T, false>(x, y, first, last, c, rule, large);
}

template <class T>
void grid(const T *x, T *y, int64_t first, int64_t last, const lpt_grid &g, const lpt_rule &rule,
          bool large) {
    run_cell(x, y, first, last, lpt_make_cell<T>(g, rule, 0), rule, large);
}

}  // namespace

#include "block_loops.h"
#include "range_loops.h"

#define LPT_STRING(x) #x
#define LPT_NAME(x) LPT_STRING(x)
extern const lpt_codebooks LPT_CODEBOOKS;
extern const lpt_censuses LPT_CENSUS;
extern const lpt_gemm_loops LPT_GEMM;
#define LPT_LOOPS(T)                                                                               \
    {grid<T>,   lpt_transpose<T>, maxima<T>,  finite_maximum<T>, block_scales<T>, factors<T>,      \
     blocks<T>, runs<T>,          columns<T>, extremes<T>,       spread_out<T>,   spread<T>}
extern const lpt_build LPT_BUILD = {LPT_NAME(LPT_BUILD), LPT_LOOPS(float), LPT_LOOPS(double),
                                    &LPT_CODEBOOKS,      &LPT_CENSUS,      &LPT_GEMM};
