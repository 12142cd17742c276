/* cuda_module.c - the extension r1grpo._cuda: a capsule around the CUDA backend's table.
 *
 * A library of its own, since it needs the CUDA runtime and _core must not. It links kernels/ and csrc/base/;
 * _core.Device(ops=r1grpo._cuda.ops) does the rest. Knows nothing about any op. */
#define PY_SSIZE_T_CLEAN
#include "bind.h"

extern const r1_ops r1_cuda_ops; /* kernels/backend.cu */

static int
module_exec(PyObject *module)
{
    PyObject *ops = PyCapsule_New((void *)&r1_cuda_ops, OPS_CAPSULE, NULL);
    int added = ops ? PyModule_AddObjectRef(module, "ops", ops) : -1;
    Py_XDECREF(ops);
    return added;
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
    .m_doc = "The op table of the CUDA backend, for r1grpo._core.Device.",
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__cuda(void)
{
    return PyModuleDef_Init(&module_def);
}
