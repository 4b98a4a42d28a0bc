// Sums on tiles that are rounded stochastically, one after the other or chunk by chunk.
#pragma once
#include "gemm_orders.h"

namespace {

#if defined(__FMA__)
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
    static bool fits(const lpt_grid &g) { return g.precision >= 2 && g.precision <= 20; }
};
#endif

// SUM forms sums and products, ROUND rounds them.
template <class SUM, class ROUND> struct drawn_by {
    typedef typename SUM::T T;
    typedef typename SUM::IN IN;
    enum { DRAWS = 1 };
    typedef typename vectors<T>::V V;
    const ROUND round;
    drawn_by(const lpt_grid &g, const lpt_accumulator &acc)
        : round(rounding_of<T>(g, acc), LPT_STOCHASTIC) {}
    LPT_STEP V fma(V a, V b, V c, const uint32_t *words) const {
        return round(SUM::fma(a, b, c), words);
    }
    LPT_STEP V mul(V a, V b, const uint32_t *words) const { return round(SUM::mul(a, b), words); }
    LPT_STEP V add(V a, V b, const uint32_t *words) const { return round(SUM::add(a, b), words); }
};

#if defined(__AVX512F__) && defined(__AVX512DQ__)
typedef drawn_by<cut_in_double, to_drawn> drawn_in_double;
#else
typedef drawn_by<odd_in_double, to_grid<LPT_STOCHASTIC>> drawn_in_double;
#endif

// Sums in fp32 from which is drawn. `decides` says that each x is below `end`, and that no digit
// which fp32 leaves away can tell. It can only where the digits that go, and the word added to them
// (`moved`), have come to the last step before a carry: all are ones; and of the nearest number
// also right after the carry: all are zeros.
struct drawn_as_it_is : in_fp32 {
    enum { EXACT = 0 };
    static LPT_STEP bool decides(words32 x, words32 end, words32, words32) {
        return all_less(x, end);
    }
};
#if defined(__AVX512F__) && defined(__AVX512DQ__)
struct drawn_exactly : side_in_fp32<LPT_TOWARD_ZERO> {
    enum { EXACT = 1 };
    static LPT_STEP bool decides(words32 x, words32 end, words32 moved, words32 digits) {
        return all_less_with(x, end, moved + 1, digits);
    }
};
#else
struct drawn_exactly : in_fp32 {
    enum { EXACT = 1 };
    static LPT_STEP bool decides(words32 x, words32 end, words32 moved, words32 digits) {
        return all_less_above_one(x, end, (moved + 1) & digits);
    }
};
#endif

// Sums in fp32, for cells that are `plain` (lean.h) there. In most vectors all sums have normal
// numbers of the format about them, below its largest: the word is added where the digits lie that
// go, and a carry out of them is the way up. Double does the rest. SUM is one of the above.
template <class SUM> struct drawn_in_fp32 {
    typedef float T, IN;
    enum { DRAWS = 1 };
    typedef vectors<float>::U U;
    const drawn_in_double wide;
    U sign, keep, shift, low, span;
    U zero;  // a zero is taken for a number of this size: what fp32 takes for zero is drawn as one
    drawn_in_fp32(const lpt_grid &g, const lpt_accumulator &acc) : wide(g, acc) {
        const lpt_cell<float> c = rounding_of<float>(g, acc);
        const uint32_t spacing = 1u << c.drop, least = c.zero_sign ? 0 : spacing;
        const uint32_t from = c.flat ? least : (uint32_t)c.emin << 23;
        const uint32_t end = c.limit[0] < c.limit[1] ? c.limit[0] : c.limit[1];
        sign = every(0x80000000u);
        keep = every(~(spacing - 1));
        shift = every(32 - (uint32_t)c.drop);
        low = every(from);
        span = every(end > from ? end - from : 0);
        zero = every(c.zero_sign ? from : 0);
    }
    LPT_STEP floats fma(floats a, floats b, floats c, const uint32_t *words) const {
        floats y;
        const floats x = SUM::fma(a, b, c);
        if (LPT_OFTEN(drawn((U)x & ~sign, x, words, y)))
            return y;
        return SUM::EXACT ? wide_fma(a, b, c, words) : wide_round(x, words);
    }
    LPT_STEP floats mul(floats a, floats b, const uint32_t *words) const {
        floats y;
        const floats x = SUM::mul(a, b);
        if (LPT_OFTEN(drawn((U)x & ~sign, x, words, y)))
            return y;
        return SUM::EXACT ? wide_mul(a, b, words) : wide_round(x, words);
    }
    LPT_STEP floats add(floats a, floats b, const uint32_t *words) const {
        floats y;
        const floats x = SUM::add(a, b);
        if (LPT_OFTEN(drawn((U)x & ~sign, x, words, y)))
            return y;
        return SUM::EXACT ? wide_add(a, b, words) : wide_round(x, words);
    }
    // Fixed point has no normal numbers but the largest. With 22 bits and more the words of the
    // sums that are taken again in double do not reach up to where those are cut.
    static bool fits(const lpt_grid &g) {
        return g.precision >= 2 && g.precision <= (SUM::EXACT ? 16 : 21) && g.emin < g.emax;
    }

  private:
    LPT_STEP bool drawn(U size, floats x, const uint32_t *words, floats &y) const {
        const U moved = (U)x + (loaded(words) >> shift);
        y = (floats)(moved & keep);
        return SUM::decides(size - low, span, moved, ~keep);
    }
    LPT_STEP bool drawn_with_zeros(floats x, const uint32_t *words, floats &y) const {
        const U size = (U)x & ~sign;
        return drawn(size == 0 ? zero : size, x, words, y);
    }
    typedef decltype(narrowed(doubles())) half;
    enum { HALF = vectors<double>::length };
    struct halves {
        half of[2];
        halves(floats x) { memcpy(of, &x, sizeof x); }
        doubles operator[](int i) const { return widened(of[i]); }
    };
    static LPT_STEP floats joined(doubles low, doubles high) {
        const half both[2] = {narrowed(low), narrowed(high)};
        floats y;
        memcpy(&y, both, sizeof y);
        return y;
    }
    LPT_SHARED floats wide_round(floats sum, const uint32_t *words) const {
        floats y;
        if (drawn_with_zeros(sum, words, y))
            return y;
        const halves x = sum;
        return joined(wide.round(x[0], words), wide.round(x[1], words + HALF));
    }
    LPT_SHARED floats wide_fma(floats a, floats b, floats c, const uint32_t *words) const {
        floats y;
        if (drawn_with_zeros(SUM::fma(a, b, c), words, y))
            return y;
        const halves p = a, q = b, r = c;
        return joined(wide.fma(p[0], q[0], r[0], words), wide.fma(p[1], q[1], r[1], words + HALF));
    }
    LPT_SHARED floats wide_mul(floats a, floats b, const uint32_t *words) const {
        floats y;
        if (drawn_with_zeros(SUM::mul(a, b), words, y))
            return y;
        const halves p = a, q = b;
        return joined(wide.mul(p[0], q[0], words), wide.mul(p[1], q[1], words + HALF));
    }
    LPT_SHARED floats wide_add(floats a, floats b, const uint32_t *words) const {
        floats y;
        if (drawn_with_zeros(SUM::add(a, b), words, y))
            return y;
        const halves p = a, q = b;
        return joined(wide.add(p[0], q[0], words), wide.add(p[1], q[1], words + HALF));
    }
};

