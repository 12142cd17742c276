/* matmul_kernel.h - one tile of a matrix product: rows x panels of 32 columns in registers.
 *
 *   c[r][j] = chain over k ascending of fma(a[r][k], b[k][j], .),  starting from init[r][j]
 *
 * Every element is a chain of its own, so neither the rows of a tile nor its panels can change a
 * bit. AVX-512 has 32 registers: 12 rows x 2 accumulators, two of b, and the broadcast of a as a
 * memory operand; AVX2 has 16: 6 x 2; the baseline 4 x 2. A chain takes a step every four cycles or
 * so, hence few rows take several panels at a time, as many as keep the multipliers busy.
 *
 * In bf16 (bf16.h) a row of b is a row of pairs, two steps of the sum, and so is an element of a
 * where the tier has the instruction; elsewhere a holds rounded floats. Knows nothing about experts
 * or tasks. */
#ifndef R1_MATMUL_KERNEL_H
#define R1_MATMUL_KERNEL_H

#include "bf16.h"
#include "cpu.h"
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
 * of b; panel q of b, c and init begins at q b_panel, 32 q and q init_panel. `ahead`: what will be
 * read next, a row of 32 for each row of b. */
typedef struct {
    float *c;
    const float *init, *a, *b, *ahead;
    size_t ldc, ld_init, init_panel, a_row, a_k, ldb, b_panel, ld_ahead, K;
    int bf16;
} tile_args;

enum { TILE_WIDE = TILE_COLS < R1_PANEL ? 1 : 4 }; /* panels of the widest tile */

/* Panels at a time for so many rows: 8 or more chains where there are registers for them. */
static inline size_t
tile_panels(size_t rows)
{
    return rows <= 2 ? TILE_WIDE : rows <= TILE_ROWS / 2 && TILE_WIDE > 1 ? 2 : 1;
}

/* One step: c[r] += a[r] b. a's row pointers are shared by threes. */
static inline __attribute__((always_inline)) void
tile_step(vf (*c)[2 * TILE_WIDE], const float *const *a, const size_t rows, const size_t vectors,
          const size_t a_row, const float *b, const size_t b_panel)
{
    vf row[2 * TILE_WIDE];
#pragma GCC unroll 8
    for (size_t v = 0; v < vectors; v++) {
        row[v] = vf_load(b + v / 2 * b_panel + v % 2 * W);
    }
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        vf x = vf_set1(a[r / 3][r % 3 * a_row]);
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) {
            c[r][v] = vf_fma(x, row[v], c[r][v]);
        }
    }
}

/* The two steps of a row of pairs; a moves on between them where it holds floats. */
static inline __attribute__((always_inline)) void
tile_pair(vf (*c)[2 * TILE_WIDE], const float *const *a, const size_t rows, const size_t vectors,
          const size_t a_row, const size_t a_k, const float *b, const size_t b_panel)
{
#if BF16_PAIRS
    (void)a_k;
    vu row[2 * TILE_WIDE];
#pragma GCC unroll 8
    for (size_t v = 0; v < vectors; v++) {
        row[v] = *(const vu_u *)(b + v / 2 * b_panel + v % 2 * W);
    }
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
        const float *x = a[r / 3] + r % 3 * a_row;
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) {
            c[r][v] = vf_dot2(c[r][v], x, row[v]);
        }
    }
#else
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vf row[2 * TILE_WIDE];
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) {
            row[v] = vf_half(b + v / 2 * b_panel + v % 2 * W, half);
        }
#pragma GCC unroll 12
        for (size_t r = 0; r < rows; r++) {
            vf x = vf_set1(a[r / 3][r % 3 * a_row + (size_t)half * a_k]);
#pragma GCC unroll 8
            for (size_t v = 0; v < vectors; v++) {
                c[r][v] = vf_fma_bf16(x, row[v], c[r][v]);
            }
        }
    }
#endif
}

/* rows and panels are constants at every call, so the loops over them unroll and c stays in
 * registers. The row pointers are shared by threes: base, base + stride, base + 2 stride are one
 * addressing mode. */
