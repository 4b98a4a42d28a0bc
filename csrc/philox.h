// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and Shaw, SC 2011).
#pragma once
#include "grid.h"

// Word `word` of the block whose counter is (index, offset), under the key `seed`.
struct lpt_words {
    uint32_t w[4];
};

// a * b in 64 bits. Of the plain product nvcc makes one of 64-bit factors, an addition more.
LPT_FN uint64_t lpt_wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

LPT_FN lpt_words lpt_philox(uint64_t index, lpt_key key) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)key.offset, c3 = (uint32_t)(key.offset >> 32);
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        uint64_t p0 = lpt_wide_product(0xD2511F53u, c0), p1 = lpt_wide_product(0xCD9E8D57u, c2);
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    lpt_words out = {{c0, c1, c2, c3}};
    return out;
}

// Elements share counters in groups of 128, one GPU warp's worth: lane l of group b has the counter
// 32 b + l, and its word w decides element 128 b + 32 w + l. Vectors on the host and warps on the
// device both read and write contiguously, and no split of the work changes a bit.
enum { LPT_GROUP = 128, LPT_LANES = 32 };

LPT_FN uint32_t lpt_random(uint64_t element, lpt_key key) {
    uint64_t lane = element / LPT_GROUP * LPT_LANES + element % LPT_LANES;
    return lpt_philox(lane, key).w[element / LPT_LANES % 4];
}
