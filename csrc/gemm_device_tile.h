// Accumulators that add in order, or chunk by chunk in order, in fp32 alone, on tiles of 64 by 64
// outputs: a thread holds 4 by 4 of them in registers while k ascends, and the operands of 16 k lie
// in shared memory.
#pragma once
#include "device.h"
#include "gemm_ways.h"

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

// A magnitude with the sign of x.
LPT_METHOD float lpt_signed_as(float magnitude, float x) {
#if defined(__CUDA_ARCH__)
    uint32_t r;  // a | b & c, one operation, of which nvcc makes two where registers are short
    asm("lop3.b32 %0, %1, %2, 0x80000000, 0xf8;"
        : "=r"(r)
        : "r"(lpt_bits(magnitude)), "r"(lpt_bits(x)));
    return lpt_value<float>(r);
#else
    return lpt_value<float>(lpt_bits(magnitude) | (lpt_bits(x) & 0x80000000u));
#endif
}

// The lesser of two numbers, or NaN if one is NaN.
LPT_METHOD float lpt_lesser(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
#else
    return a > b ? b : a;
#endif
}

// Rounders to nearest, one for each lpt_way.
struct lpt_none {};  // there is no such step

struct lpt_carrier_rounder {
    LPT_METHOD float operator()(float x) const { return x; }
};
// The device's own NaN has all bits set, which a carry would leave.
struct lpt_wide_rounder {
    uint32_t drop, under_half, keep;
    LPT_METHOD float operator()(float x) const {
        const uint32_t u = lpt_bits(x);
        const float r = lpt_value<float>((u + under_half + (u >> drop & 1)) & keep);
        return x == x ? r : x;
    }
};
// |x| to the spacing that a format has there, whatever its end: the power of two that is added is
// that of x times `up`, and is never rounded by itself.
LPT_METHOD float lpt_spaced(float x, float shift, float up) {
    return __fmaf_rn(-shift, up, __fmaf_rn(shift, up, fabsf(x)));
}
LPT_METHOD float lpt_binade(float x) { return lpt_value<float>(lpt_bits(x) & 0x7f800000u); }

struct lpt_added_rounder {
    float bottom, top, up, limit, over;
    LPT_METHOD float operator()(float x) const {
        const float r = lpt_spaced(x, fminf(fmaxf(lpt_binade(x), bottom), top), up);
        return lpt_signed_as(r > limit ? over : r, x);
    }
};
// The same of formats whose last binade is whole and followed by infinity, and holds 2 or more. Of
// an infinity, which no `top` keeps from the sum, r is NaN. So what is not in the format is too
// large, infinite or NaN, and becomes infinity, or stays NaN, when it is multiplied.
struct lpt_ieee_rounder {
    float bottom, up, limit;
    LPT_METHOD float operator()(float x) const {
        const float r = lpt_spaced(x, fmaxf(lpt_binade(x), bottom), up);
        return lpt_signed_as(r <= limit ? r : __fmul_rn(fabsf(x), 0x1p127f), x);
    }
};

// The same of formats in which all that is larger becomes the largest number, to which it is cut
// first: rounding leaves that where it is.
struct lpt_saturating_rounder {
    float bottom, up, limit;
    LPT_METHOD float operator()(float x) const {
        const float inside = lpt_lesser(fabsf(x), limit);
        return lpt_signed_as(lpt_spaced(inside, fmaxf(lpt_binade(inside), bottom), up), x);
    }
};

