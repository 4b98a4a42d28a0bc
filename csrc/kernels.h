// What one build of round.cpp for one instruction set offers: loops over a range of elements.
#pragma once
#include "block.h"
#include "philox.h"
#include "posit.h"
#include "range.h"
#include "table.h"

// How blocks are scaled: one of the two is null. `whole` is the scale of the whole tensor.
struct lpt_scales {
    const lpt_blocks *shifts;
    const lpt_scaled *numbers;
    float whole;
};

// Contiguous elements that hold whole blocks, one of them along `axis`: the first axis along which
// blocks are wider than one, or the last axis.
struct lpt_unit {
    int64_t first;
    int32_t axis;
};

// What elements count as for random words: `count` of them as numbers from `first` on, the next as
// numbers from `apart` behind those on, and so forth.
struct lpt_numbers {
    int64_t first, count, apart;
};
const lpt_numbers LPT_ONE_BY_ONE = {0, INT64_MAX, INT64_MAX};

// Columns whose blocks are done together: small enough that what was read for their scales is still
// in the cache when it is rounded.
enum { LPT_STRIP = 512 };

template <class T> struct lpt_loops {
    typedef typename lpt_carrier<T>::bits U;
    // elements first .. last of x into y. `large`: y is another tensor than x, and more than the
    // cache holds.
    void (*grid)(const T *x, T *y, int64_t first, int64_t last, const lpt_grid &, const lpt_rule &,
                 bool large);
    // y[column * y_row + row] = x[row * x_row + column]
    void (*transpose)(const T *x, int64_t x_row, T *y, int64_t y_row, int64_t rows,
                      int64_t columns);
    // raises `largest`, one for each block of a unit, to the magnitudes of elements from .. to
    void (*maxima)(const T *x, const lpt_layout &, const lpt_unit &, int64_t from, int64_t to,
                   bool finite, U *largest);
    U (*finite_maximum)(const T *x, int64_t first, int64_t last);
    // the largest magnitudes in `first` become scales; whether all are usual
    bool (*scales)(const lpt_scales &, const lpt_rule &, int64_t count, U *first, U *second);
    // the same as numbers
    void (*factors)(const lpt_scales &, int64_t count, U *largest, double *to);
    // elements from .. to of a unit rounded, given its scales
    void (*blocks)(const T *x, T *y, const lpt_layout &, const lpt_unit &, int64_t from, int64_t to,
                   const U *first, const U *second, bool usual, const lpt_scales &,
                   const lpt_rule &);
    // blocks first .. last rounded, which are runs of `wide` elements in rows of `row`. `large` as
    // above.
    void (*runs)(const T *x, T *y, int64_t row, int64_t wide, int64_t first, int64_t last,
                 const lpt_numbers &, const lpt_scales &, const lpt_rule &, bool large);
    // strips first .. last of LPT_STRIP columns rounded, whose blocks are `wide` rows of one column
    // each, in tensors of `length` rows of `inner` columns, one behind the other. `large` as above.
    void (*columns)(const T *x, T *y, int64_t length, int64_t wide, int64_t inner, int64_t first,
                    int64_t last, const lpt_numbers &, const lpt_scales &, const lpt_rule &,
                    bool large);
    // the smallest and largest, in order, of blocks whose elements are among from .. to
    void (*extremes)(const T *x, const lpt_layout &, int64_t from, int64_t to, int64_t before,
                     typename lpt_carrier<T>::sbits *least, typename lpt_carrier<T>::sbits *most);
    // what blocks of these ends have; whether one of them needs the long way
    bool (*spread_out)(const lpt_ranges &, int64_t count,
                       const typename lpt_carrier<T>::sbits *least,
                       const typename lpt_carrier<T>::sbits *most, const lpt_spread<T> &);
    // elements from .. to rounded, given what their blocks have, block `before` first
    void (*spread)(const T *x, T *y, const lpt_layout &, int64_t from, int64_t to, int64_t before,
                   const lpt_spread<T> &, bool far, const lpt_ranges &, const lpt_rule &);
};

// Loops of codebooks.cpp.
template <class T> struct lpt_codebook_loops {
    void (*table)(const T *x, T *y, int64_t first, int64_t last, const lpt_table<T> &,
                  const lpt_rule &);
    void (*posit)(const T *x, T *y, int64_t first, int64_t last, const lpt_posit &,
                  const lpt_rule &);
};

struct lpt_codebooks {
    lpt_codebook_loops<float> f32;
    lpt_codebook_loops<double> f64;
};

struct lpt_censuses;    // census.h
struct lpt_gemm_loops;  // gemm_loops.h

struct lpt_build {
    const char *name;
    lpt_loops<float> f32;
    lpt_loops<double> f64;
    const lpt_codebooks *codebooks;
    const lpt_censuses *census;
    const lpt_gemm_loops *gemm;
};

extern const lpt_build lpt_baseline;
#ifdef LPT_X86
extern const lpt_build lpt_v3, lpt_v4;
#endif
