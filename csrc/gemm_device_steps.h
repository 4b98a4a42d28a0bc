// What a thread of a device does with the outputs that it holds while k ascends, in each order:
// sums in fp32 alone, chunk by chunk, with compensation, in pairs or with random words, and what is
// cut off below the largest exponent.
#pragma once
#include "gemm_device_rounders.h"
#include "gemm_element.h"

enum { LPT_SIDE = 64, LPT_DEPTH = 16, LPT_EACH = 4 };
// Sums in pairs that may wait: enough for less than 2**20 terms.
enum { LPT_WAITING = 19 };

// Sums. Each is what a rounder gets: rounded to fp32 once, or to odd, which it cannot tell from
// exact.
struct lpt_in_fp32 {
    static LPT_METHOD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static LPT_METHOD float mul(float a, float b) { return __fmul_rn(a, b); }
    static LPT_METHOD float add(float a, float b) { return __fadd_rn(a, b); }
};

// Of the neighbours below and above, which are one where the sum is exact, the one whose last bit
// is set; where neither is, that above, so that an exact zero is +0. For formats that are
// lpt_odd_fits.
struct lpt_odd_in_fp32 {
    static LPT_METHOD float odd(float below, float above) {
#if defined(__CUDA_ARCH__)
        float r;  // with the test that the logical operation makes by itself, not one more
        asm("{.reg .pred odd; .reg .b32 last; and.b32 last, %1, 1; setp.ne.u32 odd, last, 0;"
            " selp.f32 %0, %1, %2, odd;}"
            : "=f"(r)
            : "f"(below), "f"(above));
        return r;
#else
        return lpt_bits(below) & 1 ? below : above;
#endif
    }
    static LPT_METHOD float fma(float a, float b, float c) {
        return odd(__fmaf_rd(a, b, c), __fmaf_ru(a, b, c));
    }
    static LPT_METHOD float mul(float a, float b) { return odd(__fmul_rd(a, b), __fmul_ru(a, b)); }
    static LPT_METHOD float add(float a, float b) { return odd(__fadd_rd(a, b), __fadd_ru(a, b)); }
};

// Fp32 itself toward zero, up, down or to odd: of the same neighbours that below where its bits
// under `mask` are not `other`. An exact zero is +0 in all modes, unless both terms are -0.
struct lpt_side_in_fp32 {
    uint32_t mask, other;
    LPT_METHOD bool is_below(uint32_t bits) const { return ((bits & mask) ^ other) != 0; }
    LPT_METHOD float side(float below, float above) const {
        return is_below(lpt_bits(below)) ? below : above;
    }
    LPT_METHOD float fma(float a, float b, float c) const {
        return side(__fmaf_rd(a, b, c), __fmaf_ru(a, b, c));
    }
    LPT_METHOD float mul(float a, float b) const { return side(__fmul_rd(a, b), __fmul_ru(a, b)); }
    LPT_METHOD float add(float a, float b) const { return side(__fadd_rd(a, b), __fadd_ru(a, b)); }
};

template <class SUM> void lpt_make_sum(int32_t, SUM *) {}
inline void lpt_make_sum(int32_t mode, lpt_side_in_fp32 *s) {
    const uint32_t sign = 0x80000000u;
    switch (mode) {
    case LPT_UP: *s = {0, 0}; break;
    case LPT_DOWN: *s = {~0u, sign}; break;  // unless that below is -0
    case LPT_ODD: *s = {1, 0}; break;
    default: *s = {sign, sign};  // toward zero
    }
}

// Toward zero, where the digits that are left away tell hardly ever which number is drawn.
struct lpt_cut_in_fp32 {
    static LPT_METHOD float fma(float a, float b, float c) { return __fmaf_rz(a, b, c); }
};

template <class A, class B> struct lpt_same {
    enum { yes = 0 };
};
template <class A> struct lpt_same<A, A> {
    enum { yes = 1 };
};

template <class N> struct alignas(16) lpt_four {
    N v[4];
};
template <class N> struct lpt_operands_of {
    typedef lpt_four<N> type[LPT_SIDE / 4 + 1];  // of one k
};
typedef lpt_operands_of<float>::type lpt_operands;

