// Stochastic rounding between two values at any distance, for the formats that are no grid.
#pragma once
#include "grid.h"

// A finite magnitude as a double, exact even where the machine takes subnormal floats for zero.
LPT_FN double lpt_exact(uint32_t magnitude) {
    const double unit = lpt_value<double>((uint64_t)(1023 - 149) << 52);
    const double small = (double)(int32_t)(magnitude & 0x7fffff) * unit;
    const double normal = (double)lpt_value<float>(magnitude);
    return magnitude < 1u << 23 ? small : normal;
}
LPT_FN double lpt_exact(uint64_t magnitude) { return lpt_value<double>(magnitude); }

// Whether a random word takes x from `low` to `high`: f = (x - low) / (high - low) of the way, each
// step rounded to the nearest double and f held below 1. SCALAR: in a loop that compilers leave
// scalar.
template <int MODE, bool SCALAR>
LPT_FN bool lpt_drawn_between(double x, double low, double high, bool inexact, const lpt_odds &odds,
                              uint32_t random) {
    const double under_one = lpt_value<double>(lpt_bits(1.0) - 1);
    const double f = (x - low) / (high - low), positive = f > 0 ? f : 0;
    const double part = (positive < under_one ? positive : under_one) * 4294967296.0;
    double whole;
    uint32_t head;
    if (SCALAR) {
        const int64_t n = (int64_t)part;
        whole = (double)n, head = (uint32_t)n;
    } else {  // floor and conversion in additions, which every machine has as vector instructions
        const double shift = 4503599627370496.0, near = part + shift - shift;
        whole = near - (near > part ? 1.0 : 0.0);
        head = (uint32_t)lpt_bits(whole + shift);
    }
    return lpt_drawn<MODE>(head, part != whole, inexact, odds, random);
}
