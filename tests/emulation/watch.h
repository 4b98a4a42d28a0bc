// What the emulation tells of its threads to watch.cpp, where that is a part of the library.
#pragma once
#include <stddef.h>

enum { WATCH_BLOCK, WATCH_WARP };  // barriers of a thread block, and of a warp

#ifdef LPT_WATCHED
void watch_launch(const char *kernel);
void watch_block(unsigned block);
void watch_thread(unsigned thread, const void *stack, size_t bytes);  // goes on, on this stack
void watch_nobody();                                                  // none does
void watch_barrier(int kind);                                         // the thread goes past one
void watch_atomic(bool begins);
#else
inline void watch_launch(const char *) {}
inline void watch_block(unsigned) {}
inline void watch_thread(unsigned, const void *, size_t) {}
inline void watch_nobody() {}
inline void watch_barrier(int) {}
inline void watch_atomic(bool) {}
#endif
