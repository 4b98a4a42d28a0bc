// Sums of products on the CPU. Compiled once per instruction set, with LPT_GEMM naming the result;
// threads and the choice of the set are in gemm_library.cpp.
#include "gemm_plan.h"

namespace {

template <class T> plan planned(const lpt_product &p, const lpt_accumulator &acc) {
    const plan tiles = !p.running && p.n > 1 ? choose(acc, T()) : plan{};
    // Even where a tile has one row alone, those of fp32 are faster than what rounds in double.
    if (tiles.run && (p.m > 1 || tiles.in_fp32))
        return tiles;
    if (p.n == 1)
        return {any_rows<T, 1>, 1, 1, false};
    return {any_rows<T, WIDE>, WIDE, 1, false};
}

template <class T> int64_t units(const lpt_product &p, const lpt_accumulator &acc) {
    const plan chosen = planned<T>(p, acc);
    return p.batch * ((p.n + chosen.columns - 1) / chosen.columns) *
           ((p.m + chosen.rows - 1) / chosen.rows);
}

template <class T>
bool run(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
    return planned<T>(p, acc).run(p, acc, first, last);
}

}  // namespace

extern const lpt_gemm_loops LPT_GEMM = {units<float>, run<float>, units<double>, run<double>};
