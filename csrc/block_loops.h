// The loops over blocks, part of round.cpp: the largest magnitude of each block, from it the
// block's scale, then the elements.
#pragma once
#include "loop.h"

#if defined(__GNUC__)
#define LPT_APART __attribute__((noinline))
#else
#define LPT_APART
#endif

namespace {

// The random words of consecutive elements, a group of 128 at a time.
class random_words {
    const lpt_rule &rule;
    int64_t group = -1;
    uint32_t words[LPT_GROUP];

  public:
    explicit random_words(const lpt_rule &r) : rule(r) {}

    // The word of element i; those of the rest of its group follow.
    const uint32_t *from(int64_t i) {
        if (i / LPT_GROUP != group) {
            group = i / LPT_GROUP;
            lpt_words_of_group(group * LPT_GROUP, rule.key, 0xffffffffu << (32 - rule.bits), words);
        }
        return words + i % LPT_GROUP;
    }
};

// Scales that are powers of two. `first` of a scale is the shift << mantissa, to be added to the
// exponents of the cell; with low bits set it is one of the rare cases. ANY is for formats that are
// not plain.
enum { LPT_ANY = -1 };

template <class T, int MODE> class shifted {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum : U { POISONED = 1, OWN_CELL = 2 };
    const lpt_blocks b;
    const lpt_rule &rule;
    const lpt_cell<T> cell;
    int32_t low, high;
    random_words random;

  public:
    shifted(const lpt_blocks &blocks, const lpt_rule &r)
        : b(blocks), rule(r), cell(lpt_make_cell<T>(b.element, r, 0)), random(r) {
        lpt_movable<T>(b.element, cell, &low, &high);
    }

    void scale(U *s, U *) const {
        if (*s >= (U)(2 * C::bias + 1) << C::mantissa) {
            *s = POISONED;
            return;
        }
        const int32_t shift = lpt_shift<T>(b, *s);
        const U wide = (U)(typename C::sbits)shift;
        *s = shift < low || shift > high ? wide << 2 | OWN_CELL : wide << C::mantissa;
    }

    // Elements first .. last, whose scales lie STEP apart: 0 in one block, 1 where each column is
    // one.
    template <int STEP>
    void round(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *) {
        if (STEP == 0)
            return usual(*s) ? span<0>(x, y, first, last, s) : rare(x, y, first, last, *s);
        for (int64_t i = first; i < last; ++i) {
            const int64_t from = i;
            while (i < last && usual(s[i - first]))
                ++i;
            if (i > from)
                span<1>(x, y, from, i, s + (from - first));
            if (i < last)
                rare(x, y, i, i + 1, s[i - first]);
        }
    }

    // The blocks of `wide` elements that make up at .. end.
    void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t) {
        for (; at < end; at += wide)
            round<0>(x, y, at, at + wide < end ? at + wide : end, s++, t);
    }

  private:
    static bool usual(U s) { return (s & 3) == 0; }

    static U one(U u, const lpt_cell<T> &c, U moved, uint32_t word) {
        if (MODE == LPT_NEAREST)
            return lpt_nearest<T>(u, c, moved);
        return lpt_round<T, MODE, true>(u, lpt_move<T>(c, moved), word);
    }

    template <int STEP>
    LPT_APART void span(const T *x, T *y, int64_t first, int64_t last, const U *s) {
        const lpt_cell<T> c = cell;  // a local copy: y may not alias it
        const U only = *s;
        if (MODE == LPT_ANY) {
            for (int64_t i = first; i < last; i += STEP ? 1 : last - first)
                run_cell(x, y, i, STEP ? i + 1 : last, lpt_move<T>(c, s[STEP * (i - first)]), rule);
        } else if (MODE < LPT_STOCHASTIC) {
            LPT_INDEPENDENT
            for (int64_t i = first; i < last; ++i)
                y[i] = lpt_value<T>(one(lpt_bits(x[i]), c, STEP ? s[i - first] : only, 0));
        } else {
            for (int64_t from = first; from < last;) {
                const uint32_t *words = random.from(from);
                const int64_t end = (from / LPT_GROUP + 1) * LPT_GROUP,
                              to = end < last ? end : last;
                LPT_INDEPENDENT
                for (int64_t i = from; i < to; ++i)
                    y[i] = lpt_value<T>(
                        one(lpt_bits(x[i]), c, STEP ? s[i - first] : only, words[i - from]));
                from = to;
            }
        }
    }

