// The loops that count what a rounding did. Compiled once per instruction set, with LPT_CENSUS
// naming the result; threads and the choice of the set are in census_library.cpp.
#include "census.h"
#include "grid.h"
#include <math.h>

// Whether a vector holds so many bytes that comparing them all with one exponent after the other is
// faster than counting each where it belongs.
#if defined(__GNUC__) && defined(__AVX512BW__)
#define LPT_BYTES 64
#elif defined(__GNUC__) && defined(__AVX2__)
#define LPT_BYTES 32
#endif

namespace {

const int LANES = 32;    // sums side by side
const int BLOCK = 1024;  // elements whose steps follow each other while they are in the cache
const int64_t SPAN = (int64_t)1 << 30;  // elements that a tally has room for

// Tallies of exponent fields FIRST .. FIRST + SIZE - 1: all of fp32, of fp64 those of the binades
// and one beyond on either side, where the rest goes.
template <class T> struct fields;
template <> struct fields<float> {
    enum { FIRST = 0, SIZE = 256 };
};
template <> struct fields<double> {
    enum { FIRST = 1023 + LPT_LOWEST - 1, SIZE = LPT_BINADES + 2 };
};

// floor(log2 x) of a subnormal number of the carrier, given its bits.
template <class T> int binade_of_subnormal(typename lpt_carrier<T>::bits u) {
    int binade = 1 - lpt_carrier<T>::bias - lpt_carrier<T>::mantissa;
    while (u >>= 1)
        binade++;
    return binade;
}

// Everything is decided on bits, so that a machine that takes subnormals for zero counts the same.
template <class T> struct counter {
    typedef lpt_carrier<T> C;
    typedef typename C::bits U;
    typedef typename C::sbits I;
    typedef fields<T> F;
    // Neighbours have like exponents: with several tallies no increment waits for the last. A few
    // elements are faster counted than many tallies added.
    enum { TALLIES = 8, FEW = 1024 };

    const U sign = (U)1 << (C::width - 1);
    const I inf = (I)(U)((U)(2 * C::bias + 1) << C::mantissa);
    lpt_census &found;
    const I highest, lowest, tiny;
    const int tallies;
    int64_t zeros = 0;  // before they were rounded
    uint32_t tally[TALLIES][F::SIZE];

    counter(lpt_census &census, int64_t n)
        : found(census), highest((I)lpt_bits((T)census.highest)),
          lowest((I)lpt_bits((T)census.lowest)), tiny((I)lpt_bits((T)census.tiny)),
          tallies(n < FEW ? 1 : TALLIES) {
        memset(tally, 0, tallies * sizeof tally[0]);
    }

    // 1. what became of them: magnitudes are signed integers, and yes is all ones, so that the loop
    // is a vector's. Whether all are finite on both sides, and no x is subnormal on the carrier.
    void kinds(const T *x, const T *y, int n, bool &finite, bool &normal) {
        finite = inside(x, y, n, normal);
        if (!finite)
            anywhere(x, y, n, finite, normal);
    }

    // The usual case: whether all of x lie within the format, and y is finite; counted only then.
    bool inside(const T *x, const T *y, int n, bool &normal) {
        const I least = highest < lowest ? highest : lowest, limit = least < inf ? least : inf - 1;
        I top = 0, far = 0, zero = 0, underflow = 0, small_result = 0, nothing = 0, small = 0;
        for (int i = 0; i < n; i++) {
            const I before = (I)(lpt_bits(x[i]) & ~sign), after = (I)(lpt_bits(y[i]) & ~sign);
            top = before > top ? before : top;
            far = after > far ? after : far;
            zero += -(I)(after == 0);
            underflow += -(I)(after == 0) & -(I)(before != 0);
            small_result += -(I)(after < tiny);
            nothing += -(I)(before == 0);
            small += -(I)(before < (I)((U)1 << C::mantissa));
        }
        if (top > limit || far >= inf)
            return false;
        found.zero -= zero;
        found.underflow -= underflow;
        found.subnormal -= tiny > 0 ? small_result - zero : 0;  // zero is less than any other tiny
        zeros -= nothing;
        normal = small == nothing;
        return true;
    }

    void anywhere(const T *x, const T *y, int n, bool &finite, bool &normal) {
        I zero = 0, underflow = 0, subnormal = 0, saturated = 0, overflow = 0, nonfinite = 0;
        I nothing = 0, small = 0;
        for (int i = 0; i < n; i++) {
            const U u = lpt_bits(x[i]);
            const I before = (I)(u & ~sign), after = (I)(lpt_bits(y[i]) & ~sign);
            const I limit = (I)u < 0 ? lowest : highest;
            const I some = -(I)(before != 0), known = -(I)(before < inf), kept = -(I)(after < inf);
            const I none = -(I)(after == 0);
            zero += none;
            underflow += none & some & known;
            subnormal += -(I)(after < tiny) & ~none;
            saturated += known & kept & -(I)(before > limit);
            overflow += known & ~kept;
            nonfinite += ~known;
            nothing += ~some;
            small += -(I)(before < (I)((U)1 << C::mantissa));
        }
        found.zero -= zero;
        found.underflow -= underflow;
        found.subnormal -= subnormal;
        found.saturated -= saturated;
        found.overflow -= overflow;
        found.nonfinite -= nonfinite;
        zeros -= nothing;
        finite = (nonfinite | overflow) == 0;
        normal = small == nothing;
    }

    // 2. signal and noise, in sums of a fixed order
    void sums(const T *x, const T *y, int n, bool finite) {
        T a[BLOCK], b[BLOCK];  // what is finite on both sides, and zeros
        if (!finite) {
            for (int i = 0; i < n; i++) {
                const bool both =
                    (I)(lpt_bits(x[i]) & ~sign) < inf && (I)(lpt_bits(y[i]) & ~sign) < inf;
                a[i] = both ? x[i] : 0;
                b[i] = both ? y[i] : 0;
            }
            x = a, y = b;
        }
        double signal[LANES] = {}, noise[LANES] = {};
        for (int i = 0; i < n; i += LANES) {
            const int wide = n - i < LANES ? n - i : LANES;
            for (int j = 0; j < wide; j++) {
                const double value = (double)x[i + j], error = value - (double)y[i + j];
                signal[j] += value * value;
                noise[j] += error * error;
            }
        }
        for (int j = 0; j < LANES; j++)
            found.sums[0] += signal[j], found.sums[1] += noise[j];
    }

    // 3. their exponents
    void exponents(const T *x, int n, bool normal) {
        int i = compared(x, n) ? n : 0;
        for (; tallies == TALLIES && i + TALLIES <= n; i += TALLIES)
            for (int j = 0; j < TALLIES; j++)
                tally[j][field(x[i + j])]++;
        for (; i < n; i++)
            tally[0][field(x[i])]++;
        if (F::FIRST == 0 && !normal)
            for (i = 0; i < n; i++) {
                const U before = lpt_bits(x[i]) & ~sign;
                if (before != 0 && before < (U)1 << C::mantissa)
                    found.binades[binade_of_subnormal<T>(before) - LPT_LOWEST]++;
            }
    }
    // All of a block of fp32, if its exponents are few.
    bool compared(const T *x, int n) {
#ifdef LPT_BYTES
        if (sizeof(T) != sizeof(float) || n != BLOCK)
            return false;
        typedef uint8_t bytes __attribute__((vector_size(LPT_BYTES)));
        uint8_t at[BLOCK], below = 255, top = 0;  // below: the least field but 0, less 1
        for (int i = 0; i < BLOCK; i++)
            at[i] = (uint8_t)(lpt_bits(x[i]) >> C::mantissa);
        for (int i = 0; i < BLOCK; i++) {
            const uint8_t less = (uint8_t)(at[i] - 1);
            below = less < below ? less : below;
            top = at[i] > top ? at[i] : top;
        }
        if (top - below > LPT_BYTES * 3 / 8)
            return false;
        uint32_t seen = 0;
        for (int field = below + 1; field <= top; field++) {
            const bytes same = bytes{} + (uint8_t)field;
            bytes counts = {};
            for (int i = 0; i < BLOCK; i += LPT_BYTES) {
                bytes some;
                memcpy(&some, at + i, sizeof some);
                counts -= (bytes)(some == same);  // yes is all ones
            }
            uint32_t sum = 0;
            for (int j = 0; j < LPT_BYTES; j++)
                sum += counts[j];
            tally[0][field] += sum;
            seen += sum;
        }
        tally[0][0] += BLOCK - seen;
        return true;
#else
        (void)x, (void)n;
        return false;
#endif
    }
    static int field(T x) {
        int at = (int)(lpt_bits(x) >> C::mantissa) & (2 * C::bias + 1);
        if (F::FIRST == 0)
            return at;
        at -= F::FIRST;
        return at < 0 ? 0 : at >= F::SIZE ? F::SIZE - 1 : at;
    }

    void count(const T *x, const T *y, int n) {
        bool finite, normal;
        kinds(x, y, n, finite, normal);
        sums(x, y, n, finite);
        exponents(x, n, normal);
    }

    // The tallies, as binades. At their ends stand zeros and what is not finite, and beside them
    // on fp64 what counts to the last binades; those below on fp32 have been counted.
    void finish(int64_t nonfinite) {
        int64_t sum[F::SIZE] = {};
        for (int t = 0; t < tallies; t++)
            for (int at = 0; at < F::SIZE; at++)
                sum[at] += tally[t][at];
        for (int at = 1; at < F::SIZE - 1; at++)
            found.binades[at + F::FIRST - C::bias - LPT_LOWEST] += sum[at];
        if (F::FIRST != 0) {
            found.binades[0] += sum[0] - zeros;
            found.binades[LPT_BINADES - 1] += sum[F::SIZE - 1] - nonfinite;
        }
    }
};

// work(counter, from, to) for the blocks of first .. last.
template <class T, class Work>
void each_block(int64_t first, int64_t last, lpt_census &found, Work work) {
    for (int64_t span = first; span < last; span += SPAN) {
        const int64_t end = last - span < SPAN ? last : span + SPAN, before = found.nonfinite;
        counter<T> c(found, end - span);
        for (int64_t from = span; from < end; from += BLOCK)
            work(c, from, end - from < BLOCK ? end : from + BLOCK);
        c.finish(found.nonfinite - before);
    }
}

template <class T>
void count(const T *x, const T *y, int64_t first, int64_t last, lpt_census &found) {
    each_block<T>(first, last, found, [=](counter<T> &c, int64_t from, int64_t to) {
        c.count(x + from, y + from, (int)(to - from));
    });
}

template <class T>
void round(const T *x, T *y, int64_t first, int64_t last, const lpt_rounder<T> &rounder,
           lpt_census &found) {
    each_block<T>(first, last, found, [=](counter<T> &c, int64_t from, int64_t to) {
        T here[BLOCK];
        // writes here[0] .. here[to - from - 1]
        rounder.round(rounder.how, x, here - from, from, to);
        c.count(x + from, here, (int)(to - from));
        if (y)
            memcpy(y + from, here, (to - from) * sizeof(T));
    });
}

template <class T>
void updates(const T *start, const T *before, const T *after, int64_t first, int64_t last,
             lpt_updates &found) {
    double along[LANES] = {}, whole[LANES] = {};
    int64_t wanted = 0, lost = 0;
    for (int64_t i = first; i < last; i += LANES) {
        const int wide = last - i < LANES ? (int)(last - i) : LANES;
        int32_t moves = 0, stays = 0;
        for (int j = 0; j < wide; j++) {
            const T was = start[i + j], wish = before[i + j], is = after[i + j];
            moves += wish != was;
            stays += (wish != was) & (is == was);
            const double step = (double)(T)(wish - was), made = (double)(T)(is - was);
            along[j] += made * step;
            whole[j] += step * step;
        }
        wanted += moves;
        lost += stays;
    }
    found.wanted += wanted;
    found.lost += lost;
    for (int j = 0; j < LANES; j++)
        found.sums[0] += along[j], found.sums[1] += whole[j];
}

template <class T>
void ask_updates(const T *start, const T *now, int64_t first, int64_t last,
                 const lpt_rounder<T> &hold, const lpt_rounder<T> &write, lpt_updates &found) {
    for (int64_t from = first; from < last; from += BLOCK) {
        const int n = last - from < BLOCK ? (int)(last - from) : BLOCK;
        T held[BLOCK], wanted[BLOCK], after[BLOCK];
        hold.round(hold.how, start, held - from, from, from + n);
        for (int i = 0; i < n; i++)
            wanted[i] = held[i] + (now[from + i] - start[from + i]);
        write.round(write.how, wanted - from, after - from, from, from + n);
        updates<T>(held, wanted, after, 0, n, found);
    }
}

}  // namespace

extern const lpt_censuses LPT_CENSUS = {
    {count<float>, round<float>, updates<float>, ask_updates<float>},
    {count<double>, round<double>, updates<double>, ask_updates<double>}};
