// The C interface: picks the build for this processor, splits the work among threads.
#include "kernels.h"
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

const lpt_build *best() {
#ifdef LPT_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &lpt_v4;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))
        return &lpt_v3;
#endif
    return &lpt_baseline;
}

const lpt_build *chosen = best();

const lpt_loops<float> &loops(float) { return chosen->f32; }
const lpt_loops<double> &loops(double) { return chosen->f64; }
const lpt_codebook_loops<float> &codebooks(float) { return chosen->codebooks->f32; }
const lpt_codebook_loops<double> &codebooks(double) { return chosen->codebooks->f64; }

// A thread is worth starting for this many elements.
const int64_t GRAIN = 32768;

// loop(first, last) for the parts of n elements, cut between groups; each part on a thread.
template <class Loop> void split(int64_t n, int threads, Loop loop) {
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP;
    const int64_t useful = n / GRAIN + 1;
    const int parts = threads < useful ? threads : (int)useful;
    if (parts <= 1)
        return loop(0, n);
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int part = 0; part < parts; ++part) {
        const int64_t first = groups * part / parts * LPT_GROUP;
        const int64_t last = groups * (part + 1) / parts * LPT_GROUP;
        loop(first, last < n ? last : n);
    }
}

template <class T>
void round_grid(const T *x, T *y, int64_t n, const lpt_grid &g, const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    split(n, threads, [&](int64_t first, int64_t last) { f.grid(x, y, first, last, g, rule); });
}

template <class T>
void round_table(const T *x, T *y, int64_t n, const lpt_table<T> &t, const lpt_rule &rule,
                 int threads) {
    const lpt_codebook_loops<T> &f = codebooks(T());
    split(n, threads, [&](int64_t first, int64_t last) { f.table(x, y, first, last, t, rule); });
}

template <class T>
void round_posit(const T *x, T *y, int64_t n, const lpt_posit &p, const lpt_rule &rule,
                 int threads) {
    const lpt_codebook_loops<T> &f = codebooks(T());
    split(n, threads, [&](int64_t first, int64_t last) { f.posit(x, y, first, last, p, rule); });
}

// Leading axes whose blocks are one wide cut the tensor into slabs that know nothing of each other.
template <class T>
int round_blocks(const T *x, T *y, const lpt_layout &l, const lpt_blocks &b, const lpt_rule &rule,
                 int threads) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_loops<T> &f = loops(T());
    int32_t slab_dims = 0;
    int64_t slabs = 1, count = 1, size = 1;
    while (slab_dims < l.dims - 1 && l.block[slab_dims] == 1)
        slabs *= l.shape[slab_dims++];
    for (int32_t d = slab_dims; d < l.dims; ++d) {
        count *= (l.shape[d] + l.block[d] - 1) / l.block[d];
        size *= l.shape[d];
    }
    const int64_t useful = slabs * size / GRAIN + 1, most = useful < slabs ? useful : slabs;
    const int parts = threads < most ? threads : (int)most;
    int failed = 0;
#pragma omp parallel for num_threads(parts) schedule(static) reduction(| : failed) if (parts > 1)
    for (int part = 0; part < parts; ++part) {
        U *largest = (U *)malloc(count * sizeof(U));
        if (!largest) {
            failed = 1;
            continue;
        }
        for (int64_t s = slabs * part / parts; s < slabs * (part + 1) / parts; ++s) {
            memset(largest, 0, count * sizeof(U));
            f.maxima(x, l, slab_dims, s, largest);
            f.blocks(x, y, l, slab_dims, s, largest, b, rule);
        }
        free(largest);
    }
    return failed;
}

}  // namespace

#if defined(_WIN32)
#define LPT_API __declspec(dllexport)
#else
#define LPT_API __attribute__((visibility("default")))
#endif

extern "C" {

LPT_API int32_t lpt_abi_version() { return 2; }

LPT_API const char *lpt_build_name() { return chosen->name; }

// For tests: run on another build than the best one. Returns 0 where this processor has it.
LPT_API int32_t lpt_choose_build(const char *name) {
    const lpt_build *builds[] = {
        &lpt_baseline,
#ifdef LPT_X86
        best() == &lpt_baseline ? &lpt_baseline : &lpt_v3,
        best(),
#endif
    };
    for (const lpt_build *build : builds)
        if (strcmp(build->name, name) == 0) {
            chosen = build;
            return 0;
        }
    return 1;
}

LPT_API void lpt_round_f32(const float *x, float *y, int64_t n, const lpt_grid *g,
                           const lpt_rule *rule, int32_t threads) {
    round_grid(x, y, n, *g, *rule, threads);
}
LPT_API void lpt_round_f64(const double *x, double *y, int64_t n, const lpt_grid *g,
                           const lpt_rule *rule, int32_t threads) {
    round_grid(x, y, n, *g, *rule, threads);
}

LPT_API void lpt_round_table_f32(const float *x, float *y, int64_t n, const lpt_table<float> *t,
                                 const lpt_rule *rule, int32_t threads) {
    round_table(x, y, n, *t, *rule, threads);
}
LPT_API void lpt_round_table_f64(const double *x, double *y, int64_t n, const lpt_table<double> *t,
                                 const lpt_rule *rule, int32_t threads) {
    round_table(x, y, n, *t, *rule, threads);
}

LPT_API void lpt_round_posit_f32(const float *x, float *y, int64_t n, const lpt_posit *p,
                                 const lpt_rule *rule, int32_t threads) {
    round_posit(x, y, n, *p, *rule, threads);
}
LPT_API void lpt_round_posit_f64(const double *x, double *y, int64_t n, const lpt_posit *p,
                                 const lpt_rule *rule, int32_t threads) {
    round_posit(x, y, n, *p, *rule, threads);
}

// 0, or 1 where there was no memory for the blocks' maxima.
LPT_API int32_t lpt_round_blocks_f32(const float *x, float *y, const lpt_layout *l,
                                     const lpt_blocks *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, *b, *rule, threads);
}
LPT_API int32_t lpt_round_blocks_f64(const double *x, double *y, const lpt_layout *l,
                                     const lpt_blocks *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, *b, *rule, threads);
}

// The random word of one element, for known-answer tests.
LPT_API uint32_t lpt_random_word(uint64_t element, const lpt_key *key) {
    return lpt_random(element, *key);
}
LPT_API void lpt_philox_words(uint64_t index, const lpt_key *key, uint32_t *out) {
    const lpt_words words = lpt_philox(index, *key);
    memcpy(out, words.w, sizeof words.w);
}
}
