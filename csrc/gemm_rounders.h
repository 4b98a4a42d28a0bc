// Rounders of vectors. Each takes the random words of its numbers, whether it draws or not.
#pragma once
#include "gemm_steps.h"

namespace {

template <class T> struct to_carrier {  // fp32 sums of fp32 numbers are rounded already
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    to_carrier(const lpt_cell<T> &, int) {}
    LPT_STEP V operator()(V x, const uint32_t *) const { return x; }
    static LPT_STEP U half_way(V) { return (U)spread((T)0); }
    static LPT_STEP U faint(V) { return (U)spread((T)0); }
};

// To nearest in formats that are lpt_wide_range_fits: the bits of fp32 cut short, so that
// subnormal numbers and overflow need no care. NaNs have no payload here that a carry could leave.
struct to_wide_range {
    typedef vectors<float>::U U;
    U drop, under_half, keep;
    to_wide_range(const lpt_cell<float> &c, int) {
        for (int l = 0; l < vectors<float>::length; ++l) {
            drop[l] = (uint32_t)c.drop;
            under_half[l] = (1u << (c.drop - 1)) - 1;
            keep[l] = ~((1u << c.drop) - 1);
        }
    }
    LPT_STEP floats operator()(floats x, const uint32_t *) const {
        const U u = (U)x;
        return (floats)((u + under_half + ((u >> drop) & 1)) & keep);
    }
    // where x lies half way between two numbers of the format
    LPT_STEP U half_way(floats x) const { return (U)(((U)x & ~keep) == under_half + 1); }
    // where a product, or what is left of one, may have digits below fp32's smallest
    static LPT_STEP U faint(floats product) {
        return (U)((floats)((U)product & 0x7fffffffu) < spread(lpt_value<float>(27u << 23)));
    }
};

// To nearest in formats that are lpt_added_fits: adding and taking away a number whose spacing is
// the format's at x lets the processor round, ties to even. Sums are in the mode nearest.
template <class T> struct to_nearest {
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    V bottom, top, up, limit, over, exponents, sign, half_digit;
    to_nearest(const lpt_cell<T> &c, int) {
        typedef lpt_carrier<T> C;
        typedef typename C::bits B;
        bottom = spread(lpt_value<T>((B)c.emin << C::mantissa));
        top = spread(lpt_value<T>((B)(c.emax + 1) << C::mantissa));
        up = spread(lpt_value<T>((B)(C::bias + c.drop) << C::mantissa));
        limit = spread(lpt_value<T>(c.limit[0]));
        over = spread(lpt_value<T>(c.over[0]));
        exponents = spread(lpt_value<T>((B)(2 * C::bias + 1) << C::mantissa));
        sign = spread((T)-0.0);
        half_digit = spread(lpt_value<T>((B)(C::bias - C::mantissa - 1) << C::mantissa));
    }
    LPT_STEP V operator()(V x, const uint32_t *) const {
        const U negative = (U)x & (U)sign;
        const V size = (V)((U)x ^ negative);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top), shift = binade * up;
        const V r = (size + shift) - shift;
        return (V)((U)(r > limit ? over : r) | negative);
    }
    LPT_STEP U half_way(V x) const {
        const V size = (V)((U)x & ~(U)sign);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top), shift = binade * up;
        const V rest = ((size + shift) - shift) - size;
        return (U)((V)((U)rest & ~(U)sign) == shift * half_digit);
    }
    static LPT_STEP U faint(V) { return (U)spread((T)0); }  // SUM::fits: none is half way
};

// What R rounds to nearest, in a format without subnormal numbers: below the normal ones half of
// the smallest makes that, and less than half zero; where they are flushed, all is zero.
template <class R> struct no_subnormals : R {
    typedef vectors<float>::U U;
    floats bottom, enough, sign;
    no_subnormals(const lpt_cell<float> &c, int mode) : R(c, mode) {
        const float smallest = lpt_value<float>(c.low), never = lpt_value<float>(0x7f800000u);
        bottom = spread(smallest);
        enough = spread(c.subnormals == LPT_FLUSH ? never : smallest / 2);
        sign = spread(-0.0f);
    }
    LPT_STEP floats operator()(floats x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const floats size = (floats)((U)x ^ minus);
        const floats small = size >= enough ? bottom : spread(0.0f);
        return size < bottom ? (floats)((U)small | minus) : R::operator()(x, words);
    }
};

