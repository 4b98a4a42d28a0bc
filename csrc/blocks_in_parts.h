// How tensors in blocks are shared out among threads: blocks that one thread has whole, and those
// that several have parts of. Part of library.cpp.
#pragma once
#include "kernels.h"
#include "transposed.h"
#include <stdlib.h>

namespace {

// The largest finite magnitude of n elements.
template <class T> T finite_maximum(const T *x, int64_t n, int parts) {
    typedef typename lpt_carrier<T>::bits U;
    std::atomic<U> top(0);
    in_parts(parts, [&](int64_t part) {
        const U here = loops(T()).finite_maximum(x, n * part / parts, n * (part + 1) / parts);
        for (U known = top; here > known && !top.compare_exchange_weak(known, here);) {
        }
    });
    return lpt_value<T>(top);
}

// The scale of a whole tensor of n elements, where scales have one.
template <class T> float whole_scale(const T *x, int64_t n, const lpt_scaled &numbers, int parts) {
    const double top = numbers.whole == 0 ? 0 : finite_maximum(x, n, parts);
    const float most = lpt_value<float>(0x7f7fffffu);
    return lpt_tensor_scale(numbers, top < most ? (float)top : most);
}

// The largest magnitude of each block of a unit, its elements split among `parts` threads, which
// first find maxima of their own.
template <class T>
void find_maxima(const T *x, const lpt_layout &l, const lpt_unit &unit, int64_t size, int64_t count,
                 bool finite, int64_t parts, typename lpt_carrier<T>::bits *scratch) {
    memset(scratch, 0, parts * count * sizeof *scratch);
    in_parts(parts, [&](int64_t part) {
        const int64_t from = size * part / parts, to = size * (part + 1) / parts;
        if (from < to)
            loops(T()).maxima(x, l, unit, unit.first + from, unit.first + to, finite,
                              scratch + part * count);
    });
    for (int64_t i = count; i < parts * count; ++i)
        scratch[i % count] = scratch[i] > scratch[i % count] ? scratch[i] : scratch[i % count];
}

// One unit of blocks, its elements split among `parts` threads; `scratch` holds parts + 1 numbers
// for each block.
template <class T>
void round_unit(const T *x, T *y, const lpt_layout &l, const lpt_unit &unit, int64_t size,
                int64_t count, const lpt_scales &scales, bool finite, const lpt_rule &rule,
                int parts, typename lpt_carrier<T>::bits *scratch) {
    const lpt_loops<T> &f = loops(T());
    find_maxima(x, l, unit, size, count, finite, parts, scratch);
    const bool usual = f.scales(scales, rule, count, scratch, scratch + parts * count);
    in_parts(parts, [&](int64_t part) {
        const int64_t from = size * part / parts, to = size * (part + 1) / parts;
        if (from < to)
            f.blocks(x, y, l, unit, unit.first + from, unit.first + to, scratch,
                     scratch + parts * count, usual, scales, rule);
    });
}

// Leading axes whose blocks are one wide, and the blocks along the next axis, cut the tensor into
// units that know nothing of each other, which follow each other in memory.
struct lpt_units {
    int32_t axis = 0;               // that axis
    int64_t blocks = 1, inner = 1;  // of a unit; elements of a step along the axis
    int64_t length, wide, bands;    // of the axis, its blocks, and how many there are
    int64_t number, elements;

    explicit lpt_units(const lpt_layout &l) {
        int64_t slabs = 1;
        while (axis < l.dims - 1 && l.block[axis] == 1)
            slabs *= l.shape[axis++];
        for (int32_t d = axis + 1; d < l.dims; ++d) {
            blocks *= (l.shape[d] + l.block[d] - 1) / l.block[d];
            inner *= l.shape[d];
        }
        length = l.shape[axis], wide = l.block[axis], bands = (length + wide - 1) / wide;
        number = slabs * bands, elements = slabs * length * inner;
    }
    // The first element of unit u, which may be one behind the last.
    int64_t start(int64_t u) const { return (u / bands * length + u % bands * wide) * inner; }
    int64_t size(int64_t u) const { return start(u + 1) - start(u); }
};

// The scale of each block. 0, or 1 where there was no memory.
template <class T>
int find_scales(const T *x, double *to, const lpt_layout &l, lpt_scales scales, int threads) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_units units(l);
    const int64_t count = units.number * units.blocks, useful = units.elements / GRAIN + 1;
    const int parts = threads < useful ? threads : (int)useful;
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;
    U *scratch = (U *)malloc(parts * count * sizeof(U));
    if (!scratch)
        return 1;
    const plain_arithmetic guard;
    if (scales.numbers)
        scales.whole = whole_scale(x, units.elements, *scales.numbers, parts);
    find_maxima(x, l, {0, -1}, units.elements, count, finite, parts, scratch);
    loops(T()).factors(scales, count, scratch, to);
    free(scratch);
    return 0;
}

