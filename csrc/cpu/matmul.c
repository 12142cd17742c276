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
 * time, to the stack, and tn its block of a too: rows of dy that lie far apart would each cost a
 * cache line and a page. The tile is matmul_kernel.h.
 *
 * In bf16 both operands are rounded where they meet: W in its panels, x and dy on their way to the
 * stack, W in nn as forward rounded it; a sum over rows of odd length is padded by a product of
 * 0. The chain is the same, of fused multiply-adds on every tier, but that what is below 2^-126
 * counts as 0 (bf16.h); c, start and bias stay float32. */
#include "bf16.h"
#include "cpu.h"
#include "matmul_kernel.h"
#include "simd.h"
#include "split.h"

enum {
    SUM_BLOCK = 128,      /* of the sum: a block of a panel is 16 KiB */
    MAX_TASK_ROWS = 96,   /* of c a task takes at most: a multiple of TILE_ROWS when halved */
    BF16_TASK_ROWS = 192, /* the same in bf16, where b costs more to copy */
    MAX_TASK_PANELS = 8,  /* panels of c a task takes at most */
    TASKS_A_THREAD = 2,   /* aimed at, so that threads finish together */
    TINY = 20000,         /* multiply-adds that are not worth a wake-up */
};

static const float ZEROS[R1_PANEL];

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
    size_t task_rows, task_panels; /* at most, of c, for one task */
} product;

#define EXPERT_ROWS SIZE_MAX

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

/* to (K, columns; row stride ld, a multiple of W) = from; what pads the last vector is 0. */
static void
copy_block(float *to, size_t ld, const float *from, size_t from_ld, size_t K, size_t columns)
{
    for (size_t k = 0; k < K; k++, to += ld, from += from_ld) {
        size_t j = 0;
        for (; j + W <= columns; j += W) {
            vf_store(to + j, vf_load(from + j));
        }
        if (j < columns) {
            vf_store(to + j, vf_load_n(from + j, columns - j));
        }
    }
}

/* to (ceil(K / 2), columns; row stride ld) = pairs of rows of from; an odd last row meets `pad`, and
 * what lies beyond the columns is 0. */
static void
pair_rows(u32_u *to, size_t ld, const float *from, size_t from_ld, size_t K, size_t columns,
          float pad)
{
    for (size_t k = 0; k < K; k += 2, to += ld, from += 2 * from_ld) {
        if (k + 1 < K) {
            for (size_t j = 0; j < columns; j++) {
                to[j] = bf16_pair(from[j], from[from_ld + j]);
            }
        } else {
            for (size_t j = 0; j < columns; j++) {
                to[j] = bf16_pair(from[j], pad);
            }
        }
        memset(to + columns, 0, (ld - columns) * sizeof *to);
    }
}

#if BF16_PAIRS
/* to (ceil(K / 2)) = pairs of neighbours; an odd last one meets `pad`. */
static void
pair_neighbours(u32_u *to, const float *from, size_t K, float pad)
{
    for (size_t k = 0; k < K / 2; k++) {
        to[k] = bf16_pair(from[2 * k], from[2 * k + 1]);
    }
    if (K % 2 == 1) {
        to[K / 2] = bf16_pair(from[K - 1], pad);
    }
}
#endif

/* The block (rows, K) of a that starts at `from`, rounded to bf16, as the tile wants it. The copy's
 * row r is at r SUM_BLOCK; in tn, where the sum runs over rows, its step k at k BF16_TASK_ROWS. */
static void
copy_rounded(float *to, const product *p, const float *from, size_t rows, size_t K)
{
    int over_rows = p->K == EXPERT_ROWS;
#if BF16_PAIRS
    if (over_rows) {
        pair_rows((u32_u *)to, BF16_TASK_ROWS, from, p->a_k, K, rows, -0.0f);
    }
    for (size_t r = 0; !over_rows && r < rows; r++) {
        pair_neighbours((u32_u *)to + r * SUM_BLOCK, from + r * p->a_row, K, -0.0f);
    }
#else
    size_t lines = over_rows ? K : rows, length = over_rows ? rows : K;
    size_t ld = over_rows ? BF16_TASK_ROWS : SUM_BLOCK, from_ld = over_rows ? p->a_k : p->a_row;
    for (size_t i = 0; i < lines; i++) {
        for (size_t j = 0; j < length; j++) {
            to[i * ld + j] = bf16_round(from[i * from_ld + j]);
        }
    }
    for (size_t r = 0; K % 2 == 1 && r < rows; r++) {
        to[over_rows ? K * ld + r : r * ld + K] = -0.0f;
    }
#endif
}

/* One tile of rows across a panel. The last columns go through a full-width copy of the tile. */
static void
run_tile(tile_args t, size_t rows, size_t columns)
{
    for (; columns >= TILE_COLS; columns -= TILE_COLS) {
        tile_fma(&t, rows);
        t.c += TILE_COLS;
        t.init += TILE_COLS;
        t.b += TILE_COLS;
    }
    if (columns > 0) {
        float full[TILE_ROWS * TILE_COLS] = {0};
        for (size_t r = 0; r < rows; r++) {
            memcpy(full + r * TILE_COLS, t.init + r * t.ld_init, columns * sizeof(float));
        }
        float *c = t.c;
        size_t ldc = t.ldc;
        t.init = t.c = full;
        t.ld_init = t.ldc = TILE_COLS;
        tile_fma(&t, rows);
        for (size_t r = 0; r < rows; r++) {
            memcpy(c + r * ldc, full + r * TILE_COLS, columns * sizeof(float));
        }
    }
}

