/* dlpack_in.c - reading somebody else's array from its DLPack capsule: what it is, and its elements.
 *
 * The capsule is not taken over: it is read while the caller holds it, and frees its array as one that
 * nobody took. Strides may be any on the host; the memory of a GPU is copied in one piece and must be
 * row-major. Knows nothing about what the numbers mean: r1grpo/foreign.py does.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <string.h>

#include "dlpack.h"

enum { MAX_DIMS = 8 };

/* The array in a capsule, or NULL with an exception. */
static const dl_tensor *
tensor_of(PyObject *capsule)
{
    const dl_tensor *t = NULL;
    if (PyCapsule_IsValid(capsule, DL_NOW)) {
        const dl_now *now = PyCapsule_GetPointer(capsule, DL_NOW);
        if (now->major != DL_MAJOR) { /* of others only the head is known */
            PyErr_Format(PyExc_BufferError, "DLPack of version %u.%u, known is %d",
                         (unsigned)now->major, (unsigned)now->minor, (int)DL_MAJOR);
            return NULL;
        }
        t = &now->tensor;
    } else if (PyCapsule_IsValid(capsule, DL_OLD)) {
        t = &((const dl_old *)PyCapsule_GetPointer(capsule, DL_OLD))->tensor;
    } else {
        PyErr_Format(PyExc_TypeError,
                     "expected a DLPack capsule that nobody has taken over, not %R", capsule);
        return NULL;
    }
    if (t->dims < 0 || t->dims > MAX_DIMS) {
        PyErr_Format(PyExc_BufferError, "DLPack array of %d dimensions, at most %d are read",
                     (int)t->dims, (int)MAX_DIMS);
        return NULL;
    }
    return t;
}

static PyObject *
dlpack_info(PyObject *Py_UNUSED(module), PyObject *capsule)
{
    const dl_tensor *t = tensor_of(capsule);
    PyObject *shape = t != NULL ? PyTuple_New(t->dims) : NULL;
    for (int32_t d = 0; shape != NULL && d < t->dims; d++) {
        PyObject *size = PyLong_FromLongLong(t->shape[d]);
        if (size == NULL) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, d, size);
    }
    return shape == NULL ? NULL : Py_BuildValue("(iii)N(ii)", t->code, t->bits, t->lanes, shape,
                                                t->kind, t->number);
}

/* Do rows follow each other? */
static int
is_packed(const dl_tensor *t)
{
    int64_t step = 1;
    for (int32_t d = t->dims; t->stride != NULL && d-- > 0;) {
        if (t->shape[d] != 1 && t->stride[d] != step) {
            return 0;
        }
        step *= t->shape[d];
    }
    return 1;
}

/* Elements of `size` bytes from dimension d on, the first of them at `from`; returns their end in `to`. */
static char *
gather(char *to, const char *from, const dl_tensor *t, int32_t d, size_t size)
{
    if (d == t->dims) {
        memcpy(to, from, size);
        return to + size;
    }
    for (int64_t i = 0; i < t->shape[d]; i++) {
        to = gather(to, from + i * t->stride[d] * (int64_t)size, t, d + 1, size);
    }
    return to;
}

static void
read_tensor(r1_call *c, const dl_tensor *t, Py_buffer *out)
{
    const char *from = (const char *)t->data + t->offset;
    if (t->kind == DL_CUDA || t->kind == DL_CUDA_MANAGED) {
        c->ops->mem_download(c->dev, out->buf, from, (size_t)out->len, &c->st);
    } else if (is_packed(t)) {
        memcpy(out->buf, from, (size_t)out->len);
    } else {
        gather(out->buf, from, t, 0, t->bits / 8);
    }
}

/* Bytes of all elements; -1: too many. */
static Py_ssize_t
bytes_of(const dl_tensor *t)
{
    Py_ssize_t bytes = (Py_ssize_t)t->bits / 8 * t->lanes;
    for (int32_t d = 0; d < t->dims; d++) {
        if (t->shape[d] < 0 || __builtin_mul_overflow(bytes, (Py_ssize_t)t->shape[d], &bytes)) {
            return -1;
        }
    }
    return bytes;
}

static PyObject *
dlpack_read(PyObject *Py_UNUSED(module), PyObject *const *items, Py_ssize_t count)
{
    r1_call c;
    Py_buffer out = {0};
    call_open(&c, "dlpack_read", items, count);
    PyObject *capsule = arg_object(&c.args, "capsule"), *array = arg_object(&c.args, "array");
    const dl_tensor *t = array == NULL ? NULL : tensor_of(capsule);
    if (t == NULL || PyObject_GetBuffer(array, &out, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    r1_place place = c.ops->mem_place(c.dev);
    int host = t->kind == DL_HOST || t->kind == DL_CUDA_HOST;
    int gpu = t->kind == DL_CUDA || t->kind == DL_CUDA_MANAGED;
    arg_require(&c.args, host || (gpu && place.kind == DL_CUDA && place.number == t->number),
                "the array is on DLPack device (%d, %d), which the model's, (%d, %d), does not reach",
                (int)t->kind, (int)t->number, (int)place.kind, (int)place.number);
    arg_require(&c.args, host || is_packed(t), "on a GPU arrays must be contiguous, and this one is not");
    arg_require(&c.args, t->bits % 8 == 0 && t->lanes == 1, "elements of %u x %u bits are not read",
                t->lanes, t->bits);
    arg_require(&c.args, bytes_of(t) == out.len, "the array has %zd bytes, expected %zd", bytes_of(t),
                out.len);
    if (out.len > 0 && call_begin(&c)) {
        read_tensor(&c, t, &out);
    }
    PyBuffer_Release(&out);
    return call_close(&c);
}

static PyMethodDef dlpack_methods[] = {
    {"dlpack_info", dlpack_info, METH_O,
     "dlpack_info(capsule, /)\n--\n\n((code, bits, lanes), shape, (kind of device, number)) of an array."},
    {"dlpack_read", (PyCFunction)(void (*)(void))dlpack_read, METH_FASTCALL,
     "dlpack_read(device, capsule, array, /)\n--\n\n"
     "Copies its elements, row-major, into a writable buffer of as many bytes."},
    {NULL, NULL, 0, NULL},
};

int
dlpack_bind_add(PyObject *module)
{
    return PyModule_AddFunctions(module, dlpack_methods);
}
