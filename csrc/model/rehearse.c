/* rehearse.c - what the calls of a plan make a device hold for itself: scratch memory of its ops, workspaces.
 *
 * The calls are made, on a device that pretends (dev_pretend of ops.h): a model is opened, its weights are
 * written and stepped, zeros go through it as a batch, a session decodes. So what is counted is what the ops
 * themselves ask for. Options that only take more are on: filters of the softmax, entropy, balance loss. Where
 * a backend has no such device, or a model is beyond any memory, there is nothing to count: 0 bytes.
 */
#include "decode.h"

typedef struct {
    r1_model *m; /* NULL: nothing to count */
    r1_dev *dev;
} rehearsal;

static void
rehearsal_close(rehearsal *r, const r1_ops *ops)
{
    r1_model_close(r->m);
    ops->dev_close(r->dev);
}

/* A model whose memory is nowhere; its rotary table, which no op asks more for, is not computed. */
static r1_code
rehearsal_open(rehearsal *r, const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, r1_status *st)
{
    *r = (rehearsal){NULL, NULL};
    if (ops->dev_pretend == NULL) {
        return R1_OK;
    }
    size_t pairs = config_rotary(c) / 2;
    double *zeros = r1_alloc(pairs, sizeof *zeros);
    if (zeros == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a plan");
    }
    const r1_rope rope = {zeros, pairs, 1.0};
    r1_code code = ops->dev_pretend(&r->dev, dev, st);
    if (code == R1_OK) {
        code = r1_model_open(&r->m, c, dtype, &rope, NULL, ops, r->dev, st);
    }
    r1_free(zeros);
    if (code != R1_OK) {
        ops->dev_close(r->dev);
        return code;
    }
    r->m->rope = r1_f32(NULL, c->T, config_rotary(c));
    return R1_OK;
}

r1_code
rehearse_model(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, size_t *bytes, r1_status *st)
{
    rehearsal r;
    r1_update_spec spec = {.max_norm = 1.0f};
    double norm;
    r1_code code = rehearsal_open(&r, c, dtype, ops, dev, st);
    *bytes = 0;
    if (code != R1_OK || r.m == NULL) {
        return code;
    }
    for (size_t i = 0; code == R1_OK && i < r.m->n_params; i++) {
        code = r1_param_write(r.m, i, R1_VALUE, r.m->vectors, st); /* which nobody reads */
    }
    if (code == R1_OK && !c->frozen) {
        code = r1_model_update(r.m, &spec, &norm, st);
    }
    *bytes = ops->dev_own(r.dev);
    rehearsal_close(&r, ops);
    return code;
}

/* zeros: as many floats as the batch has tokens. */
static r1_code
pass_through(r1_model *m, const r1_batch *batch, size_t micro_rows, r1_keep keep, float *zeros, r1_status *st)
{
    int grad = keep != R1_KEEP_NONE, recompute = keep == R1_KEEP_STREAM;
    r1_batch zero = *batch;
    zero.ids = (const int32_t *)zeros; /* which are zeros too */
    zero.weight = zeros;
    if (m->config.score) {
        r1_score_pass pass = {grad, recompute, batch->pairs ? R1_SCORE_PAIRWISE : R1_SCORE_POINTWISE, 1.0f,
                              micro_rows};
        return r1_model_score(m, &zero, zeros, &pass, zeros, zeros, st);
    }
    r1_pass pass = {.grad = grad, .recompute = recompute, .mtp_coef = 1.0f, .balance_coef = 1.0f,
                    .loss = {.form = R1_LOSS_NLL, .scale = 1.0f, .entropy_coef = 1.0f},
                    .sampling = {.temperature = 1.0f, .top_p = 0.5f}, .micro_rows = micro_rows};
    r1_outputs none = {0};
    return r1_model_run(m, &zero, &pass, &none, st);
}

r1_code
rehearse_pass(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, const r1_batch *batch,
              size_t micro_rows, r1_keep keep, size_t *bytes, r1_status *st)
{
    rehearsal r;
    r1_code code = rehearsal_open(&r, c, dtype, ops, dev, st);
    *bytes = 0;
    if (code != R1_OK || r.m == NULL) {
        return code;
    }
    float *zeros = r1_alloc((size_t)batch->start[batch->B], sizeof *zeros);
    code = zeros == NULL ? R1_FAIL(st, R1_ENOMEM, "out of memory for a plan")
                         : pass_through(r.m, batch, micro_rows, keep, zeros, st);
    *bytes = ops->dev_own(r.dev);
    r1_free(zeros);
    rehearsal_close(&r, ops);
    return code;
}

/* The largest batch of each part; a step's draws are one chunk of logits, or several. */
static r1_code
decode_parts(r1_decode *d, r1_status *st)
{
    size_t slots = d->spec.slots, step = slots * (d->spec.speculative ? 2 : 1);
    R1_TRY(workspace_reserve(d->m, d->ws, d->rows, slots + 1, 0, 0, R1_KEEP_NONE, st));
    R1_TRY(trunk_part(d, d->rows, st));
    R1_TRY(d->spec.speculative ? module_part(d, d->rows, st) : R1_OK);
    size_t draws = padded_rows(d->m->ops, step), chunk = d->ws->logits.rows;
    return draw_part(d, draws < chunk ? draws : chunk, st);
}

/* sizes: a session's; prompts of one length, and no more of them than are in the slots at a time. */
r1_code
rehearse_decode(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, const r1_decode_spec *sizes,
                size_t prompt, size_t *bytes, r1_status *st)
{
    rehearsal r;
    r1_decode *d = NULL;
    r1_decode_spec spec = *sizes;
    r1_code code = rehearsal_open(&r, c, dtype, ops, dev, st);
    *bytes = 0;
    if (code != R1_OK || r.m == NULL) {
        return code;
    }
    size_t most = spec.slots / spec.G + 2;
    spec.P = spec.P < most ? spec.P : most;
    int32_t *zeros = r1_alloc(spec.P * prompt, sizeof *zeros), *start = r1_alloc(spec.P + 1, sizeof *start);
    for (size_t p = 0; start != NULL && p <= spec.P; p++) {
        start[p] = (int32_t)(p * prompt);
    }
    spec.ids = spec.sample_ids = spec.stop = zeros;
    spec.start = start;
    spec.sampling = (r1_sampling){.temperature = 1.0f, .top_p = 0.5f};
    code = zeros == NULL || start == NULL ? R1_FAIL(st, R1_ENOMEM, "out of memory for a plan")
                                          : r1_decode_open(&d, r.m, &spec, st);
    if (code == R1_OK) {
        code = decode_parts(d, st);
    }
    r1_decode_close(d);
    *bytes = ops->dev_own(r.dev);
    r1_free(zeros);
    r1_free(start);
    rehearsal_close(&r, ops);
    return code;
}
