// What the C interfaces to the CPU's kernels share: the build for this processor, and the
// arithmetic that its loops need.
#pragma once
#include "export.h"
#include "kernels.h"
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

}  // namespace
