// Tables of up to 256 fp32 values in the registers of AVX-512: a search of sixteen numbers at once
// without touching memory, several times as fast as looking up one by one.
#pragma once
#include "intrinsics.h"
#include "loop.h"
#include "table.h"

#ifdef __AVX512F__
// a[i mod 2**BITS] of each lane.
template <int BITS> struct lpt_look {
    static inline __m512i up(const int32_t *a, __m512i i) {
        const __mmask16 upper = _mm512_test_epi32_mask(i, _mm512_set1_epi32(1 << (BITS - 1)));
        return _mm512_mask_blend_epi32(upper, lpt_look<BITS - 1>::up(a, i),
                                       lpt_look<BITS - 1>::up(a + (1 << (BITS - 1)), i));
    }
};
template <> struct lpt_look<5> {
    static inline __m512i up(const int32_t *a, __m512i i) {
        return _mm512_permutex2var_epi32(_mm512_load_si512(a), i, _mm512_load_si512(a + 16));
    }
};
template <> struct lpt_look<4> {
    static inline __m512i up(const int32_t *a, __m512i i) {
        return _mm512_permutexvar_epi32(i, _mm512_load_si512(a));
    }
};

// Vectors that are searched side by side: each step of a search waits for the one before.
enum { LPT_ABREAST = 4 };

// From the root of the search tree to nodes LEVEL levels below it.
template <int LEVEL> struct lpt_descend {
    template <int N>
    static inline void to(const int32_t *tree, const __m512i (&key)[N], __m512i (&node)[N]) {
        lpt_descend<LEVEL - 1>::to(tree, key, node);
        // The nodes of a level lie at 2**level and on; the first four levels share sixteen numbers.
        const int32_t above = LEVEL - 1, *nodes = tree + (above < 4 ? 0 : 1 << above);
        __m512i step[N];
        for (int k = 0; k < N; ++k)
            step[k] = lpt_look<(above < 4 ? 4 : above)>::up(nodes, node[k]);
        for (int k = 0; k < N; ++k) {
            const __m512i child = _mm512_add_epi32(node[k], node[k]);
            node[k] = _mm512_mask_add_epi32(child, _mm512_cmple_epi32_mask(step[k], key[k]), child,
                                            _mm512_set1_epi32(1));
        }
    }
};
template <> struct lpt_descend<0> {
    template <int N>
    static inline void to(const int32_t *, const __m512i (&)[N], __m512i (&node)[N]) {
        for (int k = 0; k < N; ++k)
            node[k] = _mm512_set1_epi32(1);
    }
};

// Whether a value below the one in the middle, zero, is what the value as far above it is, with a
// minus, and so for the numbers that round to them.
static inline bool lpt_mirrored(const lpt_table<float> &t) {
    const int32_t zero = t.last / 2;
    bool same = t.last % 2 == 0 && t.value[zero] == 0;
    for (int32_t i = 1; same && i <= zero; ++i)
        same = t.value[zero - i] == (t.value[zero + i] | 0x80000000u) &&
               t.step[zero - i] == 1 - t.step[zero + i - 1];
    return same;
}

