/* bind.h - what the files of the binding share: errors, the device, one call.
 *
 * The way of every call: read the arguments (args.h), take the device without blocking ("device is
 * busy"), release the GIL, call the core once, take the GIL back, raise or return. Whoever releases
 * the GIL owns the lock of what the call touches.
 *
 *     module.c    init, the types, core status -> Python exception, one call
 *     device.c    Device: a backend's table, its threads, its lock      cpus.c    how many threads
 *     ops_*.c     every op of the table, for tests: ops_types.c (Weight, Kv), ops_bind.c (rows),
 *                 ops_attention.c, ops_moe.c, ops_loss.c
 *     model_bind.c    the model          decode_bind.c   a sampling session
 *     plan_bind.c     bytes of both, before they are made
 *     dlpack_out.c    its parameters, for other libraries        dlpack_in.c   arrays of theirs
 */
#ifndef R1_BIND_H
#define R1_BIND_H

#include "args.h"

#include <fenv.h>

#include "../ops.h"

/* Makes a heap type of the module and adds it to its dict. 0, or -1 with an exception. Every type
 * is immutable and final, so an object is recognised by its type's tp_dealloc, without state. */
int add_type(PyObject *module, PyType_Spec *spec);

/* The one place where a core status becomes a Python exception. Returns NULL. */
PyObject *status_raise(const r1_status *st);

/* ---- device.c ---- */

/* The name of a capsule that holds the table of a backend outside this library. */
#define OPS_CAPSULE "r1grpo.ops"

/* The device and its table (ops may be NULL), or NULL with a TypeError. They live as long as the
 * object. */
r1_dev *device_get(PyObject *device, const r1_ops **ops);
/* 0, or -1 with RuntimeError "device is busy". Needs no GIL to be released. */
int device_acquire(PyObject *device);
void device_release(PyObject *device);

/* ---- cpus.c ---- */

/* CPUs this process may use: its affinity mask, at most the quota of its control group; >= 1. */
size_t cpu_count(void);

/* ---- one call of the core: module.c ---- */

typedef struct {
    r1_args args;
    PyObject *device; /* borrowed from the caller's arguments */
    r1_dev *dev;
    const r1_ops *ops;
    r1_status st;
    int maps;              /* an op: the device sees the call's arrays */
    PyThreadState *thread; /* saved while the GIL is released */
    fenv_t environment;    /* the caller's rounding and flush modes: the core has the default ones */
    r1_span owned[4];      /* r1_alloc'ed for the length of the call */
} r1_call;

/* Opens the reader and reads the first argument, the device. */
void call_open(r1_call *c, const char *function, PyObject *const *items, Py_ssize_t count);
/* count x size zeroed bytes until call_close; NULL once the call has failed. */
void *call_alloc(r1_call *c, size_t count, size_t size);
/* True: all arguments are right, the device is ours, the GIL is released. One core call, with
 * &c->st, follows. */
int call_begin(r1_call *c);
/* Undoes call_begin, frees, and returns None or raises. */
PyObject *call_close(r1_call *c);

/* ---- ops as Python functions: module.c ---- */

/* A row of a table of ops, ended by {0}: run reads the arguments that follow the device, in the
 * order of ops.h (without status, scratch and counts that an array's shape says), and calls the
 * op. */
typedef struct {
    PyMethodDef def;
    void (*run)(r1_call *c);
} r1_op;

#define R1_OP(op, arguments)                                                                      \
    {                                                                                             \
        {#op, (PyCFunction)(void (*)(void))op_run, METH_FASTCALL,                                 \
         #op "(device, " arguments ", /)\n--\n\nEquation and shapes: csrc/ops.h."}, op            \
    }

PyObject *op_run(PyObject *self, PyObject *const *items, Py_ssize_t count);
int ops_add(PyObject *module, r1_op *table);

/* ---- arguments of ops: ops_types.c ---- */

/* A Weight of c's device; binds E, O, I to its sizes under the given names. */
r1_weight *arg_weight(r1_call *c, const char *name, const char *E, const char *O, const char *I);
/* A Kv; NULL after a failure. Binds Hkv, D, Dv. */
const r1_kv *arg_kv(r1_call *c, const char *name);
/* The tuple (q_start, pos0, blocks) of packed sequences; binds B and N, derives pos and seq. kv:
 * its blocks must be good for it; NULL: blocks may be None. */
const r1_seqs *arg_seqs(r1_call *c, r1_seqs *seqs, const r1_kv *kv);
/* These sequences are groups, as in training: those with pos0 > 0 continue the last with pos0 0. */
void arg_groups(r1_call *c, r1_seqs *seqs);
/* Expert offsets (E + 1): from 0, ascending, at most N; None only if E is 1. */
const int32_t *arg_offsets(r1_call *c);

/* The tuple (temperature, top_k, top_p, min_p): ops_loss.c. */
void arg_sampling(r1_args *a, r1_sampling *how);
void arg_loss(r1_args *a, r1_loss_spec *spec);

/* ---- parts of the module; each returns 0, or -1 with an exception ---- */

int device_bind_add(PyObject *module);
int ops_types_add(PyObject *module);
int ops_bind_add(PyObject *module);
int ops_attention_add(PyObject *module);
int ops_moe_add(PyObject *module);
int ops_loss_add(PyObject *module);
int dlpack_bind_add(PyObject *module);
int r1_model_bind_add(PyObject *module);

#endif
