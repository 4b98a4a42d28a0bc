// Every accumulator on the device, one output a thread: the steps of gemm_rows.h, without
// recursion, since a device's stack is laid out by the compiler.
#pragma once
#include "gemm_window.h"

enum { LPT_DEEPEST = 2 };  // accumulators in one another: the outermost, and that inside its chunks

// One accumulator, with what its roundings need.
struct lpt_level {
    lpt_cell<double> sum, product;
    double turn;
    int64_t chunk;
    int32_t mode, order, has_product, fp32, alignment, whole, least, least_a, least_b;
    uint32_t mask;
};
struct lpt_levels {
    lpt_level at[LPT_DEEPEST];
};

LPT_LONG double lpt_rounded(double x, const lpt_cell<double> &c, int32_t mode, uint32_t word) {
    const uint64_t u = lpt_bits(x);
    return lpt_value<double>(lpt_with_mode(mode, [&](auto in) {
        constexpr int MODE = decltype(in)::value;
        return lpt_round<double, MODE, false>(u, c, MODE < LPT_STOCHASTIC ? 0 : word);
    }));
}

// Out of line, as the above: every order rounds in several places.
LPT_LONG lpt_words lpt_words_of(uint64_t counter, lpt_key key) { return lpt_philox(counter, key); }

LPT_METHOD double lpt_wrapped_at(double x, const lpt_level &at) {
    return at.turn > 0 ? lpt_wrapped(x, at.turn) : x;
}

