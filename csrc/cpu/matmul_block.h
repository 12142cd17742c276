/* matmul_block.h - a task of a product on vectors: blocks of the sum, panels of b, tiles of rows.
 *
 * nt finds b packed in panels (weight.c); nn and tn copy theirs, one block of a panel at a time,
 * and tn its block of a too (matmul_copy.h). While a tile is at work it fetches what the next panel
 * will read. Knows nothing about experts. */
#ifndef R1_MATMUL_BLOCK_H
#define R1_MATMUL_BLOCK_H

#include "matmul_copy.h"

enum { STREAM_AHEAD = 1024 }; /* floats that are fetched ahead of a stream through b */

/* A tile of one vector whose columns are not W: through a copy that has them. */
static void
run_cut_tile(tile_args t, size_t rows, size_t columns)
{
    float full[TILE_ROWS * W], *c = t.c;
    size_t ldc = t.ldc;
    for (size_t r = 0; r < rows; r++) {
        vf_store(full + r * W, vf_load_n(t.init + r * t.ld_init, columns));
    }
    t.init = t.c = full;
    t.ld_init = t.ldc = W;
    tile_fma(&t, rows, 1);
    for (size_t r = 0; r < rows; r++) {
        vf_store_n(c + r * ldc, vf_load(full + r * W), columns);
    }
}

/* One tile of rows across panels, or the columns of one, two vectors at a time. */
static void
run_tile(tile_args t, size_t rows, size_t panels, size_t columns)
{
    if (panels > 1) {
        tile_fma(&t, rows, 2 * panels);
        return;
    }
    for (size_t width; columns > 0; columns -= width) {
        width = columns >= TILE_COLS ? TILE_COLS : columns >= W ? W : columns;
        if (width < W) {
            run_cut_tile(t, rows, columns);
        } else {
            tile_fma(&t, rows, width / W);
        }
        t.c += width;
        t.init += width;
        t.b += width;
    }
}

/* Steps of the sum between two passes over c: all of them where every element of b is read once, as
 * it lies, else so many that a panel of b stays in cache; and no more than the copies have room
 * for. */
static size_t
sum_block(const product *p, size_t rows)
{
    size_t of_row = p->bf16 ? 2 : 1, block = B_ROWS * of_row;
    if (p->layout == LAYOUT_PANELS && rows <= TILE_ROWS) {
        block = SIZE_MAX;
    }
    if (p->bf16 || p->K == EXPERT_ROWS) {
        size_t lanes = p->K == EXPERT_ROWS ? split_count(rows, TILE_ROWS) * W : rows;
        size_t room = A_ROOM / lanes / 2 * 2;
        block = block < room ? block : room;
    }
    return block;
}

/* A task at work: its block of the sum from step k on, a as the tiles read it (copy_a). */
typedef struct {
    const product *p;
    const product_task *t;
    const float *a;
    size_t a_stride, k;
    cuts cut;
} worker_state;

/* All tiles of rows over panels panel .. panel + wide, whose b is at `b`, copied from, or at,
 * `from`. */
static void
run_tiles(worker_state *w, size_t panel, size_t wide, const float *b, const float *from)
{
    const product *p = w->p;
    const int over_rows = p->K == EXPERT_ROWS, packed = p->layout == LAYOUT_PANELS;
    const size_t j = panel * R1_PANEL, columns = split_end(p->columns, j, R1_PANEL) - j;
    tile_args t = {.b = b, .ldb = R1_PANEL, .b_panel = p->b_panel, .K = w->cut.b_rows,
                   .ldc = p->ldc, .bf16 = p->bf16};
    for (size_t i = 0; i < w->cut.tiles; i++) {
        size_t r = w->cut.start[i], n = w->cut.start[i + 1] - r;
        t.a = w->a + (over_rows ? i * W : r) * w->a_stride;
        t.a_row = over_rows ? 1 : w->a_stride;
        t.a_k = over_rows ? W : 1;
        t.c = w->t->c + r * p->ldc + j;
        t.init = product_start(p, panel, t.c, w->k, &t.ld_init);
        t.init_panel = t.init == t.c ? R1_PANEL : p->start_panel;
        t.ahead = b;
        t.ld_ahead = 0;
        if (packed && w->cut.tiles == 1) {
            t.ahead = from + STREAM_AHEAD;
            t.ld_ahead = R1_PANEL;
        } else if ((packed || !p->bf16) && i == 0 && panel + 1 < w->t->p1) {
            t.ahead = from + p->b_panel;
            t.ld_ahead = p->ldb;
        }
        run_tile(t, n, wide, columns);
    }
}

/* Panels at a time: several where few rows meet b as it lies. */
static size_t
panels_at_once(const worker_state *w, size_t panel)
{
    const product *p = w->p;
    size_t few = p->layout == LAYOUT_PANELS && w->cut.tiles == 1;
    size_t wide = few ? tile_panels(w->cut.start[1]) : 1;
    while (wide > 1 && (panel + wide > w->t->p1 || (panel + wide) * R1_PANEL > p->columns)) {
        wide /= 2;
    }
    return wide;
}

/* scratch: A_ROOM + B_ROOM floats */
static __attribute__((noinline)) void
run_block(const product *p, const product_task *t, float *scratch)
{
    float *a_copy = scratch, *b_copy = scratch + A_ROOM;
    const size_t rows = t->r1 - t->r0;
    worker_state w = {.p = p, .t = t};
    cut_tiles(&w.cut, rows);
    do { /* once even if the sum is empty: c = start */
        cut_steps(&w.cut, p, w.k, t->K, sum_block(p, rows));
        w.a = copy_a(a_copy, p, t->a + w.k * p->a_k, &w.cut, &w.a_stride);
        for (size_t panel = t->p0, wide; panel < t->p1; panel += wide) {
            const float *from = t->b + panel * p->b_panel;
            wide = panels_at_once(&w, panel);
            if (p->layout == LAYOUT_PANELS) {
                from += w.k / (p->bf16 ? 2 : 1) * p->ldb;
                run_tiles(&w, panel, wide, from, from);
                continue;
            }
            from += w.k * p->ldb;
            size_t in_copy = p->bf16 ? (panel - t->p0) % B_PANELS : 0;
            if (in_copy == 0) {
                size_t end = split_end(t->p1, panel, B_PANELS) * R1_PANEL;
                end = end < p->columns ? end : p->columns;
                copy_b(b_copy, p, from, end - panel * R1_PANEL, &w.cut);
            }
            run_tiles(&w, panel, wide, b_copy + in_copy * w.cut.b_rows * R1_PANEL, from);
        }
        w.k += w.cut.steps;
    } while (w.k < t->K);
}

#endif
