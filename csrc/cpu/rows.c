/* rows.c - rows that are cleared, added, rounded, gathered and scattered.
 *
 *   fill_zero     x = 0
 *   add           y = a + b
 *   scale         y = factor x
 *   round_bf16    x = the nearest bf16 number (bf16.h)
 *   gather_rows   y[m] = x[idx[m]]
 *   scatter_rows  dx = 0, then dx[idx[m]] = dy[m];  the gradient of gather: the idx are distinct
 *
 * Copies, one addition or one product: else nothing rounds. Every tensor has a row stride of its own, so a
 * slice of columns is as good as a matrix. In parallel over rows. */
#include <string.h>

#include "bf16.h"
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *y, *a, *b;
    const int32_t *idx; /* (rows of y, or of a in scatter) */
    size_t step;        /* rows a task */
    float factor;
} rows_job;

/* Runs fn over blocks of `rows` rows of `cols` elements. */
static void
run_rows(r1_dev *dev, rows_job *job, size_t rows, size_t cols, r1_task fn)
{
    job->step = split_rows(cols);
    r1_pool_run(dev->pool, split_count(rows, job->step), fn, job);
}

static void
zero_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step);
    for (size_t n = n0; n < n1; n++) {
        memset(row_f32(job->y, n), 0, job->y->cols * sizeof(float));
    }
}

static void
add_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step), C = job->y->cols;
    for (size_t n = n0; n < n1; n++) {
        float *y = row_f32(job->y, n);
        const float *a = row_f32(job->a, n), *b = row_f32(job->b, n);
        for (size_t c = 0; c < C; c += W) {
            vf_store_left(y + c, vf_load_left(a + c, C - c) + vf_load_left(b + c, C - c), C - c);
        }
    }
}

static void
scale_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step), C = job->y->cols;
    for (size_t n = n0; n < n1; n++) {
        float *y = row_f32(job->y, n);
        const float *x = row_f32(job->a, n);
        for (size_t c = 0; c < C; c += W) {
            vf_store_left(y + c, vf_load_left(x + c, C - c) * vf_set1(job->factor), C - c);
        }
    }
}

static void
round_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step);
    for (size_t n = n0; n < n1; n++) {
        float *y = row_f32(job->y, n);
        bf16_round_row(y, y, job->y->cols);
    }
}

static void
take_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t m0 = task * job->step, m1 = split_end(job->y->rows, m0, job->step);
    for (size_t m = m0; m < m1; m++) {
        vf_copy(row_f32(job->y, m), row_f32(job->a, (size_t)job->idx[m]), job->y->cols);
    }
}

static void
put_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rows_job *job = ctx;
    size_t m0 = task * job->step, m1 = split_end(job->a->rows, m0, job->step);
    for (size_t m = m0; m < m1; m++) {
        vf_copy(row_f32(job->y, (size_t)job->idx[m]), row_f32(job->a, m), job->a->cols);
    }
}

r1_code
TIER(fill_zero)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    (void)st;
    run_rows(dev, &(rows_job){.y = x}, x->rows, x->cols, zero_rows);
    return R1_OK;
}

r1_code
TIER(add)(r1_dev *dev, const r1_tensor *y, const r1_tensor *a, const r1_tensor *b, r1_status *st)
{
    (void)st;
    assert(y->rows == a->rows && y->rows == b->rows && y->cols == a->cols && y->cols == b->cols);
    run_rows(dev, &(rows_job){.y = y, .a = a, .b = b}, y->rows, y->cols, add_rows);
    return R1_OK;
}

r1_code
TIER(scale)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, float factor, r1_status *st)
{
    (void)st;
    assert(y->rows == x->rows && y->cols == x->cols);
    rows_job job = {.y = y, .a = x, .factor = factor};
    run_rows(dev, &job, y->rows, y->cols, scale_rows);
    return R1_OK;
}

r1_code
TIER(round_bf16)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    (void)st;
    run_rows(dev, &(rows_job){.y = x}, x->rows, x->cols, round_rows);
    return R1_OK;
}

r1_code
TIER(gather_rows)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const int32_t *idx,
                  r1_status *st)
{
    (void)st;
    assert(y->cols == x->cols);
    run_rows(dev, &(rows_job){.y = y, .a = x, .idx = idx}, y->rows, y->cols, take_rows);
    return R1_OK;
}

r1_code
TIER(scatter_rows)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const int32_t *idx,
                   r1_status *st)
{
    (void)st;
    assert(dx->cols == dy->cols && dy->rows <= dx->rows);
    rows_job job = {.y = dx, .a = dy, .idx = idx};
    run_rows(dev, &job, dx->rows, dx->cols, zero_rows);
    run_rows(dev, &job, dy->rows, dy->cols, put_rows);
    return R1_OK;
}
