/* model_bind.c - _core.Model: the network with its weights, gradients and moments.
 *
 * Every method takes the device first, because threads may change between calls while the weights
 * stay; it must be of the tier that the model was made on. A model has a lock of its own, taken
 * without blocking. Arrays come checked and packed from r1grpo/model.py; what could crash the core
 * is checked here again. While the core runs, Ctrl-C is polled every 50 ms.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- configuration: a dict whose keys are the fields of r1_config ---------------------------- */

typedef struct {
    const char *name;
    size_t offset;
    enum { SIZE, FLAG, REAL, LAYERS } kind;
} field;

#define FIELD(name, kind) {#name, offsetof(r1_config, name), kind}
static const field fields[] = {
    FIELD(V, SIZE), FIELD(C, SIZE), FIELD(L, SIZE), FIELD(T, SIZE), FIELD(H, SIZE),
    FIELD(Hkv, SIZE), FIELD(D, SIZE), FIELD(F, SIZE), FIELD(q_lora, SIZE), FIELD(kv_lora, SIZE),
    FIELD(Dn, SIZE), FIELD(Dr, SIZE), FIELD(Dv, SIZE), FIELD(E, SIZE), FIELD(K, SIZE),
    FIELD(Fe, SIZE), FIELD(shared, SIZE), FIELD(groups, SIZE), FIELD(top_groups, SIZE),
    FIELD(mtp, SIZE), FIELD(moe, LAYERS), FIELD(window, SIZE), FIELD(windowed, LAYERS),
    FIELD(softmax_gate, FLAG), FIELD(normalize, FLAG), FIELD(router_bias, FLAG),
    FIELD(qkv_bias, FLAG), FIELD(o_bias, FLAG), FIELD(mlp_bias, FLAG), FIELD(qk_norm, FLAG),
    FIELD(tied, FLAG), FIELD(interleaved, FLAG), FIELD(score, FLAG), FIELD(lora, SIZE),
    FIELD(lora_targets, SIZE), FIELD(routed_scale, REAL),
    FIELD(eps, REAL), FIELD(attn_scale, REAL),
};

/* bytes, one a layer */
static void
layers_read(PyObject *value, unsigned char *at)
{
    char *from;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(value, &from, &n) == 0) {
        if (n > R1_MAX_LAYERS) {
            PyErr_SetNone(PyExc_ValueError);
            return;
        }
        memcpy(at, from, (size_t)n);
    }
}

int
config_read(PyObject *dict, r1_config *c)
{
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "Model: config must be a dict");
        return -1;
    }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        PyObject *value = PyDict_GetItemString(dict, fields[i].name);
        void *at = (char *)c + fields[i].offset;
        if (value == NULL) {
            PyErr_Format(PyExc_KeyError, "Model: config lacks '%s'", fields[i].name);
            return -1;
        }
        if (fields[i].kind == SIZE) {
            *(size_t *)at = PyLong_AsSize_t(value);
        } else if (fields[i].kind == FLAG) {
            *(int *)at = PyObject_IsTrue(value);
        } else if (fields[i].kind == LAYERS) {
            layers_read(value, at);
        } else {
            *(float *)at = (float)PyFloat_AsDouble(value);
        }
        if (PyErr_Occurred()) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "Model: config '%s' is %R, which cannot be",
                         fields[i].name, value);
            return -1;
        }
    }
    return 0;
}

/* ---- one call on a model --------------------------------------------------------------------- */

static double
now_seconds(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Called by the core on this thread, without the GIL. */
static int
poll_signals(void *context)
{
    ModelObject *self = context;
    double now = now_seconds();
    if (now - self->polled < 0.05 && now >= self->polled) {
        return 0;
    }
    self->polled = now;
    PyEval_RestoreThread(self->call->thread);
    int stop = PyErr_CheckSignals() < 0;
    self->call->thread = PyEval_SaveThread();
    return stop;
}

ModelObject *
model_cast(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc != model_dealloc) {
        PyErr_Format(PyExc_TypeError, "expected a r1grpo._core.Model, not %s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    return (ModelObject *)object;
}

int
model_begin(ModelObject *self, r1_call *c)
{
    if (!args_done(&c->args)) {
        return 0;
    }
    if (c->ops != self->model->ops) {
        PyErr_Format(PyExc_ValueError, "%s: the model was made on %s, the device is %s",
                     c->args.function, self->model->ops->name, c->ops->name);
        return 0;
    }
    if (atomic_flag_test_and_set(&self->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "model is busy: another thread is using it");
        return 0;
    }
    r1_dev *before = self->model->dev; /* written with the GIL, which a session's end reads it with */
    self->model->dev = c->dev;
    self->call = c;
    if (!call_begin(c)) {
        self->model->dev = before;
        atomic_flag_clear(&self->busy);
        return 0;
    }
    return 1;
}

PyObject *
model_end(ModelObject *self, r1_call *c)
{
    if (c->thread != NULL) { /* begun: the model is ours */
        PyEval_RestoreThread(c->thread); /* the device may change hands only with the GIL */
        Py_XSETREF(self->device, Py_NewRef(c->device));
        c->thread = PyEval_SaveThread();
        atomic_flag_clear(&self->busy);
    }
    return call_close(c);
}

/* ---- create and destroy ---------------------------------------------------------------------- */

static PyObject *
model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Model takes no keywords");
        return NULL;
    }
    r1_call c;
    r1_args *a = &c.args;
    r1_config config = {0};
    r1_rope rope = {0};
    call_open(&c, "Model", PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args));
    PyObject *dict = arg_object(a, "config");
    if (dict == NULL || config_read(dict, &config) < 0) {
        return NULL;
    }
    rope.inv_freq = arg_f64(a, "inv_freq", "pairs", "1", ARG_IN);
    rope.pairs = arg_dim(a, "pairs");
    rope.factor = arg_double(a, "rope_factor");
    r1_dtype dtype = arg_dtype(a, "dtype");
    ModelObject *self = !a->failed ? (ModelObject *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        return call_close(&c);
    }
    atomic_flag_clear(&self->busy);
    self->device = Py_NewRef(c.device);
    if (call_begin(&c)) {
        r1_model_open(&self->model, &config, dtype, &rope, c.ops, c.dev, &c.st);
    }
    PyObject *none = call_close(&c);
    if (none == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(none);
    self->model->poll = poll_signals;
    self->model->poll_ctx = self;
    return (PyObject *)self;
}

