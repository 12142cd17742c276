/* decode_bind.c - _core.Decode: a sampling session of a model. See csrc/model/decode.c. */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <string.h>

#include "../base/philox.h"

typedef struct {
    PyObject_HEAD
    ModelObject *model;
    r1_decode *decode;
    size_t n;
} DecodeObject;

/* For what needs the session but no device: takes the model's lock, or raises and returns 0. */
static int
session_lock(DecodeObject *self, r1_args *a)
{
    if (!args_done(a)) {
        return 0;
    }
    if (atomic_flag_test_and_set(&self->model->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "model is busy: another thread is using it");
        return 0;
    }
    return 1;
}

static void
session_unlock(DecodeObject *self)
{
    atomic_flag_clear(&self->model->busy);
}

static void
arg_prompts(ModelObject *model, r1_args *a, r1_decode_spec *s)
{
    size_t T = model->model->config.T;
    s->ids = arg_i32(a, "ids", "N", "1", ARG_IN);
    s->start = arg_i32(a, "start", "P+1", "1", ARG_IN);
    s->sample_ids = arg_i32(a, "sample_ids", "P", "1", ARG_IN);
    s->P = arg_dim(a, "P");
    arg_require(a, arg_dim(a, "P+1") == s->P + 1, "start has not P + 1 entries");
    arg_range(a, "ids", s->ids, arg_dim(a, "N"), 0, (int64_t)model->model->config.V);
    arg_require(a, a->failed || (s->start[0] == 0 && s->start[s->P] == (int32_t)arg_dim(a, "N")),
                "start does not cover ids");
    for (size_t p = 0; !a->failed && p < s->P; p++) {
        int64_t length = (int64_t)s->start[p + 1] - s->start[p];
        arg_require(a, length >= 1, "prompt %zu is empty", p);
        arg_require(a, length < (int64_t)T,
                    "prompt %zu has %lld tokens and leaves no room in a context of %zu", p,
                    (long long)length, T);
    }
}

/* Decode(device, model, ids, start, sample_ids, stop, num_generations, max_new_tokens, slots,
 * speculative, seed, step, how) */
