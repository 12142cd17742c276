/* matmul_copy.h - a product's operands, and copies of blocks of them as the tiles want them.
 *
 * Copies stand on the stack of who runs the task. They bring together what lies far apart, and round
 * where the product is in bf16 (bf16.h); padding leaves a chain as it is: -0 x 0, and 0 x 0 for the
 * matrix unit, whose blocks are always whole. Knows nothing about tasks. */
#ifndef R1_MATMUL_COPY_H
#define R1_MATMUL_COPY_H

#include "matmul_amx.h"
#include "split.h"
#include "transpose.h"

enum {
    TASK_ROWS = 192,                       /* of c a task takes at most */
    B_ROWS = 256,                          /* of a panel of b between two passes over c */
    MAX_UNITS = B_ROWS / AMX_PAIRS,        /* of the sum of tn between two passes over c */
    B_PANELS = 8, /* of b that are copied at a time in bf16, which reads a row in longer pieces */
    A_ROOM = (BF16_AMX ? 512 : 256) * 192, /* floats, or pairs, of the copy of a */
};

/* c (M, columns) = start + a (M, K) b (K, columns) for each expert. Its rows
 * n0 .. n0 + n of x and y are the rows of c (nt, nn) or the sum (tn); a, b, c of expert e begin at
 * n0 a_n, n0 b_n + e b_e, n0 c_n + e c_e. */
typedef struct {
    const int32_t *offsets; /* (E + 1), or NULL: all N rows */
    size_t E, N;
    size_t columns;
    size_t M, K; /* one of them EXPERT_ROWS */
    float *c;
    size_t ldc, c_n, c_e;
    const float *start; /* one row for all rows of c; NULL: what c holds */
    size_t start_panel; /* from panel to panel of start */
    const float *a;
    size_t a_row, a_k, a_n;
    const float *b;
    size_t ldb, b_panel, b_n, b_e; /* b_panel: from panel to panel */
    int packed;                    /* b lies in padded panels */
    int bf16;
    const r1_units *units;         /* tn; NULL: its sum is one chain */
    size_t task_rows, task_panels; /* at most, of c, for one task */
} product;

#define EXPERT_ROWS SIZE_MAX

/* Does the matrix unit take it? In tn its blocks of the sum must not depend on where micro-batches end. */
static int
uses_amx(const product *p)
{
    return BF16_AMX && p->bf16 && (p->K != EXPERT_ROWS || p->units != NULL);
}

static size_t
tile_rows(const product *p)
{
    return uses_amx(p) ? AMX_ROWS : TILE_ROWS;
}

/* How a task's rows are cut into tiles, row start[i] being the first of tile i, and the block of the sum
 * that is at hand: so many steps, which are b_rows rows of b's copy. Where the matrix unit sums over
 * rows they are units, and unit[u] is the first step of one. */
typedef struct {
    size_t tiles, steps, b_rows, units;
    uint32_t start[TASK_ROWS / TILE_ROWS + 2], unit[MAX_UNITS + 1];
} cuts;

/* Even shares of the rows, but whole tiles of the matrix unit. */
static void
cut_tiles(cuts *cut, const product *p, size_t rows)
{
    cut->tiles = split_count(rows, tile_rows(p));
    for (size_t i = 0; i < cut->tiles; i++) {
        cut->start[i] = (uint32_t)(uses_amx(p) ? i * AMX_ROWS : i * rows / cut->tiles);
    }
    cut->start[cut->tiles] = (uint32_t)rows;
}

/* The block (K, columns) of b that starts at `from`, at most a panel of it, in float32; what pads its
 * last vector is 0. */
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

/* The same in bf16: `pairs` rows of pairs of panels that have b_rows of them, 0 beyond the columns and K.
 * Several panels at a time, since their rows of 32 floats are two cache lines of a page each. */
static void
pair_panels(float *to, const float *from, size_t ld, size_t K, size_t columns, size_t pairs,
            size_t b_rows)
{
    for (size_t k = 0; k < pairs; k++, to += R1_PANEL, from += 2 * ld) {
        for (size_t j = 0; j < columns; j += R1_PANEL) {
            size_t n = 2 * k < K ? split_end(columns, j, R1_PANEL) - j : 0;
            float *row = to + j * b_rows;
            if (n > 0) {
                bf16_pair_rows((u32_u *)row, from + j, 2 * k + 1 < K ? from + ld + j : NULL, 0.0f, n);
            }
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
    size_t ld = uses_amx(p)   ? split_count(K, AMX_SUM) * AMX_PAIRS
                : BF16_PAIRS ? split_count(K, 2)
                             : K + K % 2;
    for (size_t r = 0; r < rows; r++, from += p->a_row) {
        float *row = to + r * ld;
        if (uses_amx(p)) { /* 0 up to a whole number of the tile's steps */
            bf16_pair_neighbours((u32_u *)row, from, K, 0.0f);
            memset(row + split_count(K, 2), 0, (ld - split_count(K, 2)) * sizeof *row);
        } else if (BF16_PAIRS) {
            bf16_pair_neighbours((u32_u *)row, from, K, -0.0f);
        } else {
            bf16_round_row(row, from, K);
            row[ld - 1] = K % 2 == 1 ? -0.0f : row[ld - 1];
        }
    }
    return ld;
}

/* A block of a in tn, whose columns are the rows of `from`: for each tile its steps (in bf16 their
 * pairs) one after another, since each would else be a cache line, and a page, of its own. The tile that
 * starts at row r begins at r times the steps, which are returned. */
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
            size_t r = cut->start[i], n = cut->start[i + 1] - r;
            vf_store_left(to + r * lines + k * n, vf_load_left(a + r, n), n);
        }
    }
    return lines;
}