    LPT_APART void rare(const T *x, T *y, int64_t first, int64_t last, U s) {
        if (s != POISONED) {
            const int32_t shift = (int32_t)((typename C::sbits)s >> 2);
            return run_cell(x, y, first, last, lpt_make_cell<T>(b.element, rule, shift), rule);
        }
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>((U)(4 * C::bias + 3) << (C::mantissa - 1));
    }
};

// Scales that are any number: the quotients, rounded by the loops of the scalar formats, times the
// scale.
template <class T> class divided {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum { PIECE = 2048 };
    const lpt_scaled b;
    const lpt_rule &rule;
    const lpt_cell<T> cell;
    const lpt_cell<float> scales;
    const float whole;

  public:
    divided(const lpt_scaled &blocks, const lpt_rule &r, float tensor_scale)
        : b(blocks), rule(r), cell(lpt_make_cell<T>(b.element, r, 0)),
          scales(lpt_make_cell<float>(b.scale, {LPT_NEAREST, 32, 0, 0, {0, 0}}, 0)),
          whole(tensor_scale) {}

    void scale(U *s, U *t) const {
        const U nan = (U)(4 * C::bias + 3) << (C::mantissa - 1);
        const T largest = lpt_value<T>(*s), most = (T)lpt_value<float>(0x7f7fffffu);
        float reciprocal;
        const float scale = lpt_block_scale(b, scales, (float)(largest < most ? largest : most),
                                            whole, &reciprocal);
        *s = *s < (U)(2 * C::bias + 1) << C::mantissa ? lpt_bits((T)scale) : nan;
        *t = lpt_bits((T)reciprocal);
    }

    template <int STEP>
    void round(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t) {
        for (int64_t at = first; at < last; at += PIECE) {
            const int64_t end = at + PIECE < last ? at + PIECE : last, k = STEP * (at - first);
            divide<STEP>(x + at, y + at, end - at, s + k, t + k);
            run_cell(y, y, at, end, cell, rule);
            multiply<STEP>(y + at, end - at, s + k);
        }
    }

    void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t) {
        if (end - at > PIECE)
            return round<0>(x, y, at, end, s, t);  // batches this long are one block
        for (int64_t i = at, k = 0; i < end; i += wide, ++k)
            divide<0>(x + i, y + i, i + wide < end ? wide : end - i, s + k, t + k);
        run_cell(y, y, at, end, cell, rule);
        for (int64_t i = at, k = 0; i < end; i += wide, ++k)
            multiply<0>(y + i, i + wide < end ? wide : end - i, s + k);
    }

  private:
    template <int STEP>
    LPT_APART void divide(const T *x, T *y, int64_t count, const U *s, const U *t) const {
        const U first = *s, second = *t;
        if (b.reciprocal) {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const U u = kept(lpt_bits(x[i])), scale = STEP ? s[i] : first;
                y[i] = quotient(u, lpt_value<T>(u) * lpt_value<T>(STEP ? t[i] : second), scale);
            }
        } else {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
                const U u = kept(lpt_bits(x[i])), scale = STEP ? s[i] : first;
                y[i] = quotient(u, lpt_value<T>(u) / lpt_value<T>(scale), scale);
            }
        }
    }
    template <int STEP> LPT_APART void multiply(T *y, int64_t count, const U *s) const {
        const U first = *s;
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i)
            y[i] = y[i] * lpt_value<T>(STEP ? s[i] : first);
    }
    // Quotients of float64 numbers below this might vanish.
    static U kept(U u) {
        const U sign = u & (U)1 << (C::width - 1), least = (U)(C::bias - 800) << C::mantissa;
        return C::width == 64 && (u ^ sign) < least && u != sign ? sign | least : u;
    }
    // Under a scale of zero all is zero; under NaN, NaN.
    static T quotient(U u, T q, U scale) {
        const U zero = u & (U)1 << (C::width - 1);
        return lpt_value<T>(scale == 0                                    ? zero
                            : scale > (U)(2 * C::bias + 1) << C::mantissa ? scale
                                                                          : lpt_bits(q));
    }
};

