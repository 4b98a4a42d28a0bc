// The loops over elements whose blocks have a power of two for a scale, part of round.cpp.
#pragma once
#include "loop.h"
#include <math.h>

namespace {

// Elements whose random words lie side by side. Blocks that are rounded together have no more.
enum { LPT_DRAWN = 512 };

// The random words of consecutive elements, drawn a group of 128 at a time, and each group once.
class random_words {
    const lpt_rule &rule;
    int64_t begin = 0, end = 0;  // elements whose words are here, whole groups
    uint32_t words[LPT_DRAWN + LPT_GROUP];

    void draw(int64_t first, int64_t last) {
        const int64_t gone = first / LPT_GROUP * LPT_GROUP - begin;
        begin += gone;
        if (gone >= 0 && begin < end)  // some are here already
            memmove(words, words + gone, (end - begin) * sizeof *words);
        else
            end = begin;
        for (; end < last; end += LPT_GROUP)
            lpt_words_of_group(end, rule.key, 0xffffffffu << (32 - rule.bits),
                               words + (end - begin));
    }

  public:
    explicit random_words(const lpt_rule &r) : rule(r) {}

    // Those of elements first .. last, LPT_DRAWN at most.
    const uint32_t *of(int64_t first, int64_t last) {
        if (first < begin || last > end)
            draw(first, last);
        return words + (first - begin);
    }
};

// How the elements of blocks are rounded: what the loops over blocks call, a stretch at a time, so
// that they are compiled once for all modes and kinds of scales.
template <class T> class block_rounding {
  protected:
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    ~block_rounding() = default;

  public:
    // Largest magnitudes become scales `s`, and what multiplies in their place `t`, where it does.
    // Says whether all of them are usual: none asks for a loop of its own.
    virtual bool scale(U *s, U *t, int64_t count) const = 0;
    // What such a scale multiplies by.
    virtual double factor(U s) const = 0;
    // Elements first .. last, which lie in one block.
    virtual void within(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t) = 0;
    // The same of columns, each in a block of its own. `usual` only if all their scales are.
    virtual void across(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *t,
                        bool usual) = 0;
    // The blocks of `wide` elements that make up at .. end, likewise. `large`: y is another tensor
    // than x, and more than the cache holds.
    virtual void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s,
                       const U *t, bool usual, bool large) = 0;
};

// A scale is the shift << mantissa, to be added to the exponents of the cell; with low bits set it
// is one of the rare cases.
template <class T> class shifts : public block_rounding<T> {
  protected:
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    const lpt_blocks b;
    const lpt_rule &rule;
    const lpt_cell<T> cell;
    LPT_APART shifts(const lpt_blocks &blocks, const lpt_rule &r)
        : b(blocks), rule(r), cell(lpt_make_cell<T>(b.element, r, 0)), bump(lpt_bump<T>(b)) {
        lpt_movable<T>(b.element, cell, &low, &high);
    }
    ~shifts() = default;

    // Elements whose scales are usual: in one block; in a block each; in `count` blocks of `wide`
    // from `at` on, which is whole vectors (false where the mode has no such loop).
    virtual void span(const T *x, T *y, int64_t first, int64_t last, const U *s) = 0;
    virtual void spread(const T *x, T *y, int64_t first, int64_t last, const U *s) = 0;
    virtual bool equal(const T *x, T *y, int64_t at, int64_t count, int64_t wide, const U *s,
                       bool large) = 0;

  private:
    enum : U { POISONED = 1, OWN_CELL = 2, RARE = 3 };
    const U bump;
    int32_t low, high;

  public:
    LPT_APART bool scale(U *s, U *, int64_t count) const override {
        const lpt_blocks blocks = b;  // local copies: s may not alias them
        const U above = bump, inf = (U)(2 * C::bias + 1) << C::mantissa;
        const int32_t least = low, most = high;
        U any = 0;
        LPT_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) {
            const int32_t shift = lpt_shift<T>(blocks, above, s[i]);
            const U wide = (U)(typename C::sbits)shift;
            const U one =
                shift < least || shift > most ? wide << 2 | OWN_CELL : wide << C::mantissa;
            s[i] = s[i] >= inf ? (U)POISONED : one;
            any |= s[i];
        }
        return (any & RARE) == 0;
    }

    double factor(U s) const override {
        const int32_t places = s & OWN_CELL ? 2 : (int32_t)C::mantissa;
        const auto shift = (typename C::sbits)s >> places;
        return s == POISONED ? lpt_value<double>((uint64_t)4095 << 51) : ldexp(1.0, (int)shift);
    }

    void within(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *) override {
        (*s & RARE) ? rare(x, y, first, last, *s) : span(x, y, first, last, s);
    }

    void across(const T *x, T *y, int64_t first, int64_t last, const U *s, const U *,
                bool usual) override {
        if (usual)
            return spread(x, y, first, last, s);
        for (int64_t i = first; i < last;) {
            const int64_t from = i;
            const U one = s[from - first];
            if (one & RARE) {
                while (i < last && s[i - first] == one)
                    ++i;
                rare(x, y, from, i, one);
            } else {
                while (i < last && !(s[i - first] & RARE))
                    ++i;
                spread(x, y, from, i, s + (from - first));
            }
        }
    }

    void batch(const T *x, T *y, int64_t at, int64_t end, int64_t wide, const U *s, const U *t,
               bool usual, bool large) override {
        const int64_t whole = (end - at) / wide;
        if (usual && wide % 16 == 0 && equal(x, y, at, whole, wide, s, large))
            at += whole * wide, s += whole;
        for (; at < end; at += wide)
            within(x, y, at, at + wide < end ? at + wide : end, s++, t);
    }

  private:
    LPT_APART void rare(const T *x, T *y, int64_t first, int64_t last, U s) {
        if (s != POISONED) {
            const int32_t shift = (int32_t)((typename C::sbits)s >> 2);
            return run_cell(x, y, first, last, lpt_make_cell<T>(b.element, rule, shift), rule,
                            false);
        }
        for (int64_t i = first; i < last; ++i)
            y[i] = lpt_value<T>((U)(4 * C::bias + 3) << (C::mantissa - 1));
    }
};

