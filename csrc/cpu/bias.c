/* bias.c - the gradient of a bias, dbias (O) += the sum of dy (N, O) over its rows.
 *
 * One chain of additions a column, rows ascending, that starts from the value in memory: a sum over
 * rows split between two calls gives what one call gives. Parallel over columns only. */
#include "cpu.h"
#include "simd.h"
#include "split.h"

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
