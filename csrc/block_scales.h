// The scale of a block on the device, and what it makes of an element: powers of two (lpt_blocks)
// and any numbers (lpt_scaled). The same steps as block_loops.h takes on the host.
#pragma once
#include "block.h"
#include "device.h"

// MODE: to nearest and stochastic have code of their own, all else finds its mode at run time.
static constexpr int32_t LPT_ANY = -1;

// Elements in any mode and for any format; not inlined, because it is long, and rare.
template <class T>
LPT_LONG void lpt_round_some(typename lpt_carrier<T>::bits *v, int32_t count, const lpt_cell<T> &c,
                             int32_t mode, const uint32_t *words) {
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i)
        v[i] = lpt_with_mode(mode, [&](auto in) {
            constexpr int MODE = decltype(in)::value;
            return lpt_round<T, MODE, false>(v[i], c, MODE < LPT_STOCHASTIC ? 0 : words[i]);
        });
}

// Stochastically, in a format where all that is beyond the limits becomes the limits. Of four that
// do not vanish, as hardly any do, none asks what becomes of it there.
template <class T, int N>
LPT_METHOD void lpt_draw_some(typename lpt_carrier<T>::bits (&v)[N], int32_t from,
                              const lpt_cell<T> &c, const uint32_t *words) {
    typedef typename lpt_carrier<T>::bits U;
    const U magnitude = ~((U)1 << (lpt_carrier<T>::width - 1)), one = c.no_value == ~(U)0;
    U low = ~(U)0;
#pragma unroll
    for (int j = from; j < from + 4; ++j) {
        const U a = (v[j] & magnitude) - one;  // of zero, all ones
        low = a < low ? a : low;
    }
    if (low >= c.tiny - one) {
#pragma unroll
        for (int j = from; j < from + 4; ++j)
            v[j] = lpt_round_plain<T, LPT_STOCHASTIC, false, LPT_ABOVE>(v[j], c, words[j]);
    } else {
#pragma unroll
        for (int j = from; j < from + 4; ++j)
            v[j] = lpt_round_plain<T, LPT_STOCHASTIC, false, LPT_SATURATES>(v[j], c, words[j]);
    }
}

// The same on the grid of a block: the unshifted cell moved, or one made for it.
template <class T>
LPT_LONG void lpt_round_shifted(typename lpt_carrier<T>::bits *v, int32_t count,
                                const lpt_grid &element, const lpt_rule &rule,
                                const lpt_cell<T> &cell, int32_t shift, bool movable,
                                const uint32_t *words) {
    typedef lpt_carrier<T> C;
    const typename C::bits moved = (typename C::bits)(typename C::sbits)shift << C::mantissa;
    const lpt_cell<T> c =
        movable ? lpt_move<T>(cell, moved) : lpt_make_cell<T>(element, rule, shift);
    lpt_round_some<T>(v, count, c, rule.mode, words);
}

// Magnitudes from `from` to `to` count as zero in the maximum of a block.
template <class T> struct lpt_left_out {
    typedef typename lpt_carrier<T>::bits U;
    U from, to;
    LPT_METHOD U operator()(U u) const {
        const U a = u & ~((U)1 << (lpt_carrier<T>::width - 1));
        return a >= from && a <= to ? (U)0 : a;
    }
};
template <class T> inline lpt_left_out<T> lpt_leave_out(bool infinities, bool nans) {
    typedef lpt_carrier<T> C;
    const typename C::bits inf = (typename C::bits)(2 * C::bias + 1) << C::mantissa;
    const typename C::bits none = ~(typename C::bits)0;
    return {infinities ? inf : none, nans ? none : infinities ? inf : none};
}

// Scales that are powers of two.
template <class T, int MODE_> struct lpt_shifted {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    static constexpr int32_t MODE = MODE_;
    enum { HELD = MODE == LPT_NEAREST ? 32 : 4 };  // rows of a column that a thread keeps
    lpt_blocks b;
    lpt_rule rule;
    lpt_cell<T> cell;
    int32_t low, high;
    lpt_left_out<T> counted;
    U bump;

    // Made once per thread.
    struct tensor {};
    LPT_METHOD tensor whole() const { return {}; }

    LPT_METHOD U empty() const { return 0; }  // what no maximum is made of

    // Made once per block.
    struct scale {
        int32_t shift;
        bool poisoned;
    };
    LPT_METHOD scale of(U largest, const tensor &) const {
        const bool poisoned = largest >= (U)(2 * C::bias + 1) << C::mantissa;
        return {poisoned ? 0 : lpt_shift<T>(b, bump, largest), poisoned};
    }

    template <int N>
    LPT_METHOD void round(U (&v)[N], int32_t count, const scale &s, const uint32_t *words) const {
        const bool movable = s.shift >= low && s.shift <= high;
        const U moved = (U)(typename C::sbits)s.shift << C::mantissa;
        const U nan = (U)(4 * C::bias + 3) << (C::mantissa - 1);
        if (MODE != LPT_ANY && movable) {
            const lpt_cell<T> c = lpt_move<T>(cell, moved);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (j % 4 == 0 && j >= count)
                    break;
                if (MODE == LPT_NEAREST)
                    v[j] = lpt_round_roomy<T, LPT_NEAREST, LPT_SATURATES>(v[j], c, 0);
                else if (j % 4 == 0)
                    lpt_draw_some<T>(v, j, c, words);
            }
#pragma unroll
            for (int j = 0; j < N; ++j)
                v[j] = s.poisoned ? nan : v[j];
            return;
        }
        U some[N];
        for (int j = 0; j < N; ++j)
            some[j] = v[j];
        lpt_round_shifted<T>(some, count, b.element, rule, cell, s.shift, movable, words);
        for (int j = 0; j < N; ++j)
            v[j] = s.poisoned ? nan : some[j];
    }
};

