// What the kernels share: threads, 16-byte accesses, random words, and how they are launched.
// tests/emulation/ has the same names for the host and runs the same kernels there; launch.cpp has
// them where there is no nvcc.
#pragma once
#include "chance.h"
#include "export.h"
#include "philox.h"

#if !defined(LPT_EMULATED) && !defined(__CUDACC_RTC__)
#include <cuda_runtime.h>
#endif

#if defined(__CUDACC__)
#define LPT_METHOD __device__ __forceinline__  // a member function of a kernel's argument
#define LPT_LONG __device__ __noinline__
#else
#define LPT_METHOD inline
#define LPT_LONG inline
#endif

enum { LPT_THREADS = 256, LPT_WARP = 32 };  // threads of a thread block, and of a warp
// Thread blocks that a multiprocessor is to have room for, of kernels that wait for memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
enum { LPT_AT_ONCE = 4 };  // all that it takes
#else
enum { LPT_AT_ONCE = 5 };
#endif

#ifndef LPT_EMULATED
#define LPT_ALIGNED(address)  // the emulation looks
#endif

// A kernel with its template's arguments, as the first argument of lpt_launch.
#ifndef LPT_KERNEL
#define LPT_KERNEL(kernel, ...) kernel<__VA_ARGS__>
#endif

template <class T> struct alignas(16) lpt_pack {
    enum { size = 16 / sizeof(T) };
    T v[size];
};

template <class T> LPT_METHOD lpt_pack<T> lpt_load_pack(const T *x) {
    LPT_ALIGNED(x);
    return *(const lpt_pack<T> *)x;
}
template <class T> LPT_METHOD void lpt_store_pack(T *y, const lpt_pack<T> &p) {
    LPT_ALIGNED(y);
    *(lpt_pack<T> *)y = p;
}

// Where the random words come from: the key of this call, or one that lies on the device, drawn
// anew whenever a captured graph is replayed. `mask` keeps the random bits of a word.
struct lpt_draw {
    lpt_key key;
    const lpt_key *drawn;
    uint32_t mask;
};

LPT_FN lpt_draw lpt_make_draw(const lpt_rule &rule, const lpt_key *drawn) {
    return {rule.key, drawn, 0xffffffffu << (32 - rule.bits)};
}

LPT_FN lpt_key lpt_key_of_draw(const lpt_draw &draw) { return draw.drawn ? *draw.drawn : draw.key; }

// Thread blocks for so many chunks of work; beyond this, kernels stride.
LPT_FN int64_t lpt_blocks_for(int64_t chunks) { return chunks < 1 << 20 ? chunks : 1 << 20; }

#if !defined(LPT_EMULATED) && !defined(__CUDACC_RTC__)
// Runs `kernel` on the stream and returns the CUDA error code; nothing waits for it.
template <class... P, class... A>
int32_t lpt_launch(void (*kernel)(P...), int64_t blocks, void *stream, A... args) {
    static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter");
    const auto run = [&](P... values) {
        void *each[] = {(void *)&values...};
        return cudaLaunchKernel((const void *)kernel, dim3((unsigned)blocks), dim3(LPT_THREADS),
                                each, 0, (cudaStream_t)stream);
    };
    const cudaError_t error = run(args...);
    if (error != cudaSuccess)
        cudaGetLastError();  // it is reported here, not once more by whoever asks next
    return (int32_t)error;
}

// torch has its own copy of the runtime; ours learns here which device is meant.
inline int32_t lpt_on_device(int32_t device) { return (int32_t)cudaSetDevice(device); }

inline const char *lpt_error_text(int32_t code) { return cudaGetErrorString((cudaError_t)code); }

inline int32_t lpt_clear(void *memory, int64_t bytes, void *stream) {
    return (int32_t)cudaMemsetAsync(memory, 0, (size_t)bytes, (cudaStream_t)stream);
}
#endif
