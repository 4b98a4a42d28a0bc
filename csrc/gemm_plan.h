// Which tiles form the sums of an accumulator, if any do.
#pragma once
#include "gemm_drawn.h"
#include "gemm_fixed.h"

namespace {

#if defined(__FMA__)
template <class SUM, class PRODUCT, class INNER, class OUTER, bool FUSED> plan in_order() {
    return tiled<sequential<SUM, PRODUCT, INNER, OUTER, FUSED>>();
}

bool without_subnormals(const lpt_grid &g) { return g.subnormals != LPT_GRADUAL; }
lpt_grid with_subnormals(lpt_grid g) {
    g.subnormals = LPT_GRADUAL;
    return g;
}

// Sums and products in fp32 alone, of formats with fp32's range by W and of others by N; where
// there are chunks, inside and outside one way.
template <class SUM, class W, class N>
plan by_way(const lpt_accumulator &acc, const lpt_accumulator &in) {
    typedef to_carrier<float> C;
    const lpt_way sum = lpt_fp32_way(acc.sum), way = lpt_fp32_way(in.product);
    const lpt_way product = in.has_product ? way : LPT_NO_WAY;
    if (!SUM::fits(acc.sum) || !SUM::fits(in.sum) || (in.has_product && !SUM::fits(in.product)))
        return {};
    if (lpt_fp32_way(in.sum) != sum || (in.has_product && way == LPT_NO_WAY))
        return {};
    if (product == LPT_NO_WAY && sum == LPT_WIDE_RANGE)
        return in_order<SUM, C, W, W, true>();
    if (product == LPT_NO_WAY && sum == LPT_ADDED)
        return in_order<SUM, C, N, N, true>();
    if (product == LPT_WIDE_RANGE && sum == LPT_WIDE_RANGE)
        return in_order<SUM, W, W, W, false>();
    if (product == LPT_ADDED && sum == LPT_ADDED)
        return in_order<SUM, N, N, N, false>();
    if (product == LPT_WIDE_RANGE && sum == LPT_ADDED)
        return in_order<SUM, W, N, N, false>();
    if (product == LPT_ADDED && sum == LPT_WIDE_RANGE)
        return in_order<SUM, N, W, W, false>();
    return {};
}
template <class SUM, int MODE>
plan by_way_in(const lpt_accumulator &acc, const lpt_accumulator &in) {
    return by_way<SUM, to_wide_range_by<MODE>, to_added_by<float, MODE>>(acc, in);
}
// In any mode but nearest.
template <class SUM> plan in_mode(const lpt_accumulator &acc, const lpt_accumulator &in) {
    switch (acc.mode) {
    case LPT_NEAREST_AWAY: return by_way_in<SUM, LPT_NEAREST_AWAY>(acc, in);
    case LPT_NEAREST_UP: return by_way_in<SUM, LPT_NEAREST_UP>(acc, in);
    case LPT_TOWARD_ZERO: return by_way_in<SUM, LPT_TOWARD_ZERO>(acc, in);
    case LPT_DOWN: return by_way_in<SUM, LPT_DOWN>(acc, in);
    case LPT_UP: return by_way_in<SUM, LPT_UP>(acc, in);
    case LPT_ODD: return by_way_in<SUM, LPT_ODD>(acc, in);
    default: return {};
    }
}

// The same to nearest, and in fixed point or without subnormal numbers.
template <class SUM> plan nearest(const lpt_accumulator &acc, const lpt_accumulator &in) {
    typedef to_carrier<float> C;
    typedef to_wide_range W;
    typedef to_nearest<float> N;
    typedef to_fixed<float> F;
    if (!SUM::fits(acc.sum) || !SUM::fits(in.sum) || (in.has_product && !SUM::fits(in.product)))
        return {};
    if (F::fits(acc.sum) && F::fits(in.sum) && (!in.has_product || F::fits(in.product)))
        return in.has_product ? in_order<SUM, F, F, F, false>() : in_order<SUM, C, F, F, true>();
    if (without_subnormals(acc.sum) && without_subnormals(in.sum) && !in.has_product) {
        typedef typename SUM::to_the_ends S;
        const lpt_way sum = lpt_fp32_way(with_subnormals(acc.sum));
        if (lpt_fp32_way(with_subnormals(in.sum)) != sum)
            return {};
        typedef no_subnormals<W> SW;
        typedef no_subnormals<N> SN;
        if (sum == LPT_WIDE_RANGE)
            return in_order<S, C, SW, SW, true>();
        return sum == LPT_ADDED ? in_order<S, C, SN, SN, true>() : plan{};
    }
    return by_way<SUM, W, N>(acc, in);
}

// fp32 to nearest inside the chunks; WIDE and OTHER round their sums.
template <class SUM> struct outside : SUM {
    static LPT_STEP floats fma(floats a, floats b, floats c) { return in_fp32::fma(a, b, c); }
};
template <class SUM, class WIDE, class OTHER> plan fp32_inside(lpt_way sum) {
    typedef to_carrier<float> C;
    if (sum == LPT_WIDE_RANGE)
        return in_order<outside<SUM>, C, C, WIDE, true>();
    if (sum == LPT_ADDED)
        return in_order<outside<SUM>, C, C, OTHER, true>();
    return {};
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// Products, if they are rounded, and sums toward zero, up or down.
template <int MODE> plan to_one_side(const lpt_accumulator &acc, const lpt_accumulator &in) {
    typedef side_in_fp32<MODE> S;
    typedef to_carrier<float> C;
    typedef to_wide_side<MODE> W;
    typedef to_side<MODE> N;
    const lpt_grid &sum = acc.sum, &within = in.sum;
    const lpt_way way = lpt_fp32_way(sum);
    if (in.has_product)
        return lpt_side_fits(sum) && lpt_side_fits(within) && lpt_side_fits(in.product)
                   ? in_order<S, N, N, N, false>()
                   : plan{};
    if (way == LPT_AS_CARRIER && lpt_fp32_way(within) == way)
        return in_order<S, C, C, C, true>();
    if (way == LPT_WIDE_RANGE && lpt_fp32_way(within) == way)
        return in_order<S, C, W, W, true>();
    if (lpt_side_fits(sum) && lpt_side_fits(within))
        return in_order<S, C, N, N, true>();
    return {};
}
#endif

#if !defined(__AVX512F__) || !defined(__AVX512DQ__)
// Sums of fp32 toward zero, up or down.
template <int MODE> plan to_one_side(const lpt_accumulator &acc, const lpt_accumulator &in) {
    typedef to_carrier<float> C;
    const bool fits = lpt_fp32_way(acc.sum) == LPT_AS_CARRIER &&
                      lpt_fp32_way(in.sum) == LPT_AS_CARRIER && !in.has_product;
    return fits ? in_order<side_by_terms<MODE>, C, C, C, true>() : plan{};
}
#endif

// Each sum as it is rounded by R, in double; products in a format of their own, or exact.
template <class SUM, class R> plan in_double(bool has_product) {
    return has_product ? in_order<SUM, R, R, R, false>()
                       : in_order<SUM, to_carrier<double>, R, R, true>();
}
template <class T> bool plain(const lpt_accumulator &acc) {
    return rounding_of<T>(acc.sum, acc).plain &&
           (!acc.has_product || rounding_of<T>(acc.product, acc).plain);
}
// what to_grid rounds, in one mode or another
bool gridded(const lpt_accumulator &acc) {
    typedef to_grid<ANY_MODE> R;
    return acc.mode <= LPT_STOCHASTIC && R::fits(rounding_of<double>(acc.sum, acc)) &&
           (!acc.has_product || R::fits(rounding_of<double>(acc.product, acc)));
}

// fp32 to nearest, which compute="fp32" rounds to once.
bool in_fp32_to_nearest(const lpt_accumulator &acc) {
    return !acc.has_product && acc.mode == LPT_NEAREST && lpt_fp32_way(acc.sum) == LPT_AS_CARRIER;
}

// Stochastic sums, of chunks that are drawn with as many bits or are fp32's.
template <class WAY> plan drawn_on_tiles(const lpt_accumulator &in) {
    return in.has_product ? tiled<drawn<WAY, WAY, false>>() : tiled<drawn<WAY, WAY, true>>();
}
template <class WAY> bool fits(const lpt_accumulator &acc, const lpt_accumulator &in) {
    return WAY::fits(acc.sum) && WAY::fits(in.sum) && (!in.has_product || WAY::fits(in.product));
}

plan stochastic(const lpt_accumulator &acc, const lpt_accumulator &in) {
    typedef drawn_in_fp32<drawn_as_it_is> rounded_first;
    typedef drawn_in_fp32<drawn_exactly> exact;
    if (in_fp32_to_nearest(in) && acc.chunk > 1) {
        if (!plain<float>(acc))
            return {};
        if (acc.fp32)
            return rounded_first::fits(acc.sum) ? tiled<drawn<in_carrier, rounded_first, true>>()
                                                : plan{};
        return exact::fits(acc.sum) ? tiled<drawn<in_carrier, exact, true>>() : plan{};
    }
    if (in.mode != LPT_STOCHASTIC || in.bits != acc.bits || in.fp32 != acc.fp32 || !gridded(acc) ||
        !gridded(in))
        return {};
    const bool plain_in_fp32 = plain<float>(acc) && plain<float>(in);
    if (acc.fp32 && fits<rounded_first>(acc, in) && plain_in_fp32)
        return drawn_on_tiles<rounded_first>(in);
    if (acc.fp32)
        return drawn_on_tiles<drawn_by<fp32_in_double, to_grid<LPT_STOCHASTIC>>>(in);
    if (fits<exact>(acc, in) && plain_in_fp32)
        return drawn_on_tiles<exact>(in);
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if (fits<to_drawn>(acc, in) && plain<double>(acc) && plain<double>(in))
        return drawn_on_tiles<drawn_in_double>(in);
#endif
    return drawn_on_tiles<drawn_by<odd_in_double, to_grid<LPT_STOCHASTIC>>>(in);
}

// Chunks of fused multiply-adds of fp32, which are rounded once, to nearest.
plan chunks_of_fp32(const lpt_accumulator &acc, lpt_way sum) {
    typedef to_carrier<float> C;
    if (acc.mode == LPT_NEAREST && sum == LPT_AS_CARRIER)
        return in_order<in_fp32, C, C, C, true>();
    if (acc.mode == LPT_NEAREST && acc.fp32)
        return fp32_inside<in_fp32, to_wide_range, to_nearest<float>>(sum);
    if (acc.mode == LPT_NEAREST && lpt_odd_fits(acc.sum))
        return fp32_inside<odd_in_fp32, to_wide_range, to_nearest<float>>(sum);
    enum { CUT = LPT_TOWARD_ZERO };
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if (acc.mode == CUT && !acc.fp32)
        return fp32_inside<side_in_fp32<CUT>, to_wide_side<CUT>, to_side<CUT>>(sum);
#else
    if (acc.mode == CUT && !acc.fp32 && odd_in_fp32::fits(acc.sum))
        return fp32_inside<odd_in_fp32::to_the_ends, to_wide_range_by<CUT>,
                           to_added_by<float, CUT>>(sum);
#endif
    return {};
}

// Sums, products and sums of chunks that are all in one mode, each rounded once.
plan exact(const lpt_accumulator &acc, const lpt_accumulator &in) {
    const int32_t mode = acc.mode;
    plan found = {};
    if (mode == LPT_NEAREST)
        found = nearest<odd_in_fp32>(acc, in);
    if (mode == LPT_TOWARD_ZERO)
        found = to_one_side<LPT_TOWARD_ZERO>(acc, in);
    if (mode == LPT_DOWN)
        found = to_one_side<LPT_DOWN>(acc, in);
    if (mode == LPT_UP)
        found = to_one_side<LPT_UP>(acc, in);
    if (!found.run && mode != LPT_NEAREST)
        found = in_mode<odd_in_fp32::to_the_ends>(acc, in);
    const bool fits = plain<double>(acc) && plain<double>(in) && lpt_added_fits<double>(acc.sum) &&
                      lpt_added_fits<double>(in.sum) &&
                      (!in.has_product || lpt_added_fits<double>(in.product));
    if (!found.run && fits && mode == LPT_NEAREST)
        return in_double<odd_in_double, to_nearest<double>>(in.has_product);
    if (!found.run && fits && mode == LPT_TOWARD_ZERO)
        return in_double<odd_in_double, to_added_by<double, LPT_TOWARD_ZERO>>(in.has_product);
    if (!found.run && fits && mode == LPT_DOWN)
        return in_double<odd_in_double, to_added_by<double, LPT_DOWN>>(in.has_product);
    if (!found.run && fits && mode == LPT_UP)
        return in_double<odd_in_double, to_added_by<double, LPT_UP>>(in.has_product);
    if (!found.run && mode < LPT_STOCHASTIC && gridded(acc) && gridded(in))
        return in_double<odd_in_double, to_grid<ANY_MODE>>(in.has_product);
    return found;
}

// The other orders, to nearest: a rounder of fp32 where there is one.
template <template <class, class, class, bool> class STEPS, class SUM>
plan in_fp32_alone(lpt_way way) {
    switch (way) {
    case LPT_AS_CARRIER: return tiled<STEPS<in_fp32, to_carrier<float>, to_carrier<float>, true>>();
    case LPT_WIDE_RANGE: return tiled<STEPS<SUM, to_wide_range, to_wide_range, true>>();
    case LPT_ADDED: return tiled<STEPS<SUM, to_nearest<float>, to_nearest<float>, true>>();
    default: return {};
    }
}

template <template <class, class, class, bool> class STEPS>
plan in_other_order(const lpt_accumulator &acc) {
    typedef to_grid<ANY_MODE> R;
    plan found = {};
    const lpt_way way =
        acc.mode == LPT_NEAREST && !acc.has_product ? lpt_fp32_way(acc.sum) : LPT_NO_WAY;
    if (acc.fp32 || way == LPT_AS_CARRIER)
        return in_fp32_alone<STEPS, in_fp32>(way);
    if (lpt_odd_fits(acc.sum))
        found = in_fp32_alone<STEPS, odd_in_fp32>(way);
    if (found.run || acc.mode >= LPT_STOCHASTIC || !gridded(acc))
        return found;
    return acc.has_product ? tiled<STEPS<odd_in_double, R, R, false>>()
                           : tiled<STEPS<odd_in_double, R, R, true>>();
}

// Exact products in a sum that wraps.
template <class SUM> plan wrapping(const lpt_accumulator &acc) {
    typedef to_carrier<double> C;
    typedef to_wrapped<to_multiple> M;
    typedef to_wrapped<to_grid<ANY_MODE>> R;
    if (acc.order != LPT_SEQUENTIAL || acc.chunk > 1 || acc.fp32 || acc.has_product)
        return {};
    if (acc.mode == LPT_NEAREST)
        return in_order<SUM, C, M, M, true>();
    return acc.mode < LPT_STOCHASTIC ? in_order<SUM, C, R, R, true>() : plan{};
}

// The tiles for an accumulator, if there are any.
plan choose_f32(const lpt_accumulator &acc) {
    if (acc.turn > 0)
        return wrapping<odd_in_double>(acc);
    if (acc.order == LPT_ALIGNED)
        return acc.mode >= LPT_STOCHASTIC || !gridded(acc) ? plan{}
               : acc.whole ? tiled<aligned<to_grid<ANY_MODE>, true>>()
                           : tiled<aligned<to_grid<ANY_MODE>, false>>();
    if (acc.order == LPT_EXACT && acc.chunk == 1 && !acc.has_product)
        return acc.mode < LPT_STOCHASTIC && gridded(acc) ? tiled<exactly<to_grid<ANY_MODE>>>()
                                                         : plan{};
    if (acc.order == LPT_KAHAN && acc.chunk == 1)
        return in_other_order<kahan>(acc);
    if (acc.order == LPT_PAIRWISE && acc.chunk == 1)
        return in_other_order<pairwise>(acc);
    if (acc.order != LPT_SEQUENTIAL)
        return {};
    const lpt_accumulator &in = acc.chunk > 1 ? *acc.inner : acc;
    if (in.order != LPT_SEQUENTIAL || in.chunk != 1 || in.turn > 0)
        return {};
    if (acc.mode == LPT_STOCHASTIC)
        return stochastic(acc, in);
    if (in_fp32_to_nearest(in))
        return chunks_of_fp32(acc, acc.chunk == 1 ? LPT_AS_CARRIER : lpt_fp32_way(acc.sum));
    if (in.mode != acc.mode || in.fp32 != acc.fp32)
        return {};
    if (!acc.fp32)
        return exact(acc, in);
    const plan found =
        acc.mode == LPT_NEAREST ? nearest<in_fp32>(acc, in) : in_mode<in_fp32>(acc, in);
    if (found.run || acc.mode >= LPT_STOCHASTIC || !gridded(acc) || !gridded(in))
        return found;
    return in_double<fp32_in_double, to_grid<ANY_MODE>>(in.has_product);
}

// The same of doubles.
plan choose_f64(const lpt_accumulator &acc) {
    typedef odd_of_doubles SUM;
    typedef to_fixed<double> F;
    typedef to_grid<ANY_MODE> R;
    if (acc.turn > 0)
        return wrapping<SUM>(acc);
    if (acc.chunk > 1 || acc.mode >= LPT_STOCHASTIC || !gridded(acc))
        return {};
    const bool fused = !acc.has_product;
    if (acc.order == LPT_KAHAN && fused)
        return tiled<kahan<SUM, R, R, true>>();
    if (acc.order == LPT_PAIRWISE && fused)
        return tiled<pairwise<SUM, R, R, true>>();
    if (acc.order != LPT_SEQUENTIAL)
        return {};
    if (acc.mode == LPT_NEAREST && fused && F::fits(acc.sum))
        return in_order<SUM, to_carrier<double>, F, F, true>();
    return in_double<SUM, R>(acc.has_product);
}

plan choose(const lpt_accumulator &acc, float) { return choose_f32(acc); }
plan choose(const lpt_accumulator &acc, double) { return choose_f64(acc); }
#else
plan choose(const lpt_accumulator &, double) { return {}; }
#endif

}  // namespace