/* Rows r0 .. r1 and panels p0 .. p1 of expert e's c, one block of the sum after another. */
static __attribute__((noinline)) void
run_block(const product *p, size_t e, size_t r0, size_t r1, size_t p0, size_t p1)
{
    float a_copy[SUM_BLOCK * BF16_TASK_ROWS] __attribute__((aligned(64)));
    float b_copy[SUM_BLOCK * R1_PANEL] __attribute__((aligned(64)));
    size_t n0 = first_row(p, e), rows = r1 - r0, tiles = split_count(rows, TILE_ROWS);
    size_t K = p->K == EXPERT_ROWS ? first_row(p, e + 1) - n0 : p->K;
    const float *b = p->b + n0 * p->b_n + e * p->b_e;
    float *c = p->c + n0 * p->c_n + e * p->c_e + r0 * p->ldc;
    size_t k = 0;
    do { /* once even if the sum is empty: c = start */
        tile_args t = {.a_row = p->a_row, .a_k = p->a_k, .ldb = R1_PANEL, .ldc = p->ldc,
                       .bf16 = p->bf16};
        size_t steps = split_end(K, k, SUM_BLOCK) - k;
        t.K = p->bf16 ? (steps + 1) / 2 : steps;
        const float *a = p->a + n0 * p->a_n + r0 * p->a_row + k * p->a_k;
        if (p->bf16 || p->K == EXPERT_ROWS) {
            if (p->bf16) {
                copy_rounded(a_copy, p, a, rows, steps);
            } else {
                copy_block(a_copy, MAX_TASK_ROWS, a, p->a_k, steps, rows);
            }
            a = a_copy;
            t.a_row = p->K == EXPERT_ROWS ? 1 : SUM_BLOCK;
            t.a_k = p->K != EXPERT_ROWS ? 1 : p->bf16 ? BF16_TASK_ROWS : MAX_TASK_ROWS;
        }
        for (size_t panel = p0; panel < p1; panel++) {
            size_t j = panel * R1_PANEL, columns = split_end(p->columns, j, R1_PANEL) - j;
            t.b = b + panel * p->b_panel + (p->packed && p->bf16 ? k / 2 : k) * p->ldb;
            if (!p->packed) {
                if (p->bf16) {
                    pair_rows((u32_u *)b_copy, R1_PANEL, t.b, p->ldb, steps, columns, 0.0f);
                } else {
                    copy_block(b_copy, R1_PANEL, t.b, p->ldb, steps, columns);
                }
                t.b = b_copy;
            }
            for (size_t i = 0; i < tiles; i++) { /* even shares of the rows */
                size_t r = i * rows / tiles;
                t.a = a + r * t.a_row;
                t.c = c + r * p->ldc + j;
                t.init = t.c;
                t.ld_init = p->ldc;
                if (p->start != NULL && k == 0) {
                    t.init = p->start + panel * p->start_panel;
                    t.ld_init = 0;
                }
                run_tile(t, (i + 1) * rows / tiles - r, columns);
            }
        }
        k += steps;
    } while (k < K);
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

/* Large tasks reuse a and b most; they shrink until every thread has a few. */
static void
run_product(r1_dev *dev, product *p)
{
    size_t threads = r1_pool_threads(dev->pool), tasks;
    p->task_rows = p->bf16 ? BF16_TASK_ROWS : MAX_TASK_ROWS;
    p->task_panels = MAX_TASK_PANELS;
    while ((tasks = sum_tasks(p)) < TASKS_A_THREAD * threads) {
        if (p->task_panels > 1) {
            p->task_panels /= 2;
        } else if (p->task_rows > 2 * TILE_ROWS) {
            p->task_rows /= 2;
        } else {
            break;
        }
    }
    size_t rows = p->M == EXPERT_ROWS ? p->N : p->M, sum = p->K == EXPERT_ROWS ? p->N : p->K;
    if (rows * sum * p->columns < TINY) {
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
    size_t panel = (bf16 ? split_count(w->I, 2) : w->I) * R1_PANEL;
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
    assert(offsets != NULL || w->E == 1);
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
                size_t E, const int32_t *offsets, r1_dtype dtype, r1_status *st)
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
    };
    run_product(dev, &p);
    return R1_OK;
}

typedef struct {
    const r1_tensor *dbias, *dy;
    size_t step; /* columns a task */
} bias_job;

/* Columns c .. c + vecs W: a chain over rows for each. vecs is a constant where this is inlined. */
static inline __attribute__((always_inline)) void
sum_vectors(const bias_job *job, size_t c, size_t left, const size_t vecs)
{
    float *dbias = row_f32(job->dbias, 0) + c;
    vf sum[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        sum[i] = vf_load_left(dbias + i * W, left - i * W);
    }
    for (size_t n = 0; n < job->dy->rows; n++) {
        const float *dy = row_f32(job->dy, n) + c;
#pragma GCC unroll 4
        for (size_t i = 0; i < vecs; i++) {
            sum[i] += vf_load_left(dy + i * W, left - i * W);
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        vf_store_left(dbias + i * W, sum[i], left - i * W);
    }
}

static void
sum_columns(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const bias_job *job = ctx;
    size_t c = task * job->step, end = split_end(job->dy->cols, c, job->step);
    for (; c + 4 * W <= end; c += 4 * W) {
        sum_vectors(job, c, 4 * W, 4);
    }
    for (; c < end; c += W) {
        sum_vectors(job, c, end - c, 1);
    }
}

r1_code
TIER(bias_bwd)(r1_dev *dev, const r1_tensor *dbias, const r1_tensor *dy, r1_status *st)
{
    (void)st;
    assert(dbias->cols == dy->cols);
    bias_job job = {dbias, dy, split_columns(dy->cols, r1_pool_threads(dev->pool))};
    r1_pool_run(dev->pool, split_count(dy->cols, job.step), sum_columns, &job);
    return R1_OK;
}
