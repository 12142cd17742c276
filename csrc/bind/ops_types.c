/* ops_types.c - what ops take besides arrays and numbers: Weight, Kv, packed sequences, offsets.
 *
 * For tests of single ops. A Weight packs a matrix once; a Kv is one layer's cache whose memory
 * starts as NaN, so that a kernel that reads a slot nobody wrote is seen.
 */
#define PY_SSIZE_T_CLEAN
#include "bind.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *device;
    r1_weight *weight;
    size_t E, O, I;
} Weight;

typedef struct {
    PyObject_HEAD
    PyObject *device;
    r1_kv kv;
} Kv;

/* An instance of this type that belongs to this device. */
static PyObject *
object_new(PyTypeObject *type, PyObject *device)
{
    PyObject *self = type->tp_alloc(type, 0);
    if (self) { /* both types have the device right after the head */
        ((Weight *)self)->device = Py_NewRef(device);
    }
    return self;
}

/* ---- Weight --------------------------------------------------------------------------------- */

PyDoc_STRVAR(weight_doc,
             "Weight(device, matrix, experts, dtype='float32', /)\n--\n\n"
             "experts matrices (O, I), stacked: matrix (experts O, I) float32. Copied and packed;\n"
             "dtype is what products see: 'float32' or 'bfloat16'.");