void
model_dealloc(PyObject *object)
{
    ModelObject *self = (ModelObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->model != NULL) {
        r1_model_close(self->model);
    }
    Py_XDECREF(self->device);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- parameters ------------------------------------------------------------------------------ */

static PyObject *
params_list(const r1_param *params, size_t n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        const r1_param *p = &params[i];
        PyObject *row = Py_BuildValue("snnnO", p->name, (Py_ssize_t)p->E, (Py_ssize_t)p->O,
                                      (Py_ssize_t)p->I, p->trained ? Py_True : Py_False);
        if (row == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, row);
    }
    return list;
}

static PyObject *
model_params(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    const r1_model *m = ((ModelObject *)object)->model;
    return params_list(m->params, m->n_params);
}

static PyObject *
model_layout(PyObject *Py_UNUSED(type), PyObject *dict)
{
    r1_config config = {0};
    r1_status st = {0};
    r1_param *params;
    size_t n;
    if (config_read(dict, &config) < 0) {
        return NULL;
    }
    if (r1_model_params(&params, &n, &config, &st) != R1_OK) {
        return status_raise(&st);
    }
    PyObject *list = params_list(params, n);
    r1_free(params);
    return list;
}

static float *
arg_param(ModelObject *self, r1_args *a, size_t *i, int *what, int mode)
{
    static const char *const kinds[] = {"value", "grad", "m", "v", NULL};
    *i = arg_size(a, "index");
    *what = arg_choice(a, "what", kinds);
    arg_require(a, *i < self->model->n_params, "no parameter %zu", *i);
    float *x = arg_f32(a, "array", "n", "1", mode);
    if (!a->failed) {
        const r1_param *p = &self->model->params[*i];
        size_t n = (p->O == 0 ? 1 : p->E * p->O) * p->I;
        arg_require(a, arg_dim(a, "n") == n, "%s has %zu elements, the array %zu", p->name, n,
                    arg_dim(a, "n"));
    }
    return x;
}

static PyObject *
model_read(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    size_t i;
    int what;
    call_open(&c, "Model.read", items, count);
    float *out = arg_param(self, &c.args, &i, &what, ARG_OUT);
    if (model_begin(self, &c)) {
        r1_param_read(self->model, i, what, out, &c.st);
    }
    return model_end(self, &c);
}

static PyObject *
model_write(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    size_t i;
    int what;
    call_open(&c, "Model.write", items, count);
    const float *in = arg_param(self, &c.args, &i, &what, ARG_IN);
    if (model_begin(self, &c)) {
        r1_param_write(self->model, i, what, in, &c.st);
    }
    return model_end(self, &c);
}

/* ---- passes ---------------------------------------------------------------------------------- */

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

static PyObject *
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

static PyObject *
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

static PyObject *
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

static PyObject *
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

static PyObject *
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

/* ---- the type -------------------------------------------------------------------------------- */

#define METHOD(name, function, arguments, text)                                                   \
    {                                                                                             \
        name, (PyCFunction)(void (*)(void))function, METH_FASTCALL,                               \
            name "(" arguments ")\n--\n\n" text                                                   \
    }

static PyMethodDef model_methods[] = {
    {"params", model_params, METH_NOARGS,
     "params()\n--\n\nList of (name, E, O, I, trained); O = 0: a vector of I."},
    {"layout", model_layout, METH_O | METH_STATIC,
     "layout(config, /)\n--\n\nWhat params() of a model of this config gives, without its memory."},
    METHOD("read", model_read, "device, index, what, array, /",
           "Copies a parameter's 'value', 'grad', 'm' or 'v' into a float32 array (n)."),
    METHOD("write", model_write, "device, index, what, array, /", "The reverse of read."),
    METHOD("run", model_run, "device, ids, start, first, weight, advantage, old_logp, ref_logp, "
           "pass, how, logp, entropy, loss, kl, clipped, mtp_loss, mtp_draft, balance, /",
           "Log-probs of a packed batch and, with pass.grad, its gradient: csrc/model/model.h."),
    METHOD("score", model_score, "device, ids, start, first, label, pass, score, loss, /",
           "Scores of the scalar head, and the gradient of a reward model's loss."),
    METHOD("zero_grad", model_zero_grad, "device, /", "Clears gradients and router loads."),
    METHOD("update", model_update,
           "device, learning_rate, beta1, beta2, eps, weight_decay, max_grad_norm, /",
           "One clipped AdamW step; returns the gradient norm."),
    METHOD("router_update", model_router_update, "device, rate, /",
           "Moves the routers' selection biases towards balance."),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_properties},
    {Py_tp_doc, "Model(device, config, inv_freq, rope_factor, dtype, /)\n--\n\n"
                "The network: weights, gradients, moments. csrc/model/model.h has the fields."},
    {0, NULL},
};

static PyType_Spec model_spec = {
    .name = "r1grpo._core.Model",
    .basicsize = sizeof(ModelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

int
r1_model_bind_add(PyObject *module)
{
    return add_type(module, &model_spec) < 0 || decode_bind_add(module) < 0
               ? -1
               : plan_bind_add(module);
}
