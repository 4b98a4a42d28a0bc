// Accumulators that add in order, or chunk by chunk in order, on tiles of 4 rows by 2 vectors of
// fp32 operands: sums stay in registers while k ascends, the columns' operands are packed
// beforehand.
#pragma once
#include "gemm_rows.h"
#include "gemm_ways.h"
#include <stdlib.h>

namespace {

typedef void (*run_units)(const lpt_product &, const lpt_accumulator &, int64_t, int64_t);
struct plan {
    run_units run;
    int64_t columns, rows;  // of a unit
};

#if defined(__FMA__)
enum { TALL = 4 };                     // rows of a tile
const int64_t BAND = 128, DEEP = 256;  // rows of a unit; k of a packed block

// SUM: how sums are formed; PRODUCT, INNER, OUTER: what rounds products, sums, and sums of chunks.
// DRAWS: the rounders take random words. FUSED: no format of its own for products.
template <class SUM, class PRODUCT, class INNER, class OUTER, bool FUSED, bool DRAWS> struct tiles {
    typedef typename SUM::T T;
    typedef typename vectors<T>::V V;
    enum { LENGTH = vectors<T>::length, BROAD = 2 * LENGTH };

    struct random {
        uint32_t words[4][TALL][BROAD];
        uint64_t element, row, elements;
        lpt_key key;
        uint32_t mask;
        LPT_SHARED void draw(uint64_t group) {
            for (int i = 0; i < TALL; ++i)
                draw_words(group * elements + element + i * row, BROAD, key, mask, TALL * BROAD,
                           words[0][i]);
        }
    };

    static LPT_STEP void steps(V (&s)[TALL][2], const T *a, const T *b, int64_t first, int64_t last,
                               const PRODUCT &product, const INNER &inner, random *drawn,
                               uint64_t event) {
        for (int64_t k = first; k < last; ++k) {
            const uint64_t n = event + k * (FUSED ? 1 : 2);
            if (DRAWS && (n % 4 == 0 || k == first))
                drawn->draw(n / 4);
            V y[2];
            memcpy(y, b + k * BROAD, sizeof y);
            if (DRAWS && !FUSED) {
                V p[TALL][2];
                for (int i = 0; i < TALL; ++i)
                    for (int j = 0; j < 2; ++j)
                        p[i][j] = product(SUM::mul(spread(a[k * TALL + i]), y[j]),
                                          &drawn->words[n % 4][i][j * LENGTH]);
                if (n % 4 == 3)
                    drawn->draw(n / 4 + 1);
                for (int i = 0; i < TALL; ++i)
                    for (int j = 0; j < 2; ++j)
                        s[i][j] = inner(SUM::add(s[i][j], p[i][j]),
                                        &drawn->words[(n + 1) % 4][i][j * LENGTH]);
                continue;
            }
#pragma GCC unroll 4
            for (int i = 0; i < TALL; ++i) {
                const V x = spread(a[k * TALL + i]);
#pragma GCC unroll 2
                for (int j = 0; j < 2; ++j) {
                    const uint32_t *words = DRAWS ? &drawn->words[n % 4][i][j * LENGTH] : nullptr;
                    s[i][j] =
                        FUSED ? inner(SUM::fma(x, y[j], s[i][j]), words)
                              : inner(SUM::add(s[i][j], product(SUM::mul(x, y[j]), words)), words);
                }
            }
        }
    }

    // k .. k + depth of one tile; in chunks, where there are any
    static LPT_SHARED void advance(T *sums, const T *a, const T *b, int64_t depth, int64_t chunk,
                                   const PRODUCT &product, const INNER &inner, const OUTER &outer,
                                   random *drawn, uint64_t event) {
        V s[TALL][2];
        memcpy(s, sums, sizeof s);
        if (chunk == 1) {
            steps(s, a, b, 0, depth, product, inner, drawn, event);
        } else {
            for (int64_t k = 0; k < depth; k += chunk) {
                V part[TALL][2];
                memset(part, 0, sizeof part);
                steps(part, a, b, k, k + chunk < depth ? k + chunk : depth, product, inner, drawn,
                      event);
                for (int i = 0; i < TALL; ++i)
                    for (int j = 0; j < 2; ++j)
                        s[i][j] = outer(SUM::add(s[i][j], part[i][j]), nullptr);
            }
        }
        memcpy(sums, s, sizeof s);
    }

    static void run(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
        const lpt_accumulator &in = acc.chunk > 1 ? *acc.inner : acc;
        const lpt_rule rule = {acc.mode, acc.bits, acc.beyond, 0, {0, 0}};
        const OUTER outer(lpt_make_cell<T>(acc.sum, rule, 0), acc.mode);
        const INNER inner(lpt_make_cell<T>(in.sum, rule, 0), acc.mode);
        const PRODUCT product(lpt_make_cell<T>(in.has_product ? in.product : in.sum, rule, 0),
                              acc.mode);
        const level start(acc);
        const int64_t panels = (p.n + BROAD - 1) / BROAD, bands = (p.m + BAND - 1) / BAND;
        const int64_t deep = acc.chunk == 1     ? DEEP
                             : acc.chunk > DEEP ? acc.chunk
                                                : DEEP / acc.chunk * acc.chunk;
        const int64_t depth = p.k < deep ? p.k : deep;
        char *memory =
            (char *)malloc((size_t)(depth * (BROAD + TALL) + BAND * BROAD + 1) * sizeof(T) + 64);
        T *b = (T *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
        T *sums = b + depth * BROAD, *a = sums + BAND * BROAD;
        random drawn;
        drawn.key = p.key;
        drawn.row = (uint64_t)p.n;
        drawn.elements = (uint64_t)(p.batch * p.m * p.n);
        drawn.mask = 0xffffffffu << (32 - acc.bits);
        for (int64_t unit = first; unit < last; ++unit) {
            const int64_t batch = unit / (panels * bands),
                          column = unit / bands % panels * (int)BROAD, top = unit % bands * BAND;
            const int64_t rows = p.m - top < BAND ? p.m - top : BAND;
            const int count = (int)(p.n - column < BROAD ? p.n - column : (int64_t)BROAD);
            begin(p, start, sums, batch, top, rows, column, count);
            for (int64_t k = 0; k < p.k; k += deep) {
                const int64_t here = p.k - k < deep ? p.k - k : deep;
                const float *from = (const float *)p.b + batch * p.b_stride[0] + k * p.b_stride[1] +
                                    column * p.b_stride[2];
                for (int64_t i = 0; i < here; ++i)
                    for (int l = 0; l < BROAD; ++l)
                        b[i * BROAD + l] =
                            l < count ? (T)lpt_quiet(from[i * p.b_stride[1] + l * p.b_stride[2]])
                                      : (T)0;
                for (int64_t row = 0; row < rows; row += TALL) {
                    const float *x = (const float *)p.a + batch * p.a_stride[0] +
                                     (top + row) * p.a_stride[1] + k * p.a_stride[2];
                    for (int i = 0; i < TALL; ++i)
                        for (int64_t j = 0; j < here; ++j)
                            a[j * TALL + i] =
                                row + i < rows
                                    ? (T)lpt_quiet(x[i * p.a_stride[1] + j * p.a_stride[2]])
                                    : (T)0;
                    drawn.element = (uint64_t)((batch * p.m + top + row) * p.n + column);
                    advance(sums + row * BROAD, a, b, here, acc.chunk, product, inner, outer,
                            &drawn, 1 + (uint64_t)k * (FUSED ? 1 : 2));
                }
            }
            float *y = (float *)p.y + (batch * p.m + top) * p.n + column;
            for (int64_t row = 0; row < rows; ++row)
                for (int l = 0; l < count; ++l)
                    y[row * p.n + l] = lpt_quiet((float)sums[row * BROAD + l]);
        }
        free(memory);
    }

    // The addend rounded, or zero; rows that fill up the last tile are zero.
    static void begin(const lpt_product &p, const level &at, T *sums, int64_t batch, int64_t top,
                      int64_t rows, int64_t column, int count) {
        memset(sums, 0, BAND * BROAD * sizeof(T));
        for (int64_t row = 0; p.c && row < rows; ++row)
            for (int l = 0; l < count; ++l) {
                const float *c = (const float *)p.c + batch * p.c_stride[0] +
                                 (top + row) * p.c_stride[1] + (column + l) * p.c_stride[2];
                const uint64_t element = (uint64_t)((batch * p.m + top + row) * p.n + column + l);
                const uint64_t elements = (uint64_t)(p.batch * p.m * p.n);
                const uint32_t word = DRAWS ? lpt_event_word(0, element, elements, p.key) : 0;
                const uint32_t chosen = word & 0xffffffffu << (32 - at.acc->bits);
                double s = (double)*c;
                if (at.sum.plain)
                    round_mode<1, true>(&s, at.sum, at.acc->mode, &chosen);
                else
                    round_mode<1, false>(&s, at.sum, at.acc->mode, &chosen);
                sums[row * BROAD + l] = (T)s;
            }
    }

    static plan planned() { return {run, BROAD, BAND}; }
};
#endif

}  // namespace
