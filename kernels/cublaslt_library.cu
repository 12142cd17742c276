/* cublaslt_library.cu - finds cuBLASLt, holds what it needs for a device's life, and hands products to it.
 *
 * The library counts columns first, so it is told the transpose: c^T = b^T a^T, and a row-major matrix is its
 * own transpose. Descriptors are made once and set anew for each product; nothing is allocated for one. */
#include <dlfcn.h>

#include "cublaslt_library.cuh"

enum {
    R_32F = 0,
    R_16BF = 14,
    COMPUTE_32F = 68,
    OP_T = 1,
    DESC_TRANSA = 3,
    DESC_TRANSB = 4,
    DESC_EPILOGUE = 7,
    DESC_BIAS_POINTER = 8,
    EPILOGUE_BIAS = 4,
    LAYOUT_ROWS = 2,
    LAYOUT_COLS = 3,
    LAYOUT_LD = 4,
    PREF_WORKSPACE = 1,
    PREF_ALIGNMENT = 5 /* of a; b, c and d follow */
};

#define LT_CALLS(X)                                                                           \
    X(Create) X(Destroy) X(GetVersion) X(MatmulDescCreate) X(MatmulDescDestroy)                 \
    X(MatmulDescSetAttribute) X(MatrixLayoutCreate) X(MatrixLayoutDestroy)                      \
    X(MatrixLayoutSetAttribute) X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy)            \
    X(MatmulPreferenceSetAttribute) X(MatmulAlgoGetHeuristic) X(MatmulAlgoConfigGetAttribute)   \
    X(Matmul)

r1_code
lt_check(int status, const char *what, r1_status *st)
{
    return status == 0 ? R1_OK : R1_FAIL(st, R1_EDEVICE, "cuBLASLt: %s answers status %d", what, status);
}

