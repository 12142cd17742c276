/* model.c - a model: open, close, parameters in and out, and one pass over a batch.
 *
 * r1_model_run is the whole of training and scoring: for each micro-batch, trunk forward, head (log-
 * probs, loss), then, when a gradient is wanted, MTP and trunk backward. Gradients add up over calls
 * until r1_model_zero_grad. A pass without gradient keeps one layer's activations only; one that
 * recomputes keeps what enters each layer too, and its backward runs block_fwd on that once more.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

r1_code
r1_model_open(r1_model **out, const r1_config *c, r1_dtype dtype, const r1_rope *rope,
              r1_arena *packed, const r1_ops *ops, r1_dev *dev, r1_status *st)
{
    *out = NULL;
    R1_TRY(r1_config_check(c, st));
    r1_model *m = r1_alloc(1, sizeof *m);
    if (m == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a model");
    }
    m->config = *c;
    m->dtype = dtype;
    m->live = c->V;
    m->ops = ops;
    m->dev = dev;
    r1_code code = rope_open(m, rope, st);
    if (code == R1_OK) {
        code = layout_params(m, st);
    }
    if (code == R1_OK) {
        code = layout_memory(m, packed, st);
    }
    if (code != R1_OK) {
        r1_model_close(m);
        return code;
    }
    *out = m;
    return R1_OK;
}

r1_code
r1_model_params(r1_param **params, size_t *n, const r1_config *c, r1_status *st)
{
    r1_model m = {.config = *c};
    *params = NULL;
    R1_TRY(r1_config_check(c, st));
    r1_code code = layout_params(&m, st);
    r1_free(m.layers);
    if (code != R1_OK) {
        r1_free(m.params);
        return code;
    }
    *params = m.params;
    *n = m.n_params;
    return R1_OK;
}

void
r1_model_close(r1_model *m)
{
    if (m == NULL) {
        return;
    }
    for (size_t i = 0; i < m->n_params; i++) {
        if (m->params[i].weight != NULL) {
            m->ops->weight_close(m->dev, m->params[i].weight);
        }
    }
    void *memory[] = {m->vectors, m->packed, m->grads, m->config.offload ? NULL : m->moments};
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++) {
        if (memory[i] != NULL) {
            m->ops->mem_free(m->dev, memory[i]);
        }
    }
    if (m->config.offload && m->moments != NULL) {
        m->ops->mem_free_host(m->dev, m->moments);
    }
    offload_close(m);
    workspace_release(m, &m->train);
    workspace_release(m, &m->infer);
    rope_close(m);
    r1_free(m->params);
    r1_free(m->layers);
    r1_free(m);
}

r1_code
r1_model_set_live(r1_model *m, size_t live, r1_status *st)
{
    if (live < 1 || live > m->config.V) {
        return R1_FAIL(st, R1_EINVAL, "live_vocab is %zu, must be in 1 .. %zu (vocab_size)", live,
                       m->config.V);
    }
    m->version += live != m->live;
    m->live = live;
    return R1_OK;
}

r1_code
r1_model_set_offload(r1_model *m, int offload, r1_status *st)
{
    if ((offload != 0) != (m->config.offload != 0) && (m->config.frozen || m->moments != NULL)) {
        return R1_FAIL(st, R1_EINVAL, m->config.frozen ? "a frozen model's layers lie where they were made"
                                                       : "the moments are there already");
    }
    m->config.offload = offload != 0;
    return R1_OK;
}

r1_code
r1_model_set_adapter_scale(r1_model *m, float scale, r1_status *st)
{
    if (!isfinite(scale)) {
        return R1_FAIL(st, R1_EINVAL, "the scale of the adapters is %g, must be finite",
                       (double)scale);
    }
    m->version += scale != m->adapter_scale;
    m->adapter_scale = scale;
    return R1_OK;
}

/* ---- parameters ------------------------------------------------------------------------------ */

