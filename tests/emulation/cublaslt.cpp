/* cublaslt.cpp - what stands in for cuBLASLt over the emulation: the functions that kernels/cublaslt.cu calls, with
 * sums of an order unlike our kernels', and on request bits that depend on the number of rows.
 *
 * Column-major, like the original: d (m, n) = op(a) op(b) [+ bias (m)] [+ beta c], a and b bf16. An algorithm's
 * first word is its order: 0 goes through the sum from its end, 1 from its beginning; the second word is what
 * it was proposed for. What cuBLASLt would refuse is refused: sizes that do not meet, addresses and strides
 * that are no multiples of 16 bytes, memory that is not the device's. */
#include "cuda_runtime.h"
#include "dlfcn.h"

#define SHOWN extern "C" __attribute__((visibility("default")))

namespace {

/* absent; as it should be; a product of few rows goes from the beginning whatever its algorithm; the first
 * proposal for few rows does, the second does not; only products of many rows are supported; none is; products
 * of a range of rows go from the beginning, others not; an algorithm does the number of rows that it was proposed
 * for alone; it cannot be set up: no handle, no memory for the last of what it is asked for, a function that it
 * lacks */
enum behaviour { ABSENT, EQUAL, BY_ROWS, SECOND, MANY_ROWS, NOTHING, BETWEEN, PICKY, NO_HANDLE, NO_WISH, OLD };
enum { FEW_ROWS = 64, OK = 0, UNREADY = 1, NO_MEMORY = 3, INVALID = 7, UNSUPPORTED = 15, VERSION = 130100 };

behaviour now;
uint64_t range[2]; /* of BETWEEN: the fewest rows and the most */
int products;

struct algorithm {
    uint64_t data[8];
};

struct proposal {
    algorithm algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};

struct description {
    int turned_a, turned_b, epilogue;
    const float *bias;
};

struct preference {
    uint64_t workspace;
    uint32_t reductions;
};

int opened; /* handles that are */

int
create(void **handle)
{
    if (now == NO_HANDLE) {
        return UNREADY;
    }
    opened++;
    *handle = new int;
    return OK;
}

int
destroy(void *handle)
{
    opened--;
    delete static_cast<int *>(handle);
    return OK;
}

size_t version() { return VERSION; }

int
create_description(description **d, int compute, int scale)
{
    *d = new description{0, 0, 1, NULL};
    return compute == 68 && scale == 0 ? OK : INVALID;
}

int destroy_description(description *d) { delete d; return OK; }

int
set_description(description *d, int what, const void *value, size_t bytes)
{
    void *to = what == 3 ? (void *)&d->turned_a : what == 4 ? (void *)&d->turned_b
             : what == 7 ? (void *)&d->epilogue : what == 8 ? (void *)&d->bias : NULL;
    if (to == NULL || bytes != (what == 8 ? sizeof(void *) : sizeof(int))) {
        return INVALID;
    }
    memcpy(to, value, bytes);
    return OK;
}

int
create_layout(layout **l, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    *l = new layout{type, rows, cols, ld};
    return OK;
}

int destroy_layout(layout *l) { delete l; return OK; }

int
set_layout(layout *l, int what, const void *value, size_t bytes)
{
    void *to = what == 2 ? (void *)&l->rows : what == 3 ? (void *)&l->cols : what == 4 ? (void *)&l->ld : NULL;
    if (to == NULL || bytes != sizeof(uint64_t)) {
        return INVALID;
    }
    memcpy(to, value, bytes);
    return OK;
}

int
create_preference(preference **p)
{
    if (now == NO_WISH) {
        return NO_MEMORY;
    }
    *p = new preference{0, 7};
    return OK;
}

int destroy_preference(preference *p) { delete p; return OK; }

int
set_preference(preference *p, int what, const void *value, size_t bytes)
{
    if (what == 1 && bytes == sizeof p->workspace) {
        memcpy(&p->workspace, value, bytes);
    } else if (what == 3 && bytes == sizeof p->reductions) {
        memcpy(&p->reductions, value, bytes);
    } else if (what < 5 || what > 8 || bytes != sizeof(uint32_t) || *(const uint32_t *)value != 16) {
        return INVALID;
    }
    return OK;
}

/* Do the sizes meet, and is every column 16-byte aligned? */
bool
fits(const description *how, const layout *a, const layout *b, const layout *c)
{
    uint64_t m = how->turned_a ? a->cols : a->rows, k = how->turned_a ? a->rows : a->cols;
    uint64_t n = how->turned_b ? b->rows : b->cols, depth = how->turned_b ? b->cols : b->rows;
    bool types = a->type == 14 && b->type == 14 && c->type == 0;
    bool strides = a->ld % 8 == 0 && b->ld % 8 == 0 && c->ld % 4 == 0 && a->ld >= (int64_t)a->rows &&
                   b->ld >= (int64_t)b->rows && c->ld >= (int64_t)c->rows;
    return types && strides && k == depth && c->rows == m && c->cols == n && m > 0 && n > 0 && k > 0;
}

int
propose(void *, const description *how, const layout *a, const layout *b, const layout *c, const layout *,
        const preference *wish, int wanted, proposal *found, int *count)
{
    uint64_t rows = b->cols; /* of x or dy, in each form */
    *count = 0;
    if (now == NOTHING || (now == MANY_ROWS && rows <= FEW_ROWS)) {
        return UNSUPPORTED;
    }
    if (!fits(how, a, b, c) || wish->workspace == 0 || wish->reductions % 2 != 0) {
        return INVALID;
    }
    for (; *count < 2 && *count < wanted; (*count)++) {
        bool other = now == SECOND && rows <= FEW_ROWS && *count == 0;
        found[*count] = {{{other, rows, (uint64_t)*count}}, 0, OK, 1.0f, {}};
    }
    return OK;
}

int
ask(const algorithm *algo, int what, void *value, size_t bytes, size_t *written)
{
    uint32_t answer = what == 0 ? (uint32_t)algo->data[0] : what == 1 ? (uint32_t)algo->data[1] : (uint32_t)algo->data[2];
    memcpy(value, &answer, bytes);
    *written = bytes;
    return OK;
}

float
number(const uint16_t *p)
{
    return emulated_bits<float>((uint32_t)*p << 16);
}

bool
reachable(const void *p, const layout *l, size_t width)
{
    return (uintptr_t)p % 16 == 0 && emulated_reachable(p, ((l->cols - 1) * (uint64_t)l->ld + l->rows) * width);
}

/* d of operands that fit, each element one sum. */
cudaError_t
compute(const description &how, const uint16_t *a, const layout &la, const uint16_t *b, const layout &lb, float *d,
        const layout &ld, float beta, bool rising)
{
    uint64_t depth = how.turned_a ? la.rows : la.cols;
    emulated_unlock();
    for (uint64_t j = 0; j < ld.cols; j++) {
        for (uint64_t i = 0; i < ld.rows; i++) {
            float sum = 0.0f;
            for (uint64_t step = 0; step < depth; step++) {
                uint64_t k = rising ? step : depth - 1 - step;
                const uint16_t *x = how.turned_a ? a + i * la.ld + k : a + k * la.ld + i;
                const uint16_t *y = how.turned_b ? b + k * lb.ld + j : b + j * lb.ld + k;
                sum = fmaf(number(x), number(y), sum);
            }
            sum += how.epilogue == 4 ? how.bias[i] : 0.0f;
            float *to = d + j * ld.ld + i;
            *to = beta != 0.0f ? sum + beta * *to : sum;
        }
    }
    emulated_lock();
    products++;
    return cudaSuccess;
}

int
multiply(void *, const description *how, const float *alpha, const uint16_t *a, const layout *la, const uint16_t *b,
         const layout *lb, const float *beta, const float *c, const layout *lc, float *d, const layout *ld,
         const algorithm *algo, void *workspace, size_t, cudaStream_t stream)
{
    if (!fits(how, la, lb, ld) || c != d || lc != ld || *alpha != 1.0f || !reachable(a, la, 2) ||
        !reachable(b, lb, 2) || !reachable(d, ld, 4) || !emulated_reachable(workspace, 1) ||
        (how->epilogue == 4 && !emulated_reachable(how->bias, ld->rows * sizeof(float)))) {
        return INVALID;
    }
    if (now == PICKY && lb->cols != algo->data[1]) {
        return UNSUPPORTED;
    }
    bool rising = algo->data[0] == 1 || (now == BY_ROWS && lb->cols <= FEW_ROWS) ||
                  (now == BETWEEN && lb->cols >= range[0] && lb->cols <= range[1]);
    auto work = [=, how = *how, la = *la, lb = *lb, ld = *ld, beta = *beta]() {
        return compute(how, a, la, b, lb, d, ld, beta, rising);
    };
    return emulated_do(stream, work) == cudaSuccess ? OK : INVALID;
}

const struct {
    const char *name;
    void *function;
} functions[] = {
    {"cublasLtCreate", (void *)create},
    {"cublasLtDestroy", (void *)destroy},
    {"cublasLtGetVersion", (void *)version},
    {"cublasLtMatmulDescCreate", (void *)create_description},
    {"cublasLtMatmulDescDestroy", (void *)destroy_description},
    {"cublasLtMatmulDescSetAttribute", (void *)set_description},
    {"cublasLtMatrixLayoutCreate", (void *)create_layout},
    {"cublasLtMatrixLayoutDestroy", (void *)destroy_layout},
    {"cublasLtMatrixLayoutSetAttribute", (void *)set_layout},
    {"cublasLtMatmulPreferenceCreate", (void *)create_preference},
    {"cublasLtMatmulPreferenceDestroy", (void *)destroy_preference},
    {"cublasLtMatmulPreferenceSetAttribute", (void *)set_preference},
    {"cublasLtMatmulAlgoGetHeuristic", (void *)propose},
    {"cublasLtMatmulAlgoConfigGetAttribute", (void *)ask},
    {"cublasLtMatmul", (void *)multiply},
};

} // namespace

void *
emulated_dlopen(const char *name, int)
{
    return now != ABSENT && strcmp(name, "libcublasLt.so.13") == 0 ? (void *)functions : NULL;
}

void *
emulated_dlsym(void *, const char *name)
{
    for (const auto &one : functions) {
        if (strcmp(one.name, name) == 0 && !(now == OLD && one.function == (void *)multiply)) {
            return one.function;
        }
    }
    return NULL;
}

int
emulated_dlclose(void *)
{
    return 0;
}

/* What BETWEEN means from now on. */
SHOWN void
emulated_cublaslt_between(uint64_t fewest, uint64_t most)
{
    range[0] = fewest;
    range[1] = most;
}

/* From now on it behaves so. How many products it has computed since the last call. */
SHOWN int
emulated_cublaslt(int how)
{
    int before = products;
    now = (behaviour)how;
    products = 0;
    return before;
}

/* Handles that nobody has destroyed. */
SHOWN int
emulated_cublaslt_handles()
{
    return opened;
}
