/* model_properties.c - the attributes of _core.Model that can be set: step, live_vocab, adapter_scale.
 *
 * Both ways take the model's lock without blocking: a call in another thread changes step, and for a
 * pass without the adapters their factor. None calls an op.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

/* Whether the lock is taken now; else RuntimeError. */
static int
take(ModelObject *self)
{
    if (atomic_flag_test_and_set(&self->busy)) {
        PyErr_SetString(PyExc_RuntimeError, "model is busy: another thread is using it");
        return 0;
    }
    return 1;
}

/* Whether a setter may go on: the value was read without an exception and the lock is taken. */
static int
set_begin(ModelObject *self, PyObject *value, const char *name)
{
    if (value == NULL) {
        PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", name);
        return 0;
    }
    return !PyErr_Occurred() && take(self);
}

/* Gives the lock back: 0, or -1 with the status as an exception. */
static int
set_end(ModelObject *self, const r1_status *st)
{
    atomic_flag_clear(&self->busy);
    if (st->code != R1_OK) {
        status_raise(st);
        return -1;
    }
    return 0;
}

static PyObject *
get_step(PyObject *object, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    if (!take(self)) {
        return NULL;
    }
    unsigned long long step = self->model->step;
    atomic_flag_clear(&self->busy);
    return PyLong_FromUnsignedLongLong(step);
}

static int
set_step(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    unsigned long long step = value != NULL ? PyLong_AsUnsignedLongLong(value) : 0;
    if (!set_begin(self, value, "step")) {
        return -1;
    }
    self->model->step = step;
    return set_end(self, &(r1_status){0});
}

static PyObject *
get_live(PyObject *object, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    if (!take(self)) {
        return NULL;
    }
    size_t live = self->model->live;
    atomic_flag_clear(&self->busy);
    return PyLong_FromSize_t(live);
}

static int
set_live(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    size_t live = value != NULL ? PyLong_AsSize_t(value) : 0;
    r1_status st = {0};
    if (!set_begin(self, value, "live_vocab")) {
        return -1;
    }
    r1_model_set_live(self->model, live, &st);
    return set_end(self, &st);
}

static PyObject *
get_scale(PyObject *object, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    if (!take(self)) {
        return NULL;
    }
    double scale = (double)self->model->adapter_scale;
    atomic_flag_clear(&self->busy);
    return PyFloat_FromDouble(scale);
}

static int
set_scale(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    double scale = value != NULL ? PyFloat_AsDouble(value) : 0.0;
    r1_status st = {0};
    if (!set_begin(self, value, "adapter_scale")) {
        return -1;
    }
    r1_model_set_adapter_scale(self->model, (float)scale, &st);
    return set_end(self, &st);
}

static PyObject *
get_offload(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((ModelObject *)object)->model->config.offload);
}

static int
set_offload(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    ModelObject *self = (ModelObject *)object;
    int offload = value != NULL ? PyObject_IsTrue(value) : 0;
    r1_status st = {0};
    if (!set_begin(self, value, "offload")) {
        return -1;
    }
    r1_model_set_offload(self->model, offload, &st);
    return set_end(self, &st);
}

PyGetSetDef model_properties[] = {
    {"step", get_step, set_step, "Optimiser updates so far.", NULL},
    {"live_vocab", get_live, set_live,
     "Ids below it have a probability; the others are never drawn.", NULL},
    {"adapter_scale", get_scale, set_scale, "Factor of all low-rank adapters; 0 leaves them out.",
     NULL},
    {"offload", get_offload, set_offload,
     "A frozen model's layers, else Adam's moments, are in host memory; set before the first update.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
