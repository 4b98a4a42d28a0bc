// The C interface: picks the build for this processor, splits the work among threads.
#include "host.h"
#include "transposed.h"

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

}  // namespace

const lpt_build *lpt_chosen = best();

// AMD's see it by themselves, and are held up by being told.
extern const bool lpt_tell_ahead =
#ifdef LPT_X86
    (__builtin_cpu_init(), !__builtin_cpu_is("amd"));
#else
    true;
#endif

namespace {

// A thread is worth starting for this many elements.
const int64_t GRAIN = 32768;
// Bytes that are unlikely to be found in the cache again; and those of them that go past it already
// where rows far apart are written at once.
const int64_t LARGE = 32 << 20, LARGE_IN_COLUMNS = 16 << 20;
// Bytes of a strip of columns that the cache gives back when it is read again. A larger one comes
// from memory twice, which is quicker row after row of whole matrices.
const int64_t STRIP_IN_CACHE = 256 << 10;

// Whether y is another tensor than x and has at least so many bytes, which lines can be made of.
template <class T> bool large(const T *x, const T *y, int64_t n, int64_t bytes = LARGE) {
    return x != y && (uintptr_t)y % sizeof(T) == 0 && n * (int64_t)sizeof(T) >= bytes;
}

// loop(first, last) for the parts of n elements, cut between groups; each part on a thread, in
// plain arithmetic.
template <class Loop> void split(int64_t n, int threads, Loop loop) {
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP;
    const int64_t useful = n / GRAIN + 1;
    const int64_t parts = threads < useful ? threads : useful;
    in_parts(parts, [&](int64_t part) {
        const int64_t first = groups * part / parts * LPT_GROUP;
        const int64_t last = groups * (part + 1) / parts * LPT_GROUP;
        loop(first, last < n ? last : n);
    });
}

template <class T>
void round_grid(const T *x, T *y, int64_t n, const lpt_grid &g, const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    split(n, threads,
          [&](int64_t first, int64_t last) { f.grid(x, y, first, last, g, rule, large(x, y, n)); });
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

// round(tile) for the tiles of matrices, of which each thread has some.
template <class T, class Round>
void split_tiles(const T *x, T *y, const lpt_matrices &m, const lpt_tiles<T> &tiles, int threads,
                 Round round) {
    const int64_t count = tiles.count(m), useful = m.count * m.rows * m.columns / GRAIN + 1;
    const int64_t parts = threads < useful ? threads : useful;
    in_parts(parts, [&](int64_t part) {
        lpt_each_tile(x, y, m, tiles, count * part / parts, count * (part + 1) / parts, loops(T()),
                      round);
    });
}

// What a scalar format is lowered to; lptensor/_native.py: OF_ELEMENTS.
enum lpt_of_elements { LPT_ROUND_GRID = 0, LPT_ROUND_TABLE = 1, LPT_ROUND_POSIT = 2 };

template <class T>
void round_matrices(const T *x, T *y, const lpt_matrices &m, int32_t kind, const void *format,
                    const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    const lpt_codebook_loops<T> &of_codebooks = codebooks(T());
    const int64_t least =
        kind == LPT_ROUND_TABLE ? 4 * LPT_GROUP : LPT_GROUP;  // its search has to be set up
    const lpt_tiles<T> tiles(m, least);
    const auto round = [&](T *at, int64_t first, int64_t last) {
        switch ((lpt_of_elements)kind) {
        case LPT_ROUND_GRID:
            return f.grid(at, at, first, last, *(const lpt_grid *)format, rule, false);
        case LPT_ROUND_TABLE:
            return of_codebooks.table(at, at, first, last, *(const lpt_table<T> *)format, rule);
        case LPT_ROUND_POSIT:
            return of_codebooks.posit(at, at, first, last, *(const lpt_posit *)format, rule);
        }
    };
    split_tiles(x, y, m, tiles, threads,
                [&](const lpt_tile<T> &tile) { lpt_each_stretch(tile, round); });
}

}  // namespace

#include "blocks_in_parts.h"
#include "odd.h"
#include "ranges_in_parts.h"
#include "updates.h"

LPT_API int32_t lpt_abi_version() { return 17; }

LPT_API const char *lpt_build_name() { return lpt_chosen->name; }

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
            lpt_chosen = build;
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

// Contiguous memory in another order; `format` is what the function above that takes this kind has.
LPT_API void lpt_round_matrices_f32(const float *x, float *y, const lpt_matrices *m, int32_t kind,
                                    const void *format, const lpt_rule *rule, int32_t threads) {
    round_matrices(x, y, *m, kind, format, *rule, threads);
}
LPT_API void lpt_round_matrices_f64(const double *x, double *y, const lpt_matrices *m, int32_t kind,
                                    const void *format, const lpt_rule *rule, int32_t threads) {
    round_matrices(x, y, *m, kind, format, *rule, threads);
}

LPT_API void lpt_compensate_f32(int32_t update, const float *weight, const float *kept,
                                const float *step, float *new_weight, float *new_kept, int64_t n,
                                const lpt_grid *g, int32_t threads) {
    compensate(update, weight, kept, step, new_weight, new_kept, n, *g, threads);
}
LPT_API void lpt_compensate_f64(int32_t update, const double *weight, const double *kept,
                                const double *step, double *new_weight, double *new_kept, int64_t n,
                                const lpt_grid *g, int32_t threads) {
    compensate(update, weight, kept, step, new_weight, new_kept, n, *g, threads);
}

// Steps from one number to the next are 1, or 0 for one that goes with all of the other's.
LPT_API void lpt_odd_sums(const double *x, int32_t x_step, const double *y, int32_t y_step,
                          double *r, int64_t n, int32_t threads) {
    (x_step == 0   ? odd_sums<0, 1>
     : y_step == 0 ? odd_sums<1, 0>
                   : odd_sums<1, 1>)(x, y, r, n, threads);
}
// 0, or 1 where a product is near an end of float64: then nothing was written.
LPT_API int32_t lpt_odd_products(const double *x, int32_t x_step, const double *y, int32_t y_step,
                                 double *r, int64_t n, int32_t threads) {
    return (x_step == 0   ? odd_products<0, 1>
            : y_step == 0 ? odd_products<1, 0>
                          : odd_products<1, 1>)(x, y, r, n, threads);
}

// 0, or 1 where there was no memory for the blocks' scales.
LPT_API int32_t lpt_round_blocks_f32(const float *x, float *y, const lpt_layout *l,
                                     const lpt_blocks *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, {b, nullptr, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_blocks_f64(const double *x, double *y, const lpt_layout *l,
                                     const lpt_blocks *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, {b, nullptr, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_scaled_f32(const float *x, float *y, const lpt_layout *l,
                                     const lpt_scaled *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, {nullptr, b, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_scaled_f64(const double *x, double *y, const lpt_layout *l,
                                     const lpt_scaled *b, const lpt_rule *rule, int32_t threads) {
    return round_blocks(x, y, *l, {nullptr, b, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_ranges_f32(const float *x, float *y, const lpt_layout *l,
                                     const lpt_ranges *b, const lpt_rule *rule, int32_t threads) {
    return round_ranges(x, y, *l, *b, *rule, threads);
}
LPT_API int32_t lpt_round_ranges_f64(const double *x, double *y, const lpt_layout *l,
                                     const lpt_ranges *b, const lpt_rule *rule, int32_t threads) {
    return round_ranges(x, y, *l, *b, *rule, threads);
}

// What blocks are multiplied by, as many as there are; under ranges, then their zero points.
LPT_API int32_t lpt_scales_of_blocks_f32(const float *x, double *to, const lpt_layout *l,
                                         const lpt_blocks *b, int32_t threads) {
    return find_scales(x, to, *l, {b, nullptr, 1}, threads);
}
LPT_API int32_t lpt_scales_of_blocks_f64(const double *x, double *to, const lpt_layout *l,
                                         const lpt_blocks *b, int32_t threads) {
    return find_scales(x, to, *l, {b, nullptr, 1}, threads);
}
LPT_API int32_t lpt_scales_of_scaled_f32(const float *x, double *to, const lpt_layout *l,
                                         const lpt_scaled *b, int32_t threads) {
    return find_scales(x, to, *l, {nullptr, b, 1}, threads);
}
LPT_API int32_t lpt_scales_of_scaled_f64(const double *x, double *to, const lpt_layout *l,
                                         const lpt_scaled *b, int32_t threads) {
    return find_scales(x, to, *l, {nullptr, b, 1}, threads);
}
LPT_API int32_t lpt_scales_of_ranges_f32(const float *x, double *to, const lpt_layout *l,
                                         const lpt_ranges *b, int32_t threads) {
    return find_ranges(x, to, *l, *b, threads);
}
LPT_API int32_t lpt_scales_of_ranges_f64(const double *x, double *to, const lpt_layout *l,
                                         const lpt_ranges *b, int32_t threads) {
    return find_ranges(x, to, *l, *b, threads);
}

// The same of memory in another order. 0, or 1 where there is no way.
LPT_API int32_t lpt_round_turned_blocks_f32(const float *x, float *y, const lpt_turned_blocks *t,
                                            const lpt_blocks *b, const lpt_rule *rule,
                                            int32_t threads) {
    return round_turned_blocks(x, y, *t, {b, nullptr, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_turned_blocks_f64(const double *x, double *y, const lpt_turned_blocks *t,
                                            const lpt_blocks *b, const lpt_rule *rule,
                                            int32_t threads) {
    return round_turned_blocks(x, y, *t, {b, nullptr, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_turned_scaled_f32(const float *x, float *y, const lpt_turned_blocks *t,
                                            const lpt_scaled *b, const lpt_rule *rule,
                                            int32_t threads) {
    return round_turned_blocks(x, y, *t, {nullptr, b, 1}, *rule, threads);
}
LPT_API int32_t lpt_round_turned_scaled_f64(const double *x, double *y, const lpt_turned_blocks *t,
                                            const lpt_scaled *b, const lpt_rule *rule,
                                            int32_t threads) {
    return round_turned_blocks(x, y, *t, {nullptr, b, 1}, *rule, threads);
}

// The random word of one element, for known-answer tests.
LPT_API uint32_t lpt_random_word(uint64_t element, const lpt_key *key) {
    return lpt_random(element, *key);
}
LPT_API void lpt_philox_words(uint64_t index, const lpt_key *key, uint32_t *out) {
    const lpt_words words = lpt_philox(index, *key);
    memcpy(out, words.w, sizeof words.w);
}
