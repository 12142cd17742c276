/* device.c - _core.Device: a backend's op table, its device handle, its lock.
 *
 * Everything that computes holds a Device and takes its lock for the length of a core call, because
 * the thread pool inside serves one caller at a time. Knows nothing about arrays.
 */
#define PY_SSIZE_T_CLEAN
#include "bind.h"

#include <stdatomic.h>
#include <string.h>

enum { MAX_THREADS = 1024, MAX_ROUNDS = 1 << 22 /* below a second: nobody looks for Ctrl-C */ };
static const char *const tier_names[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx", NULL};

typedef struct {
    PyObject_HEAD
    const r1_ops *ops;
    r1_dev *dev;
    atomic_flag busy;
} Device;

static PyObject *
device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threads", "tier", "ops", "ordinal", NULL};
    Py_ssize_t threads = 0, ordinal = 0;
    const char *tier = "auto";
    PyObject *capsule = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|ns$On:Device", names, &threads, &tier, &capsule,
                                     &ordinal)) {
        return NULL;
    }
    if (ordinal < 0) {
        return PyErr_Format(PyExc_ValueError, "Device: ordinal is %zd, must be 0 or more", ordinal);
    }
    if (threads < 0 || threads > MAX_THREADS) {
        return PyErr_Format(PyExc_ValueError, "Device: threads is %zd, must be in 0 (all) .. %d",
                            threads, (int)MAX_THREADS);
    }
    const r1_ops *ops = capsule ? PyCapsule_GetPointer(capsule, OPS_CAPSULE) : r1_cpu_ops(tier);
    if (capsule && (ops == NULL || ops->abi != R1_OPS_ABI)) {
        return ops == NULL ? NULL : PyErr_Format(PyExc_ValueError, "Device: '%s' was built for another"
                                                 " version of r1grpo", ops->name);
    }
    if (ops == NULL || ops->abi != R1_OPS_ABI) {
        return PyErr_Format(PyExc_ValueError,
                            "Device: tier '%s' is unknown, or this processor or build lacks it; "
                            "_core.tiers() lists those there are", tier);
    }
    Device *self = (Device *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->ops = ops;
    atomic_flag_clear(&self->busy);
    r1_status st = {0};
    size_t which = capsule ? (size_t)ordinal : threads ? (size_t)threads : cpu_count();
    if (ops->dev_open(&self->dev, which, &st) != R1_OK) {
        Py_DECREF(self);
        return status_raise(&st);
    }
    return (PyObject *)self;
}

