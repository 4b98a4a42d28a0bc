// Sums of products on the CPU. Compiled once per instruction set, with LPT_GEMM naming the result;
// threads and the choice of the set are in gemm_library.cpp.
#include "gemm_plan.h"

namespace {

template <class T> plan planned(const lpt_product &p, const lpt_accumulator &acc) {
    // Tiles pay where they are full; a single number needs no neighbours.
    const plan tiles = sizeof(T) == 4 && !p.running && p.n > 1 ? choose_f32(acc) : plan{};
    if (tiles.run && p.m > 1)
        return tiles;
    if (p.n == 1)
        return {any_rows<T, 1>, 1, 1};
    return {any_rows<T, WIDE>, WIDE, 1};
}

template <class T> int64_t units(const lpt_product &p, const lpt_accumulator &acc) {
    const plan chosen = planned<T>(p, acc);
    return p.batch * ((p.n + chosen.columns - 1) / chosen.columns) *
           ((p.m + chosen.rows - 1) / chosen.rows);
}

template <class T>
void run(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
    planned<T>(p, acc).run(p, acc, first, last);
}

}  // namespace

extern const lpt_gemm_loops LPT_GEMM = {units<float>, run<float>, units<double>, run<double>};
