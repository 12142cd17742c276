/* token_loss.c - the loss of each token and its derivatives, on vectors (M, 1).
 *
 *   nll    loss = w scale (-logp)                                    dlogp = -w scale
 *   clip   rho = exp(logp - old),  d = ref - logp,  k3 = exp(d) - d - 1
 *          loss = w scale (-min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)
 *                          + beta k3 - entropy_coef entropy)
 *          dlogp = w scale (-rho A [not clipped] + beta (1 - exp(d)))
 *          dentropy = -w scale entropy_coef
 *
 * DeepSeekMath, eq. 3-4; clip range of two sides: DAPO, eq. 8; k3: Schulman 2020. Clipped (+1) when
 * A > 0 and rho > 1 + eps_high, (-1) when A < 0 and rho < 1 - eps_low: exactly where the minimum is
 * the constant branch. Where old == logp, rho is exactly 1, since exp(0) is.
 *
 * old NULL: rho is 1, with the derivative of exp at old == logp. ref NULL: no k3, kl is 0; with ref
 * and beta 0, kl is still reported. dentropy, kl, clipped may be NULL. A row of weight 0 is masked:
 * zeros everywhere, whatever its inputs hold. Rows do not touch each other; sums are the caller's.
 */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *loss, *dlogp, *dentropy, *kl, *clipped;
    const r1_tensor *logp, *entropy, *weight, *adv, *old_logp, *ref_logp;
    const r1_loss_spec *spec;
} loss_job;

enum { TASK_ROWS = 256 };

typedef struct {
    float loss, dlogp, dentropy, kl, clipped;
} token;

static float
value_at(const r1_tensor *x, size_t n)
{
    return x != NULL ? *row_f32(x, n) : 0.0f;
}

static void
value_set(const r1_tensor *x, size_t n, float value)
{
    if (x != NULL) {
        *row_f32(x, n) = value;
    }
}

/* exp(d) - d - 1. Near 0 by its series (our choice): there the subtraction would leave rounding
 * noise, also below 0; at |d| = 1/4 the first term left out is below half a unit of the sum. */
static float
k3_of(float d)
{
    if (d > -0.25f && d < 0.25f) {
        float p = 1.0f / 40320.0f;
        p = f_fma(p, d, 1.0f / 5040.0f);
        p = f_fma(p, d, 1.0f / 720.0f);
        p = f_fma(p, d, 1.0f / 120.0f);
        p = f_fma(p, d, 1.0f / 24.0f);
        p = f_fma(p, d, 1.0f / 6.0f);
        p = f_fma(p, d, 0.5f);
        return p * d * d;
    }
    return f_exp(d) - d - 1.0f;
}

/* The policy term, its derivative and the KL of one token, before weight and scale */
static token
clip_token(const loss_job *job, size_t n)
{
    const r1_loss_spec *spec = job->spec;
    float logp = *row_f32(job->logp, n), A = value_at(job->adv, n);
    float old = job->old_logp != NULL ? *row_f32(job->old_logp, n) : logp;
    float rho = f_exp(logp - old);
    token t = {0};
    if (A > 0.0f && rho > 1.0f + spec->eps_high) {
        t.clipped = 1.0f;
        t.loss = -(1.0f + spec->eps_high) * A;
    } else if (A < 0.0f && rho < 1.0f - spec->eps_low) {
        t.clipped = -1.0f;
        t.loss = -(1.0f - spec->eps_low) * A;
    } else if (A != 0.0f) { /* so that an infinite rho cannot meet A = 0 */
        t.loss = -rho * A;
        t.dlogp = -rho * A;
    }
    if (job->ref_logp != NULL) {
        float d = *row_f32(job->ref_logp, n) - logp;
        t.kl = k3_of(d);
        if (spec->beta != 0.0f) {
            t.loss += spec->beta * t.kl;
            t.dlogp += spec->beta * -(d + t.kl); /* 1 - exp(d) */
        }
    }
    if (spec->entropy_coef != 0.0f) {
        t.loss -= spec->entropy_coef * value_at(job->entropy, n);
        t.dentropy = -spec->entropy_coef;
    }
    return t;
}

static void
token_loss_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const loss_job *job = ctx;
    size_t begin = task * TASK_ROWS, end = split_end(job->logp->rows, begin, TASK_ROWS);
    for (size_t n = begin; n < end; n++) {
        float w = *row_f32(job->weight, n);
        token t = {0};
        if (w != 0.0f && job->spec->form == R1_LOSS_NLL) {
            t.loss = -*row_f32(job->logp, n);
            t.dlogp = -1.0f;
        } else if (w != 0.0f) {
            t = clip_token(job, n);
        }
        float scale = w * job->spec->scale;
        value_set(job->loss, n, w != 0.0f ? scale * t.loss : 0.0f);
        value_set(job->dlogp, n, w != 0.0f ? scale * t.dlogp : 0.0f);
        value_set(job->dentropy, n, w != 0.0f ? scale * t.dentropy : 0.0f);
        value_set(job->kl, n, t.kl);
        value_set(job->clipped, n, t.clipped);
    }
}

r1_code
TIER(token_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dlogp,
                 const r1_tensor *dentropy, const r1_tensor *kl, const r1_tensor *clipped,
                 const r1_tensor *logp, const r1_tensor *entropy, const r1_tensor *weight,
                 const r1_tensor *adv, const r1_tensor *old_logp, const r1_tensor *ref_logp,
                 const r1_loss_spec *spec, r1_status *st)
{
    (void)st;
    assert(spec->form == R1_LOSS_NLL || adv != NULL);
    assert(spec->entropy_coef == 0.0f || entropy != NULL);
    loss_job job = {loss, dlogp, dentropy, kl, clipped, logp, entropy, weight, adv, old_logp,
                    ref_logp, spec};
    r1_pool_run(dev->pool, split_count(logp->rows, TASK_ROWS), token_loss_task, &job);
    return R1_OK;
}
