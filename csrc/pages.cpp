// Asks for large pages under new memory. The system hands out memory page by page, at the first
// write to each, and of 4 KiB pages that takes several times as long as rounding what is on them.
#include "export.h"
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

// Whether the system took the wish for the whole pages of `memory`, which belong to it alone. It
// changes no contents, and may be refused: by other systems, and by Linux where it is set so.
LPT_API int32_t lpt_large_pages(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)memory + (uintptr_t)bytes) / page * page;
    return first < last && madvise((void *)first, last - first, MADV_HUGEPAGE) == 0;
#else
    (void)memory, (void)bytes;
    return 0;
#endif
}
