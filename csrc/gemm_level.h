// One level of an accumulator, and the rounding of doubles to any format in any mode.
#pragma once
#include "gemm_loops.h"
#if defined(__FMA__)
#include "gemm_double_rounders.h"
#endif

namespace {

// One level of an accumulator: its own rounding, and that of the chunks below.
struct level {
    const lpt_accumulator *acc;
    lpt_cell<double> sum, product;
    level *inside;

    explicit level(const lpt_accumulator &a)
        : acc(&a), inside(a.inner ? new level(*a.inner) : nullptr) {
        const lpt_rule rule = {a.mode, a.bits, a.beyond, 0, {0, 0}};
        sum = lpt_make_cell<double>(a.sum, rule, 0);
        product = a.has_product ? lpt_make_cell<double>(a.product, rule, 0) : sum;
    }
    ~level() { delete inside; }
    level(const level &) = delete;
    level &operator=(const level &) = delete;
};

template <int W, int MODE, bool PLAIN>
void round_all(double *x, const lpt_cell<double> &cell, const uint32_t *words) {
#if defined(__FMA__)
    if (W > 1 && MODE <= LPT_STOCHASTIC && to_grid<MODE>::fits(cell)) {
        const to_grid<MODE> rounder(cell, MODE);
        for (int l = 0; l < W; l += vectors<double>::length)
            stored(x + l, rounder(loaded(x + l), words + l));
        return;
    }
#endif
    const lpt_cell<double> c = cell;
    const lpt_rare<double> rare = lpt_make_rare(c);
    for (int l = 0; l < W; ++l)
        x[l] = lpt_value<double>(lpt_round<double, MODE, PLAIN>(
            lpt_bits(x[l]), c, rare, MODE < LPT_STOCHASTIC ? 0 : words[l]));
}

template <int W, bool PLAIN>
LPT_SHARED void round_mode(double *x, const lpt_cell<double> &c, int mode, const uint32_t *words) {
    lpt_with_mode(mode, [&](auto in) { round_all<W, decltype(in)::value, PLAIN>(x, c, words); });
}

}  // namespace