// fp32 to nearest, in which nothing is drawn.
struct in_carrier {
    typedef float T, IN;
    enum { DRAWS = 0 };
    in_carrier(const lpt_grid &, const lpt_accumulator &) {}
    LPT_STEP floats fma(floats a, floats b, floats c, const uint32_t *) const {
        return fused(a, b, c);
    }
    LPT_STEP floats mul(floats a, floats b, const uint32_t *) const { return a * b; }
    LPT_STEP floats add(floats a, floats b, const uint32_t *) const { return a + b; }
};

// One after the other, or chunk by chunk. INNER forms and rounds products and sums, OUTER sums of
// chunks; FUSED: products have no format of their own. Four roundings of an output share a counter,
// and all count, drawn or not.
template <class INNER, class OUTER, bool FUSED> struct drawn final : tile_steps<typename OUTER::T> {
    typedef typename OUTER::T T;
    typedef typename OUTER::IN IN;
    typedef typename vectors<T>::V V;
    enum { LENGTH = tile<T>::LENGTH, EVENTS = FUSED ? 1 : 2 };  // roundings of one k
    const int64_t chunk;
    const INNER product, inner;
    const OUTER outer;

    drawn(const lpt_accumulator &acc, bool) : drawn(acc, acc.chunk > 1 ? *acc.inner : acc) {}

    void advance(tile<T> *kept, const T *a, const T *b, int64_t k, int64_t depth,
                 tile_words<T> *words) const override {
        tile<T> s = *kept;
        words->forget();
        const uint64_t n = 1 + (uint64_t)k * EVENTS;
        if (chunk == 1) {
            steps(s, a, b, 0, depth, n, words);
        } else {
            uint64_t event = n + (uint64_t)(k / chunk);
            for (int64_t first = 0; first < depth; first += chunk) {
                const int64_t last = first + chunk < depth ? first + chunk : depth;
                tile<T> part = {};
                steps(part, a, b, first, last, event, words);
                event += (uint64_t)(last - first) * EVENTS;
                words->need(event);
                for (int i = 0; i < TALL; ++i)
                    for (int j = 0; j < 2; ++j)
                        s.v[i][j] =
                            outer.add(s.v[i][j], part.v[i][j], words->of(event, i, j * LENGTH));
                ++event;
            }
        }
        *kept = s;
    }

  private:
    drawn(const lpt_accumulator &acc, const lpt_accumulator &in)
        : tile_steps<T>(true), chunk(acc.chunk), product(in.has_product ? in.product : in.sum, acc),
          inner(in.sum, acc), outer(acc.sum, acc) {}

    LPT_STEP void steps(tile<T> &s, const T *a, const T *b, int64_t first, int64_t last, uint64_t n,
                        tile_words<T> *words) const {
        for (int64_t k = first; k < last; ++k) {
            const T *x = a + k * TALL;
            const V *y = columns(b, k);
            if (INNER::DRAWS)
                words->need(n);
            if (FUSED) {
#pragma GCC unroll 4
                for (int i = 0; i < TALL; ++i)
#pragma GCC unroll 2
                    for (int j = 0; j < 2; ++j)
                        s.v[i][j] =
                            inner.fma(spread(x[i]), y[j], s.v[i][j], words->of(n, i, j * LENGTH));
                ++n;
                continue;
            }
            V p[TALL][2];
            for (int i = 0; i < TALL; ++i)
                for (int j = 0; j < 2; ++j)
                    p[i][j] = product.mul(spread(x[i]), y[j], words->of(n, i, j * LENGTH));
            ++n;
            if (INNER::DRAWS)
                words->need(n);
            for (int i = 0; i < TALL; ++i)
                for (int j = 0; j < 2; ++j)
                    s.v[i][j] = inner.add(s.v[i][j], p[i][j], words->of(n, i, j * LENGTH));
            ++n;
        }
    }
};
#endif

}  // namespace
