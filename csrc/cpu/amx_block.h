/* amx_block.h - a task of a product on the matrix unit: blocks of the sum, panels of b, tiles of
 * rows.
 *
 * Caches decide the order. a's part of the sum, up to 512 rows and 1,024 steps, is packed once and
 * stays in the second cache; a slice of a panel of b, up to 256 steps, in the first, while all
 * tiles of rows meet it; between slices the panel's c waits in a buffer without gaps. Where b must
 * be packed too, it is kept for the next 512 rows. While tiles are at work they fetch the panel
 * after, each its share. What is written once and is too large for caches goes past them. Knows
 * nothing about experts. */
#ifndef R1_AMX_BLOCK_H
#define R1_AMX_BLOCK_H

#include "amx_pack.h"

enum {
    AMX_SLICE = 8,  /* blocks of the sum that stay in the first cache */
    AMX_FEW = 3,    /* tiles of rows for which slices do not pay */
    AMX_STREAM = 8 << 20, /* bytes of c: then it is written past the caches */
};

/* Copies of one thread. */
typedef struct {
    float *a, *b, *c;
} amx_room;

/* One panel at hand: blocks of the sum from step k on, its operands, and what comes next. */
typedef struct {
    const product *p;
    size_t k, blocks, panel, rows;
    size_t tile_rows; /* that tiles are configured for: fewer than 32 where the task has no more */
    float *c;
    const float *a, *b, *ahead;
    float *buffer; /* (rows, 32) */
} amx_work;

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

/* A whole tile, written past the caches. */
static inline void
amx_stream_tile(amx_args t)
{
    float full[AMX_ROWS * AMX_ROWS] __attribute__((aligned(64))), *c = t.c;
    size_t ldc = t.ldc;
    t.c = full;
    t.ldc = AMX_ROWS;
    amx_tile(&t, AMX_ROWS);
    for (size_t r = 0; r < AMX_ROWS; r++) {
        _mm512_stream_ps(c + r * ldc, (__m512)vf_load(full + r * AMX_ROWS));
        _mm512_stream_ps(c + r * ldc + W, (__m512)vf_load(full + r * AMX_ROWS + W));
    }
}

/* c is overwritten, large, and lies in whole cache lines. */
static inline int
amx_streams(const product *p, const float *c, size_t rows)
{
    return p->start != NULL && p->c_rows * p->columns * sizeof *c >= AMX_STREAM &&
           p->ldc % SPLIT_LINE == 0 && (uintptr_t)c % 64 == 0 && rows >= AMX_ROWS;
}

/* One tile of rows r .. r + 32, blocks s0 .. s1 of the sum. */
static inline void
amx_one(const amx_work *w, size_t r, size_t s0, size_t s1, size_t fetch, int stream)
{
    const product *p = w->p;
    const size_t j = w->panel * R1_PANEL, columns = split_end(p->columns, j, R1_PANEL) - j;
    const size_t n = split_end(w->rows, r, AMX_ROWS) - r;
    const int last = s1 == w->blocks;
    float *c = w->c + r * p->ldc + j, *buffer = w->buffer + r * AMX_ROWS;
    amx_args tile = {.c = c, .ldc = p->ldc, .a = w->a + r * w->blocks * AMX_PAIRS,
                     .a_half = w->blocks * AMX_A_BLOCK, .b = w->b, .blocks = w->blocks,
                     .ahead = w->b};
    tile.init = product_start(p, w->panel, c, w->k, &tile.ld_init);
    if (columns < R1_PANEL || n < w->tile_rows) { /* all slices in one go */
        if (last) {
            amx_cut_tile(tile, n, columns);
        }
        return;
    }
    tile.a += s0 * AMX_A_BLOCK;
    tile.b += s0 * AMX_B_BLOCK;
    tile.blocks = s1 - s0;
    if (s0 > 0) {
        tile.init = buffer;
        tile.ld_init = AMX_ROWS;
    }
    if (!last) {
        tile.c = buffer;
        tile.ldc = AMX_ROWS;
    }
    if (fetch > 0) {
        tile.ahead = w->ahead + s0 * AMX_B_BLOCK + r / AMX_ROWS * fetch * SPLIT_LINE;
        tile.fetch = fetch;
    }
    if (last && stream && n == AMX_ROWS) {
        amx_stream_tile(tile);
    } else {
        amx_tile(&tile, n);
    }
}

