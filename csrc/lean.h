// lpt_round in fewer operations, for the cells that most formats have: the same bits, a fraction of
// the time. lpt_make_cell decides once per call which cells those are.
#pragma once
#include "grid.h"

// What is known of the numbers and the ends of the format: nothing; that no number is NaN and all
// beyond the limits becomes the limits; the same, and that |x| is not below the smallest value
// (c.tiny), unless it is a zero of a format with two; that |x| is not beyond the limits (c.inside);
// that it is not below the smallest value either.
enum lpt_ends { LPT_ALL_ENDS, LPT_SATURATES, LPT_ABOVE, LPT_INSIDE, LPT_AMONG };

// The result, given the magnitude r that |x| = a has been rounded to.
template <class T, int MODE, int ENDS>
LPT_FN typename lpt_carrier<T>::bits
lpt_end(typename lpt_carrier<T>::bits r, typename lpt_carrier<T>::bits u, const lpt_cell<T> &c) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
    const U sign = u & (U)1 << (C::width - 1), a = u ^ sign;
    if (ENDS == LPT_AMONG)
        return r | sign;
    const U limit = sign ? c.limit[1] : c.limit[0];
    U y = ((ENDS == LPT_SATURATES || ENDS == LPT_ABOVE) && r > limit ? limit : r) | sign;
    if (ENDS == LPT_ABOVE)
        return y;
    y = y == c.no_value ? (U)0 : y;
    if (ENDS != LPT_ALL_ENDS)
        return y;
    U beyond = sign ? c.over[1] : c.over[0];
    const U infinite = sign ? c.inf[1] : c.inf[0];
    beyond = a == inf ? infinite : beyond;
    beyond = beyond > inf ? nan : beyond | sign;
    beyond = a > inf ? nan : beyond;
    return (r > limit) | (a >= inf) ? beyond : y;
}

// lpt_round in the modes up to LPT_STOCHASTIC on a cell that is `roomy`, or `gapped`: adding and
// subtracting a power of two whose last place is the spacing of the grid at x rounds |x| to
// nearest, and the other modes take the neighbour where they want it. No result is subnormal and a
// subnormal x has less than 2**-32 of the spacing, so that a machine may take those for zero.
template <class T, int MODE, int ENDS, int SUBNORMALS = LPT_GRADUAL>
LPT_FN typename lpt_carrier<T>::bits lpt_round_roomy(typename lpt_carrier<T>::bits u,
                                                     const lpt_cell<T> &c, uint32_t random) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typedef typename C::sbits S;
    const U sign = u & (U)1 << (C::width - 1), a = u ^ sign;
    U e = a & (U)(2 * C::bias + 1) << C::mantissa;
    e = e < c.low ? c.low : e;
    e = e > c.high ? c.high : e;
    const bool gapped = SUBNORMALS != LPT_GRADUAL;
    const U below = gapped && a < c.low ? ~(U)0 : (U)0;
    const U drop = gapped && a < c.low ? (U)C::mantissa : (U)c.drop;
    const U power = e + (drop << C::mantissa);
    const T magic = lpt_value<T>(power), sum = lpt_value<T>(a) + magic;
    const T spacing = lpt_value<T>(power - ((U)C::mantissa << C::mantissa));
    T r = sum - magic;
    if (MODE == LPT_NEAREST_AWAY || (gapped && MODE == LPT_NEAREST)) {
        const T half = spacing / 2;  // a tie in the gap goes up in any case
        const U tie = lpt_value<T>(a) - r == half ? ~(U)0 : (U)0;
        r = tie & (MODE == LPT_NEAREST ? below : ~(U)0) ? r + spacing : r;
    }
    if (MODE == LPT_NEAREST_UP) {
        const T half = lpt_value<T>(lpt_bits(spacing / 2) | sign);
        r = lpt_value<T>(a) - r == half ? r + (half + half) : r;
    }
    if (MODE == LPT_UP || MODE == LPT_DOWN) {
        const U negative = (U)((S)u >> (C::width - 1));  // all ones or none
        const U inward = MODE == LPT_UP ? negative : ~negative;
        const T step = lpt_value<T>(lpt_bits(spacing) | (inward & (U)1 << (C::width - 1)));
        r = (S)(lpt_bits(r) ^ inward) < (S)(a ^ inward) ? r + step : r;
    }
    if (MODE == LPT_ODD) {  // the last place of the sum is that of r
        const U odd = lpt_bits(sum) & 1, still = lpt_bits(r) == a ? (U)1 : odd;
        const T other = lpt_bits(r) < a ? r + spacing : r - spacing;
        r = still ? r : other;
    }
    if (MODE == LPT_TOWARD_ZERO || MODE == LPT_STOCHASTIC)
        r = lpt_bits(r) > a ? r - spacing : r;
    if (MODE == LPT_STOCHASTIC) {
        const U inverse = ((U)(2 * C::bias + 32 + C::mantissa) << C::mantissa) - power;
        const T most = (T)4294967040.0f, part = (lpt_value<T>(a) - r) * lpt_value<T>(inverse);
        // What overflows, or is NaN, may lie any way beyond the largest value, but is no integer.
        const U fraction = (U)(ENDS == LPT_INSIDE || part < most ? part : most);
        r = fraction > (U)(uint32_t)~random ? r + spacing : r;
    }
    const U kept = SUBNORMALS == LPT_FLUSH ? lpt_bits(r) & ~below : lpt_bits(r);
    return lpt_end<T, MODE, ENDS>(kept, u, c);
}

