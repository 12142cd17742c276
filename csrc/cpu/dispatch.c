/* dispatch.c - rows to experts and back.  DeepSeek-V3, eq. 12: y = add + sum_k w_k expert_k(x).
 *
 *   plan     the N K (token, choice) pairs sorted by expert, token order kept inside an expert:
 *            offsets (E + 1), source (N K) token of a sorted row, place (N, K) sorted row of a
 *            pair. No token is dropped; an expert may be empty.
 *   combine  y[n] = add[n] + sum_k weight[n,k] ys[place[n,k]]
 *            dys[place[n,k]] = weight[n,k] dy[n],   dweight[n,k] = dy[n] . ys[place[n,k]]
 *            dys may alias ys
 *   dispatch (forward is gather_rows by source)   dx[n] = add[n] + sum_k dxs[place[n,k]]
 *
 * ys, dys, dxs (N K, C). Sums over k are chains in slot order that start from add (0 without it),
 * so where an expert's rows stand cannot matter; dweight is W chains and a tree. Rows in parallel.
 */
#include "cpu.h"
#include "simd.h"
#include "split.h"

/* A counting sort: one pass counts, one places; it costs nothing next to one expert. */
r1_code
TIER(dispatch_plan)(r1_dev *dev, int32_t *offsets, int32_t *source, int32_t *place,
                    const int32_t *idx, size_t N, const r1_router_spec *spec, r1_status *st)
{
    (void)dev;
    (void)st;
    assert(spec->E <= R1_MAX_EXPERTS);
    int32_t next[R1_MAX_EXPERTS] = {0};
    for (size_t i = 0; i < N * spec->K; i++) {
        next[idx[i]]++;
    }
    offsets[0] = 0;
    for (size_t e = 0; e < spec->E; e++) {
        offsets[e + 1] = offsets[e] + next[e];
        next[e] = offsets[e];
    }
    for (size_t n = 0; n < N; n++) {
        for (size_t k = 0; k < spec->K; k++) {
            int32_t row = next[idx[n * spec->K + k]]++;
            source[row] = (int32_t)n;
            place[n * spec->K + k] = row;
        }
    }
    return R1_OK;
}

typedef struct {
    const r1_tensor *out, *in, *weight, *add; /* weight NULL: all 1 */
    const r1_tensor *dys, *dweight, *dy, *ys;
    const int32_t *place;
    size_t N, K, C, rows;
} dispatch_job;

/* Columns c .. c + vecs W of row n: a chain over k for each. vecs is a constant where this is inlined. */
static inline __attribute__((always_inline)) void
sum_vectors(const dispatch_job *job, size_t n, size_t c, size_t left, const size_t vecs)
{
    const int32_t *place = job->place + n * job->K;
    float *out = row_f32(job->out, n) + c;
    vf sum[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        sum[i] = (vf){0};
        if (job->add != NULL) {
            sum[i] = vf_load_left(row_f32(job->add, n) + c + i * W, left - i * W);
        }
    }
    for (size_t k = 0; k < job->K; k++) {
        const float *in = row_f32(job->in, (size_t)place[k]) + c;
        vf weight = vf_set1(job->weight != NULL ? row_f32(job->weight, n)[k] : 1.0f);
#pragma GCC unroll 4
        for (size_t i = 0; i < vecs; i++) {
            sum[i] = vf_fma(weight, vf_load_left(in + i * W, left - i * W), sum[i]);
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        vf_store_left(out + i * W, sum[i], left - i * W);
    }
}

/* out[n] = add[n] + sum_k weight[n,k] in[place[n,k]] */
static void
sum_rows_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const dispatch_job *job = ctx;
    size_t begin = task * job->rows, end = split_end(job->N, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        size_t c = 0;
        for (; c + 4 * W <= job->C; c += 4 * W) {
            sum_vectors(job, n, c, 4 * W, 4);
        }
        for (; c < job->C; c += W) {
            sum_vectors(job, n, c, job->C - c, 1);
        }
    }
}

r1_code
TIER(combine_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *ys, const r1_tensor *weight,
                  const int32_t *place, const r1_tensor *add, r1_status *st)
{
    (void)st;
    dispatch_job job = {.out = y, .in = ys, .weight = weight, .add = add, .place = place,
                        .N = y->rows, .K = weight->cols, .C = y->cols};
    job.rows = split_rows(job.C * (job.K + 1));
    r1_pool_run(dev->pool, split_count(job.N, job.rows), sum_rows_task, &job);
    return R1_OK;
}

r1_code
TIER(dispatch_bwd)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dxs, const int32_t *place,
                   size_t K, const r1_tensor *add, r1_status *st)
{
    (void)st;
    dispatch_job job = {.out = dx, .in = dxs, .add = add, .place = place, .N = dx->rows, .K = K,
                        .C = dx->cols};
    job.rows = split_rows(job.C * (K + 1));
    r1_pool_run(dev->pool, split_count(job.N, job.rows), sum_rows_task, &job);
    return R1_OK;
}

static void
combine_bwd_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const dispatch_job *job = ctx;
    size_t begin = task * job->rows, end = split_end(job->N, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        const float *dy = row_f32(job->dy, n), *weight = row_f32(job->weight, n);
        for (size_t k = 0; k < job->K; k++) {
            size_t row = (size_t)job->place[n * job->K + k];
            const float *ys = row_f32(job->ys, row);
            float *dys = row_f32(job->dys, row);
            vf w = vf_set1(weight[k]), dot = {0};
            for (size_t c = 0; c < job->C; c += W) {
                size_t cols = job->C - c;
                vf d = vf_load_left(dy + c, cols);
                dot = vf_fma(d, vf_load_left(ys + c, cols), dot);
                vf_store_left(dys + c, w * d, cols);
            }
            row_f32(job->dweight, n)[k] = vf_sum(dot);
        }
    }
}

r1_code
TIER(combine_bwd)(r1_dev *dev, const r1_tensor *dys, const r1_tensor *dweight, const r1_tensor *dy,
                  const r1_tensor *ys, const r1_tensor *weight, const int32_t *place,
                  r1_status *st)
{
    (void)st;
    dispatch_job job = {.weight = weight, .dys = dys, .dweight = dweight, .dy = dy, .ys = ys,
                        .place = place, .N = dy->rows, .K = weight->cols, .C = dy->cols};
    job.rows = split_rows(job.C * (job.K + 1));
    r1_pool_run(dev->pool, split_count(job.N, job.rows), combine_bwd_task, &job);
    return R1_OK;
}
