// The CUDA library of an install without nvcc: the same functions, which launch what
// lptensor/_nvrtc.py compiles when it is first launched. Of a kernel, only its name and its
// parameters are compiled here.
#define LPT_EMULATED
#define LPT_ALIGNED(address)
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

#include "kernel_names.h"

#include "device.h"
#include <atomic>
#include <math.h>

// What kernels call, for the parser alone.
struct lpt_place {
    unsigned x;
};
extern const lpt_place threadIdx, blockIdx, gridDim;
void __syncwarp();
void __syncthreads();
bool __any_sync(unsigned, bool);
template <class U> void atomicMax(U *, U);
float __fmaf_rn(float, float, float), __fmaf_rz(float, float, float), __fmul_rn(float, float),
    __fadd_rn(float, float);
float __fadd_rz(float, float);
float __fmaf_rd(float, float, float), __fmul_rd(float, float), __fadd_rd(float, float);
float __fmaf_ru(float, float, float), __fmul_ru(float, float), __fadd_ru(float, float);
double __fma_rz(double, double, double);
float __double2float_rz(double);
float lpt_through_bf16(float);
void lpt_through_fp16(float &, float &), lpt_through_e4m3(float &, float &);
void lpt_through_e5m2(float &, float &);

// lptensor/_nvrtc.py: Driver. Functions of CUDA's driver, and one that compiles a kernel for a
// device.
struct lpt_driver {
    int32_t (*device)(int32_t *number, int32_t ordinal);
    int32_t (*retain)(void **context, int32_t number);
    int32_t (*enter)(void *context);
    int32_t (*launch)(void *kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                      unsigned, unsigned shared, void *stream, void **args, void **extra);
    int32_t (*fill)(uint64_t memory, unsigned char byte, size_t bytes, void *stream);
    int32_t (*text)(int32_t code, const char **text);
    int32_t (*compile)(const char *name, int32_t device, void **kernel);
};

namespace {

enum { DEVICES = 128, NO_DEVICE = 101, NO_DRIVER = 35 };  // CUDA's codes of errors

lpt_driver driver;
thread_local int32_t current;

// A thread has no context before torch runs a kernel of its own there.
int32_t lpt_on_device(int32_t device) {
    static std::atomic<void *> contexts[DEVICES] = {};
    if (!driver.launch)
        return NO_DRIVER;
    if (device < 0 || device >= DEVICES)
        return NO_DEVICE;
    current = device;
    void *context = contexts[device];
    if (!context) {
        int32_t number = 0, error = driver.device(&number, device);
        if (!error)
            error = driver.retain(&context, number);
        if (error)
            return error;
        contexts[device] = context;
    }
    return driver.enter(context);
}

int32_t find(const std::string &name, std::atomic<void *> &found) {
    void *kernel = nullptr;
    const int32_t error = driver.compile(name.c_str(), current, &kernel);
    found = kernel;
    return error;
}

template <class... P, class Name, class... A>
int32_t lpt_launch(lpt_named<void (*)(P...), Name> kernel, int64_t blocks, void *stream,
                   A... args) {
    static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter");
    static std::atomic<void *> found[DEVICES] =
        {};  // of this kernel alone: no two names have one type
    if (!found[current])
        if (const int32_t error = find(kernel.name(), found[current]))
            return error;
    const auto run = [&](P... values) {
        void *each[] = {(void *)&values...};
        return driver.launch(found[current], (unsigned)blocks, 1, 1, LPT_THREADS, 1, 1, 0, stream,
                             each, nullptr);
    };
    return run(args...);
}

int32_t lpt_clear(void *memory, int64_t bytes, void *stream) {
    return driver.fill((uint64_t)(uintptr_t)memory, 0, (size_t)bytes, stream);
}

const char *lpt_error_text(int32_t code) {
    const char *text = nullptr;
    if (driver.text)
        driver.text(code, &text);
    return text ? text : code == NO_DRIVER ? "there is no CUDA driver" : "unknown error";
}

}  // namespace

#include "blocks.cu"
#include "codebooks.cu"
#include "gemm.cu"
#include "round.cu"

LPT_API void lpt_launch_by(const lpt_driver *functions) { driver = *functions; }
