/* cuda_module.c - the extension r1grpo._cuda: capsules around the CUDA backend's tables.
 *
 * A library of its own, since it needs the CUDA runtime and _core must not. It links kernels/ and csrc/base/;
 * _core.Device(ops=r1grpo._cuda.ops) does the rest, with fast_ops a device that gives E1 up for speed. Knows
 * nothing about any op. Its face in Python is r1grpo/cuda.py. */
#define PY_SSIZE_T_CLEAN
#include "bind.h"

extern const r1_ops r1_cuda_ops, r1_cuda_fast_ops; /* kernels/backend.cu */
r1_code r1_cuda_describe(size_t ordinal, char text[256], size_t memory[2], r1_status *st); /* describe.cu */

PyDoc_STRVAR(describe_doc, "describe(ordinal, /)\n--\n\n"
                           "(name and versions, bytes free, bytes in all) of a GPU.");

static PyObject *
describe(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t ordinal = PyLong_AsSize_t(number), memory[2];
    char text[256];
    r1_status st = {0};
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (r1_cuda_describe(ordinal, text, memory, &st) != R1_OK) {
        PyErr_SetString(PyExc_RuntimeError, st.message);
        return NULL;
    }
    return Py_BuildValue("snn", text, (Py_ssize_t)memory[0], (Py_ssize_t)memory[1]);
}

static PyMethodDef module_methods[] = {
    {"describe", describe, METH_O, describe_doc},
    {NULL, NULL, 0, NULL},
};

static int
add_table(PyObject *module, const char *name, const r1_ops *table)
{
    PyObject *ops = PyCapsule_New((void *)table, OPS_CAPSULE, NULL);
    int added = ops ? PyModule_AddObjectRef(module, name, ops) : -1;
    Py_XDECREF(ops);
    return added;
}

static int
module_exec(PyObject *module)
{
    return add_table(module, "ops", &r1_cuda_ops) < 0 ? -1
                                                      : add_table(module, "fast_ops", &r1_cuda_fast_ops);
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
    .m_name = "r1grpo._cuda",
    .m_doc = "The op tables of the CUDA backend, for r1grpo._core.Device.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__cuda(void)
{
    return PyModuleDef_Init(&module_def);
}