static void
device_dealloc(PyObject *object)
{
    Device *self = (Device *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->dev) {
        self->ops->dev_close(self->dev);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

r1_dev *
device_get(PyObject *device, const r1_ops **ops)
{
    if (Py_TYPE(device)->tp_dealloc != device_dealloc) { /* the type is final: this tells it */
        PyErr_Format(PyExc_TypeError, "device must be a r1grpo._core.Device, not %s",
                     Py_TYPE(device)->tp_name);
        return NULL;
    }
    Device *self = (Device *)device;
    if (ops) {
        *ops = self->ops;
    }
    return self->dev;
}

int
device_acquire(PyObject *device)
{
    if (atomic_flag_test_and_set(&((Device *)device)->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "device is busy: another thread is computing on it");
        return -1;
    }
    return 0;
}

void
device_release(PyObject *device)
{
    atomic_flag_clear(&((Device *)device)->busy);
}

static PyObject *
device_threads(PyObject *object, void *Py_UNUSED(closure))
{
    Device *self = (Device *)object;
    return PyLong_FromSize_t(self->ops->dev_threads(self->dev));
}

static PyObject *
device_tier(PyObject *object, void *Py_UNUSED(closure))
{
    const char *slash = strrchr(((Device *)object)->ops->name, '/'); /* "cpu/avx512" */
    return PyUnicode_FromString(slash ? slash + 1 : ((Device *)object)->ops->name);
}

static PyObject *
device_name(PyObject *object, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(((Device *)object)->ops->name);
}

static PyObject *
device_place(PyObject *object, void *Py_UNUSED(closure))
{
    r1_place at = ((Device *)object)->ops->mem_place(((Device *)object)->dev);
    return Py_BuildValue("iiK", (int)at.kind, (int)at.number, (unsigned long long)at.stream);
}

static PyObject *
device_pins(PyObject *object, void *Py_UNUSED(closure))
{
    Device *self = (Device *)object;
    if (device_acquire(object) < 0) {
        return NULL;
    }
    size_t length = self->ops->dev_pins(self->dev, NULL, 0);
    char *text = PyMem_Malloc(length + 1);
    PyObject *result = NULL;
    if (text == NULL) {
        PyErr_NoMemory();
    } else {
        (void)self->ops->dev_pins(self->dev, text, length + 1);
        result = PyUnicode_FromStringAndSize(text, (Py_ssize_t)length);
    }
    PyMem_Free(text);
    device_release(object);
    return result;
}

static PyObject *
device_own_bytes(PyObject *object, void *Py_UNUSED(closure))
{
    Device *self = (Device *)object;
    return PyLong_FromSize_t(self->ops->dev_own != NULL ? self->ops->dev_own(self->dev) : 0);
}

static PyObject *
device_repr(PyObject *object)
{
    Device *self = (Device *)object;
    return PyUnicode_FromFormat("Device('%s', threads=%zu)", self->ops->name,
                                self->ops->dev_threads(self->dev));
}

PyDoc_STRVAR(device_spin_doc,
             "spin($self, dtype, rounds, /)\n--\n\n"
             "Multiply-adds on registers alone, on every thread at once; returns the number of\n"
             "floating-point operations. Timed, that is the limit of products in this dtype.");

static PyObject *
device_spin(PyObject *object, PyObject *const *items, Py_ssize_t count)
{
    Device *self = (Device *)object;
    r1_args a;
    args_open(&a, "spin", items, count);
    r1_dtype dtype = arg_dtype(&a, "dtype");
    size_t rounds = arg_size(&a, "rounds");
    arg_require(&a, rounds <= MAX_ROUNDS, "rounds is more than 2^22");
    if (!args_done(&a) || device_acquire(object) < 0) {
        return NULL;
    }
    double operations;
    Py_BEGIN_ALLOW_THREADS
    operations = self->ops->dev_spin(self->dev, dtype, rounds);
    Py_END_ALLOW_THREADS
    device_release(object);
    return PyFloat_FromDouble(operations);
}

static PyMethodDef device_own_methods[] = {
    {"spin", (PyCFunction)(void (*)(void))device_spin, METH_FASTCALL, device_spin_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef device_getset[] = {
    {"threads", device_threads, NULL, "Number of threads, the caller's included.", NULL},
    {"tier", device_tier, NULL, "Instruction-set tier: one of tiers().", NULL},
    {"name", device_name, NULL, "Backend and tier: 'cpu/avx512'.", NULL},
    {"place", device_place, NULL, "(DLPack's kind of device, number, stream): r1_place of csrc/ops.h.", NULL},
    {"pins", device_pins, NULL, "What bits depend on beside the build, as lines: a GPU's products.", NULL},
    {"own_bytes", device_own_bytes, NULL, "Of a GPU's memory, what it holds for its ops and libraries.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(device_doc,
             "Device(threads=0, tier='auto', *, ops=None, ordinal=0)\n--\n\n"
             "What the core computes on: a pool of threads and the kernels of one instruction-set\n"
             "tier. threads=0 takes the CPUs that this process may use. Results do not depend on\n"
             "threads; they do depend on the tier. One thread at a time may compute on a device.\n"
             "ops, another backend's table (r1grpo._cuda.ops), takes the place of threads and tier;\n"
             "ordinal says which of its devices.");

static PyType_Slot device_slots[] = {
    {Py_tp_new, device_new},       {Py_tp_dealloc, device_dealloc}, {Py_tp_repr, device_repr},
    {Py_tp_getset, device_getset}, {Py_tp_methods, device_own_methods},
    {Py_tp_doc, (void *)device_doc}, {0, NULL},
};

static PyType_Spec device_spec = {
    .name = "r1grpo._core.Device",
    .basicsize = sizeof(Device),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = device_slots,
};

PyDoc_STRVAR(tiers_doc, "tiers()\n--\n\n"
                        "The tiers that this build and this processor have, in the order of their\n"
                        "instruction sets. Device() takes the fastest, one of the last two.");

static PyObject *
tiers(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list && tier_names[i]; i++) {
        if (r1_cpu_ops(tier_names[i])) {
            PyObject *name = PyUnicode_FromString(tier_names[i]);
            if (name == NULL || PyList_Append(list, name) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(name);
        }
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

static PyMethodDef device_methods[] = {
    {"tiers", tiers, METH_NOARGS, tiers_doc},
    {NULL, NULL, 0, NULL},
};

int
device_bind_add(PyObject *module)
{
    return add_type(module, &device_spec) < 0 ? -1 : PyModule_AddFunctions(module, device_methods);
}