// What most steps have in common: AHEAD terms stand before the first, DEPTH lie in shared memory
// at most, as NUMBERs.
struct lpt_tile_steps {
    enum { AHEAD = 0, DEPTH = LPT_DEPTH };
    typedef float number;
    typedef lpt_none stack;
    LPT_METHOD int32_t depth() const { return DEPTH; }
};

// step(numbers of four rows, numbers of four columns) for each k.
template <int UNROLL, class Step>
LPT_METHOD void lpt_each_term(const lpt_operands *rows, const lpt_operands *columns, int32_t depth,
                              const Step &step) {
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
#pragma unroll(UNROLL)
    for (int k = 0; k < depth; ++k)
        step(rows[k][down], columns[k][across]);
}

// Steps of sums in order: what a thread holds of its outputs while k ascends, and what becomes of
// it. OUTER rounds sums of chunks; without chunks there is none. Where INNER is fp32's own
// rounding, the steps inside are fused multiply-adds of fp32, whatever SUM is outside.
template <class SUM, class PRODUCT, class INNER, class OUTER> struct lpt_steps : lpt_tile_steps {
    enum { FUSED = lpt_same<PRODUCT, lpt_none>::yes, CHUNKED = !lpt_same<OUTER, lpt_none>::yes };
    // Thread blocks on a multiprocessor: with more in view the compiler spills to fit them.
    enum { AT_ONCE = CHUNKED || lpt_same<SUM, lpt_side_in_fp32>::yes ? 2 : 3 };
    SUM sum;
    PRODUCT product;
    INNER inner;
    OUTER outer;
    int32_t chunk;

    struct sums {
        float s[LPT_EACH][LPT_EACH], part[LPT_EACH][LPT_EACH];
        int32_t to_come;  // terms that the chunk still takes
    };
    LPT_METHOD void begin(sums &t, stack &, const lpt_product &, int64_t) const {
        t.to_come = chunk;
    }
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        t.s[i][j] = 0;
        if (c) {
            if constexpr (CHUNKED)
                t.s[i][j] = outer(*c);
            else
                t.s[i][j] = inner(*c);
        }
        t.part[i][j] = CHUNKED ? 0 : t.s[i][j];
    }
    // The next term of two sums.
    LPT_METHOD void step(float a, float b0, float b1, float &s0, float &s1) const {
        if constexpr (lpt_same<INNER, lpt_carrier_rounder>::yes) {
            s0 = lpt_in_fp32::fma(a, b0, s0), s1 = lpt_in_fp32::fma(a, b1, s1);
        } else {
            if constexpr (FUSED) {
                s0 = sum.fma(a, b0, s0), s1 = sum.fma(a, b1, s1);
            } else {
                float p0 = sum.mul(a, b0), p1 = sum.mul(a, b1);
                lpt_round_both(product, p0, p1);
                s0 = sum.add(s0, p0), s1 = sum.add(s1, p1);
            }
            lpt_round_both(inner, s0, s1);
        }
    }
    LPT_METHOD float fold(float s, float part) const {
        if constexpr (CHUNKED)
            return outer(sum.add(s, part));
        else
            return part;
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        // Two where chunks are added up: with four, some devices spill.
        lpt_each_term<CHUNKED ? 2 : 4>(
            rows, columns, depth, [&](const lpt_four<float> &x, const lpt_four<float> &y) {
                const bool over = CHUNKED && --t.to_come == 0;
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; j += 2)
                        step(x.v[i], y.v[j], y.v[j + 1], t.part[i][j], t.part[i][j + 1]);
                if (!over)
                    return;
                t.to_come = chunk;
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; ++j) {
                        t.s[i][j] = fold(t.s[i][j], t.part[i][j]);
                        t.part[i][j] = 0;
                    }
            });
    }
    LPT_METHOD float end(const sums &t, int i, int j) const {
        const bool rest = !CHUNKED || t.to_come < chunk;
        return rest ? fold(t.s[i][j], t.part[i][j]) : t.s[i][j];
    }
};

