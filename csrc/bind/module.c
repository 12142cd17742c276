/* module.c - the extension r1grpo._core: multi-phase init, errors, and the frame of one call.
 *
 * No state but the types, which live in the module's dict. Sub-interpreters are refused because
 * NumPy refuses them. Knows nothing about single ops.
 */
#define PY_SSIZE_T_CLEAN
#include "bind.h"

#include <string.h>

PyObject *
status_raise(const r1_status *st)
{
    PyObject *type = PyExc_RuntimeError;
    switch (st->code) {
    case R1_EINVAL:
        type = PyExc_ValueError;
        break;
    case R1_ENOMEM:
        type = PyExc_MemoryError;
        break;
    case R1_ENUMERIC:
        type = PyExc_FloatingPointError;
        break;
    case R1_EINTR:
        if (PyErr_Occurred()) { /* the poll's own exception */
            return NULL;
        }
        type = PyExc_KeyboardInterrupt;
        break;
    default:
        break;
    }
    PyErr_SetString(type, st->message[0] ? st->message : "the core failed without a message");
    return NULL;
}

int
add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int added = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return added;
}

/* ---- one call ------------------------------------------------------------------------------- */

void
call_open(r1_call *c, const char *function, PyObject *const *items, Py_ssize_t count)
{
    memset(c, 0, sizeof *c);
    args_open(&c->args, function, items, count);
    c->device = arg_object(&c->args, "device");
    if (c->device) {
        c->dev = device_get(c->device, &c->ops);
        c->args.failed = c->dev == NULL;
    }
}

void *
call_alloc(r1_call *c, size_t count, size_t size)
{
    if (c->args.failed || c->st.code) {
        return NULL;
    }
    void *p = r1_alloc(count ? count : 1, size);
    if (p == NULL) {
        R1_FAIL(&c->st, R1_ENOMEM, "%s: no memory for %zu bytes", c->args.function, count * size);
        return NULL;
    }
    size_t slot = 0;
    while (c->owned[slot].p) {
        slot++;
    }
    c->owned[slot] = (r1_span){p, count * size};
    return p;
}

/* The device may see the call's arrays and its own memory. */
static r1_code
map_arrays(r1_call *c)
{
    enum { OWNED = sizeof c->owned / sizeof *c->owned };
    r1_span spans[ARGS_MAX_ARRAYS + OWNED];
    memcpy(spans, c->args.array, c->args.arrays * sizeof *spans);
    memcpy(spans + c->args.arrays, c->owned, sizeof c->owned);
    return c->ops->mem_map(c->dev, spans, c->args.arrays + OWNED, &c->st);
}

int
call_begin(r1_call *c)
{
    if (!args_done(&c->args) || c->st.code || device_acquire(c->device) < 0) {
        return 0;
    }
    c->thread = PyEval_SaveThread();
    fegetenv(&c->environment); /* bits must not depend on what a library has set on this thread */
    fesetenv(FE_DFL_ENV);
    c->maps = c->maps && map_arrays(c) == R1_OK;
    return c->st.code == R1_OK;
}

PyObject *
call_close(r1_call *c)
{
    if (c->thread) {
        if (c->maps) {
            c->ops->mem_unmap(c->dev, &c->st);
        }
        fesetenv(&c->environment);
        PyEval_RestoreThread(c->thread);
        device_release(c->device);
    }
    for (size_t i = 0; i < sizeof c->owned / sizeof *c->owned; i++) {
        r1_free(c->owned[i].p);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    return c->st.code ? status_raise(&c->st) : Py_NewRef(Py_None);
}

/* ---- ops as functions ----------------------------------------------------------------------- */

/* self is a capsule of the op's row in its table. */
PyObject *
op_run(PyObject *self, PyObject *const *items, Py_ssize_t count)
{
    const r1_op *op = PyCapsule_GetPointer(self, NULL);
    r1_call c;
    call_open(&c, op->def.ml_name, items, count);
    c.maps = 1;
    op->run(&c);
    return call_close(&c);
}

int
ops_add(PyObject *module, r1_op *table)
{
    PyObject *name = PyModule_GetNameObject(module);
    int added = name ? 0 : -1;
    for (r1_op *op = table; added == 0 && op->run; op++) {
        PyObject *self = PyCapsule_New(op, NULL, NULL);
        PyObject *function = self ? PyCFunction_NewEx(&op->def, self, name) : NULL;
        added = function ? PyModule_AddObjectRef(module, op->def.ml_name, function) : -1;
        Py_XDECREF(function);
        Py_XDECREF(self);
    }
    Py_XDECREF(name);
    return added;
}

/* ---- the module ----------------------------------------------------------------------------- */

PyDoc_STRVAR(alloc_fail_at_doc,
             "alloc_fail_at(n, /)\n--\n\n"
             "For tests: the n-th allocation of the core from now fails (1: the next, 0: none).\n"
             "Returns the number of allocations since the last call.");

static PyObject *
alloc_fail_at(PyObject *Py_UNUSED(module), PyObject *const *items, Py_ssize_t count)
{
    r1_args a;
    args_open(&a, "alloc_fail_at", items, count);
    size_t n = arg_size(&a, "n");
    return args_done(&a) ? PyLong_FromSize_t(r1_alloc_fail_at(n)) : NULL;
}

static PyMethodDef module_methods[] = {
    {"alloc_fail_at", (PyCFunction)(void (*)(void))alloc_fail_at, METH_FASTCALL, alloc_fail_at_doc},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    int (*const parts[])(PyObject *) = {
        device_bind_add, ops_types_add, ops_bind_add,      ops_attention_add,
        ops_moe_add,     ops_loss_add,  r1_model_bind_add, dlpack_bind_add,
    };
    if (args_import_numpy() < 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "r1grpo._core",
    .m_doc = "The C core of r1grpo: devices, the model, and every op of the table for tests.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}
