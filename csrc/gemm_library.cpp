// The C interface of gemm.cpp: the build for this processor, and threads.
#include "gemm_loops.h"
#include <fenv.h>

#if defined(_WIN32)
#define LPT_API __declspec(dllexport)
#else
#define LPT_API __attribute__((visibility("default")))
#endif

extern const lpt_gemm_loops lpt_gemm_baseline;
#ifdef LPT_X86
extern const lpt_gemm_loops lpt_gemm_v3, lpt_gemm_v4;
#endif

extern "C" LPT_API const char *lpt_build_name();

namespace {

const lpt_gemm_loops &chosen() {
#ifdef LPT_X86
    if (strcmp(lpt_build_name(), "lpt_v4") == 0)
        return lpt_gemm_v4;
    if (strcmp(lpt_build_name(), "lpt_v3") == 0)
        return lpt_gemm_v3;
#endif
    return lpt_gemm_baseline;
}

const int64_t GRAIN = 16384;  // products that a thread is worth starting for

// Units of work are shared out among threads. While they run, this thread's floating point is IEEE
// 754's: to nearest, subnormals kept; a program may have chosen otherwise
// (torch.set_flush_denormal).
// Returns 0, or 1 where there is no memory for what they keep.
template <class Run> int32_t share(const lpt_product &p, int64_t units, int threads, Run run) {
    const int64_t work = p.batch * p.m * p.n * p.k, useful = work / GRAIN + 1;
    int64_t parts = threads < useful ? threads : useful;
    parts = parts < units ? parts : units;
    int32_t failed = 0;
#pragma omp parallel for num_threads((int)parts) schedule(static)                                  \
    reduction(| : failed) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
        fenv_t before;
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
        failed |= !run(units * part / parts, units * (part + 1) / parts);
        fesetenv(&before);
    }
    return failed;
}

}  // namespace

extern "C" {

LPT_API int32_t lpt_gemm_f32(const lpt_product *p, const lpt_accumulator *acc, int32_t threads) {
    const lpt_gemm_loops &f = chosen();
    return share(*p, f.f32_units(*p, *acc), threads,
                 [&](int64_t first, int64_t last) { return f.f32(*p, *acc, first, last); });
}
LPT_API int32_t lpt_gemm_f64(const lpt_product *p, const lpt_accumulator *acc, int32_t threads) {
    const lpt_gemm_loops &f = chosen();
    return share(*p, f.f64_units(*p, *acc), threads,
                 [&](int64_t first, int64_t last) { return f.f64(*p, *acc, first, last); });
}
}
