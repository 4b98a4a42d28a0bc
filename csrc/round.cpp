// The loops on the CPU, and nothing but the loops. Compiled once per instruction set, with
// LPT_BUILD naming the result; threads and the choice of the set are in library.cpp.
#include "kernels.h"

namespace {

// Random words of the group of 128 elements that starts at `first`.
inline void words_of_group(int64_t first, lpt_key key, uint32_t mask, uint32_t *out) {
    const uint64_t counter = (uint64_t)first / LPT_GROUP * LPT_LANES;
    for (int lane = 0; lane < LPT_LANES; ++lane) {
        const lpt_words words = lpt_philox(counter + lane, key);
        for (int w = 0; w < 4; ++w)
            out[w * LPT_LANES + lane] = words.w[w] & mask;
    }
}

template <class T, int MODE, bool PLAIN>
void run(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &cell,
         const lpt_rule &rule) {
    const lpt_cell<T> c = cell;  // a local copy: y may not alias it
    if (MODE < LPT_STOCHASTIC) {
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>(lpt_round<T, MODE, PLAIN>(lpt_bits(x[i]), c, 0));
        return;
    }
    const uint32_t mask = 0xffffffffu << (32 - rule.bits);
    if (last - first < LPT_LANES) {
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>(
                lpt_round<T, MODE, PLAIN>(lpt_bits(x[i]), c, lpt_random(i, rule.key) & mask));
        return;
    }
    uint32_t words[LPT_GROUP];
    for (int64_t group = first / LPT_GROUP * LPT_GROUP; group < last; group += LPT_GROUP) {
        words_of_group(group, rule.key, mask, words);
        const int64_t from = group < first ? first : group;
        const int64_t to = group + LPT_GROUP < last ? group + LPT_GROUP : last;
        for (int64_t i = from; i < to; ++i)
            y[i] = lpt_value<T>(lpt_round<T, MODE, PLAIN>(lpt_bits(x[i]), c, words[i - group]));
    }
}

template <class T, bool PLAIN>
void run_mode(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule) {
    switch (rule.mode) {
    case LPT_NEAREST: return run<T, LPT_NEAREST, PLAIN>(x, y, first, last, c, rule);
    case LPT_NEAREST_AWAY: return run<T, LPT_NEAREST_AWAY, PLAIN>(x, y, first, last, c, rule);
    case LPT_TOWARD_ZERO: return run<T, LPT_TOWARD_ZERO, PLAIN>(x, y, first, last, c, rule);
    case LPT_DOWN: return run<T, LPT_DOWN, PLAIN>(x, y, first, last, c, rule);
    case LPT_UP: return run<T, LPT_UP, PLAIN>(x, y, first, last, c, rule);
    case LPT_ODD: return run<T, LPT_ODD, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC: return run<T, LPT_STOCHASTIC, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC_HALF_OFFSET:
        return run<T, LPT_STOCHASTIC_HALF_OFFSET, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC_PRE_ROUNDED:
        return run<T, LPT_STOCHASTIC_PRE_ROUNDED, PLAIN>(x, y, first, last, c, rule);
    default: return run<T, LPT_STOCHASTIC_EQUAL, PLAIN>(x, y, first, last, c, rule);
    }
}

template <class T>
void run_cell(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule) {
    if (c.plain)
        run_mode<T, true>(x, y, first, last, c, rule);
    else
        run_mode<T, false>(x, y, first, last, c, rule);
}

template <class T>
void grid(const T *x, T *y, int64_t first, int64_t last, const lpt_grid &g, const lpt_rule &rule) {
    run_cell(x, y, first, last, lpt_make_cell<T>(g, rule, 0), rule);
}

}  // namespace

#include "block_loops.h"

#define LPT_STRING(x) #x
#define LPT_NAME(x) LPT_STRING(x)
#define LPT_LOOPS(T) {grid<T>, maxima<T>, finite_maximum<T>, block_scales<T>, blocks<T>, runs<T>}
extern const lpt_build LPT_BUILD = {LPT_NAME(LPT_BUILD), LPT_LOOPS(float), LPT_LOOPS(double)};
