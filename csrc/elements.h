// The device's loops over elements that know nothing of each other, and nothing but the loops.
#pragma once
#include "device.h"

// Elements of a tensor. `lead` of them before x, not of it, make the chunks of the work begin at
// multiples of 16 bytes; where y does not lie on such a multiple with x, `wide` is false and
// elements are moved one by one. x and y may be one.
template <class T> struct lpt_span {
    const T *x;
    T *y;
    int64_t n;
    int32_t lead, wide;
};

template <class T> LPT_FN lpt_span<T> lpt_make_span(const T *x, T *y, int64_t n) {
    const uintptr_t from = (uintptr_t)x % 16, to = (uintptr_t)y % 16;
    return {x, y, n, (int32_t)(from / sizeof(T)), from == to};
}

// Thread blocks, each of which has a chunk in hand.
template <class T> LPT_FN int64_t lpt_chunks(const lpt_span<T> &s, int64_t chunk) {
    return (s.n + s.lead + chunk - 1) / chunk;
}

// y[i] = f(bits of x[i], no random word): what thread block `block` of `blocks` does of it.
template <int HELD, class T, class F>
LPT_METHOD void lpt_map_span(const lpt_span<T> &s, int64_t block, int64_t blocks, const F &f) {
    typedef typename lpt_carrier<T>::bits U;
    typedef lpt_pack<T> pack;
    enum { EACH = HELD / sizeof(T), PACK = pack::size, CHUNK = EACH * LPT_THREADS };
    const T *const x = s.x;
    T *const y = s.y;
    const int64_t n = s.n, chunks = lpt_chunks(s, CHUNK);
    for (int64_t chunk = block; chunk < chunks; chunk += blocks) {
        const int64_t start = chunk * CHUNK - s.lead;
        const bool whole = s.wide && start >= 0 && start + CHUNK <= n;
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

template <int HELD, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS) lpt_map(lpt_span<T> span, F f) {
    lpt_map_span<HELD>(span, blockIdx.x, gridDim.x, f);
}

// Tensors that one launch rounds, each where it lies: thread blocks first[k] .. first[k + 1] - 1
// have tensor k.
enum { LPT_MANY = 96 };
template <class T> struct lpt_spans {
    T *at[LPT_MANY];
    int64_t n[LPT_MANY];
    int32_t first[LPT_MANY + 1], count;

    // The tensor that a thread block has.
    LPT_METHOD int32_t of(int32_t block) const {
        int32_t low = 0, high = count;  // first[low] <= block < first[high]
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            (first[middle] <= block ? low : high) = middle;
        }
        return low;
    }
};

template <int HELD, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_map_many(const __grid_constant__ lpt_spans<T> spans, F f) {
    const int32_t block = (int32_t)blockIdx.x, k = spans.of(block);
    T *const at = spans.at[k];
    lpt_map_span<HELD>(lpt_make_span<T>(at, at, spans.n[k]), block - spans.first[k],
                       spans.first[k + 1] - spans.first[k], f);
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
// none needs more alignment than an element has. Thread block `block` of `blocks` does this of it.
template <int GROUPS, class T, class F>
LPT_METHOD void lpt_draw_span(const T *x, T *y, int64_t n, const lpt_key &key, uint32_t mask,
                              int64_t block, int64_t blocks, const F &f) {
    typedef typename lpt_carrier<T>::bits U;
    enum { WARPS = LPT_THREADS / LPT_WARP };
    const int64_t groups = (n + LPT_GROUP - 1) / LPT_GROUP;
    const int32_t lane = threadIdx.x % LPT_WARP, warp = threadIdx.x / LPT_WARP;
    for (int64_t first = (block * WARPS + warp) * GROUPS; first < groups;
         first += blocks * WARPS * GROUPS) {
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
                words.w[w] &= mask;
            lpt_apply(f, v[g], words.w);
        }
        whole ? store(true) : store(false);
    }
}

template <int GROUPS, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_map_drawn(const T *x, T *y, int64_t n, lpt_draw draw, F f) {
    lpt_draw_span<GROUPS>(x, y, n, lpt_key_of_draw(draw), draw.mask, blockIdx.x, gridDim.x, f);
}

// Each tensor with a key of its own; `drawn` are those of a graph.
template <class T> struct lpt_drawn_spans {
    lpt_spans<T> spans;
    lpt_key keys[LPT_MANY];
    const lpt_key *drawn;
    uint32_t mask;
};