// The modes in which the sign, or the last place, tells which of two neighbours it is: it is not
// the one away from zero where this is not zero.
struct lpt_inward {
    uint32_t even;    // the last place, where it must be even
    uint32_t sign;    // the sign bit, where it matters
    uint32_t always;  // and what it is compared with
    LPT_METHOD uint32_t operator()(uint32_t last, float x) const {
        return (last & even) | ((lpt_bits(x) & sign) ^ always);
    }
};
struct lpt_wide_rounder_by {
    lpt_inward inward;
    uint32_t more, keep;  // adding `more` carries into what is kept
    LPT_METHOD float operator()(float x) const {
        const uint32_t u = lpt_bits(x);
        const float r = lpt_value<float>((inward(u, x) ? u : u + more) & keep);
        return x == x ? r : x;
    }
};
struct lpt_added_rounder_by {
    lpt_inward inward;
    float bottom, top, up, limit, over[2], infinite;
    LPT_METHOD float operator()(float x) const {
        const float shift = fminf(fmaxf(lpt_binade(x), bottom), top), a = fabsf(x);
        const float below = __fmaf_rz(shift, up, a), above = __fmaf_ru(shift, up, a);
        const float r = __fmaf_rn(-shift, up, inward(lpt_bits(below), x) ? below : above);
        const float beyond = lpt_bits(x) >> 31 ? over[1] : over[0];
        const float most = a == lpt_value<float>(0x7f800000u) ? infinite : beyond;
        return lpt_signed_as(r > limit ? most : r, x);
    }
};

// Formats that devices round to themselves, most of them two numbers at a time.
#ifndef LPT_EMULATED
#if __CUDA_ARCH__ >= 800
LPT_METHOD float lpt_through_bf16(float x) {
    uint32_t u;  // two of them, the lower one zero
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(x), "f"(0.0f));
    return lpt_value<float>(u);
}
LPT_METHOD void lpt_through_fp16(float &x, float &y) {
    asm("{.reg .b16 low, high; .reg .b32 two; cvt.rn.f16x2.f32 two, %1, %0;"
        " mov.b32 {low, high}, two; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "+f"(x), "+f"(y));
}
#else
LPT_METHOD float lpt_through_bf16(float x) { return lpt_wide_rounder{16, 0x7fffu, 0xffff0000u}(x); }
LPT_METHOD void lpt_through_fp16(float &x, float &y) {
    asm("{.reg .b16 low, high; cvt.rn.f16.f32 low, %0; cvt.rn.f16.f32 high, %1;"
        " cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "+f"(x), "+f"(y));
}
#endif
#if __CUDA_ARCH__ >= 890
// Where these end, what is larger becomes the largest number.
LPT_METHOD void lpt_through_e4m3(float &x, float &y) {
    asm("{.reg .b16 codes, low, high; .reg .b32 two; cvt.rn.satfinite.e4m3x2.f32 codes, %1, %0;"
        " cvt.rn.f16x2.e4m3x2 two, codes;"
        " mov.b32 {low, high}, two; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "+f"(x), "+f"(y));
}
LPT_METHOD void lpt_through_e5m2(float &x, float &y) {
    asm("{.reg .b16 codes, low, high; .reg .b32 two; cvt.rn.satfinite.e5m2x2.f32 codes, %1, %0;"
        " cvt.rn.f16x2.e5m2x2 two, codes;"
        " mov.b32 {low, high}, two; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "+f"(x), "+f"(y));
}
#else
LPT_METHOD void lpt_through_e4m3(float &x, float &y) {
    const lpt_saturating_rounder r = {0x1p-6f, 0x1p20f, 448.0f};
    x = r(x), y = r(y);
}
#endif
#endif
struct lpt_bf16_rounder {
    LPT_METHOD float operator()(float x) const { return lpt_through_bf16(x); }
};
template <class R> struct lpt_pairs {  // R::both rounds two numbers
    LPT_METHOD float operator()(float x) const {
        float none = 0;
        R::both(x, none);
        return x;
    }
};
struct lpt_fp16_rounder : lpt_pairs<lpt_fp16_rounder> {
    static LPT_METHOD void both(float &x, float &y) { lpt_through_fp16(x, y); }
};
struct lpt_e4m3_rounder : lpt_pairs<lpt_e4m3_rounder> {
    static LPT_METHOD void both(float &x, float &y) { lpt_through_e4m3(x, y); }
};
// With infinities: from half way to the next number, which the format has not, on.
struct lpt_e5m2_rounder : lpt_pairs<lpt_e5m2_rounder> {
    static LPT_METHOD void both(float &x, float &y) {
#if defined(LPT_EMULATED) || __CUDA_ARCH__ >= 890
        const float a = x, b = y;
        lpt_through_e5m2(x, y);
        x = fabsf(a) < 61440.0f ? x : __fmul_rn(a, 0x1p127f);
        y = fabsf(b) < 61440.0f ? y : __fmul_rn(b, 0x1p127f);
#else
        const lpt_ieee_rounder r = {0x1p-14f, 0x1p21f, 57344.0f};
        x = r(x), y = r(y);
#endif
    }
};
template <class R> LPT_METHOD void lpt_round_both(const R &r, float &x, float &y) {
    if constexpr (__is_base_of(lpt_pairs<R>, R))
        R::both(x, y);
    else
        x = r(x), y = r(y);
}

inline void lpt_make_rounder(const lpt_cell<float> &, lpt_none *) {}
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_fp16_rounder *) {}
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_bf16_rounder *) {}
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_e4m3_rounder *) {}
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_e5m2_rounder *) {}
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_carrier_rounder *) {}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_wide_rounder *r) {
    *r = {(uint32_t)c.drop, (1u << (c.drop - 1)) - 1, ~((1u << c.drop) - 1)};
}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_added_rounder *r) {
    *r = {lpt_value<float>((uint32_t)c.emin << 23), lpt_value<float>((uint32_t)(c.emax + 1) << 23),
          lpt_value<float>((uint32_t)(127 + c.drop) << 23), lpt_value<float>(c.limit[0]),
          lpt_value<float>(c.over[0])};
}