static r1_code
param_tensor(r1_model *m, size_t i, int what, r1_tensor *x, r1_status *st)
{
    r1_param *p = &m->params[i];
    if (what == R1_MOMENT1 || what == R1_MOMENT2) {
        R1_TRY(r1_model_moments(m, st));
    }
    if (what == R1_GRAD) {
        R1_TRY(r1_model_grads(m, st));
        R1_TRY(param_settle_all(m, p, st));
    }
    *x = what == R1_VALUE ? p->value : what == R1_GRAD ? p->grad[0] : what == R1_MOMENT1 ? p->m : p->v;
    if (x->data == NULL) {
        return R1_FAIL(st, R1_EINVAL, "%s is not trained: it has no gradient and no moments",
                       p->name);
    }
    return R1_OK;
}

/* Are these in host memory, where nothing is under way between two updates? */
static int
on_host(const r1_model *m, int what)
{
    return m->config.offload && (what == R1_MOMENT1 || what == R1_MOMENT2);
}

/* The gradient is the sum of the accumulators, in order of use. */
r1_code
r1_param_read(r1_model *m, size_t i, int what, float *out, r1_status *st)
{
    r1_tensor x;
    size_t layer;
    if (what == R1_VALUE && m->params[i].weight != NULL) {
        R1_TRY(offload_layer(m, i, &layer) ? offload_enter(m, layer, st) : R1_OK);
        return m->ops->weight_read(m->dev, out, m->params[i].weight, st);
    }
    R1_TRY(param_tensor(m, i, what, &x, st));
    size_t n = x.rows * x.cols;
    if (on_host(m, what)) {
        memcpy(out, x.data, n * sizeof(float));
        return R1_OK;
    }
    R1_TRY(m->ops->mem_download(m->dev, out, x.data, n * sizeof(float), st));
    for (size_t u = 1; what == R1_GRAD && u < m->params[i].uses; u++) {
        float *more = r1_alloc(n, sizeof(float));
        if (more == NULL) {
            return R1_FAIL(st, R1_ENOMEM, "out of memory for the gradient of %s",
                           m->params[i].name);
        }
        r1_code code =
            m->ops->mem_download(m->dev, more, m->params[i].grad[u].data, n * sizeof(float), st);
        for (size_t j = 0; code == R1_OK && j < n; j++) {
            out[j] += more[j];
        }
        r1_free(more);
        R1_TRY(code);
    }
    return R1_OK;
}

r1_code
r1_param_write(r1_model *m, size_t i, int what, const float *in, r1_status *st)
{
    r1_tensor x;
    if (what == R1_GRAD) {
        return R1_FAIL(st, R1_EINVAL, "gradients are read-only");
    }
    m->version += what == R1_VALUE;
    if (what == R1_VALUE && m->params[i].weight != NULL) {
        size_t layer;
        int away = offload_layer(m, i, &layer);
        R1_TRY(away ? offload_enter(m, layer, st) : R1_OK);
        R1_TRY(m->ops->weight_write(m->dev, m->params[i].weight, in, st));
        return away ? offload_keep(m, layer, &m->params[i], st) : m->ops->mem_join(m->dev, 1, st);
    }
    R1_TRY(param_tensor(m, i, what, &x, st));
    if (on_host(m, what)) {
        memcpy(x.data, in, x.rows * x.cols * sizeof(float));
        return R1_OK;
    }
    R1_TRY(m->ops->mem_upload(m->dev, x.data, in, x.rows * x.cols * sizeof(float), st));
    return m->ops->mem_join(m->dev, 1, st);
}

r1_code
param_settle(r1_model *m, r1_param *p, size_t use, r1_status *st)
{
    if (p->cleared[use]) {
        R1_TRY(m->ops->fill_zero(m->dev, &p->grad[use], st));
        p->cleared[use] = 0;
    }
    return R1_OK;
}

r1_code
param_settle_all(r1_model *m, r1_param *p, r1_status *st)
{
    for (size_t u = 0; p->trained && u < p->uses; u++) {
        R1_TRY(param_settle(m, p, u, st));
    }
    return R1_OK;
}

