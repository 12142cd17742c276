/* embed.c - token embedding: a row of the table for each id.
 *
 *   y[n] = W[ids[n]];   dW[ids[n]] += dy[n], n ascending
 *
 * W (V, C) is a weight's master, ids (N), y (N, C). Id -1 (no token) gives a row of zeros and
 * no gradient. Forward copies, or rounds where the weight is bf16. Backward is one chain per element over rows in ascending order,
 * starting from memory: two rows with the same id meet in the same element, so the work is
 * split over columns only. */
#include <string.h>

#include "bf16.h"
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *to, *from; /* y and W, or dW and dy */
    const int32_t *ids;
    size_t step; /* rows, or in backward columns, a task */
    int bf16;
} embed_job;

static void
look_up(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const embed_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->to->rows, n0, job->step);
    size_t bytes = job->to->cols * sizeof(float);
    for (size_t n = n0; n < n1; n++) {
        int32_t id = job->ids[n];
        assert(id >= -1 && (id < 0 || (size_t)id < job->from->rows));
        if (id < 0) {
            memset(row_f32(job->to, n), 0, bytes);
        } else {
            memcpy(row_f32(job->to, n), row_f32(job->from, (size_t)id), bytes);
            if (job->bf16) {
                bf16_round_row(row_f32(job->to, n), row_f32(job->to, n), job->to->cols);
            }
        }
    }
}

static void
add_up(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const embed_job *job = ctx;
    size_t c0 = task * job->step, c1 = split_end(job->from->cols, c0, job->step);
    for (size_t n = 0; n < job->from->rows; n++) {
        if (job->ids[n] >= 0) {
            float *dw = row_f32(job->to, (size_t)job->ids[n]);
            const float *dy = row_f32(job->from, n);
            for (size_t c = c0; c < c1; c += W) {
                vf sum = vf_load_left(dw + c, c1 - c) + vf_load_left(dy + c, c1 - c);
                vf_store_left(dw + c, sum, c1 - c);
            }
        }
    }
}

r1_code
TIER(embed_fwd)(r1_dev *dev, const r1_tensor *y, const r1_weight *w, const int32_t *ids,
                r1_status *st)
{
    (void)st;
    assert(w->E == 1 && y->cols == w->I);
    r1_tensor table = r1_f32(w->master, w->O, w->I);
    embed_job job = {y, &table, ids, split_rows(y->cols), w->dtype == R1_BF16};
    r1_pool_run(dev->pool, split_count(y->rows, job.step), look_up, &job);
    return R1_OK;
}

r1_code
TIER(embed_bwd)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const int32_t *ids,
                r1_status *st)
{
    (void)st;
    assert(dw->cols == dy->cols);
    embed_job job = {dw, dy, ids, split_columns(dy->cols, r1_pool_threads(dev->pool)), 0};
    r1_pool_run(dev->pool, split_count(dy->cols, job.step), add_up, &job);
    return R1_OK;
}
