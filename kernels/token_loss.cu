/* token_loss.cu - the loss of each token and its derivatives, on vectors (M, 1).
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
 * Sources, what counts as clipped, and how GSPO is made of this: csrc/cpu/token_loss.c, whose operations these
 * are one by one, so the bits are its too. old NULL: rho is 1. ref NULL: no KL. dentropy, kl, clipped may be NULL.
 * A row of weight 0 is masked: zeros everywhere, whatever its inputs hold. A thread has a row. */
#include "math.cuh"

constexpr unsigned LOSS_ROWS = 128; /* of a block */

typedef struct {
    r1_tensor logp, entropy, weight, adv, old_logp, ref_logp;
} loss_inputs;

typedef struct {
    r1_tensor loss, dlogp, dentropy, kl, clipped;
} loss_outputs;

typedef struct {
    float loss, dlogp, dentropy, kl, clipped;
} token;

static __device__ inline float
value_at(const r1_tensor &x, size_t n)
{
    return x.data != NULL ? row_f32(x, n)[0] : 0.0f;
}

static __device__ inline void
value_set(const r1_tensor &x, size_t n, float value)
{
    if (x.data != NULL) {
        row_f32(x, n)[0] = value;
    }
}

/* exp(d) - d - 1; near 0 by its series, where the subtraction would leave rounding noise. */
static __device__ float
k3_of(float d)
{
    if (d > -0.25f && d < 0.25f) {
        float p = 1.0f / 40320.0f;
        p = fmaf(p, d, 1.0f / 5040.0f);
        p = fmaf(p, d, 1.0f / 720.0f);
        p = fmaf(p, d, 1.0f / 120.0f);
        p = fmaf(p, d, 1.0f / 24.0f);
        p = fmaf(p, d, 1.0f / 6.0f);
        p = fmaf(p, d, 0.5f);
        return p * d * d;
    }
    return f_exp(d) - d - 1.0f;
}

/* The clipped term and its derivative: linear in rho up to bounds that A's sign chooses. */
static __device__ token
clip_term(float rho, float A, const r1_loss_spec &spec)
{
    float top = 1.0f + spec.eps_high, low = 1.0f - spec.eps_low;
    bool delta_binds = A > 0.0f ? spec.delta < top : spec.delta > top;
    float high = delta_binds ? spec.delta : top;
    token t = {};
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

static __device__ token
cispo_term(float rho, float A, float logp, const r1_loss_spec &spec)
{
    token t = {};
    t.clipped = rho > spec.eps_high ? 1.0f : 0.0f;
    t.dlogp = -(rho > spec.eps_high ? spec.eps_high : rho) * A;
    t.loss = t.dlogp * logp;
    return t;
}

/* The KL of one token, d = ref - logp, and its part in the loss */
static __device__ void
add_kl(token *t, float d, float rho, const r1_loss_spec &spec)
{
    float dk;
    if (spec.kl == R1_KL_K1) {
        t->kl = -d;
        dk = 1.0f;
    } else if (spec.kl == R1_KL_K2) {
        t->kl = 0.5f * d * d;
        dk = -d;
    } else {
        t->kl = k3_of(d);
        dk = -(d + t->kl); /* 1 - exp(d) */
    }
    if (spec.beta != 0.0f) {
        float coef = spec.kl_ratio ? spec.beta * rho : spec.beta;
        t->loss += coef * t->kl;
        t->dlogp += coef * (spec.kl_ratio ? t->kl + dk : dk);
    }
}

/* The policy term, its derivative and the KL of one token, before weight and scale */
static __device__ token
policy_token(const loss_inputs &in, const r1_loss_spec &spec, size_t n)
{
    float logp = row_f32(in.logp, n)[0], A = value_at(in.adv, n);
    float old = in.old_logp.data != NULL ? row_f32(in.old_logp, n)[0] : logp;
    float rho = f_exp(logp - old);
    token t = spec.form == R1_LOSS_CISPO ? cispo_term(rho, A, logp, spec) : clip_term(rho, A, spec);
    if (in.ref_logp.data != NULL) {
        add_kl(&t, row_f32(in.ref_logp, n)[0] - logp, rho, spec);
    }
    if (spec.entropy_coef != 0.0f) {
        t.loss -= spec.entropy_coef * value_at(in.entropy, n);
        t.dentropy = -spec.entropy_coef;
    }
    return t;
}

static __global__ void
token_loss_kernel(loss_outputs out, loss_inputs in, r1_loss_spec spec)
{
    size_t n = (size_t)blockIdx.x * LOSS_ROWS + threadIdx.x;
    if (n >= in.logp.rows) {
        return;
    }
    float w = row_f32(in.weight, n)[0], scale = w * spec.scale;
    token t = {};
    if (w != 0.0f && spec.form == R1_LOSS_NLL) {
        t.loss = -row_f32(in.logp, n)[0];
        t.dlogp = -1.0f;
    } else if (w != 0.0f) {
        t = policy_token(in, spec, n);
    }
    value_set(out.loss, n, w != 0.0f ? scale * t.loss : 0.0f);
    value_set(out.dlogp, n, w != 0.0f ? scale * t.dlogp : 0.0f);
    value_set(out.dentropy, n, w != 0.0f ? scale * t.dentropy : 0.0f);
    value_set(out.kl, n, t.kl);
    value_set(out.clipped, n, t.clipped);
}

r1_code
CUDA(token_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dlogp, const r1_tensor *dentropy,
                 const r1_tensor *kl, const r1_tensor *clipped, const r1_tensor *logp,
                 const r1_tensor *entropy, const r1_tensor *weight, const r1_tensor *adv,
                 const r1_tensor *old_logp, const r1_tensor *ref_logp, const r1_loss_spec *spec,
                 r1_status *st)
{
    assert(spec->form == R1_LOSS_NLL || adv != NULL);
    assert(spec->entropy_coef == 0.0f || entropy != NULL);
    loss_outputs out = {*loss, *dlogp, tensor_or_none(dentropy), tensor_or_none(kl), tensor_or_none(clipped)};
    loss_inputs in = {*logp, tensor_or_none(entropy), *weight, tensor_or_none(adv), tensor_or_none(old_logp),
                      tensor_or_none(ref_logp)};
    return LAUNCH(dev, st, token_loss_kernel, grid_of(logp->rows, LOSS_ROWS), LOSS_ROWS, 0, out, in, *spec);
}