// To nearest in fixed point that stops at its ends. The number that is added has the format's
// spacing everywhere within them.
template <class T> struct to_fixed {
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    V low, high, shift, half, sign;
    to_fixed(const lpt_cell<T> &c, int) {
        low = spread(-lpt_value<T>(c.limit[1]));
        high = spread(lpt_value<T>(c.limit[0]));
        const T digits = (T)(1ull << lpt_carrier<T>::mantissa), spacing = lpt_value<T>(c.tiny);
        shift = spread((T)1.5 * digits * spacing);
        half = spread(spacing / 2);
        sign = spread((T)-0.0);
    }
    LPT_STEP V held(V x) const { return least(high, most(low, x)); }  // NaN too
    LPT_STEP V operator()(V x, const uint32_t *) const { return (held(x) + shift) - shift; }
    LPT_STEP U half_way(V x) const {
        const V rest = ((held(x) + shift) - shift) - held(x);
        return (U)((V)((U)rest & ~(U)sign) == half);
    }
    static LPT_STEP U faint(V) { return (U)spread((T)0); }  // SUM::fits: none is half way
    static bool fits(const lpt_grid &g) {
        return g.emin == g.emax && g.overflow == LPT_SATURATE && !g.negative_zero && g.zero &&
               g.min < 0 && g.precision <= lpt_carrier<T>::mantissa - 2;
    }
};

