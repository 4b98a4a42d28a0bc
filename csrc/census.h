// What roundings did to values, in numbers: the counts themselves, and the loops that add to them.
#pragma once
#include <stdint.h>

// Binades floor(log2 |x|) that are told apart; what lies beyond counts to the last ones.
enum { LPT_LOWEST = -150, LPT_HIGHEST = 128, LPT_BINADES = LPT_HIGHEST - LPT_LOWEST + 1 };

// lptensor/study/census.py: Census
struct lpt_census {
    double highest, lowest, tiny;  // the largest value, minus the smallest, the smallest normal
    int64_t zero, underflow, subnormal, saturated, overflow, nonfinite;
    double sums[2];  // of the squares of signal and noise, over what is finite before and after
    int64_t binades[LPT_BINADES];
};

// lptensor/study/updates.py: Updates
struct lpt_updates {
    int64_t wanted, lost;
    double sums[2];  // of <made, wanted> and <wanted, wanted>
};

// Rounds elements first .. last of x into y: a function, and what it knows.
template <class T> struct lpt_rounder {
    void (*round)(const void *how, const T *x, T *y, int64_t first, int64_t last);
    const void *how;
};

// Loops of census.cpp over elements first .. last; `first` is a multiple of LPT_GROUP.
template <class T> struct lpt_census_loops {
    // x and what it was rounded to
    void (*count)(const T *x, const T *y, int64_t first, int64_t last, lpt_census &);
    // x, and what it is rounded to, which goes to y unless that is null; y may be x
    void (*round)(const T *x, T *y, int64_t first, int64_t last, const lpt_rounder<T> &,
                  lpt_census &);
    // values of a weight, those that an optimizer wrote, and these rounded
    void (*updates)(const T *start, const T *before, const T *after, int64_t first, int64_t last,
                    lpt_updates &);
    // values of a weight and those after a step, had it been held as `hold` rounds, and written as
    // `write` does
    void (*ask_updates)(const T *start, const T *now, int64_t first, int64_t last,
                        const lpt_rounder<T> &hold, const lpt_rounder<T> &write, lpt_updates &);
};

struct lpt_censuses {
    lpt_census_loops<float> f32;
    lpt_census_loops<double> f64;
};
