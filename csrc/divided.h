// The loops over elements whose blocks have any number for a scale, part of round.cpp.
#pragma once
#include "shifted.h"

namespace {

// Scales that are any number: the quotients, rounded by the loops of the scalar formats, times the
// scale.
template <class T> class divided final : public block_rounding<T> {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum { PIECE = 2048 };
    const lpt_scaled b;
    const lpt_rule &rule;
    const lpt_cell<T> cell;
    const lpt_cell<float> scales;
    const float whole;
    // Whether quotients are rounded as they are made, where scales are usual.
    const bool at_once;
    random_words random;

  public:
    LPT_APART divided(const lpt_scaled &blocks, const lpt_rule &r, float tensor_scale)
        : b(blocks), rule(r), cell(lpt_make_cell<T>(b.element, r, 0)),
          scales(lpt_make_cell<float>(b.scale, {LPT_NEAREST, 32, 0, 0, {0, 0}}, 0)),
          whole(tensor_scale), at_once(C::width == 32 && cell.roomy &&
                                       (r.mode == LPT_NEAREST || r.mode == LPT_STOCHASTIC)),
          random(r) {}

    bool scale(U *s, U *t, int64_t count) const override {
        switch (lpt_way_of_scales(scales)) {
        case LPT_SCALE_FP32: return scale_in<LPT_SCALE_FP32>(s, t, count);
        case LPT_SCALE_ROOMY: return scale_in<LPT_SCALE_ROOMY>(s, t, count);
        case LPT_SCALE_ANY: break;
        }
        return scale_in<LPT_SCALE_ANY>(s, t, count);
    }

    double factor(U s) const override { return lpt_value<T>(s); }

    void within(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t) override {
        steps<0>(x, y, first, last, s, t);
    }

    void across(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t,
                bool usual) override {
        if (!usual || !at_once)
            return steps<1>(x, y, first, last, s, t);
        rounded<1>(x, y, first, last, last - first, s, t);
    }

    void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t,
               bool usual, bool) override {
        if (usual && at_once)
            return rounded<0>(x, y, at, end, wide, s, t);
        if (end - at > PIECE)
            return steps<0>(x, y, at, end, s, t);  // batches this long are one block
        const bool sixteens = wide == 16 && (end - at) % 16 == 0;
        if (sixteens)
            divide_sixteens(x + at, y + at, (end - at) / 16, s, t);
        else
            for (int64_t i = at, k = 0; i < end; i += wide, ++k)
                divide<0>(x + i, y + i, i + wide < end ? wide : end - i, s + k, t + k);
        run_cell(y, y, at, end, cell, rule, false);
        if (sixteens)
            multiply_sixteens(y + at, (end - at) / 16, s);
        else
            for (int64_t i = at, k = 0; i < end; i += wide, ++k)
                multiply<0>(y + i, i + wide < end ? wide : end - i, s + k);
    }

