/* product.h - one matrix product as its tasks see it: operands, strides, how the work is cut.
 *
 *   c (M, columns) = start + a (M, K) b (K, columns)     for each expert
 *
 * matmul.c fills it for its three forms and hands out tasks, a block of rows times panels of
 * columns; matmul_block.h (vectors) and amx_block.h (the matrix unit) do them. Knows no form. */
#ifndef R1_PRODUCT_H
#define R1_PRODUCT_H

#include "cpu.h"

/* How the columns of b lie: as a row-major matrix; in the panels of a packed weight (panel.h),
 * whose rows are steps of the sum; or in such panels whose columns are (the matrix unit's nn). */
typedef enum { LAYOUT_PLAIN, LAYOUT_PANELS, LAYOUT_TURNED } b_layout;

#define EXPERT_ROWS SIZE_MAX

enum {
    MATRIX_ROWS = 32,        /* of c in a tile of the matrix unit */
    MATRIX_PART_ROWS = 512,  /* for which a is packed at a time */
    MATRIX_MOST_ROWS = 4096, /* in a task */
    MATRIX_PANELS = 32,      /* of b that can be kept */
    PRODUCT_SCRATCH = BF16_AMX ? 13 << 16 : 1 << 17, /* floats a thread needs for copies */
};

/* Rows n0 .. n0 + n of x and y belong to an expert: they are the rows of c (nt, nn) or the sum
 * (tn). a, b, c of expert e begin at n0 a_n, n0 b_n + e b_e, n0 c_n + e c_e. */
typedef struct {
    const int32_t *offsets; /* (E + 1), or NULL: all N rows */
    size_t E, N;
    size_t columns;
    size_t M, K; /* one of them EXPERT_ROWS */
    float *c;
    size_t ldc, c_n, c_e, c_rows; /* c_rows: of all experts */
    const float *start; /* one row for all rows of c; NULL: what c holds */
    size_t start_panel; /* from panel to panel of start */
    const float *a;
    size_t a_row, a_k, a_n;
    const float *b;
    size_t ldb, b_panel, b_n, b_e; /* b_panel: from panel to panel */
    b_layout layout;
    int bf16;
    const r1_units *units;         /* tn; NULL: its sum is one chain */
    size_t task_rows, task_panels; /* at most, of c, for one task */
    float *scratch;                /* (threads, PRODUCT_SCRATCH) */
} product;

/* Rows r0 .. r1 and panels p0 .. p1 of expert e's c; the sum begins at row n0 of x and y, where it
 * goes over rows, and has K terms. */
typedef struct {
    size_t n0, K, r0, r1, p0, p1;
    float *c; /* the first element */
    const float *a, *b;
} product_task;

/* Does the matrix unit take it? In tn its blocks of the sum must not depend on where micro-batches
 * end. */
static inline int
uses_amx(const product *p)
{
    return BF16_AMX && p->bf16 && (p->K != EXPERT_ROWS || p->units != NULL);
}

/* What the first block of the sum adds to, for rows of c from row r and the columns from `panel`
 * on. */
static inline const float *
product_start(const product *p, size_t panel, const float *c, size_t k, size_t *ld)
{
    if (p->start != NULL && k == 0) {
        *ld = 0;
        return p->start + panel * p->start_panel;
    }
    *ld = p->ldc;
    return c;
}

#endif
