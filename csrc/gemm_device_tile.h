// Accumulators that add in order, or chunk by chunk in order, in fp32 alone, on tiles of 64 by 64
// outputs: a thread holds 4 by 4 of them in registers while k ascends, and the operands of 16 k lie
// in shared memory.
#pragma once
#include "gemm_device_rounders.h"

enum { LPT_SIDE = 64, LPT_DEPTH = 16, LPT_EACH = 4 };

// Sums. Each is what a rounder gets: rounded to fp32 once, or to odd, which it cannot tell from
// exact.
struct lpt_in_fp32 {
    static LPT_METHOD float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
    static LPT_METHOD float mul(float a, float b) { return __fmul_rn(a, b); }
    static LPT_METHOD float add(float a, float b) { return __fadd_rn(a, b); }
};

// Of the neighbours below and above, which are one where the sum is exact, the one whose last bit
// is set; where neither is, that above, so that an exact zero is +0. For formats that are
// lpt_odd_fits.
struct lpt_odd_in_fp32 {
    static LPT_METHOD float odd(float below, float above) {
#if defined(__CUDA_ARCH__)
        float r;  // with the test that the logical operation makes by itself, not one more
        asm("{.reg .pred odd; .reg .b32 last; and.b32 last, %1, 1; setp.ne.u32 odd, last, 0;"
            " selp.f32 %0, %1, %2, odd;}"
            : "=f"(r)
            : "f"(below), "f"(above));
        return r;
#else
        return lpt_bits(below) & 1 ? below : above;
#endif
    }
    static LPT_METHOD float fma(float a, float b, float c) {
        return odd(__fmaf_rd(a, b, c), __fmaf_ru(a, b, c));
    }
    static LPT_METHOD float mul(float a, float b) { return odd(__fmul_rd(a, b), __fmul_ru(a, b)); }
    static LPT_METHOD float add(float a, float b) { return odd(__fadd_rd(a, b), __fadd_ru(a, b)); }
};

template <class A, class B> struct lpt_same {
    enum { yes = 0 };
};
template <class A> struct lpt_same<A, A> {
    enum { yes = 1 };
};

// OUTER rounds sums of chunks; without chunks there is none. Where INNER is fp32's own rounding,
// the steps inside are fused multiply-adds of fp32, whatever SUM is outside.
template <class SUM, class PRODUCT, class INNER, class OUTER> struct lpt_steps {
    enum { FUSED = lpt_same<PRODUCT, lpt_none>::yes, CHUNKED = !lpt_same<OUTER, lpt_none>::yes };
    PRODUCT product;
    INNER inner;
    OUTER outer;

    // The next term of two sums.
    LPT_METHOD void step(float a, float b0, float b1, float &s0, float &s1) const {
        if constexpr (lpt_same<INNER, lpt_carrier_rounder>::yes) {
            s0 = lpt_in_fp32::fma(a, b0, s0), s1 = lpt_in_fp32::fma(a, b1, s1);
        } else {
            if constexpr (FUSED) {
                s0 = SUM::fma(a, b0, s0), s1 = SUM::fma(a, b1, s1);
            } else {
                float p0 = SUM::mul(a, b0), p1 = SUM::mul(a, b1);
                lpt_round_both(product, p0, p1);
                s0 = SUM::add(s0, p0), s1 = SUM::add(s1, p1);
            }
            lpt_round_both(inner, s0, s1);
        }
    }
    LPT_METHOD float fold(float s, float part) const {
        if constexpr (CHUNKED)
            return outer(SUM::add(s, part));
        else
            return part;
    }
    LPT_METHOD float begin(float c) const {
        if constexpr (CHUNKED)
            return outer(c);
        else
            return inner(c);
    }
};

// 16 k of 64 rows, and then the next: each warp reads along whichever axis has its numbers side by
// side. The addresses a thread reads are made once; its places are found again, which is quicker
// than keeping them in registers.
class lpt_feed {
    enum { MINE = LPT_SIDE * LPT_DEPTH / LPT_THREADS };
    const float *at;
    int64_t apart;
    int32_t rows;
    bool along_k;

    LPT_METHOD int32_t row(int32_t j) const {
        return along_k ? threadIdx.x / LPT_DEPTH + j * (LPT_THREADS / LPT_DEPTH)
                       : threadIdx.x % LPT_SIDE;
    }
    LPT_METHOD int32_t k(int32_t j) const {
        return along_k ? threadIdx.x % LPT_DEPTH
                       : threadIdx.x / LPT_SIDE + j * (LPT_THREADS / LPT_SIDE);
    }

