// Sums of products on the device: which kernel forms them.
#include "gemm_device_tile.h"
#include "gemm_element.h"

namespace {

// Whether an infinity follows a format's last binade, all of which it has, as in IEEE 754.
bool ends_in_infinity(const lpt_grid &g) {
    return g.overflow == LPT_INF && g.max == ldexp(2.0 - ldexp(1.0, 1 - g.precision), g.emax);
}

// Whether a format that has a way is that of IEEE 754 with so many digits and exponents.
bool is_ieee(const lpt_grid &g, int32_t precision, int32_t emax) {
    return g.precision == precision && g.emax == emax && g.emin == 1 - emax && ends_in_infinity(g);
}

// OCP's E4M3, in which all that is larger becomes the largest number.
bool is_e4m3(const lpt_grid &g) {
    return g.precision == 4 && g.emax == 8 && g.emin == -6 && g.overflow == LPT_SATURATE &&
           g.max == 448;
}

lpt_level level_of(const lpt_accumulator &a) {
    const lpt_rule rule = {a.mode, a.bits, a.beyond, 0, {0, 0}};
    lpt_level l;
    l.sum = lpt_make_cell<double>(a.sum, rule, 0);
    l.product = lpt_make_cell<double>(a.has_product ? a.product : a.sum, rule, 0);
    l.turn = a.turn;
    l.chunk = a.chunk;
    l.mode = a.mode;
    l.order = a.order;
    l.has_product = a.has_product;
    l.fp32 = a.fp32;
    l.alignment = a.alignment;
    l.whole = a.whole;
    l.least = a.least;
    l.least_a = a.least_a;
    l.least_b = a.least_b;
    l.mask = 0xffffffffu << (32 - a.bits);
    return l;
}

// What the tiles can do, tried one after the other. True: `error` is what the launch returned.
struct tiles {
    const lpt_product &p;
    const lpt_accumulator &acc, &in;
    const lpt_key *drawn;
    void *stream;
    int32_t error;

    template <class R> static void make(const lpt_grid &g, int32_t mode, R *rounder) {
        const lpt_rule rule = {mode, 32, 0, 0, {0, 0}};
        lpt_make_rounder(lpt_make_cell<float>(g, rule, 0), mode, rounder);
    }

    template <class S> bool launch_steps(const S &steps) {
        const int64_t side = LPT_SIDE, wide = (p.n + side - 1) / side,
                      tall = (p.m + side - 1) / side;
        error = lpt_launch(LPT_KERNEL(lpt_gemm_tile, S), lpt_blocks_for(p.batch * wide * tall),
                           stream, p, steps);
        return true;
    }
    template <class SUM, class PRODUCT, class INNER, class OUTER> bool launch() {
        lpt_steps<SUM, PRODUCT, INNER, OUTER> steps;
        lpt_make_sum(acc.mode, &steps.sum);
        make(in.has_product ? in.product : in.sum, in.mode, &steps.product);
        make(in.sum, in.mode, &steps.inner);
        make(acc.sum, acc.mode, &steps.outer);
        steps.chunk = (int32_t)acc.chunk;
        return launch_steps(steps);
    }
    template <class S> bool launch_rounded() {
        S steps;
        lpt_make_sum(acc.mode, &steps.sum);
        make(acc.sum, acc.mode, &steps.round);
        return launch_steps(steps);
    }
    template <class S> bool launch_level(S steps) {
        steps.level = level_of(acc);
        steps.key = p.key;
        steps.drawn = drawn;
        steps.elements = p.batch * p.m * p.n;
        steps.wide = p.n;
        return launch_steps(steps);
    }
    template <class STEP> bool launch_drawn(const STEP &step) {
        lpt_drawn_steps<STEP> steps;
        steps.step = step;
        steps.level = level_of(acc);
        steps.drawn = drawn;
        return launch_steps(steps);
    }
    template <class SUM, class ROUND> bool launch_drawn() {
        lpt_drawn_step<SUM, ROUND> step;
        make(acc.sum, acc.mode, &step.round);
        return launch_drawn(step);
    }
    template <class SUM, class END, bool CHUNKED> bool launch_fixed() {
        lpt_fixed_steps<SUM, END, CHUNKED> steps;
        lpt_make_fixed(in, &steps.inner);
        lpt_make_fixed(acc, &steps.outer);
        steps.chunk = (int32_t)acc.chunk;
        return launch_steps(steps);
    }
    template <bool FP32, class END> bool launch_fixed_drawn() {
        lpt_fixed_drawn_step<FP32, END> step;
        lpt_make_fixed(acc, &step);
        return launch_drawn(step);
    }

