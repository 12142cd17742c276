/* model_config.c - the dict of ModelConfig.core() as an r1_config, field by field.
 *
 * Every field must be there; what its value may be, csrc/model/config.c decides.
 */
#define PY_SSIZE_T_CLEAN
#include "model_bind.h"

#include <stddef.h>
#include <string.h>

typedef struct {
    const char *name;
    size_t offset;
    enum { SIZE, FLAG, REAL, LAYERS } kind;
} field;

#define FIELD(name, kind) {#name, offsetof(r1_config, name), kind}
static const field fields[] = {
    FIELD(V, SIZE), FIELD(C, SIZE), FIELD(L, SIZE), FIELD(T, SIZE), FIELD(H, SIZE),
    FIELD(Hkv, SIZE), FIELD(D, SIZE), FIELD(F, SIZE), FIELD(q_lora, SIZE), FIELD(kv_lora, SIZE),
    FIELD(Dn, SIZE), FIELD(Dr, SIZE), FIELD(Dv, SIZE), FIELD(E, SIZE), FIELD(K, SIZE),
    FIELD(Fe, SIZE), FIELD(shared, SIZE), FIELD(groups, SIZE), FIELD(top_groups, SIZE),
    FIELD(mtp, SIZE), FIELD(moe, LAYERS), FIELD(window, SIZE), FIELD(windowed, LAYERS),
    FIELD(softmax_gate, FLAG), FIELD(normalize, FLAG), FIELD(router_bias, FLAG),
    FIELD(qkv_bias, FLAG), FIELD(o_bias, FLAG), FIELD(mlp_bias, FLAG), FIELD(qk_norm, FLAG),
    FIELD(tied, FLAG), FIELD(interleaved, FLAG), FIELD(score, FLAG), FIELD(lora, SIZE),
    FIELD(lora_targets, SIZE), FIELD(frozen, FLAG), FIELD(offload, FLAG), FIELD(routed_scale, REAL),
    FIELD(eps, REAL), FIELD(attn_scale, REAL),
};

/* bytes, one a layer */
static void
layers_read(PyObject *value, unsigned char *at)
{
    char *from;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(value, &from, &n) == 0) {
        if (n > R1_MAX_LAYERS) {
            PyErr_SetNone(PyExc_ValueError);
            return;
        }
        memcpy(at, from, (size_t)n);
    }
}

int
config_read(PyObject *dict, r1_config *c)
{
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "Model: config must be a dict");
        return -1;
    }
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        PyObject *value = PyDict_GetItemString(dict, fields[i].name);
        void *at = (char *)c + fields[i].offset;
        if (value == NULL) {
            PyErr_Format(PyExc_KeyError, "Model: config lacks '%s'", fields[i].name);
            return -1;
        }
        if (fields[i].kind == SIZE) {
            *(size_t *)at = PyLong_AsSize_t(value);
        } else if (fields[i].kind == FLAG) {
            *(int *)at = PyObject_IsTrue(value);
        } else if (fields[i].kind == LAYERS) {
            layers_read(value, at);
        } else {
            *(float *)at = (float)PyFloat_AsDouble(value);
        }
        if (PyErr_Occurred()) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "Model: config '%s' is %R, which cannot be",
                         fields[i].name, value);
            return -1;
        }
    }
    return 0;
}
