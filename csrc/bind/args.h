/* args.h - a reader of Python arguments with named dimensions and a sticky error.
 *
 *     args_open(&a, "rmsnorm_fwd", items, count);
 *     const r1_tensor *y = arg_tensor(&a, "y", "N", "C", ARG_OUT);
 *     const r1_tensor *w = arg_tensor(&a, "w", "1", "C", ARG_IN);
 *     float eps = arg_float(&a, "eps");
 *     if (!args_done(&a)) { return NULL; }        the exception is set and names the argument
 *
 * Arguments are read in order. The first use of a dimension binds it, later ones must agree:
 * "rmsnorm_fwd: argument 'w': dimension C is 3, expected 7". After the first error every reader
 * returns 0 or NULL at once, so a caller checks once, at the end; nothing is written before.
 *
 * Arrays are taken as they are: right dtype, C-contiguous, aligned, writable if an output, never
 * cast or copied. Only a matrix of float32 may be a slice of columns, because an r1_tensor can.
 * A shape (N, 1) or (1, C) of ops.h is a one-dimensional array here.
 *
 * The pointers live as long as the caller's references to the arrays. args.c is the only file that
 * sees NumPy. Knows nothing about ops, devices or models.
 */
#ifndef R1_ARGS_H
#define R1_ARGS_H

#include <Python.h>

#include "../r1.h"

/* ARG_NULL: None is allowed and gives NULL. ARG_FLAT: no slice, rows follow each other. */
enum { ARG_IN = 0, ARG_OUT = 1, ARG_NULL = 2, ARG_FLAT = 4 };
enum { ARGS_MAX_TENSORS = 16, ARGS_MAX_DIMS = 24, ARGS_MAX_ARRAYS = 24 };

typedef struct {
    const char *function;
    PyObject *const *items;
    Py_ssize_t count, next;
    int failed; /* a Python exception is set */
    struct {
        const char *group; /* the tuple being read, for messages; NULL at top level */
        PyObject *const *items;
        Py_ssize_t count, next;
    } outer;
    size_t tensors, dims, arrays;
    r1_tensor tensor[ARGS_MAX_TENSORS];
    r1_span array[ARGS_MAX_ARRAYS]; /* the memory of every array that was read */
    struct {
        const char *name;
        size_t value;
    } dim[ARGS_MAX_DIMS];
} r1_args;

/* Once per process, from the module's init. 0, or -1 with an exception. */
int args_import_numpy(void);

void args_open(r1_args *a, const char *function, PyObject *const *items, Py_ssize_t count);
/* Every argument was read, none is left over and all are right. */
int args_done(r1_args *a);

/* Arrays. A dimension is a name, or "1": then the array has one dimension only. The result belongs
 * to the reader. */
const r1_tensor *arg_tensor(r1_args *a, const char *name, const char *rows, const char *cols,
                            int mode);
int32_t *arg_i32(r1_args *a, const char *name, const char *rows, const char *cols, int mode);
int64_t *arg_i64(r1_args *a, const char *name, const char *rows, const char *cols, int mode);
double *arg_f64(r1_args *a, const char *name, const char *rows, const char *cols, int mode);
float *arg_f32(r1_args *a, const char *name, const char *rows, const char *cols, int mode);

/* Scalars. */
PyObject *arg_object(r1_args *a, const char *name); /* borrowed */
size_t arg_size(r1_args *a, const char *name);      /* an int, 0 or more */
uint64_t arg_u64(r1_args *a, const char *name);
int32_t arg_int(r1_args *a, const char *name);
float arg_float(r1_args *a, const char *name);
double arg_double(r1_args *a, const char *name);
int arg_flag(r1_args *a, const char *name); /* a bool */
/* Index of a str among choices (NULL-terminated). */
int arg_choice(r1_args *a, const char *name, const char *const *choices);
r1_dtype arg_dtype(r1_args *a, const char *name); /* "float32" or "bfloat16" */
/* Is there another argument? */
int args_more(const r1_args *a);

/* A tuple of exactly count items, read by the same functions until arg_leave. */
void arg_enter(r1_args *a, const char *name, Py_ssize_t count);
void arg_leave(r1_args *a);

/* Binds dim to value, or fails if it has another one; the value bound to it, 0 if none. */
void arg_bind(r1_args *a, const char *dim, size_t value);
size_t arg_dim(const r1_args *a, const char *dim);
/* A condition between arguments; ValueError "function: ..." where it does not hold. */
void arg_require(r1_args *a, int condition, const char *format, ...) R1_PRINTF(3, 4);
/* low <= x[i] < high for all i < count. */
void arg_range(r1_args *a, const char *name, const int32_t *x, size_t count, int64_t low,
               int64_t high);

#endif
