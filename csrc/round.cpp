// The loops on the CPU, and nothing but the loops. Compiled once per instruction set, with
// LPT_BUILD naming the result; threads and the choice of the set are in library.cpp.
#include "loop.h"

namespace {

template <class T, int MODE, bool PLAIN>
void run(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &cell,
         const lpt_rule &rule) {
    const lpt_cell<T> c = cell;  // a local copy: y may not alias it
    lpt_each<MODE>(x, y, first, last, rule, [&](typename lpt_carrier<T>::bits u, uint32_t random) {
        return lpt_round<T, MODE, PLAIN>(u, c, random);
    });
}

template <class T, bool PLAIN>
void run_mode(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule) {
    switch (rule.mode) {
    case LPT_NEAREST: return run<T, LPT_NEAREST, PLAIN>(x, y, first, last, c, rule);
    case LPT_NEAREST_AWAY: return run<T, LPT_NEAREST_AWAY, PLAIN>(x, y, first, last, c, rule);
    case LPT_TOWARD_ZERO: return run<T, LPT_TOWARD_ZERO, PLAIN>(x, y, first, last, c, rule);
    case LPT_DOWN: return run<T, LPT_DOWN, PLAIN>(x, y, first, last, c, rule);
    case LPT_UP: return run<T, LPT_UP, PLAIN>(x, y, first, last, c, rule);
    case LPT_ODD: return run<T, LPT_ODD, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC: return run<T, LPT_STOCHASTIC, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC_HALF_OFFSET:
        return run<T, LPT_STOCHASTIC_HALF_OFFSET, PLAIN>(x, y, first, last, c, rule);
    case LPT_STOCHASTIC_PRE_ROUNDED:
        return run<T, LPT_STOCHASTIC_PRE_ROUNDED, PLAIN>(x, y, first, last, c, rule);
    default: return run<T, LPT_STOCHASTIC_EQUAL, PLAIN>(x, y, first, last, c, rule);
    }
}

template <class T>
void run_cell(const T *x, T *y, int64_t first, int64_t last, const lpt_cell<T> &c,
              const lpt_rule &rule) {
    if (c.plain)
        run_mode<T, true>(x, y, first, last, c, rule);
    else
        run_mode<T, false>(x, y, first, last, c, rule);
}

template <class T>
void grid(const T *x, T *y, int64_t first, int64_t last, const lpt_grid &g, const lpt_rule &rule) {
    run_cell(x, y, first, last, lpt_make_cell<T>(g, rule, 0), rule);
}

// Walks the rows (last axis) of one slab. `visit(first, run, block)` gets each stretch of elements
// of one block; with blocks one element wide a stretch is the whole row and `block` counts on by
// itself.
template <class Visit>
inline void walk(const lpt_layout &l, int32_t slab_dims, int64_t slab, Visit visit) {
    const int32_t n = l.dims;
    int64_t size = 1, rows = 1, index[LPT_MAX_DIMS] = {}, blocks[LPT_MAX_DIMS];
    for (int32_t d = slab_dims; d < n; ++d) {
        size *= l.shape[d];
        rows *= d + 1 < n ? l.shape[d] : 1;
        blocks[d] = (l.shape[d] + l.block[d] - 1) / l.block[d];
    }
    const int64_t row = l.shape[n - 1], wide = l.block[n - 1];
    int64_t at = slab * size;
    for (int64_t r = 0; r < rows; ++r, at += row) {
        int64_t block = 0;
        for (int32_t d = slab_dims; d + 1 < n; ++d)
            block = (block + index[d] / l.block[d]) * blocks[d + 1];
        if (wide == 1)
            visit(at, row, block);
        else
            for (int64_t i = 0; i < row; i += wide, ++block)
                visit(at + i, row - i < wide ? row - i : wide, block);
        for (int32_t d = n - 2; d >= slab_dims && ++index[d] == l.shape[d]; --d)
            index[d] = 0;
    }
}

template <class T>
void maxima(const T *x, const lpt_layout &l, int32_t slab_dims, int64_t slab,
            typename lpt_carrier<T>::bits *largest) {
    typedef typename lpt_carrier<T>::bits U;
    const U magnitude = ~((U)1 << (lpt_carrier<T>::width - 1));
    const bool columns = l.block[l.dims - 1] == 1;
    walk(l, slab_dims, slab, [&](int64_t first, int64_t count, int64_t block) {
        if (columns) {
            for (int64_t i = 0; i < count; ++i) {
                const U a = lpt_bits(x[first + i]) & magnitude;
                largest[block + i] = a > largest[block + i] ? a : largest[block + i];
            }
            return;
        }
        U top = largest[block];
        for (int64_t i = 0; i < count; ++i) {
            const U a = lpt_bits(x[first + i]) & magnitude;
            top = a > top ? a : top;
        }
        largest[block] = top;
    });
}

template <class T>
void blocks(const T *x, T *y, const lpt_layout &l, int32_t slab_dims, int64_t slab,
            const typename lpt_carrier<T>::bits *largest, const lpt_blocks &b,
            const lpt_rule &rule) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa, nan = inf | (U)1 << (C::mantissa - 1);
    auto stretch = [&](int64_t first, int64_t count, int64_t block) {
        if (largest[block] < inf) {
            const int32_t shift = lpt_shift<T>(b, largest[block]);
            run_cell(x, y, first, first + count, lpt_make_cell<T>(b.element, rule, shift), rule);
        } else {
            for (int64_t i = first; i < first + count; ++i)
                y[i] = lpt_value<T>(nan);
        }
    };
    const bool columns = l.block[l.dims - 1] == 1;
    walk(l, slab_dims, slab, [&](int64_t first, int64_t count, int64_t block) {
        if (!columns)
            return stretch(first, count, block);
        for (int64_t i = 0; i < count; ++i)
            stretch(first + i, 1, block + i);
    });
}

}  // namespace

#define LPT_STRING(x) #x
#define LPT_NAME(x) LPT_STRING(x)
extern const lpt_codebooks LPT_CODEBOOKS;
extern const lpt_build LPT_BUILD = {LPT_NAME(LPT_BUILD),
                                    {grid<float>, maxima<float>, blocks<float>},
                                    {grid<double>, maxima<double>, blocks<double>},
                                    &LPT_CODEBOOKS};