// Kahan's, with the error of each sum beside it.
template <class SUM, class ROUND> struct lpt_kahan_steps : lpt_tile_steps {
    enum { AT_ONCE = 2 };
    SUM sum;
    ROUND round;

    struct sums {
        float s[LPT_EACH][LPT_EACH], error[LPT_EACH][LPT_EACH];
    };
    LPT_METHOD void begin(sums &, stack &, const lpt_product &, int64_t) const {}
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        t.s[i][j] = c ? round(*c) : 0.0f;
        t.error[i][j] = 0;
    }
    // The next term of two sums.
    LPT_METHOD void step(float a, float b0, float b1, float &s0, float &s1, float &e0,
                         float &e1) const {
        float y0 = sum.fma(a, b0, -e0), y1 = sum.fma(a, b1, -e1);
        lpt_round_both(round, y0, y1);
        float t0 = sum.add(s0, y0), t1 = sum.add(s1, y1);
        lpt_round_both(round, t0, t1);
        float grown0 = sum.add(t0, -s0), grown1 = sum.add(t1, -s1);
        lpt_round_both(round, grown0, grown1);
        e0 = sum.add(grown0, -y0), e1 = sum.add(grown1, -y1);
        lpt_round_both(round, e0, e1);
        s0 = t0, s1 = t1;
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        lpt_each_term<1>(rows, columns, depth,
                         [&](const lpt_four<float> &x, const lpt_four<float> &y) {
#pragma unroll
                             for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                 for (int j = 0; j < LPT_EACH; j += 2)
                                     step(x.v[i], y.v[j], y.v[j + 1], t.s[i][j], t.s[i][j + 1],
                                          t.error[i][j], t.error[i][j + 1]);
                         });
    }
    LPT_METHOD float end(const sums &t, int i, int j) const { return t.s[i][j]; }
};

// Sums of 1, 2, 4 ... terms wait on a stack, one for each bit of the number of terms, but for the
// lowest, which are at hand.
template <class SUM, class ROUND> struct lpt_pairwise_steps : lpt_tile_steps {
    enum { AT_ONCE = 2 };
    SUM sum;
    ROUND round;

    struct sums {
        float s[LPT_EACH][LPT_EACH], odd[LPT_EACH][LPT_EACH];
        float (*waiting)[LPT_EACH][LPT_EACH];
        int32_t terms;
        bool started;
    };
    // Apart, since its places are not known to the compiler, and it would not keep in registers
    // what it is joined with.
    typedef float stack[LPT_WAITING][LPT_EACH][LPT_EACH];
    LPT_METHOD void begin(sums &t, stack &waiting, const lpt_product &p, int64_t) const {
        t.waiting = waiting;
        t.terms = 0;
        t.started = p.c != nullptr;
    }
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        t.s[i][j] = c ? round(*c) : 0.0f;
        t.odd[i][j] = 0;
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        lpt_each_term<2>(rows, columns, depth,
                         [&](const lpt_four<float> &x, const lpt_four<float> &y) {
                             float part[LPT_EACH][LPT_EACH];
                             const bool pair = t.terms++ & 1;
#pragma unroll
                             for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                 for (int j = 0; j < LPT_EACH; j += 2) {
                                     float &p0 = part[i][j], &p1 = part[i][j + 1];
                                     p0 = sum.mul(x.v[i], y.v[j]), p1 = sum.mul(x.v[i], y.v[j + 1]);
                                     lpt_round_both(round, p0, p1);
                                     if (pair)
                                         both(p0, p1, t.odd[i][j], t.odd[i][j + 1]);
                                     t.odd[i][j] = p0, t.odd[i][j + 1] = p1;
                                 }
                             if (!pair)
                                 return;
                             int level = 0;
                             for (int32_t pairs = t.terms / 2; pairs % 2 == 0; pairs /= 2, ++level)
#pragma unroll
                                 for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                     for (int j = 0; j < LPT_EACH; j += 2)
                                         both(t.odd[i][j], t.odd[i][j + 1], t.waiting[level][i][j],
                                              t.waiting[level][i][j + 1]);
#pragma unroll
                             for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                 for (int j = 0; j < LPT_EACH; ++j)
                                     t.waiting[level][i][j] = t.odd[i][j];
                         });
    }
    LPT_METHOD float end(const sums &t, int i, int j) const {
        if (t.terms == 0)
            return t.s[i][j];
        float s = t.odd[i][j];
        bool some = t.terms & 1;
        for (int level = 0; t.terms >> level > 1; ++level)
            if (t.terms >> level & 2) {
                s = some ? round(sum.add(t.waiting[level][i][j], s)) : t.waiting[level][i][j];
                some = true;
            }
        return t.started ? round(sum.add(t.s[i][j], s)) : s;
    }

  private:
    LPT_METHOD void both(float &s0, float &s1, float before0, float before1) const {
        s0 = sum.add(before0, s0), s1 = sum.add(before1, s1);
        lpt_round_both(round, s0, s1);
    }
};