    // Products and sums of formats of their own.
    template <class SUM> bool in_order(lpt_way product, lpt_way sum) {
        typedef lpt_none O;
        typedef lpt_wide_rounder W;
        typedef lpt_added_rounder A;
        typedef lpt_fp16_rounder F;
        typedef lpt_bf16_rounder B;
        const bool fp16 = is_ieee(in.sum, 11, 15), bf16 = is_ieee(in.sum, 8, 127);
        if (acc.chunk > 1) {
            if (in.has_product)
                return false;
            if (fp16 && is_ieee(acc.sum, 11, 15))
                return launch<SUM, O, F, F>();
            if (bf16 && is_ieee(acc.sum, 8, 127))
                return launch<SUM, O, B, B>();
            return sum == LPT_WIDE_RANGE ? launch<SUM, O, W, W>() : launch<SUM, O, A, A>();
        }
        if (!in.has_product && fp16)
            return launch<SUM, O, F, O>();
        if (!in.has_product && bf16)
            return launch<SUM, O, B, O>();
        if (!in.has_product && is_ieee(in.sum, 3, 15))
            return launch<SUM, O, lpt_e5m2_rounder, O>();
        if (!in.has_product && is_e4m3(in.sum))
            return launch<SUM, O, lpt_e4m3_rounder, O>();
        if (!in.has_product && sum == LPT_ADDED && in.sum.emax >= 1 && ends_in_infinity(in.sum))
            return launch<SUM, O, lpt_ieee_rounder, O>();
        if (!in.has_product && sum == LPT_ADDED && in.sum.overflow == LPT_SATURATE)
            return launch<SUM, O, lpt_saturating_rounder, O>();
        if (!in.has_product)
            return sum == LPT_WIDE_RANGE ? launch<SUM, O, W, O>() : launch<SUM, O, A, O>();
        if (product == LPT_WIDE_RANGE)
            return sum == LPT_WIDE_RANGE ? launch<SUM, W, W, O>() : launch<SUM, W, A, O>();
        return sum == LPT_WIDE_RANGE ? launch<SUM, A, W, O>() : launch<SUM, A, A, O>();
    }

    // Whether a mode tells which of two neighbours it is by the sign or the last place.
    static bool is_inward(int32_t mode) { return !lpt_to_nearest(mode) && mode < LPT_STOCHASTIC; }
    // Whether one of the rounders that are told the mode knows it.
    static bool is_known(int32_t mode, lpt_way sum) {
        return is_inward(mode) || (mode == LPT_NEAREST_AWAY && sum == LPT_WIDE_RANGE);
    }

    // Sums in the modes that are neither to nearest even nor stochastic.
    template <class SUM> bool by_mode(lpt_way sum) {
        if (!is_known(acc.mode, sum) || !is_known(in.mode, sum))
            return false;
        typedef lpt_none O;
        typedef lpt_wide_rounder_by W;
        typedef lpt_added_rounder_by A;
        if (acc.chunk > 1)
            return sum == LPT_WIDE_RANGE ? launch<SUM, O, W, W>() : launch<SUM, O, A, A>();
        return sum == LPT_WIDE_RANGE ? launch<SUM, O, W, O>() : launch<SUM, O, A, O>();
    }

    // The other orders, in all modes that are not stochastic.
    template <template <class, class> class STEPS, class SUM> bool other_order(lpt_way sum) {
        if (acc.mode != LPT_NEAREST)
            return is_known(acc.mode, sum) &&
                   (sum == LPT_WIDE_RANGE ? launch_rounded<STEPS<SUM, lpt_wide_rounder_by>>()
                                          : launch_rounded<STEPS<SUM, lpt_added_rounder_by>>());
        if (is_ieee(acc.sum, 11, 15))
            return launch_rounded<STEPS<SUM, lpt_fp16_rounder>>();
        if (is_ieee(acc.sum, 8, 127))
            return launch_rounded<STEPS<SUM, lpt_bf16_rounder>>();
        return sum == LPT_WIDE_RANGE ? launch_rounded<STEPS<SUM, lpt_wide_rounder>>()
                                     : launch_rounded<STEPS<SUM, lpt_added_rounder>>();
    }
    template <template <class, class> class STEPS> bool in_other_order(lpt_way sum) {
        if (acc.chunk > 1 || acc.has_product || acc.mode >= LPT_STOCHASTIC)
            return false;
        if (sum == LPT_AS_CARRIER && (acc.fp32 || acc.mode == LPT_NEAREST))
            return launch_rounded<STEPS<lpt_in_fp32, lpt_carrier_rounder>>();
        if (sum == LPT_AS_CARRIER)
            return is_inward(acc.mode) &&
                   launch_rounded<STEPS<lpt_side_in_fp32, lpt_carrier_rounder>>();
        if (acc.fp32)
            return other_order<STEPS, lpt_in_fp32>(sum);
        return lpt_odd_fits(acc.sum) && other_order<STEPS, lpt_odd_in_fp32>(sum);
    }

