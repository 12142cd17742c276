/* embed.c - token embedding: a row of the table for each id.
 *
 *   y[n] = W[ids[n]];   dW[ids[n]] += dy[n], n ascending
 *
 * W (V, C) is a weight's master, or, where it is frozen, its panels; ids (N), y (N, C). Id -1 (no
 * token) gives a row of zeros and no gradient. Forward copies, or rounds a master where the weight is
 * bf16: panels are rounded. Backward is one chain per element over rows in ascending order, starting
 * from memory: two rows with the same id meet in the same element, so the work is split over columns
 * only. */
#include <string.h>

#include "bf16.h"
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *y;
    const r1_weight *w;
    const int32_t *ids;
    size_t step; /* rows a task */
} look_job;

static void
look_up(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const look_job *job = ctx;
    const r1_weight *w = job->w;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step);
    for (size_t n = n0; n < n1; n++) {
        float *y = row_f32(job->y, n);
        int32_t id = job->ids[n];
        assert(id >= -1 && (id < 0 || (size_t)id < w->O));
        if (id < 0) {
            memset(y, 0, w->I * sizeof *y);
        } else if (w->master == NULL) {
            TIER(weight_row)(y, w, (size_t)id);
        } else {
            memcpy(y, w->master + (size_t)id * w->I, w->I * sizeof *y);
            if (w->dtype == R1_BF16) {
                bf16_round_row(y, y, w->I);
            }
        }
    }
}

typedef struct {
    const r1_tensor *dw, *dy;
    const int32_t *ids;
    size_t step; /* columns a task */
} add_job;

static void
add_up(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const add_job *job = ctx;
    size_t c0 = task * job->step, c1 = split_end(job->dy->cols, c0, job->step);
    for (size_t n = 0; n < job->dy->rows; n++) {
        if (job->ids[n] >= 0) {
            float *dw = row_f32(job->dw, (size_t)job->ids[n]);
            const float *dy = row_f32(job->dy, n);
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
    look_job job = {y, w, ids, split_rows(y->cols)};
    r1_pool_run(dev->pool, split_count(y->rows, job.step), look_up, &job);
    return R1_OK;
}

r1_code
TIER(embed_bwd)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const int32_t *ids,
                r1_status *st)
{
    (void)st;
    assert(dw->cols == dy->cols);
    add_job job = {dw, dy, ids, split_columns(dy->cols, r1_pool_threads(dev->pool))};
    r1_pool_run(dev->pool, split_count(dy->cols, job.step), add_up, &job);
    return R1_OK;
}
