// The loops over blocks, part of round.cpp: the largest magnitude of each block, from it the
// block's scale, then the elements.
#pragma once
#include "divided.h"
#include "maxima.h"

#include <new>

namespace {

// Walks elements from .. to of a unit row by row. `visit(first, count, block)` gets stretches that
// are a part of a block, or as many whole blocks of the row as follow each other.
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
            const int64_t k = (i - at) / wide, begin = at + k * wide;
            const int64_t whole = at + (end - at) / wide * wide;  // there the last whole one ends
            const int64_t edge = i == begin && i < whole ? whole : begin + wide;
            const int64_t stop = edge < end ? edge : end;
            visit(i, stop - i, block + k);
            i = stop;
        }
        for (int32_t d = last - 1; d > unit.axis && ++index[d] == l.shape[d]; --d)
            index[d] = 0;
    }
}

// visit(first, count, block) for each of the blocks, or the part of one, in a stretch.
template <class Visit>
inline void each_block(int64_t first, int64_t count, int64_t block, int64_t wide, Visit visit) {
    for (; count > 0; count -= wide, first += wide, ++block)
        visit(first, count < wide ? count : wide, block);
}

// How much more than its place an element counts as.
inline int64_t more(const lpt_numbers &n, int64_t place) {
    return n.first + place / n.count * (n.apart - n.count);
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

// Raises each of `count` magnitudes to the largest of the `wide` from it on that lie `apart`;
// behind the last there are none.
template <class S>
LPT_APART void raise_windows(S *largest, int64_t count, int64_t wide, int64_t apart) {
    const auto join = [=](int64_t other) {
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count - other; ++i) {
            const S a = largest[i], b = largest[i + other];
            largest[i] = a > b ? a : b;
        }
    };
    int64_t joined = 1;
    for (; 2 * joined <= wide; joined *= 2)
        join(joined * apart);
    if (joined < wide)
        join((wide - joined) * apart);
}

// Raises `largest`, one for each column, to the magnitudes in rows that lie `row` apart.
template <class T>
LPT_APART void raise(const T *x, int64_t row, int64_t rows, int64_t count,
                     typename lpt_carrier<T>::bits left_out,
                     typename lpt_carrier<T>::bits *largest) {
    typedef typename lpt_carrier<T>::bits U;
    typedef typename lpt_carrier<T>::sbits S;
    auto larger = [](S a, S b) { return a > b ? a : b; };
    for (; rows >= 4; rows -= 4, x += 4 * row) {
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const S a = larger(counted(x[i], left_out), counted(x[i + row], left_out));
            const S b =
                larger(counted(x[i + 2 * row], left_out), counted(x[i + 3 * row], left_out));
            largest[i] = (U)larger((S)largest[i], larger(a, b));
        }
    }
    for (; rows > 0; --rows, x += row) {
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i)
            largest[i] = (U)larger((S)largest[i], counted(x[i], left_out));
    }
}

// Raises each of `count` numbers to that beside it.
template <class S> inline void raise_to(const S *numbers, S *largest, int64_t count) {
    LPT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i)
        largest[i] = numbers[i] > largest[i] ? numbers[i] : largest[i];
}

// Raises `largest`, one for each run of `wide` elements, as far as whole vectors of runs go: so
// many.
template <class T, class By>
LPT_APART int64_t raise_runs(const T *x, int64_t wide, int64_t count, By by,
                             typename lpt_carrier<T>::sbits *largest) {
    typedef typename lpt_carrier<T>::sbits S;
    enum { BATCH = 64 };
    typename lpt_carrier<T>::bits tops[BATCH];
    int64_t at = 0;
    while (at < count) {
        const int64_t left = count - at, some = left < BATCH ? left : (int64_t)BATCH;
        const int64_t done = lpt_maxima_of_runs(x + at * wide, wide, some, by, tops);
        if (done == 0)
            break;
        raise_to((const S *)tops, largest + at, done);
        at += done;
    }
    return at;
}