static inline __attribute__((always_inline)) void
tile_run(const tile_args *t, const size_t rows, const size_t vectors, const size_t a_row,
         const size_t a_k, const int bf16)
{
    vf c[TILE_ROWS][2 * TILE_WIDE];
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) {
            c[r][v] = vf_load(t->init + r * t->ld_init + v / 2 * t->init_panel + v % 2 * W);
        }
    }
    const float *a[(TILE_ROWS + 2) / 3];
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r += 3) {
        a[r / 3] = t->a + r * a_row;
    }
    const float *b = t->b, *ahead = t->ahead;
    const size_t ldb = t->ldb, b_panel = t->b_panel, ld_ahead = t->ld_ahead;
    const size_t advance = bf16 && !BF16_PAIRS ? 2 * a_k : a_k;
    for (size_t k = t->K; k > 0; k--) {
        if (bf16) {
            tile_pair(c, a, rows, vectors, a_row, a_k, b, b_panel);
        } else {
            tile_step(c, a, rows, vectors, a_row, b, b_panel);
        }
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r += 3) {
            a[r / 3] += advance;
        }
        b += ldb;
#pragma GCC unroll 4
        for (size_t v = 0; v < vectors; v += 2) {
            __builtin_prefetch(ahead + v / 2 * b_panel);
            __builtin_prefetch(ahead + v / 2 * b_panel + R1_PANEL / 2);
        }
        ahead += ld_ahead;
    }
#pragma GCC unroll 12
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 8
        for (size_t v = 0; v < vectors; v++) {
            vf_store(t->c + r * t->ldc + v / 2 * R1_PANEL + v % 2 * W, c[r][v]);
        }
    }
}

/* The strides of a are constants too where they are 1. */
static inline __attribute__((always_inline)) void
tile_form(const tile_args *t, const size_t rows, const size_t vectors)
{
    if (t->bf16 && t->a_k == 1) {
        tile_run(t, rows, vectors, t->a_row, 1, 1);
    } else if (t->bf16) {
        tile_run(t, rows, vectors, 1, t->a_k, 1);
    } else if (t->a_k == 1) {
        tile_run(t, rows, vectors, t->a_row, 1, 0);
    } else {
        tile_run(t, rows, vectors, 1, t->a_k, 0);
    }
}

#define TILE_CASE(rows, vectors)         \
    case rows:                           \
        tile_form(t, rows, vectors);     \
        return

/* One or two vectors of so many rows; rows <= TILE_ROWS. */
static inline __attribute__((always_inline)) void
tile_rows_of(const tile_args *t, size_t rows, const size_t vectors)
{
    switch (rows) {
#if TILE_ROWS == 12
        TILE_CASE(12, vectors);
        TILE_CASE(11, vectors);
        TILE_CASE(10, vectors);
        TILE_CASE(9, vectors);
        TILE_CASE(8, vectors);
        TILE_CASE(7, vectors);
#endif
#if TILE_ROWS >= 6
        TILE_CASE(6, vectors);
        TILE_CASE(5, vectors);
#endif
        TILE_CASE(4, vectors);
        TILE_CASE(3, vectors);
        TILE_CASE(2, vectors);
        TILE_CASE(1, vectors);
    }
}

/* rows <= TILE_ROWS; vectors is 1, 2, or twice tile_panels(rows), or that halved; a_row or a_k is
 * 1. */
static inline void
tile_fma(const tile_args *t, size_t rows, size_t vectors)
{
    if (TILE_WIDE > 1 && vectors > 2) {
        switch (rows) {
#if TILE_ROWS == 12
            TILE_CASE(6, 4);
            TILE_CASE(5, 4);
            TILE_CASE(4, 4);
            TILE_CASE(3, 4);
        case 2: vectors == 4 ? tile_form(t, 2, 4) : tile_form(t, 2, 8); return;
        case 1: vectors == 4 ? tile_form(t, 1, 4) : tile_form(t, 1, 8); return;
#endif
        }
    }
    if (vectors == 1) {
        tile_rows_of(t, rows, 1);
    } else {
        tile_rows_of(t, rows, 2);
    }
}

#undef TILE_CASE

#endif
