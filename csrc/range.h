// Blocks whose elements are spread from the smallest to the largest of what they hold: what is made
// of a block's two ends, and of an element.
#pragma once
#include "block.h"
#include <math.h>

// lptensor/ranges.py: Ranges. The steps reach beyond the element's ends, `min` and `max`.
struct lpt_ranges {
    lpt_grid steps;
    double min, max;
    int32_t preserve_zero, reciprocal;
};

// What a block has: x becomes first + scale * clamp(R((x - first) / by), low, high), `by` being the
// scale; or (x - first) * by, which is its reciprocal. Whether that must go the long way.
template <class T> struct lpt_block_spread {
    T first, by, scale, low, high, far;
};

// The same of many.
template <class T> struct lpt_spread {
    T *first, *by, *scale, *low, *high;
    lpt_spread from(int64_t k) const { return {first + k, by + k, scale + k, low + k, high + k}; }
    lpt_block_spread<T> operator[](int64_t k) const {
        return {first[k], by[k], scale[k], low[k], high[k], 0};
    }
};

// Bits as integers in the order of the numbers, NaN of either sign beyond the infinity of its sign;
// and back.
template <class T>
LPT_FN typename lpt_carrier<T>::sbits lpt_ordered(typename lpt_carrier<T>::sbits u) {
    typedef lpt_carrier<T> C;
    const auto magnitude = (typename C::sbits)(~(typename C::bits)0 >> 1);
    return u ^ ((u >> (C::width - 1)) & magnitude);
}

// The result of one operation as fp32 has it, if it had no largest number.
LPT_FN double lpt_endless(double r) {
    const double near = lpt_value<float>(0x7f000000u);
    return r < near && r > -near ? (double)(float)r : (double)(float)(r / 4) * 4;
}

LPT_FN double lpt_clipped(double r) {
    const double most = lpt_value<float>(0x7f7fffffu);
    return r < -most ? -most : r > most ? most : r;
}

// How far apart the steps are.
LPT_FN double lpt_step(const lpt_ranges &r) {
    return ldexp(1.0, r.steps.emax - (r.steps.precision - 1));
}

// Block k of `to`, whose ends are given in order. Not 0 where the short way through its elements is
// not for it: they are NaN, or a difference may leave fp32. (Written so that compilers turn a loop
// of it into vector instructions.)
template <class T>
LPT_FN typename lpt_carrier<T>::sbits
lpt_spread_out(const lpt_ranges &r, double step, typename lpt_carrier<T>::sbits least,
               typename lpt_carrier<T>::sbits most, const lpt_spread<T> &to, int64_t k) {
    typedef lpt_carrier<T> C;
    typedef typename C::sbits S;
    const S inf = (S)(2 * C::bias + 1) << C::mantissa;
    const auto end = [](S ordered) {
        const auto bits = (typename C::bits)lpt_ordered<T>(ordered);
        return (double)(float)lpt_clipped(lpt_value<T>(bits));
    };
    // Where zero is kept, the elements reach to it at least.
    const double edge = r.preserve_zero ? 0 : lpt_value<double>((uint64_t)2047 << 52);
    const double lowest = end(least), highest = end(most);
    const double first = lowest < edge ? lowest : edge, last = highest > -edge ? highest : -edge;
    const double span = r.max - r.min, smallest = lpt_value<float>(1u);
    const double wanted = (float)lpt_clipped(lpt_endless(last - first) / span);
    const double scale = wanted < smallest ? smallest : wanted;
    const double zero = r.min - rint((double)(float)(first / scale) / step) * step;
    const double low = r.preserve_zero ? r.min - (zero > r.max ? r.max : zero) : 0;
    const T nan = lpt_value<T>((typename C::bits)inf | (typename C::bits)1 << (C::mantissa - 1));
    const T usual = most < inf ? (T)scale : nan, kept = least > ~inf ? usual : nan;
    const T inverse = (T)(float)lpt_clipped(1 / scale);
    to.first[k] = r.preserve_zero ? (T)0 : (T)first;
    to.scale[k] = kept;
    to.by[k] = r.reciprocal ? inverse : kept;
    to.low[k] = (T)low;
    to.high[k] = (T)(low + span);
    const double near = lpt_value<float>(0x7e000000u);
    const S above = last > near ? C::width == 32 : 0, far = first < -near ? C::width == 32 : above;
    const S infinite = most < inf ? far : 1;
    return least > ~inf ? infinite : 1;
}

// Elements in steps: the short way, and that which is right for all.
template <bool MULTIPLY> LPT_FN float lpt_steps_of(float x, float first, float by) {
    return MULTIPLY ? (x - first) * by : (x - first) / by;
}
template <bool MULTIPLY> LPT_FN double lpt_steps_of(double x, double first, double by) {
    // Quotients of smaller numbers might vanish.
    const double d = x - first, least = lpt_value<double>((uint64_t)(1023 - 800) << 52);
    const double kept = d < least && d > 0 ? least : d > -least && d < 0 ? -least : d;
    return MULTIPLY ? kept * by : kept / by;
}
template <bool MULTIPLY> LPT_FN float lpt_far_steps_of(float x, float first, float by) {
    const double d = lpt_endless((double)x - first);
    return (float)(MULTIPLY ? d * by : d / by);
}
template <bool MULTIPLY> LPT_FN double lpt_far_steps_of(double x, double first, double by) {
    return lpt_steps_of<MULTIPLY>(x, first, by);
}

// What the steps, rounded, stand for.
template <class T> LPT_FN T lpt_within(T k, T low, T high) {
    const T raised = low > k ? low : k;  // NaN stays
    return high < raised ? high : raised;
}
template <class T> LPT_FN T lpt_at_steps(T k, T first, T scale, T low, T high) {
    return first + scale * lpt_within(k, low, high);
}
LPT_FN float lpt_at_far_steps(float k, float first, float scale, float low, float high) {
    const double r = first + lpt_endless((double)scale * lpt_within(k, low, high));
    return scale == scale ? (float)lpt_clipped(r) : scale;
}
LPT_FN double lpt_at_far_steps(double k, double first, double scale, double low, double high) {
    return scale == scale ? lpt_at_steps(k, first, scale, low, high) : scale;
}
