/* amx_tile.h - the tile of bf16 products on processors with a matrix unit (AMX).
 *
 *   c[r][j] = for each block of 32 of the sum:  c + (even + odd),
 *             even = chain of fma(a[r][k], b[k][j], .) over the block's even k, from 0;  odd alike
 *
 * (Intel's definition of TDPBF16PS; what is below 2^-126 counts as 0.) An element depends on its
 * row and its column alone, so E1 holds; but the bits are not those of the other tiers' single
 * chain (docs/numerics.md). a and b are pairs, 0 up to a whole block. Which number of a pair lies
 * in the upper half does not matter, since the two sums meet in one addition.
 *
 * Registers are eight tiles of 16 rows of 64 bytes: four of c, two of a, two of b. Compiled on the
 * tier amx alone. Knows nothing about experts or tasks. */
#ifndef R1_AMX_TILE_H
#define R1_AMX_TILE_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum {
    AMX_SUM = 32,        /* steps of the sum in a block */
    AMX_PAIRS = 16,
    AMX_ROWS = 32,       /* of c in two tiles, and its columns */
    AMX_HALF = 16,
    AMX_A_BLOCK = AMX_HALF * AMX_PAIRS, /* one tile of a, without gaps */
    AMX_B_BLOCK = AMX_PAIRS * AMX_ROWS,
};

/* Strides in floats, or pairs. */
typedef struct {
    float *c;
    const float *init, *a, *b;
    size_t ldc, ld_init;
    size_t a_half;       /* from the upper 16 rows of a (blocks, 16, 16) to the lower ones */
    size_t blocks;       /* of the sum; b (blocks, 16, 32) */
    const float *ahead;  /* what will be read next, laid out as b, */
    size_t fetch;        /* and how many of the 32 cache lines of each of its blocks to fetch now */
} amx_args;

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

/* A panel of 32 columns; rows as configured, at most AMX_HALF where `both` is 0. */
static inline __attribute__((always_inline)) void
amx_run(const amx_args *t, const int both)
{
    const size_t bytes = sizeof(float), line = 64 / bytes;
    const size_t ld_init = t->ld_init * bytes, ldc = t->ldc * bytes;
    __asm__ volatile("" : : : "memory"); /* gcc's loads of tiles do not say that they read memory */
    _tile_loadd(0, t->init, ld_init);
    _tile_loadd(1, t->init + AMX_HALF, ld_init);
    if (both) {
        _tile_loadd(2, t->init + AMX_HALF * t->ld_init, ld_init);
        _tile_loadd(3, t->init + AMX_HALF * t->ld_init + AMX_HALF, ld_init);
    }
    const float *a = t->a, *b = t->b, *ahead = t->ahead;
    for (size_t k = 0; k < t->blocks; k++) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, AMX_ROWS * bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + AMX_HALF, AMX_ROWS * bytes);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
            _tile_loadd(5, a + t->a_half, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (size_t i = 0; i < t->fetch; i++) {
            __builtin_prefetch(ahead + i * line, 0, 2);
        }
        a += AMX_A_BLOCK;
        b += AMX_B_BLOCK;
        ahead += AMX_B_BLOCK;
    }
    _tile_stored(0, t->c, ldc);
    _tile_stored(1, t->c + AMX_HALF, ldc);
    if (both) {
        _tile_stored(2, t->c + AMX_HALF * t->ldc, ldc);
        _tile_stored(3, t->c + AMX_HALF * t->ldc + AMX_HALF, ldc);
    }
}

static inline void
amx_tile(const amx_args *t, size_t rows)
{
    if (rows > AMX_HALF) {
        amx_run(t, 1);
    } else {
        amx_run(t, 0);
    }
}

#endif
