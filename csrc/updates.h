// Weights that take a step in a format of their own, with what rounding loses kept beside them: the
// formulas of lptensor/updates.py, in float64, a stretch at a time so that all of it stays in
// cache. Part of library.cpp.
#pragma once
#include "kernels.h"
#include <math.h>

// lptensor/_native.py: COMPENSATED
enum lpt_update { LPT_UPDATE_KAHAN = 0, LPT_UPDATE_EXPANSION = 1 };

namespace {

class update_stretch {
    enum { MOST = 512 };
    const lpt_grid &grid;
    const lpt_rule nearest = {LPT_NEAREST, 32, 0, 0, {0, 0}};
    double a[MOST], b[MOST], c[MOST], d[MOST], e[MOST];
    int n = 0;

    void rounded(double *x) const { lpt_chosen->f64.grid(x, x, 0, n, grid, nearest, false); }

    // s and t become the rounded sum of x and y and its error (Dekker), of which the larger counts
    // as the first summand.
    void two_sum(const double *x, const double *y, double *s, double *t) const {
        for (int i = 0; i < n; ++i)
            s[i] = x[i] + y[i];
        rounded(s);
        for (int i = 0; i < n; ++i)
            t[i] = s[i] - (fabs(x[i]) >= fabs(y[i]) ? x[i] : y[i]);
        rounded(t);
        for (int i = 0; i < n; ++i)
            t[i] = (fabs(x[i]) >= fabs(y[i]) ? y[i] : x[i]) - t[i];
        rounded(t);
    }

    // weight a, compensation b, update c
    void kahan() {
        for (int i = 0; i < n; ++i)
            c[i] -= b[i];
        rounded(c);
        for (int i = 0; i < n; ++i)
            b[i] = a[i] + c[i];
        rounded(b);
        for (int i = 0; i < n; ++i)
            a[i] = b[i] - a[i];
        rounded(a);
        for (int i = 0; i < n; ++i)
            c[i] = a[i] - c[i];
        rounded(c);
        memcpy(a, b, n * sizeof *a);
        memcpy(b, c, n * sizeof *b);
    }

    // weight a, residual b, update c
    void expansion() {
        rounded(c);
        two_sum(a, c, d, e);
        for (int i = 0; i < n; ++i)
            e[i] += b[i];
        rounded(e);
        two_sum(d, e, a, b);
    }

  public:
    explicit update_stretch(const lpt_grid &g) : grid(g) {}

    // Elements first .. last of a weight, of what is kept beside it, and of the step.
    template <class T>
    void run(int32_t update, const T *weight, const T *kept, const T *step, T *new_weight,
             T *new_kept, int64_t first, int64_t last) {
        for (int64_t from = first; from < last; from += MOST) {
            n = last - from < MOST ? (int)(last - from) : (int)MOST;
            for (int i = 0; i < n; ++i)
                a[i] = weight[from + i], b[i] = kept[from + i], c[i] = step[from + i];
            switch ((lpt_update)update) {
            case LPT_UPDATE_KAHAN: kahan(); break;
            case LPT_UPDATE_EXPANSION: expansion(); break;
            }
            for (int i = 0; i < n; ++i)
                new_weight[from + i] = (T)a[i], new_kept[from + i] = (T)b[i];
        }
    }
};

template <class T>
void compensate(int32_t update, const T *weight, const T *kept, const T *step, T *new_weight,
                T *new_kept, int64_t n, const lpt_grid &grid, int threads) {
    split(n, threads, [&](int64_t first, int64_t last) {
        update_stretch(grid).run(update, weight, kept, step, new_weight, new_kept, first, last);
    });
}

}  // namespace