// The steps as a tree, and for each number of a value that value and the next one. MIRRORED:
// magnitudes alone are searched, and results take the sign of what they are rounded from.
template <int LEVELS, bool MIRRORED> class lpt_tree {
    alignas(64) int32_t tree[1 << LEVELS], value[1 << LEVELS], next[1 << LEVELS];

    static inline __m512i magnitude_of(__m512i u) {
        return _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    }

    // The nodes below the last level at which the searches of N vectors end.
    template <int N> inline void find(const __m512i (&u)[N], __m512i (&node)[N]) const {
        __m512i key[N];
        for (int k = 0; k < N; ++k) {
            const __m512i a = magnitude_of(u[k]), negative = _mm512_srai_epi32(u[k], 31);
            key[k] = MIRRORED ? a : _mm512_sub_epi32(_mm512_xor_si512(a, negative), negative);
        }
        lpt_descend<LEVELS>::to(tree, key, node);
    }

    // work(u, first of them, those of the last vector that there are) for vectors side by side.
    template <class Work>
    static inline void each(const float *x, int64_t first, int64_t last, Work work) {
        int64_t i = first;
        for (; i + 16 * LPT_ABREAST <= last; i += 16 * LPT_ABREAST) {
            __m512i u[LPT_ABREAST];
            for (int k = 0; k < LPT_ABREAST; ++k)
                u[k] = _mm512_loadu_si512(x + i + 16 * k);
            work(u, i, (__mmask16)0xffff);
        }
        for (; i < last; i += 16) {
            const __mmask16 rest = (__mmask16)(last - i < 16 ? (1 << (last - i)) - 1 : 0xffff);
            __m512i u[1] = {_mm512_maskz_loadu_epi32(rest, x + i)};
            work(u, i, rest);
        }
    }

  public:
    explicit lpt_tree(const lpt_table<float> &t) {
        const int32_t least = MIRRORED ? t.last / 2 : 0, most = t.last - least;
        // The children of node n are 2 n and 2 n + 1; absent steps are beyond every key.
        tree[0] = 0;
        for (int32_t level = 0; level < LEVELS; ++level)
            for (int32_t b = 0; b < 1 << level; ++b) {
                const int32_t i = ((2 * b + 1) << (LEVELS - 1 - level)) - 1;
                tree[(1 << level) + b] = i < most ? t.step[least + i] : INT32_MAX;
            }
        for (int32_t i = 0; i < 1 << LEVELS; ++i) {
            value[i] = (int32_t)t.value[least + (i < most ? i : most)];
            next[i] = (int32_t)t.value[least + (i < most ? i + 1 : most)];
        }
    }

    void round(const float *x, float *y, int64_t first, int64_t last) const {
        const __m512i inf = _mm512_set1_epi32(0x7f800000), nan = _mm512_set1_epi32(0x7fc00000);
        each(x, first, last, [&](const auto &u, int64_t i, __mmask16 there) {
            enum { N = sizeof u / sizeof *u };
            __m512i node[N];
            find(u, node);
            for (int k = 0; k < N; ++k) {
                const __m512i a = magnitude_of(u[k]);
                __m512i r = lpt_look<LEVELS>::up(value, node[k]);
                if (MIRRORED)  // zero has no sign
                    r = _mm512_mask_or_epi32(r, _mm512_test_epi32_mask(r, r), r,
                                             _mm512_xor_si512(a, u[k]));
                r = _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, inf), r, nan);
                _mm512_mask_storeu_epi32(y + i + 16 * k, k + 1 < N ? (__mmask16)0xffff : there, r);
            }
        });
    }

    // The values that x[0] .. x[count - 1] lie between, or twice the last one.
    void between(const float *x, int64_t count, uint32_t *low, uint32_t *high) const {
        each(x, 0, count, [&](const auto &u, int64_t i, __mmask16 there) {
            enum { N = sizeof u / sizeof *u };
            __m512i node[N];
            find(u, node);
            for (int k = 0; k < N; ++k) {
                const __mmask16 mask = k + 1 < N ? (__mmask16)0xffff : there;
                const __m512i here = lpt_look<LEVELS>::up(value, node[k]);
                _mm512_mask_storeu_epi32(low + i + 16 * k, mask, here);
                _mm512_mask_storeu_epi32(high + i + 16 * k, mask,
                                         lpt_look<LEVELS>::up(next, node[k]));
            }
        });
    }
};

// work(the tree) if the table is small enough. Steps of stochastic rounding mirror nothing.
template <bool MIRRORED, class Work>
static inline bool lpt_with_tree(const lpt_table<float> &t, Work work) {
    if (t.last < 16)
        work(lpt_tree<4, false>(t));
    else if (t.last < 64)
        work(lpt_tree<6, false>(t));
    else if (MIRRORED && t.last < 256 && lpt_mirrored(t))
        work(lpt_tree<7, MIRRORED>(t));
    else if (t.last < 256)
        work(lpt_tree<8, false>(t));
    return t.last < 256;
}

