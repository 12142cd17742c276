/* model_bind.c - _core.Model: the network with its weights, gradients and moments.
 *
 * Every method takes the device first, because threads may change between calls while the weights
 * stay; it must be of the tier that the model was made on. A model has a lock of its own, taken
 * without blocking. Arrays come checked and packed from the package (model.py, model_state.py); what
 * could crash the core is checked here again. While the core runs, Ctrl-C is polled every 50 ms.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <time.h>

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
    float *memory = args_more(a) ? arg_f32(a, "packed", "floats", "1", ARG_OUT | ARG_NULL) : NULL;
    r1_arena packed = {(unsigned char *)memory, arg_dim(a, "floats") * sizeof(float), 0};
    arg_require(a, memory == NULL || config.frozen, "a model that is not frozen owns its matrices");
    ModelObject *self = args_done(a) ? (ModelObject *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        return call_close(&c);
    }
    atomic_flag_clear(&self->busy);
    self->device = Py_NewRef(c.device);
    self->packed = memory != NULL ? Py_NewRef(a->items[a->count - 1]) : NULL;
    if (call_begin(&c)) {
        r1_model_open(&self->model, &config, dtype, &rope, memory != NULL ? &packed : NULL, c.ops,
                      c.dev, &c.st);
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
    Py_XDECREF(self->packed);
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
    METHOD("view", model_view, "index, /",
           "(address, dtype) of a parameter's values where they lie row-major; address 0: they do not."),
    METHOD("export", model_export, "device, index, matrix, how, versioned, ordered, stream, /",
           "A DLPack capsule of a parameter or one expert's matrix: csrc/bind/dlpack_out.c."),
    METHOD("run", model_run, "device, ids, start, first, group, weight, advantage, old_logp, ref_logp, "
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
    {Py_tp_doc, "Model(device, config, inv_freq, rope_factor, dtype, packed=None, /)\n--\n\n"
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
