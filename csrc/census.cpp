// Counts what a rounding did to the elements of a tensor: one pass, no memory of its own.
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define LPT_EXPORT extern "C" __declspec(dllexport)
#else
#define LPT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

const int COUNTS = 6, BLOCK = 1024;
const int LOWEST = -150, HIGHEST = 128;  // binades; what lies beyond counts to the last ones

template <class T> struct bits_of;
template <> struct bits_of<float> {
    typedef uint32_t U;
    typedef int32_t I;
    static const int mantissa = 23, bias = 127;
};
template <> struct bits_of<double> {
    typedef uint64_t U;
    typedef int64_t I;
    static const int mantissa = 52, bias = 1023;
};

template <class T> typename bits_of<T>::U bits(T x) {
    typename bits_of<T>::U u;
    memcpy(&u, &x, sizeof u);
    return u;
}

// floor(log2 x) of a subnormal number of the carrier, given its bits.
template <class T> int binade_of_subnormal(typename bits_of<T>::U u) {
    int binade = 1 - bits_of<T>::bias - bits_of<T>::mantissa;
    while (u >>= 1)
        binade++;
    return binade;
}

// Everything is decided on bits, so that a machine that takes subnormals for zero counts the same.
template <class T>
void census(const T *x, const T *y, int64_t n, const double *limits, int64_t *counts, double *sums,
            int64_t *binades) {
    typedef bits_of<T> B;
    typedef typename B::U U;
    typedef typename B::I I;
    const U sign = U(1) << (8 * sizeof(T) - 1);
    const I inf = bits(T(INFINITY));
    const I highest = bits(T(limits[0])), lowest = bits(T(limits[1])), tiny = bits(T(limits[2]));
    const auto count = [&](int field, int64_t more, int binade) {
        if (field == int(inf >> B::mantissa))
            return;
        binade = binade < LOWEST ? LOWEST : binade > HIGHEST ? HIGHEST : binade;
        binades[binade - LOWEST] += more;
    };
    // Neighbours have like exponents: two tallies keep one increment from waiting for the last.
    const int fields = int(inf >> B::mantissa) + 1;
    static_assert(sizeof(T) <= 8, "a tally has room for the exponents of float64");
    uint32_t tally[2][2048];
    for (int64_t first = 0; first < n; first += 1 << 20) {
        const int64_t last = n - first < 1 << 20 ? n : first + (1 << 20);
        memset(tally[0], 0, fields * sizeof(uint32_t));
        memset(tally[1], 0, fields * sizeof(uint32_t));
        for (int64_t block = first; block < last; block += BLOCK) {
            const int wide = last - block < BLOCK ? int(last - block) : BLOCK;
            const T *p = x + block, *q = y + block;
            // 1. what became of them: magnitudes are signed integers, and all counters as wide, so
            // that the loop is a vector's
            I zero = 0, underflow = 0, subnormal = 0, saturated = 0, overflow = 0, nonfinite = 0;
            for (int i = 0; i < wide; i++) {
                const U u = bits(p[i]);
                const I before = u & ~sign, after = bits(q[i]) & ~sign;
                const I limit = highest ^ ((highest ^ lowest) & -I(u >> (8 * sizeof(T) - 1)));
                const I finite = before < inf, kept = after < inf, none = after == 0;
                zero += none;
                underflow += none & I(before != 0) & finite;
                subnormal += I(after < tiny) & (none ^ 1);
                nonfinite += finite ^ 1;
                overflow += finite & (kept ^ 1);
                saturated += finite & kept & I(before > limit);
            }
            const I found[COUNTS] = {zero, underflow, subnormal, saturated, overflow, nonfinite};
            for (int i = 0; i < COUNTS; i++)
                counts[i] += int64_t(found[i]);
            // 2. signal and noise, in four sums of a fixed order
            double signal[4] = {}, noise[4] = {};
            T a[BLOCK], b[BLOCK];  // what is finite on both sides, and zeros
            const T *v = p, *w = q;
            if (nonfinite + overflow != 0) {
                for (int i = 0; i < wide; i++) {
                    const bool both = I(bits(p[i]) & ~sign) < inf && I(bits(q[i]) & ~sign) < inf;
                    a[i] = both ? p[i] : 0;
                    b[i] = both ? q[i] : 0;
                }
                v = a, w = b;
            }
            for (int i = 0; i < wide; i++) {
                const double value = double(v[i]), error = value - double(w[i]);
                signal[i & 3] += value * value;
                noise[i & 3] += error * error;
            }
            sums[0] += signal[0] + signal[1] + signal[2] + signal[3];
            sums[1] += noise[0] + noise[1] + noise[2] + noise[3];
            // 3. their exponents
            for (int i = 0; i < wide; i++) {
                const U before = bits(p[i]) & ~sign;
                tally[i & 1][before >> B::mantissa]++;
                // one comparison that is nearly never true: a test for zero would be guessed wrong
                if (U(before - 1) < (U(1) << B::mantissa) - 1)
                    count(0, 1, binade_of_subnormal<T>(before));
            }
        }
        for (int field = 1; field < fields; field++)
            count(field, tally[0][field] + tally[1][field], field - B::bias);
    }
}

}  // namespace

// Adds to counts[6], sums[2] and binades[279]; limits are the largest value, minus the smallest,
// and the smallest normal.
LPT_EXPORT void lpt_census_f32(const float *x, const float *y, int64_t n, const double *limits,
                               int64_t *counts, double *sums, int64_t *binades) {
    census(x, y, n, limits, counts, sums, binades);
}
LPT_EXPORT void lpt_census_f64(const double *x, const double *y, int64_t n, const double *limits,
                               int64_t *counts, double *sums, int64_t *binades) {
    census(x, y, n, limits, counts, sums, binades);
}
