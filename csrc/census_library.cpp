// The C interface of census.cpp: the build for this processor, and threads.
#include "census.h"
#include "kernels.h"
#include <fenv.h>

#if defined(_WIN32)
#define LPT_API __declspec(dllexport)
#else
#define LPT_API __attribute__((visibility("default")))
#endif

extern const lpt_censuses lpt_census_baseline;
#ifdef LPT_X86
extern const lpt_censuses lpt_census_v3, lpt_census_v4;
#endif

extern "C" LPT_API const char *lpt_build_name();

namespace {

struct build {
    const lpt_build &round;
    const lpt_censuses &census;
};

build chosen() {
#ifdef LPT_X86
    if (strcmp(lpt_build_name(), "lpt_v4") == 0)
        return {lpt_v4, lpt_census_v4};
    if (strcmp(lpt_build_name(), "lpt_v3") == 0)
        return {lpt_v3, lpt_census_v3};
#endif
    return {lpt_baseline, lpt_census_baseline};
}

const lpt_loops<float> &loops(const build &b, float) { return b.round.f32; }
const lpt_loops<double> &loops(const build &b, double) { return b.round.f64; }
const lpt_codebook_loops<float> &codebooks(const build &b, float) {
    return b.round.codebooks->f32;
}
const lpt_codebook_loops<double> &codebooks(const build &b, double) {
    return b.round.codebooks->f64;
}
const lpt_census_loops<float> &counts(const build &b, float) { return b.census.f32; }
const lpt_census_loops<double> &counts(const build &b, double) { return b.census.f64; }

const int64_t GRAIN = 32768;  // elements that a thread is worth starting for
const int PARTS = 64;         // at most

void join(lpt_census &whole, const lpt_census &part) {
    whole.zero += part.zero;
    whole.underflow += part.underflow;
    whole.subnormal += part.subnormal;
    whole.saturated += part.saturated;
    whole.overflow += part.overflow;
    whole.nonfinite += part.nonfinite;
    whole.signal += part.signal;
    whole.noise += part.noise;
    for (int i = 0; i < LPT_BINADES; ++i)
        whole.binades[i] += part.binades[i];
}
void join(lpt_updates &whole, const lpt_updates &part) {
    whole.wanted += part.wanted;
    whole.lost += part.lost;
    whole.along += part.along;
    whole.whole += part.whole;
}

lpt_census none_of(const lpt_census &like) {
    lpt_census found = {};
    found.highest = like.highest, found.lowest = like.lowest, found.tiny = like.tiny;
    return found;
}
lpt_updates none_of(const lpt_updates &) { return {}; }

// work(first, last, what it found there) for the parts of n elements. The parts, and the order in
// which their sums are joined, do not depend on the number of threads. While they run, floating
// point is IEEE 754's: subnormals kept; a program may have chosen otherwise
// (torch.set_flush_denormal).
template <class Found, class Work>
void share(int64_t n, int threads, Found &found, Work work) {
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP, useful = n / GRAIN + 1;
    const int parts = useful < PARTS ? (int)useful : PARTS;
    const int team = threads < parts ? threads : parts;
#pragma omp parallel for num_threads(team) ordered schedule(static, 1) if (team > 1)
    for (int part = 0; part < parts; ++part) {
        fenv_t before;
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
        const int64_t first = groups * part / parts * LPT_GROUP;
        const int64_t last = groups * (part + 1) / parts * LPT_GROUP;
        Found here = none_of(found);
        work(first, last < n ? last : n, here);
#pragma omp ordered
        join(found, here);
        fesetenv(&before);
    }
}

template <class T>
void count(const T *x, const T *y, int64_t n, lpt_census &found, int threads) {
    const auto &f = counts(chosen(), T());
    share(n, threads, found, [&](int64_t first, int64_t last, lpt_census &here) {
        f.count(x, y, first, last, here);
    });
}

// What round(x, y, first, last) would do to x.
template <class T, class Round>
void ask(const T *x, int64_t n, lpt_census &found, int threads, Round round) {
    const auto &f = counts(chosen(), T());
    const lpt_rounder<T> rounder = {
        [](const void *how, const T *x, T *y, int64_t first, int64_t last) {
            (*(const Round *)how)(x, y, first, last);
        },
        &round};
    share(n, threads, found, [&](int64_t first, int64_t last, lpt_census &here) {
        f.ask(x, first, last, rounder, here);
    });
}

template <class T>
void ask_grid(const T *x, int64_t n, const lpt_grid &g, const lpt_rule &rule, lpt_census &found,
              int threads) {
    const auto &f = loops(chosen(), T());
    ask(x, n, found, threads, [&](const T *x, T *y, int64_t first, int64_t last) {
        f.grid(x, y, first, last, g, rule);
    });
}

template <class T>
void ask_table(const T *x, int64_t n, const lpt_table<T> &t, const lpt_rule &rule,
               lpt_census &found, int threads) {
    const auto &f = codebooks(chosen(), T());
    ask(x, n, found, threads, [&](const T *x, T *y, int64_t first, int64_t last) {
        f.table(x, y, first, last, t, rule);
    });
}

template <class T>
void ask_posit(const T *x, int64_t n, const lpt_posit &p, const lpt_rule &rule, lpt_census &found,
               int threads) {
    const auto &f = codebooks(chosen(), T());
    ask(x, n, found, threads, [&](const T *x, T *y, int64_t first, int64_t last) {
        f.posit(x, y, first, last, p, rule);
    });
}

template <class T>
void updates(const T *start, const T *before, const T *after, int64_t n, lpt_updates &found,
             int threads) {
    const auto &f = counts(chosen(), T());
    share(n, threads, found, [&](int64_t first, int64_t last, lpt_updates &here) {
        f.updates(start, before, after, first, last, here);
    });
}

}  // namespace

// All add to what is found already.
#define LPT_CENSUS_API(T, NAME)                                                                    \
    LPT_API void lpt_census_##NAME(const T *x, const T *y, int64_t n, lpt_census *found,           \
                                   int32_t threads) {                                              \
        count(x, y, n, *found, threads);                                                           \
    }                                                                                              \
    LPT_API void lpt_ask_##NAME(const T *x, int64_t n, const lpt_grid *g, const lpt_rule *rule,    \
                                lpt_census *found, int32_t threads) {                              \
        ask_grid(x, n, *g, *rule, *found, threads);                                                \
    }                                                                                              \
    LPT_API void lpt_ask_table_##NAME(const T *x, int64_t n, const lpt_table<T> *t,                \
                                      const lpt_rule *rule, lpt_census *found, int32_t threads) {  \
        ask_table(x, n, *t, *rule, *found, threads);                                               \
    }                                                                                              \
    LPT_API void lpt_ask_posit_##NAME(const T *x, int64_t n, const lpt_posit *p,                   \
                                      const lpt_rule *rule, lpt_census *found, int32_t threads) {  \
        ask_posit(x, n, *p, *rule, *found, threads);                                               \
    }                                                                                              \
    LPT_API void lpt_updates_##NAME(const T *start, const T *before, const T *after, int64_t n,    \
                                    lpt_updates *found, int32_t threads) {                         \
        updates(start, before, after, n, *found, threads);                                         \
    }

extern "C" {
LPT_CENSUS_API(float, f32)
LPT_CENSUS_API(double, f64)
}
