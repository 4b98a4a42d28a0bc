// Rounders of vectors of doubles, for formats and modes that fp32 has no way for.
#pragma once
#include "gemm_rounders.h"

namespace {

// Any mode in double: steps as in lptensor/reference.py, x in units of the spacing 2**q, to an
// integer, and back. The words are 32 random bits each. ANY_MODE takes the mode, one without random
// words, when it is made.
enum { ANY_MODE = -2 };
template <int MODE> struct to_grid {
    typedef vectors<double>::U U;
    doubles bottom, top, exponents, sign, units, limit[2], over[2], inf[2];
    doubles per_below;  // one over the spacing below the normal numbers; 0 makes them zeros
    U tie_up;           // there, where zero is the only other number
    uint64_t negative_zero;
    // ANY_MODE: fractions above `level` go up where the sign says so, unless the integer is `never`
    // (odd); those of `level` go up where the sign says so of ties and the integer is odd, or
    // `always`.
    doubles level;
    U grow[2], never, ties[2], always;
    to_grid(const lpt_cell<double> &c, int mode) {
        bottom = spread(lpt_value<double>((uint64_t)c.emin << 52));
        top = spread(lpt_value<double>((uint64_t)c.emax << 52));
        exponents = spread(lpt_value<double>(2047ull << 52));
        sign = spread(-0.0);
        units = spread(lpt_value<double>((uint64_t)(1023 + 52 - c.drop) << 52));
        for (int i = 0; i < 2; ++i) {
            limit[i] = spread(lpt_value<double>(c.limit[i]));
            over[i] = spread(lpt_value<double>(c.over[i]));
            inf[i] = spread(lpt_value<double>(c.inf[i]));
        }
        negative_zero = c.zero_sign;
        per_below = spread(c.subnormals == LPT_FLUSH ? 0.0 : 1 / lpt_value<double>(c.low));
        if (c.subnormals == LPT_GRADUAL)
            per_below *= units;
        tie_up = all(c.subnormals == LPT_NONE);
        if (MODE != ANY_MODE)
            return;
        const bool nearest = lpt_to_nearest(mode);
        level = spread(nearest ? 0.5 : 0.0);
        for (int i = 0; i < 2; ++i) {
            grow[i] = all(nearest || mode == LPT_ODD || mode == (i ? LPT_DOWN : LPT_UP));
            ties[i] = all(nearest && (i == 0 || mode != LPT_NEAREST_UP));
        }
        never = all(mode == LPT_ODD);
        always = all(nearest && mode != LPT_NEAREST);
    }
    static U all(bool yes) { return (U)spread(0.0) - (uint64_t)yes; }
    LPT_STEP doubles operator()(doubles x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const doubles size = (doubles)((U)x ^ minus);
        const U negative = (U)((doubles)((U)(minus >> 63)) != spread(0.0));
        const doubles binade = least(most((doubles)((U)x & (U)exponents), bottom), top);
        const U below = (U)(size < bottom);
        const doubles per =  // one over the spacing
            below ? per_below : (doubles)((2046ull << 52) - (U)binade) * units;
        const doubles n = size * per, k = down(n), part = n - k;
        const doubles half = spread(0.5), zero = spread(0.0), one = spread(1.0);
        U up = (U)(zero != zero);
        if (MODE == LPT_NEAREST || MODE == LPT_ODD || MODE == ANY_MODE) {
            const doubles pair = k * half;
            const U odd = (U)(pair != down(pair));
            if (MODE == ANY_MODE)
                up = ((U)(part > level) & (negative ? grow[1] : grow[0]) & ~(odd & never)) |
                     ((U)(part == level) & (negative ? ties[1] : ties[0]) &
                      (odd | always | (below & tie_up)));
            if (MODE == LPT_NEAREST)
                up = (U)(part > half) | ((U)(part == half) & (odd | (below & tie_up)));
            if (MODE == LPT_ODD)
                up = (U)(part > zero) & ~odd;
        }
        if (MODE == LPT_NEAREST_AWAY)
            up = (U)(part >= half);
        if (MODE == LPT_NEAREST_UP)
            up = (U)(part > half) | ((U)(part == half) & ~negative);
        if (MODE == LPT_UP)
            up = (U)(part > zero) & ~negative;
        if (MODE == LPT_DOWN)
            up = (U)(part > zero) & negative;
        if (MODE == LPT_STOCHASTIC)
            up = (U)(down(part * spread(4294967296.0)) + widened(words) >= spread(4294967296.0));
        const doubles spacing = (doubles)((2046ull << 52) - (U)per);
        // so many units that double cannot count them: on the grid, if that goes so far
        const doubles r = n == exponents ? size : (k + (doubles)(up & (U)one)) * spacing;
        const doubles end = negative ? limit[1] : limit[0], past = negative ? over[1] : over[0];
        doubles y = r > end ? past : r;
        y = size == exponents ? (negative ? inf[1] : inf[0]) : y;
        const U kept = (U)(y != zero) | negative_zero;
        return (doubles)((U)y | (minus & kept));
    }
    static bool fits(const lpt_cell<double> &c) {
        return c.emin >= 1 && c.is_signed && c.zero && !c.ties_to_even_code &&
               c.beyond != LPT_BEYOND_PROBABILITY;
    }
};

// To nearest in fixed point without ends.
struct to_multiple {
    doubles per, spacing;
    to_multiple(const lpt_cell<double> &c, int) {
        spacing = spread(lpt_value<double>(c.tiny));
        per = 1 / spacing;
    }
    LPT_STEP doubles operator()(doubles x, const uint32_t *) const {
        return nearest_integer(x * per) * spacing;
    }
};

// What R rounds to fixed point without ends, brought into the range of a register, as lpt_wrapped.
template <class R> struct to_wrapped : R {
    doubles turn, per_turn;
    to_wrapped(const lpt_cell<double> &c, int mode)
        : R(c, mode), turn(spread(lpt_power(c.emax - 1023 + 2))), per_turn(1 / turn) {}
    LPT_STEP doubles operator()(doubles x, const uint32_t *words) const {
        const doubles turns = R::operator()(x, words) * per_turn, part = turns - down(turns);
        return (part >= spread(0.5) ? part - spread(1.0) : part) * turn;
    }
};

}  // namespace
