// Vectors of numbers, and of random words: what gemm_steps.h and gemm_rounders.h are written in.
// For processors with fused multiply-add in vectors; others use gemm_rows.h alone.
#pragma once
#include "gemm_loops.h"
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header starts some results from an unset value, and warns of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define LPT_STEP inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
enum { VECTOR = 64 };
typedef uint64_t words64 __attribute__((vector_size(64)));
typedef __m512 floats;
typedef __m512d doubles;
LPT_FN floats spread(float x) { return _mm512_set1_ps(x); }
LPT_FN doubles spread(double x) { return _mm512_set1_pd(x); }
LPT_FN floats fused(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
LPT_FN floats least(floats a, floats b) { return _mm512_min_ps(a, b); }
LPT_FN floats most(floats a, floats b) { return _mm512_max_ps(a, b); }
LPT_FN doubles least(doubles a, doubles b) { return _mm512_min_pd(a, b); }
LPT_FN doubles most(doubles a, doubles b) { return _mm512_max_pd(a, b); }
LPT_FN doubles down(doubles x) {
    return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
// 32-bit integers as doubles; products of lower halves of lanes; lower halves of lanes
LPT_FN doubles widened(const uint32_t *x) {
    return _mm512_cvtepu32_pd(_mm256_loadu_si256((const __m256i *)x));
}
LPT_FN words64 times_words(words64 x, uint32_t y) {
    return (words64)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(y));
}
LPT_FN doubles widened(__m256 x) { return _mm512_cvtps_pd(x); }
LPT_FN __m256 narrowed(doubles x) { return _mm512_cvtpd_ps(x); }
LPT_FN __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
LPT_FN void narrowed(words64 x, uint32_t *to) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi64_epi32((__m512i)x));
}
#else
enum { VECTOR = 32 };
typedef uint64_t words64 __attribute__((vector_size(32)));
typedef __m256 floats;
typedef __m256d doubles;
LPT_FN floats spread(float x) { return _mm256_set1_ps(x); }
LPT_FN doubles spread(double x) { return _mm256_set1_pd(x); }
LPT_FN floats fused(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
LPT_FN floats least(floats a, floats b) { return _mm256_min_ps(a, b); }
LPT_FN floats most(floats a, floats b) { return _mm256_max_ps(a, b); }
LPT_FN doubles least(doubles a, doubles b) { return _mm256_min_pd(a, b); }
LPT_FN doubles most(doubles a, doubles b) { return _mm256_max_pd(a, b); }
LPT_FN doubles down(doubles x) { return _mm256_floor_pd(x); }
LPT_FN doubles widened(const uint32_t *x) {
    const __m256i wide = _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)x));
    const doubles shift = spread(4503599627370496.0);  // 2**52: the integer becomes its last digits
    return (doubles)((words64)wide | (words64)shift) - shift;
}
LPT_FN words64 times_words(words64 x, uint32_t y) {
    return (words64)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(y));
}
LPT_FN doubles widened(__m128 x) { return _mm256_cvtps_pd(x); }
LPT_FN __m128 narrowed(doubles x) { return _mm256_cvtpd_ps(x); }
LPT_FN __m128 fused(__m128 a, __m128 b, __m128 c) { return _mm_fmadd_ps(a, b, c); }
LPT_FN void narrowed(words64 x, uint32_t *to) {
    for (int l = 0; l < VECTOR / 8; ++l)
        to[l] = (uint32_t)x[l];
}
#endif

template <class T> struct vectors;
template <> struct vectors<float> {
    typedef floats V;
    typedef uint32_t U __attribute__((vector_size(VECTOR)));
    enum { length = VECTOR / 4 };
};
template <> struct vectors<double> {
    typedef doubles V;
    typedef words64 U;
    enum { length = VECTOR / 8 };
};

// Four random words for each of `count` neighbouring elements, a multiple of two vectors' length:
// lpt_philox in lanes of 64 bits, two vectors in turns, since each step waits for the one before.
// words[n * apart + i] is the n-th of element first + i.
LPT_FN void draw_words(uint64_t first, int count, lpt_key key, uint32_t mask, int64_t apart,
                       uint32_t *words) {
    typedef vectors<double>::U U;
    enum { LANES = vectors<double>::length };
    for (int i = 0; i < count; i += 2 * LANES) {
        U c0[2], c1[2], c2[2], c3[2];  // of all words the lower halves count
        for (int v = 0; v < 2; ++v) {
            for (int l = 0; l < LANES; ++l)
                c0[v][l] = first + (uint64_t)(i + v * LANES + l);
            c1[v] = c0[v] >> 32;
            c2[v] = (U)spread(0.0) + (key.offset & 0xffffffff);
            c3[v] = (U)spread(0.0) + (key.offset >> 32);
        }
        uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                const U p0 = times_words(c0[v], 0xD2511F53u), p1 = times_words(c2[v], 0xCD9E8D57u);
                c0[v] = (p1 >> 32) ^ c1[v] ^ (uint64_t)k0;
                c2[v] = (p0 >> 32) ^ c3[v] ^ (uint64_t)k1;
                c1[v] = p1;
                c3[v] = p0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int v = 0; v < 2; ++v) {
            const U all[4] = {c0[v], c1[v], c2[v], c3[v]};
            for (int n = 0; n < 4; ++n)
                narrowed(all[n] & (uint64_t)mask, words + n * apart + i + v * LANES);
        }
    }
}

}  // namespace
