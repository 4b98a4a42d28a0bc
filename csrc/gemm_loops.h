// What one build of gemm.cpp for one instruction set offers.
#pragma once
#include "gemm.h"

struct lpt_gemm_loops {
    // how many units of work a product has that know nothing of each other: for n = 1, for others
    int64_t (*units[2])(const lpt_product &);
    // units first .. last
    void (*f32)(const lpt_product &, const lpt_accumulator &, int64_t first, int64_t last);
    void (*f64)(const lpt_product &, const lpt_accumulator &, int64_t first, int64_t last);
};
