// Blocks that are spread from their smallest to their largest value, on the device: their ends, by
// the loops that find maxima; from these what each block has; then the elements.
#pragma once
#include "block_kernels.h"
#include "range.h"

// Numbers in their order, or in the opposite one, as unsigned integers.
template <class T> struct lpt_in_order {
    typedef typename lpt_carrier<T>::bits U;
    typedef typename lpt_carrier<T>::sbits S;
    static constexpr U SIGN = (U)1 << (lpt_carrier<T>::width - 1);
    U flip;  // 0, or all bits for the opposite order
    LPT_METHOD U operator()(U u) const { return (U)lpt_ordered<T>((S)u) ^ SIGN ^ flip; }
    LPT_METHOD S back(U place) const { return (S)(place ^ flip ^ SIGN); }
    // What comes first: a NaN, which the other order finds.
    LPT_METHOD U none() const { return ~(U)0 ^ (flip & SIGN); }
};

template <class T, int N>
LPT_METHOD typename lpt_carrier<T>::bits lpt_largest(const lpt_in_order<T> &counted,
                                                     const typename lpt_carrier<T>::bits (&v)[N],
                                                     typename lpt_carrier<T>::bits top) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const typename lpt_carrier<T>::bits a = counted(v[j]);
        top = a > top ? a : top;
    }
    return top;
}

// Finds one end of each block, and rounds nothing.
template <class T> struct lpt_end_of {
    typedef typename lpt_carrier<T>::bits U;
    static constexpr int32_t MODE = LPT_NEAREST;
    enum { HELD = 32 };
    lpt_rule rule;
    lpt_in_order<T> counted;
    struct tensor {};
    struct scale {};
    LPT_METHOD tensor whole() const { return {}; }
    LPT_METHOD scale of(U, const tensor &) const { return {}; }
    LPT_METHOD U empty() const { return counted.none(); }
    template <int N>
    LPT_METHOD void round(U (&)[N], int32_t, const scale &, const uint32_t *) const {}
};

// The ends of blocks, `least` in the opposite order, become what they have; `most` their numbers.
template <class T>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_spread_blocks(int64_t count, const typename lpt_carrier<T>::bits *least,
                      typename lpt_carrier<T>::bits *most, lpt_block_spread<T> *to,
                      const __grid_constant__ lpt_ranges ranges) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_in_order<T> up = {0}, down = {~(U)0};
    for (int64_t k = (int64_t)blockIdx.x * LPT_THREADS + threadIdx.x; k < count;
         k += (int64_t)gridDim.x * LPT_THREADS) {
        lpt_block_spread<T> s;
        const lpt_spread<T> fields = {&s.first, &s.by, &s.scale, &s.low, &s.high};
        s.far = (T)lpt_spread_out<T>(ranges, lpt_step(ranges), down.back(least[k]),
                                     up.back(most[k]), fields, 0);
        to[k] = s;
        most[k] = (U)k;
    }
}

// Elements of a block the long way, in any mode; not inlined, because it is long, and rare.
template <class T>
LPT_LONG void lpt_round_far(typename lpt_carrier<T>::bits *v, int32_t count,
                            const lpt_block_spread<T> &s, bool multiply, const lpt_cell<T> &c,
                            int32_t mode, const uint32_t *words) {
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i) {
        const T x = lpt_value<T>(v[i]);
        v[i] = lpt_bits(multiply ? lpt_far_steps_of<true>(x, s.first, s.by)
                                 : lpt_far_steps_of<false>(x, s.first, s.by));
    }
    lpt_round_some<T>(v, count, c, mode, words);
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i)
        v[i] = lpt_bits(lpt_at_far_steps(lpt_value<T>(v[i]), s.first, s.scale, s.low, s.high));
}

// Rounds the elements of blocks, whose numbers stand in the place of their maxima.
template <class T, int MODE_> struct lpt_spreading {
    typedef typename lpt_carrier<T>::bits U;
    static constexpr int32_t MODE = MODE_;
    enum { HELD = MODE == LPT_NEAREST ? 16 : 4 };
    lpt_rule rule;
    lpt_cell<T> cell;
    const lpt_block_spread<T> *blocks;
    bool multiply;
    lpt_in_order<T> counted;  // no element is
    struct tensor {};
    typedef lpt_block_spread<T> scale;
    LPT_METHOD tensor whole() const { return {}; }
    LPT_METHOD scale of(U block, const tensor &) const { return blocks[block]; }
    LPT_METHOD U empty() const { return 0; }

    template <int N>
    LPT_METHOD void round(U (&v)[N], int32_t count, const scale &s, const uint32_t *words) const {
        if constexpr (MODE != LPT_ANY) {
            if (s.far == 0) {
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    if (j % 4 == 0 && j >= count)
                        break;
                    const T x = lpt_value<T>(v[j]);
                    const U q = lpt_bits(multiply ? lpt_steps_of<true>(x, s.first, s.by)
                                                  : lpt_steps_of<false>(x, s.first, s.by));
                    const U k = lpt_round_plain<T, MODE, false, LPT_ALL_ENDS>(
                        q, cell, MODE == LPT_STOCHASTIC ? words[j] : 0);
                    v[j] = lpt_bits(lpt_at_steps(lpt_value<T>(k), s.first, s.scale, s.low, s.high));
                }
                return;
            }
        }
        U some[N];
        for (int j = 0; j < N; ++j)
            some[j] = v[j];
        lpt_round_far<T>(some, count, s, multiply, cell, rule.mode, words);
        for (int j = 0; j < N; ++j)
            v[j] = some[j];
    }
};
