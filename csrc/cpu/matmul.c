/* matmul.c - the three products of a linear map, over one matrix or a group of experts.
 *
 *   nt   y  (N, O)   [+]= x (N, I) W^T [+ bias]    c rows n, columns o, sum over i
 *   nn   dx (N, I)   [+]= dy (N, O) W              c rows n, columns i, sum over o
 *   tn   dW (E O, I) [+]= dy^T (O, N) x (N, I)     c rows o, columns i, sum over n
 *
 * One element is one chain of fused multiply-adds (baseline: multiply, add) in ascending index
 * order that starts from the value in memory, from bias, or from 0. Work is split over rows,
 * columns and experts, never over the sum; blocks of the sum hand on float32 values through
 * memory, which loses nothing. Hence the bits depend neither on the number of rows nor on
 * blocking or threads, and a sum over rows split between two calls of tn gives what one call
 * gives.
 *
 * All three are one loop nest over c = a b: blocks of the sum, panels of 32 columns of b, tiles of
 * rows. Here are their operands and how they are cut into tasks; matmul_block.h and, on the matrix
 * unit, amx_block.h do a task, in scratch memory that the device keeps for each thread.
 *
 * In bf16 both operands are rounded where they meet: W in its panels, x and dy on their way to the
 * scratch, W in nn as forward rounded it; a sum over rows of odd length is padded by a product of
 * 0. The chain is the same, of fused multiply-adds on every tier, but that what is below 2^-126
 * counts as 0 (bf16.h); c, start and bias stay float32. The matrix unit has an order of its own
 * (amx_tile.h), in nt and nn again the same for any number of rows; in tn it takes a unit of rows
 * (ops.h) as a block, so that there a sum may be split between two calls where a unit ends, and it
 * leaves sums without units to the chain. */
#include "matmul_block.h"
#if BF16_AMX
#include "amx_block.h"
#endif

enum {
    TASK_PANELS = 8,      /* panels of c a task takes at most, where a costs nothing to prepare */
    TASKS_A_THREAD = 2,   /* aimed at, so that threads finish together; one where a must be packed */
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

/* Where block i of so many starts: an even share of the rows, in whole tiles of the matrix unit. */
static size_t
block_start(const product *p, size_t rows, size_t i, size_t blocks)
{
    size_t unit = uses_amx(p) ? MATRIX_ROWS : 1;
    size_t start = i * split_count(rows, unit) / blocks * unit;
    return start < rows ? start : rows;
}

/* Tasks in the order expert, block of rows, block of panels. */
static void
run_task(void *ctx, size_t task, size_t worker)
{
    const product *p = ctx;
    size_t e = 0;
    for (size_t tasks; task >= (tasks = count_tasks(p, e)); e++) {
        task -= tasks;
    }
    size_t rows = count_rows(p, e), row_blocks = split_count(rows, p->task_rows);
    size_t panels = split_count(p->columns, R1_PANEL);
    size_t panel_blocks = split_count(panels, p->task_panels);
    size_t i = task / panel_blocks, j = task % panel_blocks, n0 = first_row(p, e);
    product_task t = {
        .n0 = n0, .K = p->K == EXPERT_ROWS ? first_row(p, e + 1) - n0 : p->K,
        .r0 = block_start(p, rows, i, row_blocks), .r1 = block_start(p, rows, i + 1, row_blocks),
        .p0 = j * panels / panel_blocks, .p1 = (j + 1) * panels / panel_blocks,
        .b = p->b + n0 * p->b_n + e * p->b_e,
    };
    t.c = p->c + n0 * p->c_n + e * p->c_e + t.r0 * p->ldc;
    t.a = p->a + n0 * p->a_n + t.r0 * p->a_row;
    if (t.K == 0 && p->start == NULL) {
        return;
    }
    float *scratch = p->scratch + worker * PRODUCT_SCRATCH;
#if BF16_AMX
    if (uses_amx(p)) {
        amx_block(p, &t, scratch);
        return;
    }
#endif
    uint32_t mode = p->bf16 ? bf16_enter() : 0;
    run_block(p, &t, scratch);
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

/* Large tasks reuse a and b most. On vectors a costs nothing to prepare, so that a few panels will
 * do. The matrix unit wants a packed: in nt all panels share it; nn and tn pack b too and keep it,
 * which tn, whose c is the largest, does for more rows. */
static void
largest_task(product *p)
{
    p->task_rows = TASK_ROWS;
    p->task_panels = TASK_PANELS;
    if (uses_amx(p)) {
        p->task_rows = p->K == EXPERT_ROWS ? MATRIX_MOST_ROWS : MATRIX_PART_ROWS;
        p->task_panels = p->layout == LAYOUT_PANELS ? split_count(p->columns, R1_PANEL)
                                                    : MATRIX_PANELS;
    }
}

/* Tasks shrink until every thread has a few, or one where splitting costs more than waiting: on the
 * matrix unit, and where the rows are so few that a tile wants several panels. */
static void
run_product(r1_dev *dev, product *p)
{
    size_t rows = p->M == EXPERT_ROWS ? p->N : p->M, sum = p->K == EXPERT_ROWS ? p->N : p->K;
    size_t few = p->layout == LAYOUT_PANELS && p->N <= TILE_ROWS;
    size_t tiny = rows * sum * p->columns < TINY;
    size_t once = few || uses_amx(p), tasks;
    size_t aim = tiny ? 1 : r1_pool_threads(dev->pool) * (once ? 1 : TASKS_A_THREAD);
    p->scratch = dev->scratch;
    p->c_rows = p->M == EXPERT_ROWS ? p->N : p->E * p->M;
    largest_task(p);
    while ((tasks = sum_tasks(p)) < aim) {
        if (p->task_rows > MATRIX_PART_ROWS) {
            p->task_rows /= 2;
        } else if (p->task_panels > 1) {
            p->task_panels /= 2;
        } else if (p->task_rows > 2 * (uses_amx(p) ? MATRIX_ROWS : TILE_ROWS)) {
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
        .b_e = split_count(w->O, R1_PANEL) * panel, .layout = LAYOUT_PANELS, .bf16 = bf16,
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
    if (uses_amx(&p)) { /* half the bytes of the master, and rounded */
        p.b = w->panels;
        p.b_panel = panel_rows(w->dtype, w->I) * R1_PANEL;
        p.b_e = split_count(w->O, R1_PANEL) * p.b_panel;
        p.layout = LAYOUT_TURNED;
    }
    run_product(dev, &p);
    return R1_OK;
}

r1_code
TIER(matmul_tn)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const r1_tensor *x,
                size_t E, const int32_t *offsets, r1_dtype dtype, const r1_units *units,
                int accumulate, r1_status *st)
{
    (void)st;
    assert(dw->rows == E * dy->cols && dw->cols == x->cols && dy->rows == x->rows);
    assert(offsets != NULL || E == 1);
    product p = {
        .offsets = offsets, .E = E, .N = x->rows, .columns = x->cols, .M = dy->cols,
        .K = EXPERT_ROWS,
        .c = dw->data, .ldc = dw->ld, .c_e = dy->cols * dw->ld, .start = accumulate ? NULL : ZEROS,
        .a = dy->data, .a_row = 1, .a_k = dy->ld, .a_n = dy->ld,
        .b = x->data, .ldb = x->ld, .b_panel = R1_PANEL, .b_n = x->ld, .bf16 = dtype == R1_BF16,
        .units = units,
    };
    run_product(dev, &p);
    return R1_OK;
}
