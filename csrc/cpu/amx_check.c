/* amx_check.c - does this processor's matrix unit do what amx_tile.h says?
 *
 * Our bits depend on the order of its sums: in a block of 32 terms a chain over the even ones and a
 * chain over the odd ones, each from 0, their sum, and that onto c. isa.c asks before it hands out
 * the tier. Here the definition is computed one number at a time, on numbers whose products are
 * exact and whose sums cancel and round. */
#include "cpu.h"

#if BF16_AMX
#include <string.h>

#include "amx_tile.h"
#include "bf16.h"

int TIER(amx_check)(void);

enum { ROWS = 19, SUM = 2 * AMX_SUM };

/* A bf16 number of random sign and mantissa, within a factor of 16 of 1. */
static float
draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint32_t r = (uint32_t)(*state >> 32), bits = (r & 0x80000000u) | (124u + (r & 7u)) << 23;
    bits |= (r & 0x7f00u) << 8;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* One rounding: the product has 16 bits and lies near c, so that float64 holds the sum. */
static float
step(float a, float b, float c)
{
    return (float)((double)a * (double)b + (double)c);
}

/* True if every element of a product of two tiles of rows, one of them cut, is as defined. */
int
TIER(amx_check)(void)
{
    float a[ROWS][SUM], b[SUM][R1_PANEL], c[AMX_ROWS][R1_PANEL], want[ROWS][R1_PANEL];
    uint32_t a_pairs[2][SUM / AMX_SUM][AMX_HALF][AMX_PAIRS] = {0}, b_pairs[SUM / 2][R1_PANEL];
    uint64_t state = 1;
    for (size_t k = 0; k < SUM; k++) {
        for (size_t r = 0; r < ROWS; r++) {
            a[r][k] = draw(&state);
        }
        for (size_t j = 0; j < R1_PANEL; j++) {
            b[k][j] = draw(&state);
        }
    }
    for (size_t k = 0; k < SUM; k += 2) {
        for (size_t r = 0; r < ROWS; r++) {
            a_pairs[r / AMX_HALF][k / AMX_SUM][r % AMX_HALF][k % AMX_SUM / 2] =
                bf16_pair(a[r][k], a[r][k + 1]);
        }
        for (size_t j = 0; j < R1_PANEL; j++) {
            b_pairs[k / 2][j] = bf16_pair(b[k][j], b[k + 1][j]);
        }
    }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t j = 0; j < R1_PANEL; j++) {
            want[r][j] = c[r][j] = draw(&state);
            for (size_t k0 = 0; k0 < SUM; k0 += AMX_SUM) {
                float sum[2] = {0.0f, 0.0f};
                for (size_t k = 0; k < AMX_SUM; k++) {
                    sum[k % 2] = step(a[r][k0 + k], b[k0 + k][j], sum[k % 2]);
                }
                want[r][j] += sum[0] + sum[1];
            }
        }
    }
    amx_args t = {.c = c[0], .init = c[0], .a = (const float *)(const void *)a_pairs,
                  .b = (const float *)(const void *)b_pairs, .ldc = R1_PANEL, .ld_init = R1_PANEL,
                  .a_half = SUM / AMX_SUM * AMX_A_BLOCK, .blocks = SUM / AMX_SUM};
    amx_configure(ROWS);
    amx_tile(&t, ROWS);
    amx_release();
    return memcmp(c, want, sizeof want) == 0;
}
#endif