// Shifts in which places beyond the word's width leave zero, as a device's own do; a host asks for
// the places within the width, and must not look at what the others give.
#if defined(LPT_EMULATED)
template <class U> LPT_FN U lpt_left(U u, int32_t places) {
    return (uint32_t)places < 8 * sizeof(U) ? u << places : 0;
}
template <class U> LPT_FN U lpt_right(U u, int32_t places) {
    return (uint32_t)places < 8 * sizeof(U) ? u >> places : 0;
}
#elif defined(__CUDA_ARCH__)
LPT_FN uint32_t lpt_left(uint32_t u, int32_t places) {
    uint32_t r;
    asm("shl.b32 %0, %1, %2;" : "=r"(r) : "r"(u), "r"(places));
    return r;
}
LPT_FN uint64_t lpt_left(uint64_t u, int32_t places) {
    uint64_t r;
    asm("shl.b64 %0, %1, %2;" : "=l"(r) : "l"(u), "r"(places));
    return r;
}
LPT_FN uint32_t lpt_right(uint32_t u, int32_t places) {
    uint32_t r;
    asm("shr.u32 %0, %1, %2;" : "=r"(r) : "r"(u), "r"(places));
    return r;
}
LPT_FN uint64_t lpt_right(uint64_t u, int32_t places) {
    uint64_t r;
    asm("shr.u64 %0, %1, %2;" : "=l"(r) : "l"(u), "r"(places));
    return r;
}
#else
template <class U> LPT_FN U lpt_left(U u, int32_t places) {
    return u << (places & (8 * (int32_t)sizeof(U) - 1));
}
template <class U> LPT_FN U lpt_right(U u, int32_t places) {
    return u >> (places & (8 * (int32_t)sizeof(U) - 1));
}
#endif

// The same where places beyond the width leave zero everywhere.
template <class U> LPT_FN U lpt_right_far(U u, int32_t places) {
#if defined(__CUDA_ARCH__)
    return lpt_right(u, places);
#else
    return (uint32_t)places < 8 * sizeof(U) ? lpt_right(u, places) : (U)0;
#endif
}

// The first `places` bits of a word, as a number below 2**places.
template <class U> LPT_FN U lpt_first(U word, int32_t places) {
    const int32_t width = 8 * (int32_t)sizeof(U);
#if defined(__CUDA_ARCH__)
    return lpt_right(word, width - places);
#else
    return word >> 1 >> ((width - 1 - places) & (width - 1));
#endif
}

// lpt_round in the modes up to LPT_STOCHASTIC on a cell that is `plain`. FLAT is the cell's `flat`:
// the format has the carrier's exponents, and the same number of bits is dropped everywhere.
template <class T, int MODE, bool FLAT, int ENDS>
LPT_FN typename lpt_carrier<T>::bits lpt_round_plain(typename lpt_carrier<T>::bits u,
                                                     const lpt_cell<T> &c, uint32_t random) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const int32_t M = C::mantissa, W = C::width;
    const U sign = u & (U)1 << (W - 1), a = u ^ sign;
    const bool negative = sign != 0;

    // 1. |x| = significand * 2**(e - bias - M); how many low bits of it lie below the spacing
    const int32_t field = (int32_t)(a >> M), e = field > 1 ? field : 1;
    const U significand = a - ((U)(e - 1) << M);
    int32_t s = c.emin + c.drop - e;
    s = s > c.least_drop ? s : c.least_drop;
    s = FLAT ? c.drop : s;
    const bool vanishes =
        !FLAT && ENDS != LPT_AMONG && ENDS != LPT_ABOVE && s > M;  // |x| is less than the spacing

    // 2. what they hold, and what lies above
    const U one = lpt_left((U)1, s), rest = a & (one - 1), whole = a & ~(one - 1);
    const U odd = lpt_right(significand, s) & 1, lost = vanishes ? a : rest;

    // 3. the neighbour
    bool up = false;
    if (MODE == LPT_NEAREST)
        up = vanishes ? a > c.half_tiny : rest + rest + odd > one;
    if (MODE == LPT_NEAREST_AWAY)
        up = vanishes ? a >= c.half_tiny : ((rest + rest) & ~(one - 1)) != 0;
    if (MODE == LPT_NEAREST_UP)
        up = vanishes ? a + !negative > c.half_tiny : rest + rest + !negative > one;
    if (MODE == LPT_UP)
        up = !negative && lost != 0;
    if (MODE == LPT_DOWN)
        up = negative && lost != 0;
    if (MODE == LPT_ODD)
        up = (lost & ((vanishes ? (U)0 : odd) - 1)) != 0;
    U r = vanishes ? (U)0 : whole;
    if (MODE == LPT_STOCHASTIC) {
        // The word moves to where the rest lies: a carry out of their sum is the way up.
        const U word = (U)random << (W - 32);
        const U moved = (a + lpt_first(word, s)) & ~(one - 1);
        // Below the spacing, the same sum by itself; what is less than 2**-32 of it is cut off.
        const U fraction = lpt_right_far((U)(significand << (W - M - 1)), s - M - 1);
        r = vanishes ? (fraction > ~word ? c.tiny : (U)0) : moved;
    } else {
        r += up ? (vanishes ? c.tiny : one) : (U)0;
    }
    return lpt_end<T, MODE, ENDS>(r, u, c);
}