// Walks elements from .. to of a unit row by row. `visit(first, count, block)` gets each stretch of
// elements of one block; with blocks one element wide a stretch is as much of the row as there is,
// and `block` counts on by itself.
template <class Visit>
inline void walk(const lpt_layout &l, const lpt_unit &unit, int64_t from, int64_t to, Visit visit) {
    const int32_t last = l.dims - 1;
    if (unit.axis == last)
        return visit(from, to - from, (int64_t)0);
    const int64_t row = l.shape[last], wide = l.block[last];
    int64_t index[LPT_MAX_DIMS] = {}, blocks[LPT_MAX_DIMS] = {}, at = (from - unit.first) / row;
    for (int32_t d = last; d > unit.axis; --d)
        blocks[d] = (l.shape[d] + l.block[d] - 1) / l.block[d];
    for (int64_t d = last - 1, rest = at; d > unit.axis; rest /= l.shape[d--])
        index[d] = rest % l.shape[d];
    for (at = unit.first + at * row; at < to; at += row) {
        int64_t block = 0;
        for (int32_t d = unit.axis + 1; d < last; ++d)
            block = block * blocks[d] + index[d] / l.block[d];
        block *= blocks[last];
        const int64_t end = at + row < to ? at + row : to;
        for (int64_t i = at > from ? at : from; i < end;) {
            const int64_t k = (i - at) / wide, edge = wide == 1 ? end : at + (k + 1) * wide;
            const int64_t stop = edge < end ? edge : end;
            visit(i, stop - i, block + k);
            i = stop;
        }
        for (int32_t d = last - 1; d > unit.axis && ++index[d] == l.shape[d]; --d)
            index[d] = 0;
    }
}

// Magnitudes as signed integers, which every instruction set compares. Those equal to `left_out`
// (an infinity, or a number that is none) count as zero.
template <class T>
inline typename lpt_carrier<T>::sbits counted(T x, typename lpt_carrier<T>::bits left_out) {
    typedef typename lpt_carrier<T>::bits U;
    const U a = lpt_bits(x) & ~((U)1 << (lpt_carrier<T>::width - 1));
    return (typename lpt_carrier<T>::sbits)(a == left_out ? (U)0 : a);
}

template <class T>
inline typename lpt_carrier<T>::bits largest_of(const T *x, int64_t count,
                                                typename lpt_carrier<T>::bits left_out) {
    typename lpt_carrier<T>::sbits top = 0;
    for (int64_t i = 0; i < count; ++i) {
        const typename lpt_carrier<T>::sbits a = counted(x[i], left_out);
        top = a > top ? a : top;
    }
    return (typename lpt_carrier<T>::bits)top;
}

template <class T>
void maxima(const T *x, const lpt_layout &l, const lpt_unit &unit, int64_t from, int64_t to,
            bool finite, typename lpt_carrier<T>::bits *largest) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typedef typename C::sbits S;
    const U left_out = finite ? (U)(2 * C::bias + 1) << C::mantissa : ~(U)0;
    const bool columns = unit.axis < l.dims - 1 && l.block[l.dims - 1] == 1;
    walk(l, unit, from, to, [&](int64_t first, int64_t count, int64_t block) {
        if (!columns) {
            const U top = largest_of(x + first, count, left_out);
            largest[block] = top > largest[block] ? top : largest[block];
            return;
        }
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const S a = counted(x[first + i], left_out), before = (S)largest[block + i];
            largest[block + i] = (U)(a > before ? a : before);
        }
    });
}

// The largest finite magnitude of first .. last.
template <class T>
typename lpt_carrier<T>::bits finite_maximum(const T *x, int64_t first, int64_t last) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typename C::sbits top = 0;
    const U inf = (U)(2 * C::bias + 1) << C::mantissa;
    for (int64_t i = first; i < last; ++i) {
        const U a = lpt_bits(x[i]) & ~((U)1 << (C::width - 1));
        const typename C::sbits finite = (typename C::sbits)(a < inf ? a : (U)0);
        top = finite > top ? finite : top;
    }
    return (U)top;
}

