// Tables of up to 256 fp32 values in the registers of AVX-512: a search of sixteen numbers at once
// without touching memory, several times as fast as looking up one by one.
#pragma once
#include "table.h"

#ifdef __AVX512F__
#pragma GCC diagnostic push  // gcc 12 warns of its own header (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

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

// MIRRORED: magnitudes alone are searched, and results take the sign of what they are rounded from.
template <int LEVELS, bool MIRRORED>
static inline void lpt_search_levels(const float *x, float *y, int64_t first, int64_t last,
                                     const lpt_table<float> &t) {
    const int32_t least = MIRRORED ? t.last / 2 : 0, most = t.last - least;
    // The children of node n are 2 n and 2 n + 1; absent steps are beyond every key.
    alignas(64) int32_t tree[1 << LEVELS], value[1 << LEVELS];
    tree[0] = 0;
    for (int32_t level = 0; level < LEVELS; ++level)
        for (int32_t b = 0; b < 1 << level; ++b) {
            const int32_t i = ((2 * b + 1) << (LEVELS - 1 - level)) - 1;
            tree[(1 << level) + b] = i < most ? t.step[least + i] : INT32_MAX;
        }
    for (int32_t i = 0; i < 1 << LEVELS; ++i)
        value[i] = (int32_t)t.value[least + (i < most ? i : most)];

    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), inf = _mm512_set1_epi32(0x7f800000);
    const __m512i nan = _mm512_set1_epi32(0x7fc00000);
    auto round = [&](auto &u) {
        enum { N = sizeof u / sizeof *u };
        __m512i key[N], node[N];
        for (int k = 0; k < N; ++k) {
            const __m512i a = _mm512_and_si512(u[k], magnitude);
            const __m512i negative = _mm512_srai_epi32(u[k], 31);
            key[k] = MIRRORED ? a : _mm512_sub_epi32(_mm512_xor_si512(a, negative), negative);
        }
        lpt_descend<LEVELS>::to(tree, key, node);
        for (int k = 0; k < N; ++k) {
            const __m512i a = _mm512_and_si512(u[k], magnitude);
            __m512i r = lpt_look<LEVELS>::up(value, node[k]);
            if (MIRRORED)  // zero has no sign
                r = _mm512_mask_or_epi32(r, _mm512_test_epi32_mask(r, r), r,
                                         _mm512_andnot_si512(magnitude, u[k]));
            u[k] = _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, inf), r, nan);
        }
    };
    int64_t i = first;
    for (; i + 16 * LPT_ABREAST <= last; i += 16 * LPT_ABREAST) {
        __m512i u[LPT_ABREAST];
        for (int k = 0; k < LPT_ABREAST; ++k)
            u[k] = _mm512_loadu_si512(x + i + 16 * k);
        round(u);
        for (int k = 0; k < LPT_ABREAST; ++k)
            _mm512_storeu_si512(y + i + 16 * k, u[k]);
    }
    for (; i < last; i += 16) {
        const __mmask16 rest = (__mmask16)(last - i < 16 ? (1 << (last - i)) - 1 : 0xffff);
        __m512i u[1] = {_mm512_maskz_loadu_epi32(rest, x + i)};
        round(u);
        _mm512_mask_storeu_epi32(y + i, rest, u[0]);
    }
}

// Whether the table is small enough; then it is done.
static inline bool lpt_search(const float *x, float *y, int64_t first, int64_t last,
                              const lpt_table<float> &t) {
    if (t.last < 16)
        lpt_search_levels<4, false>(x, y, first, last, t);
    else if (t.last < 64)
        lpt_search_levels<6, false>(x, y, first, last, t);
    else if (t.last < 256 && lpt_mirrored(t))
        lpt_search_levels<7, true>(x, y, first, last, t);
    else if (t.last < 256)
        lpt_search_levels<8, false>(x, y, first, last, t);
    return t.last < 256;
}
#else
static inline bool lpt_search(const float *, float *, int64_t, int64_t, const lpt_table<float> &) {
    return false;
}
#endif
static inline bool lpt_search(const double *, double *, int64_t, int64_t,
                              const lpt_table<double> &) {
    return false;
}