r1_code
r1_model_zero_grad(r1_model *m, r1_status *st)
{
    for (size_t i = 0; m->grads != NULL && i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        for (size_t u = 0; p->trained && u < p->uses; u++) {
            p->cleared[u] = p->weight != NULL; /* the first product to come overwrites it */
            if (p->weight == NULL) {
                R1_TRY(m->ops->fill_zero(m->dev, &p->grad[u], st));
            }
        }
    }
    if (m->config.E > 0) { /* an int64 as two zero floats */
        size_t n = 2 * (m->config.L + m->config.mtp) * m->config.E;
        r1_tensor loads = r1_f32((float *)(void *)m->loads, 1, n);
        R1_TRY(m->ops->fill_zero(m->dev, &loads, st));
    }
    return R1_OK;
}

/* ---- the trunk ------------------------------------------------------------------------------- */

/* Activations of layer i for N rows. */
static r1_acts
layer_acts(const r1_model *m, const r1_workspace *ws, size_t i, size_t N)
{
    r1_acts a = acts_view(&ws->acts[i % ws->kept], N, m->config.K);
    size_t streams = ws->streams.rows / ws->rows;
    a.s0 = r1_rows(&ws->streams, i % streams * ws->rows, N);
    return a;
}

r1_code
trunk_fwd(r1_model *m, r1_workspace *ws, const int32_t *ids, const r1_seqs *seqs, const r1_kv *kvs,
          r1_status *st)
{
    const r1_config *c = &m->config;
    size_t N = seqs->N;
    r1_temps t = temps_view(&ws->t, N, seqs->B, c->K);
    r1_tensor x = r1_rows(&ws->streams, 0, N), f;
    m->temps = &ws->t;
    R1_TRY(m->ops->embed_fwd(m->dev, &x, m->embed->weight, ids, st));
    for (size_t i = 0; i < c->L; i++) {
        r1_acts a = layer_acts(m, ws, i, N);
        R1_TRY(offload_enter(m, i, st));
        R1_TRY(block_fwd(m, &m->layers[i], &a, &t, &x, i > 0 ? &f : NULL,
                         kvs != NULL ? &kvs[i] : &ws->kv, seqs, st));
        x = a.s1;
        f = a.f;
    }
    r1_tensor y = r1_rows(&ws->y, 0, N), s = r1_rows(&ws->s, 0, N), r = r1_rows(&ws->r, 0, N);
    return m->ops->rmsnorm_fwd(m->dev, &y, &s, &r, &x, &f, &m->norm->value, c->eps, st);
}

r1_code
trunk_bwd(r1_model *m, r1_workspace *ws, const r1_tensor *dy, const int32_t *ids,
          const r1_seqs *seqs, float balance_coef, r1_status *st)
{
    const r1_config *c = &m->config;
    size_t N = seqs->N;
    r1_temps t = temps_view(&ws->t, N, seqs->B, c->K);
    r1_tensor s = r1_rows(&ws->s, 0, N), r = r1_rows(&ws->r, 0, N);
    R1_TRY(m->ops->rmsnorm_bwd(m->dev, &t.ds, param_grad(m->norm, 0), dy, NULL, &s, &r,
                               &m->norm->value, st));
    for (size_t i = c->L; i-- > 0;) {
        r1_acts a = layer_acts(m, ws, i, N);
        if (ws->keep == R1_KEEP_STREAM) { /* k and v too: the cache holds the layer before's */
            R1_TRY(block_fwd(m, &m->layers[i], &a, &t, &a.s0, NULL, &ws->kv, seqs, st));
        }
        R1_TRY(block_bwd(m, &m->layers[i], &a, &t, seqs, balance_coef, st));
    }
    if (!m->embed->trained) {
        return R1_OK;
    }
    R1_TRY(param_settle(m, m->embed, 0, st));
    return m->ops->embed_bwd(m->dev, &m->embed->grad[0], &t.ds, ids, st);
}