/* The next block of the sum, from step k on: `most` steps, or where units count so many of these as fit.
 * n0: the row where step 0 stands in tn. */
static void
cut_steps(cuts *cut, const product *p, size_t n0, size_t k, size_t K, size_t most)
{
    cut->steps = split_end(K, k, most) - k;
    cut->units = 0;
    if (!uses_amx(p)) {
        cut->b_rows = split_count(cut->steps, p->bf16 ? 2 : 1);
        return;
    }
    if (p->K != EXPERT_ROWS) {
        cut->b_rows = split_count(cut->steps, AMX_SUM) * AMX_PAIRS;
        return;
    }
    const int32_t *id = p->units->id, *row = p->units->row;
    const size_t first = n0 + k;
    size_t n = first;
    for (int32_t last = 0; n < n0 + K; n++) {
        int32_t now = row != NULL ? id[row[n]] : id[n];
        if (cut->units == 0 || now != last || n - first - cut->unit[cut->units - 1] == R1_UNIT) {
            if (cut->units == MAX_UNITS) {
                break;
            }
            cut->unit[cut->units++] = (uint32_t)(n - first);
            last = now;
        }
    }
    cut->unit[cut->units] = (uint32_t)(n - first);
    cut->steps = n - first;
    cut->b_rows = cut->units * AMX_PAIRS;
}

_Static_assert(R1_UNIT <= (int)AMX_SUM, "a unit is one block of the matrix unit's sum");

/* The blocks of a in tn for the matrix unit: rows of pairs, 0 up to whole blocks. Returns the stride
 * between rows. */
static size_t
pair_columns(float *to, const product *p, const float *from, const cuts *cut)
{
    size_t ld = cut->units * AMX_PAIRS;
#if BF16_AMX
    const size_t rows = cut->start[cut->tiles];
    for (size_t u = 0; u < cut->units; u++) {
        size_t K = cut->unit[u + 1] - cut->unit[u];
        const float *block = from + cut->unit[u] * p->a_k;
        for (size_t r = 0; r < rows; r += W) {
            vf pairs[W];
#pragma GCC unroll 16
            for (size_t k = 0; k < W; k++) {
                const float *upper = block + 2 * k * p->a_k + r;
                vf x = 2 * k < K ? vf_load_left(upper, rows - r) : vf_set1(0.0f);
                vf y = 2 * k + 1 < K ? vf_load_left(upper + p->a_k, rows - r) : vf_set1(0.0f);
                pairs[k] = (vf)vf_bf16_pair(x, y);
            }
            transpose_block(pairs);
            for (size_t i = 0; i < W && r + i < rows; i++) {
                vf_store(to + (r + i) * ld + u * AMX_PAIRS, pairs[i]);
            }
        }
    }
#else
    (void)to, (void)p, (void)from;
#endif
    return ld;
}

/* The block of a at `from`, copied to `to` if it must be: what the tiles read, row_stride from row to row. */
static const float *
copy_a(float *to, const product *p, const float *from, const cuts *cut, size_t *row_stride)
{
    if (p->K == EXPERT_ROWS) {
        *row_stride = uses_amx(p) ? pair_columns(to, p, from, cut) : copy_columns(to, p, from, cut);
        return to;
    }
    if (p->bf16) {
        *row_stride = copy_rows(to, p, from, cut);
        return to;
    }
    *row_stride = p->a_row;
    return from;
}

/* The block of b at `from` in panels: the first of B_PANELS in bf16, which are copied together. */
static void
copy_b(float *to, const product *p, const float *from, size_t columns, const cuts *cut)
{
    if (!p->bf16) {
        copy_panel(to, from, p->ldb, cut->steps, columns < R1_PANEL ? columns : R1_PANEL);
    } else if (cut->units == 0) {
        pair_panels(to, from, p->ldb, cut->steps, columns, cut->b_rows, cut->b_rows);
    }
    for (size_t u = 0; u < cut->units; u++) {
        pair_panels(to + u * AMX_PAIRS * R1_PANEL, from + cut->unit[u] * p->ldb, p->ldb,
                    cut->unit[u + 1] - cut->unit[u], columns, AMX_PAIRS, cut->b_rows);
    }
}

#endif