  private:
    // The blocks of at .. end, whose scales are usual. Those of a block's elements lie STEP apart.
    template <int STEP>
    void rounded(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t) {
        rule.mode == LPT_NEAREST ? rounded_in<LPT_NEAREST, STEP>(x, y, at, end, wide, s, t)
                                 : rounded_in<LPT_STOCHASTIC, STEP>(x, y, at, end, wide, s, t);
    }
    template <int MODE, int STEP>
    LPT_APART void rounded_in(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s,
                              const U *t) {
        const lpt_cell<T> c = cell;  // a local copy: y may not alias it
        const bool multiply = b.reciprocal != 0;
        const T endless = lpt_value<T>((U)(2 * C::bias + 1) << C::mantissa);
        for (; at < end; at += wide, ++s, ++t) {
            const U only = *s, inverse = *t;
            const int64_t stop = at + wide < end ? at + wide : end;
            for (int64_t from = at; from < stop;) {
                const bool all = MODE < LPT_STOCHASTIC || stop - from <= LPT_DRAWN;
                const int64_t to = all ? stop : from + LPT_DRAWN;
                const uint32_t *words = MODE < LPT_STOCHASTIC ? nullptr : random.of(from, to);
                const U *const each_s = s + (from - at), *const each_t = t + (from - at);
                const auto some = [=](int64_t count) {
                    LPT_INDEPENDENT
                    for (int64_t i = 0; i < count; ++i) {
                        const U one = STEP ? each_s[i] : only, other = STEP ? each_t[i] : inverse;
                        const T scale = lpt_value<T>(one);  // under a scale of zero all is zero
                        const T q = multiply ? x[from + i] * (one ? lpt_value<T>(other) : (T)0)
                                             : x[from + i] / (one ? scale : endless);
                        const U r = lpt_round_roomy<T, MODE, LPT_SATURATES>(
                            lpt_bits(q), c, MODE < LPT_STOCHASTIC ? 0 : words[i]);
                        y[from + i] = lpt_value<T>(r) * scale;
                    }
                };
                to - from == 16 ? some(16) : some(to - from);
                from = to;
            }
        }
    }
    // Elements whose scales lie STEP apart.
    template <int STEP>
    void steps(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t) {
        for (int64_t at = first; at < last; at += PIECE) {
            const int64_t end = at + PIECE < last ? at + PIECE : last, k = STEP * (at - first);
            divide<STEP>(x + at, y + at, end - at, s + k, t + k);
            run_cell(y, y, at, end, cell, rule, false);
            multiply<STEP>(y + at, end - at, s + k);
        }
    }
    // Whether all are finite, and none is zero where there may be an infinity.
    template <lpt_scale_way WAY> LPT_APART bool scale_in(U *s, U *t, int64_t count) const {
        const U nan = (U)(4 * C::bias + 3) << (C::mantissa - 1);
        const U inf = (U)(2 * C::bias + 1) << C::mantissa;
        const T most = (T)lpt_value<float>(0x7f7fffffu);
        const lpt_scaled blocks = b;  // local copies: s and t may not alias them
        const lpt_cell<float> grid = scales;
        const float tensor = whole;
        const U zero = b.saturate ? (U)0 : nan;
        U any = 0;
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const T largest = lpt_value<T>(s[i]), finite = largest < most ? largest : most;
            const float wanted = lpt_block_scale(blocks, (float)finite, tensor);
            const float one = lpt_round_scale(wanted, grid, WAY);
            s[i] = s[i] < inf ? lpt_bits((T)lpt_scale_under(one, tensor)) : nan;
            t[i] = lpt_bits((T)lpt_block_reciprocal(one, tensor));
            any |= s[i] == zero || s[i] >= inf ? (U)1 : (U)0;
        }
        return any == 0;
    }
    LPT_APART void divide_sixteens(const T *x, T *y, int64_t count, const U *s, const U *t) const {
        for (int64_t k = 0; k < count; ++k)
            divide<0>(x + 16 * k, y + 16 * k, 16, s + k, t + k);
    }
    LPT_APART void multiply_sixteens(T *y, int64_t count, const U *s) const {
        for (int64_t k = 0; k < count; ++k)
            multiply<0>(y + 16 * k, 16, s + k);
    }
    template <int STEP>
    LPT_APART void divide(const T *x, T *y, int64_t count, const U *s, const U *t) const {
        const U first = *s, second = *t;
        if (b.reciprocal) {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const U u = kept(lpt_bits(x[i])), scale = STEP ? s[i] : first;
                y[i] = quotient(u, lpt_value<T>(u) * lpt_value<T>(STEP ? t[i] : second), scale);
            }
        } else {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const U u = kept(lpt_bits(x[i])), scale = STEP ? s[i] : first;
                y[i] = quotient(u, lpt_value<T>(u) / lpt_value<T>(scale), scale);
            }
        }
    }
    // Infinity times zero differs between machines: results have one NaN.
    template <int STEP> LPT_APART void multiply(T *y, int64_t count, const U *s) const {
        const U first = *s, nan = (U)(4 * C::bias + 3) << (C::mantissa - 1);
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const T r = y[i] * lpt_value<T>(STEP ? s[i] : first);
            y[i] = r == r ? r : lpt_value<T>(nan);
        }
    }
    // Quotients of float64 numbers below this might vanish.
    static U kept(U u) {
        const U sign = u & (U)1 << (C::width - 1), least = (U)(C::bias - 800) << C::mantissa;
        return C::width == 64 && (u ^ sign) < least && u != sign ? sign | least : u;
    }
    // Under a scale of zero all is zero; under NaN, NaN.
    static T quotient(U u, T q, U scale) {
        const U zero = u & (U)1 << (C::width - 1);
        return lpt_value<T>(scale == 0                                    ? zero
                            : scale > (U)(2 * C::bias + 1) << C::mantissa ? scale
                                                                          : lpt_bits(q));
    }
};

}  // namespace
