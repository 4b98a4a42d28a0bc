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

// The largest magnitude that counts of N numbers and `top`. Hardly ever is one left out.
template <class T, int N>
LPT_METHOD typename lpt_carrier<T>::bits lpt_largest(const lpt_left_out<T> &counted,
                                                     const typename lpt_carrier<T>::bits (&v)[N],
                                                     typename lpt_carrier<T>::bits top) {
    typedef typename lpt_carrier<T>::bits U;
    U all = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const U a = v[j] & ~((U)1 << (lpt_carrier<T>::width - 1));
        all = a > all ? a : all;
    }
    if (all >= counted.from) {
        all = 0;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const U a = counted(v[j]);
            all = a > all ? a : all;
        }
    }
    return all > top ? all : top;
}

template <class Op> LPT_METHOD bool lpt_draws(const Op &op) {
    return Op::MODE == LPT_STOCHASTIC || (Op::MODE == LPT_ANY && op.rule.mode >= LPT_STOCHASTIC);
}

// Blocks that follow each other without gaps, of `lanes` packs of 16 bytes each, a power of two up
// to a warp: n elements from a multiple of 16 bytes.
template <class T, class Op>
__global__ void __launch_bounds__(LPT_THREADS, LPT_AT_ONCE)
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
                v[j] = j < rows ? lpt_bits(*next) : op.empty();
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

// Blocks of any shape. A block is lines, `stride` apart: elements, or the rows that lie side by
// side along the axis `inner`; what is tiled along more axes is many such slabs. 2 ** log_lanes
// threads, up to a thread block, take a block together, or one of its `pieces`: `abreast` lines at
// once, and of each as many `units`, elements or packs, as a whole row has.
struct lpt_boxes {
    lpt_layout layout;
    int64_t bands[LPT_MAX_DIMS], steps[LPT_MAX_DIMS];  // blocks along an axis, and how far apart
    int64_t count, piece, pieces, stride;
    int32_t inner, log_lanes, abreast, units, share;  // a unit's share of 2**16, and 1
    int32_t wide, lead;  // packs may be moved; elements that x lies behind a multiple of 16 bytes
};

// The first element of a block, its lines, those of a slab, and the elements of a row.
struct lpt_box {
    int64_t origin, lines, slab, row;
};

LPT_METHOD lpt_box lpt_find_box(const lpt_boxes &boxes, int64_t block) {
    const lpt_layout &l = boxes.layout;
    const int32_t last = l.dims - 1;
    lpt_box box = {0, 1, 1, 1};
#pragma unroll 1
    for (int32_t d = last; d >= 0; --d) {
        int64_t band = block;
        if (d > 0) {
            block /= boxes.bands[d];
            band -= block * boxes.bands[d];
        }
        box.origin += band * boxes.steps[d];
        if (l.block[d] > 1) {
            const int64_t wide = l.block[d], left = l.shape[d] - band * wide;
            const int64_t extent = left < wide ? left : wide;
            box.row = d == last ? extent : box.row;
            box.slab = d == boxes.inner ? extent : box.slab;
            box.lines *= d <= boxes.inner ? extent : 1;
        }
    }
    return box;
}

// How far behind the first element of a block a slab of it begins.
LPT_LONG int64_t lpt_find_slab(const lpt_boxes &boxes, int64_t block, int64_t slab) {
    const lpt_layout &l = boxes.layout;
    int64_t place = 0;
#pragma unroll 1
    for (int32_t d = l.dims - 1; d >= 0; --d) {
        const int64_t wide = l.block[d], left = l.shape[d] - block % boxes.bands[d] * wide;
        const int64_t extent = left < wide ? left : wide;
        block /= boxes.bands[d];
        if (d < boxes.inner) {
            place += slab % extent * (boxes.steps[d] / wide);
            slab /= extent;
        }
    }
    return place;
}

// Elements that a thread has in hand: fewer where each is a call, or a random word.
template <class Op>
constexpr int32_t lpt_held = Op::MODE == LPT_NEAREST ? 32
                             : Op::MODE == LPT_ANY   ? 8
                                                     : 16;

