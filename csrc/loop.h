// The loop over elements, with the random words of their groups.
#pragma once
#include "kernels.h"

// Random words of the group of 128 elements that starts at `first`.
static inline void lpt_words_of_group(int64_t first, lpt_key key, uint32_t mask, uint32_t *out) {
    const uint64_t counter = (uint64_t)first / LPT_GROUP * LPT_LANES;
    for (int lane = 0; lane < LPT_LANES; ++lane) {
        const lpt_words words = lpt_philox(counter + lane, key);
        for (int w = 0; w < 4; ++w)
            out[w * LPT_LANES + lane] = words.w[w] & mask;
    }
}

// y[i] = f(bits of x[i], random word of i) for first .. last; x and y may be one.
template <int MODE, class T, class F>
static inline void lpt_each(const T *x, T *y, int64_t first, int64_t last, const lpt_rule &rule,
                            F f) {
    if (MODE < LPT_STOCHASTIC) {
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>(f(lpt_bits(x[i]), 0u));
        return;
    }
    const uint32_t mask = 0xffffffffu << (32 - rule.bits);
    if (last - first < LPT_LANES) {
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>(f(lpt_bits(x[i]), lpt_random(i, rule.key) & mask));
        return;
    }
    uint32_t words[LPT_GROUP];
    for (int64_t group = first / LPT_GROUP * LPT_GROUP; group < last; group += LPT_GROUP) {
        lpt_words_of_group(group, rule.key, mask, words);
        const int64_t from = group < first ? first : group;
        const int64_t to = group + LPT_GROUP < last ? group + LPT_GROUP : last;
        for (int64_t i = from; i < to; ++i)
            y[i] = lpt_value<T>(f(lpt_bits(x[i]), words[i - group]));
    }
}
