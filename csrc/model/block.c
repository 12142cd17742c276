/* block.c - one transformer layer, forward and its backward.
 *
 *   s0 = x + f            the stream, with the previous layer's FFN output added (f NULL: s0 = x)
 *   s1 = s0 + Attention(RMSNorm(s0))
 *   f' = FFN(RMSNorm(s1)) is handed to the next layer, which adds it
 *
 * Attention is GQA (Ainslie et al. 2023), its queries and keys normed head by head with qk_norm
 * (Qwen3), or MLA in expanded form (DeepSeek-V3 eq. 1-11); FFN is SwiGLU or DeepSeekMoE (eq. 12-16):
 * shared experts + sum_k w_k expert_k. Sampling and training run this one forward. In bf16, q, k and
 * v are rounded before they meet, and backward passes the rounding by. Kept for backward: r1_acts.
 * Gradients of s1 and f' are one tensor, t->ds, since the next layer only ever uses their sum.
 */
#include <math.h>

#include "internal.h"

/* Of the norms of MLA's latents, whatever rms_norm_eps says: so do DeepSeek's code and transformers. */
static const float LATENT_EPS = 1e-6f;

static float
attention_scale(const r1_config *c)
{
    return c->attn_scale / sqrtf((float)config_dqk(c));
}

static r1_router_spec
router_spec(const r1_config *c)
{
    return (r1_router_spec){.E = c->E, .K = c->K, .groups = c->groups,
                            .top_groups = c->top_groups, .softmax = c->softmax_gate,
                            .normalize = c->normalize, .scale = c->routed_scale};
}

/* The dense FFN and the shared experts differ in width only: cut the common buffers to it. */
static r1_tensor
ffn_cols(const r1_layer *l, const r1_tensor *x)
{
    return r1_cols(x, 0, l->gate.weight->O);
}

/* ---- attention half ------------------------------------------------------------------------- */

static r1_code
mla_project_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t,
                const r1_seqs *seqs, r1_status *st)
{
    const r1_config *c = &m->config;
    const r1_ops *ops = m->ops;
    if (c->q_lora > 0) {
        R1_TRY(linear_fwd(m, &a->qa, &a->h0, &l->q_a, NULL, st));
        R1_TRY(ops->rmsnorm_fwd(m->dev, &a->qn, NULL, &a->rq, &a->qa, NULL, &l->q_norm->value,
                                LATENT_EPS, st));
        R1_TRY(linear_fwd(m, &a->q, &a->qn, &l->q_b, NULL, st));
    } else {
        R1_TRY(linear_fwd(m, &a->q, &a->h0, &l->q, NULL, st));
    }
    R1_TRY(ops->rope(m->dev, &a->q, &m->rope, seqs->pos, c->H, c->Dn, c->Dr, c->interleaved, 0,
                     st));
    R1_TRY(linear_fwd(m, &a->kva, &a->h0, &l->kv_a, NULL, st));
    r1_tensor latent = r1_cols(&a->kva, 0, c->kv_lora);
    r1_tensor kr = r1_cols(&a->kva, c->kv_lora, c->Dr);
    R1_TRY(ops->rope(m->dev, &kr, &m->rope, seqs->pos, 1, 0, c->Dr, c->interleaved, 0, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &a->cn, NULL, &a->rkv, &latent, NULL, &l->kv_norm->value,
                            LATENT_EPS, st));
    R1_TRY(linear_fwd(m, &t->kvb, &a->cn, &l->kv_b, NULL, st));
    return ops->mla_expand_fwd(m->dev, &a->k, &a->v, &t->kvb, &kr, c->H, c->Dn, c->Dv, st);
}

