// The orders in which tiles add up: what is kept of a tile's sums, and what one more k makes of it.
// SUM forms sums (gemm_steps.h), PRODUCT and the others round (gemm_rounders.h), none of them
// stochastically (gemm_drawn.h); FUSED: products have no format of their own.
#pragma once
#include "gemm_tile.h"

namespace {

#if defined(__FMA__)
template <class T> lpt_cell<T> rounding_of(const lpt_grid &g, const lpt_accumulator &acc) {
    const lpt_rule rule = {acc.mode, acc.bits, acc.beyond, 0, {0, 0}};
    return lpt_make_cell<T>(g, rule, 0);
}

// One k more of a tile's sums; y are the columns' operands.
template <class SUM, class PRODUCT, class ROUND, bool FUSED> struct one_more {
    typedef typename SUM::T T;
    typedef typename vectors<T>::V V;
    static LPT_STEP void take(tile<T> &s, const T *a, const V *y, const PRODUCT &product,
                              const ROUND &round) {
#pragma GCC unroll 4
        for (int i = 0; i < TALL; ++i) {
            const V x = spread(a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                V &t = s.v[i][j];
                t = FUSED ? round(SUM::fma(x, y[j], t), nullptr)
                          : round(SUM::add(t, product(SUM::mul(x, y[j]), nullptr)), nullptr);
            }
        }
    }
};

#if !defined(__AVX512F__) || !defined(__AVX512DQ__)
// Rounding to fp32, to nearest, and then to the format, goes wrong only where fp32 has a number
// half way between two of the format's and the sum is not there; in directions and to odd, where
// fp32 has a number of the format and the sum is beside it. A step with such a number, which is
// rare, is taken again, by way of odd numbers.
template <bool ENDS, class PRODUCT, class ROUND, bool FUSED>
struct one_more<odd_by_terms<ENDS>, PRODUCT, ROUND, FUSED> {
    typedef odd_by_terms<ENDS> SUM;
    typedef vectors<float>::U U;
    static LPT_STEP void take(tile<float> &s, const float *a, const floats *y,
                              const PRODUCT &product, const ROUND &round) {
        const tile<float> before = s;
        U doubt[TALL][2], any = (U)spread(0.0f);
        floats rest, rests = spread(0.0f);
#pragma GCC unroll 4
        for (int i = 0; i < TALL; ++i) {
            const floats x = spread(a[i]);
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                floats &t = s.v[i][j];
                if (FUSED) {
                    const floats sum = fused(x, y[j], t);
                    any |= doubt[i][j] = round.doubtful(sum);
                    t = round(sum, nullptr);
                } else {
                    const floats p = x * y[j];
                    any |=
                        product.doubtful(p) & ((U)fused(x, y[j], -p) | product.faint(p, x, y[j]));
                    const floats sum = SUM::two_sum(t, product(p, nullptr), rest);
                    rests = (floats)((U)rests | (U)rest);
                    t = round(sum, nullptr);
                }
            }
        }
        if (!all_zero(any | (U)rests << 1) && (!FUSED || wrong(doubt, before, a, y, round)))
            again(s, before, a, y, product, round);
    }
    // whether a number in doubt is not exact
    static LPT_SHARED bool wrong(const U doubt[TALL][2], const tile<float> &before, const float *a,
                                 const floats *y, const ROUND &round) {
        U any = (U)spread(0.0f);
        for (int i = 0; i < TALL; ++i) {
            const floats x = spread(a[i]);
            for (int j = 0; j < 2; ++j) {
                const floats c = before.v[i][j], t = fused(x, y[j], c), p = t - c;
                const U right = (U)(fused(x, y[j], -p) == 0) & (U)(t - p == c);  // xy = p = t - c
                any |= doubt[i][j] & (~right | round.faint(p, x, y[j]));
            }
        }
        return !all_zero(any);
    }
    static LPT_SHARED void again(tile<float> &s, const tile<float> &before, const float *a,
                                 const floats *y, const PRODUCT &product, const ROUND &round) {
        for (int i = 0; i < TALL; ++i) {
            const floats x = spread(a[i]);
            for (int j = 0; j < 2; ++j) {
                const floats c = before.v[i][j];
                s.v[i][j] = FUSED
                                ? round(SUM::fma(x, y[j], c), nullptr)
                                : round(SUM::add(c, product(SUM::mul(x, y[j]), nullptr)), nullptr);
            }
        }
    }
};
#endif

// One after the other, or chunk by chunk. INNER rounds sums, OUTER sums of chunks.
template <class SUM, class PRODUCT, class INNER, class OUTER, bool FUSED>
struct sequential final : tile_steps<typename SUM::T> {
    typedef typename SUM::T T;
    typedef typename SUM::IN IN;
    const lpt_accumulator &acc, &in;
    const PRODUCT product;
    const INNER inner;
    const OUTER outer;

    sequential(const lpt_accumulator &a, bool)
        : tile_steps<T>(false), acc(a), in(a.chunk > 1 ? *a.inner : a),
          product(rounding_of<T>(in.has_product ? in.product : in.sum, a), a.mode),
          inner(rounding_of<T>(in.sum, a), a.mode), outer(rounding_of<T>(a.sum, a), a.mode) {}