template <int GROUPS, class T, class F>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_map_drawn_many(const __grid_constant__ lpt_drawn_spans<T> work, F f) {
    const lpt_spans<T> &spans = work.spans;
    const int32_t block = (int32_t)blockIdx.x, k = spans.of(block);
    T *const at = spans.at[k];
    lpt_draw_span<GROUPS>(at, at, spans.n[k], work.drawn ? work.drawn[k] : work.keys[k], work.mask,
                          block - spans.first[k], spans.first[k + 1] - spans.first[k], f);
}

#ifndef __CUDACC_RTC__
// Work for lpt_launch_map: a tensor into another, or any number of them where they lie, with keys
// of theirs, on the host or the device, where words are drawn.
template <class T> struct lpt_one {
    const T *x;
    T *y;
    int64_t n;
};
template <class T> struct lpt_some {
    T *const *at;
    const int64_t *n;
    int64_t count;
    const lpt_key *keys, *drawn;
};

template <int HELD, class T, class F>
int32_t lpt_launch_held(const lpt_one<T> &work, void *stream, const F &f) {
    const lpt_span<T> span = lpt_make_span(work.x, work.y, work.n);
    const int64_t blocks = lpt_chunks(span, LPT_THREADS * HELD / sizeof(T));
    return lpt_launch(LPT_KERNEL(lpt_map, HELD, T, F), lpt_blocks_for(blocks), stream, span, f);
}

template <int GROUPS, class T, class F>
int32_t lpt_launch_drawn(const lpt_one<T> &work, const lpt_draw &draw, void *stream, const F &f) {
    const int64_t chunk = LPT_THREADS * GROUPS * 4, blocks = (work.n + chunk - 1) / chunk;
    return lpt_launch(LPT_KERNEL(lpt_map_drawn, GROUPS, T, F), lpt_blocks_for(blocks), stream,
                      work.x, work.y, work.n, draw, f);
}

// As many tensors as a launch takes at a time, those from `from` on: launch(spans, from, blocks).
template <class T, class Launch>
int32_t lpt_in_turn(const lpt_some<T> &work, int64_t chunk, const Launch &launch) {
    enum { MOST = 1 << 16 };  // thread blocks of one tensor, which then has enough for any device
    for (int64_t from = 0; from < work.count; from += LPT_MANY) {
        lpt_spans<T> spans = {};
        for (int64_t k = from; k < work.count && spans.count < LPT_MANY; ++k) {
            const lpt_span<T> span = lpt_make_span<T>(work.at[k], work.at[k], work.n[k]);
            const int64_t chunks = lpt_chunks(span, chunk),
                          blocks = chunks < MOST ? chunks : (int64_t)MOST;
            spans.at[spans.count] = work.at[k];
            spans.n[spans.count] = work.n[k];
            spans.first[spans.count + 1] = spans.first[spans.count] + (int32_t)blocks;
            ++spans.count;
        }
        const int32_t blocks = spans.first[spans.count], error = blocks ? launch(spans, from) : 0;
        if (error)
            return error;
    }
    return 0;
}

template <int HELD, class T, class F>
int32_t lpt_launch_held(const lpt_some<T> &work, void *stream, const F &f) {
    return lpt_in_turn(work, LPT_THREADS * HELD / sizeof(T), [&](lpt_spans<T> &spans, int64_t) {
        return lpt_launch(LPT_KERNEL(lpt_map_many, HELD, T, F), spans.first[spans.count], stream,
                          spans, f);
    });
}

template <int GROUPS, class T, class F>
int32_t lpt_launch_drawn(const lpt_some<T> &work, const lpt_draw &draw, void *stream, const F &f) {
    return lpt_in_turn(work, LPT_THREADS * GROUPS * 4, [&](lpt_spans<T> &spans, int64_t from) {
        lpt_drawn_spans<T> drawn = {spans, {}, work.drawn ? work.drawn + from : nullptr, draw.mask};
        for (int32_t k = 0; k < spans.count && work.keys; ++k)
            drawn.keys[k] = work.keys[from + k];
        return lpt_launch(LPT_KERNEL(lpt_map_drawn_many, GROUPS, T, F), spans.first[spans.count],
                          stream, drawn, f);
    });
}

// Launches the loop that the mode asks for. A thread holds 32 bytes of the tensor at a time where
// the work is COMMON, 16 where it is not: half the code to compile, and still near the memory.
template <int MODE, bool COMMON, template <class> class Work, class T, class F>
int32_t lpt_launch_map(const Work<T> &work, const lpt_draw &draw, void *stream, const F &f) {
    if constexpr (MODE < LPT_STOCHASTIC)
        return lpt_launch_held<COMMON ? 32 : 16>(work, stream, f);
    else
        return lpt_launch_drawn<COMMON ? 2 : 1>(work, draw, stream, f);
}
#endif
