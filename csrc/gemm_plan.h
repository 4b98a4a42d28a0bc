// Which tiles form the sums of an accumulator, if any do.
#pragma once
#include "gemm_tile.h"

namespace {

#if defined(__FMA__)
// Sums and products to nearest, in fp32 alone; where there are chunks, inside and outside one way.
template <class SUM> plan in_order(const lpt_accumulator &acc, const lpt_accumulator &in) {
    const lpt_way sum = lpt_fp32_way(acc.sum), way = lpt_fp32_way(in.product);
    const lpt_way product = in.has_product ? way : LPT_NO_WAY;
    if (lpt_fp32_way(in.sum) != sum || (in.has_product && way == LPT_NO_WAY))
        return {};
    typedef to_carrier<float> C;
    typedef to_wide_range W;
    typedef to_nearest<float> N;
    if (product == LPT_NO_WAY && sum == LPT_WIDE_RANGE)
        return tiles<SUM, C, W, W, true, false>::planned();
    if (product == LPT_NO_WAY && sum == LPT_ADDED)
        return tiles<SUM, C, N, N, true, false>::planned();
    if (product == LPT_WIDE_RANGE && sum == LPT_WIDE_RANGE)
        return tiles<SUM, W, W, W, false, false>::planned();
    if (product == LPT_ADDED && sum == LPT_ADDED)
        return tiles<SUM, N, N, N, false, false>::planned();
    if (product == LPT_WIDE_RANGE && sum == LPT_ADDED)
        return tiles<SUM, W, N, N, false, false>::planned();
    if (product == LPT_ADDED && sum == LPT_WIDE_RANGE)
        return tiles<SUM, N, W, W, false, false>::planned();
    return {};
}

// fp32 to nearest inside the chunks; WIDE and OTHER round their sums.
template <class SUM> struct outside : SUM {
    static LPT_STEP floats fma(floats a, floats b, floats c) { return in_fp32::fma(a, b, c); }
};
template <class SUM, class WIDE, class OTHER> plan fp32_inside(lpt_way sum) {
    typedef to_carrier<float> C;
    if (sum == LPT_WIDE_RANGE)
        return tiles<outside<SUM>, C, C, WIDE, true, false>::planned();
    if (sum == LPT_ADDED)
        return tiles<outside<SUM>, C, C, OTHER, true, false>::planned();
    return {};
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Exact products added toward zero, up or down.
template <int MODE> plan to_one_side(const lpt_grid &sum, const lpt_grid &within) {
    typedef side_in_fp32<MODE> S;
    typedef to_carrier<float> C;
    typedef to_wide_side<MODE> W;
    const lpt_way way = lpt_fp32_way(sum);
    if (way == LPT_AS_CARRIER && lpt_fp32_way(within) == way)
        return tiles<S, C, C, C, true, false>::planned();
    if (way == LPT_WIDE_RANGE && lpt_fp32_way(within) == way)
        return tiles<S, C, W, W, true, false>::planned();
    if (lpt_side_fits(sum) && lpt_side_fits(within))
        return tiles<S, C, to_side<MODE>, to_side<MODE>, true, false>::planned();
    return {};
}
#endif

// Each sum as it is rounded by R, in double.
template <class R> plan in_double(bool has_product) {
    return has_product ? tiles<odd_in_double, R, R, R, false, false>::planned()
                       : tiles<odd_in_double, to_carrier<double>, R, R, true, false>::planned();
}

bool plain(const lpt_accumulator &acc) {
    const lpt_rule rule = {acc.mode, acc.bits, acc.beyond, 0, {0, 0}};
    return lpt_make_cell<double>(acc.sum, rule, 0).plain &&
           (!acc.has_product || lpt_make_cell<double>(acc.product, rule, 0).plain);
}

plan stochastic(const lpt_accumulator &acc) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    typedef to_drawn D;
    if (D::fits(acc.sum) && (!acc.has_product || D::fits(acc.product))) {
        if (acc.fp32)
            return acc.has_product ? tiles<fp32_in_double, D, D, D, false, true>::planned()
                                   : tiles<fp32_in_double, D, D, D, true, true>::planned();
        return acc.has_product ? tiles<cut_in_double, D, D, D, false, true>::planned()
                               : tiles<cut_in_double, D, D, D, true, true>::planned();
    }
#endif
    typedef to_grid<LPT_STOCHASTIC> S;
    if (acc.fp32)
        return acc.has_product ? tiles<fp32_in_double, S, S, S, false, true>::planned()
                               : tiles<fp32_in_double, S, S, S, true, true>::planned();
    return acc.has_product ? tiles<odd_in_double, S, S, S, false, true>::planned()
                           : tiles<odd_in_double, S, S, S, true, true>::planned();
}

// Chunks of fused multiply-adds of fp32, which are rounded once, to nearest.
plan chunks_of_fp32(const lpt_accumulator &acc, lpt_way sum) {
    typedef to_carrier<float> C;
    if (acc.mode == LPT_NEAREST && sum == LPT_AS_CARRIER)
        return tiles<in_fp32, C, C, C, true, false>::planned();
    if (acc.mode == LPT_NEAREST && acc.fp32)
        return fp32_inside<in_fp32, to_wide_range, to_nearest<float>>(sum);
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if (acc.mode == LPT_NEAREST && lpt_odd_fits(acc.sum))
        return fp32_inside<odd_in_fp32, to_wide_range, to_nearest<float>>(sum);
    enum { CUT = LPT_TOWARD_ZERO };
    if (acc.mode == CUT && !acc.fp32)
        return fp32_inside<side_in_fp32<CUT>, to_wide_side<CUT>, to_side<CUT>>(sum);
#endif
    return {};
}

// Sums, products and sums of chunks that are all in one mode, each rounded once.
plan exact(const lpt_accumulator &acc, const lpt_accumulator &in) {
    const int32_t mode = acc.mode;
    plan found = {};
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if (mode == LPT_NEAREST && lpt_odd_fits(acc.sum) && lpt_odd_fits(in.sum) &&
        (!in.has_product || lpt_odd_fits(in.product)))
        found = in_order<odd_in_fp32>(acc, in);
    if (!in.has_product && mode == LPT_TOWARD_ZERO)
        found = to_one_side<LPT_TOWARD_ZERO>(acc.sum, in.sum);
    if (!in.has_product && mode == LPT_DOWN)
        found = to_one_side<LPT_DOWN>(acc.sum, in.sum);
    if (!in.has_product && mode == LPT_UP)
        found = to_one_side<LPT_UP>(acc.sum, in.sum);
#endif
    const bool fits = plain(acc) && plain(in) && lpt_added_fits<double>(acc.sum) &&
                      lpt_added_fits<double>(in.sum) &&
                      (!in.has_product || lpt_added_fits<double>(in.product));
    if (!found.run && fits && mode == LPT_NEAREST)
        return in_double<to_nearest<double>>(in.has_product);
    if (!found.run && fits && (mode == LPT_TOWARD_ZERO || mode == LPT_DOWN || mode == LPT_UP))
        return in_double<to_side_in_double>(in.has_product);
    return found;
}

// The tiles for an accumulator, if there are any.
plan choose_f32(const lpt_accumulator &acc) {
    if (acc.order != LPT_SEQUENTIAL || acc.turn > 0)
        return {};
    const lpt_accumulator &in = acc.chunk > 1 ? *acc.inner : acc;
    if (in.order != LPT_SEQUENTIAL || in.chunk != 1 || in.turn > 0)
        return {};
    if (acc.mode == LPT_STOCHASTIC && acc.chunk == 1)
        return plain(acc) ? stochastic(acc) : plan{};
    if (!in.has_product && in.mode == LPT_NEAREST && lpt_fp32_way(in.sum) == LPT_AS_CARRIER)
        return chunks_of_fp32(acc, acc.chunk == 1 ? LPT_AS_CARRIER : lpt_fp32_way(acc.sum));
    if (in.mode != acc.mode || in.fp32 != acc.fp32)
        return {};
    if (acc.fp32)
        return acc.mode == LPT_NEAREST ? in_order<in_fp32>(acc, in) : plan{};
    return exact(acc, in);
}
#else
plan choose_f32(const lpt_accumulator &) { return {}; }
#endif

}  // namespace