inline lpt_inward lpt_make_inward(int32_t mode, uint32_t one) {
    const uint32_t sign = 0x80000000u;
    switch (mode) {
    case LPT_UP: return {0, sign, 0};
    case LPT_DOWN: return {0, sign, sign};
    case LPT_ODD: return {one, 0, 0};
    case LPT_NEAREST_AWAY: return {0, 0, 0};
    default: return {0, 0, 1};  // toward zero
    }
}
inline void lpt_make_rounder(const lpt_cell<float> &c, int32_t mode, lpt_wide_rounder_by *r) {
    const uint32_t one = 1u << c.drop;
    *r = {lpt_make_inward(mode, one), mode == LPT_NEAREST_AWAY ? one / 2 : one - 1, ~(one - 1)};
}
inline void lpt_make_rounder(const lpt_cell<float> &c, int32_t mode, lpt_added_rounder_by *r) {
    lpt_added_rounder to_nearest;
    lpt_make_rounder(c, &to_nearest);
    *r = {lpt_make_inward(mode, 1),
          to_nearest.bottom,
          to_nearest.top,
          to_nearest.up,
          to_nearest.limit,
          {lpt_value<float>(c.over[0]), lpt_value<float>(c.over[1])},
          lpt_value<float>(c.inf[0])};
}

template <class A, class B> struct lpt_same {
    enum { yes = 0 };
};
template <class A> struct lpt_same<A, A> {
    enum { yes = 1 };
};
template <class R> void lpt_make_open_ended(const lpt_cell<float> &c, R *r) {
    lpt_added_rounder added;
    lpt_make_rounder(c, &added);
    *r = {added.bottom, added.up, added.limit};
}
// Rounders that need not know the mode.
template <class R> void lpt_make_rounder(const lpt_cell<float> &c, int32_t, R *r) {
    lpt_make_rounder(c, r);
}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_ieee_rounder *r) {
    lpt_make_open_ended(c, r);
}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_saturating_rounder *r) {
    lpt_make_open_ended(c, r);
}

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
