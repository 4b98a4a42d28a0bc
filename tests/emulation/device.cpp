// The device's kernels on the host: the .cu files as they are, every thread of a thread block a
// fiber. Threads run one after the other up to the next point where they wait for each other, so a
// missing barrier, a wrong index or a tail that is left out shows in the results. What does not is
// watched (watch.cpp), where the kernels are compiled for that.
#define LPT_EMULATED
#define __global__
#define __device__
#ifdef LPT_WATCHED
#define __shared__ static thread_local  // where watch.cpp finds it
#else
#define __shared__ static
#endif
#define __launch_bounds__(...)
#define __grid_constant__

static void look(const void *address);
#define LPT_ALIGNED(address) look(address)
#define LPT_KERNEL(kernel, ...) lister<kernel<__VA_ARGS__>>::entry

#include "../../csrc/device.h"
#include "watch.h"
#include <algorithm>
#include <fenv.h>
#include <functional>
#include <map>
#include <math.h>
#include <memory>
#include <setjmp.h>
#include <string>
#include <ucontext.h>
#include <utility>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

struct place {
    unsigned x;
};
static place threadIdx, blockIdx, gridDim;

namespace {

// A waiting point of `members` threads.
struct barrier {
    int members, arrived = 0, generation = 0;
};

struct fiber {
    jmp_buf here;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    bool busy = false, made = false;
};

enum { STACK = 1 << 17 };
fiber fibers[LPT_THREADS];
jmp_buf scheduler;
ucontext_t outside;
std::function<void()> body;
barrier warps[LPT_THREADS / LPT_WARP], block;
uint64_t slots[LPT_THREADS];

// What the tests set: thread blocks at most, so that kernels stride, and the order of threads.
int64_t most_blocks = INT64_MAX;
enum { FORWARDS, BACKWARDS, AHEAD };
int order = FORWARDS;
bool misaligned = false;
bool moved = false;  // a thread has ended, or come to a waiting point

void live() {
    for (;;) {
        body();
        fiber &own = fibers[threadIdx.x];
        own.busy = false;
        moved = true;
        if (_setjmp(own.here) == 0)
            _longjmp(scheduler, 1);
    }
}

void yield() {
    if (_setjmp(fibers[threadIdx.x].here) == 0)
        _longjmp(scheduler, 1);
}

void wait(barrier &b) {
    const int generation = b.generation;
    moved = true;
    if (++b.arrived == b.members) {
        b.arrived = 0;
        ++b.generation;
        return;
    }
    while (b.generation == generation)
        yield();
}

void resume(unsigned thread) {
    threadIdx.x = thread;
    fiber &f = fibers[thread];
    if (!f.stack)
        f.stack.reset(new char[STACK]);
    if (_setjmp(scheduler)) {
        watch_nobody();
        return;
    }
    watch_thread(thread, f.stack.get(), STACK);
    if (f.made)
        _longjmp(f.here, 1);
    f.made = true;
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = STACK;
    makecontext(&f.start, live, 0);
    swapcontext(&outside, &f.start);
}

// False: threads wait for others that have ended or wait elsewhere.
bool run_block() {
    watch_block(blockIdx.x);
    block = {LPT_THREADS};
    for (barrier &b : warps)
        b = {LPT_WARP};
    for (fiber &f : fibers)
        f.busy = true;
    for (bool busy = true; busy;) {
        busy = moved = false;
        for (unsigned i = 0; i < LPT_THREADS / LPT_WARP; ++i) {
            const unsigned warp = order == BACKWARDS ? LPT_THREADS / LPT_WARP - 1 - i : i;
            // A warp that runs ahead does all that it can before another one does anything.
            for (int turn = order == AHEAD ? 64 : 1; turn; --turn)
                for (unsigned j = 0; j < LPT_WARP; ++j) {
                    const unsigned lane = order == BACKWARDS ? LPT_WARP - 1 - j : j;
                    const unsigned thread = warp * LPT_WARP + lane;
                    if (fibers[thread].busy)
                        resume(thread);
                    busy = busy || fibers[thread].busy;
                }
        }
        if (busy && !moved) {
            for (fiber &f : fibers)
                f.made = false;
            return false;
        }
    }
    return true;
}

// A kernel, and how it is called with pointers to its arguments.
struct listing {
    std::string name;  // without spaces
    void (*call)(void **args);
};
std::map<std::string, const listing *> &kernels() {
    static std::map<std::string, const listing *> all;
    return all;
}

template <auto KERNEL>
std::string name_of() {  // "... [with auto KERNEL = name]", "[KERNEL = name]"
    std::string name = __PRETTY_FUNCTION__;
    name.erase(0, name.find("KERNEL = ") + 9);
    name.erase(name.find_first_of(";]"));
    name.erase(0, name[0] == '&');
    name.erase(std::remove(name.begin(), name.end(), ' '), name.end());
    return name;
}

// Kernels are listed when the library is loaded, whether they are launched or not.
template <class... P> struct listed {
    const listing *kernel;
};
template <auto KERNEL> struct lister;
template <class... P, void (*KERNEL)(P...)> struct lister<KERNEL> {
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void unpack(void **args,
                                                              std::index_sequence<I...>) {
        KERNEL(*(P *)args[I]...);
    }
    static void call(void **args) { unpack(args, std::index_sequence_for<P...>()); }
    static listed<P...> enter() {
        const listing *const kernel = new listing{name_of<KERNEL>(), call};
        kernels()[kernel->name] = kernel;
        return {kernel};
    }
    static const listed<P...> entry;
};
template <class... P, void (*KERNEL)(P...)>
const listed<P...> lister<KERNEL>::entry = lister<KERNEL>::enter();

std::string launched;  // names and numbers of thread blocks, since it was last asked for

int32_t start(const listing *kernel, unsigned blocks, void **args) {
    launched += kernel->name + " " + std::to_string(blocks) + "\n";
    misaligned = false;
    watch_launch(kernel->name.c_str());
    body = [call = kernel->call, args] { call(args); };
    gridDim.x = blocks < most_blocks ? blocks : (unsigned)most_blocks;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
        if (!run_block())
            return 702;           // cudaErrorLaunchTimeout
    return misaligned ? 716 : 0;  // cudaErrorMisalignedAddress
}

template <class... P, class... A>
int32_t lpt_launch(listed<P...> entry, int64_t blocks, void *, A... args) {
    const auto run = [&](P... values) {
        void *each[] = {(void *)&values...};
        return start(entry.kernel, (unsigned)blocks, each);
    };
    return run(args...);
}

int32_t lpt_on_device(int32_t) { return 0; }

const char *lpt_error_text(int32_t) { return "no error is emulated"; }

int32_t lpt_clear(void *memory, int64_t bytes, void *) {
    memset(memory, 0, (size_t)bytes);
    return 0;
}

void meet() { wait(warps[threadIdx.x / LPT_WARP]); }

void __syncwarp() {
    meet();
    watch_barrier(WATCH_WARP);
}
void __syncthreads() {
    wait(block);
    watch_barrier(WATCH_BLOCK);
}

// Shuffles and votes, which do not order what threads do to memory.

template <class U> U __shfl_xor_sync(unsigned, U value, int apart) {
    slots[threadIdx.x] = value;
    meet();
    const U other = (U)slots[threadIdx.x ^ apart];
    meet();
    return other;
}

bool __any_sync(unsigned, bool yes) {
    slots[threadIdx.x] = yes;
    meet();
    const uint64_t *const warp = slots + threadIdx.x / LPT_WARP * LPT_WARP;
    const bool any = std::any_of(warp, warp + LPT_WARP, [](uint64_t slot) { return slot != 0; });
    meet();
    return any;
}

// fesetround, without what it does to the x87 unit: half of the time of all products.
void set_rounding(int direction) {
#ifdef __SSE__
    _MM_SET_ROUNDING_MODE((unsigned)direction << 3);  // FE_DOWNWARD is 0x400, _MM_ROUND_DOWN 0x2000
#else
    fesetround(direction);
#endif
}

// fp32 operations with a rounding of their own. A device's NaN has all bits set but the sign. They
// are not inlined: a compiler would move operations of the caller to where another rounding is set.
#define LPT_APART __attribute__((noinline))
template <int DIRECTION, class Work> LPT_APART float with_rounding(Work work) {
    if (DIRECTION != FE_TONEAREST)  // which is set already
        set_rounding(DIRECTION);
    const volatile float result = work();
    if (DIRECTION != FE_TONEAREST)
        set_rounding(FE_TONEAREST);
    const uint32_t nan = 0x7fffffff;
    return result == result ? result : lpt_value<float>(nan);
}
float __double2float_rz(volatile double x) {
    return with_rounding<FE_TOWARDZERO>([&] { return (float)x; });
}
LPT_APART double __fma_rz(volatile double a, volatile double b, volatile double c) {
    set_rounding(FE_TOWARDZERO);
    const volatile double result = fma(a, b, c);
    set_rounding(FE_TONEAREST);
    return result;
}
#define LPT_OPERATIONS(suffix, direction)                                                          \
    float __fmaf_##suffix(volatile float a, volatile float b, volatile float c) {                  \
        return with_rounding<direction>([&] { return fmaf(a, b, c); });                            \
    }                                                                                              \
    float __fmul_##suffix(volatile float a, volatile float b) {                                    \
        return with_rounding<direction>([&] { return a * b; });                                    \
    }                                                                                              \
    float __fadd_##suffix(volatile float a, volatile float b) {                                    \
        return with_rounding<direction>([&] { return a + b; });                                    \
    }
