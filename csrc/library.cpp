// The C interface: picks the build for this processor, splits the work among threads.
#include "kernels.h"
#include "transposed.h"
#include <fenv.h>
#include <stdlib.h>

#ifdef LPT_X86
#include <xmmintrin.h>
#endif
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
// Bytes that are unlikely to be found in the cache again; and those of them that go past it already
// where rows far apart are written at once.
const int64_t LARGE = 32 << 20, LARGE_IN_COLUMNS = 16 << 20;

// Whether y is another tensor than x and has at least so many bytes, which lines can be made of.
template <class T> bool large(const T *x, const T *y, int64_t n, int64_t bytes = LARGE) {
    return x != y && (uintptr_t)y % sizeof(T) == 0 && n * (int64_t)sizeof(T) >= bytes;
}

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

// While one lives, this thread's floating point is IEEE 754's: to nearest, subnormals kept. A
// program may have chosen otherwise (torch.set_flush_denormal).
class plain_arithmetic {
#ifdef LPT_X86
    const unsigned before = _mm_getcsr();
    const bool differs = (before & 0xffc0) != 0x1f80;  // all but the flags of past exceptions

  public:
    plain_arithmetic() {
        if (differs)
            _mm_setcsr(0x1f80);
    }
    ~plain_arithmetic() {
        if (differs)
            _mm_setcsr(before);
    }
#else
    fenv_t before;

  public:
    plain_arithmetic() {
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
    }
    ~plain_arithmetic() { fesetenv(&before); }
#endif
};

