// Stochastic rounding between two values at any distance, for the formats that are no grid.
#pragma once
#include "grid.h"

// A finite magnitude as a double, exact even where the machine takes subnormal floats for zero.
LPT_FN double lpt_exact(uint32_t magnitude) {
    const double unit = lpt_value<double>((uint64_t)(1023 - 149) << 52);
    return magnitude < 1u << 23 ? (double)(int32_t)magnitude * unit
                                : (double)lpt_value<float>(magnitude);
}
LPT_FN double lpt_exact(uint64_t magnitude) { return lpt_value<double>(magnitude); }

// floor(2**32 f) with f = (x - low) / (high - low), each step rounded to the nearest double, held
// to 0 .. 2**32 - 1: how many of 2**32 random words take x up. No word does unless low < x.
LPT_FN uint32_t lpt_chance(double x, double low, double high) {
    const double f = (x - low) / (high - low) * 4294967296.0;
    const double positive = f > 0 ? f : 0;
    return (uint32_t)(int64_t)(positive < 4294967295.0 ? positive : 4294967295.0);
}
