// Every accumulator, for neighbouring outputs of one row at a time.
#pragma once
#include "gemm_level.h"

namespace {

enum { WIDE = 32 };  // outputs side by side
#if defined(__FMA__)
enum { VECTORS = 1 };
#else
enum { VECTORS = 0 };
#endif

template <int W> struct lanes {
    double v[W];
};

// The sums of W neighbouring outputs, of which `count` are there.
template <class T, int W> struct row_sums {
    typedef lanes<W> L;
    const T *a, *b;
    int64_t a_step, b_step, b_apart;  // to the next k; between neighbours
    int count;
    lpt_key key;
    uint64_t element, elements, event, group;
    uint32_t words[4][W];
    T *running;  // where each sum goes, or null
    int64_t running_step;

    // 1. terms
    void factors(int64_t k, T *x, T *y) const {
        *x = lpt_operand(a[k * a_step]);
        const T *from = b + k * b_step;
        for (int l = 0; l < W; ++l)
            y[l] = l < count ? lpt_operand(from[l * b_apart]) : (T)0;
    }
    LPT_SHARED void product(int64_t k, L &high, L &low) const {
        T x, y[W];
        factors(k, &x, y);
        for (int l = 0; l < W; ++l)
            high.v[l] = lpt_times(x, y[l], &low.v[l]);
    }
    static L value(const L &high, const L &low, const lpt_accumulator &acc) {
        L r;
        for (int l = 0; l < W; ++l) {
            const double odd = sizeof(T) == 4 ? high.v[l] : lpt_odd_sum(high.v[l], low.v[l]);
            r.v[l] = sizeof(T) == 8 && low.v[l] == 0 ? high.v[l] : odd;
        }
        return single(r, acc);
    }
    // A term that is one number: a product where it has a format, or the sum of a chunk.
    LPT_SHARED L term(const level &at, int64_t k, int64_t last) {
        const lpt_accumulator &acc = *at.acc;
        if (acc.chunk > 1)
            return total(*at.inside, k, k + acc.chunk < last ? k + acc.chunk : last, nullptr);
        L high, low;
        product(k, high, low);
        L r = value(high, low, acc);
        if (acc.has_product)
            draw(r, at.product, acc);
        return r;
    }

    // 2. steps
    static L single(L x, const lpt_accumulator &acc) {
        if (acc.fp32)
            for (int l = 0; l < W; ++l)
                x.v[l] = (double)(float)x.v[l];
        return x;
    }
    LPT_SHARED static L added(const L &s, const L &t, const lpt_accumulator &acc) {
        L r;
        for (int l = 0; l < W; ++l)
            r.v[l] = lpt_odd_sum(s.v[l], t.v[l]);
        return single(r, acc);
    }
    static L negative(L x) {
        for (int l = 0; l < W; ++l)
            x.v[l] = -x.v[l];
        return x;
    }
    // s and the next term
    LPT_SHARED L with_term(const level &at, const L &s, int64_t k, int64_t last) {
        const lpt_accumulator &acc = *at.acc;
        if (acc.chunk > 1 || acc.has_product)
            return added(s, term(at, k, last), acc);
        L high, low;
        product(k, high, low);
        if (sizeof(T) == 4)
            return added(s, high, acc);
        L r;
        for (int l = 0; l < W; ++l)
            r.v[l] = lpt_odd_sum(s.v[l], high.v[l], low.v[l]);
        return r;
    }
    LPT_SHARED void draw(L &x, const lpt_cell<double> &c, const lpt_accumulator &acc) {
        const uint64_t n = event++;
        uint32_t chosen[W];
        if (acc.mode >= LPT_STOCHASTIC) {
            if (n / 4 != group) {
                group = n / 4;
#if defined(__FMA__)
                const uint64_t first = group * elements + element;
                if (W > 1)
                    lpt_words_of_pairs([=](int q) { return first + q * LPT_PAIR; }, W / LPT_PAIR,
                                       key, 0xffffffffu, W, words[0]);
#endif
                for (int l = 0; l < (W > 1 && VECTORS ? 0 : W); ++l) {
                    const lpt_words w = lpt_philox(group * elements + element + l, key);
                    for (int i = 0; i < 4; ++i)
                        words[i][l] = w.w[i];
                }
            }
            const uint32_t mask = 0xffffffffu << (32 - acc.bits);
            for (int l = 0; l < W; ++l)
                chosen[l] = words[n % 4][l] & mask;
        }
        if (c.plain)
            round_mode<W, true>(x.v, c, acc.mode, chosen);
        else
            round_mode<W, false>(x.v, c, acc.mode, chosen);
    }
    LPT_SHARED L rounded(L x, const level &at) {
        draw(x, at.sum, *at.acc);
        if (at.acc->turn > 0)
            for (int l = 0; l < W; ++l)
                x.v[l] = lpt_wrapped(x.v[l], at.acc->turn);
        return x;
    }

    // 3. orders
    static L zeros() {
        L r;
        for (int l = 0; l < W; ++l)
            r.v[l] = 0;
        return r;
    }
    LPT_SHARED L total(const level &at, int64_t first, int64_t last, const L *start) {
        switch ((lpt_order)at.acc->order) {
        case LPT_PAIRWISE: return pairwise(at, first, last, start);
        case LPT_EXACT: return exactly(at, first, last, start);
        case LPT_KAHAN: return kahan(at, first, last, start ? *start : zeros());
        case LPT_ALIGNED: return aligned(at, first, last, start ? *start : zeros());
        case LPT_SEQUENTIAL: break;
        }
        return sequential(at, first, last, start ? *start : zeros());
    }
    L sequential(const level &at, int64_t first, int64_t last, L s) {
        for (int64_t k = first; k < last; k += at.acc->chunk) {
            s = rounded(with_term(at, s, k, last), at);
            if (running)
                for (int l = 0; l < count; ++l)
                    running[k * running_step + l] = lpt_quiet((T)s.v[l]);
        }
        return s;
    }
    L kahan(const level &at, int64_t first, int64_t last, L s) {
        L error = zeros();
        for (int64_t k = first; k < last; k += at.acc->chunk) {
            const L y = rounded(with_term(at, negative(error), k, last), at);
            const L t = rounded(added(s, y, *at.acc), at);
            const L grown = rounded(added(t, negative(s), *at.acc), at);
            error = rounded(added(grown, negative(y), *at.acc), at);
            s = t;
        }
        return s;
    }
    // Sums of 1, 2, 4 ... terms wait on a stack until there are two of a size.
    L pairwise(const level &at, int64_t first, int64_t last, const L *start) {
        L waiting[64];
        int64_t size[64];
        int top = 0;
        for (int64_t k = first; k < last; k += at.acc->chunk) {
            waiting[top] = rounded(term(at, k, last), at);
            size[top++] = 1;
            while (top > 1 && size[top - 1] == size[top - 2]) {
                --top;
                waiting[top - 1] = rounded(added(waiting[top - 1], waiting[top], *at.acc), at);
                size[top - 1] *= 2;
            }
        }
        while (top > 1) {
            --top;
            waiting[top - 1] = rounded(added(waiting[top - 1], waiting[top], *at.acc), at);
        }
        if (top == 0)
            return start ? *start : zeros();
        return start ? rounded(added(*start, waiting[0], *at.acc), at) : waiting[0];
    }
    L exactly(const level &at, int64_t first, int64_t last, const L *start) {
        lpt_exact_sum sum[W];
        memset(sum, 0, sizeof sum);
        for (int l = 0; start && l < W; ++l)
            lpt_exact_add(&sum[l], start->v[l]);
        for (int64_t k = first; k < last; k += at.acc->chunk) {
            L high, low;
            if (at.acc->chunk > 1 || at.acc->has_product)
                high = term(at, k, last), low = zeros();
            else
                product(k, high, low);
            for (int l = 0; l < count; ++l) {
                lpt_exact_add(&sum[l], high.v[l]);
                lpt_exact_add(&sum[l], low.v[l]);
            }
        }
        L r;
        for (int l = 0; l < W; ++l)
            r.v[l] = lpt_exact_value(&sum[l]);
        return rounded(r, at);
    }
    L aligned(const level &at, int64_t first, int64_t last, L s) {
        for (int64_t k = first; k < last; k += at.acc->chunk)
            s = rounded(block(at, k, k + at.acc->chunk < last ? k + at.acc->chunk : last, s), at);
        return s;
    }
    // s and the products first .. last, cut off below the largest exponent's places, or whole
    LPT_SHARED L block(const level &at, int64_t first, int64_t last, const L &s) const {
        int32_t top[W], unit[W];
        for (int l = 0; l < W; ++l)
            top[l] = s.v[l] == 0 ? -(1 << 20) : lpt_exponent(s.v[l], at.acc->least);
        for (int64_t k = first; k < last; ++k) {
            T x, y[W];
            factors(k, &x, y);
            for (int l = 0; l < W; ++l) {
                int32_t e = lpt_exponent((double)x, at.acc->least_a) +
                            lpt_exponent((double)y[l], at.acc->least_b);
                e = e < -900 ? -900 : e > 900 ? 900 : e;
                top[l] = x != 0 && y[l] != 0 && e > top[l] ? e : top[l];
            }
        }
        L units = zeros(), special = zeros(), r;
        bool left[W];  // whether something is missing
        for (int l = 0; l < W; ++l) {
            unit[l] = top[l] - at.acc->alignment;
            unit[l] = unit[l] < -1000 ? -1000 : unit[l];
            left[l] = lpt_cut(s.v[l], -0.0, unit[l], &units.v[l], &special.v[l]);
        }
        for (int64_t k = first; k < last; ++k) {
            L high, low;
            product(k, high, low);
            for (int l = 0; l < W; ++l)
                left[l] |= lpt_cut(high.v[l], low.v[l], unit[l], &units.v[l], &special.v[l]);
        }
        for (int l = 0; l < W; ++l)
            if (at.acc->whole && left[l] && l < count)
                r.v[l] = digit_by_digit(s.v[l], l, first, last);
            else
                r.v[l] = special.v[l] == 0 ? lpt_times_power(units.v[l], unit[l]) : special.v[l];
        return r;
    }
    double digit_by_digit(double s, int l, int64_t first, int64_t last) const {
        lpt_exact_sum sum = {};
        lpt_exact_add(&sum, s);
        for (int64_t k = first; k < last; ++k) {
            double low;
            const T x = lpt_operand(a[k * a_step]), y = lpt_operand(b[k * b_step + l * b_apart]);
            lpt_exact_add(&sum, lpt_times(x, y, &low));
            lpt_exact_add(&sum, low);
        }
        return lpt_exact_value(&sum);
    }

    L run(const level &at, int64_t k, const L *c) {
        event = 0;
        group = ~(uint64_t)0;
        L start;
        if (at.acc->order == LPT_EXACT) {
            if (c)
                start = *c;
        } else if (c) {
            start = rounded(*c, at);
        }
        event = 1;  // the addend's, whether there is one or not
        return total(at, 0, k, c ? &start : nullptr);
    }
};

template <class T, int W>
bool any_rows(const lpt_product &p, const lpt_accumulator &acc, int64_t first, int64_t last) {
    const level top(acc);
    const int64_t panels = (p.n + W - 1) / W;
    row_sums<T, W> sums;
    sums.a_step = p.a_stride[2];
    sums.b_step = p.b_stride[1];
    sums.b_apart = p.b_stride[2];
    sums.key = p.key;
    sums.elements = (uint64_t)(p.batch * p.m * p.n);
    sums.running_step = p.n;
    for (int64_t unit = first; unit < last; ++unit) {
        const int64_t batch = unit / (panels * p.m), panel = unit / p.m % panels, row = unit % p.m;
        const int64_t column = panel * W, at = (batch * p.m + row) * p.n + column;
        sums.a = (const T *)p.a + batch * p.a_stride[0] + row * p.a_stride[1];
        sums.b = (const T *)p.b + batch * p.b_stride[0] + column * p.b_stride[2];
        sums.count = p.n - column < W ? (int)(p.n - column) : W;
        sums.element = (uint64_t)at;
        T *y = (T *)p.y + (p.running ? (batch * p.m + row) * p.k * p.n + column : at);
        sums.running = p.running ? y : nullptr;
        lanes<W> c = row_sums<T, W>::zeros();
        const T *start =
            (const T *)p.c +
            (p.c ? batch * p.c_stride[0] + row * p.c_stride[1] + column * p.c_stride[2] : 0);
        for (int l = 0; p.c && l < sums.count; ++l)
            c.v[l] = (double)lpt_operand(start[l * p.c_stride[2]]);
        const lanes<W> r = sums.run(top, p.k, p.c ? &c : nullptr);
        for (int l = 0; !p.running && l < sums.count; ++l)
            y[l] = lpt_quiet((T)r.v[l]);
    }
    return true;
}

}  // namespace
