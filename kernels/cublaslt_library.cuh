/* cublaslt_library.cuh - cuBLASLt as kernels/cublaslt.cu plans with it: what is called of it, its state in a device,
 * and a product told in its terms.
 *
 * No header of the library is needed to compile this, nor the library to load it: the few declarations stand
 * here, with the values of cublasLt.h, the same from CUDA 12 to 13. */
#ifndef R1_CUBLASLT_LIBRARY_CUH
#define R1_CUBLASLT_LIBRARY_CUH

#include "cublaslt.cuh"

constexpr size_t LT_CLASSES = 5; /* numbers of rows that have an algorithm of their own: cublaslt.cu */
constexpr size_t LT_WORKSPACE = (size_t)32 << 20;

enum {
    LT_REDUCTIONS = 3,  /* of a preference: which ways of adding up parts of a sum are allowed */
    LT_ONE_SUM = 0,     /* none */
    LT_IN_WORKSPACE = 2 /* parts in the workspace, added in order */
};

enum { LT_INVALID = 7, LT_UNSUPPORTED = 15 }; /* answers: an algorithm that cannot do this product */

enum { LT_ID = 0, LT_TILE = 1, LT_STAGES = 6 }; /* of an algorithm */

struct lt_algorithm {
    uint64_t data[8];
};

struct lt_proposal {
    lt_algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

struct lt_calls { /* cublasLt...: 0 is success */
    int (*Create)(void **handle);
    int (*Destroy)(void *handle);
    size_t (*GetVersion)(void);
    int (*MatmulDescCreate)(void **desc, int compute, int scale);
    int (*MatmulDescDestroy)(void *desc);
    int (*MatmulDescSetAttribute)(void *desc, int what, const void *value, size_t bytes);
    int (*MatrixLayoutCreate)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*MatrixLayoutDestroy)(void *layout);
    int (*MatrixLayoutSetAttribute)(void *layout, int what, const void *value, size_t bytes);
    int (*MatmulPreferenceCreate)(void **preference);
    int (*MatmulPreferenceDestroy)(void *preference);
    int (*MatmulPreferenceSetAttribute)(void *preference, int what, const void *value, size_t bytes);
    int (*MatmulAlgoGetHeuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d,
                                  void *preference, int wanted, lt_proposal *found, int *count);
    int (*MatmulAlgoConfigGetAttribute)(const lt_algorithm *algorithm, int what, void *value, size_t bytes,
                                        size_t *written);
    int (*Matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
                  void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                  const lt_algorithm *algorithm, void *workspace, size_t bytes, cudaStream_t stream);
};

struct lt_shape {
    size_t O, I;
    size_t most; /* rows at once, where the rule holds */
    bool serves[LT_FORMS];
    lt_algorithm algorithm[LT_FORMS][LT_CLASSES]; /* by the number of rows */
    lt_shape *next;
};

struct lt {
    void *library, *handle, *preference, *workspace;
    void *desc[LT_FORMS];
    void *a, *b, *c; /* layouts, set for each product */
    lt_calls call;
    lt_shape *shapes;
};

struct operands {
    r1_tensor c, a, b;
};

/* R1_OK, or a message that names what the library was asked for. */
r1_code lt_check(int status, const char *what, r1_status *st);
/* Tells the library an operation's shapes; what it answers. */
int lt_lay_out(const lt *t, const operands &o);
/* Queues a product; what the library answers. */
int lt_queue(r1_dev *dev, lt_form form, const operands &o, const float *bias, float beta,
             const lt_algorithm *algorithm);

#endif
