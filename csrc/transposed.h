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
    enum { LINE = LPT_LINE / sizeof(T), ELEMENTS = 65536 / sizeof(T) };
    int64_t rows, columns;           // of a tile
    int64_t bands = 0, stripes = 0;  // tiles of a matrix, one below and one beside the other
    int64_t matrices = 0;            // in one tile, where several fit

    // `least` columns, so that starting a loop pays. Tiles begin at multiples of `high` rows and of
    // `wide` columns.
    lpt_tiles(const lpt_matrices &m, int64_t least, int64_t high = 1, int64_t wide = 1) {
        const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
        const auto whole = [](int64_t count, int64_t of) { return count / of * of; };
        const int64_t flat = whole(ELEMENTS / m.rows, LPT_GROUP), more = least + wide - 1;
        columns = smaller(whole(flat > more ? flat : more, wide), m.columns);
        // What ends amid a group of words has it drawn again: whole rows, if a line of each fits.
        if (m.columns % LPT_GROUP != 0 && m.columns * LINE <= ELEMENTS)
            columns = m.columns;
        columns = smaller(columns, whole(ELEMENTS / high, wide));
        const int64_t fitting = columns ? ELEMENTS / columns : 0, lines = whole(fitting, LINE);
        rows = m.rows <= fitting ? m.rows : whole(lines > high ? lines : fitting, high);
        if (rows < smaller(m.rows, LINE / 2) || columns < smaller(m.columns, LPT_LANES))
            return;  // tiles that hold so little do not pay
        bands = (m.rows + rows - 1) / rows;
        stripes = (m.columns + columns - 1) / columns;
        matrices = bands * stripes == 1 ? ELEMENTS / (rows * columns) : 1;
    }
    bool fit() const { return matrices > 0; }
    int64_t count(const lpt_matrices &m) const {
        return (m.count + matrices - 1) / matrices * bands * stripes;
    }
};

// Elements of a tile, numbers from `number` on: rows of `matrices`, one behind the other.
template <class T> struct lpt_tile {
    T *at;
    int64_t matrices, rows, columns;
    int64_t number, apart;  // of the first row's first element; from row to row of a matrix
};

// round(tile) for tiles first .. last, which rounds its elements where they are.
template <class T, class Round>
void lpt_each_tile(const T *x, T *y, const lpt_matrices &m, const lpt_tiles<T> &tiles,
                   int64_t first, int64_t last, const lpt_loops<T> &f, Round round) {
    alignas(LPT_LINE) T held[lpt_tiles<T>::ELEMENTS];
    const int64_t size = m.rows * m.columns;
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    for (int64_t i = first; i < last; ++i) {
        const int64_t band = i / tiles.stripes, matrix = band / tiles.bands * tiles.matrices;
        const int64_t row = band % tiles.bands * tiles.rows;
        const int64_t column = i % tiles.stripes * tiles.columns;
        const int64_t matrices = least(tiles.matrices, m.count - matrix);
        const int64_t rows = least(tiles.rows, m.rows - row);
        const int64_t columns = least(tiles.columns, m.columns - column);
        const int64_t at = matrix * size + column * m.rows + row;
        for (int64_t k = 0; k < matrices; ++k)
            f.transpose(x + at + k * size, m.rows, held + k * size, columns, columns, rows);
        round(lpt_tile<T>{held, matrices, rows, columns, matrix * size + row * m.columns + column,
                          m.columns});
        for (int64_t k = 0; k < matrices; ++k)
            f.transpose(held + k * size, columns, y + at + k * size, m.rows, rows, columns);
    }
}

// loop(at, from, to) for elements that follow one another in a tile and in the count, `at` being
// where number 0 would be.
template <class T, class Loop> void lpt_each_stretch(const lpt_tile<T> &tile, Loop loop) {
    const bool one = tile.columns == tile.apart;
    const int64_t stretches = one ? 1 : tile.rows;
    const int64_t count = one ? tile.matrices * tile.rows * tile.columns : tile.columns;
    for (int64_t k = 0; k < stretches; ++k) {
        const int64_t number = tile.number + k * tile.apart;
        T *const at = tile.at + k * tile.columns;
        loop((T *)((uintptr_t)at - (uintptr_t)number * sizeof(T)), number, number + count);
    }
}
