// Sums and products in vectors, each as a rounder of gemm_rounders.h gets it: what it makes of that
// is what it would make of the exact value.
#pragma once
#include "gemm_lanes.h"
#include "gemm_ways.h"

namespace {

// Where a product of x and y, or what is left of one, may have digits below fp32's smallest.
LPT_STEP words32 faint_product(floats product, floats, floats) {
    const floats size = (floats)((words32)product & 0x7fffffffu);
    return (words32)(size < spread(lpt_value<float>(27u << 23)));
}
LPT_STEP words32 faint_unless_zero(floats product, floats x, floats y) {
    const words32 none = ((words32)x << 1 == 0) | ((words32)y << 1 == 0);
    return faint_product(product, x, y) & ~none;
}

// Fused multiply-add, product and sum of fp32.
struct in_fp32 {
    typedef float T, IN;
    typedef in_fp32 to_the_ends;
    static bool fits(const lpt_grid &) { return true; }
    static LPT_STEP floats fma(floats a, floats b, floats c) { return fused(a, b, c); }
    static LPT_STEP floats mul(floats a, floats b) { return a * b; }
    static LPT_STEP floats add(floats a, floats b) { return a + b; }
};

// To odd in fp32, for formats that are lpt_odd_fits.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Of the neighbours below and above, which are one where the sum is exact, the one whose last bit
// is set; where neither is, that above, so that an exact zero is +0.
struct odd_in_fp32 {
    typedef float T, IN;
    typedef odd_in_fp32 to_the_ends;
    static bool fits(const lpt_grid &g) { return lpt_odd_fits(g); }
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
#else
// The nearest number and the sign of what it leaves: for a product and a sum together by Boldo and
// Muller, "Exact and approximated error of the FMA" (IEEE TC 60, 2011). Where a product might have
// digits below fp32's, or none within its range, double decides.
// ENDS: also where the sum is below or beyond fp32, of which rounding to nearest cannot tell.
template <bool ENDS> struct odd_by_terms {
    typedef float T, IN;
    typedef vectors<float>::U U;
    typedef odd_by_terms<true> to_the_ends;
    // Of half a spacing, products must have no digits below fp32's smallest (one_more), unless they
    // are looked at (to_wide_range).
    static bool fits(const lpt_grid &g) {
        return lpt_odd_fits(g) && (lpt_wide_range_fits(g) || g.emin - g.precision >= -100);
    }
    static LPT_STEP floats odd(floats t, floats rest) {
        const U u = (U)t, inexact = (U)((rest > 0) | (rest < 0)) & 1;
        return (floats)((u - (inexact & (u ^ (U)rest) >> 31)) | inexact);
    }
    static LPT_STEP floats two_sum(floats a, floats b, floats &rest) {
        const floats t = a + b, back = t - a;
        rest = (a - (t - back)) + (b - back);
        return t;
    }
    // of a and b: below fp32's smallest digits, or out of its range
    static LPT_STEP bool loses(floats product, floats a, floats b) {
        const floats size = (floats)((U)product & every(0x7fffffffu));
        const U large = (U)(size > spread(lpt_value<float>((127u + 126) << 23)));
        const U small = ENDS ? faint_unless_zero(product, a, b)
                             : faint_product(product, a, b) & (U)(size > spread(0.0f));
        return !all_zero(small | large);
    }
    // What becomes infinite of finite terms is the largest number, whose last bit is set.
    static LPT_STEP floats finite(floats t, floats a, floats b) {
        const U inf = every(0x7f800000u), size = every(0x7fffffffu);
        const U past =
            (U)(((U)t & size) == inf) & (U)(((U)a & size) < inf) & (U)(((U)b & size) < inf);
        return (floats)((U)t - (past & 1));
    }
    static float single(double x) {
        const float t = (float)x;
        const uint32_t u = lpt_bits(t), inexact = (double)t != x && x == x ? 1 : 0;
        const uint32_t past = inexact & (fabs((double)t) > fabs(x) ? 1 : 0);
        return lpt_value<float>((u - past) | inexact);
    }
    static LPT_SHARED floats in_double(floats a, floats b, floats c) {
        for (int l = 0; l < vectors<float>::length; ++l)
            c[l] = single(lpt_odd_sum((double)c[l], (double)a[l] * (double)b[l]));
        return c;
    }
    static LPT_STEP floats add(floats a, floats b) {
        floats rest;
        const floats t = two_sum(a, b, rest);
        return ENDS ? finite(odd(t, rest), a, b) : odd(t, rest);
    }
    static LPT_STEP floats mul(floats a, floats b) {
        const floats t = a * b;
        return loses(t, a, b) ? in_double(a, b, spread(-0.0f)) : odd(t, fused(a, b, -t));
    }
    // the nearest number to ab + c, and what it leaves but for its last digits; p = ab
    static LPT_STEP floats sum_of(floats p, floats a, floats b, floats c, floats &rest) {
        floats lower, upper;
        const floats t = fused(a, b, c), low = two_sum(c, fused(a, b, -p), lower);
        const floats high = two_sum(p, low, upper);
        rest = ((high - t) + upper) + lower;
        return t;
    }
    static LPT_STEP floats fma(floats a, floats b, floats c) {
        const floats p = a * b;
        if (loses(p, a, b))
            return in_double(a, b, c);
        floats rest;
        const floats t = sum_of(p, a, b, c, rest), sum = odd(t, rest);
        return ENDS ? finite(sum, p, c) : sum;
    }
};
typedef odd_by_terms<false> odd_in_fp32;

// Toward zero, up or down in fp32: the nearest number, or the one beside it on the side of what it
// leaves.
template <int MODE> struct side_by_terms {
    typedef float T, IN;
    typedef vectors<float>::U U;
    typedef odd_by_terms<true> terms;
    // where t lies above the sum, and where it lies below it
    static LPT_STEP floats moved(floats t, U above, U below) {
        const U u = (U)t, negative = 0 - (u >> 31);                 // all ones or none
        const U larger = (above & ~negative) | (below & negative);  // than the sum, in magnitude
        const U smaller = (above & negative) | (below & ~negative);
        if (MODE == LPT_TOWARD_ZERO)
            return (floats)(u - (larger & 1));
        const U outward = MODE == LPT_UP ? ~negative : negative;
        return (floats)(u + (smaller & outward & 1) - (larger & ~outward & 1));
    }
    static LPT_STEP floats side(floats t, floats rest) {
        return moved(t, (U)(rest < 0), (U)(rest > 0));
    }
    static LPT_SHARED floats in_double(floats a, floats b, floats c) {
        floats t, above = spread(0.0f), below = above;
        for (int l = 0; l < vectors<float>::length; ++l) {
            const double x = lpt_odd_sum((double)c[l], (double)a[l] * (double)b[l]);
            t[l] = (float)x;
            above[l] = (double)t[l] > x ? 1.0f : 0.0f;
            below[l] = (double)t[l] < x ? 1.0f : 0.0f;
        }
        return moved(t, (U)(above > 0), (U)(below > 0));
    }
    // whether a sum with this term, or the way back from it, might go beyond fp32's largest number
    static LPT_STEP bool huge(floats x) {
        const floats size = (floats)((U)x & every(0x7fffffffu));
        return !all_zero((U)(size > spread(lpt_value<float>((127u + 126) << 23))));
    }
    static LPT_STEP floats add(floats a, floats b) {
        if (huge(a) || huge(b))
            return in_double(a, spread(1.0f), b);
        floats rest;
        const floats t = terms::two_sum(a, b, rest);
        return side(t, rest);
    }
    static LPT_STEP floats mul(floats a, floats b) { return fma(a, b, spread(-0.0f)); }
    static LPT_STEP floats fma(floats a, floats b, floats c) {
        const floats p = a * b;
        if (terms::loses(p, a, b) || huge(c))
            return in_double(a, b, c);
        floats rest;
        const floats t = terms::sum_of(p, a, b, c, rest);
        return side(t, rest);
    }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Toward zero, up or down in fp32, for formats that go on in the same direction. Fp32 has all
// values of such a format F. Let x be exact and d the largest fp32 number not above it: the largest
// value of F not above x is an fp32 number, so it is not above d, and so it is the largest of F not
// above d. The other directions are mirror images. Beyond its largest number fp32 gives that number
// or infinity, just where F gives its largest value or what it makes of infinity. An exact zero is
// +0 unless both terms are -0, also where rounding down would make it -0.
template <int MODE> struct side_in_fp32 {
    typedef float T, IN;
    enum {
        side = (MODE == LPT_UP     ? _MM_FROUND_TO_POS_INF
                : MODE == LPT_DOWN ? _MM_FROUND_TO_NEG_INF
                                   : _MM_FROUND_TO_ZERO) |
        _MM_FROUND_NO_EXC
    };
    static LPT_STEP floats with_zero_of(floats nearest, floats x) {
        return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, nearest, _CMP_EQ_OQ), nearest);
    }
    static LPT_STEP floats fma(floats a, floats b, floats c) {
        const floats x = _mm512_fmadd_round_ps(a, b, c, side);
        return MODE == LPT_DOWN ? with_zero_of(fused(a, b, c), x) : x;
    }
    static LPT_STEP floats mul(floats a, floats b) { return _mm512_mul_round_ps(a, b, side); }
    static LPT_STEP floats add(floats a, floats b) {
        const floats x = _mm512_add_round_ps(a, b, side);
        return MODE == LPT_DOWN ? with_zero_of(a + b, x) : x;
    }
};
#endif

// To odd in double; the product of two floats is exact there.
struct odd_in_double {
    typedef double T;
    typedef float IN;
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

// The same of products of doubles, each the sum of two (lpt_times).
struct odd_of_doubles {
    typedef double T, IN;
    typedef vectors<double>::U U;
    static LPT_STEP doubles two_sum(doubles a, doubles b, doubles &rest) {
        const doubles t = a + b, back = t - a;
        rest = (a - (t - back)) + (b - back);
        return t;
    }
    static LPT_STEP doubles times(doubles a, doubles b, doubles &rest) {
        const doubles zero = spread(0.0), p = a * b;
        const doubles size = (doubles)((U)p & ~(U)spread(-0.0));
        const U none = (U)(a == zero) | (U)(b == zero);
        const U held = (U)(size >= spread(lpt_power(-900))) & (U)(size < spread(lpt_power(900)));
        if (!all_zero(~(none | held)))
            return one_by_one(a, b, rest);
        rest = none ? spread(-0.0) : fused(a, b, -p);
        return p;
    }
    static LPT_SHARED doubles one_by_one(doubles a, doubles b, doubles &rest) {
        double left;
        for (int l = 0; l < vectors<double>::length; ++l) {
            a[l] = lpt_times((double)a[l], (double)b[l], &left);
            rest[l] = left;
        }
        return a;
    }
    static LPT_STEP doubles add(doubles a, doubles b) { return odd_in_double::add(a, b); }
    static LPT_STEP doubles mul(doubles a, doubles b) {
        doubles rest;
        const doubles p = times(a, b, rest);
        return add(p, rest);
    }
    static LPT_STEP doubles fma(doubles a, doubles b, doubles c) {
        doubles low, lower_rest, upper_rest;
        const doubles high = times(a, b, low);
        if (all_zero((U)low << 1))  // as of integers
            return add(c, high);
        const doubles lower = two_sum(c, low, lower_rest);
        const doubles upper = two_sum(high, lower, upper_rest);
        const doubles rest = add(lower_rest, upper_rest);
        const U some = (U)(rest < spread(0.0)) | (U)(rest > spread(0.0));
        return some ? add(upper, rest) : upper;
    }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Toward zero in double. Stochastic rounding cuts off what lies below 2**-32 of the spacing, so
// that formats of at most 20 bits cannot tell it from the exact sum.
struct cut_in_double {
    typedef double T;
    typedef float IN;
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
    typedef float IN;
    static LPT_STEP doubles single(doubles x) { return widened(narrowed(x)); }
    static LPT_STEP doubles fma(doubles a, doubles b, doubles c) {
        return widened(fused(narrowed(a), narrowed(b), narrowed(c)));
    }
    static LPT_STEP doubles mul(doubles a, doubles b) { return single(a * b); }
    static LPT_STEP doubles add(doubles a, doubles b) { return single(a + b); }
};

}  // namespace
