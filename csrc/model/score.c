/* score.c - reward models: a scalar head on the last token, and its losses.
 *
 *   score[b] = w . y[last row of b];  loss: ops.h score_loss (pairwise or pointwise)
 *
 * R1's reward models are its own architecture with such a head (Nature 2025, Methods); the loss
 * formulas are the usual ones (Ouyang et al. 2022 eq. 1; binary cross-entropy), not printed there.
 * Pairs are neighbours: sequences 2i (chosen) and 2i + 1 stay in one micro-batch.
 */
#include "internal.h"

static r1_code
score_micro(r1_model *m, r1_workspace *ws, const r1_micro *mb, const float *label,
            const r1_score_pass *pass, float *score, float *loss, r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t B = mb->seqs.B;
    R1_TRY(trunk_fwd(m, ws, mb->ids, &mb->seqs, NULL, st));
    r1_tensor y = r1_rows(&ws->y, 0, mb->N), hm = r1_rows(&ws->hm, 0, B);
    r1_tensor s = r1_rows(&ws->vec[0], 0, B), ds = r1_rows(&ws->vec[1], 0, B);
    r1_tensor l = r1_rows(&ws->vec[2], 0, B), target = r1_rows(&ws->vec[3], 0, B);
    R1_TRY(ops->gather_rows(m->dev, &hm, &y, mb->last, st));
    R1_TRY(linear_fwd(m, &s, &hm, &m->score, NULL, st));
    R1_TRY(ops->mem_download(m->dev, score, s.data, B * sizeof(float), st));
    if (!pass->grad) {
        return R1_OK;
    }
    if (label != NULL) {
        R1_TRY(ops->mem_upload(m->dev, target.data, label, B * sizeof(float), st));
    }
    R1_TRY(ops->score_loss(m->dev, &l, &ds, &s, label != NULL ? &target : NULL, pass->form,
                           pass->scale, st));
    R1_TRY(ops->mem_download(m->dev, loss, l.data, B * sizeof(float), st));
    r1_tensor dhm = r1_rows(&ws->dhm, 0, B), dy = r1_rows(&ws->dy, 0, mb->N);
    const r1_sum_rows rows = {NULL, {mb->seqs.unit, mb->last}};
    R1_TRY(linear_bwd(m, &dhm, &ds, &hm, &m->score, &rows, 0, st));
    R1_TRY(ops->scatter_rows(m->dev, &dy, &dhm, mb->last, st));
    return trunk_bwd(m, ws, &dy, mb->ids, &mb->seqs, 0.0f, st);
}

r1_code
r1_model_score(r1_model *m, const r1_batch *batch, const float *label, const r1_score_pass *pass,
               float *score, float *loss, r1_status *st)
{
    if (!m->config.score) {
        return R1_FAIL(st, R1_EINVAL, "this model has no score head");
    }
    r1_batch whole = *batch;
    whole.pairs = pass->grad && pass->form == R1_SCORE_PAIRWISE;
    if (whole.pairs && batch->B % 2 != 0) {
        return R1_FAIL(st, R1_EINVAL, "pairwise: %zu sequences are not pairs", batch->B);
    }
    r1_workspace *ws = pass->grad ? &m->train : &m->infer;
    if (pass->grad) {
        R1_TRY(r1_model_grads(m, st));
    }
    R1_TRY(micro_reserve(m, ws, &whole, pass->micro_rows, keep_of(pass->grad, pass->recompute), st));
    for (size_t b0 = 0, b1; b0 < batch->B; b0 = b1) {
        r1_micro mb;
        b1 = micro_end(&m->config, &whole, b0, pass->micro_rows);
        R1_TRY(micro_open(m, ws, &whole, b0, b1, 0, &mb, st));
        r1_code code = score_micro(m, ws, &mb, label != NULL ? label + b0 : NULL, pass,
                                   score + b0, loss != NULL ? loss + b0 : NULL, st);
        micro_close(&mb);
        R1_TRY(code);
    }
    return R1_OK;
}