static PyObject *
decode_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Decode takes no keywords");
        return NULL;
    }
    DecodeObject *self = (DecodeObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    r1_call c;
    r1_args *a = &c.args;
    r1_decode_spec spec = {0};
    call_open(&c, "Decode", PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args));
    PyObject *object = arg_object(a, "model");
    self->model = object != NULL ? model_cast(object) : NULL;
    if (self->model == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(self->model);
    arg_prompts(self->model, a, &spec);
    spec.stop = arg_i32(a, "stop", "n_stop", "1", ARG_IN);
    spec.n_stop = arg_dim(a, "n_stop");
    spec.G = arg_size(a, "num_generations");
    spec.max_new = arg_size(a, "max_new_tokens");
    spec.slots = arg_size(a, "slots");
    spec.speculative = arg_flag(a, "speculative");
    uint64_t seed = arg_u64(a, "seed");
    spec.key = r1_key(seed, arg_u64(a, "step"));
    arg_sampling(a, &spec.sampling);
    arg_require(a, spec.G >= 1 && spec.G <= INT32_MAX, "num_generations is %zu, must be in 1 .. %d",
                spec.G, INT32_MAX); /* a generation's number is a word of the random counter */
    arg_require(a, spec.max_new >= 1 && spec.slots >= 1,
                "max_new_tokens and slots must be at least 1");
    spec.max_new = spec.max_new < self->model->model->config.T ? spec.max_new
                                                              : self->model->model->config.T;
    self->n = spec.P * spec.G;
    if (model_begin(self->model, &c)) {
        r1_decode_open(&self->decode, self->model->model, &spec, &c.st);
    }
    PyObject *none = model_end(self->model, &c);
    if (none == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(none);
    return (PyObject *)self;
}

static void
decode_dealloc(PyObject *object)
{
    DecodeObject *self = (DecodeObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    r1_decode_close(self->decode);
    Py_XDECREF(self->model);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
decode_run(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    DecodeObject *self = (DecodeObject *)object;
    r1_call c;
    size_t live = 0;
    call_open(&c, "Decode.run", items, count);
    size_t tokens = arg_size(&c.args, "tokens");
    if (model_begin(self->model, &c)) {
        r1_decode_run(self->decode, tokens, &live, &c.st);
    }
    PyObject *none = model_end(self->model, &c);
    Py_XDECREF(none);
    return none != NULL ? PyLong_FromSize_t(live) : NULL;
}

/* Fills length (n) and state (n): 0 live or waiting, 1 ended by a stop, 2 out of room. */
static PyObject *
decode_state(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    DecodeObject *self = (DecodeObject *)object;
    r1_args a;
    args_open(&a, "Decode.state", items, count);
    int32_t *length = arg_i32(&a, "length", "n", "1", ARG_OUT);
    int32_t *state = arg_i32(&a, "state", "n", "1", ARG_OUT);
    arg_require(&a, arg_dim(&a, "n") == self->n, "there are %zu sequences", self->n);
    if (!session_lock(self, &a)) {
        return NULL;
    }
    for (size_t i = 0; i < self->n; i++) {
        r1_sequence s = r1_decode_get(self->decode, i);
        length[i] = (int32_t)s.length;
        state[i] = !s.done ? 0 : s.stopped ? 1 : 2;
    }
    session_unlock(self);
    Py_RETURN_NONE;
}

/* Copies tokens [from, from + n) of sequence i into ids (n) and logp (n). */
static PyObject *
decode_read(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    DecodeObject *self = (DecodeObject *)object;
    r1_args a;
    args_open(&a, "Decode.read", items, count);
    size_t i = arg_size(&a, "index");
    size_t from = arg_size(&a, "from");
    int32_t *ids = arg_i32(&a, "ids", "n", "1", ARG_OUT);
    float *logp = arg_f32(&a, "logp", "n", "1", ARG_OUT);
    arg_require(&a, i < self->n, "there are %zu sequences", self->n);
    if (!session_lock(self, &a)) {
        return NULL;
    }
    r1_sequence s = r1_decode_get(self->decode, i);
    size_t n = arg_dim(&a, "n");
    arg_require(&a, from <= s.length && n <= s.length - from, "sequence %zu has %zu tokens", i,
                s.length);
    if (!a.failed && n > 0) {
        memcpy(ids, s.ids + from, n * sizeof *ids);
        memcpy(logp, s.logp + from, n * sizeof *logp);
    }
    session_unlock(self);
    return a.failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *
decode_stop(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    DecodeObject *self = (DecodeObject *)object;
    r1_args a;
    args_open(&a, "Decode.stop", items, count);
    size_t i = arg_size(&a, "index"), keep = arg_size(&a, "keep");
    arg_require(&a, i < self->n, "there are %zu sequences", self->n);
    if (!session_lock(self, &a)) {
        return NULL;
    }
    r1_decode_stop(self->decode, i, keep);
    session_unlock(self);
    Py_RETURN_NONE;
}

static PyObject *
decode_drafts(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    DecodeObject *self = (DecodeObject *)object;
    r1_args a;
    uint64_t proposed, accepted;
    args_open(&a, "Decode.drafts", items, count);
    if (!session_lock(self, &a)) {
        return NULL;
    }
    r1_decode_drafts(self->decode, &proposed, &accepted);
    session_unlock(self);
    return Py_BuildValue("(KK)", (unsigned long long)proposed, (unsigned long long)accepted);
}

static PyMethodDef decode_methods[] = {
    {"run", (PyCFunction)(void (*)(void))decode_run, METH_FASTCALL,
     "run(device, tokens, /)\n--\n\nUp to tokens more for every live sequence; returns how many "
     "sequences are not done."},
    {"state", (PyCFunction)(void (*)(void))decode_state, METH_FASTCALL,
     "state(length, state, /)\n--\n\nFills int32 arrays (P G): tokens so far; 0 live, 1 stopped, 2 out "
     "of room."},
    {"read", (PyCFunction)(void (*)(void))decode_read, METH_FASTCALL,
     "read(index, from, ids, logp, /)\n--\n\nCopies tokens and their log-probs."},
    {"stop", (PyCFunction)(void (*)(void))decode_stop, METH_FASTCALL,
     "stop(index, keep, /)\n--\n\nCuts a sequence to its first tokens and ends it."},
    {"drafts", (PyCFunction)(void (*)(void))decode_drafts, METH_FASTCALL,
     "drafts()\n--\n\n(guesses that were looked at, guesses that were right): speculative=True."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot decode_slots[] = {
    {Py_tp_new, decode_new},
    {Py_tp_dealloc, decode_dealloc},
    {Py_tp_methods, decode_methods},
    {Py_tp_doc, "Decode(device, model, ids, start, sample_ids, stop, num_generations, "
                "max_new_tokens, slots, speculative, seed, step, how)\n--\n\n"
                "A sampling session; how is (temperature, top_k, top_p, min_p)."},
    {0, NULL},
};

static PyType_Spec decode_spec = {
    .name = "r1grpo._core.Decode",
    .basicsize = sizeof(DecodeObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decode_slots,
};

int
decode_bind_add(PyObject *module)
{
    return add_type(module, &decode_spec);
}