static PyObject *
weight_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    r1_call c;
    call_open(&c, "Weight", ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
    arg_require(&c.args, kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0, "takes no keywords");
    const float *matrix = arg_f32(&c.args, "matrix", "E*O", "I", ARG_IN);
    size_t E = arg_size(&c.args, "experts");
    r1_dtype dtype = args_more(&c.args) ? arg_dtype(&c.args, "dtype") : R1_F32;
    size_t rows = arg_dim(&c.args, "E*O"), I = arg_dim(&c.args, "I");
    arg_require(&c.args, E > 0 && rows % E == 0, "%zu rows do not make %zu experts", rows, E);
    arg_require(&c.args, rows > 0 && I > 0, "matrix is empty");
    Weight *self = c.args.failed ? NULL : (Weight *)object_new(type, c.device);
    if (self == NULL) {
        return call_close(&c);
    }
    self->E = E;
    self->O = rows / E;
    self->I = I;
    if (call_begin(&c) && c.ops->weight_open(c.dev, &self->weight, E, self->O, I, dtype, NULL,
                                             &c.st) == R1_OK) {
        c.ops->weight_write(c.dev, self->weight, matrix, &c.st);
    }
    PyObject *done = call_close(&c);
    if (done == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(done);
    return (PyObject *)self;
}

static void
weight_dealloc(PyObject *object)
{
    Weight *self = (Weight *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->weight) {
        const r1_ops *ops = NULL;
        r1_dev *dev = device_get(self->device, &ops);
        ops->weight_close(dev, self->weight);
    }
    Py_XDECREF(self->device);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot weight_slots[] = {
    {Py_tp_new, weight_new},
    {Py_tp_dealloc, weight_dealloc},
    {Py_tp_doc, (void *)weight_doc},
    {0, NULL},
};

static PyType_Spec weight_spec = {
    .name = "r1grpo._core.Weight",
    .basicsize = sizeof(Weight),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weight_slots,
};

/* The next argument, an object of c's device whose type is the one with this destructor. */
static PyObject *
next_object(r1_call *c, const char *name, const char *type_name, destructor dealloc)
{
    PyObject *x = arg_object(&c->args, name);
    if (x && Py_TYPE(x)->tp_dealloc != dealloc) {
        c->args.failed = 1;
        PyErr_Format(PyExc_TypeError, "%s: argument '%s': must be a _core.%s, not %s",
                     c->args.function, name, type_name, Py_TYPE(x)->tp_name);
        return NULL;
    }
    if (x) {
        arg_require(&c->args, ((Weight *)x)->device == c->device,
                    "argument '%s' belongs to another device", name);
    }
    return c->args.failed ? NULL : x;
}

r1_weight *
arg_weight(r1_call *c, const char *name, const char *E, const char *O, const char *I)
{
    Weight *w = (Weight *)next_object(c, name, "Weight", weight_dealloc);
    if (w == NULL) {
        return NULL;
    }
    arg_bind(&c->args, E, w->E);
    arg_bind(&c->args, O, w->O);
    arg_bind(&c->args, I, w->I);
    return w->weight;
}

/* ---- Kv ------------------------------------------------------------------------------------- */

PyDoc_STRVAR(kv_doc, "Kv(device, blocks, Hkv, D, Dv, dtype='float32', /)\n--\n\n"
                     "One layer's KV cache, all NaN: blocks of 64 keys (D) and values (Dv).");

/* Fills bytes of device memory with NaN of any width. */
static r1_code
poison(r1_call *c, void *p, size_t bytes)
{
    unsigned char nan[4096];
    memset(nan, 0xff, sizeof nan);
    for (size_t done = 0; done < bytes; done += sizeof nan) {
        size_t n = bytes - done < sizeof nan ? bytes - done : sizeof nan;
        R1_TRY(c->ops->mem_upload(c->dev, (char *)p + done, nan, n, &c->st));
    }
    return R1_OK;
}

static PyObject *
kv_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    r1_call c;
    call_open(&c, "Kv", ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
    arg_require(&c.args, kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0, "takes no keywords");
    r1_kv kv = {0};
    kv.blocks = arg_size(&c.args, "blocks");
    kv.Hkv = arg_size(&c.args, "Hkv");
    kv.D = arg_size(&c.args, "D");
    kv.Dv = arg_size(&c.args, "Dv");
    kv.dtype = args_more(&c.args) ? arg_dtype(&c.args, "dtype") : R1_F32;
    arg_require(&c.args, kv.blocks > 0 && kv.blocks <= 1 << 20, "blocks is %zu", kv.blocks);
    arg_require(&c.args, kv.Hkv > 0 && kv.Hkv <= 1024, "Hkv is %zu", kv.Hkv);
    arg_require(&c.args, kv.D > 0 && kv.D <= R1_MAX_HEAD_DIM && kv.Dv > 0 &&
                kv.Dv <= R1_MAX_HEAD_DIM, "D is %zu and Dv %zu, must be in 1 .. %d", kv.D, kv.Dv,
                (int)R1_MAX_HEAD_DIM);
    Kv *self = c.args.failed ? NULL : (Kv *)object_new(type, c.device);
    if (self == NULL) {
        return call_close(&c);
    }
    self->kv = kv;
    size_t k_bytes = kv.blocks * kv.Hkv * r1_kv_k_bytes(&kv);
    size_t v_bytes = kv.blocks * kv.Hkv * r1_kv_v_bytes(&kv);
    if (call_begin(&c)) {
        self->kv.k = c.ops->mem_alloc(c.dev, k_bytes, &c.st);
        self->kv.v = c.ops->mem_alloc(c.dev, v_bytes, &c.st);
        if (self->kv.k == NULL || self->kv.v == NULL) {
            R1_FAIL(&c.st, R1_ENOMEM, "Kv: no memory for %zu blocks", kv.blocks);
        } else if (poison(&c, self->kv.k, k_bytes) == R1_OK) {
            poison(&c, self->kv.v, v_bytes);
        }
    }
    PyObject *done = call_close(&c);
    if (done == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(done);
    return (PyObject *)self;
}

static void
kv_dealloc(PyObject *object)
{
    Kv *self = (Kv *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->kv.blocks) {
        const r1_ops *ops = NULL;
        r1_dev *dev = device_get(self->device, &ops);
        ops->mem_free(dev, self->kv.k);
        ops->mem_free(dev, self->kv.v);
    }
    Py_XDECREF(self->device);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyType_Slot kv_slots[] = {
    {Py_tp_new, kv_new},
    {Py_tp_dealloc, kv_dealloc},
    {Py_tp_doc, (void *)kv_doc},
    {0, NULL},
};

static PyType_Spec kv_spec = {
    .name = "r1grpo._core.Kv",
    .basicsize = sizeof(Kv),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kv_slots,
};

const r1_kv *
arg_kv(r1_call *c, const char *name)
{
    Kv *x = (Kv *)next_object(c, name, "Kv", kv_dealloc);
    if (x == NULL) {
        return NULL;
    }
    arg_bind(&c->args, "Hkv", x->kv.Hkv);
    arg_bind(&c->args, "D", x->kv.D);
    arg_bind(&c->args, "Dv", x->kv.Dv);
    return &x->kv;
}

/* ---- sequences and offsets ------------------------------------------------------------------ */

/* starts (n + 1): from 0, ascending, to total (or at most to it). */
static void
check_starts(r1_args *a, const char *name, const int32_t *starts, size_t n, size_t total, int exact)
{
    if (starts == NULL || a->failed) {
        return;
    }
    arg_require(a, starts[0] == 0, "argument '%s': starts at %d, expected 0", name, starts[0]);
    for (size_t i = 0; i < n && !a->failed; i++) {
        arg_require(a, starts[i + 1] >= starts[i], "argument '%s': descends at index %zu", name,
                    i + 1);
    }
    arg_require(a, exact ? (size_t)starts[n] == total : (size_t)starts[n] <= total,
                "argument '%s': ends at %d, but there are %zu rows", name, starts[n], total);
}

/* Every block that a position of sequence b falls into exists. */
static void
check_blocks(r1_args *a, const r1_seqs *s, const r1_kv *kv)
{
    for (size_t b = 0; b < s->B && !a->failed; b++) {
        int64_t last = (int64_t)s->pos0[b] + s->q_start[b + 1] - s->q_start[b];
        size_t used = (size_t)(last + R1_KV_BLOCK - 1) / R1_KV_BLOCK;
        arg_require(a, used <= s->max_blocks, "sequence %zu needs %zu blocks, its table has %zu", b,
                    used, s->max_blocks);
        if (!a->failed) {
            arg_range(a, "blocks", s->blocks + b * s->max_blocks, used, 0, (int64_t)kv->blocks);
        }
    }
}

const r1_seqs *
arg_seqs(r1_call *c, r1_seqs *seqs, const r1_kv *kv)
{
    r1_args *a = &c->args;
    arg_enter(a, "seqs", 3);
    const int32_t *q_start = arg_i32(a, "q_start", "B+1", "1", ARG_IN);
    const int32_t *pos0 = arg_i32(a, "pos0", "B", "1", ARG_IN);
    const int32_t *blocks = arg_i32(a, "blocks", "B", "max_blocks", kv ? ARG_IN : ARG_NULL);
    arg_leave(a);
    size_t B = arg_dim(a, "B"), N = arg_dim(a, "N");
    arg_bind(a, "B+1", B + 1);
    check_starts(a, "seqs.q_start", q_start, B, N, 1);
    for (size_t b = 0; b < B && !a->failed; b++) {
        arg_require(a, pos0[b] >= 0 && (int64_t)pos0[b] + (int64_t)N <= INT32_MAX,
                    "argument 'seqs.pos0': %d at index %zu is out of range", pos0[b], b);
    }
    *seqs = (r1_seqs){B, N, arg_dim(a, "max_blocks"), q_start, pos0, blocks, NULL, NULL, NULL,
                       NULL};
    if (kv && !a->failed) {
        check_blocks(a, seqs, kv);
    }
    int32_t *pos = call_alloc(c, N, sizeof *pos), *seq = call_alloc(c, N, sizeof *seq);
    if (pos == NULL || seq == NULL) {
        return NULL;
    }
    for (size_t b = 0; b < B; b++) {
        for (int32_t n = q_start[b]; n < q_start[b + 1]; n++) {
            pos[n] = pos0[b] + n - q_start[b];
            seq[n] = (int32_t)b;
        }
    }
    seqs->pos = pos;
    seqs->seq = seq;
    return seqs;
}

void
arg_groups(r1_call *c, r1_seqs *seqs)
{
    const int32_t *q_start = seqs->q_start, *pos0 = seqs->pos0;
    int32_t *prefix = call_alloc(c, seqs->B, sizeof *prefix);
    if (prefix == NULL) {
        return;
    }
    size_t first = 0; /* of the group */
    for (size_t b = 0; b < seqs->B && !c->args.failed; b++) {
        first = pos0[b] == 0 ? b : first;
        int32_t rows = q_start[first + 1] - q_start[first];
        int right = b == first || (pos0[b] <= rows && (b == first + 1 || pos0[b] == pos0[b - 1]));
        arg_require(&c->args, pos0[b] == 0 || (right && pos0[first] == 0),
                    "argument 'seqs.pos0': %d at index %zu is no prefix that its group shares",
                    pos0[b], b);
        prefix[b] = q_start[first];
    }
    seqs->prefix = prefix;
}

const int32_t *
arg_offsets(r1_call *c)
{
    r1_args *a = &c->args;
    size_t E = arg_dim(a, "E");
    const int32_t *offsets = arg_i32(a, "offsets", "E+1", "1", E == 1 ? ARG_NULL : ARG_IN);
    if (offsets) {
        arg_bind(a, "E+1", E + 1);
        check_starts(a, "offsets", offsets, E, arg_dim(a, "N"), 0);
    }
    return offsets;
}

int
ops_types_add(PyObject *module)
{
    return add_type(module, &weight_spec) < 0 ? -1 : add_type(module, &kv_spec);
}
