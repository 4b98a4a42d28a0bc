// The largest of the numbers of blocks that follow each other, a block for each lane of a vector:
// what is stored number by number and soon read as a vector would keep the processor waiting.
#pragma once
#include "grid.h"
#include "intrinsics.h"

#if defined(__AVX512F__)
#define LPT_INTEGERS
struct lpt_integers {
    enum { LANES = 16 };
    __m512i v;
    static lpt_integers load(const float *x) { return {_mm512_loadu_si512(x)}; }
    // Their magnitudes; those equal to `left_out` are zero.
    lpt_integers magnitudes(uint32_t left_out) const {
        const __m512i a = _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff));
        const __mmask16 counted = _mm512_cmpneq_epi32_mask(a, _mm512_set1_epi32((int)left_out));
        return {_mm512_maskz_mov_epi32(counted, a)};
    }
    // As lpt_ordered has them, all bits of `flip` turned round.
    lpt_integers places(int32_t flip) const {
        const __m512i low = _mm512_srli_epi32(_mm512_srai_epi32(v, 31), 1);
        return {_mm512_ternarylogic_epi32(v, low, _mm512_set1_epi32(flip), 0x96)};
    }
    static lpt_integers larger(lpt_integers a, lpt_integers b) {
        return {_mm512_max_epi32(a.v, b.v)};
    }
    static lpt_integers fold(lpt_integers a, lpt_integers b, int32_t fold) {
        if (fold == 0)
            return larger({_mm512_unpacklo_epi32(a.v, b.v)}, {_mm512_unpackhi_epi32(a.v, b.v)});
        if (fold == 1)
            return larger({_mm512_unpacklo_epi64(a.v, b.v)}, {_mm512_unpackhi_epi64(a.v, b.v)});
        return larger({_mm512_shuffle_i32x4(a.v, b.v, 0x88)},
                      {_mm512_shuffle_i32x4(a.v, b.v, 0xdd)});
    }
    void store(uint32_t *to) const { _mm512_storeu_si512(to, v); }
};
#elif defined(__AVX2__)
#define LPT_INTEGERS
struct lpt_integers {
    enum { LANES = 8 };
    __m256i v;
    static lpt_integers load(const float *x) { return {_mm256_loadu_si256((const __m256i *)x)}; }
    lpt_integers magnitudes(uint32_t left_out) const {
        const __m256i a = _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff));
        return {_mm256_andnot_si256(_mm256_cmpeq_epi32(a, _mm256_set1_epi32((int)left_out)), a)};
    }
    lpt_integers places(int32_t flip) const {
        const __m256i low = _mm256_srli_epi32(_mm256_srai_epi32(v, 31), 1);
        return {_mm256_xor_si256(_mm256_xor_si256(v, low), _mm256_set1_epi32(flip))};
    }
    static lpt_integers larger(lpt_integers a, lpt_integers b) {
        return {_mm256_max_epi32(a.v, b.v)};
    }
    static lpt_integers fold(lpt_integers a, lpt_integers b, int32_t fold) {
        if (fold == 0)
            return larger({_mm256_unpacklo_epi32(a.v, b.v)}, {_mm256_unpackhi_epi32(a.v, b.v)});
        if (fold == 1)
            return larger({_mm256_unpacklo_epi64(a.v, b.v)}, {_mm256_unpackhi_epi64(a.v, b.v)});
        return larger({_mm256_permute2x128_si256(a.v, b.v, 0x20)},
                      {_mm256_permute2x128_si256(a.v, b.v, 0x31)});
    }
    void store(uint32_t *to) const { _mm256_storeu_si256((__m256i *)to, v); }
};
#endif

// What of a number is compared.
struct lpt_by_magnitude {
    uint32_t left_out;  // counts as zero
#if defined(LPT_INTEGERS)
    lpt_integers operator()(lpt_integers v) const { return v.magnitudes(left_out); }
#endif
};
struct lpt_by_place {
    int32_t flip;  // 0, or all bits for the opposite order
#if defined(LPT_INTEGERS)
    lpt_integers operator()(lpt_integers v) const { return v.places(flip); }
#endif
};

#if defined(LPT_INTEGERS)
// top[k] of x[k * wide] .. x[(k + 1) * wide - 1] for as many k as a vector has lanes. `wide` is a
// multiple of them, and WIDE where that is not 0. Each fold takes half as many lanes of twice as
// many blocks into a vector.
template <int WIDE, class By>
static inline void lpt_maxima_of_lanes(const float *x, int64_t wide, By by, uint32_t *top) {
    typedef lpt_integers V;
    const int64_t width = WIDE ? WIDE : wide;
    V v[V::LANES];
    for (int32_t k = 0; k < V::LANES; ++k, x += width) {
        v[k] = by(V::load(x));
        for (int64_t i = V::LANES; i < width; i += V::LANES)
            v[k] = V::larger(v[k], by(V::load(x + i)));
    }
    for (int32_t fold = 0, left = V::LANES / 2; left > 0; ++fold, left /= 2)
        for (int32_t k = 0; k < left; ++k)
            v[k] = V::fold(v[2 * k], v[2 * k + 1], fold);
    v[0].store(top);
}

// The same of `count` blocks, as far as whole vectors of them go: so many.
template <class By>
static inline int64_t lpt_maxima_of_runs(const float *x, int64_t wide, int64_t count, By by,
                                         uint32_t *top) {
    enum { LANES = lpt_integers::LANES };
    const int64_t done = wide % LANES ? 0 : count / LANES * LANES;
    for (int64_t k = 0; k < done; k += LANES)
        if (wide == 16)
            lpt_maxima_of_lanes<16>(x + k * wide, wide, by, top + k);
        else if (wide == 32)
            lpt_maxima_of_lanes<32>(x + k * wide, wide, by, top + k);
        else
            lpt_maxima_of_lanes<0>(x + k * wide, wide, by, top + k);
    return done;
}
#else
template <class By>
static inline int64_t lpt_maxima_of_runs(const float *, int64_t, int64_t, By, uint32_t *) {
    return 0;
}
#endif
template <class By>
static inline int64_t lpt_maxima_of_runs(const double *, int64_t, int64_t, By, uint64_t *) {
    return 0;
}
