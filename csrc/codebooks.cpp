// The loops of the formats that are no grid: codebooks and posits. Compiled once per instruction
// set, with LPT_CODEBOOKS naming the result.
#include "loop.h"

namespace {

template <class T, int DEPTH>
void table_depth(const T *x, T *y, int64_t first, int64_t last, const lpt_table<T> &table,
                 const lpt_rule &rule) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_table<T> t = table;  // a local copy: y may not alias it
    if (rule.mode == LPT_STOCHASTIC)
        lpt_each<true>(x, y, first, last, rule, [&](U u, uint32_t random) {
            return lpt_round_to<T, DEPTH, true>(u, t, random);
        });
    else
        lpt_each<false>(x, y, first, last, rule,
                        [&](U u, uint32_t) { return lpt_round_to<T, DEPTH, false>(u, t, 0); });
}

template <class T>
void table(const T *x, T *y, int64_t first, int64_t last, const lpt_table<T> &t,
           const lpt_rule &rule) {
    switch (t.depth) {
    case 0: return table_depth<T, 0>(x, y, first, last, t, rule);
    case 1: return table_depth<T, 1>(x, y, first, last, t, rule);
    case 2: return table_depth<T, 2>(x, y, first, last, t, rule);
    default: return table_depth<T, -1>(x, y, first, last, t, rule);
    }
}

template <class T, int MODE>
void posit_mode(const T *x, T *y, int64_t first, int64_t last, const lpt_posit &posit,
                const lpt_rule &rule) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_posit p = posit;
    lpt_each<MODE == LPT_STOCHASTIC>(x, y, first, last, rule, [=](U u, uint32_t random) {
        return lpt_round_posit<T, MODE>(u, p, random);
    });
}

template <class T>
void posit(const T *x, T *y, int64_t first, int64_t last, const lpt_posit &p,
           const lpt_rule &rule) {
    switch (rule.mode) {
    case LPT_NEAREST: return posit_mode<T, LPT_NEAREST>(x, y, first, last, p, rule);
    case LPT_NEAREST_AWAY: return posit_mode<T, LPT_NEAREST_AWAY>(x, y, first, last, p, rule);
    case LPT_TOWARD_ZERO: return posit_mode<T, LPT_TOWARD_ZERO>(x, y, first, last, p, rule);
    case LPT_DOWN: return posit_mode<T, LPT_DOWN>(x, y, first, last, p, rule);
    case LPT_UP: return posit_mode<T, LPT_UP>(x, y, first, last, p, rule);
    case LPT_ODD: return posit_mode<T, LPT_ODD>(x, y, first, last, p, rule);
    default: return posit_mode<T, LPT_STOCHASTIC>(x, y, first, last, p, rule);
    }
}

}  // namespace

extern const lpt_codebooks LPT_CODEBOOKS = {{table<float>, posit<float>},
                                            {table<double>, posit<double>}};
