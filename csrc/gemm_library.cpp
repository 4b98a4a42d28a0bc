// The C interface of gemm.cpp: the build for this processor, and threads.
#include "gemm_loops.h"
#include "host.h"

namespace {

const int64_t GRAIN = 16384;  // products that a thread is worth starting for

// Units of work are shared out among threads. Returns 0, or 1 where there is no memory for what
// they keep.
template <class Run> int32_t share(const lpt_product &p, int64_t units, int threads, Run run) {
    const int64_t work = p.batch * p.m * p.n * p.k, useful = work / GRAIN + 1;
    int64_t parts = threads < useful ? threads : useful;
    parts = parts < units ? parts : units;
    std::atomic<bool> failed(false);
    in_parts(parts, [&](int64_t part) {
        if (!run(units * part / parts, units * (part + 1) / parts))
            failed = true;
    });
    return failed;
}

}  // namespace

LPT_API int32_t lpt_gemm_f32(const lpt_product *p, const lpt_accumulator *acc, int32_t threads) {
    const lpt_gemm_loops &f = *lpt_chosen->gemm;
    return share(*p, f.f32_units(*p, *acc), threads,
                 [&](int64_t first, int64_t last) { return f.f32(*p, *acc, first, last); });
}
LPT_API int32_t lpt_gemm_f64(const lpt_product *p, const lpt_accumulator *acc, int32_t threads) {
    const lpt_gemm_loops &f = *lpt_chosen->gemm;
    return share(*p, f.f64_units(*p, *acc), threads,
                 [&](int64_t first, int64_t last) { return f.f64(*p, *acc, first, last); });
}
