// Vectors of numbers, the ways to form a sum in them, and the ways to round it: what the tiles of
// gemm_tile.h are made of. For processors with fused multiply-add in vectors; others use
// gemm_rows.h.
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

// Sums. Each is what a rounder gets: rounded to fp32 once, or to odd, which it cannot tell from
// exact.

// Fused multiply-add, product and sum of fp32.
struct in_fp32 {
    typedef float T;
    static LPT_STEP floats fma(floats a, floats b, floats c) { return fused(a, b, c); }
    static LPT_STEP floats mul(floats a, floats b) { return a * b; }
    static LPT_STEP floats add(floats a, floats b) { return a + b; }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// To odd in fp32, for formats that are lpt_odd_fits: of the neighbours below and above, which are
// one where the sum is exact, the one whose last bit is set; where neither is, that above, so that
// an exact zero is +0.
struct odd_in_fp32 {
    typedef float T;
    static LPT_STEP floats odd(floats below, floats above) {
        const __mmask16 set =
            _mm512_test_epi32_mask(_mm512_castps_si512(below), _mm512_set1_epi32(1));
        return _mm512_mask_blend_ps(set, above, below);
    }
    enum {
        downward = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC,
        upward = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC
    };
    static LPT_STEP floats fma(floats a, floats b, floats c) {
        return odd(_mm512_fmadd_round_ps(a, b, c, downward),
                   _mm512_fmadd_round_ps(a, b, c, upward));
    }
    static LPT_STEP floats mul(floats a, floats b) {
        return odd(_mm512_mul_round_ps(a, b, downward), _mm512_mul_round_ps(a, b, upward));
    }
    static LPT_STEP floats add(floats a, floats b) {
        return odd(_mm512_add_round_ps(a, b, downward), _mm512_add_round_ps(a, b, upward));
    }
};
#endif

// To odd in double; the product of two floats is exact there.
struct odd_in_double {
    typedef double T;
    typedef vectors<double>::U U;
    static LPT_STEP doubles add(doubles a, doubles b) {
        const doubles t = a + b, back = t - a, rest = (a - (t - back)) + (b - back);
        const U u = (U)t, inexact = (U)((rest > 0) | (rest < 0)) & 1;
        const U past = inexact & (u ^ (U)rest) >> 63;
        return (doubles)((u - past) | inexact);
    }
    static LPT_STEP doubles mul(doubles a, doubles b) { return a * b; }
    static LPT_STEP doubles fma(doubles a, doubles b, doubles c) { return add(c, a * b); }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Toward zero in double. Stochastic rounding cuts off what lies below 2**-32 of the spacing, so
// that formats of at most 20 bits cannot tell it from the exact sum.
struct cut_in_double {
    typedef double T;
    enum { to_zero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC };
    static LPT_STEP doubles add(doubles a, doubles b) { return _mm512_add_round_pd(a, b, to_zero); }
    static LPT_STEP doubles mul(doubles a, doubles b) { return a * b; }
    static LPT_STEP doubles fma(doubles a, doubles b, doubles c) {
        return _mm512_fmadd_round_pd(a, b, c, to_zero);
    }
};
#endif

// Fused multiply-add, product and sum of fp32, for rounders that work in double.
struct fp32_in_double {
    typedef double T;
    static LPT_STEP doubles single(doubles x) { return widened(narrowed(x)); }
    static LPT_STEP doubles fma(doubles a, doubles b, doubles c) {
        return widened(fused(narrowed(a), narrowed(b), narrowed(c)));
    }
    static LPT_STEP doubles mul(doubles a, doubles b) { return single(a * b); }
    static LPT_STEP doubles add(doubles a, doubles b) { return single(a + b); }
};

// Rounders. `words` are the random ones of the vector.

template <class T> struct to_carrier {  // fp32 sums of fp32 numbers are rounded already
    explicit to_carrier(const lpt_cell<T> &) {}
    LPT_STEP typename vectors<T>::V operator()(typename vectors<T>::V x, const uint32_t *) const {
        return x;
    }
};

// To nearest in formats that are lpt_wide_range_fits: the bits of fp32 cut short, so that
// subnormal numbers and overflow need no care. NaNs have no payload here that a carry could leave.
struct to_wide_range {
    typedef vectors<float>::U U;
    U drop, under_half, keep;
    explicit to_wide_range(const lpt_cell<float> &c) {
        for (int l = 0; l < vectors<float>::length; ++l) {
            drop[l] = (uint32_t)c.drop;
            under_half[l] = (1u << (c.drop - 1)) - 1;
            keep[l] = ~((1u << c.drop) - 1);
        }
    }
    LPT_STEP floats operator()(floats x, const uint32_t *) const {
        const U u = (U)x;
        return (floats)((u + under_half + ((u >> drop) & 1)) & keep);
    }
};

// To nearest in formats that are lpt_added_fits: adding and taking away a number
// whose spacing is the format's at x lets the processor round, ties to even. Sums are in the mode
// nearest.
template <class T> struct to_nearest {
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    V bottom, top, up, limit, over, exponents, sign;
    explicit to_nearest(const lpt_cell<T> &c) {
        typedef lpt_carrier<T> C;
        typedef typename C::bits B;
        bottom = spread(lpt_value<T>((B)c.emin << C::mantissa));
        top = spread(lpt_value<T>((B)(c.emax + 1) << C::mantissa));
        up = spread(lpt_value<T>((B)(C::bias + c.drop) << C::mantissa));
        limit = spread(lpt_value<T>(c.limit[0]));
        over = spread(lpt_value<T>(c.over[0]));
        exponents = spread(lpt_value<T>((B)(2 * C::bias + 1) << C::mantissa));
        sign = spread((T)-0.0);
    }
    LPT_STEP V operator()(V x, const uint32_t *) const {
        const U negative = (U)x & (U)sign;
        const V size = (V)((U)x ^ negative);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top), shift = binade * up;
        const V r = (size + shift) - shift;
        return (V)((U)(r > limit ? over : r) | negative);
    }
};

// Any mode in double, for cells that are `plain`: steps as in lptensor/reference.py, x in units of
// the spacing 2**q, to an integer, and back. The words are 32 random bits each.
template <int MODE> struct to_grid {
    typedef vectors<double>::U U;
    doubles bottom, top, exponents, sign, units, limit[2], over[2], inf[2];
    uint64_t negative_zero;
    explicit to_grid(const lpt_cell<double> &c) {
        bottom = spread(lpt_value<double>((uint64_t)c.emin << 52));
        top = spread(lpt_value<double>((uint64_t)c.emax << 52));
        exponents = spread(lpt_value<double>(2047ull << 52));
        sign = spread(-0.0);
        units = spread(lpt_value<double>((uint64_t)(1023 + 52 - c.drop) << 52));
        for (int i = 0; i < 2; ++i) {
            limit[i] = spread(lpt_value<double>(c.limit[i]));
            over[i] = spread(lpt_value<double>(c.over[i]));
            inf[i] = spread(lpt_value<double>(c.inf[i]));
        }
        negative_zero = c.zero_sign;
    }
    LPT_STEP doubles operator()(doubles x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const doubles size = (doubles)((U)x ^ minus);
        const U negative = (U)((doubles)((U)(minus >> 63)) != spread(0.0));
        const doubles binade = least(most((doubles)((U)x & (U)exponents), bottom), top);
        const doubles per = (doubles)((2046ull << 52) - (U)binade) * units;  // one over the spacing
        const doubles n = size * per, k = down(n), part = n - k;
        const doubles half = spread(0.5), zero = spread(0.0), one = spread(1.0);
        U up = (U)(zero != zero);
        if (MODE == LPT_NEAREST || MODE == LPT_ODD) {
            const doubles pair = k * half;
            const U odd = (U)(pair != down(pair));
            if (MODE == LPT_NEAREST)
                up = (U)(part > half) | ((U)(part == half) & odd);
            else
                up = (U)(part > zero) & ~odd;
        }
        if (MODE == LPT_NEAREST_AWAY)
            up = (U)(part >= half);
        if (MODE == LPT_UP)
            up = (U)(part > zero) & ~negative;
        if (MODE == LPT_DOWN)
            up = (U)(part > zero) & negative;
        if (MODE == LPT_STOCHASTIC)
            up = (U)(down(part * spread(4294967296.0)) + widened(words) >= spread(4294967296.0));
        const doubles r = (k + (doubles)(up & (U)one)) * ((doubles)((2046ull << 52) - (U)per));
        const doubles end = negative ? limit[1] : limit[0], past = negative ? over[1] : over[0];
        doubles y = r > end ? past : r;
        y = size == exponents ? (negative ? inf[1] : inf[0]) : y;
        const U kept = (U)(y != zero) | negative_zero;
        return (doubles)((U)y | (minus & kept));
    }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Stochastic rounding of formats of at most 20 bits in double, for cells that are `plain`: the word
// is added where the digits lie that go, and a carry out of them is the way up (lean.h). Below the
// normal numbers of the format the smallest of them is added for as long, which gives x their
// spacing; what that cuts off is less than 2**-32 of it.
struct to_drawn {
    typedef vectors<double>::U U;
    doubles bottom, exponents, sign, limit[2], over[2], inf[2];
    U keep;
    uint64_t negative_zero;
    __m128i shift;
    explicit to_drawn(const lpt_cell<double> &c) {
        bottom = spread(lpt_value<double>((uint64_t)c.emin << 52));
        exponents = spread(lpt_value<double>(2047ull << 52));
        sign = spread(-0.0);
        for (int i = 0; i < 2; ++i) {
            limit[i] = spread(lpt_value<double>(c.limit[i]));
            over[i] = spread(lpt_value<double>(c.over[i]));
            inf[i] = spread(lpt_value<double>(c.inf[i]));
        }
        keep = (U)spread(lpt_value<double>(~((1ull << c.drop) - 1)));
        negative_zero = c.zero_sign;
        shift = _mm_cvtsi32_si128(c.drop - 32);
    }
    LPT_STEP doubles operator()(doubles x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const doubles size = (doubles)((U)x ^ minus), zero = spread(0.0);
        const __mmask8 negative = _mm512_movepi64_mask((__m512i)x);
        const doubles lift =
            _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(size, bottom, _CMP_LT_OQ), bottom);
        const U word = (U)_mm512_sll_epi64(
            _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)words)), shift);
        const doubles lifted = cut_in_double::add(size, lift);
        const doubles r = (doubles)(((U)lifted + word) & keep) - lift;
        const doubles end = _mm512_mask_mov_pd(limit[0], negative, limit[1]);
        doubles y = _mm512_mask_mov_pd(r, _mm512_cmp_pd_mask(r, end, _CMP_GT_OQ),
                                       _mm512_mask_mov_pd(over[0], negative, over[1]));
        y = _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(size, exponents, _CMP_EQ_OQ),
                               _mm512_mask_mov_pd(inf[0], negative, inf[1]));
        const U kept = (U)(y != zero) | negative_zero;
        return (doubles)((U)y | (minus & kept));
    }
    static bool fits(const lpt_grid &g) { return g.precision <= 20; }
};
#endif