LPT_OPERATIONS(rn, FE_TONEAREST)
LPT_OPERATIONS(rd, FE_DOWNWARD)
LPT_OPERATIONS(ru, FE_UPWARD)
LPT_OPERATIONS(rz, FE_TOWARDZERO)

// Results of these have the bits of the device's, but for NaNs.
lpt_cell<float> cell_of(const lpt_grid &format) {
    return lpt_make_cell<float>(format, {LPT_NEAREST, 32, 0, 0, {0, 0}}, 0);
}
float through(const lpt_cell<float> &cell, float x) {
    return lpt_value<float>(lpt_round<float, LPT_NEAREST, false>(lpt_bits(x), cell, 0));
}
void through(const lpt_cell<float> &cell, float &x, float &y) {
    x = through(cell, x), y = through(cell, y);
}
void lpt_through_fp16(float &x, float &y) {
    static const auto cell = cell_of({11, -14, 15, LPT_INF, LPT_GRADUAL, 1, 1, 0, 65504, -65504});
    through(cell, x, y);
}
void lpt_through_e4m3(float &x, float &y) {
    static const auto cell = cell_of({4, -6, 8, LPT_SATURATE, LPT_GRADUAL, 1, 1, 0, 448, -448});
    through(cell, x, y);
}
void lpt_through_e5m2(float &x, float &y) {
    static const auto cell =
        cell_of({3, -14, 15, LPT_SATURATE, LPT_GRADUAL, 1, 1, 0, 57344, -57344});
    through(cell, x, y);
}
float lpt_through_bf16(float x) {
    const double max = ldexp(255, 120);
    static const auto cell = cell_of({8, -126, 127, LPT_INF, LPT_GRADUAL, 1, 1, 0, max, -max});
    return through(cell, x);
}

