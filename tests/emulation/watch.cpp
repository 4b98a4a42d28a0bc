// Finds what no result shows: accesses of two threads of an emulated kernel to the same memory, one
// of them writing, with no barrier between; shared memory that is read before it is written; and
// accesses outside of the memory that kernels were given.
// The kernels are compiled as for ThreadSanitizer, whose code calls the functions at the end for
// every access. Only barriers order accesses: shuffles and votes do not (CUDA C++ Programming
// Guide, Warp Shuffle Functions and Warp Vote Functions), and nothing orders those of two thread
// blocks.
#include "watch.h"
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

enum { THREADS = 256, WARP = 32, UNIT = 4 };  // bytes that are watched as one

// Who accessed a unit, and how many barriers of each kind it had passed.
struct access {
    unsigned block, thread, passed[2];
};

// The last access that wrote, and those that read since, of the thread block that runs and since
// its last barrier: of earlier ones these stand for all.
struct unit {
    access writer;
    std::vector<access> readers;
    bool written = false, atomically = false, read_by_others = false;
};

std::unordered_map<uintptr_t, unit> shared, global;
std::string kernel, found;
int faults;

unsigned block;
int thread = -1;  // that runs
uintptr_t stack;
size_t stack_bytes;
bool atomic;
unsigned passed[THREADS][2], met[THREADS][2];
int left_out[2] = {-1, -1};

// What the library itself has in memory is the emulation's, but for its thread_local variables,
// which are the shared memory.
struct range {
    uintptr_t from = 0;
    size_t bytes = 0;
    bool has(uintptr_t at) const { return at - from < bytes; }
};
std::vector<range> library, given;
range shared_memory;
thread_local char in_shared_memory;

int find_library(dl_phdr_info *info, size_t, void *) {
    library.clear();
    bool own = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr) &part = info->dlpi_phdr[i];
        if (part.p_type == PT_LOAD)
            library.push_back({info->dlpi_addr + part.p_vaddr, part.p_memsz});
        if (part.p_type == PT_LOAD)
            own = own || library.back().has((uintptr_t)&block);
        if (part.p_type == PT_TLS)
            shared_memory = {(uintptr_t)info->dlpi_tls_data, part.p_memsz};
    }
    return own;
}

std::string name(const access &a) {
    return "thread " + std::to_string(a.thread) + " of block " + std::to_string(a.block);
}
void tell(const access &now, const std::string &what) {
    if (faults++ < 8)
        found += kernel + ": " + name(now) + what + "\n";
}

bool ordered(const access &before, const access &now) {
    if (before.block != now.block)
        return false;
    const bool same_warp = before.thread / WARP == now.thread / WARP;
    return before.thread == now.thread || before.passed[WATCH_BLOCK] < now.passed[WATCH_BLOCK] ||
           (same_warp && before.passed[WATCH_WARP] < now.passed[WATCH_WARP]);
}

void read(unit &u, const access &now, bool is_shared) {
    if (is_shared && !u.written)
        tell(now, " reads shared memory that none has written");
    // Of numbers that only grow, by atomic operations, one that is out of date may be read.
    if (u.written && !u.atomically && !ordered(u.writer, now))
        tell(now, " reads what is written by " + name(u.writer));
    if (!u.readers.empty() && u.readers[0].passed[WATCH_BLOCK] < now.passed[WATCH_BLOCK])
        u.readers.clear();
    u.readers.push_back(now);
}

void write(unit &u, const access &now) {
    if (u.written && !(u.atomically && atomic) && !ordered(u.writer, now))
        tell(now, " writes what is written by " + name(u.writer));
    if (u.read_by_others && !atomic)
        tell(now, " writes what is read by another block");
    for (const access &reader : u.readers)
        if (!atomic && !ordered(reader, now))
            tell(now, " writes what is read by " + name(reader));
    u.readers.clear();
    u.writer = now;
    u.written = true;
    u.atomically = atomic;
}

