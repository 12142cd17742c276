/* matmul_copy.h - copies of blocks of a product's operands as the tiles of vectors want them.
 *
 * They bring together what lies far apart, and round where the product is in bf16 (bf16.h); padding
 * leaves a chain as it is: -0 x 0. Knows nothing about tasks. */
#ifndef R1_MATMUL_COPY_H
#define R1_MATMUL_COPY_H

#include "matmul_kernel.h"
#include "product.h"
#include "split.h"
#include "transpose.h"

enum {
    TASK_ROWS = 192,     /* of c a task takes at most */
    B_ROWS = 256,        /* of a panel of b between two passes over c */
    B_PANELS = 8,        /* of b that are copied at a time in bf16: longer pieces of a row */
    A_ROOM = 256 * TASK_ROWS / TILE_ROWS * W, /* floats, or pairs, of the copy of a */
    B_ROOM = B_PANELS * B_ROWS * R1_PANEL,
};

_Static_assert(A_ROOM + B_ROOM <= (int)PRODUCT_SCRATCH, "room for copies");

/* How a task's rows are cut into tiles, row start[i] being the first of tile i, and the block of
 * the sum that is at hand: so many steps, which are b_rows rows of b's copy. */
typedef struct {
    size_t tiles, steps, b_rows;
    uint32_t start[TASK_ROWS / TILE_ROWS + 2];
} cuts;

/* Even shares of the rows. */
static void
cut_tiles(cuts *cut, size_t rows)
{
    cut->tiles = split_count(rows, TILE_ROWS);
    for (size_t i = 0; i <= cut->tiles; i++) {
        cut->start[i] = (uint32_t)(cut->tiles > 0 ? i * rows / cut->tiles : 0);
    }
}

/* The next block of the sum, from step k on: `most` steps. */
static void
cut_steps(cuts *cut, const product *p, size_t k, size_t K, size_t most)
{
    cut->steps = split_end(K, k, most) - k;
    cut->b_rows = split_count(cut->steps, p->bf16 ? 2 : 1);
}

/* The block (K, columns) of b that starts at `from`, at most a panel of it, in float32; what pads
 * its last vector is 0. */
static void
copy_panel(float *to, const float *from, size_t ld, size_t K, size_t columns)
{
    for (size_t k = 0; k < K; k++, to += R1_PANEL, from += ld) {
        size_t j = 0;
        for (; j + W <= columns; j += W) {
            vf_store(to + j, vf_load(from + j));
        }
        if (j < columns) {
            vf_store(to + j, vf_load_n(from + j, columns - j));
        }
    }
}

/* The same in bf16: panels of b_rows rows of pairs, 0 beyond the columns and K. Several panels at a
 * time, since their rows of 32 floats are two cache lines of a page each. */
static void
pair_panels(float *to, const float *from, size_t ld, size_t K, size_t columns, size_t b_rows)
{
    for (size_t k = 0; k < b_rows; k++, to += R1_PANEL, from += 2 * ld) {
        for (size_t j = 0; j < columns; j += R1_PANEL) {
            size_t n = split_end(columns, j, R1_PANEL) - j;
            float *row = to + j * b_rows;
            bf16_pair_rows((u32_u *)row, from + j, 2 * k + 1 < K ? from + ld + j : NULL, 0.0f, n);
            if (n < R1_PANEL) {
                memset(row + n, 0, (R1_PANEL - n) * sizeof *row);
            }
        }
    }
}

/* A block (rows, steps) of a in bf16, row after row; returns the stride between them. */
static size_t
copy_rows(float *to, const product *p, const float *from, const cuts *cut)
{
    const size_t rows = cut->start[cut->tiles], K = cut->steps;
    size_t ld = BF16_PAIRS ? split_count(K, 2) : K + K % 2;
    for (size_t r = 0; r < rows; r++, from += p->a_row) {
        float *row = to + r * ld;
        if (BF16_PAIRS) {
            bf16_pair_neighbours((u32_u *)row, from, K, -0.0f);
        } else {
            bf16_round_row(row, from, K);
            row[ld - 1] = K % 2 == 1 ? -0.0f : row[ld - 1];
        }
    }
    return ld;
}

/* A block of a in tn, whose columns are the rows of `from`: for each tile its steps (in bf16 their
 * pairs) one after another, a vector each, since they would else be a cache line, and a page, of
 * their own. What a vector holds beyond its tile's rows nobody reads. Returns the steps. */
static size_t
copy_columns(float *to, const product *p, const float *from, const cuts *cut)
{
    const size_t tiles = cut->tiles, rows = cut->start[tiles], K = cut->steps;
    float line[TASK_ROWS];
    size_t step = p->bf16 && BF16_PAIRS ? 2 : 1;
    size_t lines = p->bf16 && !BF16_PAIRS ? K + K % 2 : split_count(K, step);
    for (size_t k = 0; k < lines; k++, from += step * p->a_k) {
        const float *a = p->bf16 ? line : from;
        if (k == K) {
            for (size_t r = 0; r < rows; r++) {
                line[r] = -0.0f;
            }
        } else if (step == 2) {
            bf16_pair_rows((u32_u *)line, from, 2 * k + 1 < K ? from + p->a_k : NULL, -0.0f, rows);
        } else if (p->bf16) {
            bf16_round_row(line, from, rows);
        }
        for (size_t i = 0; i < tiles; i++) {
            size_t r = cut->start[i];
            vf_store(to + (i * lines + k) * W, vf_load_left(a + r, rows - r));
        }
    }
    return lines;
}

/* The block of a at `from`, copied to `to` if it must be: what the tiles read. *stride: from row to
 * row; in tn from tile to tile, in vectors. */
static const float *
copy_a(float *to, const product *p, const float *from, const cuts *cut, size_t *stride)
{
    if (p->K == EXPERT_ROWS) {
        *stride = copy_columns(to, p, from, cut);
        return to;
    }
    if (p->bf16) {
        *stride = copy_rows(to, p, from, cut);
        return to;
    }
    *stride = p->a_row;
    return from;
}

/* The block of b at `from` in panels: the first of B_PANELS in bf16, which are copied together. */
static void
copy_b(float *to, const product *p, const float *from, size_t columns, const cuts *cut)
{
    if (!p->bf16) {
        copy_panel(to, from, p->ldb, cut->steps, columns < R1_PANEL ? columns : R1_PANEL);
    } else {
        pair_panels(to, from, p->ldb, cut->steps, columns, cut->b_rows);
    }
}

#endif