// Four random words for each of `count` neighbouring elements, a multiple of the vectors' length:
// lpt_philox in lanes of 64 bits. words[n * apart + i] is the n-th of element first + i.
LPT_FN void draw_words(uint64_t first, int count, lpt_key key, uint32_t mask, int64_t apart,
                       uint32_t *words) {
    typedef vectors<double>::U U;
    for (int i = 0; i < count; i += vectors<double>::length) {
        U c0;  // of all words the lower halves count
        for (int l = 0; l < vectors<double>::length; ++l)
            c0[l] = first + (uint64_t)(i + l);
        U c1 = c0 >> 32;
        U c2 = (U)spread(0.0) + (key.offset & 0xffffffff), c3 = (U)spread(0.0) + (key.offset >> 32);
        uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
        for (int round = 0; round < 10; ++round) {
            const U p0 = times_words(c0, 0xD2511F53u), p1 = times_words(c2, 0xCD9E8D57u);
            c0 = (p1 >> 32) ^ c1 ^ (uint64_t)k0;
            c2 = (p0 >> 32) ^ c3 ^ (uint64_t)k1;
            c1 = p1;
            c3 = p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        const U all[4] = {c0, c1, c2, c3};
        for (int n = 0; n < 4; ++n)
            narrowed(all[n] & (uint64_t)mask, words + n * apart + i);
    }
}

}  // namespace
