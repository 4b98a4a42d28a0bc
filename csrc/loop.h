// The loop over elements, with the random words of their groups.
#pragma once
#include "kernels.h"
#include "stream.h"
#include "words.h"

// y[i] = f(bits of x[i], random word of i) for first .. last, some of which a group has; x and y
// may be one.
template <class T, class F>
static inline void lpt_each_word(const T *x, T *y, int64_t first, int64_t last,
                                 const uint32_t *words, F f) {
    LPT_INDEPENDENT
    for (int64_t i = first; i < last; ++i)
        y[i] = lpt_value<T>(f(lpt_bits(x[i]), words[i - first]));
}

// The same without random words, for any number of elements.
template <class T, class F>
static inline void lpt_each_plain(const T *x, T *y, int64_t first, int64_t last, F f) {
    LPT_INDEPENDENT
    for (int64_t i = first; i < last; ++i)
        y[i] = lpt_value<T>(f(lpt_bits(x[i]), 0u));
}

// work(from, to, words of those elements) for the groups of first .. last.
template <class Work>
static inline void lpt_each_group(int64_t first, int64_t last, const lpt_rule &rule, Work work) {
    const uint32_t mask = 0xffffffffu << (32 - rule.bits);
    uint32_t words[LPT_GROUP];
    if (last - first < LPT_LANES) {
        for (int64_t i = first; i < last; ++i)
            words[i - first] = lpt_random(i, rule.key) & mask;
        return work(first, last, words);
    }
    for (int64_t group = first / LPT_GROUP * LPT_GROUP; group < last; group += LPT_GROUP) {
        lpt_words_of_group(group, rule.key, mask, words);
        const int64_t from = group < first ? first : group;
        const int64_t to = group + LPT_GROUP < last ? group + LPT_GROUP : last;
        work(from, to, words + (from - group));
    }
}

// y[i] = f(bits of x[i], random word of i) for first .. last.
template <int MODE, class T, class F>
static inline void lpt_each(const T *x, T *y, int64_t first, int64_t last, const lpt_rule &rule,
                            F f) {
    if (MODE < LPT_STOCHASTIC)
        return lpt_each_plain(x, y, first, last, f);
    lpt_each_group(first, last, rule, [&](int64_t from, int64_t to, const uint32_t *words) {
        lpt_each_word(x, y, from, to, words, f);
    });
}

// Whether all magnitudes of first .. last are at most `limit`.
template <class T>
static inline bool lpt_all_inside(const T *x, int64_t first, int64_t last,
                                  typename lpt_carrier<T>::bits limit) {
    typedef lpt_carrier<T> C;
    typedef typename C::sbits S;
    S top = 0;
    for (int64_t i = first; i < last; ++i) {
        const S a = (S)(lpt_bits(x[i]) & ~((typename C::bits)1 << (C::width - 1)));
        top = a > top ? a : top;
    }
    return (typename C::bits)top <= limit;
}

// The same, with `inside` where all of a piece of the elements are at most `limit`, which is
// cheaper, and `any` elsewhere. `large`: y is another tensor than x, and more than the cache holds.
template <int MODE, class T, class Inside, class Any>
static inline void lpt_each_inside(const T *x, T *y, int64_t first, int64_t last,
                                   const lpt_rule &rule, typename lpt_carrier<T>::bits limit,
                                   bool large, Inside inside, Any any) {
    if (MODE >= LPT_STOCHASTIC)
        return lpt_each_group(first, last, rule,
                              [&](int64_t from, int64_t to, const uint32_t *words) {
                                  if (lpt_all_inside(x, from, to, limit))
                                      lpt_each_word(x, y, from, to, words, inside);
                                  else
                                      lpt_each_word(x, y, from, to, words, any);
                              });
    enum { PIECE = 512 };
    for (int64_t from = first; from < last; from += PIECE) {
        const int64_t to = from + PIECE < last ? from + PIECE : last;
        lpt_fetch(x + to + PIECE, PIECE);
        if (!lpt_all_inside(x, from, to, limit))
            lpt_each_plain(x, y, from, to, any);
        else if (large)
            lpt_fill_past(y, from, to,
                          [=](int64_t i) { return lpt_value<T>(inside(lpt_bits(x[i]), 0u)); });
        else
            lpt_each_plain(x, y, from, to, inside);
    }
    lpt_streamed();
}
