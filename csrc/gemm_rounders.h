// Rounders of vectors. Each takes the random words of its numbers, whether it draws or not.
#pragma once
#include "gemm_steps.h"

namespace {

template <class T> struct to_carrier {  // fp32 sums of fp32 numbers are rounded already
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    to_carrier(const lpt_cell<T> &, int) {}
    LPT_STEP V operator()(V x, const uint32_t *) const { return x; }
    static LPT_STEP U doubtful(V) { return (U)spread((T)0); }
    static LPT_STEP U faint(V, V, V) { return (U)spread((T)0); }
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
    // where x does not tell how what it was rounded from is rounded (one_more): here half way
    LPT_STEP U doubtful(floats x) const { return (U)(((U)x & ~keep) == under_half + 1); }
    static LPT_STEP U faint(floats p, floats x, floats y) { return faint_product(p, x, y); }
};

// The same in the other modes.
template <int MODE> struct to_wide_range_by {
    typedef vectors<float>::U U;
    U below, keep, half;
    to_wide_range_by(const lpt_cell<float> &c, int) {
        for (int l = 0; l < vectors<float>::length; ++l) {
            below[l] = (1u << c.drop) - 1;
            keep[l] = ~((1u << c.drop) - 1);
            half[l] = 1u << (c.drop - 1);
        }
    }
    LPT_STEP floats operator()(floats x, const uint32_t *) const {
        const U u = (U)x, negative = 0 - (u >> 31);  // all ones or none
        if (MODE == LPT_NEAREST_AWAY)
            return (floats)((u + half) & keep);
        if (MODE == LPT_NEAREST_UP)
            return (floats)((u + half + negative) & keep);
        if (MODE == LPT_ODD)
            return (floats)((u & keep) | ((U)((u & below) != 0) & (below + 1)));
        const U more = MODE == LPT_UP ? below & ~negative : below & negative;
        return (floats)((MODE == LPT_TOWARD_ZERO ? u : u + more) & keep);
    }
    LPT_STEP U doubtful(floats x) const {
        const U rest = (U)x & below;
        return lpt_to_nearest(MODE) ? (U)(rest == half) : (U)(rest == 0);
    }
    static LPT_STEP U faint(floats p, floats x, floats y) {
        return lpt_to_nearest(MODE) ? faint_product(p, x, y) : faint_unless_zero(p, x, y);
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
    LPT_STEP U doubtful(V x) const {
        const V size = (V)((U)x & ~(U)sign);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top), shift = binade * up;
        const V rest = ((size + shift) - shift) - size;
        return (U)((V)((U)rest & ~(U)sign) == shift * half_digit);
    }
    static LPT_STEP U faint(V, V, V) { return (U)spread((T)0); }  // SUM::fits: none is half way
};

// The same in the other modes: the nearest multiple of the spacing, or the one beside it.
template <class T, int MODE> struct to_added_by {
    typedef typename vectors<T>::V V;
    typedef typename vectors<T>::U U;
    V bottom, top, up, step, limit, over[2], inf[2], exponents, sign;
    to_added_by(const lpt_cell<T> &c, int) {
        typedef lpt_carrier<T> C;
        typedef typename C::bits B;
        bottom = spread(lpt_value<T>((B)c.emin << C::mantissa));
        top = spread(lpt_value<T>((B)(c.emax + 1) << C::mantissa));
        up = spread(lpt_value<T>((B)(C::bias + c.drop) << C::mantissa));
        step = spread(lpt_value<T>((B)(C::bias + c.drop - C::mantissa) << C::mantissa));
        limit = spread(lpt_value<T>(c.limit[0]));
        for (int i = 0; i < 2; ++i) {
            over[i] = spread(lpt_value<T>(c.over[i]));
            inf[i] = spread(lpt_value<T>(c.inf[i]));
        }
        exponents = spread(lpt_value<T>((B)(2 * C::bias + 1) << C::mantissa));
        sign = spread((T)-0.0);
    }
    LPT_STEP V operator()(V x, const uint32_t *) const {
        const U minus = (U)x & (U)sign, negative = (U)(minus != 0);
        const V size = (V)((U)x ^ minus);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top);
        const V shift = binade * up, spacing = binade * step, sum = size + shift;
        V r = sum - shift;
        if (MODE == LPT_NEAREST_AWAY)
            r = size - r == spacing * (T)0.5 ? r + spacing : r;
        if (MODE == LPT_NEAREST_UP) {
            const V apart = (V)((U)spacing | minus);
            r = size - r == apart * (T)0.5 ? r + apart : r;
        }
        if (MODE == LPT_ODD) {  // the last place of the sum is that of r
            const U even = ((U)sum & 1) - 1, inexact = (U)(r != size);
            const V other = r < size ? spacing : -spacing;
            r = r + (V)((U)other & even & inexact);
        }
        if (MODE == LPT_TOWARD_ZERO || MODE == LPT_UP || MODE == LPT_DOWN)
            r = r > size ? r - spacing : r;
        if (MODE == LPT_UP || MODE == LPT_DOWN) {
            const U grow = MODE == LPT_UP ? ~negative : negative;
            r = r < size ? r + (V)((U)spacing & grow) : r;
        }
        r = r > limit ? (negative ? over[1] : over[0]) : r;
        r = size == exponents ? (negative ? inf[1] : inf[0]) : r;
        return (V)((U)r | minus);
    }
    LPT_STEP U doubtful(V x) const {
        const V size = (V)((U)x & ~(U)sign);
        const V binade = least(most((V)((U)x & (U)exponents), bottom), top), shift = binade * up;
        const V r = (size + shift) - shift;
        const V rest = lpt_to_nearest(MODE) ? (V)((U)(r - size) & ~(U)sign) : r;
        return lpt_to_nearest(MODE) ? (U)(rest == binade * step * (T)0.5) : (U)(rest == size);
    }
    static LPT_STEP U faint(V p, V x, V y) {
        return lpt_to_nearest(MODE) ? (U)spread((T)0) : faint_unless_zero(p, x, y);
    }
};

