// The arithmetic of sums of products, for host and device: what lptensor/accumulate.py specifies.
//
// Numbers are carried in double. A sum that a format is to round is first rounded to odd: where it
// is inexact, to the neighbour whose last bit is one. Let x be the exact sum, x' what that leaves
// of it in 53 bits, and F a format of at most 51 bits. Every value of F and every midpoint of two
// neighbours in F has at most 52 bits, so it is a double whose last bit is zero; x' equals one only
// if x does, and lies on the same side of it as x otherwise, since no double lies strictly between
// x and x'. So x' and x round to the same value of F in every mode (Boldo and Melquiond 2008). The
// fraction that stochastic rounding sees is x's to 32 bits where F has at most 20 bits; wider
// formats see the odd last bit as its 53 - p-th digit, an error of the odds below 2**-(52 - p).
#pragma once
#include "philox.h"
#include <math.h>

// lptensor/accumulator.py: ORDERS. No switch over them has a default, so that compilers warn of one
// without a case.
enum lpt_order {
    LPT_SEQUENTIAL = 0,
    LPT_PAIRWISE = 1,
    LPT_KAHAN = 2,
    LPT_EXACT = 3,
    LPT_ALIGNED = 4
};

// lptensor/_native_gemm.py: _Accumulator
struct lpt_accumulator {
    lpt_grid sum, product;
    int32_t mode, bits, beyond;
    int32_t order, has_product, fp32, alignment;
    int32_t whole;  // nothing is cut off; `alignment` places are what a double has room for
    int32_t least, least_a, least_b;  // smallest exponents of the sum and of the factors
    int64_t chunk;
    double turn;  // the range of a sum that wraps, whose grid then has no ends; or 0
    const lpt_accumulator *inner;  // what adds up a chunk, or null
};

// y[batch, m, n] = a[batch, m, k] b[batch, k, n] + c; strides in elements, y without gaps; c may be
// null. running: y[batch, m, k, n] takes every sum that s goes through.
struct lpt_product {
    const void *a, *b, *c;
    void *y;
    int64_t batch, m, n, k;
    int64_t a_stride[3], b_stride[3], c_stride[3];
    lpt_key key;
    int32_t running, unused;
};

// Random word of the n-th rounding of one element: four roundings share a counter.
LPT_FN uint32_t lpt_event_word(uint64_t event, uint64_t element, uint64_t elements, lpt_key key) {
    return lpt_philox(event / 4 * elements + element, key).w[event % 4];
}

// x + y as the nearest double and the exact rest (Knuth, The Art of Computer Programming 4.2.2).
LPT_FN double lpt_two_sum(double x, double y, double *rest) {
    const double t = x + y, back = t - x;
    *rest = (x - (t - back)) + (y - back);
    return t;
}

// x + y rounded to odd. Where the sum is no finite number the rest is a NaN, and counts as none.
LPT_FN double lpt_odd_sum(double x, double y) {
    double rest;
    const double t = lpt_two_sum(x, y, &rest);
    const uint64_t u = lpt_bits(t), inexact = fabs(rest) > 0 ? 1 : 0;
    const uint64_t past =
        inexact & (u ^ lpt_bits(rest)) >> 63;  // t is the neighbour away from zero
    return lpt_value<double>((u - past) | inexact);
}

// s + high + low rounded to odd (Boldo and Melquiond's emulation of a fused multiply-add, with the
// last step to odd as well); low is -0 where there is none.
LPT_FN double lpt_odd_sum(double s, double high, double low) {
    double lower_rest, upper_rest;
    const double lower = lpt_two_sum(s, low, &lower_rest);
    const double upper = lpt_two_sum(high, lower, &upper_rest);
    const double rest = lpt_odd_sum(lower_rest, upper_rest);
    const double odd = lpt_odd_sum(upper, rest);
    return fabs(rest) > 0 ? odd : upper;
}

// a * b as the exact sum of two doubles. Products of floats are doubles; those of doubles are held
// between 2**-900 and 2**900, which no format tells from what lies beyond.
LPT_FN double lpt_times(float a, float b, double *rest) {
    *rest = -0.0;
    return (double)a * (double)b;
}
LPT_FN double lpt_times(double a, double b, double *rest) {
    const double tiny = lpt_value<double>((uint64_t)(1023 - 900) << 52);
    const double huge = lpt_value<double>((uint64_t)(1023 + 900) << 52);
    const double p = a * b, size = fabs(p);
    const bool finite = fabs(a) <= 1.7976931348623157e308 && fabs(b) <= 1.7976931348623157e308;
    const bool some = (a != 0) & (b != 0), beyond = some & ((size < tiny) | (size >= huge));
    *rest = finite & some & !beyond ? fma(a, b, -p) : -0.0;
    return finite & beyond ? copysign(size < tiny ? tiny : huge, p) : p;
}

