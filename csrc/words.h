// The random words of many counters at once, and of a group of 128 elements: Philox on vectors.
//
// Each counter has a lane of 64 bits in four vectors, of which the lower 32 bits count: what a
// multiplication leaves above them is never looked at. Vectors of even and of odd counters
// alternate, so that at the end two of them fit into one another without a permutation.
#pragma once
#include "intrinsics.h"
#include "philox.h"

#if defined(__AVX512F__)
#define LPT_VECTORS
struct lpt_vector {
    enum { LANES = 8 };
    __m512i v;
    static lpt_vector all(uint32_t x) { return {_mm512_set1_epi64(x)}; }
    static lpt_vector counters(uint64_t first) {
        return {_mm512_add_epi64(_mm512_set1_epi64((int64_t)first),
                                 _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0))};
    }
    static lpt_vector high(lpt_vector a) { return {_mm512_srli_epi64(a.v, 32)}; }
    static lpt_vector plus(lpt_vector a, lpt_vector b) { return {_mm512_add_epi32(a.v, b.v)}; }
    static lpt_vector times(lpt_vector a, lpt_vector b) { return {_mm512_mul_epu32(a.v, b.v)}; }
    static lpt_vector mix(lpt_vector product, lpt_vector word, lpt_vector key) {
        return {_mm512_ternarylogic_epi64(_mm512_srli_epi64(product.v, 32), word.v, key.v, 0x96)};
    }
    static void store(uint32_t *out, lpt_vector even, lpt_vector odd, uint32_t mask) {
        const __m512i joined = _mm512_mask_shuffle_epi32(even.v, 0xaaaa, odd.v, _MM_PERM_CCAA);
        _mm512_storeu_si512(out, _mm512_and_si512(joined, _mm512_set1_epi32((int)mask)));
    }
};
#elif defined(__AVX2__)
#define LPT_VECTORS
struct lpt_vector {
    enum { LANES = 4 };
    __m256i v;
    static lpt_vector all(uint32_t x) { return {_mm256_set1_epi64x(x)}; }
    static lpt_vector counters(uint64_t first) {
        return {
            _mm256_add_epi64(_mm256_set1_epi64x((int64_t)first), _mm256_set_epi64x(6, 4, 2, 0))};
    }
    static lpt_vector high(lpt_vector a) { return {_mm256_srli_epi64(a.v, 32)}; }
    static lpt_vector plus(lpt_vector a, lpt_vector b) { return {_mm256_add_epi32(a.v, b.v)}; }
    static lpt_vector times(lpt_vector a, lpt_vector b) { return {_mm256_mul_epu32(a.v, b.v)}; }
    static lpt_vector mix(lpt_vector product, lpt_vector word, lpt_vector key) {
        const __m256i high = _mm256_srli_epi64(product.v, 32);
        return {_mm256_xor_si256(_mm256_xor_si256(high, word.v), key.v)};
    }
    static void store(uint32_t *out, lpt_vector even, lpt_vector odd, uint32_t mask) {
        const __m256i joined = _mm256_blend_epi32(even.v, _mm256_slli_epi64(odd.v, 32), 0xaa);
        _mm256_storeu_si256((__m256i *)out, _mm256_and_si256(joined, _mm256_set1_epi32((int)mask)));
    }
};
#endif

#ifdef LPT_VECTORS
// out[n * apart + q * LPT_PAIR + i] is the n-th word of the counter first(q) + i, for all q < pairs
// and i < LPT_PAIR; pairs are as many as registers hold at once, or a multiple of that.
enum { LPT_PAIR = 2 * lpt_vector::LANES, LPT_TOGETHER = lpt_vector::LANES == 8 ? 4 : 2 };
template <class First>
static inline void lpt_words_of_pairs(First first, int pairs, lpt_key key, uint32_t mask,
                                      int64_t apart, uint32_t *out) {
    typedef lpt_vector V;
    const V m0 = V::all(0xD2511F53u), m1 = V::all(0xCD9E8D57u);
    const V w0 = V::all(0x9E3779B9u), w1 = V::all(0xBB67AE85u);
    for (int q = 0; q < pairs; q += LPT_TOGETHER / 2) {
        V c0[LPT_TOGETHER], c1[LPT_TOGETHER], c2[LPT_TOGETHER], c3[LPT_TOGETHER];
        for (int v = 0; v < LPT_TOGETHER; ++v) {
            c0[v] = V::counters(first(q + v / 2) + v % 2);
            c1[v] = V::high(c0[v]);
            c2[v] = V::all((uint32_t)key.offset);
            c3[v] = V::all((uint32_t)(key.offset >> 32));
        }
        V k0 = V::all((uint32_t)key.seed), k1 = V::all((uint32_t)(key.seed >> 32));
        for (int round = 0; round < 10; ++round) {
            for (int v = 0; v < LPT_TOGETHER; ++v) {
                const V p0 = V::times(m0, c0[v]), p1 = V::times(m1, c2[v]);
                c0[v] = V::mix(p1, c1[v], k0);
                c2[v] = V::mix(p0, c3[v], k1);
                c1[v] = p1;
                c3[v] = p0;
            }
            k0 = V::plus(k0, w0);
            k1 = V::plus(k1, w1);
        }
        for (int v = 0; v < LPT_TOGETHER; v += 2) {
            uint32_t *at = out + (q + v / 2) * LPT_PAIR;
            V::store(at, c0[v], c0[v + 1], mask);
            V::store(at + apart, c1[v], c1[v + 1], mask);
            V::store(at + 2 * apart, c2[v], c2[v + 1], mask);
            V::store(at + 3 * apart, c3[v], c3[v + 1], mask);
        }
    }
}
#endif

// Random words of the group of 128 elements that starts at `first`.
static inline void lpt_words_of_group(int64_t first, lpt_key key, uint32_t mask, uint32_t *out) {
    const uint64_t counter = (uint64_t)first / LPT_GROUP * LPT_LANES;
#ifdef LPT_VECTORS
    lpt_words_of_pairs([=](int q) { return counter + q * LPT_PAIR; }, LPT_LANES / LPT_PAIR, key,
                       mask, LPT_LANES, out);
#else
    for (int lane = 0; lane < LPT_LANES; ++lane) {
        const lpt_words words = lpt_philox(counter + lane, key);
        for (int w = 0; w < 4; ++w)
            out[w * LPT_LANES + lane] = words.w[w] & mask;
    }
#endif
}
