// Steps of sums in fixed point of the device's tiles. A sum is held together with a number, `zero`,
// that gives all fp32 numbers about it the format's spacing: then one operation adds and rounds.
// `zero` is an even multiple of the spacing: a sum is odd where what is held is.
#pragma once
#include "gemm_device_steps.h"

// The next term. BY: in a direction or to odd. IN_FP32: the sum is rounded to fp32 first.
template <bool BY, bool IN_FP32> struct lpt_fixed_sum {
    enum { FP32 = IN_FP32 };
    float zero;
    lpt_side_in_fp32 by;
    LPT_METHOD float side(float below, float above) const {  // a sum's sign is that beyond `zero`
        return by.is_below(lpt_bits(below) - lpt_bits(zero)) ? below : above;
    }
    LPT_METHOD float operator()(float a, float b, float s) const {
        if constexpr (FP32) {
            const float x = __fmaf_rn(a, b, __fadd_rn(s, -zero));
            return BY ? side(__fadd_rd(x, zero), __fadd_ru(x, zero)) : __fadd_rn(x, zero);
        } else {
            return BY ? side(__fmaf_rd(a, b, s), __fmaf_ru(a, b, s)) : __fmaf_rn(a, b, s);
        }
    }
    // To an integer, by the same rule: its sign, its last place, and one bit that is always set.
    LPT_METHOD double operator()(double x) const {
        if constexpr (!BY)
            return rint(x);
        const double below = floor(x), half = below / 2;
        const uint32_t odd = half != floor(half), sign = x < 0 ? 0x80000000u : 0;
        return by.is_below(sign | 2 | odd) ? below : ceil(x);
    }
};

// The ends of the format: sums that leave its range stop there. A NaN stays one.
struct lpt_fixed_stop {
    enum { TURNS = 0 };
    float lowest, highest;
    LPT_METHOD float operator()(float t) const {
        return lpt_greater(lpt_lesser(t, highest), lowest);
    }
    static LPT_METHOD uint32_t moved(float) { return 0; }
};
// They come in again at the other end, as the lower digits of what is held, unless that has come to
// another exponent: then it has another spacing, or is infinite or NaN.
struct lpt_fixed_turn {
    enum { TURNS = 1 };
    uint32_t base, digits;      // of the lowest sum, and those that change
    double spacing, per, turn;  // per = 1 / spacing; the range in units of it
    LPT_METHOD float operator()(float t) const {
        return lpt_value<float>((lpt_bits(t) & digits) | base);
    }
    LPT_METHOD uint32_t moved(float t) const { return lpt_bits(t) ^ base; }
    static LPT_METHOD bool outside(uint32_t moved) { return moved >> 23 != 0; }
};

// One level of an accumulator.
template <class SUM, class END> struct lpt_fixed_level {
    SUM sum;
    END end;

    // In double.
    static LPT_LONG float again(const lpt_fixed_level &at, float a, float b, float s) {
        const double zero = at.sum.zero, x = lpt_odd_sum((double)s - zero, (double)a * (double)b);
        const double steps = at.sum((SUM::FP32 ? (double)(float)x : x) * at.end.per);
        return (float)(lpt_wrapped(steps, at.end.turn) * at.end.spacing + zero);
    }
    // What the next term makes of s, given their sum.
    LPT_METHOD float operator()(float a, float b, float s, float next) const {
        if constexpr (END::TURNS)
            if (END::outside(end.moved(next)))
                return again(*this, a, b, s);
        return end(next);
    }
    LPT_METHOD float operator()(float a, float b, float s) const {
        return (*this)(a, b, s, sum(a, b, s));
    }

    // The same of all sums of a thread, of which hardly ever one is outside.
    struct terms {
        float a[LPT_EACH][LPT_EACH], b[LPT_EACH][LPT_EACH];
        float s[LPT_EACH][LPT_EACH], next[LPT_EACH][LPT_EACH];
    };
    static LPT_LONG void each(const lpt_fixed_level &at, terms *t) {
#pragma unroll 1
        for (int i = 0; i < LPT_EACH * LPT_EACH; ++i)
            t->next[0][i] = at(t->a[0][i], t->b[0][i], t->s[0][i], t->next[0][i]);
    }
    template <class A, class B>
    LPT_METHOD void all(const A &a, const B &b, float (&s)[LPT_EACH][LPT_EACH]) const {
        float next[LPT_EACH][LPT_EACH];
        uint32_t moved = 0;
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                next[i][j] = sum(a(i, j), b(i, j), s[i][j]);
                if constexpr (END::TURNS)
                    moved |= end.moved(next[i][j]);
            }
        if constexpr (END::TURNS)
            if (END::outside(moved)) {
                terms t;
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; ++j) {
                        t.a[i][j] = a(i, j), t.b[i][j] = b(i, j);
                        t.s[i][j] = s[i][j], t.next[i][j] = next[i][j];
                    }
                each(*this, &t);
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; ++j)
                        s[i][j] = t.next[i][j];
                return;
            }
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j)
                s[i][j] = end(next[i][j]);
    }
};

