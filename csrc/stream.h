// Results that are too many for the cache go past it: a line that is written whole need not be read
// first. They are made in a small buffer, which stays in cache, and leave it in one go.
#pragma once
#include "grid.h"
#include "intrinsics.h"

// Input and output are one tensor or two that do not overlap: no element depends on another.
#if defined(__clang__)
#define LPT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define LPT_INDEPENDENT _Pragma("GCC ivdep")
#else
#define LPT_INDEPENDENT
#endif

// What is no part of the function around it, whose loops then have the registers.
#if defined(__GNUC__)
#define LPT_APART __attribute__((noinline))
#else
#define LPT_APART
#endif

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { LPT_STREAMED = 2048 };  // elements, a multiple of LPT_GROUP
enum { LPT_LINE = 64 };        // bytes of a line of the cache

// Compilers would take this loop, of a line's elements, apart before they make vectors of it.
#if defined(__GNUC__) && !defined(__clang__)
#define LPT_OF_A_LINE _Pragma("GCC unroll 1") LPT_INDEPENDENT
#else
#define LPT_OF_A_LINE LPT_INDEPENDENT
#endif

// A line, aligned both here and there, goes past the cache.
static inline void lpt_stream_line(void *to, const void *from) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)to, _mm512_load_si512(from));
#elif defined(__AVX2__)
    for (int i = 0; i < 2; ++i)
        _mm256_stream_si256((__m256i *)to + i, _mm256_load_si256((const __m256i *)from + i));
#elif defined(__SSE2__)
    for (int i = 0; i < 4; ++i)
        _mm_stream_si128((__m128i *)to + i, _mm_load_si128((const __m128i *)from + i));
#else
    memcpy(to, from, LPT_LINE);
#endif
}

// Whether `count` elements from `to` on are whole lines.
template <class T> static inline bool lpt_whole_lines(const T *to, int64_t count) {
    return (((uintptr_t)to | count * sizeof(T)) & (LPT_LINE - 1)) == 0;
}

// y[i] = one(i) for first .. last, whole lines that are not to be read soon.
template <class T, class One>
static inline void lpt_fill_lines(T *y, int64_t first, int64_t last, One one) {
    enum { LINE = LPT_LINE / sizeof(T) };
    for (int64_t i = first; i < last; i += LINE) {
        alignas(LPT_LINE) T line[LINE];
        LPT_OF_A_LINE
        for (int j = 0; j < LINE; ++j)
            line[j] = one(i + j);
        lpt_stream_line(y + i, line);
    }
}

// The same, of which the first and the last may be parts of lines.
template <class T, class One>
static inline void lpt_fill_past(T *y, int64_t first, int64_t last, One one) {
    enum { LINE = LPT_LINE / sizeof(T) };
    const int64_t lead = (int64_t)(-(uintptr_t)(y + first) & (LPT_LINE - 1)) / (int64_t)sizeof(T);
    const int64_t start = lead < last - first ? first + lead : last;
    const int64_t end = start + (last - start) / LINE * LINE;
    for (int64_t i = first; i < start; ++i)
        y[i] = one(i);
    lpt_fill_lines(y, start, end, one);
    for (int64_t i = end; i < last; ++i)
        y[i] = one(i);
}

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

// Whether the processor has to be told what will be read next; in library.cpp.
extern const bool lpt_tell_ahead;

// from[0 .. count) will be read soon. (Asking for memory that is not there does nothing.)
template <class T> static inline void lpt_fetch(const T *from, int64_t count) {
#if defined(__GNUC__)
    if (!lpt_tell_ahead)
        return;
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