template <class U> void atomicMax(U *to, U value) {
    watch_atomic(true);
    *to = *to < value ? value : *to;
    watch_atomic(false);
}

}  // namespace

static void look(const void *address) { misaligned = misaligned || (uintptr_t)address % 16; }

#include "../../csrc/blocks.cu"
#include "../../csrc/codebooks.cu"
#include "../../csrc/gemm.cu"
#include "../../csrc/round.cu"

// What launch.cpp asks of CUDA's driver, and of NVRTC.
LPT_API int32_t lpt_emulate_compile(const char *name, int32_t, void **kernel) {
    std::string wanted = name;
    wanted.erase(std::remove(wanted.begin(), wanted.end(), ' '), wanted.end());
    const auto found = kernels().find(wanted);
    if (found == kernels().end())
        return 500;  // CUDA_ERROR_NOT_FOUND
    *kernel = (void *)found->second;
    return 0;
}
LPT_API int32_t lpt_emulate_launch(void *kernel, unsigned blocks, unsigned, unsigned,
                                   unsigned threads, unsigned, unsigned, unsigned, void *,
                                   void **args, void **) {
    return threads == LPT_THREADS ? start((const listing *)kernel, blocks, args) : 1;
}
LPT_API int32_t lpt_emulate_fill(uint64_t memory, unsigned char byte, size_t bytes, void *) {
    memset((void *)(uintptr_t)memory, byte, bytes);
    return 0;
}

// The names of all kernels, a line each; and what was launched since this was last asked.
LPT_API const char *lpt_emulate_kernels() {
    static std::string names;
    names.clear();
    for (const auto &kernel : kernels())
        names += kernel.first + "\n";
    return names.c_str();
}
LPT_API const char *lpt_emulate_launched() {
    static std::string told;
    told.clear();
    std::swap(told, launched);
    return told.c_str();
}

LPT_API void lpt_emulate(int64_t blocks, int32_t in_order) {
    most_blocks = blocks;
    order = in_order;
}
