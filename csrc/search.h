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

// From a node of the search tree to its child, LEVEL levels below the root.
template <int LEVEL>
static inline __m512i lpt_descend(const int32_t *tree, __m512i node, __m512i key) {
    // The nodes of a level lie at 2**LEVEL and on; the first four levels share sixteen numbers.
    const int32_t *nodes = tree + (LEVEL < 4 ? 0 : 1 << LEVEL);
    const __m512i step = lpt_look<(LEVEL < 4 ? 4 : LEVEL)>::up(nodes, node);
    const __m512i child = _mm512_add_epi32(node, node);
    return _mm512_mask_add_epi32(child, _mm512_cmple_epi32_mask(step, key), child,
                                 _mm512_set1_epi32(1));
}

// The leaf below the root, as 2**LEVELS + the number of steps at or below the key.
template <int LEVELS> struct lpt_leaf {
    static inline __m512i of(const int32_t *tree, __m512i key) {
        return lpt_descend<LEVELS - 1>(tree, lpt_leaf<LEVELS - 1>::of(tree, key), key);
    }
};
template <> struct lpt_leaf<0> {
    static inline __m512i of(const int32_t *, __m512i) { return _mm512_set1_epi32(1); }
};

template <int LEVELS>
static inline void lpt_search_levels(const float *x, float *y, int64_t first, int64_t last,
                                     const lpt_table<float> &t) {
    // The children of node n are 2 n and 2 n + 1; absent steps are beyond every key.
    alignas(64) int32_t tree[1 << LEVELS], value[1 << LEVELS];
    tree[0] = 0;
    for (int32_t level = 0; level < LEVELS; ++level)
        for (int32_t b = 0; b < 1 << level; ++b) {
            const int32_t i = ((2 * b + 1) << (LEVELS - 1 - level)) - 1;
            tree[(1 << level) + b] = i < t.last ? t.step[i] : INT32_MAX;
        }
    for (int32_t i = 0; i < 1 << LEVELS; ++i)
        value[i] = (int32_t)t.value[i < t.last ? i : t.last];

    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), inf = _mm512_set1_epi32(0x7f800000);
    const __m512i nan = _mm512_set1_epi32(0x7fc00000);
    auto sixteen = [&](__m512i u) {
        const __m512i a = _mm512_and_si512(u, magnitude), negative = _mm512_srai_epi32(u, 31);
        const __m512i key = _mm512_sub_epi32(_mm512_xor_si512(a, negative), negative);
        const __m512i r = lpt_look<LEVELS>::up(value, lpt_leaf<LEVELS>::of(tree, key));
        return _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, inf), r, nan);
    };
    int64_t i = first;
    for (; i + 16 <= last; i += 16)
        _mm512_storeu_si512(y + i, sixteen(_mm512_loadu_si512(x + i)));
    const __mmask16 rest = (__mmask16)((1 << (last - i)) - 1);
    _mm512_mask_storeu_epi32(y + i, rest, sixteen(_mm512_maskz_loadu_epi32(rest, x + i)));
}

// Whether the table is small enough; then it is done.
static inline bool lpt_search(const float *x, float *y, int64_t first, int64_t last,
                              const lpt_table<float> &t) {
    if (t.last < 16)
        lpt_search_levels<4>(x, y, first, last, t);
    else if (t.last < 64)
        lpt_search_levels<6>(x, y, first, last, t);
    else if (t.last < 256)
        lpt_search_levels<8>(x, y, first, last, t);
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