template <class T, class Op>
__global__ void __launch_bounds__(LPT_THREADS, 2)
    lpt_teams(const T *x, T *y, const __grid_constant__ lpt_boxes boxes, int32_t phase,
              typename lpt_carrier<T>::bits *largest, lpt_draw draw,
              const __grid_constant__ Op op) {
    typedef typename lpt_carrier<T>::bits U;
    enum { HELD = lpt_held<Op>, PACK = lpt_pack<T>::size, LOG_PACK = PACK == 4 ? 2 : 1 };
    __shared__ U tops[LPT_THREADS / LPT_WARP];
    const int32_t lanes = 1 << boxes.log_lanes, team = threadIdx.x >> boxes.log_lanes;
    const int32_t member = threadIdx.x & (lanes - 1), teams = LPT_THREADS >> boxes.log_lanes;
    // Of the lines that the team takes at once, this is the thread's, and its place there.
    const bool rows = boxes.inner < boxes.layout.dims - 1;
    const int32_t mine = member * boxes.share >> 16;
    const int32_t aside = (member - mine * boxes.units) * (boxes.wide ? PACK : 1);
    const int64_t items = boxes.count * boxes.pieces;
    const lpt_key key = lpt_key_of_draw(draw);
    const typename Op::tensor tensor = op.whole();
    for (int64_t first = (int64_t)blockIdx.x * teams; first < items;
         first += (int64_t)gridDim.x * teams) {
        const bool active = first + team < items;
        const int64_t item = active ? first + team : 0;
        const int64_t block = boxes.pieces == 1 ? item : item / boxes.pieces;
        const lpt_box box = lpt_find_box(boxes, block);
        // Pieces, and parts of them, begin where packs do.
        const int32_t behind = rows || !boxes.wide ? 0 : (box.origin + boxes.lead) % PACK;
        const int64_t start = (item - block * boxes.pieces) * boxes.piece - behind;
        const int64_t from = start < 0 ? 0 : start, end = active ? start + boxes.piece : 0;
        const int64_t to = end < box.lines ? end : box.lines;

        // What the thread has of the part of the block that begins at line e: elements or packs,
        // `ahead` apart.
        U v[HELD], top = 0;
        int64_t next, begin, ahead;
        int32_t count;
        bool packs;
        const auto load = [&](int64_t e) {
            int64_t base = box.origin, inside = e, last = to;
            if (box.slab < box.lines) {
                const int64_t slab = e / box.slab;
                base += lpt_find_slab(boxes, block, slab);
                inside -= slab * box.slab;
                last = (slab + 1) * box.slab < to ? (slab + 1) * box.slab : to;
            }
            const int32_t over =
                rows || !boxes.wide ? 0 : (int32_t)((base + inside + boxes.lead) % PACK);
            const int32_t most = boxes.abreast * (rows && boxes.wide ? HELD / PACK : HELD);
            const int32_t lines = (int32_t)(last - e < most - over ? last - e : most - over);
            next = e + lines;
            packs = boxes.wide && (rows || (over == 0 && lines % PACK == 0));
            const int32_t log = packs && !rows ? LOG_PACK : 0, left = (lines >> log) - mine;
            begin = base + (inside + (mine << log)) * boxes.stride + aside;
            ahead = (boxes.abreast << log) * boxes.stride;
            count = packs ? HELD / PACK : HELD;
            if (lines < most)
                count = left <= 0 ? 0 : (left + boxes.abreast - 1) / boxes.abreast;
            if (mine >= boxes.abreast || aside >= box.row)
                count = 0;
            const T *at = x + begin;
            if (packs) {
                count *= PACK;
#pragma unroll
                for (int k = 0; k < HELD; k += PACK, at += ahead) {
                    lpt_pack<T> p;
                    for (int j = 0; j < PACK; ++j)
                        p.v[j] = lpt_value<T>(op.empty());
                    if (k < count)
                        p = lpt_load_pack(at);
#pragma unroll
                    for (int j = 0; j < PACK; ++j)
                        v[k + j] = lpt_bits(p.v[j]);
                }
            } else {
#pragma unroll
                for (int k = 0; k < HELD; ++k, at += ahead)
                    v[k] = k < count ? lpt_bits(*at) : op.empty();
            }
        };
        bool held = false;
        for (int64_t e = from; e < to && phase != LPT_ROUND; e = next) {
            load(e);
            held = e == from && next == to;
            top = lpt_largest(op.counted, v, top);
        }
        if (phase != LPT_ROUND) {
            top = lpt_largest_of_lanes(top, lanes < LPT_WARP ? lanes : LPT_WARP);
            if (lanes > LPT_WARP) {
                if (threadIdx.x % LPT_WARP == 0)
                    tops[threadIdx.x / LPT_WARP] = top;
                __syncthreads();
                const int32_t warps = lanes / LPT_WARP;
#pragma unroll 1
                for (int32_t w = team * warps; w < (team + 1) * warps; ++w)
                    top = tops[w] > top ? tops[w] : top;
                __syncthreads();
            }
        }
        if (phase == LPT_MAXIMA) {
            if (member == 0 && active)
                lpt_raise(largest + block, top);
            continue;
        }
        const typename Op::scale scale = op.of(phase == LPT_ROUND ? largest[block] : top, tensor);
        for (int64_t e = from; e < to; e = next) {
            if (!held)
                load(e);
            uint32_t words[HELD];  // which are read only where they are drawn
            if (lpt_draws(op))
#pragma unroll
                for (int k = 0; k < HELD; ++k) {
                    const int64_t i = begin + (packs ? k / PACK * ahead + k % PACK : k * ahead);
                    words[k] = lpt_random(i, key) & draw.mask;
                }
            op.round(v, count, scale, words);
            T *at = y + begin;
            if (packs) {
#pragma unroll
                for (int k = 0; k < HELD; k += PACK, at += ahead) {
                    lpt_pack<T> p;
#pragma unroll
                    for (int j = 0; j < PACK; ++j)
                        p.v[j] = lpt_value<T>(v[k + j]);
                    if (k < count)
                        lpt_store_pack(at, p);
                }
            } else {
#pragma unroll
                for (int k = 0; k < HELD; ++k, at += ahead)
                    if (k < count)
                        *at = lpt_value<T>(v[k]);
            }
        }
    }
}
