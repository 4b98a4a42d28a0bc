// The device's loops over blocks: the largest magnitude of each, from it the scale, then the
// elements. Three shapes of work: short runs of a whole row of blocks, columns, and any box.
#pragma once
#include "block_scales.h"

// One launch does all, or one finds maxima and a second rounds: so are blocks shared out that are
// too large, and too few, for the device.
enum { LPT_ALL = 0, LPT_MAXIMA = 1, LPT_ROUND = 2 };

LPT_METHOD void lpt_raise(uint32_t *to, uint32_t value) {
    if (*to < value)  // most find a larger one there already, and none waits
        atomicMax((unsigned int *)to, (unsigned int)value);
}
LPT_METHOD void lpt_raise(uint64_t *to, uint64_t value) {
    if (*to < value)
        atomicMax((unsigned long long *)to, (unsigned long long)value);
}

// The largest value of `lanes` threads side by side, a power of two up to a warp.
template <class U> LPT_METHOD U lpt_largest_of_lanes(U top, int32_t lanes) {
    for (int32_t apart = lanes / 2; apart; apart /= 2) {
        const U other = __shfl_xor_sync(0xffffffffu, top, apart);
        top = other > top ? other : top;
    }
    return top;
}

template <class Op> LPT_METHOD bool lpt_draws(const Op &op) {
    return Op::MODE == LPT_STOCHASTIC || (Op::MODE == LPT_ANY && op.rule.mode >= LPT_STOCHASTIC);
}

// Blocks that follow each other without gaps, of `lanes` packs of 16 bytes each, a power of two up
// to a warp: n elements from a multiple of 16 bytes.
template <class T, class Op>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_packed(const T *x, T *y, int64_t n, int32_t lanes, lpt_draw draw,
               const __grid_constant__ Op op) {
    typedef typename lpt_carrier<T>::bits U;
    typedef lpt_pack<T> pack;
    enum { PACKS = 2, PACK = pack::size, CHUNK = PACKS * PACK * LPT_THREADS };
    __shared__ uint32_t drawn[LPT_THREADS / LPT_WARP][LPT_GROUP];
    const int32_t lane = threadIdx.x % LPT_WARP, warp = threadIdx.x / LPT_WARP;
    const lpt_key key = lpt_key_of_draw(draw);
    const typename Op::tensor tensor = op.whole();
    for (int64_t start = (int64_t)blockIdx.x * CHUNK; start < n;
         start += (int64_t)gridDim.x * CHUNK) {
        U v[PACKS][PACK];
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            const int64_t i = start + (k * LPT_THREADS + threadIdx.x) * PACK;
            pack p = {};
            if (i < n)
                p = lpt_load_pack(x + i);
#pragma unroll
            for (int j = 0; j < PACK; ++j)
                v[k][j] = lpt_bits(p.v[j]);
        }
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            const int64_t i = start + (k * LPT_THREADS + threadIdx.x) * PACK;
            U top = 0;
#pragma unroll
            for (int j = 0; j < PACK; ++j) {
                const U a = op.counted(v[k][j]);
                top = a > top ? a : top;
            }
            top = lpt_largest_of_lanes(top, lanes);
            if (lpt_draws(op)) {  // a warp draws the words of its group together, in their order
                const lpt_words words = lpt_philox(i / LPT_GROUP * LPT_LANES + lane, key);
                __syncwarp();
                for (int w = 0; w < 4; ++w)
                    drawn[warp][w * LPT_LANES + lane] = words.w[w] & draw.mask;
                __syncwarp();
            }
            op.round(v[k], PACK, op.of(top, tensor), drawn[warp] + i % LPT_GROUP);
            pack p;
#pragma unroll
            for (int j = 0; j < PACK; ++j)
                p.v[j] = lpt_value<T>(v[k][j]);
            if (i < n)
                lpt_store_pack(y + i, p);
        }
    }
}

// Blocks of `wide` elements along an axis of `length`, `inner` elements apart, in each of `outer`
// slabs. A thread takes a column of a block, or `piece` elements of it.
struct lpt_strips {
    int64_t outer, length, inner, wide, piece;
};