// In order, or chunk by chunk.
template <class SUM, class END, bool CHUNKED> struct lpt_fixed_steps : lpt_tile_steps {
    enum { AT_ONCE = CHUNKED ? 2 : 3 };
    lpt_fixed_level<SUM, END> inner, outer;
    int32_t chunk;

    struct sums {
        float s[LPT_EACH][LPT_EACH], part[LPT_EACH][LPT_EACH];
        int32_t to_come;  // terms that the chunk still takes
    };
    LPT_METHOD void begin(sums &t, stack &, const lpt_product &, int64_t) const {
        t.to_come = chunk;
    }
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        t.s[i][j] = c ? outer(*c, 1.0f, outer.sum.zero) : outer.sum.zero;
        t.part[i][j] = CHUNKED ? inner.sum.zero : t.s[i][j];
    }
    LPT_METHOD float of_chunk(const sums &t, int i, int j) const {
        return __fadd_rn(t.part[i][j], -inner.sum.zero);
    }
    LPT_METHOD void term(sums &t, const lpt_four<float> &x, const lpt_four<float> &y) const {
        inner.all([&](int i, int) { return x.v[i]; }, [&](int, int j) { return y.v[j]; }, t.part);
        if (!CHUNKED || --t.to_come)
            return;
        t.to_come = chunk;
        outer.all([&](int i, int j) { return of_chunk(t, i, j); }, [](int, int) { return 1.0f; },
                  t.s);
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j)
                t.part[i][j] = inner.sum.zero;
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        lpt_each_term<CHUNKED ? 2 : 4>(
            rows, columns, depth,
            [&](const lpt_four<float> &x, const lpt_four<float> &y) { term(t, x, y); });
    }
    LPT_METHOD float end(const sums &t, int i, int j) const {
        float s = CHUNKED ? t.s[i][j] : t.part[i][j];
        if (CHUNKED && t.to_come < chunk)
            s = outer(of_chunk(t, i, j), 1.0f, s);
        return __fadd_rn(s, -outer.sum.zero);
    }
};

// A step of a drawn sum. It is `open` where what lies above the number below, and the word, come to
// the last steps before one: fp32 has not all their digits.
template <bool IN_FP32, class END> struct lpt_fixed_drawn_step {
    enum { AS_IT_IS = 0, FP32 = IN_FP32, OPEN = 1 };
    float zero, spacing;
    END end;
    LPT_METHOD float held(float x) const { return __fadd_rn(x, zero); }
    LPT_METHOD float value(float s) const { return __fadd_rn(s, -zero); }
    LPT_METHOD float operator()(float a, float b, float s, uint32_t word, bool &open) const {
        float below, rest;
        if constexpr (FP32) {
            const float x = __fmaf_rn(a, b, value(s));
            below = __fadd_rd(x, zero);
            rest = __fadd_rz(x, -value(below));
        } else {
            below = __fmaf_rd(a, b, s);
            rest = __fmaf_rz(a, b, __fadd_rn(s, -below));
        }
        // Magnitudes are drawn: a word takes a negative sum down.
        const uint32_t upward = lpt_bits(below) < lpt_bits(zero) ? ~word : word;
        const float odds = lpt_value<float>(lpt_bits(spacing) | upward >> 9);
        const float both = __fadd_rz(rest, odds);
        const uint32_t digits = 0x7fffffu;
        open |= ((lpt_bits(both) & digits) | (end.moved(below) & ~digits)) >= digits - 1;
        return end(__fadd_rn(below, both >= 2 * spacing ? spacing : 0.0f));
    }
};

// The ends, and what is held of zero.
inline double lpt_fixed_spacing(const lpt_grid &g) { return ldexp(1.0, g.emin - g.precision + 1); }
inline float lpt_make_end(const lpt_accumulator &a, lpt_fixed_stop *end) {
    const double zero = 1.5 * 0x1p23 * lpt_fixed_spacing(a.sum);
    *end = {(float)(zero + a.sum.min), (float)(zero + a.sum.max)};
    return (float)zero;
}
inline float lpt_make_end(const lpt_accumulator &a, lpt_fixed_turn *end) {
    const double spacing = lpt_fixed_spacing(a.sum), turn = a.turn / spacing, room = 0x1p22;
    const double lowest = 2 * room + (turn < room ? room - turn : 0);
    *end = {lpt_bits((float)(lowest * spacing)), (uint32_t)turn - 1, spacing, 1 / spacing, turn};
    return (float)((lowest + turn / 2) * spacing);
}
template <class SUM, class END>
void lpt_make_fixed(const lpt_accumulator &a, lpt_fixed_level<SUM, END> *to) {
    to->sum.zero = lpt_make_end(a, &to->end);
    lpt_make_sum(a.mode, &to->sum.by);
}
template <bool FP32, class END>
void lpt_make_fixed(const lpt_accumulator &a, lpt_fixed_drawn_step<FP32, END> *to) {
    to->zero = lpt_make_end(a, &to->end);
    to->spacing = (float)lpt_fixed_spacing(a.sum);
}