/* From t->dq, dk, dv to t->dh, the gradient of h0. */
static r1_code
mla_project_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t,
                const r1_seqs *seqs, r1_status *st)
{
    const r1_config *c = &m->config;
    const r1_ops *ops = m->ops;
    const r1_sum_rows rows = sum_rows(seqs);
    R1_TRY(ops->rope(m->dev, &t->dq, &m->rope, seqs->pos, c->H, c->Dn, c->Dr, c->interleaved, 1,
                     st));
    if (c->q_lora > 0) {
        R1_TRY(linear_bwd(m, &t->dqn, &t->dq, &a->qn, &l->q_b, &rows, 0, st));
        R1_TRY(ops->rmsnorm_bwd(m->dev, &t->dqa, param_grad(l->q_norm, 0), &t->dqn, NULL, &a->qa,
                                &a->rq, &l->q_norm->value, st));
        R1_TRY(linear_bwd(m, &t->dh, &t->dqa, &a->h0, &l->q_a, &rows, 0, st));
    } else {
        R1_TRY(linear_bwd(m, &t->dh, &t->dq, &a->h0, &l->q, &rows, 0, st));
    }
    r1_tensor latent = r1_cols(&a->kva, 0, c->kv_lora);
    r1_tensor dlatent = r1_cols(&t->dkva, 0, c->kv_lora);
    r1_tensor dkr = r1_cols(&t->dkva, c->kv_lora, c->Dr);
    R1_TRY(ops->mla_expand_bwd(m->dev, &t->dkvb, &dkr, &t->dk, &t->dv, c->H, c->Dn, c->Dv, st));
    R1_TRY(ops->rope(m->dev, &dkr, &m->rope, seqs->pos, 1, 0, c->Dr, c->interleaved, 1, st));
    R1_TRY(linear_bwd(m, &t->dcn, &t->dkvb, &a->cn, &l->kv_b, &rows, 0, st));
    R1_TRY(ops->rmsnorm_bwd(m->dev, &dlatent, param_grad(l->kv_norm, 0), &t->dcn, NULL, &latent,
                            &a->rkv, &l->kv_norm->value, st));
    return linear_bwd(m, &t->dh, &t->dkva, &a->h0, &l->kv_a, &rows, 1, st);
}

/* x (N, H D) without gaps, as (N H, D): each head a row. */
static r1_tensor
head_rows(const r1_tensor *x, size_t H)
{
    return r1_f32(x->data, x->rows * H, x->cols / H);
}

/* y = RMSNorm of every head of x (N, H D); r (N, H). */
static r1_code
heads_norm_fwd(r1_model *m, const r1_tensor *y, const r1_tensor *r, const r1_tensor *x,
               const r1_param *w, size_t H, r1_status *st)
{
    r1_tensor yh = head_rows(y, H), rh = head_rows(r, H), xh = head_rows(x, H);
    return m->ops->rmsnorm_fwd(m->dev, &yh, NULL, &rh, &xh, NULL, &w->value, m->config.eps, st);
}

static r1_code
heads_norm_bwd(r1_model *m, const r1_tensor *dx, const r1_tensor *dy, const r1_tensor *x,
               const r1_tensor *r, const r1_param *w, size_t H, r1_status *st)
{
    r1_tensor dxh = head_rows(dx, H), dyh = head_rows(dy, H), xh = head_rows(x, H);
    r1_tensor rh = head_rows(r, H);
    return m->ops->rmsnorm_bwd(m->dev, &dxh, param_grad(w, 0), &dyh, NULL, &xh, &rh, &w->value, st);
}

static r1_code
gqa_project_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_seqs *seqs,
                r1_status *st)
{
    const r1_config *c = &m->config;
    R1_TRY(linear_fwd(m, c->qk_norm ? &a->q0 : &a->q, &a->h0, &l->q, NULL, st));
    R1_TRY(linear_fwd(m, c->qk_norm ? &a->k0 : &a->k, &a->h0, &l->k, NULL, st));
    R1_TRY(linear_fwd(m, &a->v, &a->h0, &l->v, NULL, st));
    if (c->qk_norm) {
        R1_TRY(heads_norm_fwd(m, &a->q, &a->rq, &a->q0, l->q_norm, c->H, st));
        R1_TRY(heads_norm_fwd(m, &a->k, &a->rkv, &a->k0, l->kv_norm, c->Hkv, st));
    }
    R1_TRY(m->ops->rope(m->dev, &a->q, &m->rope, seqs->pos, c->H, 0, c->D, c->interleaved, 0, st));
    return m->ops->rope(m->dev, &a->k, &m->rope, seqs->pos, c->Hkv, 0, c->D, c->interleaved, 0,
                        st);
}

static r1_code
gqa_project_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t,
                const r1_seqs *seqs, r1_status *st)
{
    const r1_sum_rows rows = sum_rows(seqs);
    const r1_config *c = &m->config;
    R1_TRY(m->ops->rope(m->dev, &t->dq, &m->rope, seqs->pos, c->H, 0, c->D, c->interleaved, 1,
                        st));
    R1_TRY(m->ops->rope(m->dev, &t->dk, &m->rope, seqs->pos, c->Hkv, 0, c->D, c->interleaved, 1,
                        st));
    const r1_tensor *dq = &t->dq, *dk = &t->dk;
    if (c->qk_norm) {
        R1_TRY(heads_norm_bwd(m, &t->dq0, dq, &a->q0, &a->rq, l->q_norm, c->H, st));
        R1_TRY(heads_norm_bwd(m, &t->dk0, dk, &a->k0, &a->rkv, l->kv_norm, c->Hkv, st));
        dq = &t->dq0;
        dk = &t->dk0;
    }
    R1_TRY(linear_bwd(m, &t->dh, dq, &a->h0, &l->q, &rows, 0, st));
    R1_TRY(linear_bwd(m, &t->dh, dk, &a->h0, &l->k, &rows, 1, st));
    return linear_bwd(m, &t->dh, &t->dv, &a->h0, &l->v, &rows, 1, st);
}