template <class T, class Op>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_columns(const T *x, T *y, lpt_strips strips, int32_t phase,
                typename lpt_carrier<T>::bits *largest, lpt_draw draw,
                const __grid_constant__ Op op) {
    typedef typename lpt_carrier<T>::bits U;
    enum { HELD = Op::HELD };
    const int64_t inner = strips.inner, wide = strips.wide;
    const int64_t bands = (strips.length + wide - 1) / wide;
    const int64_t pieces = (wide + strips.piece - 1) / strips.piece;
    const int64_t items = strips.outer * bands * pieces * inner;
    const lpt_key key = lpt_key_of_draw(draw);
    const typename Op::tensor tensor = op.whole();
    for (int64_t item = (int64_t)blockIdx.x * LPT_THREADS + threadIdx.x; item < items;
         item += (int64_t)gridDim.x * LPT_THREADS) {
        const int64_t column = item % inner, part = item / inner, band = part / pieces;
        const int64_t row = band % bands * wide, left = strips.length - row;
        const int64_t height = left < wide ? left : wide, from = part % pieces * strips.piece;
        const int64_t to = from + strips.piece < height ? from + strips.piece : height;
        const int64_t at = (band / bands * strips.length + row) * inner + column;
        U *const mine = largest + (band * inner + column);
        U v[HELD], top = 0;
        const auto rows_at = [&](int64_t r) { return (int32_t)(to - r < HELD ? to - r : HELD); };
        const auto load = [&](int64_t r) {
            const int32_t rows = rows_at(r);
            const T *next = x + at + r * inner;
#pragma unroll
            for (int j = 0; j < HELD; ++j, next += inner)
                v[j] = j < rows ? lpt_bits(*next) : (U)0;
        };
        for (int64_t r = from; r < to && phase != LPT_ROUND; r += HELD) {
            load(r);
#pragma unroll
            for (int j = 0; j < HELD; ++j) {
                const U a = op.counted(v[j]);
                top = a > top ? a : top;
            }
        }
        if (phase == LPT_MAXIMA) {
            lpt_raise(mine, top);
            continue;
        }
        const typename Op::scale scale = op.of(phase == LPT_ROUND ? *mine : top, tensor);
        for (int64_t r = from; r < to; r += HELD) {
            if (phase == LPT_ROUND || to - from > HELD)  // else they are still here
                load(r);
            uint32_t words[HELD];  // which are read only where they are drawn
            if (lpt_draws(op))
#pragma unroll
                for (int j = 0; j < HELD; ++j)
                    words[j] = lpt_random(at + (r + j) * inner, key) & draw.mask;
            op.round(v, HELD, scale, words);
            const int32_t rows = rows_at(r);
            T *next = y + at + r * inner;
#pragma unroll
            for (int j = 0; j < HELD; ++j, next += inner)
                if (j < rows)
                    *next = lpt_value<T>(v[j]);
        }
    }
}

// Blocks of any shape. `lanes` threads take one together, a power of two up to a warp or all of a
// thread block; or `piece` elements of it.
struct lpt_boxes {
    lpt_layout layout;
    int64_t count, size, piece;
    int32_t lanes;
};

// Where the elements of a block lie, numbered in the order of memory.
struct lpt_box {
    int64_t origin, size, row;  // elements of the block, and of one of its rows
    int64_t extent[LPT_MAX_DIMS], stride[LPT_MAX_DIMS];
};

LPT_LONG void lpt_find_box(const lpt_layout &l, int64_t block, lpt_box *box) {
    int64_t stride = 1;
    box->origin = 0, box->size = 1;
#pragma unroll 1
    for (int32_t d = l.dims - 1; d >= 0; --d) {
        const int64_t wide = l.block[d], bands = (l.shape[d] + wide - 1) / wide;
        const int64_t first = block % bands * wide, left = l.shape[d] - first;
        block /= bands;
        box->extent[d] = left < wide ? left : wide;
        box->stride[d] = stride;
        box->origin += first * stride;
        box->size *= box->extent[d];
        stride *= l.shape[d];
    }
    box->row = box->extent[l.dims - 1];
}