// Whether the table is small enough; then it is done.
static inline bool lpt_search(const float *x, float *y, int64_t first, int64_t last,
                              const lpt_table<float> &t) {
    return lpt_with_tree<true>(t, [=](const auto &tree) { tree.round(x, y, first, last); });
}

// A number between two values goes to one of them, and at an end of the list where that says.
template <int MODE, class End>
static inline uint32_t lpt_round_between(uint32_t u, uint32_t low, uint32_t high,
                                         const lpt_odds &odds, uint32_t random, End at_end) {
    const uint32_t inf = 0x7f800000u, nan = 0x7fc00000u, minus = 0x80000000u;
    const auto exact = [=](uint32_t v) {
        const uint64_t sign = (uint64_t)(v & minus) << 32;
        return lpt_value<double>(lpt_bits(lpt_exact(v & ~minus)) | sign);
    };
    const uint32_t above = lpt_key_of<float>(u) > lpt_key_of<float>(low) ? ~0u : 0u;
    const uint32_t sign = u & minus, negative = sign ? ~0u : 0u;  // then as if all were mirrored
    const uint32_t near = ((high & negative) | (low & ~negative)) ^ sign;
    const uint32_t far = ((low & negative) | (high & ~negative)) ^ sign;
    const bool drawn = lpt_drawn_between<MODE, false>(exact(u ^ sign), exact(near), exact(far),
                                                      above != 0, odds, random);
    const uint32_t up = drawn != (sign != 0) ? above : 0u;
    const uint32_t r = (high & up) | (low & ~up);
    return (u & ~minus) > inf ? nan : at_end(u, r);
}

// x[0] .. x[n - 1] are drawn between these, in a list with ends.
template <int MODE>
static LPT_APART void lpt_draw_to_ends(const float *x, float *y, int64_t n, const uint32_t *low,
                                       const uint32_t *high, const uint32_t *words,
                                       const lpt_odds &odds, const uint32_t *ends) {
    const uint32_t limit = ends[0], finite = ends[1], infinite = ends[2];
    const lpt_odds local = odds;
    const auto at_end = [=](uint32_t u, uint32_t r) {
        return lpt_at_end<float>(u, r, limit, finite, infinite);
    };
    LPT_INDEPENDENT
    for (int64_t i = 0; i < n; ++i)
        y[i] = lpt_value<float>(
            lpt_round_between<MODE>(lpt_bits(x[i]), low[i], high[i], local, words[i], at_end));
}

// The same of a stochastic mode: numbers between two values are drawn when these are known.
template <int MODE>
static inline bool lpt_search_drawn(const float *x, float *y, int64_t first, int64_t last,
                                    const lpt_table<float> &t, const lpt_rule &rule) {
    const lpt_odds odds = lpt_make_odds(rule.bits);
    return lpt_with_tree<false>(t, [&](const auto &tree) {
        lpt_each_group(first, last, rule, [&](int64_t from, int64_t to, const uint32_t *words) {
            uint32_t low[LPT_GROUP], high[LPT_GROUP];
            tree.between(x + from, to - from, low, high);
            if (lpt_has_ends(t))
                return lpt_draw_to_ends<MODE>(x + from, y + from, to - from, low, high, words, odds,
                                              t.ends);
            LPT_INDEPENDENT
            for (int64_t i = from; i < to; ++i) {
                const uint32_t u = lpt_bits(x[i]);
                y[i] = lpt_value<float>(
                    lpt_round_between<MODE>(u, low[i - from], high[i - from], odds, words[i - from],
                                            [](uint32_t, uint32_t r) { return r; }));
            }
        });
    });
}
#else
static inline bool lpt_search(const float *, float *, int64_t, int64_t, const lpt_table<float> &) {
    return false;
}
template <int MODE>
static inline bool lpt_search_drawn(const float *, float *, int64_t, int64_t,
                                    const lpt_table<float> &, const lpt_rule &) {
    return false;
}
#endif
static inline bool lpt_search(const double *, double *, int64_t, int64_t,
                              const lpt_table<double> &) {
    return false;
}
template <int MODE>
static inline bool lpt_search_drawn(const double *, double *, int64_t, int64_t,
                                    const lpt_table<double> &, const lpt_rule &) {
    return false;
}
