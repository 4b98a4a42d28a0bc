// Results that are too many for the cache go past it: a line that is written whole need not be read
// first. They are made in a small buffer, which stays in cache, and leave it in one go.
#pragma once
#include "grid.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { LPT_STREAMED = 2048 };  // elements, a multiple of LPT_GROUP

// to[0 .. count) = from[0 .. count), not to be read soon.
template <class T> static inline void lpt_stream(T *to, const T *from, int64_t count) {
#if defined(__SSE2__)
    char *q = (char *)to;
    const char *p = (const char *)from;
    int64_t left = count * (int64_t)sizeof(T), lead = (int64_t)(-(uintptr_t)q & 63);
    lead = lead < left ? lead : left;
    memcpy(q, p, lead);
    for (q += lead, p += lead, left -= lead; left >= 64; q += 64, p += 64, left -= 64)
        for (int i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(q + i), _mm_loadu_si128((const __m128i *)(p + i)));
    memcpy(q, p, left);
#else
    memcpy(to, from, count * sizeof(T));
#endif
}

// from[0 .. count) will be read soon. (Asking for memory that is not there does nothing.)
template <class T> static inline void lpt_fetch(const T *from, int64_t count) {
#if defined(__GNUC__)
    for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(from + i);
#else
    (void)from, (void)count;
#endif
}

// Streamed numbers are seen by others from here on.
static inline void lpt_streamed() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// work(out, from, to) for pieces of first .. last, where out[i] stands for y[i].
template <class T, class Work>
static inline void lpt_through(T *y, int64_t first, int64_t last, Work work) {
    alignas(64) T buffer[LPT_STREAMED];
    for (int64_t from = first; from < last; from += LPT_STREAMED) {
        const int64_t to = from + LPT_STREAMED < last ? from + LPT_STREAMED : last;
        work((T *)((uintptr_t)buffer - from * sizeof(T)), from, to);
        lpt_stream(y + from, buffer, to - from);
    }
}
