// What the C interfaces to the CPU's kernels share: the build for this processor, and the
// arithmetic that its loops need.
#pragma once
#include "export.h"
#include "kernels.h"
#include <atomic>
#include <fenv.h>

#ifdef LPT_X86
#include <xmmintrin.h>
#endif

extern const lpt_build *lpt_chosen;

namespace {

inline const lpt_loops<float> &loops(float) { return lpt_chosen->f32; }
inline const lpt_loops<double> &loops(double) { return lpt_chosen->f64; }
inline const lpt_codebook_loops<float> &codebooks(float) { return lpt_chosen->codebooks->f32; }
inline const lpt_codebook_loops<double> &codebooks(double) { return lpt_chosen->codebooks->f64; }

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

// part(0) .. part(count - 1), a thread each, in plain arithmetic.
template <class Part> void in_parts(int64_t count, Part part) {
    if (count == 1) {  // a team of one takes as long as a small tensor
        const plain_arithmetic guard;
        return part(0);
    }
#pragma omp parallel for num_threads((int)count) schedule(static)
    for (int64_t k = 0; k < count; ++k) {
        const plain_arithmetic guard;
        part(k);
    }
}

}  // namespace
