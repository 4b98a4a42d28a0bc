// Blocks that share a scale: how a tensor falls into blocks, and the scale of each.
#pragma once
#include "lean.h"

enum { LPT_MAX_DIMS = 16 };

// lptensor/blocks.py: Blocks. The scale is a power of two: the element's grid is shifted by
// exponent(max|x|) - emax, one more where the significand of max|x| exceeds `bump` (1 to 2), held
// to low .. high. A block with NaN becomes NaN, and one with an infinity unless `saturate` says
// that infinities are no part of the maximum and become the largest value. One of zeros stays zero.
struct lpt_blocks {
    lpt_grid element;
    double bump;
    int32_t emax, low, high, saturate;
};

// lptensor/blocks.py: ScaledBlocks. The scale is any number t: x becomes t * R(x / t).
struct lpt_scaled {
    lpt_grid element, scale;
    double top, whole, floor, ceiling;  // fp32 numbers; whole is 0 where the tensor has no scale
    int32_t reciprocal, saturate;
};

// The shape of a contiguous tensor and of one block; the last block along an axis may be short.
struct lpt_layout {
    int32_t dims;
    int64_t shape[LPT_MAX_DIMS], block[LPT_MAX_DIMS];
};

// How far the grid of a block moves whose largest magnitude has these bits. `bump` is
// lpt_bump<T>(b). (An integer converts exactly and brings its exponent along, so subnormals need no
// loop, and nothing here needs a branch.)
template <class T>
LPT_FN int32_t lpt_shift(const lpt_blocks &b, typename lpt_carrier<T>::bits bump,
                         typename lpt_carrier<T>::bits largest) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const int32_t field = (int32_t)(largest >> C::mantissa);
    const U counted = lpt_bits((T)(typename C::sbits)largest), normal = field ? largest : counted;
    const int32_t unit = field ? (int32_t)C::bias : 2 * C::bias + C::mantissa - 1;
    int32_t shift = (int32_t)(normal >> C::mantissa) - unit - b.emax;
    shift += (normal & (((U)1 << C::mantissa) - 1)) > bump;
    shift = shift < b.low ? b.low : shift;
    shift = shift > b.high ? b.high : shift;
    return largest == 0 ? 0 : shift;
}

// The significand beyond which a block's exponent is one more, as a mantissa field; all of them are
// below that of 2.
template <class T> LPT_FN typename lpt_carrier<T>::bits lpt_bump(const lpt_blocks &b) {
    return (lpt_bits(b.bump) - lpt_bits(1.0)) >> (52 - lpt_carrier<T>::mantissa);
}

// The second-level scale of a tensor whose largest finite magnitude is given.
LPT_FN float lpt_tensor_scale(const lpt_scaled &b, float largest) {
    const float smallest = lpt_value<float>(1u), most = 3.4028234663852886e38f;
    const float whole = largest / (float)b.whole;
    return b.whole == 0 ? 1.0f : whole < smallest ? smallest : whole > most ? most : whole;
}

// The scale s of a block before that of the tensor, not yet rounded to its format. All is done in
// fp32, whatever the carrier, and rounded to nearest after each operation.
LPT_FN float lpt_block_scale(const lpt_scaled &b, float largest, float whole) {
    const float s = largest / (float)b.top / whole;
    return s<(float)b.floor ? (float)b.floor : s>(float) b.ceiling ? (float)b.ceiling : s;
}

// The same, rounded: in fp32, where that is the format of scales; where its cell is roomy; or in
// any format.
enum lpt_scale_way { LPT_SCALE_FP32, LPT_SCALE_ROOMY, LPT_SCALE_ANY };
LPT_FN lpt_scale_way lpt_way_of_scales(const lpt_cell<float> &scale) {
    const bool same = scale.flat && scale.drop == 0 && scale.emax == 254;
    return same ? LPT_SCALE_FP32 : scale.roomy ? LPT_SCALE_ROOMY : LPT_SCALE_ANY;
}
LPT_FN float lpt_round_scale(float s, const lpt_cell<float> &scale, lpt_scale_way way) {
    if (way == LPT_SCALE_FP32)
        return s;
    return lpt_value<float>(
        way == LPT_SCALE_ROOMY
            ? lpt_round_roomy<float, LPT_NEAREST, LPT_ALL_ENDS>(lpt_bits(s), scale, 0)
            : lpt_round<float, LPT_NEAREST, false>(lpt_bits(s), scale, 0));
}

// The scale t of a block, held to what fp32 has.
LPT_FN float lpt_scale_under(float s, float whole) {
    const float most = lpt_value<float>(0x7f7fffffu), t = s * whole;
    return t > most ? most : t;
}

// What multiplies x where that stands for the division by t.
LPT_FN float lpt_block_reciprocal(float s, float whole) {
    const float most = lpt_value<float>(0x7f7fffffu), r = 1.0f / whole / s;
    return r < most ? r : most;
}

// The range of shifts that may be added to the exponents of the unshifted cell: all numbers that
// the arithmetic meets are normal before and after. Empty where the format reaches the carrier's
// ends.
template <class T>
LPT_FN void lpt_movable(const lpt_grid &g, const lpt_cell<T> &c, int32_t *low, int32_t *high) {
    typedef lpt_carrier<T> C;
    const int32_t smallest = c.emin - (g.precision - 1), above = c.emax + c.drop;
    const int32_t below = g.subnormals == LPT_GRADUAL ? above : c.emin + C::mantissa;
    const int32_t magic = above > below ? above : below;  // what is added, where the grid is widest
    const int32_t first = (int32_t)(c.limit[0] >> C::mantissa);
    const int32_t second = c.is_signed ? (int32_t)(c.limit[1] >> C::mantissa) : first;
    const int32_t end = first > second ? first : second;
    const bool normal = smallest >= 1 && first >= 1 && second >= 1 && end <= 2 * C::bias;
    const bool movable = normal && g.overflow == LPT_SATURATE && c.drop >= 1;
    *low = movable ? LPT_ROOM - smallest : 1;
    *high = movable ? 2 * C::bias - (end > magic ? end : magic) : 0;
}

// The cell of a grid, which has a zero, moved by a shift within that range, given as
// shift << mantissa.
template <class T> LPT_FN lpt_cell<T> lpt_move(lpt_cell<T> c, typename lpt_carrier<T>::bits moved) {
    const int32_t shift =
        (int32_t)((typename lpt_carrier<T>::sbits)moved >> lpt_carrier<T>::mantissa);
    c.emin += shift;
    c.emax += shift;
    c.low += moved;
    c.high += moved;
    c.tiny += moved;
    c.inside += moved;
    c.half_tiny = c.tiny - ((typename lpt_carrier<T>::bits)1 << lpt_carrier<T>::mantissa);
    c.limit[0] = c.over[0] = c.inf[0] = c.limit[0] + moved;
    c.limit[1] = c.over[1] = c.inf[1] = c.limit[1] + moved;
    return c;
}
