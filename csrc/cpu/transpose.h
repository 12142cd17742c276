/* transpose.h - matrices turned over: the keys of attention, the panels of weights.
 *
 *   to[c][r] = from[r][c],   r < rows, c < cols
 *
 * Square blocks of W x W in registers: a step for each bit s of a lane's number exchanges the lanes
 * that have it in row r with those that lack it in row r + s. Moves bits, computes nothing.
 */
#ifndef R1_TRANSPOSE_H
#define R1_TRANSPOSE_H

#include "bf16.h"
#include "simd.h"

#if W == 16
#define LANE_BITS 4
#elif W == 8
#define LANE_BITS 3
#else
#define LANE_BITS 2
#endif

#define TRANSPOSE_INLINE static inline __attribute__((always_inline))

/* The lanes of a without bit s, and in between those of b, moved up by s (high 0); or the lanes of b
 * with bit s, and in between those of a, moved down (high 1). */
TRANSPOSE_INLINE vf
vf_exchange(vf a, vf b, const int s, const int high)
{
#if defined(__AVX512F__)
    const vi lane = vi_iota(), other = lane & s;
    const vi index = high ? lane + s - other + other * (W / s) : lane - other + other * (W / s);
    return (vf)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
#else
    vf from = high ? a : b, moved;
    for (int i = 0; i < W; i++) {
        moved[i] = from[i ^ s];
    }
    const vi with = (vi_iota() & s) != 0;
    return high ? vf_select(with, b, moved) : vf_select(with, moved, a);
#endif
}

TRANSPOSE_INLINE void
transpose_block(vf *x)
{
#pragma GCC unroll 4
    for (int bit = 0; bit < LANE_BITS; bit++) {
        const int s = 1 << bit;
#pragma GCC unroll 16
        for (int r = 0; r < W; r++) {
            if ((r & s) == 0) {
                vf a = x[r], b = x[r + s];
                x[r] = vf_exchange(a, b, s, 0);
                x[r + s] = vf_exchange(a, b, s, 1);
            }
        }
    }
}

/* to (cols, width; row stride ld_to), zeros in its columns rows .. width - 1. With `pairs`, two lines
 * of it become one of pairs (bf16.h), and an odd last one is beside 0. */
TRANSPOSE_INLINE void
transpose_any(float *to, size_t ld_to, size_t width, const float *from, size_t ld_from, size_t rows,
              size_t cols, const int pairs)
{
    for (size_t c0 = 0; c0 < cols; c0 += W) {
        size_t left = cols - c0;
        for (size_t r0 = 0; r0 < width; r0 += W) {
            const float *x0 = from + r0 * ld_from + c0;
            float *line = to + (pairs ? c0 / 2 : c0) * ld_to + r0;
            vf x[W];
#pragma GCC unroll 16
            for (size_t r = 0; r < W; r++) {
                x[r] = r0 + r < rows ? vf_load_left(x0 + r * ld_from, left) : vf_set1(0.0f);
            }
            transpose_block(x);
#pragma GCC unroll 16
            for (size_t i = 0; i < W; i += pairs ? 2 : 1) {
                if (i < left) {
                    vf y = pairs ? (vf)vf_bf16_pair(x[i], x[i + 1]) : x[i];
                    vf_store_left(line + (pairs ? i / 2 : i) * ld_to, y, width - r0);
                }
            }
        }
    }
}

static inline void
transpose_floats(float *to, size_t ld_to, size_t width, const float *from, size_t ld_from,
                 size_t rows, size_t cols)
{
    transpose_any(to, ld_to, width, from, ld_from, rows, cols, 0);
}

static inline void
transpose_pairs(u32_u *to, size_t ld_to, size_t width, const float *from, size_t ld_from,
                size_t rows, size_t cols)
{
    transpose_any((float *)to, ld_to, width, from, ld_from, rows, cols, 1);
}

#endif
