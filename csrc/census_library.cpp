// The C interface of census.cpp: the build for this processor, and threads.
#include "census.h"
#include "host.h"

namespace {

const lpt_census_loops<float> &counts(float) { return lpt_chosen->census->f32; }
const lpt_census_loops<double> &counts(double) { return lpt_chosen->census->f64; }

const int64_t GRAIN = 32768;  // elements that a thread is worth starting for
const int PARTS = 64;         // at most

// What adds up in any order.
void join(lpt_census &whole, const lpt_census &part) {
    whole.zero += part.zero;
    whole.underflow += part.underflow;
    whole.subnormal += part.subnormal;
    whole.saturated += part.saturated;
    whole.overflow += part.overflow;
    whole.nonfinite += part.nonfinite;
    for (int i = 0; i < LPT_BINADES; ++i)
        whole.binades[i] += part.binades[i];
}
void join(lpt_updates &whole, const lpt_updates &part) {
    whole.wanted += part.wanted;
    whole.lost += part.lost;
}

lpt_census none_of(const lpt_census &like) {
    lpt_census found = {};
    found.highest = like.highest, found.lowest = like.lowest, found.tiny = like.tiny;
    return found;
}
lpt_updates none_of(const lpt_updates &) { return {}; }

// work(first, last, what it found there) for the parts of n elements. The parts, and the order in
// which their sums are added, do not depend on the number of threads.
template <class Found, class Work> void share(int64_t n, int threads, Found &found, Work work) {
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP, useful = n / GRAIN + 1;
    const int parts = useful < PARTS ? (int)useful : PARTS;
    const plain_arithmetic guard;
    if (parts == 1)
        return work(0, n, found);
    double sums[PARTS][2];
    const int team = threads < parts ? threads : parts;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (int part = 0; part < parts; ++part) {
        const plain_arithmetic guard_of_the_thread;
        const int64_t first = groups * part / parts * LPT_GROUP;
        const int64_t last = groups * (part + 1) / parts * LPT_GROUP;
        Found here = none_of(found);
        work(first, last < n ? last : n, here);
        memcpy(sums[part], here.sums, sizeof here.sums);
#pragma omp critical(lpt_census_join)
        join(found, here);
    }
    for (int part = 0; part < parts; ++part)
        found.sums[0] += sums[part][0], found.sums[1] += sums[part][1];
}

template <class T> void count(const T *x, const T *y, int64_t n, lpt_census &found, int threads) {
    const auto &f = counts(T());
    share(n, threads, found,
          [&](int64_t first, int64_t last, lpt_census &here) { f.count(x, y, first, last, here); });
}

// round(x, y, first, last) as the loops call it.
template <class T, class Round> lpt_rounder<T> rounder(const Round &round) {
    return {[](const void *how, const T *x, T *y, int64_t first, int64_t last) {
                (*(const Round *)how)(x, y, first, last);
            },
            &round};
}

// use(what rounds to a grid, or a table, or a posit as rule says)
template <class T, class Use> void with(const lpt_grid &g, const lpt_rule &rule, Use use) {
    const auto round = [&, f = loops(T()).grid](const T *x, T *y, int64_t first, int64_t last) {
        f(x, y, first, last, g, rule, false);
    };
    use(rounder<T>(round));
}
template <class T, class Use> void with(const lpt_table<T> &t, const lpt_rule &rule, Use use) {
    const auto round = [&, f = codebooks(T()).table](const T *x, T *y, int64_t first,
                                                     int64_t last) {
        f(x, y, first, last, t, rule);
    };
    use(rounder<T>(round));
}
template <class T, class Use> void with(const lpt_posit &p, const lpt_rule &rule, Use use) {
    const auto round = [&, f = codebooks(T()).posit](const T *x, T *y, int64_t first,
                                                     int64_t last) {
        f(x, y, first, last, p, rule);
    };
    use(rounder<T>(round));
}

template <class T, class Format>
void round(const T *x, T *y, int64_t n, const Format &format, const lpt_rule &rule,
           lpt_census &found, int threads) {
    with<T>(format, rule, [&](const lpt_rounder<T> &how) {
        share(n, threads, found, [&](int64_t first, int64_t last, lpt_census &here) {
            counts(T()).round(x, y, first, last, how, here);
        });
    });
}

template <class T, class Format>
void ask_updates(const T *start, const T *now, int64_t n, const Format &format,
                 const lpt_rule *rules, lpt_updates &found, int threads) {
    with<T>(format, rules[0], [&](const lpt_rounder<T> &hold) {
        with<T>(format, rules[1], [&](const lpt_rounder<T> &write) {
            share(n, threads, found, [&](int64_t first, int64_t last, lpt_updates &here) {
                counts(T()).ask_updates(start, now, first, last, hold, write, here);
            });
        });
    });
}

template <class T>
void updates(const T *start, const T *before, const T *after, int64_t n, lpt_updates &found,
             int threads) {
    const auto &f = counts(T());
    share(n, threads, found, [&](int64_t first, int64_t last, lpt_updates &here) {
        f.updates(start, before, after, first, last, here);
    });
}

}  // namespace

// All add to what is found already. Where values are rounded on the way there is a rule for that;
// of updates two, for the weight that is held and for the one that is written.
#define LPT_ROUND_API(T, NAME, FORMAT)                                                             \
    LPT_API void lpt_census_round_##NAME(const T *x, T *y, int64_t n, const FORMAT *format,        \
                                         const lpt_rule *rule, lpt_census *found,                  \
                                         int32_t threads) {                                        \
        round(x, y, n, *format, *rule, *found, threads);                                           \
    }                                                                                              \
    LPT_API void lpt_ask_updates_##NAME(const T *start, const T *now, int64_t n,                   \
                                        const FORMAT *format, const lpt_rule *rules,               \
                                        lpt_updates *found, int32_t threads) {                     \
        ask_updates(start, now, n, *format, rules, *found, threads);                               \
    }
#define LPT_CENSUS_API(T, NAME)                                                                    \
    LPT_API void lpt_census_##NAME(const T *x, const T *y, int64_t n, lpt_census *found,           \
                                   int32_t threads) {                                              \
        count(x, y, n, *found, threads);                                                           \
    }                                                                                              \
    LPT_API void lpt_updates_##NAME(const T *start, const T *before, const T *after, int64_t n,    \
                                    lpt_updates *found, int32_t threads) {                         \
        updates(start, before, after, n, *found, threads);                                         \
    }                                                                                              \
    LPT_ROUND_API(T, grid_##NAME, lpt_grid)                                                        \
    LPT_ROUND_API(T, table_##NAME, lpt_table<T>)                                                   \
    LPT_ROUND_API(T, posit_##NAME, lpt_posit)

LPT_CENSUS_API(float, f32)
LPT_CENSUS_API(double, f64)
