// What one build of gemm.cpp for one instruction set offers.
#pragma once
#include "gemm.h"

// Called from many places, each time for many numbers: copies would only make the library larger.
#define LPT_SHARED __attribute__((noinline))

struct lpt_gemm_loops {
    // how many units of work a product has that know nothing of each other, and units first ..
    // last, which are false where there is no memory for them
    int64_t (*f32_units)(const lpt_product &, const lpt_accumulator &);
    bool (*f32)(const lpt_product &, const lpt_accumulator &, int64_t first, int64_t last);
    int64_t (*f64_units)(const lpt_product &, const lpt_accumulator &);
    bool (*f64)(const lpt_product &, const lpt_accumulator &, int64_t first, int64_t last);
};