void look(const void *address, size_t bytes, bool writes) {
    const uintptr_t from = (uintptr_t)address;
    if (thread < 0 || from - stack < stack_bytes)
        return;
    for (const range &part : library)
        if (part.has(from))
            return;
    const bool is_shared = shared_memory.has(from);
    const access now = {block, (unsigned)thread, {passed[thread][0], passed[thread][1]}};
    thread = -1;  // what is done here is not the kernel's
    bool inside = is_shared || given.empty();
    for (const range &memory : given)
        inside = inside || (memory.has(from) && memory.has(from + bytes - 1));
    if (!inside)
        tell(now, writes ? " writes outside of all tensors" : " reads outside of all tensors");
    for (uintptr_t at = from / UNIT; at * UNIT < from + bytes; ++at) {
        unit &u = (is_shared ? shared : global)[at];
        if (!u.readers.empty() && u.readers[0].block != block) {
            u.readers.clear();
            u.read_by_others = true;
        }
        writes ? write(u, now) : read(u, now, is_shared);
    }
    thread = (int)now.thread;
}

}  // namespace

void watch_launch(const char *name) {
    asm volatile("" ::"r"(&in_shared_memory));  // it has a place from here on
    dl_iterate_phdr(find_library, nullptr);
    kernel = name;
    global.clear();
}
void watch_block(unsigned number) {
    block = number;
    shared.clear();
    memset(passed, 0, sizeof passed);
    memset(met, 0, sizeof met);
}
void watch_thread(unsigned number, const void *own_stack, size_t bytes) {
    stack = (uintptr_t)own_stack;
    stack_bytes = bytes;
    thread = (int)number;
}
void watch_nobody() { thread = -1; }
void watch_barrier(int kind) {
    const int turn = met[thread][kind]++ % 2;
    passed[thread][kind] += turn != left_out[kind];
}
void watch_atomic(bool begins) { atomic = begins; }

#define EXPORTED extern "C" __attribute__((visibility("default")))

// What was found since this was last asked, a line each.
EXPORTED const char *lpt_watch_found() {
    static std::string told;
    told.clear();
    std::swap(told, found);
    faults = 0;
    return told.c_str();
}
// Memory that kernels may use; of no bytes: forget all that was given.
EXPORTED void lpt_watch_memory(uintptr_t from, int64_t bytes) {
    range memory;
    memory.from = from;
    memory.bytes = (size_t)bytes;
    bytes ? given.push_back(memory) : given.clear();
}
// As if there were not every second barrier of a kind, from the first (0) or the second (1) on.
EXPORTED void lpt_watch_without(int32_t kind, int32_t turn) { left_out[kind] = turn; }

// What compilers call where ThreadSanitizer is asked for.
#define HIDDEN extern "C" __attribute__((visibility("hidden")))
#define ACCESSES(bytes)                                                                            \
    HIDDEN void __tsan_read##bytes(void *p) { look(p, bytes, false); }                             \
    HIDDEN void __tsan_write##bytes(void *p) { look(p, bytes, true); }                             \
    HIDDEN void __tsan_unaligned_read##bytes(void *p) { look(p, bytes, false); }                   \
    HIDDEN void __tsan_unaligned_write##bytes(void *p) { look(p, bytes, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HIDDEN void __tsan_read_range(void *p, size_t bytes) { look(p, bytes, false); }
HIDDEN void __tsan_write_range(void *p, size_t bytes) { look(p, bytes, true); }
HIDDEN void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    look(from, bytes, false);
    look(to, bytes, true);
    return memcpy(to, from, bytes);
}
HIDDEN void *__tsan_memset(void *to, int value, size_t bytes) {
    look(to, bytes, true);
    return memset(to, value, bytes);
}
HIDDEN char __tsan_atomic8_load(const char *p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void *) {}
HIDDEN void __tsan_func_exit() {}
