// The arithmetic of every scalar format, for host and device: one value in, its rounded value out.
//
// All steps are integer operations on the bits of the carrier (fp32 or fp64), so the result depends
// neither on the rounding mode nor on the flush-to-zero setting of the machine. Everything here has
// internal linkage: the file is compiled once per instruction set into one library. lean.h has the
// same steps for the cells of the common formats, to the same bits.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define LPT_FN static __host__ __device__ __forceinline__
#else
#define LPT_FN static inline __attribute__((always_inline))
#endif

// lptensor/rounding.py: Mode
enum lpt_mode {
    LPT_NEAREST = 0,
    LPT_NEAREST_AWAY = 1,
    LPT_NEAREST_UP = -1,
    LPT_TOWARD_ZERO = 2,
    LPT_DOWN = 3,
    LPT_UP = 4,
    LPT_ODD = 5,
    LPT_STOCHASTIC = 6,
    LPT_STOCHASTIC_HALF_OFFSET = 7,
    LPT_STOCHASTIC_PRE_ROUNDED = 8,
    LPT_STOCHASTIC_EQUAL = 9
};

// Whether a mode takes the nearer neighbour, and says something of ties alone.
LPT_FN constexpr bool lpt_to_nearest(int32_t mode) {
    return mode == LPT_NEAREST || mode == LPT_NEAREST_AWAY || mode == LPT_NEAREST_UP;
}

template <int32_t N> struct lpt_constant {
    static constexpr int32_t value = N;
};

// f(lpt_constant<MODE>()) for a mode that is known only when the program runs. There is no default,
// so that compilers warn of a mode without a case; Python hands over nothing but modes.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class F> LPT_FN auto lpt_with_mode(int32_t mode, const F &f) {
    switch ((lpt_mode)mode) {
    case LPT_NEAREST: return f(lpt_constant<LPT_NEAREST>());
    case LPT_NEAREST_AWAY: return f(lpt_constant<LPT_NEAREST_AWAY>());
    case LPT_NEAREST_UP: return f(lpt_constant<LPT_NEAREST_UP>());
    case LPT_TOWARD_ZERO: return f(lpt_constant<LPT_TOWARD_ZERO>());
    case LPT_DOWN: return f(lpt_constant<LPT_DOWN>());
    case LPT_UP: return f(lpt_constant<LPT_UP>());
    case LPT_ODD: return f(lpt_constant<LPT_ODD>());
    case LPT_STOCHASTIC: return f(lpt_constant<LPT_STOCHASTIC>());
    case LPT_STOCHASTIC_HALF_OFFSET: return f(lpt_constant<LPT_STOCHASTIC_HALF_OFFSET>());
    case LPT_STOCHASTIC_PRE_ROUNDED: return f(lpt_constant<LPT_STOCHASTIC_PRE_ROUNDED>());
    case LPT_STOCHASTIC_EQUAL: break;
    }
    return f(lpt_constant<LPT_STOCHASTIC_EQUAL>());
}

// lptensor/rounding.py: Beyond
enum lpt_beyond { LPT_BEYOND_OVERFLOW = 0, LPT_BEYOND_SATURATE = 1, LPT_BEYOND_PROBABILITY = 2 };

struct lpt_key {
    uint64_t seed, offset;
};

// lptensor/rounding.py: Rounding, and the key of this call's random words
struct lpt_rule {
    int32_t mode, bits, beyond, unused;
    lpt_key key;
};

// lptensor/grid.py: Overflow, Subnormals, Grid (field by field)
enum lpt_overflow { LPT_INF = 0, LPT_SATURATE = 1, LPT_NAN = 2, LPT_PROPAGATE = 3 };
enum lpt_subnormals { LPT_NONE = 0, LPT_GRADUAL = 1, LPT_FLUSH = 2 };

struct lpt_grid {
    int32_t precision, emin, emax;
    int32_t overflow, subnormals, zero, negative_zero, ties_to_even_code;
    double max, min;
};

