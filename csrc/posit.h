// Posits (Standard for Posit Arithmetic, 2022), on the carrier's bits.
//
// A posit stores the regime k in a run of bits, then as many leading bits of (exponent mod 2**es,
// fraction) as there is room for. With e the exponent and f the fraction field of a float, the
// integer e * 2**M + f holds the same bits in the same order: k = floor(e / 2**es) on top, then the
// exponent's low bits, then the fraction. So rounding the posit's bit string is rounding this
// integer at a position that depends on k alone, also where exponent bits are cut off and the
// neighbours are powers of two, or of 2**2**es.
#pragma once
#include "chance.h"

// lptensor/posits.py: PositBits
struct lpt_posit {
    int32_t nbits, es;
};

template <class T, int MODE>
LPT_FN typename lpt_carrier<T>::bits lpt_round_posit(typename lpt_carrier<T>::bits u, lpt_posit p,
                                                     const lpt_odds &odds, uint32_t random) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typedef typename C::sbits S;
    typedef typename C::exponent E;
    const int32_t M = C::mantissa;
    const S one = (S)C::bias << M;
    const U inf = (U)(2 * C::bias + 1) << M, nan = inf | (U)1 << (M - 1);

    // 1. sign, and log2 |x| as the float's bits have it: between the powers of two it is linear
    const U sign = u & (U)1 << (C::width - 1), a = u ^ sign;
    const S top = (S)(p.nbits - 2) << (p.es + M);  // maxPos; minPos is -top
    const S x = (S)a - one;

    // 2. how many low bits have no room beside the regime
    const S inside = x < -top ? -top : x;
    const E k = (E)(inside >> (p.es + M));
    const E room = p.nbits - 1 - (k >= 0 ? k + 2 : 1 - k);
    const E all = p.es + M, d = room < 0 ? all : room > all ? 0 : all - room;

    // 3. those bits, and whether the code that remains is odd
    const U kept = (U)(inside >> d), whole = kept << d;
    const U unit = ((kept + 1) << d) - whole, low = (U)inside - whole;
    const S floor = (S)whole;
    const U bare = k < 0;  // a regime alone ends in 0, a negative one in 1
    const U odd = room > 0 ? kept & 1 : bare;
    const bool tiny = x < -top;  // below minPos; the next lower value is zero
    const U lost = tiny ? (U)1 : low, negative = (U)((S)u >> (C::width - 1));  // all ones or none

    // 4. up, in magnitude, or not; to nearest nothing but zero becomes zero
    bool up = false;
    if (MODE == LPT_NEAREST)
        up = tiny || (low << 1) + odd > unit;
    if (MODE == LPT_NEAREST_AWAY)
        up = tiny || low << 1 >= unit;
    if (MODE == LPT_NEAREST_UP)
        up = tiny || (low << 1) + (~negative & 1) > unit;
    if (MODE == LPT_UP)
        up = (lost & ~negative) != 0;
    if (MODE == LPT_DOWN)
        up = (lost & negative) != 0;
    if (MODE == LPT_ODD)
        up = tiny | ((low & (odd - 1)) != 0);
    if (MODE >= LPT_STOCHASTIC) {
        const U lower = (U)(floor + one);  // beyond maxPos what is added to it may pass the sign
        const double above = lpt_exact(tiny ? (U)(inside + one) : lower + unit);
        const double here = lpt_exact(lower);
        up = lpt_drawn_between<MODE, false>(lpt_exact(a), tiny ? 0.0 : here, above, lost != 0, odds,
                                            random);
    }

    // 5. the posit, zero, the ends
    U r = (U)(floor + one) + (up & !tiny ? unit : (U)0);
    r = tiny & !up ? (U)0 : r;
    r = x >= top ? (U)(top + one) : r;
    r = a == 0 ? (U)0 : r | sign;
    r = r == sign ? (U)0 : r;
    return a >= inf ? nan : r;
}
