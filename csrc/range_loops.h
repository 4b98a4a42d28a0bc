// The loops over blocks that are spread from their smallest to their largest value, part of
// round.cpp.
#pragma once
#include "block_loops.h"
#include "range.h"

namespace {

// Blocks of a tensor count in the order of their elements, and a range of elements has whole ones,
// or parts of them: `visit` as in `walk`, with the block's number in the tensor.
template <class Visit>
inline void walk_all(const lpt_layout &l, int64_t from, int64_t to, Visit visit) {
    walk(l, {0, -1}, from, to, visit);
}

// The smallest and the largest of each block's elements among from .. to, in order, the smallest
// with all bits turned round; block `before` is the first of which there is room.
template <class T>
LPT_APART void extremes(const T *x, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
                        typename lpt_carrier<T>::sbits *least,
                        typename lpt_carrier<T>::sbits *most) {
    typedef typename lpt_carrier<T>::sbits S;
    const int64_t wide = l.block[l.dims - 1];
    walk_all(l, from, to, [&](int64_t first, int64_t count, int64_t block) {
        const T *const here = x + first;
        S *const low = least + (block - before), *const high = most + (block - before);
        if (wide == 1) {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const S a = lpt_ordered<T>((S)lpt_bits(here[i]));
                low[i] = ~a > low[i] ? ~a : low[i];
                high[i] = a > high[i] ? a : high[i];
            }
            return;
        }
        const int64_t done = raise_runs(here, wide, count / wide, lpt_by_place{-1}, low);
        raise_runs(here, wide, count / wide, lpt_by_place{0}, high);
        each_block(done * wide, count - done * wide, done, wide,
                   [&](int64_t first, int64_t some, int64_t k) {
                       S down = low[k], up = high[k];
                       for (int64_t i = first; i < first + some; ++i) {
                           const S a = lpt_ordered<T>((S)lpt_bits(here[i]));
                           down = ~a > down ? ~a : down;
                           up = a > up ? a : up;
                       }
                       low[k] = down;
                       high[k] = up;
                   });
    });
}

// visit(first, count, block, step) for elements from .. to that are in one block, or, where blocks
// are one wide, have those from `block` on: those of neighbours lie `step` apart.
template <class Visit>
inline void each_stretch(const lpt_layout &l, int64_t from, int64_t to, int64_t before,
                         Visit visit) {
    const int64_t wide = l.block[l.dims - 1];
    walk_all(l, from, to, [&](int64_t first, int64_t count, int64_t block) {
        if (wide == 1)
            return visit(first, count, block - before, lpt_constant<1>());
        each_block(first, count, block - before, wide, [&](int64_t i, int64_t some, int64_t k) {
            visit(i, some, k, lpt_constant<0>());
        });
    });
}

// Whether one of the blocks needs the long way.
template <class T>
LPT_APART bool spread_out(const lpt_ranges &given, int64_t count,
                          const typename lpt_carrier<T>::sbits *least,
                          const typename lpt_carrier<T>::sbits *most, const lpt_spread<T> &blocks) {
    const lpt_ranges ranges = given;  // local copies: what is written may not alias them
    const lpt_spread<T> to = blocks;
    const double step = lpt_step(ranges);
    typename lpt_carrier<T>::sbits far = 0;
    LPT_INDEPENDENT
    for (int64_t k = 0; k < count; ++k)
        far |= lpt_spread_out<T>(ranges, step, ~least[k], most[k], to, k);
    return far != 0;
}

// y[i] = f(x[i], what the block of i has, i); what blocks have lies STEP apart.
template <int STEP, class T, class F>
inline void each_in(const T *x, T *y, int64_t count, const lpt_spread<T> &blocks, F f) {
    const lpt_spread<T> b = blocks;  // a local copy: y may not alias it
    const lpt_block_spread<T> only = b[0];
    LPT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i)
        y[i] = f(x[i], STEP ? b[i] : only, i);
}

