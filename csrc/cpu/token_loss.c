/* token_loss.c - the loss of each token and its derivatives, on vectors (M, 1).
 *
 *   nll    loss = w scale (-logp)                                    dlogp = -w scale
 *   clip   rho = exp(logp - old)
 *          loss = w scale (-min(min(rho, delta) A, clip(rho, 1 - eps_low, 1 + eps_high) A)
 *                          + beta k - entropy_coef entropy)
 *          dlogp = w scale (-rho A [not clipped] + beta dk)          dentropy = -w scale entropy_coef
 *   cispo  c = min(rho, eps_high), a constant under differentiation
 *          loss = w scale (-c A logp + beta k - entropy_coef entropy)
 *          dlogp = w scale (-c A + beta dk)
 *
 *   d = ref - logp    k1 = -d          dk1 = 1
 *                     k2 = d^2 / 2     dk2 = -d
 *                     k3 = e^d - d - 1 dk3 = 1 - e^d
 *   kl_ratio          k = rho k_i      dk = rho (k_i + dk_i)
 *
 * Sources: DeepSeekMath, eq. 3-4; clip range of two sides: DAPO, eq. 8; delta: INTELLECT-2 (arXiv
 * 2505.07291); cispo: MiniMax-M1 (arXiv 2506.13585), without the lower bound, which that paper does
 * not use either, and with TRL's eps_high: the bound itself, the paper's 1 + epsilon_high; k1, k2, k3:
 * Schulman 2020; kl_ratio: DeepSeek-V3.2 (arXiv 2512.02556). The derivatives are those of the printed expressions, nothing more: on samples
 * of the policy k1's has expectation 0 and holds nothing back, k2's is that of the reverse KL, k3's
 * that of the forward KL; with kl_ratio k1 and k3 have the reverse KL's too.
 *
 * Clipped: A > 0 and rho > min(1 + eps_high, delta), or A < 0 and rho > max(1 + eps_high, delta): +1;
 * A < 0 and rho < 1 - eps_low: -1; exactly where the minimum is constant in rho. cispo: rho >
 * eps_high: +1. Where old == logp, rho is exactly 1, since exp(0) is.
 *
 * GSPO (arXiv 2507.18071) is clip with an old that the caller makes, old'[t] = logp[t] - log s from a
 * pass without gradient at the same weights, s = exp(mean over the sequence of (logp - old)). Then
 * rho = s for all tokens of the sequence, so all are clipped or none. Its objective takes per
 * sequence min(s A, clip(s) A), with d(s A) = s A (1 / T) sum_t dlogp[t], T tokens; here the sequence
 * adds w (T s A) with derivative w s A sum_t dlogp[t]: the same, times w T. That is GSPO-token
 * (its eq. 13-14) where A does not vary within the sequence, and w T is 1 / sequences under
 * the sequence mean.
 *
 * old NULL: rho is 1, with the derivative of exp at old == logp. ref NULL: no KL, kl is 0; with ref
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

/* The clipped term and its derivative: linear in rho up to bounds that A's sign chooses. */
static token
clip_term(float rho, float A, const r1_loss_spec *spec)
{
    float top = 1.0f + spec->eps_high, low = 1.0f - spec->eps_low;
    int delta_binds = A > 0.0f ? spec->delta < top : spec->delta > top;
    float high = delta_binds ? spec->delta : top;
    token t = {0};
    if (A != 0.0f && rho > high) {
        t.clipped = 1.0f;
        t.loss = -high * A;
    } else if (A < 0.0f && rho < low) {
        t.clipped = -1.0f;
        t.loss = -low * A;
    } else if (A != 0.0f) { /* so that an infinite rho cannot meet A = 0 */
        t.loss = -rho * A;
        t.dlogp = -rho * A;
    }
    return t;
}

static token
cispo_term(float rho, float A, float logp, const r1_loss_spec *spec)
{
    token t = {.clipped = rho > spec->eps_high ? 1.0f : 0.0f};
    t.dlogp = -(rho > spec->eps_high ? spec->eps_high : rho) * A;
    t.loss = t.dlogp * logp;
    return t;
}

/* The KL of one token, d = ref - logp, and its part in the loss */
static void
add_kl(token *t, float d, float rho, const r1_loss_spec *spec)
{
    float dk;
    if (spec->kl == R1_KL_K1) {
        t->kl = -d;
        dk = 1.0f;
    } else if (spec->kl == R1_KL_K2) {
        t->kl = 0.5f * d * d;
        dk = -d;
    } else {
        t->kl = k3_of(d);
        dk = -(d + t->kl); /* 1 - exp(d) */
    }
    if (spec->beta != 0.0f) {
        float coef = spec->kl_ratio ? spec->beta * rho : spec->beta;
        t->loss += coef * t->kl;
        t->dlogp += coef * (spec->kl_ratio ? t->kl + dk : dk);
    }
}

/* The policy term, its derivative and the KL of one token, before weight and scale */
static token
policy_token(const loss_job *job, size_t n)
{
    const r1_loss_spec *spec = job->spec;
    float logp = *row_f32(job->logp, n), A = value_at(job->adv, n);
    float old = job->old_logp != NULL ? *row_f32(job->old_logp, n) : logp;
    float rho = f_exp(logp - old);
    token t = spec->form == R1_LOSS_CISPO ? cispo_term(rho, A, logp, spec)
                                          : clip_term(rho, A, spec);
    if (job->ref_logp != NULL) {
        add_kl(&t, *row_f32(job->ref_logp, n) - logp, rho, spec);
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
            t = policy_token(job, n);
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