    // Drawn sums of few enough digits that fp32 hardly ever leaves them open.
    bool by_words(lpt_way sum) {
        if (acc.chunk > 1 || acc.has_product || acc.beyond != LPT_BEYOND_OVERFLOW ||
            sum == LPT_AS_CARRIER || acc.sum.precision < 2 || acc.sum.precision > 16)
            return false;
        typedef lpt_wide_drawn_rounder W;
        typedef lpt_added_drawn_rounder A;
        if (acc.fp32)
            return sum == LPT_WIDE_RANGE ? launch_drawn<lpt_in_fp32, W>()
                                         : launch_drawn<lpt_in_fp32, A>();
        return sum == LPT_WIDE_RANGE ? launch_drawn<lpt_cut_in_fp32, W>()
                                     : launch_drawn<lpt_cut_in_fp32, A>();
    }

    // Fp32 to nearest inside the chunks.
    template <class SUM> bool fp32_inside_of(lpt_way sum) {
        typedef lpt_carrier_rounder C;
        return sum == LPT_WIDE_RANGE ? launch<SUM, lpt_none, C, lpt_wide_rounder>()
                                     : launch<SUM, lpt_none, C, lpt_added_rounder>();
    }
    bool fp32_inside(lpt_way sum) {
        if (acc.mode != LPT_NEAREST || sum == LPT_NO_WAY || acc.turn > 0)
            return launch_level(lpt_fp32_chunk_steps());
        if (sum == LPT_AS_CARRIER)
            return launch<lpt_in_fp32, lpt_none, lpt_carrier_rounder, lpt_carrier_rounder>();
        if (acc.fp32)
            return fp32_inside_of<lpt_in_fp32>(sum);
        return lpt_odd_fits(acc.sum) ? fp32_inside_of<lpt_odd_in_fp32>(sum)
                                     : launch_level(lpt_fp32_chunk_steps());
    }

    // Fixed point that is not wide, and turns or stops at its ends.
    static bool fixed(const lpt_accumulator &a) {
        return a.turn > 0 ? lpt_spacing_fits<float>(a.sum) && a.sum.precision >= 1
                          : lpt_fixed_fits<float>(a.sum);
    }
    template <bool BY, bool FP32, class END> bool fixed_point() {
        typedef lpt_fixed_sum<BY, FP32> SUM;
        return acc.chunk > 1 ? launch_fixed<SUM, END, true>() : launch_fixed<SUM, END, false>();
    }
    template <bool FP32, class END> bool fixed_point() {
        if (acc.mode == LPT_NEAREST && in.mode == LPT_NEAREST)
            return fixed_point<false, FP32, END>();
        if (is_inward(acc.mode) && is_inward(in.mode))
            return fixed_point<true, FP32, END>();
        // What is left above a number has digits of fp32 far below the spacing.
        const bool drawn = acc.mode == LPT_STOCHASTIC && acc.beyond == LPT_BEYOND_OVERFLOW &&
                           acc.chunk == 1 && acc.sum.emin - acc.sum.precision >= -122;
        return drawn && launch_fixed_drawn<FP32, END>();
    }
    bool fixed_point() {
        if (in.fp32 != acc.fp32 || !fixed(in) || (in.turn > 0) != (acc.turn > 0))
            return false;
        if (acc.turn > 0)
            return acc.fp32 ? fixed_point<true, lpt_fixed_turn>()
                            : fixed_point<false, lpt_fixed_turn>();
        return acc.fp32 ? fixed_point<true, lpt_fixed_stop>()
                        : fixed_point<false, lpt_fixed_stop>();
    }

    // Fp32 itself in the modes that are not to nearest.
    bool fp32_by_mode() {
        typedef lpt_none O;
        typedef lpt_no_rounder N;
        if (!is_inward(acc.mode) || in.mode != acc.mode)
            return false;
        return acc.chunk > 1 ? launch<lpt_side_in_fp32, O, N, N>()
                             : launch<lpt_side_in_fp32, O, N, O>();
    }

    // Chunks that lie in shared memory.
    bool aligned(lpt_way sum) {
        if (acc.whole || acc.chunk > lpt_aligned_steps<true>::DEPTH)
            return false;
        const bool cut = acc.mode == LPT_TOWARD_ZERO && acc.turn == 0 &&
                         (sum == LPT_AS_CARRIER || sum == LPT_WIDE_RANGE);
        if (!cut)
            return launch_level(lpt_aligned_steps<false>());
        lpt_aligned_steps<true> steps;
        steps.keep = ~0u << (24 - acc.sum.precision);
        return launch_level(steps);
    }

