// Blocks that share an exponent: how a tensor falls into blocks, and the exponent of each.
#pragma once
#include "grid.h"

enum { LPT_MAX_DIMS = 16 };

// lptensor/blocks.py: Blocks. The element's grid is shifted by exponent(max|x|) - emax, held to
// low .. high; a block with NaN or infinity becomes NaN, one of zeros stays zero.
struct lpt_blocks {
    lpt_grid element;
    int32_t emax, low, high;
};

// The shape of a contiguous tensor and of one block; the last block along an axis may be short.
struct lpt_layout {
    int32_t dims;
    int64_t shape[LPT_MAX_DIMS], block[LPT_MAX_DIMS];
};

// floor(log2) of the finite positive value with these bits.
template <class T> LPT_FN int32_t lpt_exponent(typename lpt_carrier<T>::bits a) {
    typedef lpt_carrier<T> C;
    const int32_t field = (int32_t)(a >> C::mantissa);
    if (field)
        return field - C::bias;
    return (int32_t)(lpt_bits((T)(typename C::sbits)a) >> C::mantissa) - 2 * C::bias - C::mantissa +
           1;
}

// How far the grid of a block moves whose largest magnitude has these bits.
template <class T>
LPT_FN int32_t lpt_shift(const lpt_blocks &b, typename lpt_carrier<T>::bits largest) {
    if (largest == 0)
        return 0;
    const int32_t shift = lpt_exponent<T>(largest) - b.emax;
    return shift < b.low ? b.low : shift > b.high ? b.high : shift;
}