// Elements over the scale s of a block, or times its reciprocal, rounded, and times s. Not inlined,
// as above.
template <class T>
LPT_LONG void lpt_round_divided(typename lpt_carrier<T>::bits *v, int32_t count,
                                typename lpt_carrier<T>::bits s, T reciprocal, bool multiply,
                                const lpt_cell<T> &c, int32_t mode, const uint32_t *words) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i) {
        // Quotients of float64 numbers below this might vanish.
        const U sign = v[i] & (U)1 << (C::width - 1), least = (U)(C::bias - 800) << C::mantissa;
        const bool lifted = C::width == 64 && (v[i] ^ sign) < least && v[i] != sign;
        const T x = lpt_value<T>(lifted ? sign | least : v[i]);
        const U ratio = lpt_bits(multiply ? x * reciprocal : x / lpt_value<T>(s));
        v[i] = s == 0 ? sign : s > inf ? nan : ratio;
    }
    lpt_round_some<T>(v, count, c, mode, words);
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i) {
        const U r = lpt_bits(lpt_value<T>(v[i]) * lpt_value<T>(s));
        v[i] = (r & ~((U)1 << (C::width - 1))) > inf ? nan : r;  // NaN differs between machines
    }
}

// x / s for any x >= 0 and r, the number nearest to 1 / s: r makes a quotient that is off by less
// than two units in the last place, the first correction one that is next to the exact one, and
// the second one, of a remainder that is exact, the nearest (P. Markstein, Computation of
// elementary functions on the IBM RISC System/6000 processor, 1990). Nothing may overflow. Where
// the remainder is below what fp32 has, x / s is off by less than half of itself.
LPT_METHOD float lpt_quotient(float x, float s, float r) {
    const float q = x * r, p = __fmaf_rn(__fmaf_rn(-q, s, x), r, q);
    return __fmaf_rn(__fmaf_rn(-p, s, x), r, p);
}

// Scales that are any number.
template <class T, int MODE_> struct lpt_divided {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    static constexpr int32_t MODE = MODE_;
    enum { HELD = MODE == LPT_NEAREST ? 16 : 4 };
    lpt_scaled b;
    lpt_rule rule;
    lpt_cell<T> cell;
    lpt_cell<float> scales;
    lpt_left_out<T> counted;
    const U *top;  // the largest finite magnitude of the tensor, on the device; or null
    bool near;     // the format has numbers from 2**-16 to 2**30, and all beyond become the limits

    // Made once per thread.
    struct tensor {
        float scale;
    };
    LPT_METHOD tensor whole() const {
        const T largest = top ? lpt_value<T>(*top) : (T)0;
        return {lpt_tensor_scale(b, fitting(largest))};
    }

    LPT_METHOD U empty() const { return 0; }

    // Made once per block. Where it is `quick`, no element is infinite or NaN, and all quotients
    // that do not vanish in the format are far from both ends of fp32.
    struct scale {
        U s;
        T reciprocal;
        bool quick;
    };
    LPT_METHOD scale of(U largest, const tensor &t) const {
        const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
        const float wanted = lpt_block_scale(b, fitting(lpt_value<T>(largest)), t.scale);
        const float one = lpt_round_scale(wanted, scales, lpt_way_of_scales(scales));
        scale made = {lpt_bits((T)lpt_scale_under(one, t.scale)), 0, false};
        if (MODE != LPT_ANY) {
            const U low = (U)(C::bias - 50) << C::mantissa, high = (U)(C::bias + 50) << C::mantissa;
            made.quick =
                near && largest < inf && !b.saturate &&
                (made.s == 0 || (made.s - low < high - low && largest < made.s + (high - low)));
            if (made.quick && made.s == 0)
                return made;
        }
        if (b.reciprocal)
            made.reciprocal = (T)lpt_block_reciprocal(one, t.scale);
        else if (MODE != LPT_ANY)
            made.reciprocal = 1 / lpt_value<T>(made.s);
        made.s = largest < inf ? made.s : nan;
        return made;
    }

    template <int N>
    LPT_METHOD void round(U (&v)[N], int32_t count, const scale &s, const uint32_t *words) const {
        if constexpr (MODE != LPT_ANY) {
            if (s.quick) {
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    if (j % 4 == 0 && j >= count)
                        break;
                    const U sign = v[j] & (U)1 << (C::width - 1);
                    const T x = lpt_value<T>(v[j] ^ sign), t = lpt_value<T>(s.s);
                    const T q = b.reciprocal ? x * s.reciprocal : lpt_quotient(x, t, s.reciprocal);
                    const U u = lpt_bits(q) | sign;
                    const U r = MODE == LPT_NEAREST
                                    ? lpt_round_roomy<T, LPT_NEAREST, LPT_SATURATES>(u, cell, 0)
                                    : lpt_round_plain<T, LPT_STOCHASTIC, false, LPT_SATURATES>(
                                          u, cell, words[j]);
                    v[j] = lpt_bits(lpt_value<T>(r) * t);
                }
                return;
            }
        }
        U some[N];
        for (int j = 0; j < N; ++j)
            some[j] = v[j];
        lpt_round_divided<T>(some, count, s.s, s.reciprocal, b.reciprocal, cell, rule.mode, words);
        for (int j = 0; j < N; ++j)
            v[j] = some[j];
    }

  private:
    static LPT_METHOD float fitting(T largest) {
        const T most = (T)lpt_value<float>(0x7f7fffffu);
        return (float)(largest < most ? largest : most);
    }
};
