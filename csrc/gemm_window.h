// Tiles of outputs of any shape, one output a thread, and their operands in shared memory, some k
// at a time.
#pragma once
#include "device.h"
#include "gemm.h"

// Numbers in shared memory: 64 k of 16 rows and 16 columns, with a gap behind each k, so that
// neighbouring k of a row lie in different banks.
enum { LPT_HELD = 64 * (16 + 1 + 16 + 1), LPT_THREAD_BITS = 8 };

// How outputs are dealt to the threads of a block: 2**tall rows by 2**wide columns, of as many
// matrices as there are threads left. 2**depth k are held at once.
struct lpt_tiling {
    int32_t tall, wide, depth;
    int64_t down, across, tiles;  // tiles of a matrix, and all of them
};

// Rows, and columns, that a thread block has of all its matrices.
LPT_FN int32_t lpt_lines(int32_t other) { return LPT_THREADS >> other; }

inline int32_t lpt_bits_for(int64_t count, int32_t most) {
    int32_t bits = 0;
    while (bits < most && (int64_t)1 << bits < count)
        ++bits;
    return bits;
}
inline lpt_tiling lpt_make_tiling(const lpt_product &p) {
    lpt_tiling t;
    t.wide = lpt_bits_for(p.n, LPT_THREAD_BITS / 2);
    t.tall = lpt_bits_for(p.m, LPT_THREAD_BITS - t.wide);
    t.wide = lpt_bits_for(p.n, LPT_THREAD_BITS - t.tall);
    t.depth = 0;
    while ((lpt_lines(t.wide) + 1 + lpt_lines(t.tall) + 1) << (t.depth + 1) <= LPT_HELD)
        ++t.depth;
    t.down = ((p.m - 1) >> t.tall) + 1;
    t.across = ((p.n - 1) >> t.wide) + 1;
    t.tiles = (((p.batch - 1) >> (LPT_THREAD_BITS - t.tall - t.wide)) + 1) * t.down * t.across;
    return t;
}

// An output of a tile.
struct lpt_spot {
    int64_t batch, row, column;
};
LPT_METHOD lpt_spot lpt_spot_of(const lpt_tiling &by, int64_t tile, int32_t thread) {
    const int64_t matrices = tile / by.across / by.down;
    const int32_t bits = by.tall + by.wide, row = (thread >> by.wide) & ((1 << by.tall) - 1),
                  column = thread & ((1 << by.wide) - 1);
    return {(matrices << (LPT_THREAD_BITS - bits)) + (thread >> bits),
            (tile / by.across % by.down << by.tall) + row, (tile % by.across << by.wide) + column};
}

// Lines of matrices, 2**each of each, and of these 2**depth numbers from `from` on; where there are
// none, zeros. Each warp reads along whichever axis has its numbers side by side.
template <class T>
LPT_METHOD void lpt_hold_lines(const T *from, const int64_t matrix_step, int64_t line_step,
                               int64_t k_step, int32_t each, int32_t lines, int64_t matrices,
                               int64_t in_matrix, int64_t terms, int32_t depth, double *to) {
    const bool along_k = k_step == 1;
    for (int32_t i = threadIdx.x; i < lines << depth; i += LPT_THREADS) {
        const int32_t k = along_k ? i & ((1 << depth) - 1) : i / lines,
                      line = along_k ? i >> depth : i % lines;
        const int32_t matrix = line >> each, within = line & ((1 << each) - 1);
        const bool there = matrix < matrices && within < in_matrix && k < terms;
        to[k * (lines + 1) + line] =
            there ? lpt_operand(from[matrix * matrix_step + within * line_step + k * k_step]) : 0;
    }
}

// The operands of a tile from k on. All threads of the block are here.
template <class T>
LPT_LONG void lpt_hold(const lpt_product &p, const lpt_tiling &by, int64_t tile, int64_t k,
                       double *rows, double *columns) {
    const lpt_spot at = lpt_spot_of(by, tile, 0);
    __syncthreads();  // all have read what is overwritten
    lpt_hold_lines((const T *)p.a + at.batch * p.a_stride[0] + at.row * p.a_stride[1] +
                       k * p.a_stride[2],
                   p.a_stride[0], p.a_stride[1], p.a_stride[2], by.tall, lpt_lines(by.wide),
                   p.batch - at.batch, p.m - at.row, p.k - k, by.depth, rows);
    lpt_hold_lines((const T *)p.b + at.batch * p.b_stride[0] + at.column * p.b_stride[2] +
                       k * p.b_stride[1],
                   p.b_stride[0], p.b_stride[2], p.b_stride[1], by.wide, lpt_lines(by.tall),
                   p.batch - at.batch, p.n - at.column, p.k - k, by.depth, columns);
    __syncthreads();
}

// A thread's operands, as doubles. All threads of a block ask for the same k at a time.
template <class T> class lpt_window {
    const lpt_product &p;
    const lpt_tiling &by;
    const int64_t tile;
    double *const rows, *const columns;
    const int32_t row, column;
    int64_t first;  // that is held

  public:
    LPT_METHOD lpt_window(const lpt_product &product, const lpt_tiling &tiling, int64_t which,
                          double *numbers)
        : p(product), by(tiling), tile(which), rows(numbers),
          columns(numbers + ((lpt_lines(tiling.wide) + 1) << tiling.depth)),
          row(threadIdx.x >> tiling.wide),
          column((threadIdx.x >> (tiling.tall + tiling.wide) << tiling.wide) |
                 (threadIdx.x & ((1 << tiling.wide) - 1))),
          first(-LPT_HELD) {}

    LPT_METHOD void get(int64_t k, double *x, double *y) {
        if ((uint64_t)(k - first) >> by.depth != 0) {
            lpt_hold<T>(p, by, tile, k, rows, columns);
            first = k;
        }
        const int32_t at = (int32_t)(k - first);
        *x = rows[at * (lpt_lines(by.wide) + 1) + row];
        *y = columns[at * (lpt_lines(by.tall) + 1) + column];
    }
};
