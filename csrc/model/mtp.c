/* mtp.c - multi-token prediction, one module. DeepSeek-V3 eq. 21-25; input order of the published
 * checkpoints (embedding first), which differs from the paper's.
 *
 *   x_i = eh_proj [enorm(Emb(t_{i+1})); hnorm(y_i)],  y = the trunk's output after its final norm
 *   z = RMSNorm(block(x));  logits for t_{i+2} = Head(z_i);  Emb and Head are the trunk's
 *   loss = mtp_coef x scale x sum_i w(t_{i+2}) (-log p(t_{i+2}))
 *
 * That y is the normed output is our reading of the serving engines. At a sequence's last position
 * t_{i+1} does not exist: its embedding is the zero vector and its row carries no loss. `detach`
 * stops the gradient at y and leaves the shared embedding and head alone.
 */
#include "model.h"

static r1_code
mtp_fwd(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_acts *a, const r1_temps *t,
        r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t N = mb->N, C = m->config.C;
    float eps = m->config.eps;
    r1_tensor emb = r1_rows(&ws->emb, 0, N), cat = r1_rows(&ws->cat, 0, N);
    r1_tensor first = r1_cols(&cat, 0, C), second = r1_cols(&cat, C, C);
    r1_tensor re = r1_rows(&ws->re, 0, N), rh = r1_rows(&ws->rh, 0, N);
    r1_tensor y = r1_rows(&ws->y, 0, N), mx = r1_rows(&ws->mx, 0, N);
    r1_tensor my = r1_rows(&ws->my, 0, N), ms = r1_rows(&ws->ms, 0, N);
    r1_tensor mr = r1_rows(&ws->mr, 0, N);
    R1_TRY(ops->embed_fwd(m->dev, &emb, m->embed->weight, mb->next, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &first, NULL, &re, &emb, NULL, &m->enorm->value, eps, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &second, NULL, &rh, &y, NULL, &m->hnorm->value, eps, st));
    R1_TRY(linear_fwd(m, &mx, &cat, &m->eh, NULL, st));
    R1_TRY(block_fwd(m, &m->layers[m->config.L], a, t, &mx, NULL, &ws->kv, &mb->seqs, st));
    return ops->rmsnorm_fwd(m->dev, &my, &ms, &mr, &a->s1, &a->f, &m->mtp_norm->value, eps, st);
}

/* From ws->dhm (gradient of the rows that carry a loss) down to dy. */
static r1_code
mtp_bwd(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_acts *a, const r1_temps *t,
        const r1_pass *pass, const r1_tensor *dy, r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t N = mb->N, C = m->config.C;
    r1_tensor dhm = r1_rows(&ws->dhm, 0, mb->mtp_M), demb = r1_rows(&ws->demb, 0, N);
    r1_tensor cat = r1_rows(&ws->cat, 0, N), dcat = r1_rows(&ws->dcat, 0, N);
    r1_tensor first = r1_cols(&dcat, 0, C), second = r1_cols(&dcat, C, C);
    r1_tensor emb = r1_rows(&ws->emb, 0, N), y = r1_rows(&ws->y, 0, N);
    r1_tensor re = r1_rows(&ws->re, 0, N), rh = r1_rows(&ws->rh, 0, N);
    r1_tensor ms = r1_rows(&ws->ms, 0, N), mr = r1_rows(&ws->mr, 0, N);
    R1_TRY(ops->scatter_rows(m->dev, &demb, &dhm, mb->mtp_row, st));
    R1_TRY(ops->rmsnorm_bwd(m->dev, &t->ds, param_grad(m->mtp_norm, 0), &demb, NULL, &ms, &mr,
                            &m->mtp_norm->value, st));
    R1_TRY(block_bwd(m, &m->layers[m->config.L], a, t, &mb->seqs, pass->balance_coef, st));
    R1_TRY(linear_bwd(m, &dcat, &t->ds, &cat, &m->eh, NULL, 0, st));
    R1_TRY(ops->rmsnorm_bwd(m->dev, &demb, param_grad(m->enorm, 0), &first, NULL, &emb, &re,
                            &m->enorm->value, st));
    if (pass->mtp_detach) { /* demb is a sink here: only hnorm's own gradient is wanted */
        return ops->rmsnorm_bwd(m->dev, &demb, param_grad(m->hnorm, 0), &second, NULL, &y, &rh,
                                &m->hnorm->value, st);
    }
    if (m->embed->trained) {
        R1_TRY(ops->embed_bwd(m->dev, &m->embed->grad[m->mtp_embed_use], &demb, mb->next, st));
    }
    return ops->rmsnorm_bwd(m->dev, dy, param_grad(m->hnorm, 0), &second, dy, &y, &rh,
                            &m->hnorm->value, st);
}

r1_code
mtp_run(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_batch *batch,
        const r1_pass *pass, const r1_tensor *dy, r1_outputs *out, r1_status *st)
{
    const r1_config *c = &m->config;
    size_t M = mb->mtp_M;
    r1_acts a = acts_view(ws->mtp, mb->N, c->K);
    r1_temps t = temps_view(&ws->t, mb->N, mb->seqs.B, c->K);
    a.s0 = r1_rows(&ws->mx, 0, mb->N);
    R1_TRY(mtp_fwd(m, ws, mb, &a, &t, st));

    r1_tensor hm = r1_rows(&ws->hm, 0, M), my = r1_rows(&ws->my, 0, mb->N);
    R1_TRY(m->ops->gather_rows(m->dev, &hm, &my, mb->mtp_row, st));
    float *weight = r1_alloc(M, sizeof(float)), *logp = r1_alloc(M, sizeof(float));
    int32_t *draft = r1_alloc(M, sizeof(int32_t));
    r1_code code = R1_OK;
    if (weight == NULL || logp == NULL || draft == NULL) {
        code = R1_FAIL(st, R1_ENOMEM, "out of memory for %zu MTP losses", M);
        goto done;
    }
    for (size_t i = 0; i < M; i++) {
        weight[i] = batch->weight[mb->m0 + (size_t)mb->mtp_index[i]];
    }
    r1_head_job job = {.head = m->mtp_head, .freeze = pass->mtp_detach, .target = mb->mtp_target,
                       .weight = weight, .logp = logp, .draft = draft, .grad = 1,
                       .loss_spec = {.form = R1_LOSS_NLL,
                                     .scale = pass->loss.scale * pass->mtp_coef},
                       .sampling = {.temperature = 1.0f, .top_p = 1.0f}};
    code = head_run(m, ws, &job, M, st);
    for (size_t i = 0; code == R1_OK && i < M; i++) {
        size_t at = mb->m0 + (size_t)mb->mtp_index[i];
        if (out->mtp_loss != NULL) {
            out->mtp_loss[at] = -logp[i];
        }
        if (out->mtp_draft != NULL) {
            out->mtp_draft[at] = draft[i];
        }
    }
    if (code == R1_OK) {
        code = mtp_bwd(m, ws, mb, &a, &t, pass, dy, st);
    }
done:
    r1_free(weight);
    r1_free(logp);
    r1_free(draft);
    return code;
}