template <class T>
void round_grid(const T *x, T *y, int64_t n, const lpt_grid &g, const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    split(n, threads, [&](int64_t first, int64_t last) {
        const plain_arithmetic guard;
        f.grid(x, y, first, last, g, rule, large(x, y, n));
    });
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
    const int parts = threads < useful ? threads : (int)useful;
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
    for (int part = 0; part < parts; ++part) {
        const plain_arithmetic guard;
        lpt_each_tile(x, y, m, tiles, count * part / parts, count * (part + 1) / parts, loops(T()),
                      round);
    }
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

// The largest finite magnitude of n elements.
template <class T> T finite_maximum(const T *x, int64_t n, int parts) {
    typedef typename lpt_carrier<T>::sbits S;
    S top = 0;
#pragma omp parallel for num_threads(parts) schedule(static) reduction(max : top) if (parts > 1)
    for (int part = 0; part < parts; ++part) {
        const S here = (S)loops(T()).finite_maximum(x, n * part / parts, n * (part + 1) / parts);
        top = here > top ? here : top;
    }
    return lpt_value<T>((typename lpt_carrier<T>::bits)top);
}

// The scale of a whole tensor of n elements, where scales have one.
template <class T> float whole_scale(const T *x, int64_t n, const lpt_scaled &numbers, int parts) {
    const double top = numbers.whole == 0 ? 0 : finite_maximum(x, n, parts);
    const float most = lpt_value<float>(0x7f7fffffu);
    return lpt_tensor_scale(numbers, top < most ? (float)top : most);
}

// One unit of blocks, its elements split among `parts` threads; `scratch` holds parts + 1 numbers
// for each block. Threads first find maxima of their own, which are then joined.
template <class T>
void round_unit(const T *x, T *y, const lpt_layout &l, const lpt_unit &unit, int64_t size,
                int64_t count, const lpt_scales &scales, bool finite, const lpt_rule &rule,
                int parts, typename lpt_carrier<T>::bits *scratch) {
    const lpt_loops<T> &f = loops(T());
    memset(scratch, 0, parts * count * sizeof *scratch);
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
    for (int part = 0; part < parts; ++part) {
        const int64_t from = size * part / parts, to = size * (part + 1) / parts;
        if (from < to)
            f.maxima(x, l, unit, unit.first + from, unit.first + to, finite,
                     scratch + part * count);
    }
    for (int64_t i = count; i < parts * count; ++i)
        scratch[i % count] = scratch[i] > scratch[i % count] ? scratch[i] : scratch[i % count];
    f.scales(scales, rule, count, scratch, scratch + parts * count);
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
    for (int part = 0; part < parts; ++part) {
        const plain_arithmetic guard;
        const int64_t from = size * part / parts, to = size * (part + 1) / parts;
        if (from < to)
            f.blocks(x, y, l, unit, unit.first + from, unit.first + to, scratch,
                     scratch + parts * count, scales, rule);
    }
}

// Leading axes whose blocks are one wide, and the blocks along the next axis, cut the tensor into
// units that know nothing of each other. Threads share out the units, or each of a few large ones.
template <class T>
int round_blocks(const T *x, T *y, const lpt_layout &l, lpt_scales scales, const lpt_rule &rule,
                 int threads) {
    typedef typename lpt_carrier<T>::bits U;
    const lpt_loops<T> &f = loops(T());
    const plain_arithmetic guard;
    const int32_t last_axis = l.dims - 1;
    int32_t axis = 0;
    int64_t slabs = 1, count = 1, inner = 1;
    while (axis < last_axis && l.block[axis] == 1)
        slabs *= l.shape[axis++];
    for (int32_t d = axis + 1; d < l.dims; ++d) {
        count *= (l.shape[d] + l.block[d] - 1) / l.block[d];
        inner *= l.shape[d];
    }
    const int64_t length = l.shape[axis], wide = l.block[axis], bands = (length + wide - 1) / wide;
    const int64_t units = slabs * bands, elements = slabs * length * inner,
                  useful = elements / GRAIN + 1;
    const int parts = threads < useful ? threads : (int)useful;
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;

    if (scales.numbers)
        scales.whole = whole_scale(x, elements, *scales.numbers, parts);
    const bool shared = units >= 2 * parts;  // else every unit is split
    if (axis == last_axis && (shared || parts == 1)) {
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
        for (int part = 0; part < parts; ++part) {
            const plain_arithmetic guard;
            f.runs(x, y, length, wide, units * part / parts, units * (part + 1) / parts,
                   LPT_ONE_BY_ONE, scales, rule, large(x, y, elements));
        }
        return 0;
    }
    const int64_t strips = units * ((inner + LPT_STRIP - 1) / LPT_STRIP);
    if (axis < last_axis && count == inner && (strips >= 2 * parts || parts == 1)) {
#pragma omp parallel for num_threads(parts) schedule(static) if (parts > 1)
        for (int part = 0; part < parts; ++part) {
            const plain_arithmetic guard;
            f.columns(x, y, length, wide, inner, strips * part / parts, strips * (part + 1) / parts,
                      LPT_ONE_BY_ONE, scales, rule, large(x, y, elements, LARGE_IN_COLUMNS));
        }
        return 0;
    }
    int failed = 0;
    const int teams = shared ? parts : 1, members = shared ? 1 : parts;
#pragma omp parallel for num_threads(teams) schedule(static) reduction(| : failed) if (teams > 1)
    for (int team = 0; team < teams; ++team) {
        const plain_arithmetic guard;
        U *scratch = (U *)malloc((members + 1) * count * sizeof(U));
        if (!scratch) {
            failed = 1;
            continue;
        }
        for (int64_t u = units * team / teams; u < units * (team + 1) / teams; ++u) {
            const int64_t start = u % bands * wide,
                          height = length - start < wide ? length - start : wide;
            const lpt_unit unit = {(u / bands * length + start) * inner, axis};
            round_unit(x, y, l, unit, height * inner, count, scales, finite, rule, members,
                       scratch);
        }
        free(scratch);
    }
    return failed;
}

// Matrices of blocks of `wide` elements: columns are cut into blocks where `row` is 0; else rows
// into parts of `row` elements, and those into blocks.
struct lpt_turned_blocks {
    lpt_matrices matrices;
    int64_t row, wide;
};

// 0, or 1 where tiles would hold too little.
template <class T>
int round_turned_blocks(const T *x, T *y, const lpt_turned_blocks &b, lpt_scales scales,
                        const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    const plain_arithmetic guard;
    const lpt_matrices &m = b.matrices;
    const int64_t wide = b.wide, step = b.row == m.columns ? wide : b.row;
    const auto tiles =
        b.row ? lpt_tiles<T>(m, LPT_GROUP, 1, step) : lpt_tiles<T>(m, LPT_GROUP, wide, 1);
    if (!tiles.fit())
        return 1;
    const auto up = [](int64_t count, int64_t by) { return (count + by - 1) / by; };
    const int64_t elements = m.count * m.rows * m.columns, useful = elements / GRAIN + 1;
    if (scales.numbers)
        scales.whole =
            whole_scale(x, elements, *scales.numbers, threads < useful ? threads : (int)useful);
    split_tiles(x, y, m, tiles, threads, [&](const lpt_tile<T> &t) {
        const lpt_numbers dense = {t.number, INT64_MAX, INT64_MAX};
        const lpt_numbers strided = {t.number, t.columns, t.apart};
        const lpt_numbers &numbers = t.columns == t.apart ? dense : strided;
        const int64_t rows = t.matrices * t.rows, part = b.row < t.columns ? b.row : t.columns;
        if (b.row)
            f.runs(t.at, t.at, part, wide, 0, rows * t.columns / part * up(part, wide), numbers,
                   scales, rule, false);
        else
            f.columns(t.at, t.at, t.rows, wide, t.columns, 0,
                      t.matrices * up(t.rows, wide) * up(t.columns, LPT_STRIP), numbers, scales,
                      rule, false);
    });
    return 0;
}

}  // namespace

#include "odd.h"
#include "updates.h"

#if defined(_WIN32)
#define LPT_API __declspec(dllexport)
#else
#define LPT_API __attribute__((visibility("default")))
#endif

extern "C" {

LPT_API int32_t lpt_abi_version() { return 13; }

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
}
