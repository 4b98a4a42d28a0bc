// The device's loops over elements that know nothing of each other, and nothing but the loops.
#pragma once
#include "device.h"

// y[i] = f(bits of x[i], no random word); x and y may be one. `lead` elements before x, not of it,
// make the chunks of the work begin at multiples of 16 bytes; where y does not lie on such a
// multiple with x, `wide` is false and elements are moved one by one.
template <int HELD, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_map(const T *x, T *y, int64_t n, int32_t lead, int32_t wide, F f) {
    typedef typename lpt_carrier<T>::bits U;
    typedef lpt_pack<T> pack;
    enum { EACH = HELD / sizeof(T), PACK = pack::size, CHUNK = EACH * LPT_THREADS };
    const int64_t chunks = (n + lead + CHUNK - 1) / CHUNK;
    for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const int64_t start = chunk * CHUNK - lead;
        const bool whole = wide && start >= 0 && start + CHUNK <= n;
        U v[EACH];
        if (whole) {
#pragma unroll
            for (int k = 0; k < EACH / PACK; ++k) {
                const pack p = lpt_load_pack(x + start + (k * LPT_THREADS + threadIdx.x) * PACK);
#pragma unroll
                for (int j = 0; j < PACK; ++j)
                    v[k * PACK + j] = lpt_bits(p.v[j]);
            }
        } else {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int64_t i = start + j * LPT_THREADS + threadIdx.x;
                v[j] = i >= 0 && i < n ? lpt_bits(x[i]) : (U)0;
            }
        }
#pragma unroll
        for (int j = 0; j < EACH; ++j)
            v[j] = f(v[j], 0u);
        if (whole) {
#pragma unroll
            for (int k = 0; k < EACH / PACK; ++k) {
                pack p;
#pragma unroll
                for (int j = 0; j < PACK; ++j)
                    p.v[j] = lpt_value<T>(v[k * PACK + j]);
                lpt_store_pack(y + start + (k * LPT_THREADS + threadIdx.x) * PACK, p);
            }
        } else {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int64_t i = start + j * LPT_THREADS + threadIdx.x;
                if (i >= 0 && i < n)
                    y[i] = lpt_value<T>(v[j]);
            }
        }
    }
}

// f of four elements with their random words. A format may have a way of its own to do it.
template <class F, class U>
LPT_METHOD void lpt_apply(const F &f, U (&v)[4], const uint32_t (&random)[4]) {
#pragma unroll
    for (int w = 0; w < 4; ++w)
        v[w] = f(v[w], random[w]);
}

// y[i] = f(bits of x[i], random word of i). A warp takes groups of 128 elements: the four words
// that a lane draws decide the four elements 32 apart that it moves, so all accesses are dense and
// none needs more alignment than an element has.
template <int GROUPS, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_map_drawn(const T *x, T *y, int64_t n, lpt_draw draw, F f) {
    typedef typename lpt_carrier<T>::bits U;
    enum { WARPS = LPT_THREADS / LPT_WARP };
    const lpt_key key = lpt_key_of_draw(draw);
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP;
    const int32_t lane = threadIdx.x % LPT_WARP, warp = threadIdx.x / LPT_WARP;
    for (int64_t first = ((int64_t)blockIdx.x * WARPS + warp) * GROUPS; first < groups;
         first += (int64_t)gridDim.x * WARPS * GROUPS) {
        const int64_t start = first * LPT_GROUP + lane;
        // A condition for each access would need more registers for conditions than there are, and
        // loads would wait for one another.
        const bool whole = (first + GROUPS) * LPT_GROUP <= n;
        U v[GROUPS][4];
        const auto load = [&](bool all) {
#pragma unroll
            for (int j = 0; j < 4 * GROUPS; ++j) {
                const int64_t i = start + j * LPT_LANES;
                v[j / 4][j % 4] = all || i < n ? lpt_bits(x[i]) : (U)0;
            }
        };
        const auto store = [&](bool all) {
#pragma unroll
            for (int j = 0; j < 4 * GROUPS; ++j) {
                const int64_t i = start + j * LPT_LANES;
                if (all || i < n)
                    y[i] = lpt_value<T>(v[j / 4][j % 4]);
            }
        };
        whole ? load(true) : load(false);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            lpt_words words = lpt_philox((first + g) * LPT_LANES + lane, key);
#pragma unroll
            for (int w = 0; w < 4; ++w)
                words.w[w] &= draw.mask;
            lpt_apply(f, v[g], words.w);
        }
        whole ? store(true) : store(false);
    }
}

#ifndef __CUDACC_RTC__
// Launches the loop that the mode asks for. A thread holds 32 bytes of the tensor at a time where
// the work is COMMON, 16 where it is not: half the code to compile, and still near the memory.
template <int MODE, bool COMMON, class T, class F>
int32_t lpt_launch_map(const T *x, T *y, int64_t n, const lpt_draw &draw, void *stream,
                       const F &f) {
    if constexpr (MODE >= LPT_STOCHASTIC) {
        enum { GROUPS = COMMON ? 2 : 1 };
        const int64_t chunk = LPT_THREADS * GROUPS * 4, blocks = (n + chunk - 1) / chunk;
        return lpt_launch(LPT_KERNEL(lpt_map_drawn, GROUPS, T, F), lpt_blocks_for(blocks), stream,
                          x, y, n, draw, f);
    } else {
        enum { HELD = COMMON ? 32 : 16 };
        const uintptr_t from = (uintptr_t)x % 16, to = (uintptr_t)y % 16;
        const int32_t lead = (int32_t)(from / sizeof(T)), wide = from == to;
        const int64_t chunk = LPT_THREADS * HELD / sizeof(T),
                      blocks = (n + lead + chunk - 1) / chunk;
        return lpt_launch(LPT_KERNEL(lpt_map, HELD, T, F), lpt_blocks_for(blocks), stream, x, y, n,
                          lead, wide, f);
    }
}

// Launch<MODE>::run for a mode known only now.
template <template <int> class Launch, class... A> int32_t lpt_with_mode(int32_t mode, A... a) {
    switch (mode) {
    case LPT_NEAREST: return Launch<LPT_NEAREST>::run(a...);
    case LPT_NEAREST_AWAY: return Launch<LPT_NEAREST_AWAY>::run(a...);
    case LPT_TOWARD_ZERO: return Launch<LPT_TOWARD_ZERO>::run(a...);
    case LPT_DOWN: return Launch<LPT_DOWN>::run(a...);
    case LPT_UP: return Launch<LPT_UP>::run(a...);
    case LPT_ODD: return Launch<LPT_ODD>::run(a...);
    case LPT_STOCHASTIC: return Launch<LPT_STOCHASTIC>::run(a...);
    case LPT_STOCHASTIC_HALF_OFFSET: return Launch<LPT_STOCHASTIC_HALF_OFFSET>::run(a...);
    case LPT_STOCHASTIC_PRE_ROUNDED: return Launch<LPT_STOCHASTIC_PRE_ROUNDED>::run(a...);
    default: return Launch<LPT_STOCHASTIC_EQUAL>::run(a...);
    }
}
#endif