// An operand. Doubles below the normal ones count as 2**-1000: they round as those do.
LPT_FN float lpt_operand(float x) { return x; }
LPT_FN double lpt_operand(double x) {
    const uint64_t u = lpt_bits(x), a = u & 0x7fffffffffffffffull;
    const double tiny = lpt_value<double>((uint64_t)(1023 - 1000) << 52);
    return a != 0 && a >> 52 == 0 ? copysign(tiny, x) : x;
}

// The NaN of results, which has neither sign nor payload.
template <class T> LPT_FN T lpt_quiet(T x) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    return x == x ? x : lpt_value<T>(((U)1 << (C::width - 1)) - ((U)1 << (C::mantissa - 1)));
}

// A multiple of a format's spacing brought into the range of two's complement numbers `turn` wide.
LPT_FN double lpt_wrapped(double x, double turn) {
    const double turns = x / turn, part = turns - floor(turns);
    return (part >= 0.5 ? part - 1.0 : part) * turn;
}

LPT_FN int32_t lpt_exponent(double x) { return (int32_t)(lpt_bits(x) >> 52 & 0x7ff) - 1023; }
// That of a number in a format with a smallest exponent, which subnormal numbers have.
LPT_FN int32_t lpt_exponent(double x, int32_t least) {
    const int32_t e = lpt_exponent(x);
    return e > least ? e : least;
}
LPT_FN double lpt_power(int32_t e) { return lpt_value<double>((uint64_t)(e + 1023) << 52); }
LPT_FN double lpt_times_power(double x, int32_t e) {
    const int32_t half = e >> 1;
    return x * lpt_power(half) * lpt_power(e - half);
}

// One more term of a sum in units of 2**unit, without what lies below them; what is no finite
// number goes to `special`. The return value tells whether something was left out, or the term is
// such.
LPT_FN bool lpt_cut(double high, double low, int32_t unit, double *units, double *special) {
    if (!(fabs(high) <= 1.7976931348623157e308)) {
        *special += high;
        return true;
    }
    const double upper = lpt_times_power(high, -unit);
    const double lower = low == 0 ? low : lpt_times_power(low, -unit);
    const double term = low == 0 ? upper : lpt_odd_sum(upper, lower), kept = trunc(term);
    *units += kept;
    return (kept != term) | ((upper == 0) & (high != 0)) | ((lower == 0) & (low != 0));
}

// An exact sum: digits in base 2**32, the lowest worth 2**-1088, which may overlap until they are
// read. Doubles below the normal ones never come.
struct lpt_exact_sum {
    enum { digits = 68, bottom = 1088 };
    int64_t digit[digits];
    double special;  // the sum of what is not finite
    int64_t count;
};

LPT_FN void lpt_carry(lpt_exact_sum *s) {
    for (int i = 0; i + 1 < lpt_exact_sum::digits; ++i) {
        s->digit[i + 1] += s->digit[i] >> 32;
        s->digit[i] &= 0xffffffff;
    }
}

LPT_FN void lpt_exact_add(lpt_exact_sum *s, double x) {
    const uint64_t u = lpt_bits(x);
    const int32_t field = (int32_t)(u >> 52 & 0x7ff);
    if (field == 0x7ff) {
        s->special += x;
        return;
    }
    if (field == 0)
        return;
    const uint64_t significand = (u & 0xfffffffffffffull) | 1ull << 52;
    const int32_t place = field - 1075 + lpt_exact_sum::bottom, limb = place / 32,
                  shift = place % 32;
    const uint64_t low = (significand & 0xffffffff) << shift, high = significand >> 32 << shift;
    const int64_t sign = u >> 63 ? -1 : 1;
    s->digit[limb] += sign * (int64_t)(low & 0xffffffff);
    s->digit[limb + 1] += sign * (int64_t)((low >> 32) + (high & 0xffffffff));
    s->digit[limb + 2] += sign * (int64_t)(high >> 32);
    if (++s->count % (1 << 28) == 0)
        lpt_carry(s);
}

// The sum rounded to odd; zero is +0.
LPT_FN double lpt_exact_value(lpt_exact_sum *s) {
    if (!(s->special == 0))
        return s->special;
    lpt_carry(s);
    const bool negative = s->digit[lpt_exact_sum::digits - 1] < 0;
    if (negative) {
        for (int i = 0; i < lpt_exact_sum::digits; ++i)
            s->digit[i] = -s->digit[i];
        lpt_carry(s);
    }
    int top = lpt_exact_sum::digits - 1;
    while (top > 2 && s->digit[top] == 0)
        --top;
    bool below = false;
    for (int i = 0; i < top - 2; ++i)
        below |= s->digit[i] != 0;
    const double lower = lpt_odd_sum((double)s->digit[top - 1] * 4294967296.0,
                                     (double)(s->digit[top - 2] | (int64_t)below));
    const double r = lpt_odd_sum((double)s->digit[top] * 18446744073709551616.0, lower);
    const double scaled = lpt_times_power(r, (top - 2) * 32 - lpt_exact_sum::bottom);
    return negative ? -scaled : scaled;
}
