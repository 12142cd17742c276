/* matmul_kernel.h - one tile of a matrix product: MR rows x two vectors of columns in registers.
 *
 *   c[r][j] = chain over k ascending of fma(a[r][k], b[k][j], .),  starting from init[r][j]
 *
 * Every element is a chain of its own, so the number of rows of a tile cannot change a bit. AVX-512
 * has 32 registers: 12 x 2 accumulators, two of b, and the broadcast of a as a memory operand; AVX2
 * has 16: 6 x 2; the baseline 4 x 2.
 *
 * In bf16 (bf16.h) a row of b is a row of pairs, two steps of the sum, and so is an element of a where
 * the tier has the instruction; elsewhere a holds rounded floats. Knows nothing about experts or
 * tasks. */
#ifndef R1_MATMUL_KERNEL_H
#define R1_MATMUL_KERNEL_H

#include "bf16.h"
#include "simd.h"

#if defined(__AVX512F__)
#define TILE_ROWS 12
#elif defined(__AVX2__) && defined(__FMA__)
#define TILE_ROWS 6
#else
#define TILE_ROWS 4
#endif
#define TILE_COLS (2 * W)

/* Strides in floats, or pairs. a is (rows, K): element (r, k) at a + r a_row + k a_k. K counts rows
 * of b. */
typedef struct {
    float *c;
    const float *init, *a, *b;
    size_t ldc, ld_init, a_row, a_k, ldb, K;
    int bf16;
} tile_args;

/* One step: c[r] += a[r] b. a's row pointers are shared by threes. */
static inline __attribute__((always_inline)) void
tile_step(vf (*c)[2], const float *const *a, const size_t rows, const size_t a_row, const float *b)
{
    vf b0 = vf_load(b), b1 = vf_load(b + W);
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        vf x = vf_set1(a[r / 3][r % 3 * a_row]);
        c[r][0] = vf_fma(x, b0, c[r][0]);
        c[r][1] = vf_fma(x, b1, c[r][1]);
    }
}

/* The two steps of a row of pairs; a moves on between them where it holds floats. */
static inline __attribute__((always_inline)) void
tile_pair(vf (*c)[2], const float **a, const size_t rows, const size_t a_row, const size_t a_k,
          const float *b)
{
#if BF16_PAIRS
    (void)a_k;
    vu b0 = *(const vu_u *)b, b1 = *(const vu_u *)(b + W);
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        const float *x = a[r / 3] + r % 3 * a_row;
        c[r][0] = vf_dot2(c[r][0], x, b0);
        c[r][1] = vf_dot2(c[r][1], x, b1);
    }
#else
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vf b0 = vf_half(b, half), b1 = vf_half(b + W, half);
#pragma GCC unroll 12
        for (size_t r = 0; r < rows; r++) {
            vf x = vf_set1(a[r / 3][r % 3 * a_row + (size_t)half * a_k]);
            c[r][0] = vf_fma_bf16(x, b0, c[r][0]);
            c[r][1] = vf_fma_bf16(x, b1, c[r][1]);
        }
    }
#endif
}

/* rows is a constant at every call, so the loops over it unroll and c stays in registers. The row
 * pointers are shared by threes: base, base + stride, base + 2 stride are one addressing mode. */
static inline __attribute__((always_inline)) void
tile_run(const tile_args *t, const size_t rows, const size_t a_row, const size_t a_k,
         const int bf16)
{
    vf c[TILE_ROWS][2];
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        c[r][0] = vf_load(t->init + r * t->ld_init);
        c[r][1] = vf_load(t->init + r * t->ld_init + W);
    }
    const float *a[(TILE_ROWS + 2) / 3];
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r += 3) {
        a[r / 3] = t->a + r * a_row;
    }
    const float *b = t->b;
    const size_t ldb = t->ldb, advance = bf16 && !BF16_PAIRS ? 2 * a_k : a_k;
    for (size_t k = t->K; k > 0; k--) {
        if (bf16) {
            tile_pair(c, a, rows, a_row, a_k, b);
        } else {
            tile_step(c, a, rows, a_row, b);
        }
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r += 3) {
            a[r / 3] += advance;
        }
        b += ldb;
    }
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        vf_store(t->c + r * t->ldc, c[r][0]);
        vf_store(t->c + r * t->ldc + W, c[r][1]);
    }
}

/* The strides of a are constants too where they are 1. */
static inline __attribute__((always_inline)) void
tile_form(const tile_args *t, const size_t rows)
{
    if (t->bf16 && t->a_k == 1) {
        tile_run(t, rows, t->a_row, 1, 1);
    } else if (t->bf16) {
        tile_run(t, rows, 1, t->a_k, 1);
    } else if (t->a_k == 1) {
        tile_run(t, rows, t->a_row, 1, 0);
    } else {
        tile_run(t, rows, 1, t->a_k, 0);
    }
}

/* rows <= TILE_ROWS; a_row or a_k is 1. */
static void
tile_fma(const tile_args *t, size_t rows)
{
    switch (rows) {
#if TILE_ROWS == 12
    case 12: tile_form(t, 12); break;
    case 11: tile_form(t, 11); break;
    case 10: tile_form(t, 10); break;
    case 9: tile_form(t, 9); break;
    case 8: tile_form(t, 8); break;
    case 7: tile_form(t, 7); break;
#endif
#if TILE_ROWS >= 6
    case 6: tile_form(t, 6); break;
    case 5: tile_form(t, 5); break;
#endif
    case 4: tile_form(t, 4); break;
    case 3: tile_form(t, 3); break;
    case 2: tile_form(t, 2); break;
    case 1: tile_form(t, 1); break;
    }
}

#endif