/* All tiles of rows of a panel, slice by slice. */
static inline void
amx_panel(const amx_work *w, int stream)
{
    size_t tiles = split_count(w->rows, AMX_ROWS);
    size_t slices = tiles > AMX_FEW && w->blocks > 0 ? split_count(w->blocks, AMX_SLICE) : 1;
    size_t fetch = w->ahead != NULL ? split_count(AMX_ROWS, tiles) : 0;
    for (size_t i = 0; i < slices; i++) {
        for (size_t r = 0; r < w->rows; r += AMX_ROWS) {
            amx_one(w, r, i * w->blocks / slices, (i + 1) * w->blocks / slices, fetch, stream);
        }
    }
}

/* The panels of a task for rows r .. r + w->rows; b is packed where `pack` says so. */
static inline void
amx_panels(amx_work *w, const product_task *t, const amx_sum *sum, const amx_room *room, int pack)
{
    const product *p = w->p;
    const int stream = amx_streams(p, w->c, w->rows) && w->k + sum->steps >= t->K && w->k == 0;
    for (w->panel = t->p0; w->panel < t->p1; w->panel++) {
        size_t done = w->panel - t->p0, j = w->panel * R1_PANEL;
        float *b = room->b + done * sum->blocks * AMX_B_BLOCK;
        w->b = b;
        w->ahead = NULL;
        if (p->layout == LAYOUT_PANELS) {
            w->b = t->b + w->panel * p->b_panel + w->k / 2 * R1_PANEL;
            w->ahead = w->panel + 1 < t->p1 ? w->b + p->b_panel : NULL;
        } else if (pack && p->layout == LAYOUT_TURNED) {
            amx_pack_turned(b, t->b + w->panel * AMX_B_BLOCK + w->k / AMX_SUM * p->b_panel,
                            p->b_panel, sum);
        } else if (pack && done % AMX_PANELS == 0) {
            size_t end = split_end(t->p1, w->panel, AMX_PANELS) * R1_PANEL;
            end = end < p->columns ? end : p->columns;
            amx_pack_plain(b, t->b + w->k * p->ldb + j, p->ldb, end - j, sum);
        }
        amx_panel(w, stream);
    }
    if (stream) {
        _mm_sfence();
    }
}

/* scratch: PRODUCT_SCRATCH floats */
static __attribute__((noinline)) void
amx_block(const product *p, const product_task *t, float *scratch)
{
    const size_t rows = t->r1 - t->r0, tile_rows = rows < AMX_ROWS ? rows : AMX_ROWS;
    const amx_room room = {scratch, scratch + AMX_A_ROOM, scratch + AMX_A_ROOM + AMX_B_ROOM};
    size_t k = 0;
    amx_configure(tile_rows);
    do { /* once even if the sum is empty: c = start */
        amx_sum sum;
        amx_cut(&sum, p, t, k);
        for (size_t r = 0; r < rows; r += MATRIX_PART_ROWS) {
            amx_work w = {.p = p, .k = k, .blocks = sum.blocks, .tile_rows = tile_rows,
                          .rows = split_end(rows, r, MATRIX_PART_ROWS) - r,
                          .c = t->c + r * p->ldc, .a = room.a, .buffer = room.c};
            const float *a = t->a + k * p->a_k + r * p->a_row;
            if (p->K == EXPERT_ROWS) {
                amx_pack_columns(room.a, a, p->a_k, w.rows, &sum);
            } else {
                amx_pack_rows(room.a, a, p->a_row, w.rows, &sum);
            }
            amx_panels(&w, t, &sum, &room, r == 0);
        }
        k += sum.steps;
    } while (k < t->K);
    amx_release();
}

#endif
