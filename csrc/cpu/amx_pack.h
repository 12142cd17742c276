/* amx_pack.h - operands of a product as the matrix unit's tiles read them, in bf16.
 *
 *   a   (rows / 16, blocks, 16, 16) pairs: a tile after another, 16 rows of 32 steps of the sum
 *   b   (panels, blocks, 16, 32) pairs: a block's 16 pairs of steps, 32 columns each
 *
 * A block is 32 steps of the sum (in tn a unit of at most as many rows), 0 where there are fewer.
 * Knows nothing about tiles' arithmetic or tasks. */
#ifndef R1_AMX_PACK_H
#define R1_AMX_PACK_H

#include "amx_tile.h"
#include "bf16.h"
#include "product.h"
#include "split.h"
#include "transpose.h"

enum {
    AMX_MOST_BLOCKS = 32, /* of the sum between two passes over c */
    AMX_PANELS = 4,       /* of b that are packed at a time: rows are read in longer pieces */
    AMX_A_ROOM = MATRIX_PART_ROWS * AMX_MOST_BLOCKS * AMX_PAIRS,
    AMX_B_ROOM = MATRIX_PANELS * AMX_MOST_BLOCKS * AMX_B_BLOCK,
    AMX_C_ROOM = MATRIX_PART_ROWS * AMX_ROWS,
};

/* The blocks of the sum that are at hand. Where the sum goes over rows they are units, and first[u]
 * is the first step of one. */
typedef struct {
    size_t steps, blocks;
    uint32_t first[AMX_MOST_BLOCKS + 1];
} amx_sum;

_Static_assert(AMX_A_ROOM + AMX_B_ROOM + AMX_C_ROOM <= (int)PRODUCT_SCRATCH, "room for copies");
_Static_assert(R1_UNIT <= (int)AMX_SUM, "a unit is one block of the matrix unit's sum");

/* The next ones, from step k of the task on. */
static inline void
amx_cut(amx_sum *sum, const product *p, const product_task *t, size_t k)
{
    if (p->K != EXPERT_ROWS) {
        sum->steps = split_end(t->K, k, AMX_MOST_BLOCKS * AMX_SUM) - k;
        sum->blocks = split_count(sum->steps, AMX_SUM);
        return;
    }
    const int32_t *id = p->units->id, *row = p->units->row;
    const size_t from = t->n0 + k, end = t->n0 + t->K;
    size_t n = from;
    sum->blocks = 0;
    for (int32_t last = 0; n < end; n++) {
        int32_t now = row != NULL ? id[row[n]] : id[n];
        size_t u = sum->blocks;
        if (u == 0 || now != last || n - from - sum->first[u - 1] == R1_UNIT) {
            if (u == AMX_MOST_BLOCKS) {
                break;
            }
            sum->first[sum->blocks++] = (uint32_t)(n - from);
            last = now;
        }
    }
    sum->steps = n - from;
    sum->first[sum->blocks] = (uint32_t)sum->steps;
}

/* a of nt and nn: rows of `from` */
static inline void
amx_pack_rows(float *to, const float *from, size_t ld, size_t rows, const amx_sum *sum)
{
    for (size_t r = 0; r < rows; r++, from += ld) {
        float *line = to + r / AMX_HALF * sum->blocks * AMX_A_BLOCK + r % AMX_HALF * AMX_PAIRS;
        size_t k = 0;
        for (; k + AMX_SUM <= sum->steps; k += AMX_SUM, line += AMX_A_BLOCK) {
            vf_store(line, (vf)vf_bf16_neighbours(from + k));
        }
        if (k < sum->steps) {
            float rest[AMX_SUM] = {0};
            memcpy(rest, from + k, (sum->steps - k) * sizeof *rest);
            vf_store(line, (vf)vf_bf16_neighbours(rest));
        }
    }
}

/* a of tn, whose rows are columns of `from` */
static inline void
amx_pack_columns(float *to, const float *from, size_t ld, size_t rows, const amx_sum *sum)
{
    for (size_t u = 0; u < sum->blocks; u++) {
        size_t K = sum->first[u + 1] - sum->first[u];
        const float *block = from + sum->first[u] * ld;
        for (size_t r = 0; r < rows; r += AMX_HALF) {
            vf pairs[W];
#pragma GCC unroll 16
            for (size_t k = 0; k < W; k++) {
                const float *upper = block + 2 * k * ld + r;
                vf x = 2 * k < K ? vf_load_left(upper, rows - r) : vf_set1(0.0f);
                vf y = 2 * k + 1 < K ? vf_load_left(upper + ld, rows - r) : vf_set1(0.0f);
                pairs[k] = (vf)vf_bf16_pair(x, y);
            }
            transpose_block(pairs);
            float *tile = to + (r / AMX_HALF * sum->blocks + u) * AMX_A_BLOCK;
#pragma GCC unroll 16
            for (size_t i = 0; i < W; i++) {
                vf_store(tile + i * AMX_PAIRS, pairs[i]);
            }
        }
    }
}

/* b of tn: `columns` columns of `from`, at most AMX_PANELS panels */
static inline void
amx_pack_plain(float *to, const float *from, size_t ld, size_t columns, const amx_sum *sum)
{
    const size_t panel = sum->blocks * AMX_B_BLOCK;
    for (size_t u = 0; u < sum->blocks; u++, to += AMX_B_BLOCK) {
        size_t K = sum->first[u + 1] - sum->first[u];
        const float *row = from + sum->first[u] * ld;
        for (size_t k = 0; k < AMX_SUM; k += 2, row += 2 * ld) {
            float *line = to + k / 2 * AMX_ROWS;
            for (size_t j = 0; j < columns; j += W) {
                vf x = k < K ? vf_load_left(row + j, columns - j) : vf_set1(0.0f);
                vf y = k + 1 < K ? vf_load_left(row + ld + j, columns - j) : vf_set1(0.0f);
                vf_store(line + j / AMX_ROWS * panel + j % AMX_ROWS, (vf)vf_bf16_pair(x, y));
            }
        }
    }
}

/* b of nn: one panel of 32 inputs i, out of a packed weight, whose panels of 32 outputs o are the
 * blocks of the sum and lie b_panel apart. There 16 rows of pairs of inputs are 32 outputs wide;
 * here it is 16 rows of pairs of outputs, 32 inputs wide. */
static inline void
amx_pack_turned(float *to, const float *from, size_t b_panel, const amx_sum *sum)
{
    /* of halves: those of output o are 2o, odd input, and 2o + 1 */
    const vu lane = (vu)vi_iota() * 4;
    const __m512i even = (__m512i)((lane + 3) | (lane + 1) << 16);
    const __m512i odd = (__m512i)((lane + 2) | lane << 16);
    for (size_t u = 0; u < sum->blocks; u++, from += b_panel, to += AMX_B_BLOCK) {
        for (size_t half = 0; half < 2; half++) {
            vf pairs[W]; /* (16 inputs, 16 pairs of outputs) */
#pragma GCC unroll 8
            for (size_t q = 0; q < W / 2; q++) {
                const float *row = from + (half * W / 2 + q) * AMX_ROWS;
                __m512i x = (__m512i)vf_load(row), y = (__m512i)vf_load(row + W);
                pairs[2 * q] = (vf)_mm512_permutex2var_epi16(x, even, y);
                pairs[2 * q + 1] = (vf)_mm512_permutex2var_epi16(x, odd, y);
            }
            transpose_block(pairs);
#pragma GCC unroll 16
            for (size_t k = 0; k < W; k++) {
                vf_store(to + k * AMX_ROWS + half * W, pairs[k]);
            }
        }
    }
}

#endif
