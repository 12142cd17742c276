/* dlpack_out.c - a parameter of a model as a DLPack capsule: the memory itself, or a copy.
 *
 *   view   the model's own memory, read-only: products may read a packed copy, which a write here would
 *          leave behind. An old capsule cannot say so, and is never a view.
 *   copy   new memory on the model's device       host   new memory of the host; both may be written
 *
 * A view holds the model, a copy the device; the last holder lets go of it, on whatever thread. What the
 * model has queued on a GPU is done before a consumer's stream goes on. r1grpo/parameters.py is the face.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <string.h>

#include "dlpack.h"

typedef struct {
    union {
        dl_old old;
        dl_now now;
    } head; /* first: consumers have its address */
    int64_t shape[2], stride[2];
    PyObject *holds;    /* what must not go: the model, or a copy's device */
    const r1_ops *ops;  /* of a copy in device memory, which `dev` gets back; */
    r1_dev *dev;        /* NULL: the memory is the host's */
    void *memory;       /* a copy's, else NULL */
} exported;

/* ---- the end --------------------------------------------------------------------------------- */

static void
exported_free(exported *x)
{
    if (!Py_IsInitialized()) { /* the process ends, and takes the memory with it */
        return;
    }
    PyGILState_STATE gil = PyGILState_Ensure();
    if (x->memory != NULL && x->dev != NULL) {
        Py_BEGIN_ALLOW_THREADS /* a GPU first does all that it was given */
        x->ops->mem_free(x->dev, x->memory);
        Py_END_ALLOW_THREADS
    } else {
        r1_free(x->memory);
    }
    Py_XDECREF(x->holds);
    PyGILState_Release(gil);
    r1_free(x);
}

static void
delete_old(dl_old *self)
{
    exported_free((exported *)self);
}

static void
delete_now(dl_now *self)
{
    exported_free((exported *)self);
}