    LPT_STEP void steps(tile<T> &s, const T *a, const T *b, int64_t first, int64_t last) const {
        for (int64_t k = first; k < last; ++k)
            one_more<SUM, PRODUCT, INNER, FUSED>::take(s, a + k * TALL, columns(b, k), product,
                                                       inner);
    }

    // k .. k + depth of one tile
    void advance(tile<T> *kept, const T *a, const T *b, int64_t, int64_t depth,
                 tile_words<T> *) const override {
        tile<T> s = *kept;
        if (acc.chunk == 1) {
            steps(s, a, b, 0, depth);
        } else {
            for (int64_t at = 0; at < depth; at += acc.chunk) {
                tile<T> part = {};
                steps(part, a, b, at, at + acc.chunk < depth ? at + acc.chunk : depth);
                for (int i = 0; i < TALL; ++i)
                    for (int j = 0; j < 2; ++j)
                        s.v[i][j] = outer(SUM::add(s.v[i][j], part.v[i][j]), nullptr);
            }
        }
        *kept = s;
    }
};

// Kahan's: the sum and what its last rounding lost.
template <class SUM, class PRODUCT, class ROUND, bool FUSED>
struct kahan final : tile_steps<typename SUM::T> {
    typedef typename SUM::T T;
    typedef typename SUM::IN IN;
    typedef typename vectors<T>::V V;
    enum { BROAD = tile<T>::BROAD };
    const PRODUCT product;
    const ROUND round;

    kahan(const lpt_accumulator &acc, bool)
        : tile_steps<T>(false),
          product(rounding_of<T>(acc.has_product ? acc.product : acc.sum, acc), acc.mode),
          round(rounding_of<T>(acc.sum, acc), acc.mode) {}

    int64_t kept(int64_t) const override { return 2; }

    void advance(tile<T> *kept, const T *a, const T *b, int64_t, int64_t depth,
                 tile_words<T> *) const override {
        tile<T> s = kept[0], error = kept[1];
        for (int64_t k = 0; k < depth; ++k) {
            const V *y = columns(b, k);
#pragma GCC unroll 4
            for (int i = 0; i < TALL; ++i) {
                const V x = spread(a[k * TALL + i]);
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    V &sum = s.v[i][j], &lost = error.v[i][j];
                    const V due =
                        round(FUSED ? SUM::fma(x, y[j], -lost)
                                    : SUM::add(-lost, product(SUM::mul(x, y[j]), nullptr)),
                              nullptr);
                    const V grown = round(SUM::add(sum, due), nullptr);
                    const V gained = round(SUM::add(grown, -sum), nullptr);
                    lost = round(SUM::add(gained, -due), nullptr);
                    sum = grown;
                }
            }
        }
        kept[0] = s;
        kept[1] = error;
    }
};

// By pairs: sums of 1, 2, 4 ... terms wait until there are two of a size. Of n terms as many wait
// as n has ones, the largest first, behind the addend.
template <class SUM, class PRODUCT, class ROUND, bool FUSED>
struct pairwise final : tile_steps<typename SUM::T> {
    typedef typename SUM::T T;
    typedef typename SUM::IN IN;
    typedef typename vectors<T>::V V;
    enum { BROAD = tile<T>::BROAD };
    const PRODUCT product;
    const ROUND round;
    const bool started;

    pairwise(const lpt_accumulator &acc, bool has_addend)
        : tile_steps<T>(false),
          product(rounding_of<T>(acc.has_product ? acc.product : acc.sum, acc), acc.mode),
          round(rounding_of<T>(acc.sum, acc), acc.mode), started(has_addend) {}

    int64_t kept(int64_t k) const override {
        int64_t most = 2;
        for (; k > 0; k >>= 1)
            ++most;
        return most;
    }

    LPT_STEP void join(tile<T> &s, const tile<T> &waiting) const {
        for (int i = 0; i < TALL; ++i)
            for (int j = 0; j < 2; ++j)
                s.v[i][j] = round(SUM::add(waiting.v[i][j], s.v[i][j]), nullptr);
    }

    void advance(tile<T> *kept, const T *a, const T *b, int64_t first, int64_t depth,
                 tile_words<T> *) const override {
        for (int64_t k = 0; k < depth; ++k) {
            const V *y = columns(b, k);
            tile<T> s;
#pragma GCC unroll 4
            for (int i = 0; i < TALL; ++i) {
                const V x = spread(a[k * TALL + i]);
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    const V term = SUM::mul(x, y[j]);
                    s.v[i][j] = round(FUSED ? term : product(term, nullptr), nullptr);
                }
            }
            const int64_t before = first + k;
            tile<T> *free = kept + 1 + __builtin_popcountll(before);
            for (int64_t equal = before; equal & 1; equal >>= 1)
                join(s, *--free);
            *free = s;
        }
    }

    void finish(tile<T> *kept, int64_t k) const override {
        const tile<T> *last = kept + __builtin_popcountll(k);
        if (last == kept)
            return;
        tile<T> s = *last;
        while (--last > kept)
            join(s, *last);
        if (started)
            join(s, *kept);
        *kept = s;
    }
};
#endif

}  // namespace