template <class T>
void maxima(const T *x, const lpt_layout &l, const lpt_unit &unit, int64_t from, int64_t to,
            bool finite, typename lpt_carrier<T>::bits *largest) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const U left_out = finite ? (U)(2 * C::bias + 1) << C::mantissa : ~(U)0;
    const lpt_by_magnitude leaving = {(uint32_t)left_out};
    const bool rows = unit.axis == l.dims - 1;
    if (unit.axis == l.dims - 2 && l.block[l.dims - 1] == 1) {  // each is a column
        for (const int64_t row = l.shape[l.dims - 1]; from < to;) {
            const int64_t column = (from - unit.first) % row, left = to - from;
            const int64_t count = left < row - column ? left : row - column;
            const int64_t some = column == 0 && left >= row ? left / row : 1;
            raise(x + from, row, some, count, left_out, largest + column);
            from += (some - 1) * row + count;
        }
        return;
    }
    walk(l, unit, from, to, [&](int64_t first, int64_t count, int64_t block) {
        const int64_t wide = rows ? count : l.block[l.dims - 1];
        if (wide == 1)
            return raise(x + first, 0, 1, count, left_out, largest + block);
        const int64_t done = raise_runs(x + first, wide, count / wide, leaving,
                                        (typename C::sbits *)largest + block);
        each_block(first + done * wide, count - done * wide, block + done, wide,
                   [&](int64_t start, int64_t some, int64_t k) {
                       const U top = largest_of(x + start, some, left_out);
                       largest[k] = top > largest[k] ? top : largest[k];
                   });
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

// The rounding that the scales, the mode and the format ask for.
template <class T> class chosen {
    typedef block_rounding<T> Rounding;
    const lpt_blocks *shifts;
    const lpt_rule &rule;
    enum { ONE = sizeof(shifted<T, LPT_STOCHASTIC>), OTHER = sizeof(divided<T>) };
    alignas(64) char room[ONE > OTHER ? ONE : OTHER];
    Rounding *const rounding;

    Rounding *of_shifts() {
        if (!lpt_make_cell<T>(shifts->element, rule, 0).plain)
            return new (room) shifted_any<T>(*shifts, rule);
        return lpt_with_mode(rule.mode, [&](auto mode) -> Rounding * {
            return new (room) shifted<T, decltype(mode)::value>(*shifts, rule);
        });
    }

  public:
    chosen(const lpt_scales &s, const lpt_rule &r)
        : shifts(s.shifts), rule(r),
          rounding(shifts ? of_shifts() : new (room) divided<T>(*s.numbers, r, s.whole)) {}
    chosen(const chosen &) = delete;
    Rounding *operator->() const { return rounding; }
};

template <class T>
bool block_scales(const lpt_scales &scales, const lpt_rule &how, int64_t count,
                  typename lpt_carrier<T>::bits *s, typename lpt_carrier<T>::bits *t) {
    return chosen<T>(scales, how)->scale(s, t, count);
}

template <class T>
void factors(const lpt_scales &scales, int64_t count, typename lpt_carrier<T>::bits *largest,
             double *to) {
    enum { BATCH = 64 };
    const lpt_rule nearest = {LPT_NEAREST, 32, 0, 0, {0, 0}};
    const chosen<T> rounding(scales, nearest);
    typename lpt_carrier<T>::bits inverse[BATCH];
    for (int64_t k = 0; k < count; k += BATCH) {
        rounding->scale(largest + k, inverse, count - k < BATCH ? count - k : (int64_t)BATCH);
        for (int64_t i = k; i < count && i < k + BATCH; ++i)
            to[i] = rounding->factor(largest[i]);
    }
}

template <class T>
void blocks(const T *x, T *y, const lpt_layout &l, const lpt_unit &unit, int64_t from, int64_t to,
            const typename lpt_carrier<T>::bits *s, const typename lpt_carrier<T>::bits *t,
            bool usual, const lpt_scales &scales, const lpt_rule &how) {
    enum { ELEMENTS = 512 };
    const bool rows = unit.axis == l.dims - 1;
    const chosen<T> rounding(scales, how);
    walk(l, unit, from, to, [&](int64_t first, int64_t count, int64_t block) {
        const int64_t wide = rows ? count : l.block[l.dims - 1];
        if (wide == 1)
            return rounding->across(x, y, first, first + count, s + block, t + block, usual);
        const int64_t batch = wide < ELEMENTS ? ELEMENTS / wide : 1;
        each_block(first, count, 0, batch * wide, [&](int64_t at, int64_t some, int64_t k) {
            const int64_t here = block + k * batch;
            rounding->batch(x, y, at, at + some, wide, s + here, t + here, usual, false);
        });
    });
}

// Blocks and rows of fewer elements do not pay for loops of their own, nor do fewer columns.
#ifdef __AVX2__
enum { SHORT = 32, SHORT_ROW = 128 };
#else
enum { SHORT = 16, SHORT_ROW = 32 };
#endif

// Blocks first .. last that are runs of `wide` elements, fewer than SHORT_ROW, in rows of `row`,
// the last of a row perhaps shorter. The largest of all windows of `wide` elements are also those
// of the blocks; then each element has a scale.
template <class T>
LPT_APART void short_runs(const T *x, T *y, int64_t row, int64_t wide, int64_t first, int64_t last,
                          const lpt_numbers &number, typename lpt_carrier<T>::bits left_out,
                          bool numbers, const chosen<T> &rounding) {
    typedef typename lpt_carrier<T>::bits U;
    enum { ELEMENTS = 512, AT_ONCE = 16 };
    const int64_t per_row = (row + wide - 1) / wide, batch = ELEMENTS / wide;
    typename lpt_carrier<T>::sbits largest[ELEMENTS];  // `wide` for each block
    U s[ELEMENTS], t[ELEMENTS], each_s[ELEMENTS + SHORT_ROW], each_t[ELEMENTS + SHORT_ROW];
    const auto spread = [=](U scale, U *to) {  // where it is too far, the next block's will be
        for (int64_t i = 0; i < wide; i += AT_ONCE)
            for (int64_t j = 0; j < AT_ONCE; ++j)
                to[i + j] = scale;
    };
    int64_t end = first / per_row * row + first % per_row * wide;
    for (int64_t block = first; block < last;) {
        const int64_t count = last - block < batch ? last - block : batch, at = end;
        // visit(from, to, k) for elements of one row, which are blocks k, k + 1 .. of the batch
        const auto each_row = [&](auto visit) {
            int64_t from = at, before = block % per_row;
            for (int64_t k = 0; k < count; before = 0) {
                const int64_t left = per_row - before, n = left < count - k ? left : count - k;
                const int64_t to = from + (n < left ? n * wide : row - before * wide);
                visit(from, to, k);
                from = to;
                k += n;
            }
            return from;
        };
        if (row % wide != 0)
            memset(largest, 0, count * wide * sizeof *largest);
        end = each_row([&](int64_t from, int64_t to, int64_t k) {
            LPT_INDEPENDENT
            for (int64_t i = 0; i < to - from; ++i)
                largest[k * wide + i] = counted(x[from + i], left_out);
        });
        raise_windows(largest, count * wide, wide, 1);
        for (int64_t k = 0; k < count; ++k)
            s[k] = (U)largest[k * wide];
        const bool usual = rounding->scale(s, t, count);
        each_row([&](int64_t from, int64_t to, int64_t k) {
            for (int64_t i = from; i < to; i += wide, ++k) {
                spread(s[k], each_s + (i - at));
                if (numbers)
                    spread(t[k], each_t + (i - at));
            }
        });
        for (int64_t from = at; from < end;) {  // as far as they count one by one
            const int64_t n = more(number, from), left = number.count - from % number.count;
            const int64_t to = left < end - from ? from + left : end, k = from - at;
            rounding->across(x - n, y - n, from + n, to + n, each_s + k, each_t + k, usual);
            from = to;
        }
        block += count;
    }
}

// Blocks that are runs of `wide` elements in rows of `row`, the last of a row perhaps shorter:
// number `first` .. `last` of them. A batch of maxima, then their scales, then their elements, all
// in cache.
template <class T>
void runs(const T *x, T *y, int64_t row, int64_t wide, int64_t first, int64_t last,
          const lpt_numbers &number, const lpt_scales &scales, const lpt_rule &how, bool large) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum { BATCH = 64, ELEMENTS = 512 };
    // Each row is a block: together they are runs in one row.
    if (row <= wide && number.count == number.apart)
        wide = row, row *= last;
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;
    const U left_out = finite ? (U)(2 * C::bias + 1) << C::mantissa : ~(U)0;
    const lpt_by_magnitude leaving = {(uint32_t)left_out};
    const chosen<T> rounding(scales, how);
    // Rows end amid blocks. Vectors of float64 are short enough for them.
    const int64_t short_row = C::width == 64 && scales.shifts ? SHORT : SHORT_ROW;
    const bool ragged = row % wide != 0 && row < short_row;
    if (wide % 16 != 0 ? wide < SHORT : ragged && wide < SHORT_ROW)
        return short_runs(x, y, row, wide, first, last, number, left_out, scales.numbers, rounding);
    const int64_t per_row = (row + wide - 1) / wide, fitting = ELEMENTS / wide;
    const int64_t batch = fitting < 1 ? 1 : fitting < BATCH ? fitting : (int64_t)BATCH;
    U s[BATCH], t[BATCH];
    for (int64_t block = first; block < last;) {
        const int64_t r = block / per_row, k = block % per_row, left = per_row - k;
        const int64_t most = left < last - block ? left : last - block;
        const int64_t count = most < batch ? most : batch;
        const int64_t at = r * row + k * wide, edge = (r + 1) * row;
        const int64_t end = at + count * wide < edge ? at + count * wide : edge;
        int64_t i = lpt_maxima_of_runs(x + at, wide, (end - at) / wide, leaving, s);
        for (; i < count; ++i) {
            const int64_t from = at + i * wide, to = from + wide < edge ? from + wide : edge;
            s[i] = largest_of(x + from, to - from, left_out);
        }
        const bool usual = rounding->scale(s, t, count);
        lpt_fetch(x + end + 2 * count * wide, count * wide);
        const int64_t n = more(number, at);
        rounding->batch(x - n, y - n, at + n, end + n, wide, s, t, usual, large);
        block += count;
    }
    lpt_streamed();
}

// Blocks that are columns `wide` long, the last of `length` rows perhaps shorter: slabs first ..
// last of `inner` columns, too few for a loop, but SLAB elements at most. Each has a scale.
enum { SLAB = 2048 };
template <class T>
LPT_APART void narrow_columns(const T *x, T *y, int64_t length, int64_t wide, int64_t inner,
                              int64_t first, int64_t last, const lpt_numbers &number,
                              typename lpt_carrier<T>::bits left_out, bool numbers,
                              const chosen<T> &rounding) {
    typedef typename lpt_carrier<T>::bits U;
    const int64_t bands = (length + wide - 1) / wide;
    typename lpt_carrier<T>::sbits largest[SLAB];
    U s[SLAB], t[SLAB];
    for (int64_t slab = first; slab < last; ++slab) {
        const int64_t row = slab % bands * wide, rows = length - row < wide ? length - row : wide;
        const int64_t at = (slab / bands * length + row) * inner, count = rows * inner;
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i)
            largest[i] = counted(x[at + i], left_out);
        raise_windows(largest, count, rows, inner);
        for (int64_t i = 0; i < inner; ++i)
            s[i] = (U)largest[i];
        const bool usual = rounding->scale(s, t, inner);
        for (int64_t have = inner; have < count; have *= 2) {
            const int64_t more = count - have < have ? count - have : have;
            memcpy(s + have, s, more * sizeof *s);
            if (numbers)
                memcpy(t + have, t, more * sizeof *t);
        }
        const int64_t n = more(number, at);  // of the whole slab
        rounding->across(x - n, y - n, at + n, at + n + count, s, t, usual);
    }
}

