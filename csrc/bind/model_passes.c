/* model_passes.c - what _core.Model computes: passes over a packed batch, and updates.
 *
 * Each method reads and checks its arguments, takes the model's lock, and makes one call of the core.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <string.h>

/* ---- passes ---------------------------------------------------------------------------------- */

/* The group of each sequence; neighbours of one group must have the same prompt. */
static void
arg_group(r1_args *a, r1_batch *batch)
{
    const int32_t *group = arg_i32(a, "group", "B", "1", ARG_IN | ARG_NULL);
    const int32_t *start = batch->start, *first = batch->first;
    for (size_t b = 1; group != NULL && !a->failed && b < batch->B; b++) {
        if (group[b] == group[b - 1]) {
            arg_require(a, first[b] == first[b - 1] &&
                               memcmp(batch->ids + start[b], batch->ids + start[b - 1],
                                      (size_t)first[b] * sizeof(int32_t)) == 0,
                        "sequences %zu and %zu are of one group, but have different prompts", b - 1, b);
        }
    }
    batch->group = group;
}

/* (ids, start, first): sequences packed one after another. Binds N, B, M. */
static void
arg_batch(ModelObject *self, r1_args *a, r1_batch *batch)
{
    size_t N, M = 0, T = self->model->config.T;
    batch->ids = arg_i32(a, "ids", "N", "1", ARG_IN);
    batch->start = arg_i32(a, "start", "B+1", "1", ARG_IN);
    batch->first = arg_i32(a, "first", "B", "1", ARG_IN);
    N = arg_dim(a, "N");
    batch->B = arg_dim(a, "B");
    arg_range(a, "ids", batch->ids, N, 0, (int64_t)self->model->config.V);
    arg_require(a, arg_dim(a, "B+1") == batch->B + 1, "start has not B + 1 entries");
    arg_require(a, a->failed || batch->start[0] == 0, "start[0] is not 0");
    for (size_t b = 0; !a->failed && b < batch->B; b++) {
        int64_t length = (int64_t)batch->start[b + 1] - batch->start[b];
        arg_require(a, length >= 1 && length <= (int64_t)T && batch->start[b + 1] <= (int64_t)N,
                    "sequence %zu has %lld tokens, must be in 1 .. %zu (the context)", b,
                    (long long)length, T);
        arg_require(a, batch->first[b] >= 1 && batch->first[b] <= length,
                    "first[%zu] is %d, must be in 1 .. %lld", b, (int)batch->first[b],
                    (long long)length);
        if (!a->failed) {
            M += (size_t)(length - batch->first[b]);
        }
    }
    arg_require(a, a->failed || batch->start[batch->B] == (int32_t)N, "start ends before ids");
    arg_bind(a, "M", M);
}

PyObject *
model_run(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_batch batch = {0};
    r1_pass pass = {0};
    r1_outputs out = {0};
    r1_call c;
    r1_args *a = &c.args;
    call_open(&c, "Model.run", items, count);
    arg_batch(self, a, &batch);
    arg_group(a, &batch);
    batch.weight = arg_f32(a, "weight", "M", "1", ARG_IN | ARG_NULL);
    batch.adv = arg_f32(a, "advantage", "M", "1", ARG_IN | ARG_NULL);
    batch.old_logp = arg_f32(a, "old_logp", "M", "1", ARG_IN | ARG_NULL);
    batch.ref_logp = arg_f32(a, "ref_logp", "M", "1", ARG_IN | ARG_NULL);
    arg_enter(a, "pass", 16);
    pass.grad = arg_flag(a, "grad");
    pass.recompute = arg_flag(a, "recompute");
    pass.base = arg_flag(a, "base");
    arg_loss(a, &pass.loss);
    pass.mtp_coef = arg_float(a, "mtp_coef");
    pass.mtp_detach = arg_flag(a, "mtp_detach");
    pass.balance_coef = arg_float(a, "balance_coef");
    pass.micro_rows = arg_size(a, "micro_rows");
    arg_leave(a);
    arg_sampling(a, &pass.sampling);
    out.logp = arg_f32(a, "logp", "M", "1", ARG_OUT | ARG_NULL);
    out.entropy = arg_f32(a, "entropy", "M", "1", ARG_OUT | ARG_NULL);
    out.loss = arg_f32(a, "loss", "M", "1", ARG_OUT | ARG_NULL);
    out.kl = arg_f32(a, "kl", "M", "1", ARG_OUT | ARG_NULL);
    out.clipped = arg_f32(a, "clipped", "M", "1", ARG_OUT | ARG_NULL);
    out.mtp_loss = arg_f32(a, "mtp_loss", "M", "1", ARG_OUT | ARG_NULL);
    out.mtp_draft = arg_i32(a, "mtp_draft", "M", "1", ARG_OUT | ARG_NULL);
    out.balance = arg_f32(a, "balance", "B", "1", ARG_OUT | ARG_NULL);
    arg_require(a, !pass.grad || batch.weight != NULL, "a gradient needs weight");
    arg_require(a, !pass.grad || pass.loss.form == R1_LOSS_NLL ||
                       (batch.adv != NULL && batch.old_logp != NULL),
                "a policy loss needs advantage and old_logp");
    if (model_begin(self, &c)) {
        r1_model_run(self->model, &batch, &pass, &out, &c.st);
    }
    return model_end(self, &c);
}