static void
capsule_free(PyObject *capsule)
{
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? DL_OLD : DL_NOW;
        if (PyCapsule_IsValid(capsule, name)) { /* nobody took it */
            exported_free(PyCapsule_GetPointer(capsule, name));
            return;
        }
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Matrix e of parameter p, as its view has it, into host memory. A weight without a view is read as
 * float32, and of bf16 these are the rounded values. */
static r1_code
copy_values(r1_model *m, const r1_param *p, size_t e, void *to, r1_status *st)
{
    size_t n = p->O == 0 ? p->I : p->O * p->I, size = p->value.dtype == R1_BF16 ? 2 : 4;
    if (p->value.data != NULL) {
        return m->ops->mem_download(m->dev, to, (char *)p->value.data + e * n * size, n * size, st);
    }
    float *all = r1_alloc(p->E * n, sizeof *all);
    if (all == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a copy of %s", p->name);
    }
    r1_code code = r1_param_read(m, (size_t)(p - m->params), R1_VALUE, all, st);
    if (size == 4) {
        memcpy(to, all + e * n, n * size);
    }
    for (size_t j = 0; size == 2 && j < n; j++) { /* exact: they have been rounded */
        uint32_t bits;
        memcpy(&bits, &all[e * n + j], sizeof bits);
        ((uint16_t *)to)[j] = (uint16_t)(bits >> 16);
    }
    r1_free(all);
    return code;
}

enum { AS_VIEW, AS_COPY, AS_HOST };

/* Fills x's memory and *data, where it is. */
static r1_code
place_values(r1_model *m, const r1_param *p, size_t e, int how, exported *x, void **data, r1_status *st)
{
    size_t n = p->O == 0 ? p->I : p->O * p->I, bytes = n * (p->value.dtype == R1_BF16 ? 2 : 4);
    if (how == AS_VIEW) {
        *data = (char *)p->value.data + e * bytes;
        return R1_OK;
    }
    *data = x->memory = r1_alloc(bytes, 1);
    r1_code code = x->memory == NULL ? R1_FAIL(st, R1_ENOMEM, "out of memory for a copy of %s", p->name)
                                     : copy_values(m, p, e, x->memory, st);
    if (code != R1_OK || how == AS_HOST || m->ops->mem_place(m->dev).kind == DL_HOST) {
        return code;
    }
    void *host = x->memory;
    *data = x->memory = m->ops->mem_alloc(m->dev, bytes, st);
    x->dev = m->dev;
    code = x->memory == NULL ? R1_FAIL(st, R1_ENOMEM, "out of GPU memory for a copy of %s", p->name)
                             : m->ops->mem_upload(m->dev, x->memory, host, bytes, st);
    r1_free(host);
    return code;
}

static void
describe(exported *x, const r1_param *p, void *data, r1_place place, int how, int versioned)
{
    int32_t dims = p->O == 0 ? 1 : 2;
    x->shape[0] = (int64_t)(dims == 1 ? p->I : p->O);
    x->shape[1] = (int64_t)p->I;
    x->stride[0] = (int64_t)(dims == 1 ? 1 : p->I);
    x->stride[1] = 1;
    dl_tensor t = {.data = data, .kind = how == AS_HOST ? DL_HOST : place.kind,
                   .number = how == AS_HOST ? 0 : place.number, .dims = dims, .lanes = 1,
                   .code = p->value.dtype == R1_BF16 ? DL_BFLOAT : DL_FLOAT,
                   .bits = p->value.dtype == R1_BF16 ? 16 : 32, .shape = x->shape, .stride = x->stride};
    if (versioned) {
        x->head.now = (dl_now){.major = DL_MAJOR, .deleter = delete_now, .tensor = t,
                               .flags = how == AS_VIEW ? DL_READ_ONLY : DL_COPIED};
    } else {
        x->head.old = (dl_old){.deleter = delete_old, .tensor = t};
    }
}

PyObject *
model_export(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    static const char *const ways[] = {"view", "copy", "host", NULL};
    ModelObject *self = (ModelObject *)object;
    r1_call c;
    r1_args *a = &c.args;
    call_open(&c, "Model.export", items, count);
    size_t i = arg_size(a, "index"), e = arg_size(a, "matrix");
    int how = arg_choice(a, "how", ways), versioned = arg_flag(a, "versioned");
    int ordered = arg_flag(a, "ordered");
    uint64_t stream = arg_u64(a, "stream");
    arg_require(a, i < self->model->n_params, "no parameter %zu", i);
    const r1_param *p = a->failed ? NULL : &self->model->params[i];
    arg_require(a, p == NULL || e < p->E, "no matrix %zu of %zu", e, p == NULL ? 0 : p->E);
    arg_require(a, p == NULL || how != AS_VIEW || (versioned && p->value.data != NULL),
                "there is no view of %s", p == NULL ? "" : p->name);
    exported *x = call_alloc(&c, 1, sizeof *x);
    void *data = NULL;
    r1_place place = {0};
    if (model_begin(self, &c)) {
        place = c.ops->mem_place(c.dev);
        x->ops = c.ops;
        r1_code code = place_values(self->model, p, e, how, x, &data, &c.st);
        if (code == R1_OK && ordered) {
            c.ops->mem_share(c.dev, (uintptr_t)stream, &c.st);
        }
    }
    if (x != NULL) {
        c.owned[0].p = NULL; /* from here on it frees itself */
        x->holds = Py_NewRef(how == AS_VIEW ? object : c.device);
    }
    PyObject *capsule = NULL, *none = model_end(self, &c);
    if (none != NULL) {
        describe(x, p, data, place, how, versioned);
        capsule = PyCapsule_New(x, versioned ? DL_NOW : DL_OLD, capsule_free);
        Py_DECREF(none);
    }
    if (capsule == NULL && x != NULL) {
        exported_free(x);
    }
    return capsule;
}

PyObject *
model_view(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    const r1_model *m = ((ModelObject *)object)->model;
    r1_args a;
    args_open(&a, "Model.view", items, count);
    size_t i = arg_size(&a, "index");
    arg_require(&a, i < m->n_params, "no parameter %zu", i);
    if (!args_done(&a)) {
        return NULL;
    }
    const r1_tensor *x = &m->params[i].value;
    return Py_BuildValue("Ks", (unsigned long long)(uintptr_t)x->data,
                         x->dtype == R1_BF16 ? "bfloat16" : "float32");
}
