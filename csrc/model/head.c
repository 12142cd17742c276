/* head.c - hidden states -> log-probs, entropies, losses, and back, by chunks of rows.
 *
 *   logits = h W^T;  logp, entropy = log-softmax under the sampling options;  loss = token_loss(...)
 *   dlogits in place;  dh = dlogits W;  dW += dlogits^T h
 *
 * The softmax goes over the live ids (model_live); dlogits of the others are 0.
 *
 * Only a chunk of logits (workspace.c) ever exists, forward or backward. A row's log-prob
 * comes from the ops that the sampler uses: that is E1.
 */
#include "internal.h"

enum { WEIGHT, ADV, OLD, REF, LOGP, ENTROPY, LSE, LOSS, DLOGP, DENTROPY, KL, CLIPPED };

static r1_tensor
vec_rows(const r1_workspace *ws, int which, size_t n0, size_t n)
{
    return r1_rows(&ws->vec[which], n0, n);
}

/* Loss and gradient of the chunk whose logits are in place. */
static r1_code
chunk_bwd(r1_model *m, r1_workspace *ws, const r1_head_job *job, const r1_tensor *logits,
          const r1_tensor *h, size_t n0, r1_status *st)
{
    const r1_ops *ops = m->ops;
    size_t n = logits->rows;
    const int32_t *target = job->target + n0;
    int with_entropy = job->loss_spec.entropy_coef != 0.0f;
    r1_tensor logp = vec_rows(ws, LOGP, n0, n), entropy = vec_rows(ws, ENTROPY, n0, n);
    r1_tensor lse = vec_rows(ws, LSE, n0, n), loss = vec_rows(ws, LOSS, n0, n);
    r1_tensor dlogp = vec_rows(ws, DLOGP, n0, n), dentropy = vec_rows(ws, DENTROPY, n0, n);
    r1_tensor kl = vec_rows(ws, KL, n0, n), clipped = vec_rows(ws, CLIPPED, n0, n);
    r1_tensor weight = vec_rows(ws, WEIGHT, n0, n), adv = vec_rows(ws, ADV, n0, n);
    r1_tensor old = vec_rows(ws, OLD, n0, n), ref = vec_rows(ws, REF, n0, n);
    R1_TRY(ops->token_loss(m->dev, &loss, &dlogp, &dentropy, &kl, &clipped, &logp,
                           with_entropy ? &entropy : NULL, &weight, job->adv ? &adv : NULL,
                           job->old_logp ? &old : NULL, job->ref_logp ? &ref : NULL,
                           &job->loss_spec, st));
    r1_tensor live = model_live(m, logits);
    r1_tensor dead = r1_cols(logits, live.cols, logits->cols - live.cols);
    R1_TRY(ops->fill_zero(m->dev, &dead, st));
    R1_TRY(ops->logp_bwd(m->dev, &live, &dlogp, with_entropy ? &dentropy : NULL,
                         with_entropy ? &entropy : NULL, &lse, target, &job->sampling,
                         ws->logp_scratch, st));
    r1_tensor dh = r1_rows(&ws->dhm, n0, n);
    R1_TRY(ops->matmul_nn(m->dev, &dh, logits, job->head.weight->weight, NULL, 0, st));
    if (!job->freeze && job->head.weight->trained) {
        r1_units units = {job->unit + n0, NULL};
        R1_TRY(weight_grad(m, job->head.weight, job->head.use, logits, h, NULL, &units, st));
    }
    return R1_OK;
}

static r1_code
upload(r1_model *m, r1_workspace *ws, int which, const float *host, size_t M, r1_status *st)
{
    if (host == NULL) {
        return R1_OK;
    }
    return m->ops->mem_upload(m->dev, ws->vec[which].data, host, M * sizeof(float), st);
}

static r1_code
download(r1_model *m, r1_workspace *ws, int which, float *host, size_t M, r1_status *st)
{
    if (host == NULL) {
        return R1_OK;
    }
    return m->ops->mem_download(m->dev, host, ws->vec[which].data, M * sizeof(float), st);
}

/* Rows of the chunk that begins at n0: at most the logits', and whole units, which are smaller. */
static size_t
chunk_rows(const r1_workspace *ws, const r1_head_job *job, size_t n0, size_t M)
{
    size_t end = M - n0 < ws->logits.rows ? M : n0 + ws->logits.rows;
    while (end < M && job->cut[end] == job->cut[end - 1]) {
        end--;
    }
    return end - n0;
}

r1_code
head_run(r1_model *m, r1_workspace *ws, const r1_head_job *job, size_t M, r1_status *st)
{
    const r1_ops *ops = m->ops;
    int with_entropy = job->entropy != NULL || job->loss_spec.entropy_coef != 0.0f;
    R1_TRY(upload(m, ws, WEIGHT, job->weight, M, st));
    R1_TRY(upload(m, ws, ADV, job->adv, M, st));
    R1_TRY(upload(m, ws, OLD, job->old_logp, M, st));
    R1_TRY(upload(m, ws, REF, job->ref_logp, M, st));
    for (size_t n0 = 0, n; n0 < M; n0 += n) {
        n = chunk_rows(ws, job, n0, M);
        r1_tensor h = r1_rows(&ws->hm, n0, n), logits = r1_rows(&ws->logits, 0, n);
        r1_tensor logp = vec_rows(ws, LOGP, n0, n), entropy = vec_rows(ws, ENTROPY, n0, n);
        r1_tensor lse = vec_rows(ws, LSE, n0, n), live = model_live(m, &logits);
        R1_TRY(model_poll(m, st));
        R1_TRY(ops->matmul_nt(m->dev, &logits, &h, job->head.weight->weight, NULL, NULL, 0, st));
        R1_TRY(ops->logp_fwd(m->dev, &logp, with_entropy ? &entropy : NULL, &lse, &live,
                             job->target + n0, &job->sampling, ws->logp_scratch, st));
        if (job->draft != NULL) {
            r1_sampling greedy = {0};
            R1_TRY(ops->sample(m->dev, ws->draft + n0, &live, 0, NULL, NULL, NULL, &greedy,
                               ws->logp_scratch, st));
        }
        if (job->grad) {
            R1_TRY(chunk_bwd(m, ws, job, &logits, &h, n0, st));
        }
    }
    R1_TRY(download(m, ws, LOGP, job->logp, M, st));
    R1_TRY(download(m, ws, ENTROPY, job->entropy, M, st));
    if (job->draft != NULL) {
        R1_TRY(ops->mem_download(m->dev, job->draft, ws->draft, M * sizeof(int32_t), st));
    }
    if (job->grad) {
        R1_TRY(download(m, ws, LOSS, job->loss, M, st));
        R1_TRY(download(m, ws, KL, job->kl, M, st));
        R1_TRY(download(m, ws, CLIPPED, job->clipped, M, st));
    }
    return R1_OK;
}
