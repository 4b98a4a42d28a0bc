// Sums of products on the CPU. Compiled once per instruction set, with LPT_GEMM naming the result;
// threads and the choice of the set are in gemm_library.cpp.
#include "gemm_loops.h"
#include "gemm_rows.h"

namespace {

template <class T>
void rows(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
    if (p.n == 1)
        any_rows<T, 1>(p, acc, first, last);
    else
        any_rows<T, WIDE>(p, acc, first, last);
}

}  // namespace

extern const lpt_gemm_loops LPT_GEMM = {{row_units<1>, row_units<WIDE>}, rows<float>, rows<double>};