// Threads share out the units, or each of a few large ones.
template <class T>
int round_blocks(const T *x, T *y, const lpt_layout &l, lpt_scales scales, const lpt_rule &rule,
                 int threads) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_loops<T> &f = loops(T());
    const plain_arithmetic guard;
    const lpt_units all(l);
    const int32_t axis = all.axis, last_axis = l.dims - 1;
    const int64_t count = all.blocks, inner = all.inner, length = all.length, wide = all.wide;
    const int64_t units = all.number, elements = all.elements, useful = elements / GRAIN + 1;
    const int parts = threads < useful ? threads : (int)useful;
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;

    if (scales.numbers)
        scales.whole = whole_scale(x, elements, *scales.numbers, parts);
    const bool shared = units >= 2 * parts;  // else every unit is split
    if (axis == last_axis && (shared || parts == 1)) {
        in_parts(parts, [&](int64_t part) {
            f.runs(x, y, length, wide, units * part / parts, units * (part + 1) / parts,
                   LPT_ONE_BY_ONE, scales, rule, large(x, y, elements));
        });
        return 0;
    }
    const int64_t strips = units * ((inner + LPT_STRIP - 1) / LPT_STRIP);
    const int64_t strip = (wide < length ? wide : length) * LPT_STRIP * (int64_t)sizeof(T);
    const bool tall = inner > LPT_STRIP && strip > STRIP_IN_CACHE;
    if (axis < last_axis && count == inner && !tall && (strips >= 2 * parts || parts == 1)) {
        in_parts(parts, [&](int64_t part) {
            f.columns(x, y, length, wide, inner, strips * part / parts, strips * (part + 1) / parts,
                      LPT_ONE_BY_ONE, scales, rule, large(x, y, elements, LARGE_IN_COLUMNS));
        });
        return 0;
    }
    std::atomic<bool> failed(false);
    const int teams = shared ? parts : 1, members = shared ? 1 : parts;
    in_parts(teams, [&](int64_t team) {
        U *scratch = (U *)malloc((members + 1) * count * sizeof(U));
        if (!scratch) {
            failed = true;
            return;
        }
        for (int64_t u = units * team / teams; u < units * (team + 1) / teams; ++u) {
            const lpt_unit unit = {all.start(u), axis};
            round_unit(x, y, l, unit, all.size(u), count, scales, finite, rule, members, scratch);
        }
        free(scratch);
    });
    return failed;
}

// Matrices of blocks of `wide` elements: columns are cut into blocks where `row` is 0; else rows
// into parts of `row` elements, and those into blocks.
struct lpt_turned_blocks {
    lpt_matrices matrices;
    int64_t row, wide;
};

// 0, or 1 where tiles would hold too little.
template <class T>
int round_turned_blocks(const T *x, T *y, const lpt_turned_blocks &b, lpt_scales scales,
                        const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    const plain_arithmetic guard;
    const lpt_matrices &m = b.matrices;
    const int64_t wide = b.wide, step = b.row == m.columns ? wide : b.row;
    const auto tiles =
        b.row ? lpt_tiles<T>(m, LPT_GROUP, 1, step) : lpt_tiles<T>(m, LPT_GROUP, wide, 1);
    if (!tiles.fit())
        return 1;
    const auto up = [](int64_t count, int64_t by) { return (count + by - 1) / by; };
    const int64_t elements = m.count * m.rows * m.columns, useful = elements / GRAIN + 1;
    if (scales.numbers)
        scales.whole =
            whole_scale(x, elements, *scales.numbers, threads < useful ? threads : (int)useful);
    split_tiles(x, y, m, tiles, threads, [&](const lpt_tile<T> &t) {
        const lpt_numbers dense = {t.number, INT64_MAX, INT64_MAX};
        const lpt_numbers strided = {t.number, t.columns, t.apart};
        const lpt_numbers &numbers = t.columns == t.apart ? dense : strided;
        const int64_t rows = t.matrices * t.rows, part = b.row < t.columns ? b.row : t.columns;
        if (b.row)
            f.runs(t.at, t.at, part, wide, 0, rows * t.columns / part * up(part, wide), numbers,
                   scales, rule, false);
        else
            f.columns(t.at, t.at, t.rows, wide, t.columns, 0,
                      t.matrices * up(t.rows, wide) * up(t.columns, LPT_STRIP), numbers, scales,
                      rule, false);
    });
    return 0;
}

}  // namespace