  public:
    LPT_METHOD lpt_feed(const float *from, int64_t row_step, int64_t k_step, int64_t in_matrix)
        : rows(in_matrix < LPT_SIDE ? (int32_t)in_matrix : LPT_SIDE), along_k(k_step == 1) {
        at = from + row(0) * row_step + k(0) * k_step;
        apart = along_k ? LPT_THREADS / LPT_DEPTH * row_step : LPT_THREADS / LPT_SIDE * k_step;
    }

    LPT_METHOD void operator()(lpt_pack<float> (*to)[LPT_SIDE / 4 + 1], int32_t depth) {
        float v[MINE];
        const bool whole = rows == LPT_SIDE && depth == LPT_DEPTH;
#pragma unroll
        for (int j = 0; j < MINE; ++j)
            v[j] = whole || (row(j) < rows && k(j) < depth) ? at[j * apart] : 0.0f;
#pragma unroll
        for (int j = 0; j < MINE; ++j)
            to[k(j)][row(j) / 4].v[row(j) % 4] = v[j];
        at += along_k ? (int64_t)LPT_DEPTH : MINE * apart;
    }
};

// So many thread blocks on a multiprocessor: with more in view the compiler spills to fit them.
template <class STEPS>
__global__ void __launch_bounds__(LPT_THREADS, STEPS::CHUNKED ? 2 : 3)
    lpt_gemm_tile(const __grid_constant__ lpt_product p, int32_t chunk,
                  const __grid_constant__ STEPS steps) {
    __shared__ lpt_pack<float> rows[LPT_DEPTH][LPT_SIDE / 4 + 1];
    __shared__ lpt_pack<float> columns[LPT_DEPTH][LPT_SIDE / 4 + 1];
    const int across = threadIdx.x % 16, down = threadIdx.x / 16;
    const int64_t wide = (p.n + LPT_SIDE - 1) / LPT_SIDE, tall = (p.m + LPT_SIDE - 1) / LPT_SIDE;
    for (int64_t tile = blockIdx.x; tile < p.batch * tall * wide; tile += gridDim.x) {
        const int64_t batch = tile / wide / tall;
        const int64_t top = tile / wide % tall * LPT_SIDE, left = tile % wide * LPT_SIDE;
        lpt_feed a((const float *)p.a + batch * p.a_stride[0] + top * p.a_stride[1], p.a_stride[1],
                   p.a_stride[2], p.m - top);
        lpt_feed b((const float *)p.b + batch * p.b_stride[0] + left * p.b_stride[2], p.b_stride[2],
                   p.b_stride[1], p.n - left);
        float s[LPT_EACH][LPT_EACH], part[LPT_EACH][LPT_EACH];
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                const int64_t row = top + down * LPT_EACH + i,
                              column = left + across * LPT_EACH + j;
                s[i][j] = 0;
                if (p.c && row < p.m && column < p.n)
                    s[i][j] = steps.begin(
                        ((const float *)p.c)[batch * p.c_stride[0] + row * p.c_stride[1] +
                                             column * p.c_stride[2]]);
                part[i][j] = STEPS::CHUNKED ? 0 : s[i][j];
            }
        int32_t to_come = chunk;  // terms that the chunk still takes
        for (int64_t terms = p.k; terms > 0; terms -= LPT_DEPTH) {
            const int depth = terms < LPT_DEPTH ? (int)terms : (int)LPT_DEPTH;
            __syncthreads();  // all have read what is overwritten
            a(rows, depth);
            b(columns, depth);
            __syncthreads();
            // Two where chunks are added up: with four, some devices spill.
#pragma unroll(STEPS::CHUNKED ? 2 : 4)
            for (int k = 0; k < depth; ++k) {
                const lpt_pack<float> x = rows[k][down], y = columns[k][across];
                const bool over = STEPS::CHUNKED && --to_come == 0;
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; j += 2)
                        steps.step(x.v[i], y.v[j], y.v[j + 1], part[i][j], part[i][j + 1]);
                if (!over)
                    continue;
                to_come = chunk;
#pragma unroll
                for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
                    for (int j = 0; j < LPT_EACH; ++j) {
                        s[i][j] = steps.fold(s[i][j], part[i][j]);
                        part[i][j] = 0;
                    }
            }
        }
        const bool rest = !STEPS::CHUNKED || to_come < chunk;
#pragma unroll
        for (int i = 0; i < LPT_EACH; ++i)
#pragma unroll
            for (int j = 0; j < LPT_EACH; ++j) {
                const int64_t row = top + down * LPT_EACH + i,
                              column = left + across * LPT_EACH + j;
                const float sum = rest ? steps.fold(s[i][j], part[i][j]) : s[i][j];
                if (row < p.m && column < p.n)
                    ((float *)p.y)[(batch * p.m + row) * p.n + column] = lpt_quiet(sum);
            }
    }
}
