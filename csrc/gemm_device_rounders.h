// Rounders of fp32 numbers on the device, for the formats and modes that its tiles know: each an
// argument of the kernel, made on the host.
#pragma once
#include "device.h"
#include "gemm_ways.h"

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

// The lesser, or greater, of two numbers, or NaN if the first is NaN.
LPT_METHOD float lpt_lesser(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
#else
    return a > b ? b : a;
#endif
}
LPT_METHOD float lpt_greater(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
#else
    return a < b ? b : a;
#endif
}

// Rounders to nearest, one for each lpt_way.
struct lpt_none {};  // there is no such step

struct lpt_carrier_rounder {
    LPT_METHOD float operator()(float x) const { return x; }
};
struct lpt_no_rounder : lpt_carrier_rounder {};  // of sums that are numbers of the format
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

// Stochastically: the upper bits of a word are added where the digits lie that go, and a carry out
// of them is the way up. It is `open` where they have come to the last step before a carry, since
// what fp32 has not of x, or the rest of the word, may tell.
struct lpt_drawn_way {
    uint32_t digits, shift;
    LPT_METHOD uint32_t operator()(uint32_t u, uint32_t word, bool &open) const {
        const uint32_t nan = 0x7fffffffu, moved = u + (word >> shift);
        open |= (moved & digits) == digits;
        return (moved < nan ? moved : nan) & ~digits;  // a carry would leave NaN
    }
};
struct lpt_wide_drawn_rounder {
    enum { WIDE = 1 };
    lpt_drawn_way way;
    LPT_METHOD float operator()(float x, uint32_t word, bool &open) const {
        return lpt_signed_as(lpt_value<float>(way(lpt_bits(fabsf(x)), word, open)), x);
    }
};
// Below the normal numbers of the format the smallest of them is added for as long, which gives x
// their spacing.
struct lpt_added_drawn_rounder {
    enum { WIDE = 0 };
    lpt_drawn_way way;
    float bottom, limit, over;
    LPT_METHOD float operator()(float x, uint32_t word, bool &open) const {
        const float size = fabsf(x), lift = size < bottom ? bottom : 0.0f;
        const uint32_t moved = way(lpt_bits(__fadd_rz(size, lift)), word, open);
        const float r = __fadd_rn(lpt_value<float>(moved), -lift);
        return lpt_signed_as(r > limit ? over : r, x);
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
inline void lpt_make_rounder(const lpt_cell<float> &, lpt_no_rounder *) {}
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

inline lpt_drawn_way lpt_make_drawn_way(const lpt_cell<float> &c) {
    return {(1u << c.drop) - 1, (uint32_t)(32 - c.drop)};
}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_wide_drawn_rounder *r) {
    *r = {lpt_make_drawn_way(c)};
}
inline void lpt_make_rounder(const lpt_cell<float> &c, lpt_added_drawn_rounder *r) {
    *r = {lpt_make_drawn_way(c), lpt_value<float>((uint32_t)c.emin << 23),
          lpt_value<float>(c.limit[0]), lpt_value<float>(c.over[0])};
}