static r1_code
find_calls(lt *t, r1_status *st)
{
#define LT_FIND(name)                                                                              \
    t->call.name = reinterpret_cast<decltype(t->call.name)>(dlsym(t->library, "cublasLt" #name)); \
    if (t->call.name == NULL) {                                                                   \
        return R1_FAIL(st, R1_EDEVICE, "cuBLASLt: there is no function cublasLt" #name);                \
    }
    LT_CALLS(LT_FIND)
    return R1_OK;
}

static r1_code
describe_form(lt *t, lt_form form, r1_status *st)
{
    const int turned = OP_T, bias = EPILOGUE_BIAS;
    R1_TRY(lt_check(t->call.MatmulDescCreate(&t->desc[form], COMPUTE_32F, R_32F), "MatmulDescCreate", st));
    if (form != LT_NN) { /* W is (I, O) to the library, x (I, N), dy (O, N) */
        R1_TRY(lt_check(t->call.MatmulDescSetAttribute(t->desc[form], form == LT_TN ? DESC_TRANSB : DESC_TRANSA,
                                                       &turned, sizeof turned), "the form", st));
    }
    return form != LT_NT_BIAS ? R1_OK
        : lt_check(t->call.MatmulDescSetAttribute(t->desc[form], DESC_EPILOGUE, &bias, sizeof bias), "bias", st);
}

static r1_code
set_up(r1_dev *dev, lt *t, r1_status *st)
{
    const uint32_t alignment = 16;
    const uint64_t bytes = LT_WORKSPACE;
    R1_TRY(find_calls(t, st));
    R1_TRY(lt_check(t->call.Create(&t->handle), "Create", st));
    for (int form = 0; form < LT_FORMS; form++) {
        R1_TRY(describe_form(t, (lt_form)form, st));
    }
    R1_TRY(lt_check(t->call.MatrixLayoutCreate(&t->a, R_16BF, 1, 1, 1), "MatrixLayoutCreate", st));
    R1_TRY(lt_check(t->call.MatrixLayoutCreate(&t->b, R_16BF, 1, 1, 1), "MatrixLayoutCreate", st));
    R1_TRY(lt_check(t->call.MatrixLayoutCreate(&t->c, R_32F, 1, 1, 1), "MatrixLayoutCreate", st));
    R1_TRY(lt_check(t->call.MatmulPreferenceCreate(&t->preference), "MatmulPreferenceCreate", st));
    R1_TRY(lt_check(t->call.MatmulPreferenceSetAttribute(t->preference, PREF_WORKSPACE, &bytes, sizeof bytes),
                    "the workspace", st));
    for (int i = 0; i < 4; i++) {
        R1_TRY(lt_check(t->call.MatmulPreferenceSetAttribute(t->preference, PREF_ALIGNMENT + i, &alignment,
                                                             sizeof alignment), "the alignment", st));
    }
    return dev_check(dev, cudaMalloc(&t->workspace, LT_WORKSPACE), "the workspace of cuBLASLt", st);
}

r1_code
lt_open(r1_dev *dev, r1_status *st)
{
    void *library = dlopen("libcublasLt.so.13", RTLD_LAZY | RTLD_NOLOAD);
    library = library != NULL ? library : dlopen("libcublasLt.so.12", RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL) {
        return R1_OK;
    }
    dev->lt = static_cast<lt *>(r1_alloc(1, sizeof *dev->lt));
    if (dev->lt == NULL) {
        (void)dlclose(library);
        return R1_FAIL(st, R1_ENOMEM, "no memory for cuBLASLt");
    }
    dev->lt->library = library;
    r1_code code = set_up(dev, dev->lt, &dev->no_lt);
    if (code == R1_OK) {
        return R1_OK;
    }
    lt_close(dev);
    return code == R1_EDEVICE && !dev->dead ? R1_OK : R1_FAIL(st, code, "%s", dev->no_lt.message);
}

size_t
lt_bytes(const r1_dev *dev)
{
    return dev->lt != NULL ? LT_WORKSPACE : 0;
}

void
lt_close(r1_dev *dev)
{
    lt *t = dev->lt;
    if (t == NULL) {
        return;
    }
    for (int form = 0; form < LT_FORMS; form++) {
        if (t->desc[form] != NULL) {
            (void)t->call.MatmulDescDestroy(t->desc[form]);
        }
    }
    void *const layouts[] = {t->a, t->b, t->c};
    for (void *layout : layouts) {
        if (layout != NULL) {
            (void)t->call.MatrixLayoutDestroy(layout);
        }
    }
    if (t->preference != NULL) {
        (void)t->call.MatmulPreferenceDestroy(t->preference);
    }
    if (t->handle != NULL) {
        (void)t->call.Destroy(t->handle);
    }
    (void)cudaFree(t->workspace);
    (void)dlclose(t->library);
    for (lt_shape *next, *shape = t->shapes; shape != NULL; shape = next) {
        next = shape->next;
        r1_free(shape);
    }
    r1_free(t);
    dev->lt = NULL;
}

/* ---- a product ---- */

static int
lay_out(const lt *t, void *layout, const r1_tensor &x)
{
    const uint64_t rows = x.cols, cols = x.rows;
    const int64_t ld = (int64_t)x.ld;
    int status = t->call.MatrixLayoutSetAttribute(layout, LAYOUT_ROWS, &rows, sizeof rows);
    status = status != 0 ? status : t->call.MatrixLayoutSetAttribute(layout, LAYOUT_COLS, &cols, sizeof cols);
    return status != 0 ? status : t->call.MatrixLayoutSetAttribute(layout, LAYOUT_LD, &ld, sizeof ld);
}

int
lt_lay_out(const lt *t, const operands &o)
{
    int status = lay_out(t, t->a, o.a);
    status = status != 0 ? status : lay_out(t, t->b, o.b);
    return status != 0 ? status : lay_out(t, t->c, o.c);
}

int
lt_queue(r1_dev *dev, lt_form form, const operands &o, const float *bias, float beta,
         const lt_algorithm *algorithm)
{
    const lt *t = dev->lt;
    const float one = 1.0f;
    int status = lt_lay_out(t, o);
    if (status == 0 && form == LT_NT_BIAS) {
        status = t->call.MatmulDescSetAttribute(t->desc[form], DESC_BIAS_POINTER, &bias, sizeof bias);
    }
    return status != 0 ? status
        : t->call.Matmul(t->handle, t->desc[form], &one, o.b.data, t->b, o.a.data, t->a, &beta, o.c.data, t->c,
                         o.c.data, t->c, algorithm, t->workspace, LT_WORKSPACE, dev->stream);
}