// A step of a drawn sum, which is held as it is.
template <class SUM, class ROUND> struct lpt_drawn_step {
    enum { AS_IT_IS = 1, FP32 = lpt_same<SUM, lpt_in_fp32>::yes, OPEN = !FP32 || !ROUND::WIDE };
    ROUND round;
    static LPT_METHOD float held(float x) { return x; }
    static LPT_METHOD float value(float s) { return s; }
    LPT_METHOD float operator()(float a, float b, float s, uint32_t word, bool &open) const {
        return round(SUM::fma(a, b, s), word, open);
    }
};

// Drawn sums. Four roundings of an output share a counter, and the addend's is the first of all: it
// stands where the term before the first would, and terms that are not there leave sums as they
// are.
template <class STEP> struct lpt_drawn_steps : lpt_tile_steps {
    enum { AT_ONCE = 2, AHEAD = 1 };
    enum { APART = (LPT_SIDE / 4 + 1) * 4 };  // from one k to the next
    STEP step;
    lpt_level level;
    const lpt_key *drawn;

    struct sums {
        float s[LPT_EACH][LPT_EACH];
        lpt_key key;
        uint64_t counter;  // of the first output
        bool added;        // they are addends, which are not rounded and not held yet
    };
    LPT_METHOD void begin(sums &t, stack &, const lpt_product &p, int64_t element) const {
        t.key = drawn ? *drawn : p.key;
        t.counter = (uint64_t)element;
        t.added = !STEP::AS_IT_IS && p.c;
    }
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        t.s[i][j] = c ? *c : t.added ? 0.0f : step.held(0);
    }
    LPT_METHOD lpt_words words(uint64_t counter, const lpt_key &key) const {
        lpt_words made = lpt_philox(counter, key);
#pragma unroll
        for (int w = 0; w < 4; ++w)
            made.w[w] &= level.mask;
        return made;
    }
    // Four terms again, in double, where fp32 cannot decide: hardly ever.
    LPT_LONG float again(float s, const float *a, const float *b, uint64_t counter,
                         lpt_key key) const {
        lpt_words random = words(counter, key);
#pragma unroll 1
        for (int w = 0; w < 4; ++w, a += APART, b += APART) {
            const double x = lpt_odd_sum((double)s, (double)*a * (double)*b);
            const uint64_t r = lpt_round<double, LPT_STOCHASTIC, false>(
                lpt_bits(STEP::FP32 ? (double)(float)x : x), level.sum, random.w[0]);
            s = (float)lpt_wrapped_at(lpt_value<double>(r), level);
            random = {{random.w[1], random.w[2], random.w[3], 0}};
        }
        return step.held(s);
    }
    LPT_METHOD void add(sums &t, const lpt_product &p, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        const int across = threadIdx.x % 16, down = threadIdx.x / 16;
#pragma unroll 1
        for (int k = 0; k < depth; k += 4, t.counter += (uint64_t)(p.batch * p.m * p.n)) {
#pragma unroll
            for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                for (int j = 0; j < LPT_EACH; ++j) {
                    const float *const x = &rows[k][down].v[i], *const y = &columns[k][across].v[j];
                    const uint64_t counter = t.counter + (uint64_t)(i * p.n + j);
                    const lpt_words random = words(counter, t.key);
                    float s = t.s[i][j];
                    bool open = t.added;
#pragma unroll
                    for (int w = 0; w < 4; ++w)
                        s = step(x[w * APART], y[w * APART], s, random.w[w], open);
                    if (STEP::OPEN && open)
                        s = again(t.added ? t.s[i][j] : step.value(t.s[i][j]), x, y, counter,
                                  t.key);
                    t.s[i][j] = s;
                }
            t.added = false;
        }
    }
    LPT_METHOD float end(const sums &t, int i, int j) const { return step.value(t.s[i][j]); }
};