LPT_LONG int64_t lpt_place(const lpt_layout &l, const lpt_box &box, int64_t e) {
    int64_t rest = e / box.row, place = box.origin + e - rest * box.row;
#pragma unroll 1
    for (int32_t d = l.dims - 2; d >= 0; --d)
        if (l.block[d] > 1) {
            place += rest % box.extent[d] * box.stride[d];
            rest /= box.extent[d];
        }
    return place;
}

template <class T, class Op>
__global__ void __launch_bounds__(LPT_THREADS)
    lpt_teams(const T *x, T *y, const __grid_constant__ lpt_boxes boxes, int32_t phase,
              typename lpt_carrier<T>::bits *largest, lpt_draw draw,
              const __grid_constant__ Op op) {
    typedef typename lpt_carrier<T>::bits U;
    // elements that a thread has in hand: fewer where each is a call
    enum { HELD = Op::MODE == LPT_ANY ? 2 : 4, WARPS = LPT_THREADS / LPT_WARP };
    __shared__ U tops[WARPS];
    const int32_t lanes = boxes.lanes, member = threadIdx.x % lanes, teams = LPT_THREADS / lanes;
    const int64_t pieces = (boxes.size + boxes.piece - 1) / boxes.piece;
    const int64_t items = boxes.count * pieces;
    const lpt_key key = lpt_key_of_draw(draw);
    const typename Op::tensor tensor = op.whole();
    for (int64_t first = (int64_t)blockIdx.x * teams; first < items;
         first += (int64_t)gridDim.x * teams) {
        const int64_t item = first + threadIdx.x / lanes, block = item / pieces;
        const bool active = item < items;
        lpt_box box;
        lpt_find_box(boxes.layout, active ? block : 0, &box);
        const int64_t from = item % pieces * boxes.piece, left = active ? box.size - from : 0;
        const int64_t to = from + (left < boxes.piece ? left : boxes.piece);
        int64_t place[HELD];
        U v[HELD], top = 0;
        const auto load = [&](int64_t e) {
#pragma unroll
            for (int j = 0; j < HELD; ++j) {
                const int64_t k = e + (int64_t)j * lanes;
                place[j] = k >= to               ? (int64_t)-1
                           : box.row == box.size ? box.origin + k
                                                 : lpt_place(boxes.layout, box, k);
            }
#pragma unroll
            for (int j = 0; j < HELD; ++j)
                v[j] = place[j] >= 0 ? lpt_bits(x[place[j]]) : (U)0;
        };
        for (int64_t e = from + member; e < to && phase != LPT_ROUND; e += (int64_t)HELD * lanes) {
            load(e);
#pragma unroll
            for (int j = 0; j < HELD; ++j) {
                const U a = op.counted(v[j]);
                top = a > top ? a : top;
            }
        }
        if (phase != LPT_ROUND) {
            top = lpt_largest_of_lanes(top, lanes < LPT_WARP ? lanes : LPT_WARP);
            if (lanes > LPT_WARP) {
                tops[threadIdx.x / LPT_WARP] = top;
                __syncthreads();
                for (int w = 0; w < WARPS; ++w)
                    top = tops[w] > top ? tops[w] : top;
                __syncthreads();
            }
        }
        if (phase == LPT_MAXIMA) {
            if (member == 0 && active)
                lpt_raise(largest + block, top);
            continue;
        }
        const typename Op::scale scale =
            op.of(phase == LPT_ROUND && active ? largest[block] : top, tensor);
        for (int64_t e = from + member; e < to; e += (int64_t)HELD * lanes) {
            load(e);
            uint32_t words[HELD];  // which are read only where they are drawn
            if (lpt_draws(op))
#pragma unroll
                for (int j = 0; j < HELD; ++j)
                    words[j] = lpt_random(place[j], key) & draw.mask;
            op.round(v, HELD, scale, words);
#pragma unroll
            for (int j = 0; j < HELD; ++j)
                if (place[j] >= 0)
                    y[place[j]] = lpt_value<T>(v[j]);
        }
    }
}
