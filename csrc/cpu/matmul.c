/* matmul.c - the three products of a linear map, over one matrix or a group of experts.
 *
 *   nt   y  (N, O)   [+]= x (N, I) W^T [+ bias]    c rows n, columns o, sum over i
 *   nn   dx (N, I)   [+]= dy (N, O) W              c rows n, columns i, sum over o
 *   tn   dW (E O, I) += dy^T (O, N) x (N, I)       c rows o, columns i, sum over n
 *
 * One element is one chain of fused multiply-adds (baseline: multiply, add) in ascending index
 * order that starts from the value in memory, from bias, or from 0. Work is split over rows,
 * columns and experts, never over the sum; blocks of the sum hand on float32 values through
 * memory, which loses nothing. Hence the bits depend neither on the number of rows nor on
 * blocking or threads, and a sum over rows split between two calls of tn gives what one call
 * gives.
 *
 * All three are one loop nest over c = a b: blocks of the sum, panels of 32 columns of b, tiles of
 * rows. nt finds b packed in panels (weight.c); nn and tn copy theirs, one block of a panel at a
 * time, to the stack, and tn its block of a too (matmul_copy.h). While a tile is at work it fetches what
 * the next panel will read. The tiles are matmul_kernel.h and matmul_amx.h.
 *
 * In bf16 both operands are rounded where they meet: W in its panels, x and dy on their way to the
 * stack, W in nn as forward rounded it; a sum over rows of odd length is padded by a product of
 * 0. The chain is the same, of fused multiply-adds on every tier, but that what is below 2^-126
 * counts as 0 (bf16.h); c, start and bias stay float32. The matrix unit has an order of its own
 * (matmul_amx.h), in nt and nn again the same for any number of rows; in tn it takes a unit of rows
 * (ops.h) as a block, so that there a sum may be split between two calls where a unit ends, and it
 * leaves sums without units to the chain. */
#include "matmul_amx.h"
#include "matmul_copy.h"
#include "matmul_kernel.h"

enum {
    TASK_PANELS = 8,      /* panels of c a task takes at most */
    AMX_TASK_PANELS = 32, /* the same where rounding a costs as much as multiplying */
    TASKS_A_THREAD = 2,   /* aimed at, so that threads finish together */
    STREAM_AHEAD = 1024,  /* floats that are fetched ahead of a stream through b */
    TINY = 20000,         /* multiply-adds that are not worth a wake-up */
};

static const float ZEROS[R1_PANEL];

static size_t
first_row(const product *p, size_t e)
{
    return p->offsets != NULL ? (size_t)p->offsets[e] : e * p->N;
}

static size_t
count_rows(const product *p, size_t e)
{
    return p->M == EXPERT_ROWS ? first_row(p, e + 1) - first_row(p, e) : p->M;
}

static size_t
count_tasks(const product *p, size_t e)
{
    return split_count(count_rows(p, e), p->task_rows) *
           split_count(split_count(p->columns, R1_PANEL), p->task_panels);
}

static void
multiply(const tile_args *t, const product *p, size_t rows)
{
    if (uses_amx(p)) {
        amx_tile(t, rows);
    } else {
        tile_fma(t, rows, 1);
    }
}

/* One tile of rows across panels; the last columns of the last go through a full-width copy. */
static void
run_tile(tile_args t, const product *p, size_t rows, size_t panels, size_t columns)
{
    if (panels > 1) {
        tile_fma(&t, rows, panels);
        return;
    }
    size_t step = uses_amx(p) ? R1_PANEL : TILE_COLS;
    for (; columns >= step; columns -= step) {
        multiply(&t, p, rows);
        t.c += step;
        t.init += step;
        t.b += step;
    }
    if (columns > 0) {
        float full[AMX_ROWS * R1_PANEL] = {0};
        for (size_t r = 0; r < rows; r++) {
            memcpy(full + r * step, t.init + r * t.ld_init, columns * sizeof(float));
        }
        float *c = t.c;
        size_t ldc = t.ldc;
        t.init = t.c = full;
        t.ld_init = t.ldc = step;
        multiply(&t, p, rows);
        for (size_t r = 0; r < rows; r++) {
            memcpy(c + r * ldc, full + r * step, columns * sizeof(float));
        }
    }
}

/* Steps of the sum between two passes over c: all of them where every element of b is read once, as
 * it lies, else so many that a panel of b stays in cache; and no more than the copies have room for. */
static size_t
sum_block(const product *p, size_t rows)
{
    size_t of_row = p->bf16 ? 2 : 1, block = B_ROWS * of_row;
    if (p->packed && (uses_amx(p) || rows <= TILE_ROWS)) {
        block = SIZE_MAX;
    }
    if (p->bf16 || p->K == EXPERT_ROWS) {
        size_t room = A_ROOM / rows * (uses_amx(p) ? 2 : 1) / AMX_SUM * AMX_SUM;
        block = block < room ? block : room;
    }
    return block;
}

