// What one build of round.cpp for one instruction set offers: loops over a range of elements.
#pragma once
#include "block.h"
#include "philox.h"
#include "posit.h"
#include "table.h"

template <class T> struct lpt_loops {
    typedef typename lpt_carrier<T>::bits U;
    // elements first .. last of x into y; `first` is a multiple of LPT_GROUP where mode is
    // stochastic
    void (*grid)(const T *x, T *y, int64_t first, int64_t last, const lpt_grid &, const lpt_rule &);
    // largest magnitude of each block of slab `slab` into `largest`
    void (*maxima)(const T *x, const lpt_layout &, int32_t slab_dims, int64_t slab, U *largest);
    // slab `slab` rounded, given the largest magnitude of each of its blocks
    void (*blocks)(const T *x, T *y, const lpt_layout &, int32_t slab_dims, int64_t slab,
                   const U *largest, const lpt_blocks &, const lpt_rule &);
};

// Loops of codebooks.cpp; `first` as in lpt_loops::grid.
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

struct lpt_build {
    const char *name;
    lpt_loops<float> f32;
    lpt_loops<double> f64;
    const lpt_codebooks *codebooks;
};

extern const lpt_build lpt_baseline;
#ifdef LPT_X86
extern const lpt_build lpt_v3, lpt_v4;
#endif
