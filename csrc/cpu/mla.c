/* mla.c - multi-head latent attention, expanded form: the keys and values of each head.
 * DeepSeek-V3, eq. 1-11.
 *
 *   k[n,h] = [k_nope[n,h], kr[n]],  v[n,h]          kvb (N, H (Dn + Dv)): per head k_nope, then v
 *                                                   kr (N, Dr): rotated, shared by all heads
 *   dkvb[n,h] = [dk[n,h,:Dn], dv[n,h]],  dkr[n] = sum_h dk[n,h,Dn:]
 *
 * k (N, H (Dn + Dr)), v (N, H Dv). Forward copies; the one sum adds heads in ascending order. In
 * parallel over rows. The projections around it are matmuls; the rotation is rope.c. */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *k, *v, *kvb, *kr; /* or their gradients */
    size_t H, Dn, Dv, Dr;
    size_t step;
} mla_job;

static void
expand_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const mla_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->kvb->rows, n0, job->step);
    size_t Dn = job->Dn, Dv = job->Dv, Dr = job->Dr;
    for (size_t n = n0; n < n1; n++) {
        const float *kvb = row_f32(job->kvb, n), *kr = row_f32(job->kr, n);
        float *k = row_f32(job->k, n), *v = row_f32(job->v, n);
        for (size_t h = 0; h < job->H; h++) {
            vf_copy(k + h * (Dn + Dr), kvb + h * (Dn + Dv), Dn);
            vf_copy(k + h * (Dn + Dr) + Dn, kr, Dr);
            vf_copy(v + h * Dv, kvb + h * (Dn + Dv) + Dn, Dv);
        }
    }
}

static void
collect_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const mla_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->kvb->rows, n0, job->step);
    size_t Dn = job->Dn, Dv = job->Dv, Dr = job->Dr;
    for (size_t n = n0; n < n1; n++) {
        float *dkvb = row_f32(job->kvb, n), *dkr = row_f32(job->kr, n);
        const float *dk = row_f32(job->k, n), *dv = row_f32(job->v, n);
        for (size_t h = 0; h < job->H; h++) {
            vf_copy(dkvb + h * (Dn + Dv), dk + h * (Dn + Dr), Dn);
            vf_copy(dkvb + h * (Dn + Dv) + Dn, dv + h * Dv, Dv);
        }
        for (size_t d = 0; d < Dr; d += W) {
            vf sum = {0};
            for (size_t h = 0; h < job->H; h++) {
                sum += vf_load_left(dk + h * (Dn + Dr) + Dn + d, Dr - d);
            }
            vf_store_left(dkr + d, sum, Dr - d);
        }
    }
}

static void
run_mla(r1_dev *dev, mla_job job, r1_task fn)
{
    assert(job.kvb->cols == job.H * (job.Dn + job.Dv) && job.v->cols == job.H * job.Dv);
    assert(job.k->cols == job.H * (job.Dn + job.Dr));
    job.step = split_rows(job.k->cols + job.v->cols);
    r1_pool_run(dev->pool, split_count(job.kvb->rows, job.step), fn, &job);
}

r1_code
TIER(mla_expand_fwd)(r1_dev *dev, const r1_tensor *k, const r1_tensor *v, const r1_tensor *kvb,
                     const r1_tensor *kr, size_t H, size_t Dn, size_t Dv, r1_status *st)
{
    (void)st;
    run_mla(dev, (mla_job){k, v, kvb, kr, H, Dn, Dv, kr->cols, 0}, expand_rows);
    return R1_OK;
}

r1_code
TIER(mla_expand_bwd)(r1_dev *dev, const r1_tensor *dkvb, const r1_tensor *dkr,
                     const r1_tensor *dk, const r1_tensor *dv, size_t H, size_t Dn, size_t Dv,
                     r1_status *st)
{
    (void)st;
    run_mla(dev, (mla_job){dk, dv, dkvb, dkr, H, Dn, Dv, dkr->cols, 0}, collect_rows);
    return R1_OK;
}
