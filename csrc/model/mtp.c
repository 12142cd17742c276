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
#include "internal.h"

r1_code
mtp_fwd(r1_model *m, const r1_mtp *io, const r1_tensor *y, const int32_t *next, const r1_acts *a,
        const r1_temps *t, const r1_kv *kv, const r1_seqs *seqs, r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t C = m->config.C;
    float eps = m->config.eps;
    r1_tensor first = r1_cols(&io->cat, 0, C), second = r1_cols(&io->cat, C, C);
    R1_TRY(ops->embed_fwd(m->dev, &io->emb, m->embed->weight, next, st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &first, NULL, &io->re, &io->emb, NULL, &m->enorm->value, eps,
                            st));
    R1_TRY(ops->rmsnorm_fwd(m->dev, &second, NULL, &io->rh, y, NULL, &m->hnorm->value, eps, st));
    R1_TRY(linear_fwd(m, &io->x, &io->cat, &m->eh, NULL, st));
    R1_TRY(block_fwd(m, &m->layers[m->config.L], a, t, &io->x, NULL, kv, seqs, st));
    return ops->rmsnorm_fwd(m->dev, &io->y, &io->s, &io->r, &a->s1, &a->f, &m->mtp_norm->value, eps,
                            st);
}

/* From ws->dhm (gradient of the rows that carry a loss) down to dy. */
static r1_code
mtp_bwd(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_mtp *io, const r1_acts *a,
        const r1_temps *t, const r1_pass *pass, const r1_tensor *dy, r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t N = mb->N, C = m->config.C;
    r1_tensor dhm = r1_rows(&ws->dhm, 0, mb->mtp_M), demb = r1_rows(&ws->demb, 0, N);
    r1_tensor y = r1_rows(&ws->y, 0, N), dcat = r1_rows(&ws->dcat, 0, N);
    r1_tensor first = r1_cols(&dcat, 0, C), second = r1_cols(&dcat, C, C);
    R1_TRY(ops->scatter_rows(m->dev, &demb, &dhm, mb->mtp_row, st));
    R1_TRY(ops->rmsnorm_bwd(m->dev, &t->ds, param_grad(m->mtp_norm, 0), &demb, NULL, &io->s, &io->r,
                            &m->mtp_norm->value, st));
    R1_TRY(block_bwd(m, &m->layers[m->config.L], a, t, &mb->seqs, pass->balance_coef, st));
    const r1_sum_rows rows = sum_rows(&mb->seqs);
    R1_TRY(linear_bwd(m, &dcat, &t->ds, &io->cat, &m->eh, &rows, 0, st));
    R1_TRY(ops->rmsnorm_bwd(m->dev, &demb, param_grad(m->enorm, 0), &first, NULL, &io->emb, &io->re,
                            &m->enorm->value, st));
    if (pass->mtp_detach) { /* demb is a sink here: only hnorm's own gradient is wanted */
        return ops->rmsnorm_bwd(m->dev, &demb, param_grad(m->hnorm, 0), &second, NULL, &y, &io->rh,
                                &m->hnorm->value, st);
    }
    if (m->embed->trained) {
        R1_TRY(param_settle(m, m->embed, m->mtp_embed_use, st));
        R1_TRY(ops->embed_bwd(m->dev, &m->embed->grad[m->mtp_embed_use], &demb, mb->next, st));
    }
    return ops->rmsnorm_bwd(m->dev, dy, param_grad(m->hnorm, 0), &second, dy, &y, &io->rh,
                            &m->hnorm->value, st);
}

r1_code
mtp_run(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_batch *batch,
        const r1_pass *pass, const r1_tensor *dy, r1_outputs *out, r1_status *st)
{
    const r1_config *c = &m->config;
    size_t M = mb->mtp_M;
    r1_acts a = acts_view(ws->mtp_acts, mb->N, c->K);
    r1_temps t = temps_view(&ws->t, mb->N, mb->seqs.B, c->K);
    r1_mtp io = mtp_view(&ws->mtp, mb->N);
    r1_tensor hm = r1_rows(&ws->hm, 0, M), y = r1_rows(&ws->y, 0, mb->N);
    a.s0 = io.x;
    R1_TRY(mtp_fwd(m, &io, &y, mb->next, &a, &t, &ws->kv, &mb->seqs, st));
    R1_TRY(m->ops->gather_rows(m->dev, &hm, &io.y, mb->mtp_row, st));
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
                       .unit = mb->mtp_unit, .cut = mb->mtp_cut,
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
        code = mtp_bwd(m, ws, mb, &io, &a, &t, pass, dy, st);
    }
done:
    r1_free(weight);
    r1_free(logp);
    r1_free(draft);
    return code;
}