// What rounds as the accumulator says, in a call of its own. Each rounding of an output has a
// number, whether a word is drawn for it or not.
struct lpt_level_steps : lpt_tile_steps {
    enum { AT_ONCE = 2 };
    lpt_level level;
    lpt_key key;
    const lpt_key *drawn;
    int64_t elements, wide;  // outputs, and those of a row

    struct state {
        float s[LPT_EACH][LPT_EACH];
        uint64_t element, event;  // the first output, and the next rounding
    };
    static LPT_LONG float rounded_at(double x, const lpt_level_steps &by, uint64_t event,
                                     uint64_t element) {
        const lpt_level &at = by.level;
        uint32_t word = 0;
        if (at.mode >= LPT_STOCHASTIC)
            word = lpt_event_word(event, element, (uint64_t)by.elements,
                                  by.drawn ? *by.drawn : by.key) &
                   at.mask;
        return (float)lpt_wrapped_at(lpt_rounded(x, at.sum, at.mode, word), at);
    }
    LPT_METHOD float rounded(double x, const state &t, uint64_t event, int i, int j) const {
        return rounded_at(x, *this, event, t.element + (uint64_t)(i * wide + j));
    }
    LPT_METHOD void begin(state &t, lpt_none &, const lpt_product &, int64_t element) const {
        t.element = (uint64_t)element;
        t.event = 1;
    }
    LPT_METHOD void begin(state &t, int i, int j, const float *c) const {
        t.s[i][j] = c ? rounded((double)*c, t, 0, i, j) : 0.0f;
    }
};

// Fp32 inside chunks, and anything in order outside. All terms count as rounded.
struct lpt_fp32_chunk_steps : lpt_level_steps {
    struct sums : state {
        float part[LPT_EACH][LPT_EACH];
        int32_t to_come;  // terms that the chunk still takes
    };
    LPT_METHOD void begin(sums &t, lpt_none &none, const lpt_product &p, int64_t element) const {
        lpt_level_steps::begin(t, none, p, element);
        t.to_come = (int32_t)level.chunk;
    }
    LPT_METHOD void begin(sums &t, int i, int j, const float *c) const {
        lpt_level_steps::begin(t, i, j, c);
        t.part[i][j] = 0;
    }
    LPT_METHOD float fold(const sums &t, int i, int j) const {
        const double sum = lpt_odd_sum((double)t.s[i][j], (double)t.part[i][j]);
        return rounded(level.fp32 ? (double)(float)sum : sum, t, t.event, i, j);
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const lpt_operands *rows,
                        const lpt_operands *columns, int32_t depth) const {
        lpt_each_term<1>(rows, columns, depth,
                         [&](const lpt_four<float> &x, const lpt_four<float> &y) {
#pragma unroll
                             for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                 for (int j = 0; j < LPT_EACH; ++j)
                                     t.part[i][j] = __fmaf_rn(x.v[i], y.v[j], t.part[i][j]);
                             ++t.event;
                             if (--t.to_come)
                                 return;
#pragma unroll
                             for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                                 for (int j = 0; j < LPT_EACH; ++j) {
                                     t.s[i][j] = fold(t, i, j);
                                     t.part[i][j] = 0;
                                 }
                             ++t.event;
                             t.to_come = (int32_t)level.chunk;
                         });
    }
    LPT_METHOD float end(const sums &t, int i, int j) const {
        return t.to_come < level.chunk ? fold(t, i, j) : t.s[i][j];
    }
};