/* A task at work: its rows of c, its panels up to p1, the block of the sum from step k on. */
typedef struct {
    const product *p;
    float *c;
    const float *a;         /* as the tiles read it, a_row from row to row */
    size_t a_row, p1, k;
    size_t configured;      /* rows of the matrix unit's tiles; 0: not yet */
    cuts cut;
} worker_state;

/* All tiles of rows over panels panel .. panel + wide, whose b is at `b`, copied from, or at, `from`. */
static void
run_tiles(worker_state *w, size_t panel, size_t wide, const float *b, const float *from)
{
    const product *p = w->p;
    const int over_rows = p->K == EXPERT_ROWS, amx = uses_amx(p);
    const size_t j = panel * R1_PANEL, columns = split_end(p->columns, j, R1_PANEL) - j;
    tile_args t = {.b = b, .ldb = R1_PANEL, .b_panel = p->b_panel, .K = w->cut.b_rows,
                   .ldc = p->ldc, .bf16 = p->bf16};
    for (size_t i = 0; i < w->cut.tiles; i++) {
        size_t r = w->cut.start[i], n = w->cut.start[i + 1] - r;
        if (amx && w->configured != n) {
            amx_configure(w->configured = n);
        }
        t.a = w->a + r * w->a_row;
        t.a_row = over_rows && !amx ? 1 : w->a_row;
        t.a_k = over_rows ? n : 1;
        t.c = w->c + r * p->ldc + j;
        t.init = t.c;
        t.ld_init = p->ldc;
        t.init_panel = R1_PANEL;
        if (p->start != NULL && w->k == 0) {
            t.init = p->start + panel * p->start_panel;
            t.ld_init = 0;
            t.init_panel = p->start_panel;
        }
        t.ahead = b;
        t.ld_ahead = 0;
        if (p->packed && w->cut.tiles == 1) {
            t.ahead = from + STREAM_AHEAD;
            t.ld_ahead = R1_PANEL;
        } else if ((p->packed || !p->bf16) && i == 0 && panel + 1 < w->p1) {
            t.ahead = from + p->b_panel;
            t.ld_ahead = p->ldb;
        }
        run_tile(t, p, n, wide, columns);
    }
}

/* Panels at a time: several where few rows meet b as it lies. */
static size_t
panels_at_once(const worker_state *w, size_t panel)
{
    const product *p = w->p;
    size_t wide = p->packed && w->cut.tiles == 1 && !uses_amx(p) ? tile_panels(w->cut.start[1]) : 1;
    while (wide > 1 && (panel + wide > w->p1 || (panel + wide) * R1_PANEL > p->columns)) {
        wide /= 2;
    }
    return wide;
}

/* Rows r0 .. r1 and panels p0 .. p1 of expert e's c, one block of the sum after another. */
static __attribute__((noinline)) void
run_block(const product *p, size_t e, size_t r0, size_t r1, size_t p0, size_t p1)
{
    float a_copy[A_ROOM] __attribute__((aligned(64)));
    float b_copy[B_PANELS * B_ROWS * R1_PANEL] __attribute__((aligned(64)));
    const size_t n0 = first_row(p, e), K = p->K == EXPERT_ROWS ? first_row(p, e + 1) - n0 : p->K;
    const float *a = p->a + n0 * p->a_n + r0 * p->a_row, *b = p->b + n0 * p->b_n + e * p->b_e;
    worker_state w = {.p = p, .c = p->c + n0 * p->c_n + e * p->c_e + r0 * p->ldc, .p1 = p1};
    cut_tiles(&w.cut, p, r1 - r0);
    do { /* once even if the sum is empty: c = start */
        cut_steps(&w.cut, p, n0, w.k, K, sum_block(p, r1 - r0));
        w.a = copy_a(a_copy, p, a + w.k * p->a_k, &w.cut, &w.a_row);
        for (size_t panel = p0, wide; panel < p1; panel += wide) {
            const float *from = b + panel * p->b_panel;
            wide = panels_at_once(&w, panel);
            if (p->packed) {
                from += w.k / (p->bf16 ? 2 : 1) * p->ldb;
                run_tiles(&w, panel, wide, from, from);
                continue;
            }
            from += w.k * p->ldb;
            size_t in_copy = p->bf16 ? (panel - p0) % B_PANELS : 0;
            if (in_copy == 0) {
                size_t end = split_end(p1, panel, B_PANELS) * R1_PANEL;
                end = end < p->columns ? end : p->columns;
                copy_b(b_copy, p, from, end - panel * R1_PANEL, &w.cut);
            }
            run_tiles(&w, panel, wide, b_copy + in_copy * w.cut.b_rows * R1_PANEL, from);
        }
        w.k += w.cut.steps;
    } while (w.k < K);
    if (w.configured != 0) {
        amx_release();
    }
}

