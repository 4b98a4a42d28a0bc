// Accumulators on tiles of 64 by 64 outputs: a thread holds 4 by 4 of them in registers while k
// ascends, and the operands of 16 k, or of 32, lie in shared memory.
#pragma once
#include "gemm_device_fixed.h"

// DEPTH k of 64 rows, and then the next: each warp reads along whichever axis has its numbers side
// by side. The addresses a thread reads are made once; its places are found again, which is quicker
// than keeping them in registers.
template <class N, int DEPTH> class lpt_feed {
    enum { MINE = LPT_SIDE * DEPTH / LPT_THREADS };
    const float *at;
    int64_t apart;
    int32_t rows;
    float none;  // where there is no number
    bool along_k;

    LPT_METHOD int32_t row(int32_t j) const {
        return along_k ? threadIdx.x / DEPTH + j * (LPT_THREADS / DEPTH) : threadIdx.x % LPT_SIDE;
    }
    LPT_METHOD int32_t k(int32_t j) const {
        return along_k ? threadIdx.x % DEPTH
                       : threadIdx.x / LPT_SIDE + j * (LPT_THREADS / LPT_SIDE);
    }

  public:
    LPT_METHOD lpt_feed(const float *from, int64_t row_step, int64_t k_step, int64_t in_matrix,
                        int32_t ahead, float none)
        : rows(in_matrix < LPT_SIDE ? (int32_t)in_matrix : LPT_SIDE), none(none),
          along_k(k_step == 1) {
        at = from + row(0) * row_step + (k(0) - ahead) * k_step;
        apart = along_k ? LPT_THREADS / DEPTH * row_step : LPT_THREADS / LPT_SIDE * k_step;
    }

    // From `first` to `depth`, and on to those after `most`.
    LPT_METHOD void operator()(typename lpt_operands_of<N>::type *to, int32_t first, int32_t depth,
                               int32_t most) {
        float v[MINE];
        const bool whole = rows == LPT_SIDE && depth == DEPTH && first == 0;
#pragma unroll
        for (int j = 0; j < MINE; ++j) {
            const bool there = row(j) < rows && k(j) >= first && k(j) < depth;
            v[j] = whole || there ? at[j * apart] : none;
        }
#pragma unroll
        for (int j = 0; j < MINE; ++j)
            to[k(j)][row(j) / 4].v[row(j) % 4] = v[j];
        const int64_t k_step = along_k ? 1 : apart / (LPT_THREADS / LPT_SIDE);
        at += (along_k ? (int64_t)DEPTH : MINE * apart) - (DEPTH - most) * k_step;
    }
};

template <class STEPS>
__global__ void __launch_bounds__(LPT_THREADS, STEPS::AT_ONCE)
    lpt_gemm_tile(const __grid_constant__ lpt_product p, const __grid_constant__ STEPS steps) {
    typedef typename STEPS::number N;
    __shared__ typename lpt_operands_of<N>::type rows[STEPS::DEPTH], columns[STEPS::DEPTH];
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
    const int64_t wide = (p.n + LPT_SIDE - 1) / LPT_SIDE, tall = (p.m + LPT_SIDE - 1) / LPT_SIDE;
    for (int64_t tile = blockIdx.x; tile < p.batch * tall * wide; tile += gridDim.x) {
        const int64_t batch = tile / wide / tall;
        const int64_t top = tile / wide % tall * LPT_SIDE, left = tile % wide * LPT_SIDE;
        // Of what is not there, the products are -0, which moves no sum.
        typedef lpt_feed<N, STEPS::DEPTH> feed;
        feed a((const float *)p.a + batch * p.a_stride[0] + top * p.a_stride[1], p.a_stride[1],
               p.a_stride[2], p.m - top, STEPS::AHEAD, 0.0f);
        feed b((const float *)p.b + batch * p.b_stride[0] + left * p.b_stride[2], p.b_stride[2],
               p.b_stride[1], p.n - left, STEPS::AHEAD, STEPS::AHEAD ? -0.0f : 0.0f);
        typename STEPS::sums sums;
        typename STEPS::stack stack;
        steps.begin(sums, stack, p,
                    (batch * p.m + top + down * LPT_EACH) * p.n + left + across * LPT_EACH);
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                const int64_t row = top + down * LPT_EACH + i,
                              column = left + across * LPT_EACH + j;
                const bool started = p.c && row < p.m && column < p.n;
                steps.begin(sums, i, j,
                            started ? (const float *)p.c + batch * p.c_stride[0] +
                                          row * p.c_stride[1] + column * p.c_stride[2]
                                    : nullptr);
            }
        const int32_t most = steps.depth();
        for (int64_t terms = p.k + STEPS::AHEAD; terms > 0; terms -= most) {
            const int32_t depth = terms < most ? (int32_t)terms : most;
            const int32_t first = STEPS::AHEAD && terms > p.k;
            __syncthreads();  // all have read what is overwritten
            a(rows, first, depth, most);
            b(columns, first, depth, most);
            __syncthreads();
            steps.add(sums, p, rows, columns, depth);
        }
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                const int64_t row = top + down * LPT_EACH + i,
                              column = left + across * LPT_EACH + j;
                const float sum = steps.end(sums, i, j);
                if (row < p.m && column < p.n)
                    ((float *)p.y)[(batch * p.m + row) * p.n + column] = lpt_quiet(sum);
            }
    }
}
