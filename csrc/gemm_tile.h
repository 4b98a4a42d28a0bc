// Sums of fp32 operands on tiles of 4 rows by 2 vectors: the columns' operands are packed
// beforehand, and what an order keeps of a tile stays in registers or nearby while k ascends.
#pragma once
#include "gemm_rows.h"
#include <stdlib.h>

namespace {

// false where there is no memory for it
typedef bool (*run_units)(const lpt_product &, const lpt_accumulator &, int64_t, int64_t);
struct plan {
    run_units run;
    int64_t columns, rows;  // of a unit
    bool in_fp32;
};

#if defined(__FMA__)
enum { TALL = 4 };                     // rows of a tile
const int64_t BAND = 128, DEEP = 256;  // rows of a unit; k of a packed block

// One vector for each of the places of a tile.
template <class T> struct tile {
    enum { LENGTH = vectors<T>::length, BROAD = 2 * LENGTH };
    typename vectors<T>::V v[TALL][2];
};

// The two vectors of packed columns at k.
template <class T> LPT_STEP const typename vectors<T>::V *columns(const T *b, int64_t k) {
    return (const typename vectors<T>::V *)(b + k * tile<T>::BROAD);
}

// The random words of a tile's outputs, for four roundings of each at a time.
template <class T> struct tile_words {
    enum { BROAD = tile<T>::BROAD };
    uint32_t words[4][TALL][BROAD];
    uint64_t element, row, elements, group;
    lpt_key key;
    uint32_t mask;
    void forget() { group = ~(uint64_t)0; }
    // has the words of the n-th rounding drawn
    LPT_STEP void need(uint64_t n) {
        if (n / 4 != group)
            draw(group = n / 4);
    }
    LPT_STEP const uint32_t *of(uint64_t n, int i, int l) const { return &words[n % 4][i][l]; }
    LPT_SHARED void draw(uint64_t of) {
        enum { PAIRS = BROAD / LPT_PAIR };  // of a row
        const uint64_t first = of * elements + element, next = row;
        lpt_words_of_pairs([=](int q) { return first + q / PAIRS * next + q % PAIRS * LPT_PAIR; },
                           TALL * PAIRS, key, mask, TALL * BROAD, words[0][0]);
    }
};

// An order of adding up, with all roundings (gemm_orders.h). Each has a T and an IN, what operands
// are.
template <class T> struct tile_steps {
    const bool draws;  // takes random words
    explicit tile_steps(bool random) : draws(random) {}
    // how many tiles are kept of one while k ascends to the end
    virtual int64_t kept(int64_t) const { return 1; }
    // k .. k + depth; a and b are packed
    virtual void advance(tile<T> *kept, const T *a, const T *b, int64_t k, int64_t depth,
                         tile_words<T> *drawn) const = 0;
    // leaves the sum in the first of them
    virtual void finish(tile<T> *, int64_t) const {}
};

// IN: the operands and results.
template <class T, class IN> struct tiles {
    enum { BROAD = tile<T>::BROAD };

    static LPT_SHARED bool run(const lpt_product &p, const lpt_accumulator &acc, int64_t first,
                               int64_t last, const tile_steps<T> &steps) {
        const level start(acc);
        const int64_t panels = (p.n + BROAD - 1) / BROAD, bands = (p.m + BAND - 1) / BAND;
        const int64_t deep = acc.chunk == 1     ? DEEP
                             : acc.chunk > DEEP ? acc.chunk
                                                : DEEP / acc.chunk * acc.chunk;
        const int64_t depth = p.k < deep ? p.k : deep, kept = steps.kept(p.k);
        char *memory = (char *)malloc(
            (size_t)(depth * (BROAD + TALL) + kept * BAND * BROAD + 1) * sizeof(T) + 64);
        if (!memory)
            return false;
        T *b = (T *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
        T *a = b + depth * BROAD + kept * BAND * BROAD;
        tile<T> *sums = (tile<T> *)(b + depth * BROAD);
        tile_words<T> drawn;
        drawn.key = p.key;
        drawn.row = (uint64_t)p.n;
        drawn.elements = (uint64_t)(p.batch * p.m * p.n);
        drawn.mask = 0xffffffffu << (32 - acc.bits);
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t batch = unit / (panels * bands),
                          column = unit / bands % panels * (int)BROAD, top = unit % bands * BAND;
            const int64_t rows = p.m - top < BAND ? p.m - top : BAND;
            const int count = (int)(p.n - column < BROAD ? p.n - column : (int64_t)BROAD);
            memset((void *)sums, 0, (rows + TALL - 1) / TALL * kept * sizeof *sums);
            begin(p, start, sums, kept, batch, top, rows, column, count, steps.draws);
            for (int64_t k = 0; k < p.k; k += deep) {
                const int64_t here = p.k - k < deep ? p.k - k : deep;
                pack_columns(p, batch, column, count, k, here, b);
                for (int64_t row = 0; row < rows; row += TALL) {
                    pack_rows(p, batch, top + row, rows - row, k, here, a);
                    drawn.element = (uint64_t)((batch * p.m + top + row) * p.n + column);
                    steps.advance(sums + row / TALL * kept, a, b, k, here, &drawn);
                }
            }
            IN *y = (IN *)p.y + (batch * p.m + top) * p.n + column;
            for (int64_t row = 0; row < rows; ++row) {
                tile<T> *own = sums + row / TALL * kept;
                if (row % TALL == 0)
                    steps.finish(own, p.k);
                const T *sum = (const T *)own->v[row % TALL];
                for (int l = 0; l < count; ++l)
                    y[row * p.n + l] = lpt_quiet((IN)sum[l]);
            }
        }
        free(memory);
        return true;
    }

    // k .. k + depth of b's columns, and of TALL of a's rows; the first stands for what is missing
    // of them, so that nothing there needs more care than the rest.
    static void pack_columns(const lpt_product &p, int64_t batch, int64_t column, int count,
                             int64_t k, int64_t depth, T *b) {
        const int64_t next = p.b_stride[1], apart = p.b_stride[2];
        const IN *from = (const IN *)p.b + batch * p.b_stride[0] + k * next + column * apart;
        if (count == BROAD && apart == 1) {
            for (int64_t i = 0; i < depth; ++i)
                for (int l = 0; l < BROAD; ++l)
                    b[i * BROAD + l] = (T)lpt_quiet(lpt_operand(from[i * next + l]));
            return;
        }
        for (int64_t i = 0; i < depth; ++i) {
            const T first = (T)lpt_quiet(lpt_operand(from[i * next]));
            for (int l = 0; l < BROAD; ++l)
                b[i * BROAD + l] = first;
            for (int l = 1; l < count; ++l)
                b[i * BROAD + l] = (T)lpt_quiet(lpt_operand(from[i * next + l * apart]));
        }
    }
    static void pack_rows(const lpt_product &p, int64_t batch, int64_t row, int64_t rows, int64_t k,
                          int64_t depth, T *a) {
        const IN *from =
            (const IN *)p.a + batch * p.a_stride[0] + row * p.a_stride[1] + k * p.a_stride[2];
        const IN *x[TALL];
        for (int i = 0; i < TALL; ++i)
            x[i] = i < rows ? from + i * p.a_stride[1] : from;
        for (int64_t j = 0; j < depth; ++j)
            for (int i = 0; i < TALL; ++i)
                a[j * TALL + i] = (T)lpt_quiet(lpt_operand(x[i][j * p.a_stride[2]]));
    }

    // The addend, rounded unless sums are exact, where there is one, in the first of what is kept
    // of its tile.
    static void begin(const lpt_product &p, const level &at, tile<T> *sums, int64_t kept,
                      int64_t batch, int64_t top, int64_t rows, int64_t column, int count,
                      bool draws) {
        for (int64_t row = 0; p.c && row < rows; ++row)
            for (int l = 0; l < count; ++l) {
                const IN *c = (const IN *)p.c + batch * p.c_stride[0] +
                              (top + row) * p.c_stride[1] + (column + l) * p.c_stride[2];
                const uint64_t element = (uint64_t)((batch * p.m + top + row) * p.n + column + l);
                const uint64_t elements = (uint64_t)(p.batch * p.m * p.n);
                const uint32_t word = draws ? lpt_event_word(0, element, elements, p.key) : 0;
                const uint32_t chosen = word & 0xffffffffu << (32 - at.acc->bits);
                double s = (double)lpt_operand(*c);
                if (at.acc->order != LPT_EXACT)
                    at.sum.plain ? round_mode<1, true>(&s, at.sum, at.acc->mode, &chosen)
                                 : round_mode<1, false>(&s, at.sum, at.acc->mode, &chosen);
                if (at.acc->turn > 0)
                    s = lpt_wrapped(s, at.acc->turn);
                ((T *)sums[row / TALL * kept].v[row % TALL])[l] = (T)s;
            }
    }
};

template <class STEPS>
bool run_tiles(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
    const STEPS steps(acc, p.c != nullptr);
    return tiles<typename STEPS::T, typename STEPS::IN>::run(p, acc, first, last, steps);
}
template <class STEPS> plan tiled() {
    return {run_tiles<STEPS>, tile<typename STEPS::T>::BROAD, BAND, sizeof(typename STEPS::T) == 4};
}
#endif

}  // namespace