    bool run() {
        const lpt_way sum = lpt_fp32_way(acc.sum), within = lpt_fp32_way(in.sum);
        const lpt_way product = in.has_product ? lpt_fp32_way(in.product) : LPT_NO_WAY;
        const bool few = p.m < LPT_DEPTH || p.n < LPT_DEPTH;  // a tile would be mostly empty
        if (few || p.running)
            return false;
        if (acc.order == LPT_ALIGNED)
            return aligned(sum);
        if (acc.chunk > INT32_MAX || in.chunk > 1)
            return false;
        const bool sequential = acc.order == LPT_SEQUENTIAL && in.order == LPT_SEQUENTIAL;
        // Fp32 that is rounded to fp32 stays what it is, in every mode.
        const bool fp32 = within == LPT_AS_CARRIER && (in.fp32 || in.mode == LPT_NEAREST);
        if (sequential && fp32 && !in.has_product && acc.chunk > 1)
            return fp32_inside(sum);
        if (sequential && fp32 && !in.has_product)
            return launch<lpt_in_fp32, lpt_none, lpt_carrier_rounder, lpt_none>();
        if (sequential && !in.has_product && fixed(acc))
            return fixed_point();
        if (acc.turn > 0 || in.turn > 0)
            return false;
        if (sum == LPT_NO_WAY || within == LPT_NO_WAY)
            return false;
        if (acc.order == LPT_KAHAN)
            return in_other_order<lpt_kahan_steps>(sum);
        if (acc.order == LPT_PAIRWISE && p.k < 2 << LPT_WAITING)
            return in_other_order<lpt_pairwise_steps>(sum);
        if (!sequential)
            return false;
        if (sum == LPT_AS_CARRIER && within == LPT_AS_CARRIER && !in.has_product && !acc.fp32)
            return fp32_by_mode();
        if (acc.mode == LPT_STOCHASTIC)
            return by_words(sum);
        const bool exact = !acc.fp32 && !in.fp32 && lpt_odd_fits(acc.sum) && lpt_odd_fits(in.sum);
        if (acc.mode != LPT_NEAREST || in.mode != LPT_NEAREST) {
            if (in.has_product || within != sum || sum == LPT_AS_CARRIER)
                return false;
            if (acc.fp32 && in.fp32)
                return by_mode<lpt_in_fp32>(sum);
            return exact && by_mode<lpt_odd_in_fp32>(sum);
        }
        if (in.has_product && (product == LPT_NO_WAY || product == LPT_AS_CARRIER))
            return false;
        if (in.fp32 != acc.fp32 || within != sum || within == LPT_AS_CARRIER)
            return false;
        if (acc.fp32)
            return in_order<lpt_in_fp32>(product, sum);
        return exact && (!in.has_product || lpt_odd_fits(in.product)) &&
               in_order<lpt_odd_in_fp32>(product, sum);
    }
};

template <class T>
int32_t gemm(const lpt_product &p, const lpt_accumulator &acc, const lpt_key *drawn, int32_t device,
             void *stream) {
    const int32_t error = lpt_on_device(device);
    if (error)
        return error;
    const lpt_accumulator &in = acc.inner ? *acc.inner : acc;
    if constexpr (sizeof(T) == 4) {
        tiles t = {p, acc, in, drawn, stream, 0};
        if (t.run())
            return t.error;
    }
    const lpt_levels levels = {{level_of(acc), level_of(in)}};
    const lpt_tiling by = lpt_make_tiling(p);
    const int64_t blocks = lpt_blocks_for(by.tiles);
    return acc.inner ? lpt_launch(LPT_KERNEL(lpt_gemm_elements, T, 2), blocks, stream, p, by,
                                  levels, drawn)
                     : lpt_launch(LPT_KERNEL(lpt_gemm_elements, T, 1), blocks, stream, p, by,
                                  levels, drawn);
}

}  // namespace

// At most LPT_DEEPEST accumulators in one another. Where `drawn` is none, the product has the key.
LPT_API int32_t lpt_cuda_gemm_f32(const lpt_product *p, const lpt_accumulator *acc,
                                  const lpt_key *drawn, int32_t device, void *stream) {
    return gemm<float>(*p, *acc, drawn, device, stream);
}
LPT_API int32_t lpt_cuda_gemm_f64(const lpt_product *p, const lpt_accumulator *acc,
                                  const lpt_key *drawn, int32_t device, void *stream) {
    return gemm<double>(*p, *acc, drawn, device, stream);
}