// Of formats whose cells are plain.
template <class T, int MODE> class shifted final : public shifts<T> {
    typedef typename lpt_carrier<T>::bits U;
    random_words random;

  public:
    shifted(const lpt_blocks &blocks, const lpt_rule &r) : shifts<T>(blocks, r), random(r) {}

  private:
    static U one(U u, const lpt_cell<T> &c, U moved, uint32_t word) {
        if (MODE <= LPT_STOCHASTIC)
            return lpt_round_roomy<T, MODE, LPT_SATURATES>(u, lpt_move<T>(c, moved), word);
        return lpt_round<T, MODE, true>(u, lpt_move<T>(c, moved), word);
    }

    void span(const T *x, T *y, int64_t first, int64_t last, const U *s) override {
        steps<0>(x, y, first, last, s);
    }
    void spread(const T *x, T *y, int64_t first, int64_t last, const U *s) override {
        steps<1>(x, y, first, last, s);
    }
    bool equal(const T *x, T *y, int64_t at, int64_t count, int64_t wide, const U *s,
               bool large) override {
        if (MODE >= LPT_STOCHASTIC && count * wide > LPT_DRAWN)
            return false;
        if (large && MODE < LPT_STOCHASTIC && lpt_whole_lines(y + at, wide))
            wide == 32 ? past<32>(x, y, at, count, wide, s) : past<0>(x, y, at, count, wide, s);
        else if (wide == 32)
            widths<32>(x, y, at, count, wide, s);
        else
            widths<0>(x, y, at, count, wide, s);
        return true;
    }

    // `count` blocks of WIDE elements, or of `wide` where WIDE is 0.
    template <int WIDE>
    LPT_APART void widths(const T *x, T *y, int64_t at, int64_t count, int64_t wide, const U *s) {
        const lpt_cell<T> c = this->cell;  // a local copy: y may not alias it
        const int64_t width = WIDE ? WIDE : wide;
        const uint32_t *words = MODE < LPT_STOCHASTIC ? nullptr : random.of(at, at + count * width);
        for (int64_t k = 0; k < count; ++k, at += width) {
            const U only = s[k];
            LPT_INDEPENDENT
            for (int64_t i = 0; i < width; ++i)
                y[at + i] = lpt_value<T>(
                    one(lpt_bits(x[at + i]), c, only, MODE < LPT_STOCHASTIC ? 0 : words[i]));
            if (MODE >= LPT_STOCHASTIC)
                words += width;
        }
    }

    // The same, of blocks that are whole lines and not to be read soon.
    template <int WIDE>
    LPT_APART void past(const T *x, T *y, int64_t at, int64_t count, int64_t wide, const U *s) {
        const lpt_cell<T> c = this->cell;  // a local copy: y may not alias it
        const int64_t width = WIDE ? WIDE : wide;
        for (int64_t k = 0; k < count; ++k, at += width) {
            const U only = s[k];
            lpt_fill_lines(y, at, at + width, [=](int64_t i) {
                return lpt_value<T>(one(lpt_bits(x[i]), c, only, 0));
            });
        }
    }

    // Elements whose scales lie STEP apart.
    template <int STEP>
    LPT_APART void steps(const T *x, T *y, int64_t first, int64_t last, const U *s) {
        const lpt_cell<T> c = this->cell;  // a local copy: y may not alias it
        const U only = *s;
        if (MODE < LPT_STOCHASTIC) {
            LPT_INDEPENDENT
            for (int64_t i = first; i < last; ++i)
                y[i] = lpt_value<T>(one(lpt_bits(x[i]), c, STEP ? s[i - first] : only, 0));
        } else {
            for (int64_t from = first; from < last;) {
                const int64_t to = from + LPT_DRAWN < last ? from + LPT_DRAWN : last;
                const uint32_t *words = random.of(from, to);
                LPT_INDEPENDENT
                for (int64_t i = from; i < to; ++i)
                    y[i] = lpt_value<T>(
                        one(lpt_bits(x[i]), c, STEP ? s[i - first] : only, words[i - from]));
                from = to;
            }
        }
    }
};

// Of all others, by the loops of the scalar formats.
template <class T> class shifted_any final : public shifts<T> {
    typedef typename lpt_carrier<T>::bits U;

  public:
    shifted_any(const lpt_blocks &blocks, const lpt_rule &r) : shifts<T>(blocks, r) {}

  private:
    void span(const T *x, T *y, int64_t first, int64_t last, const U *s) override {
        run_cell(x, y, first, last, lpt_move<T>(this->cell, *s), this->rule, false);
    }
    void spread(const T *x, T *y, int64_t first, int64_t last, const U *s) override {
        for (int64_t i = first; i < last;) {
            const int64_t from = i;
            while (i < last && s[i - first] == s[from - first])
                ++i;
            run_cell(x, y, from, i, lpt_move<T>(this->cell, s[from - first]), this->rule, false);
        }
    }
    bool equal(const T *, T *, int64_t, int64_t, int64_t, const U *, bool) override {
        return false;
    }
};

}  // namespace