static r1_code
attention_half_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t,
                   const r1_kv *kv, const r1_seqs *seqs, r1_status *st)
{
    const r1_config *c = &m->config;
    if (config_mla(c)) {
        R1_TRY(mla_project_fwd(m, l, a, t, seqs, st));
    } else {
        R1_TRY(gqa_project_fwd(m, l, a, seqs, st));
    }
    if (m->dtype == R1_BF16) { /* backward must see what the cache holds; q is treated alike */
        R1_TRY(m->ops->round_bf16(m->dev, &a->q, st));
        R1_TRY(m->ops->round_bf16(m->dev, &a->k, st));
        R1_TRY(m->ops->round_bf16(m->dev, &a->v, st));
    }
    R1_TRY(m->ops->kv_write(m->dev, kv, &a->k, &a->v, seqs, st));
    R1_TRY(m->ops->attention_fwd(m->dev, &a->o, &a->lse, &a->q, kv, seqs, c->H, l->window,
                                 attention_scale(c), st));
    return linear_fwd(m, &t->a, &a->o, &l->o, NULL, st);
}

static r1_code
attention_half_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t,
                   const r1_seqs *seqs, r1_status *st)
{
    const r1_sum_rows rows = sum_rows(seqs);
    const r1_config *c = &m->config;
    R1_TRY(linear_bwd(m, &t->dout, &t->ds, &a->o, &l->o, &rows, 0, st));
    R1_TRY(m->ops->attention_bwd(m->dev, &t->dq, &t->dk, &t->dv, &t->dout, &a->o, &a->lse, &a->q,
                                 &a->k, &a->v, seqs, c->H, config_hkv(c), l->window,
                                 attention_scale(c), m->dtype, st));
    if (config_mla(c)) {
        return mla_project_bwd(m, l, a, t, seqs, st);
    }
    return gqa_project_bwd(m, l, a, t, seqs, st);
}

/* ---- FFN half -------------------------------------------------------------------------------- */

static r1_code
dense_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_tensor *y, r1_status *st)
{
    r1_tensor gate = ffn_cols(l, &a->gate), up = ffn_cols(l, &a->up), act = ffn_cols(l, &a->act);
    R1_TRY(linear_fwd(m, &gate, &a->h1, &l->gate, NULL, st));
    R1_TRY(linear_fwd(m, &up, &a->h1, &l->up, NULL, st));
    R1_TRY(m->ops->swiglu_fwd(m->dev, &act, &gate, &up, st));
    return linear_fwd(m, y, &act, &l->down, NULL, st);
}

/* t->dh = gradient of h1, from dy = t->ds. */
static r1_code
dense_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t, const r1_seqs *seqs,
          r1_status *st)
{
    const r1_sum_rows rows = sum_rows(seqs);
    r1_tensor gate = ffn_cols(l, &a->gate), up = ffn_cols(l, &a->up), act = ffn_cols(l, &a->act);
    r1_tensor dact = ffn_cols(l, &t->dact);
    R1_TRY(linear_bwd(m, &dact, &t->ds, &act, &l->down, &rows, 0, st));
    R1_TRY(m->ops->swiglu_bwd(m->dev, &gate, &up, &dact, &gate, &up, st)); /* now their gradients */
    R1_TRY(linear_bwd(m, &t->dh, &gate, &a->h1, &l->gate, &rows, 0, st));
    return linear_bwd(m, &t->dh, &up, &a->h1, &l->up, &rows, 1, st);
}

static r1_code
moe_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t, r1_status *st)
{
    const r1_ops *ops = m->ops;
    r1_router_spec spec = router_spec(&m->config);
    const r1_tensor *bias = l->router_bias != NULL ? &l->router_bias->value : NULL;
    const r1_tensor *shared = NULL;
    if (m->config.shared > 0) {
        R1_TRY(dense_fwd(m, l, a, &t->a, st));
        shared = &t->a;
    }
    R1_TRY(linear_fwd(m, &t->logits, &a->h1, &l->router, NULL, st));
    R1_TRY(ops->router_fwd(m->dev, a->idx, &a->weight, &a->scores, &t->logits, bias, &spec, st));
    R1_TRY(ops->dispatch_plan(m->dev, a->offsets, a->source, a->place, a->idx, a->h1.rows, &spec,
                              st));
    R1_TRY(ops->gather_rows(m->dev, &a->xs, &a->h1, a->source, st));
    R1_TRY(linear_fwd(m, &a->egate, &a->xs, &l->egate, a->offsets, st));
    R1_TRY(linear_fwd(m, &a->eup, &a->xs, &l->eup, a->offsets, st));
    R1_TRY(ops->swiglu_fwd(m->dev, &a->eact, &a->egate, &a->eup, st));
    R1_TRY(linear_fwd(m, &a->ys, &a->eact, &l->edown, a->offsets, st));
    return ops->combine_fwd(m->dev, &a->f, &a->ys, &a->weight, a->place, shared, st);
}

