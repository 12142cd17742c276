/* matmul_amx.h - the tile of bf16 products on processors with a matrix unit (AMX).
 *
 *   c[r][j] = for each block of 32 of the sum:  c + (even + odd),
 *             even = chain of fma(a[r][k], b[k][j], .) over the block's even k, from 0;  odd alike
 *
 * (Intel's definition of TDPBF16PS; what is below 2^-126 counts as 0.) An element depends on its row
 * and its column alone, so E1 holds; but the bits are not those of the other tiers' single chain
 * (docs/numerics.md). a and b are pairs, 0 up to a whole block. Which number of a pair lies in the upper half
 * does not matter, since the two sums meet in one addition.
 *
 * Registers are eight tiles of 16 rows of 64 bytes: four of c, two of a, two of b. Knows nothing
 * about experts or tasks. */
#ifndef R1_MATMUL_AMX_H
#define R1_MATMUL_AMX_H

#include "matmul_kernel.h"

enum {
    AMX_SUM = 32,        /* steps of the sum in a block */
    AMX_PAIRS = 16,
    AMX_ROWS = 32,       /* of c in two tiles */
    AMX_HALF = 16,
};

#if BF16_AMX

/* Tiles of so many rows; what they held is lost. Once a task and thread at least. */
static inline void
amx_configure(size_t rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    uint8_t upper = (uint8_t)(rows < AMX_HALF ? rows : AMX_HALF), lower = (uint8_t)(rows - upper);
    const uint8_t of_tile[8] = {upper, upper, lower, lower, upper, lower, AMX_PAIRS, AMX_PAIRS};
    for (int i = 0; i < 8; i++) {
        shape.rows[i] = of_tile[i] != 0 ? of_tile[i] : 1;
        shape.row_bytes[i] = 64;
    }
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* gcc's intrinsic claims to read 8 bytes of it */
    _tile_loadconfig(&shape);
}

static inline void
amx_release(void)
{
    _tile_release();
}

/* Rows of b that the next panel's tile will want. */
static inline __attribute__((always_inline)) void
amx_fetch(const float *ahead, size_t ld)
{
    for (size_t i = 0; i < AMX_PAIRS; i++, ahead += ld) {
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + R1_PANEL / 2, 0, 2);
    }
}

/* One panel; rows as configured, at most AMX_HALF where `both` is 0; K a multiple of AMX_PAIRS. */
static inline __attribute__((always_inline)) void
amx_run(const tile_args *t, const int both)
{
    const size_t bytes = sizeof(float);
    const size_t ld_init = t->ld_init * bytes, ldc = t->ldc * bytes, a_row = t->a_row * bytes;
    __asm__ volatile("" : : : "memory"); /* gcc's loads of tiles do not say that they read memory */
    _tile_loadd(0, t->init, ld_init);
    _tile_loadd(1, t->init + 16, ld_init);
    if (both) {
        _tile_loadd(2, t->init + AMX_HALF * t->ld_init, ld_init);
        _tile_loadd(3, t->init + AMX_HALF * t->ld_init + 16, ld_init);
    }
    const float *a = t->a, *b = t->b, *ahead = t->ahead;
    for (size_t k = 0; k < t->K; k += AMX_PAIRS) {
        _tile_loadd(4, a, a_row);
        _tile_loadd(6, b, R1_PANEL * bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 16, R1_PANEL * bytes);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
            _tile_loadd(5, a + AMX_HALF * t->a_row, a_row);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        if (t->ld_ahead != 0) {
            amx_fetch(ahead, t->ld_ahead);
        }
        a += AMX_PAIRS;
        b += AMX_PAIRS * R1_PANEL;
        ahead += AMX_PAIRS * t->ld_ahead;
    }
    _tile_stored(0, t->c, ldc);
    _tile_stored(1, t->c + 16, ldc);
    if (both) {
        _tile_stored(2, t->c + AMX_HALF * t->ldc, ldc);
        _tile_stored(3, t->c + AMX_HALF * t->ldc + 16, ldc);
    }
}

static inline void
amx_tile(const tile_args *t, size_t rows)
{
    if (rows > AMX_HALF) {
        amx_run(t, 1);
    } else {
        amx_run(t, 0);
    }
}

#else /* never called: uses_amx is 0 */
static inline void
amx_configure(size_t rows)
{
    (void)rows;
}

static inline void
amx_release(void)
{
}

static inline void
amx_tile(const tile_args *t, size_t rows)
{
    (void)t;
    (void)rows;
}
#endif

#endif
