// The loops over elements whose blocks have a power of two for a scale, part of round.cpp.
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

// A scale is the shift << mantissa, to be added to the exponents of the cell; with low bits set it
// is one of the rare cases. ANY is for formats that are not plain.
enum { LPT_ANY = -1 };

template <class T, int MODE> class shifted {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    enum : U { POISONED = 1, OWN_CELL = 2, RARE = 3 };
    const lpt_blocks b;
    const lpt_rule &rule;
    const lpt_cell<T> cell;
    const U bump;
    int32_t low, high;
    random_words random;

  public:
    shifted(const lpt_blocks &blocks, const lpt_rule &r)
        : b(blocks), rule(r), cell(lpt_make_cell<T>(b.element, r, 0)), bump(lpt_bump<T>(b)),
          random(r) {
        lpt_movable<T>(b.element, cell, &low, &high);
    }

    // Largest magnitudes become scales.
    LPT_APART void scale(U *s, U *, int64_t count) const {
        const lpt_blocks blocks = b;  // local copies: s may not alias them
        const U above = bump, inf = (U)(2 * C::bias + 1) << C::mantissa;
        const int32_t least = low, most = high;
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const int32_t shift = lpt_shift<T>(blocks, above, s[i]);
            const U wide = (U)(typename C::sbits)shift;
            const U usual =
                shift < least || shift > most ? wide << 2 | OWN_CELL : wide << C::mantissa;
            s[i] = s[i] >= inf ? (U)POISONED : usual;
        }
    }

    // Whether none of the scales is a rare case.
    static bool usual(const U *s, int64_t count) {
        U any = 0;
        for (int64_t i = 0; i < count; ++i)
            any |= s[i];
        return (any & RARE) == 0;
    }

    // Elements first .. last, whose scales lie STEP apart: 0 in one block, 1 where each column is
    // one. `all_usual` only if they are.
    template <int STEP>
    void round(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *,
               bool all_usual = false) {
        if (STEP == 0)
            return *s & RARE ? rare(x, y, first, last, *s) : span<0>(x, y, first, last, s);
        if (all_usual)
            return span<1>(x, y, first, last, s);
        for (int64_t i = first; i < last; ++i) {
            const int64_t from = i;
            while (i < last && !(s[i - first] & RARE))
                ++i;
            if (i > from)
                span<1>(x, y, from, i, s + (from - first));
            if (i < last)
                rare(x, y, i, i + 1, s[i - first]);
        }
    }

    // The blocks of `wide` elements that make up at .. end.
    void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t) {
        const int64_t whole = (end - at) / wide;
        const bool in_groups = at % wide == 0 && LPT_GROUP % wide == 0;  // each in one, of words
        if (MODE != LPT_ANY && wide % 16 == 0 && (MODE < LPT_STOCHASTIC || in_groups) &&
            usual(s, whole)) {
            wide == 32 ? equal<32>(x, y, at, whole, wide, s) : equal<0>(x, y, at, whole, wide, s);
            at += whole * wide, s += whole;
        }
        for (; at < end; at += wide)
            round<0>(x, y, at, at + wide < end ? at + wide : end, s++, t);
    }

  private:
    static U one(U u, const lpt_cell<T> &c, U moved, uint32_t word) {
        if (MODE == LPT_NEAREST)
            return lpt_round_roomy<T, LPT_SATURATES>(u, lpt_move<T>(c, moved));
        if (MODE <= LPT_STOCHASTIC)
            return lpt_round_plain<T, MODE, false, LPT_SATURATES>(u, lpt_move<T>(c, moved), word);
        return lpt_round<T, MODE, true>(u, lpt_move<T>(c, moved), word);
    }

    // `count` blocks of WIDE elements, or of `wide` where WIDE is 0.
    template <int WIDE>
    LPT_APART void equal(const T *x, T *y, int64_t at, int64_t count, int64_t wide, const U *s) {
        const lpt_cell<T> c = cell;  // a local copy: y may not alias it
        const int64_t width = WIDE ? WIDE : wide;
        for (int64_t k = 0; k < count; ++k, at += width) {
            const U only = s[k];
            const uint32_t *words = MODE < LPT_STOCHASTIC ? nullptr : random.from(at);
            LPT_INDEPENDENT
            for (int64_t i = 0; i < width; ++i)
                y[at + i] = lpt_value<T>(
                    one(lpt_bits(x[at + i]), c, only, MODE < LPT_STOCHASTIC ? 0 : words[i]));
        }
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

}  // namespace