// Exponents are as wide as the numbers on a host, whose vectors have lanes of one width.
#if defined(__CUDACC__)
typedef int32_t lpt_wide_exponent;
#else
typedef int64_t lpt_wide_exponent;
#endif

// The two carriers: their bits, and how many random or fraction bits a decision sees.
template <class T> struct lpt_carrier;
template <> struct lpt_carrier<float> {
    typedef uint32_t bits;
    typedef int32_t sbits, exponent;
    enum { width = 32, mantissa = 23, bias = 127 };
};
template <> struct lpt_carrier<double> {
    typedef uint64_t bits;
    typedef int64_t sbits;
    typedef lpt_wide_exponent exponent;
    enum { width = 64, mantissa = 52, bias = 1023 };
};

template <class T> LPT_FN typename lpt_carrier<T>::bits lpt_bits(T x) {
    typename lpt_carrier<T>::bits u;
    memcpy(&u, &x, sizeof u);
    return u;
}
template <class T> LPT_FN T lpt_value(typename lpt_carrier<T>::bits u) {
    T x;
    memcpy(&x, &u, sizeof x);
    return x;
}

// Bits of significand * 2**exponent on carrier T, exact wherever the carrier has the value;
// infinity above its range, truncated below it.
template <class T>
LPT_FN typename lpt_carrier<T>::bits lpt_scale(uint64_t significand, int32_t exponent) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    if (significand == 0)
        return 0;
    int32_t top = 63;
    while (!(significand >> top & 1))
        --top;
    // exponent of the leading bit, biased; 0 and below are the carrier's subnormals
    int32_t biased = top + exponent + C::bias;
    if (biased >= 2 * C::bias + 1)
        return (U)(2 * C::bias + 1) << C::mantissa;
    int32_t shift = C::mantissa - top + (biased < 1 ? biased - 1 : 0);
    U s = shift >= 0 ? (U)(significand << shift) : shift > -64 ? (U)(significand >> -shift) : (U)0;
    return biased < 1 ? s : (s & (((U)1 << C::mantissa) - 1)) | (U)biased << C::mantissa;
}

// A finite double as an integer and a power of two; the formats' limits are doubles.
LPT_FN void lpt_split(double x, uint64_t *significand, int32_t *exponent) {
    uint64_t u = lpt_bits(x) & 0x7fffffffffffffffull;
    int32_t e = (int32_t)(u >> 52);
    *significand = (u & 0xfffffffffffffull) | (e ? 1ull << 52 : 0);
    *exponent = (e ? e : 1) - 1075;
}

// What the random bits of a word, its upper ones, leave below: half of the last of them, and what
// makes half round up only where it is exceeded or the last bit kept is odd.
struct lpt_odds {
    uint32_t half_bit, under_half, odd_bit;
};

LPT_FN lpt_odds lpt_make_odds(int32_t bits) {
    const uint32_t last = 1u << (32 - bits), half = last >> 1;
    return {half, half ? half - 1 : 0, half ? last : 0};
}

// Whether the word `random`, its bits below the random ones zero, takes a value up that lies
// `head` / 2**32 of the way to its upper neighbour, and a little more if `more`.
template <int MODE>
LPT_FN bool lpt_drawn(uint32_t head, bool more, bool inexact, const lpt_odds &o, uint32_t random) {
    if (MODE == LPT_STOCHASTIC_HALF_OFFSET)
        return head > ~(random | o.half_bit);
    if (MODE == LPT_STOCHASTIC_PRE_ROUNDED) {
        const uint32_t f = head | (uint32_t)(more & (o.half_bit > 1));
        const uint32_t sum = f + o.under_half + (uint32_t)((f & o.odd_bit) != 0);
        return (sum < f) | (sum > ~random);  // ~random ends in ones
    }
    if (MODE == LPT_STOCHASTIC_EQUAL)
        return ((uint32_t)inexact & random >> 31) != 0;  // not &&: a branch would keep loops scalar
    return head > ~random;
}