// Blocks that are columns `wide` long, the last of `length` rows perhaps shorter: strips
// first .. last of LPT_STRIP columns, while a strip is in cache.
template <class T>
void columns(const T *x, T *y, int64_t length, int64_t wide, int64_t inner, int64_t first,
             int64_t last, const lpt_numbers &number, const lpt_scales &scales, const lpt_rule &how,
             bool large) {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const bool finite = scales.shifts ? scales.shifts->saturate : scales.numbers->saturate;
    const U left_out = finite ? (U)(2 * C::bias + 1) << C::mantissa : ~(U)0;
    const int64_t strips = (inner + LPT_STRIP - 1) / LPT_STRIP, bands = (length + wide - 1) / wide;
    const chosen<T> rounding(scales, how);
    if (inner < SHORT && wide * inner <= SLAB && number.count == number.apart)
        return narrow_columns(x, y, length, wide, inner, first, last, number, left_out,
                              scales.numbers, rounding);
    U s[LPT_STRIP], t[LPT_STRIP];
    for (int64_t strip = first; strip < last; ++strip) {
        const int64_t band = strip / strips, top = band / bands * length, row = band % bands * wide;
        const int64_t rows = length - row < wide ? length - row : wide;
        const int64_t column = strip % strips * LPT_STRIP, left = inner - column;
        const int64_t count = left < LPT_STRIP ? left : (int64_t)LPT_STRIP;
        const int64_t start = (top + row) * inner + column;
        // the strip to the right, or what the next one begins with
        const int64_t ahead = strip + 1 == last ? 0 : left > count ? count : rows * inner - column;
        memset(s, 0, count * sizeof *s);
        raise(x + start, inner, rows, count, left_out, s);
        const bool usual = rounding->scale(s, t, count);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = start + r * inner;
            if (!large) {
                const int64_t n = more(number, at);
                rounding->across(x - n, y - n, at + n, at + n + count, s, t, usual);
                continue;
            }
            lpt_fetch(x + at + ahead, count);
            lpt_through(y, at, at + count, [&](T *out, int64_t from, int64_t to) {
                rounding->across(x, out, from, to, s, t, usual);
            });
        }
    }
    lpt_streamed();
}

}  // namespace
