/* swiglu.c - the gated activation of a feed-forward block. Shazeer 2020, eq. 6.
 *
 *   y = silu(g) u,   silu(g) = g sigmoid(g)                  g, u, y (N, F)
 *   du = dy silu(g)
 *   dg = dy u sigmoid(g) (1 + g (1 - sigmoid(g)))
 *
 * Saves nothing: backward computes the sigmoid again. Elementwise; dg may alias g, du may alias u.
 * In parallel over rows. */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *y, *gate, *up;      /* forward; y is dy in backward */
    const r1_tensor *dgate, *dup;        /* backward */
    size_t step;
} swiglu_job;

static void
swiglu_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const swiglu_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step), F = job->y->cols;
    for (size_t n = n0; n < n1; n++) {
        float *y = row_f32(job->y, n);
        const float *gate = row_f32(job->gate, n), *up = row_f32(job->up, n);
        for (size_t f = 0; f < F; f += W) {
            vf g = vf_load_left(gate + f, F - f), u = vf_load_left(up + f, F - f);
            vf_store_left(y + f, g * vf_sigmoid(g) * u, F - f);
        }
    }
}

static void
swiglu_bwd_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const swiglu_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->y->rows, n0, job->step), F = job->y->cols;
    const vf one = vf_set1(1.0f);
    for (size_t n = n0; n < n1; n++) {
        const float *dy = row_f32(job->y, n);
        const float *gate = row_f32(job->gate, n), *up = row_f32(job->up, n);
        float *dgate = row_f32(job->dgate, n), *dup = row_f32(job->dup, n);
        for (size_t f = 0; f < F; f += W) {
            vf g = vf_load_left(gate + f, F - f), u = vf_load_left(up + f, F - f);
            vf d = vf_load_left(dy + f, F - f), s = vf_sigmoid(g);
            vf slope = s * vf_fma(g, one - s, one);
            vf_store_left(dgate + f, d * u * slope, F - f);
            vf_store_left(dup + f, d * (g * s), F - f);
        }
    }
}

static void
run_swiglu(r1_dev *dev, swiglu_job job, r1_task fn)
{
    assert(job.gate->rows == job.y->rows && job.up->rows == job.y->rows);
    assert(job.gate->cols == job.y->cols && job.up->cols == job.y->cols);
    job.step = split_rows(4 * job.y->cols); /* an exp is worth a few elements */
    r1_pool_run(dev->pool, split_count(job.y->rows, job.step), fn, &job);
}

r1_code
TIER(swiglu_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *gate, const r1_tensor *up,
                 r1_status *st)
{
    (void)st;
    run_swiglu(dev, (swiglu_job){.y = y, .gate = gate, .up = up}, swiglu_rows);
    return R1_OK;
}

r1_code
TIER(swiglu_bwd)(r1_dev *dev, const r1_tensor *dgate, const r1_tensor *dup, const r1_tensor *dy,
                 const r1_tensor *gate, const r1_tensor *up, r1_status *st)
{
    (void)st;
    run_swiglu(dev, (swiglu_job){dy, gate, up, dgate, dup, 0}, swiglu_bwd_rows);
    return R1_OK;
}
