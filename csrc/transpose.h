// Rows for columns, by squares that registers hold.
#pragma once
#include "intrinsics.h"
#include "stream.h"

// y[column * y_row + row] = x[row * x_row + column] of a square of LPT_SQUARE bytes a side.
#ifdef __AVX2__
enum { LPT_SQUARE = 32 };
static inline void lpt_transpose_square(const float *x, int64_t x_row, float *y, int64_t y_row) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i)
        a[i] = _mm256_loadu_ps(x + i * x_row);
    for (int i = 0; i < 8; i += 2) {  // pairs of rows, then pairs of pairs, then halves
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(y + i * y_row, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(y + (i + 4) * y_row, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}
static inline void lpt_transpose_square(const double *x, int64_t x_row, double *y, int64_t y_row) {
    __m256d a[4], b[4];
    for (int i = 0; i < 4; ++i)
        a[i] = _mm256_loadu_pd(x + i * x_row);
    for (int i = 0; i < 4; i += 2) {
        b[i] = _mm256_unpacklo_pd(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_pd(a[i], a[i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        _mm256_storeu_pd(y + i * y_row, _mm256_permute2f128_pd(b[i], b[i + 2], 0x20));
        _mm256_storeu_pd(y + (i + 2) * y_row, _mm256_permute2f128_pd(b[i], b[i + 2], 0x31));
    }
}
#else
enum { LPT_SQUARE = 16 };
template <class T>
static inline void lpt_transpose_square(const T *x, int64_t x_row, T *y, int64_t y_row) {
    for (int c = 0; c < LPT_SQUARE / (int)sizeof(T); ++c)
        for (int r = 0; r < LPT_SQUARE / (int)sizeof(T); ++r)
            y[c * y_row + r] = x[r * x_row + c];
}
#endif

// The same of any number of rows and columns. The matrix whose rows lie further apart is met row by
// row, whole lines at a time.
template <class T>
static inline void lpt_transpose(const T *x, int64_t x_row, T *y, int64_t y_row, int64_t rows,
                                 int64_t columns) {
    enum { SIDE = LPT_SQUARE / sizeof(T) };
    const int64_t high = rows / SIDE * SIDE, wide = columns / SIDE * SIDE;
    const bool along_x = x_row > y_row;
    const int64_t outer = along_x ? high : wide, inner = along_x ? wide : high;
    for (int64_t i = 0; i < outer; i += SIDE)
        for (int64_t j = 0; j < inner; j += SIDE) {
            const int64_t r = along_x ? i : j, c = along_x ? j : i;
            lpt_transpose_square(x + r * x_row + c, x_row, y + c * y_row + r, y_row);
        }
    for (int64_t c = wide; c < columns; ++c)
        for (int64_t r = 0; r < high; ++r)
            y[c * y_row + r] = x[r * x_row + c];
    for (int64_t r = high; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c)
            y[c * y_row + r] = x[r * x_row + c];
}
