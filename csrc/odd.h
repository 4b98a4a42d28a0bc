// Sums and products of float64 numbers rounded to odd, after which one more rounding is the right
// one (Boldo and Melquiond 2008): the formulas of odd_sum and two_product in
// lptensor/accumulate.py, to the same bits. Part of library.cpp.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

// t, to which something is missing, as its neighbour of odd significand on that side.
inline double lpt_to_odd(double t, double rest) {
    uint64_t bits, missing;
    memcpy(&bits, &t, sizeof t);
    memcpy(&missing, &rest, sizeof t);
    const uint64_t inexact = (uint64_t)((rest != 0) & (fabs(t) <= DBL_MAX));
    bits = (bits - (((bits ^ missing) >> 63) & inexact)) | inexact;
    memcpy(&t, &bits, sizeof t);
    return t;
}

// Knuth's TwoSum.
inline double lpt_odd_sum_of(double x, double y) {
    const double t = x + y, back = t - x;
    return lpt_to_odd(t, (x - (t - back)) + (y - back));
}

// Dekker's product, for factors and products that are far from the ends of float64.
inline double lpt_odd_product_of(double x, double y) {
    const double split = 134217729.0;  // 2**27 + 1
    const double p = x * y, u = x * split, v = y * split;
    const double x_high = u - (u - x), y_high = v - (v - y);
    const double x_low = x - x_high, y_low = y - y_high;
    return lpt_to_odd(p,
                      x_low * y_low - (((p - x_high * y_high) - x_low * y_high) - x_high * y_low));
}

// Whether a product is one that two_product holds or scales: those take another way.
inline bool lpt_at_an_end(double x, double y) {
    const double a = fabs(x), b = fabs(y), p = a * b, least = ldexp(1.0, -900);
    const double most = ldexp(1.0, 900);
    const bool exact = (a == 0) | (b == 0);
    return !((a < most) & (b < most) & ((p >= least) | exact) & (p < most));
}

// Steps of 1, or 0 for a number that goes with all.
template <int X, int Y>
void odd_sums(const double *x, const double *y, double *r, int64_t n, int threads) {
    split(n, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
            r[i] = lpt_odd_sum_of(x[i * X], y[i * Y]);
    });
}

template <int X, int Y>
int32_t odd_products(const double *x, const double *y, double *r, int64_t n, int threads) {
    const plain_arithmetic guard;
    int32_t beyond = 0;
    for (int64_t i = 0; i < n; ++i)
        beyond |= lpt_at_an_end(x[i * X], y[i * Y]);
    if (beyond)
        return 1;
    split(n, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
            r[i] = lpt_odd_product_of(x[i * X], y[i * Y]);
    });
    return 0;
}

}  // namespace