/* Tasks in the order expert, block of rows, block of panels; a block of rows is an even share. */
static void
run_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const product *p = ctx;
    size_t e = 0;
    for (size_t tasks; task >= (tasks = count_tasks(p, e)); e++) {
        task -= tasks;
    }
    size_t rows = count_rows(p, e), row_blocks = split_count(rows, p->task_rows);
    size_t panels = split_count(p->columns, R1_PANEL);
    size_t panel_blocks = split_count(panels, p->task_panels);
    size_t i = task / panel_blocks, j = task % panel_blocks;
    uint32_t mode = p->bf16 ? bf16_enter() : 0;
    run_block(p, e, i * rows / row_blocks, (i + 1) * rows / row_blocks, j * panels / panel_blocks,
              (j + 1) * panels / panel_blocks);
    if (p->bf16) {
        bf16_leave(mode);
    }
}

static size_t
sum_tasks(const product *p)
{
    size_t tasks = 0;
    for (size_t e = 0; e < p->E; e++) {
        tasks += count_tasks(p, e);
    }
    return tasks;
}

/* Large tasks reuse a and b most; they shrink until every thread has a few, or one where the rows are
 * so few that a tile wants several panels. */
static void
run_product(r1_dev *dev, product *p)
{
    size_t rows = p->M == EXPERT_ROWS ? p->N : p->M, sum = p->K == EXPERT_ROWS ? p->N : p->K;
    size_t few = p->packed && p->N <= TILE_ROWS, tiny = rows * sum * p->columns < TINY;
    size_t aim = tiny ? 1 : r1_pool_threads(dev->pool) * (few ? 1 : TASKS_A_THREAD), tasks;
    p->task_rows = TASK_ROWS;
    p->task_panels = uses_amx(p) ? AMX_TASK_PANELS : TASK_PANELS;
    while ((tasks = sum_tasks(p)) < aim) {
        if (p->task_panels > 1) {
            p->task_panels /= 2;
        } else if (p->task_rows > 2 * tile_rows(p)) {
            p->task_rows /= 2;
        } else {
            break;
        }
    }
    if (tiny) {
        for (size_t task = 0; task < tasks; task++) {
            run_task(p, task, 0);
        }
    } else {
        r1_pool_run(dev->pool, tasks, run_task, p);
    }
}

r1_code
TIER(matmul_nt)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const r1_weight *w,
                const r1_tensor *bias, const int32_t *offsets, int accumulate, r1_status *st)
{
    (void)st;
    assert(y->rows == x->rows && y->cols == w->O && x->cols == w->I);
    assert(!(accumulate && bias != NULL) && (offsets != NULL || w->E == 1));
    int bf16 = w->dtype == R1_BF16;
    size_t panel = panel_rows(w->dtype, w->I) * R1_PANEL;
    product p = {
        .offsets = offsets, .E = w->E, .N = x->rows, .columns = w->O, .M = EXPERT_ROWS, .K = w->I,
        .c = y->data, .ldc = y->ld, .c_n = y->ld,
        .start = accumulate ? NULL : bias != NULL ? bias->data : ZEROS,
        .start_panel = bias != NULL ? R1_PANEL : 0,
        .a = x->data, .a_row = x->ld, .a_k = 1, .a_n = x->ld,
        .b = w->panels, .ldb = R1_PANEL, .b_panel = panel,
        .b_e = split_count(w->O, R1_PANEL) * panel, .packed = 1, .bf16 = bf16,
    };
    run_product(dev, &p);
    return R1_OK;
}

r1_code
TIER(matmul_nn)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const r1_weight *w,
                const int32_t *offsets, int accumulate, r1_status *st)
{
    (void)st;
    assert(dx->rows == dy->rows && dy->cols == w->O && dx->cols == w->I);
    assert(w->master != NULL && (offsets != NULL || w->E == 1));
    product p = {
        .offsets = offsets, .E = w->E, .N = dy->rows, .columns = w->I, .M = EXPERT_ROWS, .K = w->O,
        .c = dx->data, .ldc = dx->ld, .c_n = dx->ld,
        .start = accumulate ? NULL : ZEROS,
        .a = dy->data, .a_row = dy->ld, .a_k = 1, .a_n = dy->ld,
        .b = w->master, .ldb = w->I, .b_panel = R1_PANEL, .b_e = w->O * w->I,
        .bf16 = w->dtype == R1_BF16,
    };
    run_product(dev, &p);
    return R1_OK;
}

r1_code
TIER(matmul_tn)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const r1_tensor *x,
                size_t E, const int32_t *offsets, r1_dtype dtype, const r1_units *units,
                r1_status *st)
{
    (void)st;
    assert(dw->rows == E * dy->cols && dw->cols == x->cols && dy->rows == x->rows);
    assert(offsets != NULL || E == 1);
    product p = {
        .offsets = offsets, .E = E, .N = x->rows, .columns = x->cols, .M = dy->cols,
        .K = EXPERT_ROWS,
        .c = dw->data, .ldc = dw->ld, .c_e = dy->cols * dw->ld,
        .a = dy->data, .a_row = 1, .a_k = dy->ld, .a_n = dy->ld,
        .b = x->data, .ldb = x->ld, .b_panel = R1_PANEL, .b_n = x->ld, .bf16 = dtype == R1_BF16,
        .units = units,
    };
    run_product(dev, &p);
    return R1_OK;
}
