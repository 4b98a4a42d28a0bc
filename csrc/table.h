// Codebooks: any sorted list of values. Rounding to one is a monotone step function, so it is a
// search among the steps; where they are is the rounding mode's affair (lptensor/tables.py: steps).
#pragma once
#include "chance.h"

// The keys of one binade, cut into buckets 2**shift wide; `base` is the number of the first.
struct lpt_binade {
    int32_t base, shift;
};

// lptensor/_native.py: _Table. Keys are the carrier's bits as signed integers in the order of the
// values: -magnitude below zero, both zeros 0.
template <class T> struct lpt_table {
    typedef lpt_carrier<T> C;
    typedef typename C::sbits S;
    const lpt_binade *binades;      // by sign and exponent of the key
    const int32_t *first;           // per bucket: the steps at or below its first key
    const S *step;                  // value i + 1 begins at this key; then 2**depth largest keys
    const typename C::bits *value;  // bits of the values, ascending; then 2**depth times the last
    const double *exact;            // the same values
    // Of drawn results: the largest magnitude; what finite numbers beyond it and infinities become.
    const typename C::bits *ends;
    int32_t depth;  // a bucket has less than 2**depth steps inside
    int32_t last;   // number of the last value
};

// Without ends that magnitude is infinite.
template <class T> LPT_FN bool lpt_has_ends(const lpt_table<T> &t) {
    typedef lpt_carrier<T> C;
    return t.ends[0] < (typename C::bits)(2 * C::bias + 1) << C::mantissa;
}

template <class T>
LPT_FN typename lpt_carrier<T>::sbits lpt_key_of(typename lpt_carrier<T>::bits u) {
    typedef lpt_carrier<T> C;
    typedef typename C::sbits S;
    const S negative = (S)u >> (C::width - 1),
            magnitude = (S)(u & ~((typename C::bits)1 << (C::width - 1)));
    return (magnitude ^ negative) - negative;  // no branch: signs are hard to predict
}

// How many steps are at or below the key: the number of the value.
template <class T, int DEPTH>
LPT_FN int32_t lpt_find(typename lpt_carrier<T>::sbits key, const lpt_table<T> &t) {
    typedef lpt_carrier<T> C;
    typedef typename C::sbits S;
    const int32_t M = C::mantissa;
    const lpt_binade b = t.binades[(int32_t)(key >> M) + 2 * (C::bias + 1)];
    int32_t i = t.first[b.base + (int32_t)((key & (((S)1 << M) - 1)) >> b.shift)];
    for (int32_t wide = (1 << (DEPTH < 0 ? t.depth : DEPTH)) >> 1; wide; wide >>= 1)
        i += wide & -(int32_t)(t.step[i + wide - 1] <= key);
    return i;
}

// What was drawn for u, or what is beyond the end of the list there, with the sign of u; NaN has
// none.
template <class T>
LPT_FN typename lpt_carrier<T>::bits
lpt_at_end(typename lpt_carrier<T>::bits u, typename lpt_carrier<T>::bits r,
           typename lpt_carrier<T>::bits limit, typename lpt_carrier<T>::bits finite,
           typename lpt_carrier<T>::bits infinite) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, minus = (U)1 << (C::width - 1);
    const U end = (u & ~minus) == inf ? infinite : finite, sign = end > inf ? 0 : u & minus;
    return (r & ~minus) > limit ? end | sign : r;
}

// MODE is a stochastic one, or LPT_NEAREST for all others. ENDS is false for lists without, whose
// drawn results need no look at them.
template <class T, int DEPTH, int MODE, bool ENDS>
LPT_FN typename lpt_carrier<T>::bits lpt_round_to(typename lpt_carrier<T>::bits u,
                                                  const lpt_table<T> &t, const lpt_odds &odds,
                                                  uint32_t random) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
    const U sign = u & (U)1 << (C::width - 1), a = u ^ sign;
    int32_t i = lpt_find<T, DEPTH>(lpt_key_of<T>(u), t);
    if (MODE >= LPT_STOCHASTIC) {
        const U here = t.value[i];
        const int32_t inside = i<t.last, above = lpt_key_of<T>(u)> lpt_key_of<T>(here);
        const double low = t.exact[i], high = t.exact[i + 1];
        // As if all were mirrored where it is negative; then the farther one is the lower one.
        const int32_t negative = (int32_t)(u >> (C::width - 1));
        const double near = negative ? -high : low, far = negative ? -low : high;
        const int32_t drawn =
            lpt_drawn_between<MODE, true>(lpt_exact(a), near, far, above != 0, odds, random);
        const U r = inside & above & (drawn ^ negative) ? t.value[i + 1] : here;
        return a > inf ? nan : ENDS ? lpt_at_end<T>(u, r, t.ends[0], t.ends[1], t.ends[2]) : r;
    }
    const U r = t.value[i];
    return a > inf ? nan : r;
}
