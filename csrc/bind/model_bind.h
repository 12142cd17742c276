/* model_bind.h - what the files of the model's binding share: the model's object and its lock. */
#ifndef R1_MODEL_BIND_H
#define R1_MODEL_BIND_H

#include "bind.h"

#include <stdatomic.h>

#include "../model/model.h"

typedef struct {
    PyObject_HEAD
    r1_model *model;
    PyObject *packed; /* the array that holds a frozen model's matrices, or NULL: the core's own */
    PyObject *device; /* the one of the last call: model->dev belongs to it */
    r1_call *call;    /* the call in progress, for the poll */
    double polled;
    atomic_flag busy;
} ModelObject;

void model_dealloc(PyObject *object);
/* The object as a model, or NULL with a TypeError. */
ModelObject *model_cast(PyObject *object);
/* As call_begin and call_close, with the model's lock held in between. */
int model_begin(ModelObject *self, r1_call *c);
PyObject *model_end(ModelObject *self, r1_call *c);

/* model_config.c: the dict of ModelConfig.core() as the core's configuration; 0, or -1 with an
 * exception. */
int config_read(PyObject *dict, r1_config *c);

/* model_passes.c: methods of Model */
PyObject *model_run(PyObject *object, PyObject *const *items, Py_ssize_t count);
PyObject *model_score(PyObject *object, PyObject *const *items, Py_ssize_t count);
PyObject *model_zero_grad(PyObject *object, PyObject *const *items, Py_ssize_t count);
PyObject *model_update(PyObject *object, PyObject *const *items, Py_ssize_t count);
PyObject *model_router_update(PyObject *object, PyObject *const *items, Py_ssize_t count);

/* dlpack_out.c: methods of Model */
PyObject *model_export(PyObject *object, PyObject *const *items, Py_ssize_t count);
PyObject *model_view(PyObject *object, PyObject *const *items, Py_ssize_t count);

extern PyGetSetDef model_properties[]; /* model_properties.c */
int decode_bind_add(PyObject *module);
int plan_bind_add(PyObject *module);

#endif
