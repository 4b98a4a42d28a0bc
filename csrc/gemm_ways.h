// Which accumulators' sums can be formed and rounded in fp32 alone, by the tiles of host and
// device.
#pragma once
#include "gemm.h"

// How a sum or product is rounded to a format in fp32: not at all, as fp32 does by itself, by
// cutting its bits short, or by adding and taking away a power of two.
enum lpt_way { LPT_NO_WAY, LPT_AS_CARRIER, LPT_WIDE_RANGE, LPT_ADDED };

// Formats with fp32's range and infinities.
LPT_FN bool lpt_wide_range_fits(const lpt_grid &g) {
    return g.emin == -126 && g.emax == 127 && g.overflow == LPT_INF && g.negative_zero &&
           g.precision >= 2 && g.precision <= 23 && g.max == -g.min &&
           g.max == ldexp(2.0 - ldexp(1.0, 1 - g.precision), 127);
}

// Formats of the carrier's normal numbers, with as much range to spare there as digits, in which an
// infinity becomes what all others beyond the largest number become.
template <class T> LPT_FN bool lpt_added_fits(const lpt_grid &g) {
    typedef lpt_carrier<T> C;
    const int32_t drop = C::mantissa + 1 - g.precision;
    return drop >= 1 && g.emin > -C::bias && g.emax + 1 + drop <= C::bias && g.max == -g.min &&
           g.negative_zero && g.overflow != LPT_PROPAGATE;
}

// Fixed point that leaves room for a number above all of it that has its spacing.
template <class T> LPT_FN bool lpt_spacing_fits(const lpt_grid &g) {
    typedef lpt_carrier<T> C;
    return g.emin == g.emax && g.subnormals == LPT_GRADUAL && !g.negative_zero && g.zero &&
           g.min < 0 && g.precision <= C::mantissa - 2 &&
           g.emin - g.precision + 1 + C::mantissa < C::bias;
}
// The same, which stops at its ends.
template <class T> LPT_FN bool lpt_fixed_fits(const lpt_grid &g) {
    return g.overflow == LPT_SATURATE && lpt_spacing_fits<T>(g);
}

LPT_FN lpt_way lpt_fp32_way(const lpt_grid &g) {
    if (g.subnormals != LPT_GRADUAL || !g.zero || g.ties_to_even_code)
        return LPT_NO_WAY;
    if (g.precision == 24 && g.emin == -126 && g.emax == 127 && g.overflow == LPT_INF)
        return LPT_AS_CARRIER;
    if (lpt_wide_range_fits(g))
        return LPT_WIDE_RANGE;
    return lpt_added_fits<float>(g) ? LPT_ADDED : LPT_NO_WAY;
}

// Formats that cannot tell a sum from what rounding it to odd in fp32 leaves: of at most 22 bits,
// and off the last two of fp32's subnormal digits (gemm.h's argument, with 24 bits for 53).
LPT_FN bool lpt_odd_fits(const lpt_grid &g) {
    return g.precision <= 22 && g.emin - g.precision + 1 >= -147;
}

// Formats of magnitudes of fp32, of which the bits that go are the same for all normal numbers, and
// leave one that tells NaN from infinity. Infinities as above.
LPT_FN bool lpt_side_fits(const lpt_grid &g) {
    return g.precision >= 2 && g.emin < g.emax && g.emin >= -126 && g.subnormals == LPT_GRADUAL &&
           g.zero && g.negative_zero && !g.ties_to_even_code && g.max == -g.min &&
           g.overflow != LPT_PROPAGATE;
}
