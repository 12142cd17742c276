/* amx_block.h - a task of a product on the matrix unit: blocks of the sum, panels of b, tiles of rows.
 *
 * a's block of the sum is packed once for all panels and stays in the second cache; a panel of b, packed
 * or as it lies in a weight, in the first. While tiles are at work they fetch the panel after, each its
 * share. Knows nothing about experts. */
#ifndef R1_AMX_BLOCK_H
#define R1_AMX_BLOCK_H

#include "amx_pack.h"

/* A tile whose c is not whole: through a copy that is. */
static inline void
amx_cut_tile(amx_args t, size_t rows, size_t columns)
{
    float full[AMX_ROWS * AMX_ROWS] = {0}, *c = t.c;
    size_t ldc = t.ldc;
    for (size_t r = 0; r < rows; r++) {
        memcpy(full + r * AMX_ROWS, t.init + r * t.ld_init, columns * sizeof *full);
    }
    t.init = t.c = full;
    t.ld_init = t.ldc = AMX_ROWS;
    amx_tile(&t, rows);
    for (size_t r = 0; r < rows; r++) {
        memcpy(c + r * ldc, full + r * AMX_ROWS, columns * sizeof *full);
    }
}

/* Blocks `sum`, from step k on, of one panel: all tiles of rows. */
static inline void
amx_panel(const product *p, const product_task *t, const amx_sum *sum, size_t k, size_t panel,
          const float *a, const float *b, const float *ahead)
{
    const size_t rows = t->r1 - t->r0, j = panel * R1_PANEL, tiles = split_count(rows, AMX_ROWS);
    const size_t columns = split_end(p->columns, j, R1_PANEL) - j;
    size_t fetch = ahead != NULL ? split_count(AMX_ROWS, tiles) : 0;
    for (size_t r = 0; r < rows; r += AMX_ROWS) {
        size_t n = split_end(rows, r, AMX_ROWS) - r;
        float *c = t->c + r * p->ldc + j;
        amx_args tile = {.c = c, .ldc = p->ldc, .a = a + r * sum->blocks * AMX_PAIRS, .b = b,
                         .a_half = sum->blocks * AMX_A_BLOCK, .blocks = sum->blocks,
                         .ahead = ahead, .fetch = fetch};
        tile.init = product_start(p, panel, c, k, &tile.ld_init);
        if (columns == R1_PANEL && (n == AMX_ROWS || rows < AMX_ROWS)) {
            amx_tile(&tile, n);
        } else {
            amx_cut_tile(tile, n, columns);
        }
        if (ahead != NULL) {
            ahead += fetch * SPLIT_LINE;
        }
    }
}

/* scratch: AMX_A_ROOM + AMX_B_ROOM floats */
static __attribute__((noinline)) void
amx_block(const product *p, const product_task *t, float *scratch)
{
    const size_t rows = t->r1 - t->r0;
    float *a = scratch, *b_copy = scratch + AMX_A_ROOM;
    size_t k = 0;
    amx_configure(rows < AMX_ROWS ? rows : AMX_ROWS);
    do { /* once even if the sum is empty: c = start */
        amx_sum sum;
        amx_cut(&sum, p, t, k);
        if (p->K == EXPERT_ROWS) {
            amx_pack_columns(a, t->a + k * p->a_k, p->a_k, rows, &sum);
        } else {
            amx_pack_rows(a, t->a + k, p->a_row, rows, &sum);
        }
        for (size_t panel = t->p0; panel < t->p1; panel++) {
            const float *b, *ahead = NULL;
            if (p->layout == LAYOUT_PANELS) {
                b = t->b + panel * p->b_panel + k / 2 * R1_PANEL;
                ahead = panel + 1 < t->p1 ? b + p->b_panel : NULL;
            } else if (p->layout == LAYOUT_TURNED) {
                b = b_copy;
                amx_pack_turned(b_copy, t->b + panel * AMX_B_BLOCK + k / AMX_SUM * p->b_panel,
                                p->b_panel, &sum);
            } else {
                size_t in_copy = (panel - t->p0) % AMX_PANELS, j = panel * R1_PANEL;
                b = b_copy + in_copy * sum.blocks * AMX_B_BLOCK;
                if (in_copy == 0) {
                    size_t end = split_end(t->p1, panel, AMX_PANELS) * R1_PANEL;
                    end = end < p->columns ? end : p->columns;
                    amx_pack_plain(b_copy, t->b + k * p->ldb + j, p->ldb, end - j, &sum);
                }
            }
            amx_panel(p, t, &sum, k, panel, a, b, ahead);
        }
        k += sum.steps;
    } while (k < t->K);
    amx_release();
}

#endif
