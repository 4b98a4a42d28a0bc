// Vectors of numbers: what gemm_steps.h and gemm_rounders.h are written in.
// For processors with fused multiply-add in vectors; others use gemm_rows.h alone.
#pragma once
#include "gemm_loops.h"
#include "words.h"
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header starts some results from an unset value, and warns of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define LPT_STEP inline __attribute__((always_inline))
#define LPT_OFTEN(condition) __builtin_expect(condition, 1)

namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
enum { VECTOR = 64 };
typedef uint32_t words32 __attribute__((vector_size(64)));
typedef uint64_t words64 __attribute__((vector_size(64)));
typedef __m512 floats;
typedef __m512d doubles;
LPT_FN floats spread(float x) { return _mm512_set1_ps(x); }
LPT_FN doubles spread(double x) { return _mm512_set1_pd(x); }
LPT_FN floats fused(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
LPT_FN doubles fused(doubles a, doubles b, doubles c) { return _mm512_fmadd_pd(a, b, c); }
LPT_FN floats least(floats a, floats b) { return _mm512_min_ps(a, b); }
LPT_FN floats most(floats a, floats b) { return _mm512_max_ps(a, b); }
LPT_FN doubles least(doubles a, doubles b) { return _mm512_min_pd(a, b); }
LPT_FN doubles most(doubles a, doubles b) { return _mm512_max_pd(a, b); }
LPT_FN doubles down(doubles x) {
    return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
LPT_FN doubles toward_zero(doubles x) {
    return _mm512_roundscale_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
LPT_FN doubles nearest_integer(doubles x) {
    return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LPT_FN words32 loaded(const uint32_t *x) { return (words32)_mm512_loadu_si512(x); }
LPT_FN doubles loaded(const double *x) { return _mm512_loadu_pd(x); }
LPT_FN void stored(double *y, doubles x) { _mm512_storeu_pd(y, x); }
LPT_FN bool all_zero(words64 x) { return _mm512_test_epi64_mask((__m512i)x, (__m512i)x) == 0; }
LPT_FN words32 every(uint32_t x) { return (words32)_mm512_set1_epi32((int)x); }
LPT_FN bool all_less(words32 x, words32 end) {
    return _mm512_cmplt_epu32_mask((__m512i)x, (__m512i)end) == 0xffff;
}
// and each y has one of these digits
LPT_FN bool all_less_with(words32 x, words32 end, words32 y, words32 digits) {
    const __mmask16 less = _mm512_cmplt_epu32_mask((__m512i)x, (__m512i)end);
    return _mm512_mask_test_epi32_mask(less, (__m512i)y, (__m512i)digits) == 0xffff;
}
LPT_FN bool all_finite(doubles x) { return _mm512_cmp_pd_mask(x - x, x - x, _CMP_ORD_Q) == 0xff; }
// 32-bit integers as doubles
LPT_FN doubles widened(const uint32_t *x) {
    return _mm512_cvtepu32_pd(_mm256_loadu_si256((const __m256i *)x));
}
LPT_FN doubles widened(__m256 x) { return _mm512_cvtps_pd(x); }
LPT_FN __m256 narrowed(doubles x) { return _mm512_cvtpd_ps(x); }
LPT_FN __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
#else
enum { VECTOR = 32 };
typedef uint32_t words32 __attribute__((vector_size(32)));
typedef uint64_t words64 __attribute__((vector_size(32)));
typedef __m256 floats;
typedef __m256d doubles;
LPT_FN floats spread(float x) { return _mm256_set1_ps(x); }
LPT_FN doubles spread(double x) { return _mm256_set1_pd(x); }
LPT_FN floats fused(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
LPT_FN doubles fused(doubles a, doubles b, doubles c) { return _mm256_fmadd_pd(a, b, c); }
LPT_FN floats least(floats a, floats b) { return _mm256_min_ps(a, b); }
LPT_FN floats most(floats a, floats b) { return _mm256_max_ps(a, b); }
LPT_FN doubles least(doubles a, doubles b) { return _mm256_min_pd(a, b); }
LPT_FN doubles most(doubles a, doubles b) { return _mm256_max_pd(a, b); }
LPT_FN doubles down(doubles x) { return _mm256_floor_pd(x); }
LPT_FN doubles toward_zero(doubles x) {
    return _mm256_round_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
LPT_FN doubles nearest_integer(doubles x) {
    return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LPT_FN words32 loaded(const uint32_t *x) { return (words32)_mm256_loadu_si256((const __m256i *)x); }
LPT_FN doubles loaded(const double *x) { return _mm256_loadu_pd(x); }
LPT_FN void stored(double *y, doubles x) { _mm256_storeu_pd(y, x); }
LPT_FN bool all_zero(words64 x) { return _mm256_testz_si256((__m256i)x, (__m256i)x); }
LPT_FN bool all_zero(words32 x) { return _mm256_testz_si256((__m256i)x, (__m256i)x); }
LPT_FN words32 every(uint32_t x) { return (words32)_mm256_set1_epi32((int)x); }
LPT_FN __m256i not_less(words32 x, words32 end) {
    return _mm256_cmpeq_epi32(_mm256_max_epu32((__m256i)x, (__m256i)end), (__m256i)x);
}
LPT_FN bool all_less(words32 x, words32 end) {
    return _mm256_testz_si256(not_less(x, end), not_less(x, end));
}
// and each y is above 1, below 2**31
LPT_FN bool all_less_above_one(words32 x, words32 end, words32 y) {
    const __m256i above = _mm256_cmpgt_epi32((__m256i)y, _mm256_set1_epi32(1));
    return _mm256_testc_si256(_mm256_andnot_si256(not_less(x, end), above), _mm256_set1_epi32(-1));
}
LPT_FN bool all_finite(doubles x) {
    return _mm256_movemask_pd(_mm256_cmp_pd(x - x, x - x, _CMP_ORD_Q)) == 0xf;
}
LPT_FN doubles widened(const uint32_t *x) {
    const __m256i wide = _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)x));
    const doubles shift = spread(4503599627370496.0);  // 2**52: the integer becomes its last digits
    return (doubles)((words64)wide | (words64)shift) - shift;
}
LPT_FN doubles widened(__m128 x) { return _mm256_cvtps_pd(x); }
LPT_FN __m128 narrowed(doubles x) { return _mm256_cvtpd_ps(x); }
LPT_FN __m128 fused(__m128 a, __m128 b, __m128 c) { return _mm_fmadd_ps(a, b, c); }
#endif

template <class T> struct vectors;
template <> struct vectors<float> {
    typedef floats V;
    typedef words32 U;
    enum { length = VECTOR / 4 };
};
template <> struct vectors<double> {
    typedef doubles V;
    typedef words64 U;
    enum { length = VECTOR / 8 };
};

}  // namespace