// Elements from .. to of the tensor rounded, given what their blocks have, the blocks' numbers
// counted from `before`.
template <bool MULTIPLY, class T>
void spread_by(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
               const lpt_spread<T> &blocks, bool far, const lpt_cell<T> &cell,
               const lpt_rule &rule) {
    typedef lpt_block_spread<T> B;
    enum { PIECE = 2048 };
    for (int64_t at = from; at < to; at += PIECE) {
        const int64_t end = at + PIECE < to ? at + PIECE : to;
        const auto each = [&](const T *source, auto f) {
            each_stretch(l, at, end, before, [&](int64_t i, int64_t count, int64_t k, auto step) {
                each_in<decltype(step)::value>(source + i, y + i, count, blocks.from(k), f);
            });
        };
        if (far)
            each(x, [](T v, const B &b, int64_t) {
                return lpt_far_steps_of<MULTIPLY>(v, b.first, b.by);
            });
        else
            each(x,
                 [](T v, const B &b, int64_t) { return lpt_steps_of<MULTIPLY>(v, b.first, b.by); });
        run_cell(y, y, at, end, cell, rule, false);
        if (far)
            each(y, [](T k, const B &b, int64_t) {
                return lpt_at_far_steps(k, b.first, b.scale, b.low, b.high);
            });
        else
            each(y, [](T k, const B &b, int64_t) {
                return lpt_at_steps(k, b.first, b.scale, b.low, b.high);
            });
    }
}

// The same at once, where no block needs the long way and the cell is roomy.
template <int MODE, class T>
LPT_APART void spread_at_once(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to,
                              int64_t before, const lpt_spread<T> &blocks, bool multiply,
                              const lpt_cell<T> &cell, const lpt_rule &rule) {
    const lpt_cell<T> c = cell;  // a local copy: y may not alias it
    const int64_t most = MODE < LPT_STOCHASTIC ? INT64_MAX : (int64_t)LPT_DRAWN;
    random_words random(rule);
    each_stretch(l, from, to, before, [&](int64_t first, int64_t count, int64_t k, auto step) {
        for (int64_t left = count; left > 0;) {
            const int64_t now = left < most ? left : most, at = first + count - left;
            const uint32_t *const words = MODE < LPT_STOCHASTIC ? nullptr : random.of(at, at + now);
            const lpt_spread<T> here = blocks.from(k + decltype(step)::value * (count - left));
            const auto some = [=](int64_t size) {
                each_in<decltype(step)::value>(
                    x + at, y + at, size, here, [=](T v, const lpt_block_spread<T> &b, int64_t i) {
                        const T q = multiply ? lpt_steps_of<true>(v, b.first, b.by)
                                             : lpt_steps_of<false>(v, b.first, b.by);
                        const auto rounded = lpt_round_roomy<T, MODE, LPT_SATURATES>(
                            lpt_bits(q), c, MODE < LPT_STOCHASTIC ? 0 : words[i]);
                        return lpt_at_steps(lpt_value<T>(rounded), b.first, b.scale, b.low, b.high);
                    });
            };
            now == 32 ? some(32) : some(now);
            left -= now;
        }
    });
}

template <class T>
void spread(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
            const lpt_spread<T> &blocks, bool far, const lpt_ranges &ranges, const lpt_rule &rule) {
    const lpt_cell<T> cell = lpt_make_cell<T>(ranges.steps, rule, 0);
    const bool multiply = ranges.reciprocal;
    if (!far && cell.roomy && rule.mode <= LPT_STOCHASTIC)
        return lpt_with_mode(rule.mode, [&](auto mode) {
            spread_at_once<decltype(mode)::value>(x, y, l, from, to, before, blocks, multiply, cell,
                                                  rule);
        });
    if (multiply)
        spread_by<true>(x, y, l, from, to, before, blocks, far, cell, rule);
    else
        spread_by<false>(x, y, l, from, to, before, blocks, far, cell, rule);
}

}  // namespace
