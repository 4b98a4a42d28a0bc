// Tensors whose axes lie in another order than their elements count in, as under channels_last:
// matrices, one behind the other, whose rows and columns have changed places. Random words go by
// the count.
#pragma once
#include "kernels.h"
#include "stream.h"

// Element (row, column) of matrix m is number (m * rows + row) * columns + column, and lies at
// (m * columns + column) * rows + row.
struct lpt_matrices {
    int64_t count, rows, columns;
};

// How matrices come apart into tiles that stay in cache. Lines of memory are read and written
// whole.
template <class T> struct lpt_tiles {
    enum { LINE = LPT_LINE / sizeof(T), ELEMENTS = 32768 / sizeof(T) };
    int64_t rows, columns;   // of a tile
    int64_t bands, stripes;  // tiles of a matrix, one below and one beside the other
    int64_t matrices;        // in one tile, where several fit

    // `least` columns, so that starting a loop pays.
    lpt_tiles(const lpt_matrices &m, int64_t least) {
        const int64_t flat = ELEMENTS / m.rows / LPT_GROUP * LPT_GROUP;
        columns = flat > least ? flat : least;
        columns = columns < m.columns ? columns : m.columns;
        const int64_t fitting = ELEMENTS / columns;
        rows = m.rows <= fitting ? m.rows : fitting / LINE * LINE;
        bands = (m.rows + rows - 1) / rows;
        stripes = (m.columns + columns - 1) / columns;
        matrices = bands * stripes == 1 ? ELEMENTS / (rows * columns) : 1;
    }
    int64_t count(const lpt_matrices &m) const {
        return (m.count + matrices - 1) / matrices * bands * stripes;
    }
};

// Elements of tiles first .. last by loop(tile, from, to), which rounds numbers from .. to of a
// tensor where they are, `tile` being where the first of all would be.
template <class T, class Loop>
void lpt_each_tile(const T *x, T *y, const lpt_matrices &m, const lpt_tiles<T> &tiles,
                   int64_t first, int64_t last, const lpt_loops<T> &f, Loop loop) {
    alignas(LPT_LINE) T held[lpt_tiles<T>::ELEMENTS];
    const int64_t size = m.rows * m.columns;
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const auto round = [&](T *at, int64_t number, int64_t count) {
        T *const tile = (T *)((uintptr_t)at - (uintptr_t)number * sizeof(T));
        loop(tile, number, number + count);
    };
    for (int64_t i = first; i < last; ++i) {
        const int64_t band = i / tiles.stripes, matrix = band / tiles.bands * tiles.matrices;
        const int64_t row = band % tiles.bands * tiles.rows;
        const int64_t column = i % tiles.stripes * tiles.columns;
        const int64_t matrices = least(tiles.matrices, m.count - matrix);
        const int64_t rows = least(tiles.rows, m.rows - row);
        const int64_t columns = least(tiles.columns, m.columns - column);
        const int64_t at = matrix * size + column * m.rows + row;
        const int64_t number = matrix * size + row * m.columns + column;
        for (int64_t k = 0; k < matrices; ++k)
            f.transpose(x + at + k * size, m.rows, held + k * size, columns, columns, rows);
        if (columns == m.columns)  // rows follow one another in the count
            round(held, number, matrices * rows * columns);
        else
            for (int64_t r = 0; r < rows; ++r)
                round(held + r * columns, number + r * m.columns, columns);
        for (int64_t k = 0; k < matrices; ++k)
            f.transpose(held + k * size, columns, y + at + k * size, m.rows, rows, columns);
    }
}