/* ---- one pass over a batch ------------------------------------------------------------------- */

static const float *
at(const float *array, size_t m0)
{
    return array != NULL ? array + m0 : NULL;
}

static float *
into(float *array, size_t m0)
{
    return array != NULL ? array + m0 : NULL;
}

static r1_code
run_micro(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_batch *batch,
          const r1_pass *pass, r1_outputs *out, r1_status *st)
{
    const r1_ops *ops = m->ops;
    R1_TRY(trunk_fwd(m, ws, mb->ids, &mb->seqs, NULL, st));
    r1_tensor y = r1_rows(&ws->y, 0, mb->N), hm = r1_rows(&ws->hm, 0, mb->M);
    R1_TRY(ops->gather_rows(m->dev, &hm, &y, mb->row, st));
    r1_head_job job = {.head = m->head, .target = mb->target, .unit = mb->row_unit, .cut = mb->row_cut,
                       .weight = at(batch->weight, mb->m0), .adv = at(batch->adv, mb->m0),
                       .old_logp = at(batch->old_logp, mb->m0),
                       .ref_logp = at(batch->ref_logp, mb->m0),
                       .logp = into(out->logp, mb->m0), .entropy = into(out->entropy, mb->m0),
                       .loss = into(out->loss, mb->m0), .kl = into(out->kl, mb->m0),
                       .clipped = into(out->clipped, mb->m0), .grad = pass->grad,
                       .loss_spec = pass->loss, .sampling = pass->sampling};
    R1_TRY(head_run(m, ws, &job, mb->M, st));
    if (!pass->grad) {
        return R1_OK;
    }
    r1_tensor dy = r1_rows(&ws->dy, 0, mb->N), dhm = r1_rows(&ws->dhm, 0, mb->M);
    R1_TRY(ops->scatter_rows(m->dev, &dy, &dhm, mb->row, st));
    r1_tensor balance = ws->t.balance_sum;
    balance.rows = mb->seqs.B;
    R1_TRY(ops->fill_zero(m->dev, &balance, st));
    if (pass->mtp_coef != 0.0f && m->config.mtp > 0) {
        R1_TRY(mtp_run(m, ws, mb, batch, pass, &dy, out, st));
    }
    R1_TRY(trunk_bwd(m, ws, &dy, mb->ids, &mb->seqs, pass->balance_coef, st));
    if (out->balance != NULL) {
        R1_TRY(ops->mem_download(m->dev, out->balance + mb->b0, balance.data,
                                 mb->seqs.B * sizeof(float), st));
    }
    return R1_OK;
}

static r1_code
run_all(r1_model *m, const r1_batch *batch, const r1_pass *pass, r1_outputs *out, r1_status *st)
{
    r1_workspace *ws = pass->grad ? &m->train : &m->infer;
    if (pass->grad) {
        R1_TRY(r1_model_grads(m, st));
    }
    R1_TRY(micro_reserve(m, ws, batch, pass->micro_rows, keep_of(pass->grad, pass->recompute), st));
    size_t m0 = 0;
    for (size_t b0 = 0, b1; b0 < batch->B; b0 = b1) {
        r1_micro mb;
        b1 = micro_end(&m->config, batch, b0, pass->micro_rows);
        R1_TRY(micro_open(m, ws, batch, b0, b1, m0, &mb, st));
        r1_code code = run_micro(m, ws, &mb, batch, pass, out, st);
        m0 += mb.M;
        micro_close(&mb);
        R1_TRY(code);
    }
    return R1_OK;
}

r1_code
r1_model_run(r1_model *m, const r1_batch *batch, const r1_pass *pass, r1_outputs *out,
             r1_status *st)
{
    float scale = m->adapter_scale;
    m->adapter_scale = pass->base ? 0.0f : scale;
    r1_code code = run_all(m, batch, pass, out, st);
    m->adapter_scale = scale;
    return code;
}