PyObject *
model_score(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    static const char *const forms[] = {"pairwise", "pointwise", NULL};
    ModelObject *self = (ModelObject *)object;
    r1_batch batch = {0};
    r1_score_pass pass = {0};
    r1_call c;
    r1_args *a = &c.args;
    call_open(&c, "Model.score", items, count);
    arg_batch(self, a, &batch);
    const float *label = arg_f32(a, "label", "B", "1", ARG_IN | ARG_NULL);
    arg_enter(a, "pass", 5);
    pass.grad = arg_flag(a, "grad");
    pass.recompute = arg_flag(a, "recompute");
    pass.form = (r1_score_form)arg_choice(a, "form", forms);
    pass.scale = arg_float(a, "scale");
    pass.micro_rows = arg_size(a, "micro_rows");
    arg_leave(a);
    float *score = arg_f32(a, "score", "B", "1", ARG_OUT);
    float *loss = arg_f32(a, "loss", "B", "1", ARG_OUT | ARG_NULL);
    arg_require(a, !pass.grad || loss != NULL, "a gradient needs loss");
    arg_require(a, !pass.grad || pass.form == R1_SCORE_PAIRWISE || label != NULL,
                "the pointwise loss needs label");
    if (model_begin(self, &c)) {
        r1_model_score(self->model, &batch, label, &pass, score, loss, &c.st);
    }
    return model_end(self, &c);
}

/* ---- update ---------------------------------------------------------------------------------- */

PyObject *
model_zero_grad(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    call_open(&c, "Model.zero_grad", items, count);
    if (model_begin(self, &c)) {
        r1_model_zero_grad(self->model, &c.st);
    }
    return model_end(self, &c);
}

PyObject *
model_update(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    double norm = 0.0;
    call_open(&c, "Model.update", items, count);
    r1_update_spec spec = {0};
    spec.lr = arg_float(&c.args, "learning_rate");
    spec.beta1 = arg_float(&c.args, "beta1");
    spec.beta2 = arg_float(&c.args, "beta2");
    spec.eps = arg_float(&c.args, "eps");
    spec.weight_decay = arg_float(&c.args, "weight_decay");
    spec.max_norm = arg_float(&c.args, "max_grad_norm");
    if (model_begin(self, &c)) {
        r1_model_update(self->model, &spec, &norm, &c.st);
    }
    PyObject *none = model_end(self, &c);
    Py_XDECREF(none);
    return none != NULL ? PyFloat_FromDouble(norm) : NULL;
}

PyObject *
model_router_update(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    call_open(&c, "Model.router_update", items, count);
    float rate = arg_float(&c.args, "rate");
    if (model_begin(self, &c)) {
        r1_model_router_update(self->model, rate, &c.st);
    }
    return model_end(self, &c);
}