static r1_code
moe_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t, const r1_seqs *seqs,
        float balance_coef, r1_status *st)
{
    const r1_sum_rows rows = sum_rows(seqs);
    const r1_sum_rows chosen = {a->offsets, {seqs->unit, a->source}};
    const r1_ops *ops = m->ops;
    r1_router_spec spec = router_spec(&m->config);
    const r1_tensor *shared = NULL, *dscores = NULL;
    if (m->config.shared > 0) {
        R1_TRY(dense_bwd(m, l, a, t, seqs, st));
        shared = &t->dh;
    }
    /* ys, egate and eup become their gradients */
    R1_TRY(ops->combine_bwd(m->dev, &a->ys, &t->dweight, &t->ds, &a->ys, &a->weight, a->place, st));
    R1_TRY(linear_bwd(m, &t->deact, &a->ys, &a->eact, &l->edown, &chosen, 0, st));
    R1_TRY(ops->swiglu_bwd(m->dev, &a->egate, &a->eup, &t->deact, &a->egate, &a->eup, st));
    R1_TRY(linear_bwd(m, &t->dxs, &a->egate, &a->xs, &l->egate, &chosen, 0, st));
    R1_TRY(linear_bwd(m, &t->dxs, &a->eup, &a->xs, &l->eup, &chosen, 1, st));
    R1_TRY(ops->dispatch_bwd(m->dev, &t->dh, &t->dxs, a->place, spec.K, shared, st));
    if (balance_coef != 0.0f) {
        R1_TRY(ops->balance_loss(m->dev, &t->balance, &t->dscores, &a->scores, a->idx, seqs,
                                 &spec, balance_coef, st));
        R1_TRY(ops->add(m->dev, &t->balance_sum, &t->balance_sum, &t->balance, st));
        dscores = &t->dscores;
    }
    R1_TRY(ops->router_bwd(m->dev, &t->dlogits, &t->dweight, dscores, a->idx, &a->scores, &spec,
                           st));
    R1_TRY(ops->router_load(m->dev, l->load, a->idx, seqs, &spec, st));
    return linear_bwd(m, &t->dh, &t->dlogits, &a->h1, &l->router, &rows, 1, st);
}

/* ---- the layer ------------------------------------------------------------------------------- */

r1_code
block_fwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t, const r1_tensor *x,
          const r1_tensor *f, const r1_kv *kv, const r1_seqs *seqs, r1_status *st)
{
    const r1_ops *ops = m->ops;
    float eps = m->config.eps;
    R1_TRY(model_poll(m, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &a->h0, f != NULL ? &a->s0 : NULL, &a->r0, x, f,
                            &l->attn_norm->value, eps, st));
    R1_TRY(attention_half_fwd(m, l, a, t, kv, seqs, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &a->h1, &a->s1, &a->r1, f != NULL ? &a->s0 : x, &t->a,
                            &l->ffn_norm->value, eps, st));
    return l->moe ? moe_fwd(m, l, a, t, st) : dense_fwd(m, l, a, &a->f, st);
}

r1_code
block_bwd(r1_model *m, const r1_layer *l, const r1_acts *a, const r1_temps *t, const r1_seqs *seqs,
          float balance_coef, r1_status *st)
{
    const r1_ops *ops = m->ops;
    R1_TRY(model_poll(m, st));
    if (l->moe) {
        R1_TRY(moe_bwd(m, l, a, t, seqs, balance_coef, st));
    } else {
        R1_TRY(dense_bwd(m, l, a, t, seqs, st));
    }
    R1_TRY(ops->rmsnorm_bwd(m->dev, &t->ds, param_grad(l->ffn_norm, 0), &t->dh, &t->ds, &a->s1,
                            &a->r1, &l->ffn_norm->value, st));
    R1_TRY(attention_half_bwd(m, l, a, t, seqs, st));
    return ops->rmsnorm_bwd(m->dev, &t->ds, param_grad(l->attn_norm, 0), &t->dh, &t->ds, &a->s0,
                            &a->r0, &l->attn_norm->value, st);
}