// The sum of one output. D counts the accumulators outside.
template <class T, int LEVELS> struct lpt_element {
    const lpt_levels &levels;
    lpt_window<T> operands;
    lpt_key key;
    uint64_t element, elements, event, group;
    lpt_words words;
    T *running;  // where each sum goes, or null
    int64_t running_step;

    // 1. roundings
    LPT_METHOD double draw(double x, const lpt_cell<double> &cell, const lpt_level &at) {
        const uint64_t n = event++;
        uint32_t word = 0;
        if (at.mode >= LPT_STOCHASTIC) {
            if (n / 4 != group) {
                group = n / 4;
                words = lpt_words_of(group * elements + element, key);
            }
            const uint32_t which = n % 4;
            word = which < 2 ? (which ? words.w[1] : words.w[0])
                             : (which == 3 ? words.w[3] : words.w[2]);
        }
        return lpt_rounded(x, cell, at.mode, word & at.mask);
    }
    LPT_METHOD double rounded(double x, const lpt_level &at) {
        return lpt_wrapped_at(draw(x, at.sum, at), at);
    }

    // 2. terms and steps
    LPT_METHOD double product(int64_t k, double *low) {
        double x, y;
        operands.get(k, &x, &y);
        if constexpr (sizeof(T) == 8)
            return lpt_times(x, y, low);
        *low = -0.0;
        return x * y;
    }
    static LPT_METHOD double single(double x, const lpt_level &at) {
        return at.fp32 ? (double)(float)x : x;
    }
    static LPT_METHOD double added(double s, double t, const lpt_level &at) {
        return single(lpt_odd_sum(s, t), at);
    }
    static LPT_METHOD int64_t end_of(int64_t k, int64_t last, const lpt_level &at) {
        return k + at.chunk < last ? k + at.chunk : last;
    }
    // A term that is one number: a product where it has a format, or the sum of a chunk.
    template <int D> LPT_METHOD double term(int64_t k, int64_t last) {
        const lpt_level &at = levels.at[D];
        if constexpr (D + 1 < LEVELS)
            if (at.chunk > 1)
                return total<D + 1>(k, end_of(k, last, at), 0, false);
        double low;
        const double high = product(k, &low);
        const double p = single(low == 0 ? high : lpt_odd_sum(high, low), at);
        return at.has_product ? draw(p, at.product, at) : p;
    }
    template <int D> LPT_METHOD double with_term(double s, int64_t k, int64_t last) {
        const lpt_level &at = levels.at[D];
        if (at.chunk > 1 || at.has_product)
            return added(s, term<D>(k, last), at);
        double low;
        const double high = product(k, &low);
        return sizeof(T) == 4 ? added(s, high, at) : lpt_odd_sum(s, high, low);
    }

    // 3. orders
    template <int D> LPT_METHOD double sequential(int64_t first, int64_t last, double s) {
        const lpt_level &at = levels.at[D];
        for (int64_t k = first; k < last; k += at.chunk) {
            s = rounded(with_term<D>(s, k, last), at);
            if (running)
                running[k * running_step] = lpt_quiet((T)s);
        }
        return s;
    }
    template <int D> LPT_METHOD double kahan(int64_t first, int64_t last, double s) {
        const lpt_level &at = levels.at[D];
        double error = 0;
        for (int64_t k = first; k < last; k += at.chunk) {
            const double y = rounded(with_term<D>(-error, k, last), at);
            const double t = rounded(added(s, y, at), at);
            const double grown = rounded(added(t, -s, at), at);
            error = rounded(added(grown, -y, at), at);
            s = t;
        }
        return s;
    }
    // Sums of 1, 2, 4 ... terms wait on a stack, one for each bit of the number of terms.
    template <int D>
    LPT_METHOD double pairwise(int64_t first, int64_t last, double start, bool started) {
        const lpt_level &at = levels.at[D];
        double waiting[48];
        int top = 0;
        uint64_t count = 0;
        for (int64_t k = first; k < last; k += at.chunk) {
            waiting[top++] = rounded(term<D>(k, last), at);
            for (uint64_t even = ++count; even % 2 == 0; even /= 2, --top)
                waiting[top - 2] = rounded(added(waiting[top - 2], waiting[top - 1], at), at);
        }
        for (; top > 1; --top)
            waiting[top - 2] = rounded(added(waiting[top - 2], waiting[top - 1], at), at);
        if (top == 0)
            return start;
        return started ? rounded(added(start, waiting[0], at), at) : waiting[0];
    }
    template <int D>
    LPT_METHOD double exactly(int64_t first, int64_t last, double start, bool started) {
        const lpt_level &at = levels.at[D];
        lpt_exact_sum sum;
        memset(&sum, 0, sizeof sum);
        if (started)
            lpt_exact_add(&sum, start);
        for (int64_t k = first; k < last; k += at.chunk) {
            double low = 0;
            const bool whole = at.chunk > 1 || at.has_product;
            lpt_exact_add(&sum, whole ? term<D>(k, last) : product(k, &low));
            lpt_exact_add(&sum, low);
        }
        return rounded(lpt_exact_value(&sum), at);
    }
    template <int D> LPT_METHOD double aligned(int64_t first, int64_t last, double s) {
        const lpt_level &at = levels.at[D];
        for (int64_t k = first; k < last; k += at.chunk)
            s = rounded(at.whole ? digit_by_digit(k, end_of(k, last, at), s)
                                 : block(at, k, end_of(k, last, at), s),
                        at);
        return s;
    }
    // s and the products first .. last, cut off below the largest exponent's places
    LPT_METHOD double block(const lpt_level &at, int64_t first, int64_t last, double s) {
        int32_t top = s == 0 ? -(1 << 20) : lpt_exponent(s, at.least);
        for (int64_t k = first; k < last; ++k) {
            double x, y;
            operands.get(k, &x, &y);
            int32_t e = lpt_exponent(x, at.least_a) + lpt_exponent(y, at.least_b);
            e = e < -900 ? -900 : e > 900 ? 900 : e;
            top = x != 0 && y != 0 && e > top ? e : top;
        }
        const int32_t places = top - at.alignment, unit = places < -1000 ? -1000 : places;
        double units = 0, special = 0;
        lpt_cut(s, -0.0, unit, &units, &special);
        for (int64_t k = first; k < last; ++k) {
            double low;
            const double high = product(k, &low);
            lpt_cut(high, low, unit, &units, &special);
        }
        return special == 0 ? lpt_times_power(units, unit) : special;
    }
    // The same without cutting off. All threads take this way: they fetch operands together.
    LPT_LONG double digit_by_digit(int64_t first, int64_t last, double s) {
        lpt_exact_sum sum;
        memset(&sum, 0, sizeof sum);
        lpt_exact_add(&sum, s);
        for (int64_t k = first; k < last; ++k) {
            double low;
            lpt_exact_add(&sum, product(k, &low));
            lpt_exact_add(&sum, low);
        }
        return lpt_exact_value(&sum);
    }
    template <int D>
    LPT_LONG double total(int64_t first, int64_t last, double start, bool started) {
        switch ((lpt_order)levels.at[D].order) {
        case LPT_PAIRWISE: return pairwise<D>(first, last, start, started);
        case LPT_EXACT: return exactly<D>(first, last, start, started);
        case LPT_KAHAN: return kahan<D>(first, last, start);
        case LPT_ALIGNED: return aligned<D>(first, last, start);
        case LPT_SEQUENTIAL: break;
        }
        return sequential<D>(first, last, start);
    }

    LPT_METHOD double run(int64_t k, bool started, T c) {
        event = 0;
        group = ~(uint64_t)0;
        double start = (double)lpt_operand(c);
        if (started && levels.at[0].order != LPT_EXACT)
            start = rounded(start, levels.at[0]);
        event = 1;  // the addend's, whether there is one or not
        return total<0>(0, k, start, started);
    }
};

// Every thread has an output, also past the edges of the product.
template <class T, int LEVELS>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_gemm_elements(const __grid_constant__ lpt_product p, const __grid_constant__ lpt_tiling by,
                      const __grid_constant__ lpt_levels levels, const lpt_key *drawn) {
    __shared__ double numbers[LPT_HELD];
    for (int64_t tile = blockIdx.x; tile < by.tiles; tile += gridDim.x) {
        const lpt_spot at = lpt_spot_of(by, tile, threadIdx.x);
        const bool there = at.batch < p.batch && at.row < p.m && at.column < p.n;
        const int64_t line = at.batch * p.m + at.row, output = line * p.n + at.column;
        lpt_element<T, LEVELS> sum = {levels, {p, by, tile, numbers}};
        sum.key = drawn ? *drawn : p.key;
        sum.element = (uint64_t)output;
        sum.elements = (uint64_t)(p.batch * p.m * p.n);
        sum.running = there && p.running ? (T *)p.y + line * p.k * p.n + at.column : nullptr;
        sum.running_step = p.n;
        T start = 0;
        if (p.c && there)
            start = ((const T *)p.c)[at.batch * p.c_stride[0] + at.row * p.c_stride[1] +
                                     at.column * p.c_stride[2]];
        const double s = sum.run(p.k, p.c != nullptr, start);
        if (there && !p.running)
            ((T *)p.y)[output] = lpt_quiet((T)s);
    }
}
