// The largest magnitudes of blocks that follow each other, a block for each lane of a vector: what
// is stored number by number and soon read as a vector would keep the processor waiting.
#pragma once
#include "grid.h"
#include "intrinsics.h"

#if defined(__AVX512F__)
#define LPT_MAGNITUDES
struct lpt_magnitudes {
    enum { LANES = 16 };
    __m512i v;
    // Those equal to `left_out` are zero.
    static lpt_magnitudes of(const float *x, uint32_t left_out) {
        const __m512i a = _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff));
        const __mmask16 counted = _mm512_cmpneq_epi32_mask(a, _mm512_set1_epi32((int)left_out));
        return {_mm512_maskz_mov_epi32(counted, a)};
    }
    static lpt_magnitudes larger(lpt_magnitudes a, lpt_magnitudes b) {
        return {_mm512_max_epi32(a.v, b.v)};
    }
    static lpt_magnitudes fold(lpt_magnitudes a, lpt_magnitudes b, int32_t fold) {
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
#define LPT_MAGNITUDES
struct lpt_magnitudes {
    enum { LANES = 8 };
    __m256i v;
    static lpt_magnitudes of(const float *x, uint32_t left_out) {
        const __m256i all = _mm256_loadu_si256((const __m256i *)x);
        const __m256i a = _mm256_and_si256(all, _mm256_set1_epi32(0x7fffffff));
        return {_mm256_andnot_si256(_mm256_cmpeq_epi32(a, _mm256_set1_epi32((int)left_out)), a)};
    }
    static lpt_magnitudes larger(lpt_magnitudes a, lpt_magnitudes b) {
        return {_mm256_max_epi32(a.v, b.v)};
    }
    static lpt_magnitudes fold(lpt_magnitudes a, lpt_magnitudes b, int32_t fold) {
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

#if defined(LPT_MAGNITUDES)
// top[k] of x[k * wide] .. x[(k + 1) * wide - 1] for as many k as a vector has lanes. `wide` is a
// multiple of them, and WIDE where that is not 0. Each fold takes half as many lanes of twice as
// many blocks into a vector.
template <int WIDE>
static inline void lpt_maxima_of_lanes(const float *x, int64_t wide, uint32_t left_out,
                                       uint32_t *top) {
    typedef lpt_magnitudes V;
    const int64_t width = WIDE ? WIDE : wide;
    V v[V::LANES];
    for (int32_t k = 0; k < V::LANES; ++k, x += width) {
        v[k] = V::of(x, left_out);
        for (int64_t i = V::LANES; i < width; i += V::LANES)
            v[k] = V::larger(v[k], V::of(x + i, left_out));
    }
    for (int32_t fold = 0, left = V::LANES / 2; left > 0; ++fold, left /= 2)
        for (int32_t k = 0; k < left; ++k)
            v[k] = V::fold(v[2 * k], v[2 * k + 1], fold);
    v[0].store(top);
}

// The same of `count` blocks, as far as whole vectors of them go: so many.
static inline int64_t lpt_maxima_of_runs(const float *x, int64_t wide, int64_t count,
                                         uint32_t left_out, uint32_t *top) {
    enum { LANES = lpt_magnitudes::LANES };
    const int64_t done = wide % LANES ? 0 : count / LANES * LANES;
    for (int64_t k = 0; k < done; k += LANES)
        if (wide == 16)
            lpt_maxima_of_lanes<16>(x + k * wide, wide, left_out, top + k);
        else if (wide == 32)
            lpt_maxima_of_lanes<32>(x + k * wide, wide, left_out, top + k);
        else
            lpt_maxima_of_lanes<0>(x + k * wide, wide, left_out, top + k);
    return done;
}
#else
static inline int64_t lpt_maxima_of_runs(const float *, int64_t, int64_t, uint32_t, uint32_t *) {
    return 0;
}
#endif
static inline int64_t lpt_maxima_of_runs(const double *, int64_t, int64_t, uint64_t, uint64_t *) {
    return 0;
}