// Cut off below the largest exponent's places, `chunk` products and the sum at a time, all of which
// lie in shared memory. Doubles have the products, and sums of what is left of them. CUT: the sum
// is rounded toward zero to fp32 or a format with its range, `keep` being the bits of it.
template <bool CUT> struct lpt_aligned_steps : lpt_level_steps {
    enum { DEPTH = 32 };
    typedef double number;
    typedef lpt_operands_of<double>::type operands;
    uint32_t keep;

    typedef state sums;
    LPT_METHOD int32_t depth() const { return DEPTH - DEPTH % (int32_t)level.chunk; }

    // Exponents and signs as they lie in the upper half of a double.
    static constexpr uint32_t EXPONENT = 0x7ff00000u, SIGN = 0x80000000u, BIAS = 1023u << 20;
    static LPT_METHOD uint32_t upper(double x) { return (uint32_t)(lpt_bits(x) >> 32); }
    // That of subnormal numbers is the smallest of their format; zero has none.
    static LPT_METHOD uint32_t exponent(double x, int32_t smallest) {
        const uint32_t e = upper(x) & EXPONENT, least = (uint32_t)(smallest + 1023) << 20;
        return e == 0 || e > least ? e : least;
    }

    // x * y, cut off below a unit by its sum with 2**52 of them, of which the upper half is given.
    // Infinities and NaNs stay what they are.
    static LPT_METHOD double whole(double x, double y, uint32_t shift) {
        const uint32_t alike = shift | ((upper(x) ^ upper(y)) & SIGN);
        const double many = lpt_value<double>((uint64_t)alike << 32);
        return __fma_rz(x, y, many) - many;
    }

    LPT_METHOD void block(sums &t, const operands *rows, const operands *columns,
                          int32_t terms) const {
        const int across = threadIdx.x % 16, down = threadIdx.x / 16;
        // Of a zero and any other number it is below that of a product of others.
        uint32_t top[LPT_EACH][LPT_EACH];
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j)
                top[i][j] = exponent((double)t.s[i][j], level.least) + BIAS;
#pragma unroll 1
        for (int k = 0; k < terms; ++k) {
            uint32_t x[LPT_EACH], y[LPT_EACH];
#pragma unroll
            for (int i = 0; i < LPT_EACH; ++i) {
                x[i] = exponent(rows[k][down].v[i], level.least_a);
                y[i] = exponent(columns[k][across].v[i], level.least_b);
            }
#pragma unroll
            for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                for (int j = 0; j < LPT_EACH; ++j)
                    top[i][j] = x[i] + y[j] > top[i][j] ? x[i] + y[j] : top[i][j];
        }
        double sum[LPT_EACH][LPT_EACH];
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                const int32_t e = (int32_t)(top[i][j] >> 20) - 2 * 1023;
                const int32_t places = (e < 900 ? e : 900) - level.alignment;
                top[i][j] = (uint32_t)((places < -1000 ? -1000 : places) + 52 + 1023) << 20;
                sum[i][j] = whole((double)t.s[i][j], 1.0, top[i][j]);
            }
#pragma unroll 1
        for (int k = 0; k < terms; ++k) {
            const lpt_four<double> x = rows[k][down], y = columns[k][across];
#pragma unroll
            for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                for (int j = 0; j < LPT_EACH; ++j)
                    sum[i][j] += whole(x.v[i], y.v[j], top[i][j]);
        }
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j)
                if constexpr (CUT)
                    t.s[i][j] = lpt_value<float>(lpt_bits(__double2float_rz(sum[i][j])) & keep);
                else
                    t.s[i][j] = rounded(sum[i][j], t, t.event, i, j);
        ++t.event;
    }
    LPT_METHOD void add(sums &t, const lpt_product &, const operands *rows, const operands *columns,
                        int32_t depth) const {
        const int32_t chunk = (int32_t)level.chunk;
#pragma unroll 1
        for (int32_t k = 0; k < depth; k += chunk)
            block(t, rows + k, columns + k, depth - k < chunk ? depth - k : chunk);
    }
    LPT_METHOD float end(const sums &t, int i, int j) const { return t.s[i][j]; }
};