// Calls `work` with the rounding that the scales, the mode and the format ask for.
template <class T, class Work>
inline void with_rule(const lpt_scales &s, const lpt_rule &rule, Work work) {
    if (s.numbers)
        return work(divided<T>(*s.numbers, rule, s.whole));
    if (!lpt_make_cell<T>(s.shifts->element, rule, 0).plain)
        return work(shifted<T, LPT_ANY>(*s.shifts, rule));
    switch (rule.mode) {
    case LPT_NEAREST: return work(shifted<T, LPT_NEAREST>(*s.shifts, rule));
    case LPT_NEAREST_AWAY: return work(shifted<T, LPT_NEAREST_AWAY>(*s.shifts, rule));
    case LPT_TOWARD_ZERO: return work(shifted<T, LPT_TOWARD_ZERO>(*s.shifts, rule));
    case LPT_DOWN: return work(shifted<T, LPT_DOWN>(*s.shifts, rule));
    case LPT_UP: return work(shifted<T, LPT_UP>(*s.shifts, rule));
    case LPT_ODD: return work(shifted<T, LPT_ODD>(*s.shifts, rule));
    case LPT_STOCHASTIC: return work(shifted<T, LPT_STOCHASTIC>(*s.shifts, rule));
    case LPT_STOCHASTIC_HALF_OFFSET:
        return work(shifted<T, LPT_STOCHASTIC_HALF_OFFSET>(*s.shifts, rule));
    case LPT_STOCHASTIC_PRE_ROUNDED:
        return work(shifted<T, LPT_STOCHASTIC_PRE_ROUNDED>(*s.shifts, rule));
    default: return work(shifted<T, LPT_STOCHASTIC_EQUAL>(*s.shifts, rule));
    }
}

template <class T>
void block_scales(const lpt_scales &scales, const lpt_rule &how, int64_t count,
                  typename lpt_carrier<T>::bits *s, typename lpt_carrier<T>::bits *t) {
    auto all = [=](const auto &rule) {
        for (int64_t i = 0; i < count; ++i)
            rule.scale(s + i, t + i);
    };
    scales.numbers ? all(divided<T>(*scales.numbers, how, scales.whole))
                   : all(shifted<T, LPT_ANY>(*scales.shifts, how));
}

template <class T>
void blocks(const T *x, T *y, const lpt_layout &l, const lpt_unit &unit, int64_t from, int64_t to,
            const typename lpt_carrier<T>::bits *s, const typename lpt_carrier<T>::bits *t,
            const lpt_scales &scales, const lpt_rule &how) {
    const bool columns = unit.axis < l.dims - 1 && l.block[l.dims - 1] == 1;
    with_rule<T>(scales, how, [&](auto &&rule) {
        walk(l, unit, from, to, [&](int64_t first, int64_t count, int64_t block) {
            if (columns)
                rule.template round<1>(x, y, first, first + count, s + block, t + block);
            else
                rule.template round<0>(x, y, first, first + count, s + block, t + block);
        });
    });
}

// Blocks that are runs of `wide` elements in rows of `row`, the last of a row perhaps shorter:
// number `first` .. `last` of them. A batch of maxima, then their scales, then their elements, all
// in cache.
template <class T>
void runs(const T *x, T *y, int64_t row, int64_t wide, int64_t first, int64_t last,
          const lpt_scales &scales, const lpt_rule &how) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum { BATCH = 64, ELEMENTS = 2048 };
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;
    const U left_out = finite ? (U)(2 * C::bias + 1) << C::mantissa : ~(U)0;
    const int64_t per_row = (row + wide - 1) / wide, fitting = ELEMENTS / wide;
    const int64_t batch = fitting < 1 ? 1 : fitting < BATCH ? fitting : (int64_t)BATCH;
    with_rule<T>(scales, how, [&](auto &&rule) {
        U s[BATCH], t[BATCH];
        for (int64_t block = first; block < last;) {
            const int64_t r = block / per_row, k = block % per_row, left = per_row - k;
            const int64_t most = left < last - block ? left : last - block;
            const int64_t count = most < batch ? most : batch;
            const int64_t at = r * row + k * wide, edge = (r + 1) * row;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t from = at + i * wide, to = from + wide < edge ? from + wide : edge;
                s[i] = largest_of(x + from, to - from, left_out);
                rule.scale(s + i, t + i);
            }
            rule.batch(x, y, at, at + count * wide < edge ? at + count * wide : edge, wide, s, t);
            block += count;
        }
    });
}

}  // namespace
