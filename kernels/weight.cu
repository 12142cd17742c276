/* weight.cu - E matrices (O, I): the float32 master, unless frozen, and what products and the embedding see.
 *
 *   seen (E O, I) = master, or the nearest bf16 of it (ties to even), row-major like the master
 *
 * A float32 weight is seen as it is: one array, twice named. A frozen weight has no master; what is written to
 * it, or read from it, passes through scratch memory in pieces where it must be converted. */
#include "cublaslt.cuh"
#include "math.cuh"

constexpr size_t PIECE = 1 << 22; /* floats that are converted at a time */
constexpr unsigned THREADS = 256;

/* x count; SIZE_MAX where that is too many, and from there on */
static size_t
times(size_t x, size_t count)
{
    size_t product;
    return __builtin_mul_overflow(x, count, &product) ? SIZE_MAX : product;
}

static size_t
size_of(r1_dtype dtype)
{
    return dtype == R1_BF16 ? sizeof(uint16_t) : sizeof(float);
}

void
CUDA(weight_bytes)(size_t *master, size_t *packed, size_t E, size_t O, size_t I, r1_dtype dtype, int frozen)
{
    size_t count = times(times(E, O), I);
    *master = frozen ? 0 : times(count, sizeof(float));
    *packed = dtype == R1_F32 && !frozen ? 0 : times(count, size_of(dtype));
}

r1_code
CUDA(weight_open)(r1_dev *dev, r1_weight **out, size_t E, size_t O, size_t I, r1_dtype dtype, void *packed,
                  r1_status *st)
{
    *out = NULL;
    assert(dtype == R1_F32 || dtype == R1_BF16);
    size_t master_bytes, seen_bytes;
    CUDA(weight_bytes)(&master_bytes, &seen_bytes, E, O, I, dtype, packed != NULL);
    r1_weight *w = static_cast<r1_weight *>(r1_alloc(1, sizeof *w));
    if (w == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a weight");
    }
    *w = {E, O, I, dtype, NULL, packed};
    if (packed == NULL) {
        w->master = static_cast<float *>(CUDA(mem_alloc)(dev, master_bytes, st));
        w->seen = dtype == R1_F32 || w->master == NULL ? w->master : CUDA(mem_alloc)(dev, seen_bytes, st);
    }
    if (w->seen == NULL) {
        CUDA(weight_close)(dev, w);
        return R1_FAIL(st, R1_ENOMEM, "no GPU memory for a weight of %zu x %zu x %zu", E, O, I);
    }
    r1_code code = dtype == R1_BF16 && E == 1 ? lt_plan(dev, O, I, static_cast<uint16_t *>(w->seen), st) : R1_OK;
    if (code != R1_OK) {
        CUDA(weight_close)(dev, w);
        return code;
    }
    *out = w;
    return R1_OK;
}

void
CUDA(weight_close)(r1_dev *dev, r1_weight *w)
{
    if (w != NULL && w->master != NULL) {
        CUDA(mem_free)(dev, w->master);
        if (w->dtype != R1_F32) {
            CUDA(mem_free)(dev, w->seen);
        }
    }
    r1_free(w);
}

r1_tensor
CUDA(weight_view)(const r1_weight *w)
{
    return w->master != NULL ? r1_f32(w->master, w->E * w->O, w->I)
                             : r1_tensor{w->seen, w->dtype, w->E * w->O, w->I, w->I};
}

static __global__ void
round_kernel(uint16_t *to, const float *from, size_t count)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) {
        to[i] = bf16_of(from[i]);
    }
}

static __global__ void
widen_kernel(float *to, const uint16_t *from, size_t count)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) {
        to[i] = f32_of(from[i]);
    }
}

r1_code
CUDA(weight_write)(r1_dev *dev, r1_weight *w, const float *from, r1_status *st)
{
    size_t count = w->E * w->O * w->I;
    if (w->dtype == R1_F32) {
        return CUDA(mem_upload)(dev, w->seen, from, count * sizeof(float), st);
    }
    void *scratch = NULL;
    if (w->master == NULL) {
        R1_TRY(dev_scratch(dev, &scratch, (count < PIECE ? count : PIECE) * sizeof(float), st));
    }
    uint16_t *seen = static_cast<uint16_t *>(w->seen);
    for (size_t i = 0, n; i < count; i += n) {
        n = count - i < PIECE ? count - i : PIECE;
        float *piece = w->master != NULL ? w->master + i : static_cast<float *>(scratch);
        R1_TRY(CUDA(mem_upload)(dev, piece, from + i, n * sizeof(float), st));
        R1_TRY(LAUNCH(dev, st, round_kernel, grid_of(n, THREADS), THREADS, 0, seen + i, (const float *)piece,
                      n));
    }
    return R1_OK;
}

r1_code
CUDA(weight_read)(r1_dev *dev, float *to, const r1_weight *w, r1_status *st)
{
    size_t count = w->E * w->O * w->I;
    if (w->master != NULL || w->dtype == R1_F32) {
        const void *from = w->master != NULL ? w->master : w->seen;
        return CUDA(mem_download)(dev, to, from, count * sizeof(float), st);
    }
    void *scratch = NULL;
    R1_TRY(dev_scratch(dev, &scratch, (count < PIECE ? count : PIECE) * sizeof(float), st));
    const uint16_t *seen = static_cast<const uint16_t *>(w->seen);
    for (size_t i = 0, n; i < count; i += n) {
        n = count - i < PIECE ? count - i : PIECE;
        R1_TRY(LAUNCH(dev, st, widen_kernel, grid_of(n, THREADS), THREADS, 0, static_cast<float *>(scratch),
                      seen + i, n));
        R1_TRY(CUDA(mem_download)(dev, to + i, scratch, n * sizeof(float), st));
    }
    return R1_OK;
}
