/* rmsnorm.c - RMSNorm with the residual add in front. Zhang & Sennrich 2019, eq. 4.
 *
 *   s = x + residual  (s = x without one)         x, residual, s, y (N, C), r (N, 1), w (1, C)
 *   r[n] = (mean_c s[n,c]^2 + eps)^(-1/2)
 *   y = s r w
 *
 *   t = dy w
 *   ds = add + r (t - s r^2 mean_c(t s))
 *   dw[c] += sum_n dy s r
 *
 * Forward saves s (in `sum`; x itself without a residual) and r. Sums over c are W chains and a
 * tree, the same for every row; the root and the quotient are correctly rounded. dw is one chain of
 * fused multiply-adds per column over rows in ascending order, starting from memory, in parallel
 * over columns only; everything else in parallel over rows. */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *y, *sum, *r, *x, *residual, *w;
    float eps;
    size_t step;
} norm_job;

static void
norm_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const norm_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->x->rows, n0, job->step), C = job->x->cols;
    const float *w = row_f32(job->w, 0);
    for (size_t n = n0; n < n1; n++) {
        const float *s = row_f32(job->x, n);
        float *y = row_f32(job->y, n);
        vf squares = {0};
        if (job->residual != NULL) {
            const float *x = s, *residual = row_f32(job->residual, n);
            float *sum = row_f32(job->sum, n);
            for (size_t c = 0; c < C; c += W) {
                vf v = vf_load_left(x + c, C - c) + vf_load_left(residual + c, C - c);
                vf_store_left(sum + c, v, C - c);
                squares = vf_fma(v, v, squares);
            }
            s = sum;
        } else {
            for (size_t c = 0; c < C; c += W) {
                vf v = vf_load_left(s + c, C - c);
                squares = vf_fma(v, v, squares);
            }
        }
        float r = 1.0f / __builtin_sqrtf(vf_sum(squares) / (float)C + job->eps);
        row_f32(job->r, n)[0] = r;
        for (size_t c = 0; c < C; c += W) {
            vf v = vf_load_left(s + c, C - c) * vf_set1(r) * vf_load_left(w + c, C - c);
            vf_store_left(y + c, v, C - c);
        }
    }
}

r1_code
TIER(rmsnorm_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *sum, const r1_tensor *r,
                  const r1_tensor *x, const r1_tensor *residual, const r1_tensor *w, float eps,
                  r1_status *st)
{
    (void)st;
    assert(y->rows == x->rows && y->cols == x->cols && w->cols == x->cols && r->rows == x->rows);
    assert((residual == NULL) == (sum == NULL));
    norm_job job = {y, sum, r, x, residual, w, eps, split_rows(x->cols)};
    r1_pool_run(dev->pool, split_count(x->rows, job.step), norm_rows, &job);
    return R1_OK;
}

typedef struct {
    const r1_tensor *ds, *dw, *dy, *add, *s, *r, *w;
    size_t step, columns; /* rows a task; columns of dw a task */
} norm_bwd_job;

static void
grad_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const norm_bwd_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->s->rows, n0, job->step), C = job->s->cols;
    const float *w = row_f32(job->w, 0);
    for (size_t n = n0; n < n1; n++) {
        const float *dy = row_f32(job->dy, n), *s = row_f32(job->s, n);
        const float *add = job->add != NULL ? row_f32(job->add, n) : NULL;
        float *ds = row_f32(job->ds, n), r = row_f32(job->r, n)[0];
        vf dot = {0};
        for (size_t c = 0; c < C; c += W) {
            vf t = vf_load_left(dy + c, C - c) * vf_load_left(w + c, C - c);
            dot = vf_fma(t, vf_load_left(s + c, C - c), dot);
        }
        vf pull = vf_set1(-(r * r * (vf_sum(dot) / (float)C)));
        for (size_t c = 0; c < C; c += W) {
            vf t = vf_load_left(dy + c, C - c) * vf_load_left(w + c, C - c);
            vf base = add != NULL ? vf_load_left(add + c, C - c) : (vf){0};
            t = vf_fma(vf_load_left(s + c, C - c), pull, t);
            vf_store_left(ds + c, vf_fma(vf_set1(r), t, base), C - c);
        }
    }
}

/* Columns c .. c + vecs W of dw: a chain over rows for each. vecs is a constant where this is
 * inlined. */
static inline __attribute__((always_inline)) void
grad_vectors(const norm_bwd_job *job, size_t c, size_t left, const size_t vecs)
{
    float *dw = row_f32(job->dw, 0) + c;
    vf sum[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        sum[i] = vf_load_left(dw + i * W, left - i * W);
    }
    for (size_t n = 0; n < job->s->rows; n++) {
        const float *s = row_f32(job->s, n) + c, *dy = row_f32(job->dy, n) + c;
        vf r = vf_set1(row_f32(job->r, n)[0]);
#pragma GCC unroll 4
        for (size_t i = 0; i < vecs; i++) {
            vf x = vf_load_left(s + i * W, left - i * W) * r;
            sum[i] = vf_fma(vf_load_left(dy + i * W, left - i * W), x, sum[i]);
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        vf_store_left(dw + i * W, sum[i], left - i * W);
    }
}

static void
grad_weight(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const norm_bwd_job *job = ctx;
    size_t c = task * job->columns, end = split_end(job->s->cols, c, job->columns);
    for (; c + 4 * W <= end; c += 4 * W) {
        grad_vectors(job, c, 4 * W, 4);
    }
    for (; c < end; c += W) {
        grad_vectors(job, c, end - c, 1);
    }
}

r1_code
TIER(rmsnorm_bwd)(r1_dev *dev, const r1_tensor *ds, const r1_tensor *dw, const r1_tensor *dy,
                  const r1_tensor *add, const r1_tensor *s, const r1_tensor *r,
                  const r1_tensor *w, r1_status *st)
{
    (void)st;
    assert(ds->rows == s->rows && dy->rows == s->rows && r->rows == s->rows);
    assert(ds->cols == s->cols && dy->cols == s->cols && w->cols == s->cols);
    norm_bwd_job job = {ds, dw, dy, add, s, r, w, split_rows(s->cols),
                        split_columns(s->cols, r1_pool_threads(dev->pool))};
    if (dw != NULL) {
        r1_pool_run(dev->pool, split_count(s->cols, job.columns), grad_weight, &job);
    }
    r1_pool_run(dev->pool, split_count(s->rows, job.step), grad_rows, &job);
    return R1_OK;
}
