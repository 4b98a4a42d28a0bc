// The orders of tiles that add in fixed point: below the largest exponent of a group of terms, or
// exactly.
#pragma once
#include "gemm_orders.h"

namespace {

#if defined(__FMA__)
// A vector of exact sums.
inline void add_to(lpt_exact_sum *sums, doubles x) {
    for (int l = 0; l < tile<double>::LENGTH; ++l)
        lpt_exact_add(sums + l, x[l]);
}
inline doubles value_of(lpt_exact_sum *sums) {
    doubles r;
    for (int l = 0; l < tile<double>::LENGTH; ++l)
        r[l] = lpt_exact_value(sums + l);
    return r;
}

// In groups of `chunk` terms, whose bits below the largest exponent's are cut off
// (lpt_accumulator's alignment), or whole: then, what the places do not hold is added digit by
// digit. Powers of two of operands stand for exponents; ROUND works in double.
template <class ROUND, bool WHOLE> struct aligned final : tile_steps<double> {
    typedef double T;
    typedef float IN;
    typedef vectors<double>::U U;
    enum { BROAD = tile<T>::BROAD };
    const int64_t chunk;
    const ROUND round;
    const doubles above, below, exponents, least;
    const doubles least_s, least_a, least_b;  // powers that subnormal numbers count with

    aligned(const lpt_accumulator &acc, bool)
        : tile_steps<double>(false), chunk(acc.chunk),
          round(rounding_of<T>(acc.sum, acc), acc.mode), above(spread(lpt_power(acc.alignment))),
          below(spread(lpt_power(-acc.alignment))),
          exponents(spread(lpt_value<double>(2047ull << 52))), least(spread(lpt_power(-900))),
          least_s(spread(lpt_power(acc.least))), least_a(spread(lpt_power(acc.least_a))),
          least_b(spread(lpt_power(acc.least_b))) {}

    // Of zero, zero.
    LPT_STEP doubles power(doubles x, doubles smallest) const {
        const doubles p = most((doubles)((U)x & (U)exponents), smallest);
        return (doubles)((U)p & (U)(x != spread(0.0)));
    }

    // What is no finite number among s and the products first .. last, added up.
    static LPT_SHARED doubles special(doubles s, const T *a, const T *b, int64_t first,
                                      int64_t last) {
        const doubles zero = spread(0.0);
        doubles sum = s - s == zero ? zero : s;
        for (int64_t k = first; k < last; ++k) {
            const doubles p = spread(a[k * TALL]) * *columns(b, k);
            sum += p - p == zero ? zero : p;
        }
        return sum;
    }

    // A number that is not finite is missing, too.
    LPT_STEP void take(doubles term, doubles &units, U &left) const {
        const doubles kept = toward_zero(term);
        units += kept;
        if (WHOLE)
            left |= (U)(term - kept != spread(0.0));
    }

    // The whole sum in three parts that are exact, one some places below the other. Where these do
    // not hold it, digit by digit.
    LPT_SHARED doubles in_parts(doubles s, const T *a, const T *b, int64_t first, int64_t last,
                                doubles scale, doubles unit) const {
        doubles part[3] = {}, r;
        U left = {};
        const auto add = [&](doubles term) {
            for (doubles &sum : part) {
                const doubles kept = toward_zero(term);
                sum += kept;
                term = (term - kept) * above;
            }
            left |= (U)(term != spread(0.0));
        };
        add(s * scale);
        for (int64_t k = first; k < last; ++k)
            add(spread(a[k * TALL]) * *columns(b, k) * scale);
        if (!all_zero(left))
            return digit_by_digit(s, a, b, first, last);
        part[1] *= below, part[2] *= below * below;
        for (int l = 0; l < tile<T>::LENGTH; ++l)
            r[l] = lpt_odd_sum(part[0][l], part[1][l], part[2][l]);
        return r * unit;
    }
    static LPT_SHARED doubles digit_by_digit(doubles s, const T *a, const T *b, int64_t first,
                                             int64_t last) {
        lpt_exact_sum sums[tile<T>::LENGTH] = {};
        add_to(sums, s);
        for (int64_t k = first; k < last; ++k)
            add_to(sums, spread(a[k * TALL]) * *columns(b, k));
        return value_of(sums);
    }

    void advance(tile<T> *kept, const T *a, const T *b, int64_t, int64_t depth,
                 tile_words<T> *) const override {
        tile<T> s = *kept;
        for (int64_t first = 0; first < depth; first += chunk) {
            const int64_t last = first + chunk < depth ? first + chunk : depth;
            tile<T> top, units, scale;
            U left[TALL][2] = {};  // whether something is missing
            for (int i = 0; i < TALL; ++i)
                for (int j = 0; j < 2; ++j)
                    top.v[i][j] = most(power(s.v[i][j], least_s), least);
            for (int64_t k = first; k < last; ++k) {
                const doubles *y = columns(b, k);
#pragma GCC unroll 4
                for (int i = 0; i < TALL; ++i) {
                    const doubles x = power(spread(a[k * TALL + i]), least_a);
                    for (int j = 0; j < 2; ++j)
                        top.v[i][j] = most(top.v[i][j], x * power(y[j], least_b));
                }
            }
            for (int i = 0; i < TALL; ++i)
                for (int j = 0; j < 2; ++j) {
                    const doubles over = (doubles)((2046ull << 52) - (U)top.v[i][j]);  // 1 / top
                    scale.v[i][j] = over * above;
                    units.v[i][j] = spread(0.0);
                    take(s.v[i][j] * scale.v[i][j], units.v[i][j], left[i][j]);
                }
            for (int64_t k = first; k < last; ++k) {
                const doubles *y = columns(b, k);
#pragma GCC unroll 4
                for (int i = 0; i < TALL; ++i) {
                    const doubles x = spread(a[k * TALL + i]);
                    for (int j = 0; j < 2; ++j)
                        take(x * y[j] * scale.v[i][j], units.v[i][j], left[i][j]);
                }
            }
            for (int i = 0; i < TALL; ++i)
                for (int j = 0; j < 2; ++j) {
                    const doubles unit = top.v[i][j] * below;
                    doubles r = units.v[i][j] * unit;
                    if (WHOLE && !all_zero(left[i][j]))
                        r = in_parts(s.v[i][j], a + i, b + j * tile<T>::LENGTH, first, last,
                                     scale.v[i][j], unit);
                    if (!WHOLE && !all_finite(units.v[i][j])) {
                        const doubles beyond =
                            special(s.v[i][j], a + i, b + j * tile<T>::LENGTH, first, last);
                        r = beyond == spread(0.0) ? r : beyond;
                    }
                    s.v[i][j] = round(r, nullptr);
                }
        }
        *kept = s;
    }
};

// Exactly, rounded once at the end. The products of a packed block are cut into three parts, each a
// multiple of a power of two so large that 2**8 of them are added in double without an error; what
// a block adds up to goes into digits of base 2**32.
template <class ROUND> struct exactly final : tile_steps<double> {
    typedef double T;
    typedef float IN;
    typedef vectors<double>::U U;
    enum { LENGTH = tile<T>::LENGTH, BROAD = tile<T>::BROAD, PARTS = 3 };
    static_assert(DEEP <= 256, "the parts of a block need room");
    const ROUND round;
    const bool started;
    const doubles exponents, least;
    doubles cut[PARTS];  // over the largest power of two of the products; parts are 2**44 apart

    exactly(const lpt_accumulator &acc, bool has_addend)
        : tile_steps<double>(false), round(rounding_of<T>(acc.sum, acc), acc.mode),
          started(has_addend), exponents(spread(lpt_value<double>(2047ull << 52))),
          least(spread(lpt_power(-900))) {
        for (int n = 0; n < PARTS; ++n)
            cut[n] = spread(1.5 * lpt_power(10 - 44 * n));
    }

    int64_t kept(int64_t) const override {
        return 1 + (TALL * BROAD * sizeof(lpt_exact_sum) + sizeof(tile<T>) - 1) / sizeof(tile<T>);
    }
    static lpt_exact_sum *digits(tile<T> *kept) { return (lpt_exact_sum *)(kept + 1); }

    LPT_STEP doubles power(doubles x) const { return (doubles)((U)x & (U)exponents); }

    void advance(tile<T> *kept, const T *a, const T *b, int64_t, int64_t depth,
                 tile_words<T> *) const override {
        for (int i = 0; i < TALL; ++i) {
            doubles top[2] = {least, least}, part[2][PARTS] = {};
            U left[2] = {};
            for (int64_t k = 0; k < depth; ++k) {
                const doubles x = power(spread(a[k * TALL + i])), *y = columns(b, k);
                for (int j = 0; j < 2; ++j)
                    top[j] = most(top[j], x * power(y[j]));
            }
            for (int64_t k = 0; k < depth; ++k) {
                const doubles x = spread(a[k * TALL + i]), *y = columns(b, k);
                for (int j = 0; j < 2; ++j) {
                    doubles rest = x * y[j];
                    for (int n = 0; n < PARTS; ++n) {
                        const doubles shift = top[j] * cut[n], here = (rest + shift) - shift;
                        part[j][n] += here;
                        rest -= here;
                    }
                    left[j] |= (U)(rest != spread(0.0));
                }
            }
            for (int j = 0; j < 2; ++j) {
                lpt_exact_sum *sums = digits(kept) + i * BROAD + j * LENGTH;
                if (all_zero(left[j]))  // none is a NaN either
                    for (int n = 0; n < PARTS; ++n)
                        add_to(sums, part[j][n]);
                else
                    for (int64_t k = 0; k < depth; ++k)
                        add_to(sums, spread(a[k * TALL + i]) * columns(b, k)[j]);
            }
        }
    }
    void finish(tile<T> *kept, int64_t) const override {
        for (int i = 0; i < TALL; ++i)
            for (int j = 0; j < 2; ++j) {
                lpt_exact_sum *sums = digits(kept) + i * BROAD + j * LENGTH;
                doubles &s = kept->v[i][j];
                if (started)
                    add_to(sums, s);
                s = round(value_of(sums), nullptr);
            }
    }
};
#endif

}  // namespace
