/* args.c - see args.h. The only file that sees NumPy. */
#define PY_SSIZE_T_CLEAN
#include "args.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int
args_import_numpy(void)
{
    return PyArray_ImportNumPyAPI();
}

void
args_open(r1_args *a, const char *function, PyObject *const *items, Py_ssize_t count)
{
    memset(a, 0, sizeof *a);
    a->function = function;
    a->items = items;
    a->count = count;
}

/* ---- errors --------------------------------------------------------------------------------- */

/* "function: argument 'group.name': ..." - the first error wins. */
static void fail(r1_args *a, PyObject *type, const char *name, const char *format, ...)
    R1_PRINTF(4, 5);

static void
fail(r1_args *a, PyObject *type, const char *name, const char *format, ...)
{
    if (a->failed) {
        return;
    }
    a->failed = 1;
    char text[256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    const char *group = a->outer.group;
    PyErr_Format(type, "%s: argument '%s%s%s': %s", a->function, group ? group : "",
                 group ? "." : "", name, text);
}

void
arg_require(r1_args *a, int condition, const char *format, ...)
{
    if (condition || a->failed) {
        return;
    }
    a->failed = 1;
    char text[256];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    PyErr_Format(PyExc_ValueError, "%s: %s", a->function, text);
}

int
args_done(r1_args *a)
{
    if (!a->failed && a->next < a->count) {
        a->failed = 1;
        PyErr_Format(PyExc_TypeError, "%s: takes %zd arguments, got %zd", a->function, a->next,
                     a->count);
    }
    return !a->failed;
}

int
args_more(const r1_args *a)
{
    return a->next < a->count;
}

/* ---- dimensions ----------------------------------------------------------------------------- */

size_t
arg_dim(const r1_args *a, const char *dim)
{
    for (size_t i = 0; i < a->dims; i++) {
        if (strcmp(a->dim[i].name, dim) == 0) {
            return a->dim[i].value;
        }
    }
    return 0;
}

/* The value the dimension is bound to after this: value itself if it was free. */
static size_t
bind_dim(r1_args *a, const char *dim, size_t value)
{
    for (size_t i = 0; i < a->dims; i++) {
        if (strcmp(a->dim[i].name, dim) == 0) {
            return a->dim[i].value;
        }
    }
    if (a->dims < ARGS_MAX_DIMS) {
        a->dim[a->dims].name = dim;
        a->dim[a->dims++].value = value;
    }
    return value;
}

void
arg_bind(r1_args *a, const char *dim, size_t value)
{
    if (!a->failed) {
        size_t bound = bind_dim(a, dim, value);
        arg_require(a, bound == value, "dimension %s is %zu, expected %zu", dim, bound, value);
    }
}

void
arg_range(r1_args *a, const char *name, const int32_t *x, size_t count, int64_t low, int64_t high)
{
    for (size_t i = 0; x && i < count && !a->failed; i++) {
        if (x[i] < low || x[i] >= high) {
            fail(a, PyExc_ValueError, name, "%ld at index %zu is outside [%lld, %lld)", (long)x[i],
                 i, (long long)low, (long long)high);
        }
    }
}

/* ---- arrays --------------------------------------------------------------------------------- */

PyObject *
arg_object(r1_args *a, const char *name)
{
    if (a->failed) {
        return NULL;
    }
    if (a->next >= a->count) {
        a->next++;
        fail(a, PyExc_TypeError, name, "missing");
        return NULL;
    }
    return a->items[a->next++];
}

/* One axis against its name. */
static void
match_dim(r1_args *a, const char *name, const char *dim, size_t value)
{
    size_t bound = bind_dim(a, dim, value);
    if (bound != value) {
        fail(a, PyExc_ValueError, name, "dimension %s is %zu, expected %zu", dim, value, bound);
    }
}

/* The array of the next argument, checked; NULL on failure and for an allowed None. *ld: elements
 * from row to row; NULL demands that rows follow each other. */
static PyArrayObject *
next_array(r1_args *a, const char *name, int type, const char *rows, const char *cols, int mode,
           size_t *ld)
{
    PyObject *object = arg_object(a, name);
    if (object == NULL || (object == Py_None && (mode & ARG_NULL))) {
        return NULL;
    }
    const char *const type_name = type == NPY_FLOAT32   ? "float32"
                                  : type == NPY_FLOAT64 ? "float64"
                                  : type == NPY_INT32   ? "int32"
                                                        : "int64";
    if (!PyArray_Check(object)) {
        fail(a, PyExc_TypeError, name, "must be a numpy array of %s, not %s", type_name,
             Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyArrayObject *x = (PyArrayObject *)object;
    if (!PyArray_EquivTypenums(PyArray_TYPE(x), type) || !PyArray_ISNOTSWAPPED(x)) {
        fail(a, PyExc_TypeError, name, "dtype must be %s, not %s%s", type_name,
             PyArray_DESCR(x)->typeobj->tp_name, PyArray_ISNOTSWAPPED(x) ? "" : " (byte-swapped)");
        return NULL;
    }
    const char *const dims[2] = {rows, cols};
    int flat = strcmp(rows, "1") == 0 || strcmp(cols, "1") == 0;
    int axes = flat ? 1 : 2;
    if (PyArray_NDIM(x) != axes) {
        fail(a, PyExc_ValueError, name, "has %d dimensions, expected %d", PyArray_NDIM(x), axes);
        return NULL;
    }
    if (flat) {
        const char *dim = strcmp(rows, "1") == 0 ? cols : rows;
        if (strcmp(dim, "1") != 0) {
            match_dim(a, name, dim, (size_t)PyArray_DIM(x, 0));
        } else if (PyArray_DIM(x, 0) != 1) {
            fail(a, PyExc_ValueError, name, "has %zd elements, expected 1",
                 (Py_ssize_t)PyArray_DIM(x, 0));
        }
    } else {
        match_dim(a, name, dims[0], (size_t)PyArray_DIM(x, 0));
        match_dim(a, name, dims[1], (size_t)PyArray_DIM(x, 1));
    }
    if (!PyArray_ISALIGNED(x)) {
        fail(a, PyExc_ValueError, name, "is not aligned");
    } else if ((mode & ARG_OUT) && !PyArray_ISWRITEABLE(x)) {
        fail(a, PyExc_ValueError, name, "is read-only");
    } else if (!PyArray_IS_C_CONTIGUOUS(x)) {
        npy_intp size = PyArray_ITEMSIZE(x);
        npy_intp stride = flat ? 0 : PyArray_STRIDE(x, 0);
        if (ld == NULL || flat || PyArray_STRIDE(x, 1) != size || stride % size != 0 ||
            stride < PyArray_DIM(x, 1) * size) {
            fail(a, PyExc_ValueError, name, "is not C-contiguous");
        } else {
            *ld = (size_t)(stride / size);
        }
    }
    if (a->failed) {
        return NULL;
    }
    if (a->arrays == ARGS_MAX_ARRAYS) {
        fail(a, PyExc_TypeError, name, "is one array too many");
        return NULL;
    }
    npy_intp count = PyArray_DIM(x, 0), row = flat ? PyArray_ITEMSIZE(x) : PyArray_STRIDE(x, 0);
    npy_intp last = (flat ? 1 : PyArray_DIM(x, 1)) * PyArray_ITEMSIZE(x); /* bytes of a row */
    a->array[a->arrays++] = (r1_span){
        PyArray_DATA(x), count > 0 && last > 0 ? (size_t)((count - 1) * row + last) : 0};
    return x;
}

const r1_tensor *
arg_tensor(r1_args *a, const char *name, const char *rows, const char *cols, int mode)
{
    size_t ld = 0;
    size_t *slice = mode & ARG_FLAT ? NULL : &ld;
    PyArrayObject *x = next_array(a, name, NPY_FLOAT32, rows, cols, mode, slice);
    if (x == NULL || a->tensors == ARGS_MAX_TENSORS) {
        return NULL;
    }
    r1_tensor *t = &a->tensor[a->tensors++];
    int row = strcmp(rows, "1") == 0;
    size_t first = (size_t)PyArray_DIM(x, 0);
    size_t last = PyArray_NDIM(x) == 2 ? (size_t)PyArray_DIM(x, 1) : 1;
    *t = row ? r1_f32(PyArray_DATA(x), 1, first) : r1_f32(PyArray_DATA(x), first, last);
    t->ld = ld ? ld : t->cols;
    return t;
}

static void *
array_data(r1_args *a, const char *name, int type, const char *rows, const char *cols, int mode)
{
    PyArrayObject *x = next_array(a, name, type, rows, cols, mode, NULL);
    return x ? PyArray_DATA(x) : NULL;
}

int32_t *
arg_i32(r1_args *a, const char *name, const char *rows, const char *cols, int mode)
{
    return array_data(a, name, NPY_INT32, rows, cols, mode);
}

int64_t *
arg_i64(r1_args *a, const char *name, const char *rows, const char *cols, int mode)
{
    return array_data(a, name, NPY_INT64, rows, cols, mode);
}

double *
arg_f64(r1_args *a, const char *name, const char *rows, const char *cols, int mode)
{
    return array_data(a, name, NPY_FLOAT64, rows, cols, mode);
}

float *
arg_f32(r1_args *a, const char *name, const char *rows, const char *cols, int mode)
{
    return array_data(a, name, NPY_FLOAT32, rows, cols, mode);
}

/* ---- scalars -------------------------------------------------------------------------------- */

/* Turns the conversion error that is set into ours. */
static void
fail_scalar(r1_args *a, const char *name, PyObject *x, const char *expected)
{
    PyObject *type = PyErr_ExceptionMatches(PyExc_TypeError) ? PyExc_TypeError : PyExc_ValueError;
    PyErr_Clear();
    PyObject *text = PyObject_Repr(x);
    const char *shown = text ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    fail(a, type, name, "must be %s, not %.80s", expected, shown ? shown : Py_TYPE(x)->tp_name);
    Py_XDECREF(text);
}

/* An int in [low, high]: Python's or NumPy's, no bool, no float. */
static long long
next_integer(r1_args *a, const char *name, long long low, long long high, const char *expected)
{
    PyObject *x = arg_object(a, name);
    if (x == NULL) {
        return 0;
    }
    PyObject *number = PyBool_Check(x) ? NULL : PyNumber_Index(x);
    if (number == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetNone(PyExc_TypeError);
        }
        fail_scalar(a, name, x, expected);
        return 0;
    }
    long long value = PyLong_AsLongLong(number);
    Py_DECREF(number);
    if (PyErr_Occurred() || value < low || value > high) {
        fail_scalar(a, name, x, expected);
        return 0;
    }
    return value;
}

size_t
arg_size(r1_args *a, const char *name)
{
    return (size_t)next_integer(a, name, 0, PY_SSIZE_T_MAX, "an int, 0 or more");
}

int32_t
arg_int(r1_args *a, const char *name)
{
    return (int32_t)next_integer(a, name, INT32_MIN, INT32_MAX, "an int of 32 bits");
}

uint64_t
arg_u64(r1_args *a, const char *name)
{
    PyObject *x = arg_object(a, name);
    if (x == NULL) {
        return 0;
    }
    PyObject *number = PyNumber_Index(x);
    uint64_t value = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    if (PyErr_Occurred()) {
        fail_scalar(a, name, x, "an int in [0, 2**64)");
        return 0;
    }
    return value;
}

double
arg_double(r1_args *a, const char *name)
{
    PyObject *x = arg_object(a, name);
    if (x == NULL) {
        return 0.0;
    }
    double value = PyFloat_AsDouble(x);
    if (PyErr_Occurred()) {
        fail_scalar(a, name, x, "a number");
        return 0.0;
    }
    return value;
}

float
arg_float(r1_args *a, const char *name)
{
    return (float)arg_double(a, name);
}

int
arg_flag(r1_args *a, const char *name)
{
    PyObject *x = arg_object(a, name);
    if (x && !PyBool_Check(x)) {
        fail(a, PyExc_TypeError, name, "must be a bool, not %s", Py_TYPE(x)->tp_name);
    }
    return x == Py_True;
}

int
arg_choice(r1_args *a, const char *name, const char *const *choices)
{
    PyObject *x = arg_object(a, name);
    if (x == NULL) {
        return 0;
    }
    if (!PyUnicode_Check(x)) {
        fail(a, PyExc_TypeError, name, "must be a str, not %s", Py_TYPE(x)->tp_name);
        return 0;
    }
    char known[160] = "";
    for (int i = 0; choices[i]; i++) {
        if (PyUnicode_CompareWithASCIIString(x, choices[i]) == 0) {
            return i;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s'%s'", i ? ", " : "", choices[i]);
    }
    fail(a, PyExc_ValueError, name, "must be one of %s", known);
    return 0;
}

r1_dtype
arg_dtype(r1_args *a, const char *name)
{
    static const char *const names[] = {"float32", "bfloat16", NULL};
    return arg_choice(a, name, names) == 1 ? R1_BF16 : R1_F32;
}

/* ---- tuples --------------------------------------------------------------------------------- */

void
arg_enter(r1_args *a, const char *name, Py_ssize_t count)
{
    PyObject *x = arg_object(a, name);
    if (x == NULL) {
        return;
    }
    if (!PyTuple_Check(x) || PyTuple_GET_SIZE(x) != count) {
        fail(a, PyExc_TypeError, name, "must be a tuple of %zd items", count);
        return;
    }
    a->outer.group = name;
    a->outer.items = a->items;
    a->outer.count = a->count;
    a->outer.next = a->next;
    a->items = ((PyTupleObject *)x)->ob_item;
    a->count = count;
    a->next = 0;
}

void
arg_leave(r1_args *a)
{
    if (a->outer.group) {
        a->items = a->outer.items;
        a->count = a->outer.count;
        a->next = a->outer.next;
        a->outer.group = NULL;
    }
}