// What a loop needs of a grid: computed once per call, or once per block with the block's exponent.
// Index 1 of the pairs is for negative values.
template <class T> struct lpt_cell {
    typedef typename lpt_carrier<T>::bits U;
    int32_t emin, emax;  // biased as the carrier's exponents
    int32_t drop;        // low bits to drop from a normal value's significand
    int32_t drop_below;  // the same just below emin
    int32_t least_drop;  // the same above emax, where an unbounded format's spacing stays as it is
    U tiny;              // the spacing below emin; the smallest value where there is no zero
    U half_tiny;
    U low, high;                  // bits of 2**emin and 2**emax
    U limit[2], over[2], inf[2];  // largest value, result beyond it, image of infinity
    U negative;                   // image of a negative value in an unsigned format
    U zero_sign;                  // all ones where the format has -0
    int32_t subnormals, zero, ties_to_even_code, is_signed;
    lpt_odds odds;
    int32_t beyond;
    U no_value;   // the bits of -0 where the format has none, else bits that no rounding makes
    U inside;     // no magnitude up to here reaches an end of the format
    bool plain;   // signed, with zero and gradual underflow, and not below the carrier's normals
    bool roomy;   // plain, and away from the carrier's ends: see lpt_round_roomy
    bool gapped;  // roomy, but for the subnormal numbers, which it has not
    bool flat;    // plain, with the carrier's exponents
};

// The least exponent, biased, of a spacing whose inverse times 2**32 is a normal number too.
enum { LPT_ROOM = 33 };

template <class T>
LPT_FN lpt_cell<T> lpt_make_cell(const lpt_grid &g, const lpt_rule &rule, int32_t shift) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
    lpt_cell<T> c;
    c.emin = g.emin + shift + C::bias;
    c.emax = g.emax + shift + C::bias;
    c.drop = C::mantissa + 1 - g.precision;
    c.drop_below = g.subnormals == LPT_GRADUAL ? c.drop : (int32_t)C::mantissa;
    const int smallest = g.zero && g.subnormals == LPT_GRADUAL ? g.precision - 1 : 0;
    c.tiny = lpt_scale<T>(1, g.emin + shift - smallest);
    c.half_tiny = lpt_scale<T>(1, g.emin + shift - smallest - 1);
    c.low = (U)c.emin << C::mantissa;
    c.high = (U)c.emax << C::mantissa;
    c.least_drop = g.emin == g.emax ? 0 : c.drop;
    const double ends[2] = {g.max, g.min};
    for (int negative = 0; negative < 2; ++negative) {
        uint64_t significand;
        int32_t exponent;
        lpt_split(ends[negative], &significand, &exponent);
        const bool unbounded = exponent == 2047 - 1075;  // an infinite limit: nothing is beyond it
        c.limit[negative] = unbounded ? inf : lpt_scale<T>(significand, exponent + shift);
        U beyond = g.overflow == LPT_INF ? inf : g.overflow == LPT_NAN ? nan : c.limit[negative];
        c.inf[negative] = unbounded || g.overflow == LPT_PROPAGATE ? inf : beyond;
        // IEEE 754-2019 7.4: directed modes that point back to the format stop at its end
        bool back = rule.mode == LPT_TOWARD_ZERO || rule.mode == LPT_ODD ||
                    rule.mode == (negative ? LPT_UP : LPT_DOWN) ||
                    rule.beyond == LPT_BEYOND_SATURATE;
        c.over[negative] = back ? c.limit[negative] : beyond;
    }
    const bool saturates = g.overflow == LPT_SATURATE || g.overflow == LPT_PROPAGATE;
    c.negative = !saturates ? nan : g.zero ? (U)0 : c.tiny;
    c.subnormals = g.subnormals;
    c.zero = g.zero;
    c.zero_sign = g.negative_zero ? ~(U)0 : (U)0;
    c.ties_to_even_code = g.ties_to_even_code;
    c.is_signed = g.min < 0;
    c.odds = lpt_make_odds(rule.bits);
    c.beyond = rule.beyond;
    const bool usual = c.emin >= 1 && g.zero && !g.ties_to_even_code && c.is_signed &&
                       c.beyond != LPT_BEYOND_PROBABILITY;
    c.plain = usual && g.subnormals == LPT_GRADUAL;
    c.no_value = g.negative_zero ? ~(U)0 : (U)1 << (C::width - 1);
    const U smaller = c.limit[0] < c.limit[1] ? c.limit[0] : c.limit[1];
    c.inside = smaller < inf ? smaller : inf - 1;
    c.flat = c.plain && c.emin == 1 && g.emin < g.emax;
    const bool room = c.drop >= 1 && c.emin - (g.precision - 1) >= LPT_ROOM &&
                      c.emin + C::mantissa <= 2 * C::bias && c.emax + c.drop <= 2 * C::bias &&
                      c.limit[0] < inf && c.limit[1] < inf;
    c.roomy = c.plain && room;
    c.gapped = usual && room && g.subnormals != LPT_GRADUAL;
    return c;
}