// What R rounds to nearest, in a format without subnormal numbers: below the normal ones half of
// the smallest makes that, and less than half zero; where they are flushed, all is zero.
template <class R> struct no_subnormals : R {
    typedef vectors<float>::U U;
    floats bottom, enough, least, sign;  // what is least of those that become no zero
    no_subnormals(const lpt_cell<float> &c, int mode) : R(c, mode) {
        const float smallest = lpt_value<float>(c.low), never = lpt_value<float>(0x7f800000u);
        bottom = spread(smallest);
        enough = spread(c.subnormals == LPT_FLUSH ? never : smallest / 2);
        least = c.subnormals == LPT_FLUSH ? bottom : enough;
        sign = spread(-0.0f);
    }
    LPT_STEP floats operator()(floats x, const uint32_t *words) const {
        const U minus = (U)x & (U)sign;
        const floats size = (floats)((U)x ^ minus);
        const floats small = size >= enough ? bottom : spread(0.0f);
        return size < bottom ? (floats)((U)small | minus) : R::operator()(x, words);
    }
    LPT_STEP U doubtful(floats x) const {
        const floats size = (floats)((U)x & ~(U)sign);
        return R::doubtful(x) | (U)(size == least);
    }
    static LPT_STEP U faint(floats p, floats x, floats y) { return faint_unless_zero(p, x, y); }
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
    LPT_STEP U doubtful(V x) const {
        const V rest = ((held(x) + shift) - shift) - held(x);
        return (U)((V)((U)rest & ~(U)sign) == half);
    }
    static LPT_STEP U faint(V, V, V) { return (U)spread((T)0); }  // SUM::fits: none is half way
    static bool fits(const lpt_grid &g) { return lpt_fixed_fits<T>(g); }
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

}  // namespace
