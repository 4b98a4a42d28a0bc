// The loops over blocks that are spread from their smallest to their largest value, part of
// round.cpp.
#pragma once
#include "block_loops.h"
#include "range.h"

namespace {

// Blocks of a tensor count in the order of their elements, and a range of elements has whole ones,
// or parts of them: visit(first, count, block) as in `walk`, with the block's number in the tensor.
template <class Visit>
inline void walk_all(const lpt_layout &l, int64_t from, int64_t to, Visit visit) {
    walk(l, {0, -1}, from, to, visit);
}

inline bool in_columns(const lpt_layout &l) { return l.block[l.dims - 1] == 1; }

// The smallest and the largest of each block's elements among from .. to, in order; block `before`
// is the first of which there is room.
template <class T>
LPT_APART void extremes(const T *x, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
                        typename lpt_carrier<T>::sbits *least,
                        typename lpt_carrier<T>::sbits *most) {
    typedef typename lpt_carrier<T>::sbits S;
    const bool columns = in_columns(l);
    walk_all(l, from, to, [&](int64_t first, int64_t count, int64_t block) {
        const T *const here = x + first;
        S *const low = least + (block - before), *const high = most + (block - before);
        if (columns) {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const S a = lpt_ordered<T>((S)lpt_bits(here[i]));
                low[i] = a < low[i] ? a : low[i];
                high[i] = a > high[i] ? a : high[i];
            }
            return;
        }
        S down = *low, up = *high;
        for (int64_t i = 0; i < count; ++i) {
            const S a = lpt_ordered<T>((S)lpt_bits(here[i]));
            down = a < down ? a : down;
            up = a > up ? a : up;
        }
        *low = down;
        *high = up;
    });
}

// Whether one of the blocks needs the long way.
template <class T>
bool spread_out(const lpt_ranges &ranges, int64_t count,
                const typename lpt_carrier<T>::sbits *least,
                const typename lpt_carrier<T>::sbits *most, const lpt_spread<T> &to) {
    bool far = false;
    for (int64_t k = 0; k < count; ++k)
        far |= lpt_spread_out<T>(ranges, least[k], most[k], to, k);
    return far;
}

// y[i] = f(x[i], what the block of i has), whose fields lie STEP apart.
template <int STEP, class T, class F>
inline void each_in(const T *x, T *y, int64_t count, const lpt_spread<T> &blocks, F f) {
    const T *const first = blocks.first, *const by = blocks.by, *const scale = blocks.scale;
    const T *const low = blocks.low, *const high = blocks.high;
    const T one_first = *first, one_by = *by, one_scale = *scale, one_low = *low, one_high = *high;
    LPT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i)
        y[i] = STEP ? f(x[i], first[i], by[i], scale[i], low[i], high[i])
                    : f(x[i], one_first, one_by, one_scale, one_low, one_high);
}

// The same of elements from .. to of the tensor.
template <class T, class F>
LPT_APART void each_spread(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to,
                           int64_t before, const lpt_spread<T> &blocks, F f) {
    const bool columns = in_columns(l);
    walk_all(l, from, to, [&](int64_t first, int64_t count, int64_t block) {
        const lpt_spread<T> here = blocks.from(block - before);
        if (columns)
            each_in<1>(x + first, y + first, count, here, f);
        else
            each_in<0>(x + first, y + first, count, here, f);
    });
}

// Elements from .. to of the tensor rounded, given what their blocks have.
template <bool MULTIPLY, class T>
void spread_by(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
               const lpt_spread<T> &blocks, bool far, const lpt_cell<T> &cell,
               const lpt_rule &rule) {
    enum { PIECE = 2048 };
    for (int64_t at = from; at < to; at += PIECE) {
        const int64_t end = at + PIECE < to ? at + PIECE : to;
        const auto each = [&](const T *source, auto f) {
            each_spread(source, y, l, at, end, before, blocks, f);
        };
        if (far)
            each(x, [](T v, T first, T by, T, T, T) {
                return lpt_far_steps_of<MULTIPLY>(v, first, by);
            });
        else
            each(x,
                 [](T v, T first, T by, T, T, T) { return lpt_steps_of<MULTIPLY>(v, first, by); });
        run_cell(y, y, at, end, cell, rule, false);
        if (far)
            each(y, [](T k, T first, T, T scale, T low, T high) {
                return lpt_at_far_steps(k, first, scale, low, high);
            });
        else
            each(y, [](T k, T first, T, T scale, T low, T high) {
                return lpt_at_steps(k, first, scale, low, high);
            });
    }
}

template <class T>
void spread(const T *x, T *y, const lpt_layout &l, int64_t from, int64_t to, int64_t before,
            const lpt_spread<T> &blocks, bool far, const lpt_ranges &ranges, const lpt_rule &rule) {
    const lpt_cell<T> cell = lpt_make_cell<T>(ranges.steps, rule, 0);
    if (ranges.reciprocal)
        spread_by<true>(x, y, l, from, to, before, blocks, far, cell, rule);
    else
        spread_by<false>(x, y, l, from, to, before, blocks, far, cell, rule);
}

}  // namespace