// What is rare of a format, as bits, so that no loop over elements has a branch for it.
template <class T> struct lpt_rare {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    U by_value;    // all ones where ties go to even multiples of the spacing, not to even codes
    U tie_below;   // 1 where ties below emin go up
    U kept_below;  // what is kept of the magnitudes below emin, all ones or none
    U least;       // the smallest magnitude, 0 where there is a zero
    U of_zero;     // what becomes of 0
    U no_bound;    // all ones but where odds count to the bound above the largest value
    U with_sign;   // all ones where there are negative values
};

template <class T> LPT_FN lpt_rare<T> lpt_make_rare(const lpt_cell<T> &c) {
    typedef typename lpt_carrier<T>::bits U;
    const U all = ~(U)0, none = 0,
            nan = (U)(4 * lpt_carrier<T>::bias + 3) << (lpt_carrier<T>::mantissa - 1);
    return {c.ties_to_even_code ? none : all,
            c.subnormals == LPT_NONE ? (U)1 : none,
            c.subnormals == LPT_FLUSH ? none : all,
            c.zero ? none : c.tiny,
            c.zero ? none : nan,
            c.beyond == LPT_BEYOND_PROBABILITY ? none : all,
            c.is_signed ? all : none};
}

// `random` is uniform on 0 .. 2**32 - 1; the deterministic modes ignore it. PLAIN is the cell's
// `plain`, known outside the loop: the code for rare formats then falls away. There are no
// branches, so that compilers turn a loop of it into vector instructions; && and || would be some.
template <class T, int MODE, bool PLAIN>
LPT_FN typename lpt_carrier<T>::bits lpt_round(typename lpt_carrier<T>::bits u,
                                               const lpt_cell<T> &c, const lpt_rare<T> &rare,
                                               uint32_t random) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typedef typename C::exponent E;
    const int32_t M = C::mantissa, W = C::width;
    const U inf = (U)(2 * C::bias + 1) << M, nan = inf | (U)1 << (M - 1);

    // 1. sign, exponent, significand: |x| = significand * 2**(unit - bias - M)
    const U sign = u & (U)1 << (W - 1), a = u ^ sign;
    const E field = (E)(a >> M), unit = field > 1 ? field : 1;
    const U significand = (a & (((U)1 << M) - 1)) | (field > 0 ? (U)1 << M : (U)0);
    // an integer converts exactly and brings its exponent along
    const E counted = (E)(lpt_bits((T)(typename C::sbits)significand) >> M) - C::bias - M + 1;
    const E e = !PLAIN && field == 0 ? counted : unit;

    // 2. how many low bits lie below the spacing of the grid here
    const bool below = e < c.emin;
    const U below_emin = (U)(typename C::sbits)((e - c.emin) >> (8 * (int32_t)sizeof(E) - 1));
    const E above = e > c.emax ? e - c.emax : 0;
    E s = below ? c.drop_below + c.emin - unit : c.drop + (e - unit) - above;
    s = s < 0 ? 0 : s > 2 * W - 1 ? 2 * W - 1 : s;
    const bool vanishes = s > M;  // |x| is less than the spacing
    const E kept = s & (W - 1);

    // 3. those bits as a fraction of the spacing, in units of 2**-W, and the last bit kept
    const U high = (significand << 1) << ((W - 1 - s) & (W - 1)), low = significand >> kept;
    const U fraction = s < W ? high : low;
    const U lost = vanishes ? significand : fraction;
    U odd = vanishes ? (U)0 : low & 1;
    if (!PLAIN)
        odd &= (U)(e - c.emin + 1) | rare.by_value;

    // 4. up, in magnitude, or not
    const U half = (U)1 << (W - 1), negative = (U)0 - (sign >> (W - 1));  // all ones or none
    const U tie = PLAIN ? odd : odd | (rare.tie_below & below_emin);
    bool up = false;
    if (MODE == LPT_NEAREST)
        up = (fraction | tie) > half;
    if (MODE == LPT_NEAREST_AWAY)
        up = fraction >= half;
    if (MODE == LPT_NEAREST_UP)
        up = (fraction | (~negative & 1)) > half;
    if (MODE == LPT_UP)
        up = (lost & ~negative) != 0;
    if (MODE == LPT_DOWN)
        up = (lost & negative) != 0;
    if (MODE == LPT_ODD)
        up = (lost & (odd - 1)) != 0;
    if (MODE >= LPT_STOCHASTIC) {
        // Between the largest value and the bound half a spacing above, the odds count to the
        // bound.
        const U below_x = vanishes ? (U)0 : a >> kept << kept;
        const bool last = !PLAIN && below_x == ((sign ? c.limit[1] : c.limit[0]) | rare.no_bound);
        const U part = last ? fraction << 1 : fraction;
        // What the 32 bits that a word sees have no room for only tells a tie from what is above.
        const bool cut = (s >= W) & ((U)(low << kept) != significand);
        const bool more = cut | ((W > 32) & ((U)(part << (32 % W)) != 0));
        up = lpt_drawn<MODE>((uint32_t)(part >> (W - 32)), more, lost != 0, c.odds, random);
        up |= last & (fraction >= half);
    }

    // 5. the multiple of the spacing, as bits: a carry moves on to the next binade by itself
    const U units = a >> kept;
    const U whole = vanishes ? (U)0 : units << kept;
    const U next = vanishes ? c.tiny : (units + 1) << kept;
    U r = up ? next : whole;
    if (!PLAIN) {
        r &= rare.kept_below | ~below_emin;
        r = r == 0 ? rare.least : r;
    }

    // 6. the ends of the format
    const U limit = sign ? c.limit[1] : c.limit[0], over = sign ? c.over[1] : c.over[0];
    const U infinite = sign ? c.inf[1] : c.inf[0];
    r = r > limit ? over : r;
    r = a == inf ? infinite : r;
    r = a > inf ? nan : r;
    if (!PLAIN)
        r = a == 0 ? rare.of_zero : r;

    // 7. the sign
    const U signless = r == 0 ? c.zero_sign : r > inf ? (U)0 : ~(U)0;
    if (PLAIN)
        return r | (sign & signless);
    const U without_sign = (negative & (a - 1)) < (negative & inf) ? c.negative : r;
    return ((r | (sign & signless)) & rare.with_sign) | (without_sign & ~rare.with_sign);
}

// The same of one number.
template <class T, int MODE, bool PLAIN>
LPT_FN typename lpt_carrier<T>::bits lpt_round(typename lpt_carrier<T>::bits u,
                                               const lpt_cell<T> &c, uint32_t random) {
    return lpt_round<T, MODE, PLAIN>(u, c, lpt_make_rare(c), random);
}