// Toward zero, up or down in double, in formats that are lpt_added_fits there: the nearest multiple
// of the spacing, less one where it is beyond x, and one more where magnitudes grow in that
// direction and that is not x.
struct to_side_in_double {
    typedef vectors<double>::U U;
    doubles bottom, top, up, step, limit, over[2], inf[2], exponents, sign;
    U grow[2];
    to_side_in_double(const lpt_cell<double> &c, int mode) {
        bottom = spread(lpt_value<double>((uint64_t)c.emin << 52));
        top = spread(lpt_value<double>((uint64_t)(c.emax + 1) << 52));
        up = spread(lpt_value<double>((uint64_t)(1023 + c.drop) << 52));
        step = spread(lpt_value<double>((uint64_t)(1023 + c.drop - 52) << 52));
        limit = spread(lpt_value<double>(c.limit[0]));
        for (int i = 0; i < 2; ++i) {
            over[i] = spread(lpt_value<double>(c.over[i]));
            inf[i] = spread(lpt_value<double>(c.inf[i]));
            grow[i] = (U)spread(0.0) - (uint64_t)(mode == (i ? LPT_DOWN : LPT_UP));
        }
        exponents = spread(lpt_value<double>(2047ull << 52));
        sign = spread(-0.0);
    }
    LPT_STEP doubles operator()(doubles x, const uint32_t *) const {
        const U minus = (U)x & (U)sign, negative = (U)(minus != 0);
        const doubles size = (doubles)((U)x ^ minus);
        const doubles binade = least(most((doubles)((U)x & (U)exponents), bottom), top);
        const doubles shift = binade * up, spacing = binade * step;
        doubles r = (size + shift) - shift;
        r = r > size ? r - spacing : r;
        r = r < size ? r + (doubles)((U)spacing & (negative ? grow[1] : grow[0])) : r;
        r = r > limit ? (negative ? over[1] : over[0]) : r;
        r = size == exponents ? (negative ? inf[1] : inf[0]) : r;
        return (doubles)((U)r | minus);
    }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Toward zero, up or down in formats that are lpt_wide_range_fits: where the magnitude grows, what
// is added carries into the bits that stay if any of those that go is one.
template <int MODE> struct to_wide_side {
    typedef vectors<float>::U U;
    U below, keep;
    to_wide_side(const lpt_cell<float> &c, int) {
        for (int l = 0; l < vectors<float>::length; ++l) {
            below[l] = (1u << c.drop) - 1;
            keep[l] = ~((1u << c.drop) - 1);
        }
    }
    static LPT_STEP __mmask16 growing(floats x) {
        const __mmask16 negative = _mm512_movepi32_mask((__m512i)x);
        return MODE == LPT_UP ? _knot_mask16(negative) : negative;
    }
    LPT_STEP floats operator()(floats x, const uint32_t *) const {
        const __m512i u = (__m512i)x;
        if (MODE == LPT_TOWARD_ZERO)
            return (floats)((U)u & keep);
        return (floats)((U)_mm512_mask_add_epi32(u, growing(x), u, (__m512i)below) & keep);
    }
};

// The same in formats that are lpt_side_fits. Below the normal numbers of the format the smallest
// of them is added for as long, which gives x their spacing; that sum is rounded to the same side.
template <int MODE> struct to_side : to_wide_side<MODE> {
    typedef vectors<float>::U U;
    floats bottom, limit, beyond, inf, sign;
    to_side(const lpt_cell<float> &c, int mode) : to_wide_side<MODE>(c, mode) {
        bottom = spread(lpt_value<float>((uint32_t)c.emin << 23));
        limit = spread(lpt_value<float>(c.limit[0]));
        beyond = spread(lpt_value<float>(c.inf[0]));
        inf = spread(lpt_value<float>(0x7f800000u));
        sign = spread(-0.0f);
    }
    LPT_STEP floats operator()(floats x, const uint32_t *) const {
        enum {
            upward = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC,
            to_zero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC
        };
        const U minus = (U)x & (U)sign;
        const floats size = (floats)((U)x ^ minus);
        const __mmask16 small = _mm512_cmp_ps_mask(size, bottom, _CMP_LT_OQ);
        const __mmask16 grow = MODE == LPT_TOWARD_ZERO ? 0 : this->growing(x);
        floats r = _mm512_mask_add_round_ps(size, small, size, bottom, to_zero);
        if (MODE != LPT_TOWARD_ZERO) {
            r = _mm512_mask_add_round_ps(r, small & grow, size, bottom, upward);
            r = (floats)_mm512_mask_add_epi32((__m512i)r, grow, (__m512i)r, (__m512i)this->below);
        }
        r = (floats)((U)r & this->keep);
        r = _mm512_mask_sub_ps(r, small, r, bottom);
        const __mmask16 past = _mm512_cmp_ps_mask(r, limit, _CMP_GT_OQ);
        const __mmask16 endless = _mm512_cmp_ps_mask(size, inf, _CMP_EQ_OQ);
        r = _mm512_mask_mov_ps(r, past, limit);
        r = _mm512_mask_mov_ps(r, (past & grow) | endless, beyond);
        return (floats)((U)r | minus);
    }
};
#endif

// Any mode in double: steps as in lptensor/reference.py, x in units of the spacing 2**q, to an
// integer, and back. The words are 32 random bits each. ANY_MODE takes the mode, one without random
// words, when it is made.
enum { ANY_MODE = -1 };
template <int MODE> struct to_grid {
    typedef vectors<double>::U U;
    doubles bottom, top, exponents, sign, units, limit[2], over[2], inf[2];
    doubles per_below;  // one over the spacing below the normal numbers; 0 makes them zeros
    U tie_up;           // there, where zero is the only other number
    uint64_t negative_zero;
    // ANY_MODE: fractions above `level` go up where the sign says so, unless the integer is `never`
    // (odd); those of `level` go up where they are ties and the integer is odd or `always`.
    doubles level;
    U grow[2], never, ties, always;
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
        const bool nearest = mode == LPT_NEAREST || mode == LPT_NEAREST_AWAY;
        level = spread(nearest ? 0.5 : 0.0);
        for (int i = 0; i < 2; ++i)
            grow[i] = all(nearest || mode == LPT_ODD || mode == (i ? LPT_DOWN : LPT_UP));
        never = all(mode == LPT_ODD);
        ties = all(nearest);
        always = all(mode == LPT_NEAREST_AWAY);
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
                     ((U)(part == level) & ties & (odd | always | (below & tie_up)));
            if (MODE == LPT_NEAREST)
                up = (U)(part > half) | ((U)(part == half) & (odd | (below & tie_up)));
            if (MODE == LPT_ODD)
                up = (U)(part > zero) & ~odd;
        }
        if (MODE == LPT_NEAREST_AWAY)
            up = (U)(part >= half);
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

// Stochastic rounding of fp32 numbers, for cells that are `plain` (lean.h): the word is added where
// the digits lie that go, and a carry out of them is the way up. Numbers below the normal ones of
// the format, which lose more digits, are rare in sums, and go one by one.
struct to_drawn_in_fp32 {
    typedef vectors<float>::U U;
    enum { LENGTH = vectors<float>::length };
    lpt_cell<float> cell;
    floats bottom, endless, limit[2], over[2], inf[2];
    U sign, keep, zero_sign;
    to_drawn_in_fp32(const lpt_cell<float> &c, int) : cell(c) {
        bottom = spread(c.flat ? 0.0f : lpt_value<float>((uint32_t)c.emin << 23));
        endless = spread(lpt_value<float>(0x7f800000u));
        for (int i = 0; i < 2; ++i) {
            limit[i] = spread(lpt_value<float>(c.limit[i]));
            over[i] = spread(lpt_value<float>(c.over[i]));
            inf[i] = spread(lpt_value<float>(c.inf[i]));
        }
        sign = (U)spread(-0.0f);
        keep = (U)spread(lpt_value<float>(~((1u << c.drop) - 1)));
        zero_sign = (U)spread(lpt_value<float>(c.zero_sign));
    }
    LPT_SHARED floats one_by_one(floats x, const uint32_t *words) const {
        for (int l = 0; l < LENGTH; ++l)
            x[l] = lpt_value<float>(
                lpt_round<float, LPT_STOCHASTIC, true>(lpt_bits((float)x[l]), cell, words[l]));
        return x;
    }
    LPT_STEP floats operator()(floats x, const uint32_t *words) const {
        const U minus = (U)x & sign, negative = (U)((U)x >= sign);
        const floats size = (floats)((U)x ^ minus);
        if (any_below(size, bottom))
            return one_by_one(x, words);
        const floats r = (floats)(((U)size + (loaded(words) >> (32 - cell.drop))) & keep);
        floats y = r > (negative ? limit[1] : limit[0]) ? (negative ? over[1] : over[0]) : r;
        y = size == endless ? (negative ? inf[1] : inf[0]) : y;
        const U kept = (U)(y != spread(0.0f)) | zero_sign;
        return (floats)((U)y | (minus & kept));
    }
    static bool fits(const lpt_grid &g) { return g.precision >= 2 && g.precision <= 23; }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Stochastic rounding of formats of at most 20 bits in double, for cells that are `plain`: the word
// is added where the digits lie that go, and a carry out of them is the way up (lean.h). Below the
// normal numbers of the format the smallest of them is added for as long, which gives x their
// spacing; what that cuts off is less than 2**-32 of it.
struct to_drawn {
    typedef vectors<double>::U U;
    doubles bottom, exponents, sign, limit[2], over[2], inf[2];
    U keep;
    uint64_t negative_zero;
    __m128i shift;
    to_drawn(const lpt_cell<double> &c, int) {
        bottom = spread(lpt_value<double>((uint64_t)c.emin << 52));
        exponents = spread(lpt_value<double>(2047ull << 52));
        sign = spread(-0.0);
        for (int i = 0; i < 2; ++i) {
            limit[i] = spread(lpt_value<double>(c.limit[i]));
            over[i] = spread(lpt_value<double>(c.over[i]));
            inf[i] = spread(lpt_value<double>(c.inf[i]));
        }
        keep = (U)spread(lpt_value<double>(~((1ull << c.drop) - 1)));
        negative_zero = c.zero_sign;
        shift = _mm_cvtsi32_si128(c.drop - 32);
    }
    LPT_STEP doubles operator()(doubles x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const doubles size = (doubles)((U)x ^ minus), zero = spread(0.0);
        const __mmask8 negative = _mm512_movepi64_mask((__m512i)x);
        const doubles lift =
            _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(size, bottom, _CMP_LT_OQ), bottom);
        const U word = (U)_mm512_sll_epi64(
            _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)words)), shift);
        const doubles lifted = cut_in_double::add(size, lift);
        const doubles r = (doubles)(((U)lifted + word) & keep) - lift;
        const doubles end = _mm512_mask_mov_pd(limit[0], negative, limit[1]);
        doubles y = _mm512_mask_mov_pd(r, _mm512_cmp_pd_mask(r, end, _CMP_GT_OQ),
                                       _mm512_mask_mov_pd(over[0], negative, over[1]));
        y = _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(size, exponents, _CMP_EQ_OQ),
                               _mm512_mask_mov_pd(inf[0], negative, inf[1]));
        const U kept = (U)(y != zero) | negative_zero;
        return (doubles)((U)y | (minus & kept));
    }
    static bool fits(const lpt_grid &g) { return g.precision <= 20; }
};
#endif

}  // namespace
