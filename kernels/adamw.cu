/* adamw.cu - the update: the gradient's norm, and AdamW. Loshchilov & Hutter 2019, algorithm 2.
 *
 *   g' = grad_scale g
 *   m = beta1 m + (1 - beta1) g'
 *   v = beta2 v + (1 - beta2) g'^2
 *   p = p - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay p)
 *
 * Tensors are contiguous and float32; an element takes the CPU's operations in the CPU's order. A bf16
 * weight's `seen` is written in the same pass. A thread has four elements (vector.cuh).
 *
 * sum_squares is float64: blocks of 4,096 elements, 8 chains and a tree each, added in index order to the value
 * in memory, as on the CPU. A chain is a thread's; one thread adds up the blocks' sums, which others fetch. */
#include "mma.cuh"
#include "vector.cuh"

extern "C" {
#include "../csrc/options.h"
}

constexpr size_t BLOCK = 4096;
constexpr unsigned THREADS = 256, FOUR = 4, CHAINS = 8, FETCHED = 1024;

/* ---- the norm -------------------------------------------------------------------------------- */

/* partial[b] = the sum of squares of g[4096 b ..]; 8 threads a block of elements. */
static __global__ void
square_kernel(double *partial, const float *g, size_t n)
{
    unsigned chain = threadIdx.x % CHAINS;
    size_t block = ((size_t)blockIdx.x * THREADS + threadIdx.x) / CHAINS, first = block * BLOCK;
    size_t end = first + BLOCK < n ? first + BLOCK : n;
    double sum = 0.0;
#pragma unroll 8
    for (size_t i = first + chain; i < end; i += CHAINS) {
        double x = g[i];
        sum += x * x;
    }
    for (unsigned step = CHAINS / 2; step > 0; step /= 2) { /* (0 + 4) + (2 + 6), plus the odd ones so */
        sum += __shfl_down_sync(ALL_LANES, sum, step, CHAINS);
    }
    if (chain == 0 && first < n) {
        partial[block] = sum;
    }
}

static __global__ void
add_partials_kernel(double *sum, const double *partial, size_t blocks)
{
    SHARED(some, double[FETCHED]);
    double total = threadIdx.x == 0 ? *sum : 0.0;
    for (size_t first = 0; first < blocks; first += FETCHED) {
        size_t count = blocks - first < FETCHED ? blocks - first : FETCHED;
        for (size_t i = threadIdx.x; i < count; i += blockDim.x) {
            some[i] = partial[first + i];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 8
            for (size_t i = 0; i < count; i++) {
                total += some[i];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        *sum = total;
    }
}

r1_code
CUDA(sum_squares)(r1_dev *dev, double *sum, const r1_tensor *g, r1_status *st)
{
    assert(g->ld == g->cols || g->rows <= 1);
    size_t n = g->rows * g->cols, blocks = n / BLOCK + (n % BLOCK != 0);
    if (n == 0) {
        return R1_OK;
    }
    void *partial = NULL;
    R1_TRY(dev_scratch(dev, &partial, blocks * sizeof(double), st));
    R1_TRY(LAUNCH(dev, st, square_kernel, grid_of(blocks, THREADS / CHAINS), THREADS, 0, (double *)partial,
                  (const float *)g->data, n));
    return LAUNCH(dev, st, add_partials_kernel, 1, THREADS, 0, sum, (const double *)partial, blocks);
}

/* ---- the update ------------------------------------------------------------------------------ */

struct adamw_job {
    float *p, *m, *v;
    const float *g;
    uint16_t *seen; /* NULL: nobody sees p in bf16 */
    size_t n;
    r1_adamw_spec spec;
    float m_scale, v_scale; /* 1 / (1 - beta^step) */
};

static __device__ inline void
adamw_step(const adamw_job &job, float *p, float *m, float *v, float grad)
{
    const r1_adamw_spec &spec = job.spec;
    float g = grad * spec.grad_scale;
    *m = fmaf(spec.beta1, *m, (1.0f - spec.beta1) * g);
    *v = fmaf(spec.beta2, *v, (1.0f - spec.beta2) * (g * g));
    float root = sqrtf(*v * job.v_scale) + spec.eps;
    float step = fmaf(spec.weight_decay, *p, *m * job.m_scale / root);
    *p = fmaf(-spec.lr, step, *p);
}

static __global__ void
adamw_kernel(adamw_job job)
{
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * FOUR;
    if (i >= job.n) {
        return;
    }
    size_t left = job.n - i;
    four p = load_4(job.p + i, left), m = load_4(job.m + i, left), v = load_4(job.v + i, left);
    four g = load_4(job.g + i, left);
#pragma unroll
    for (unsigned k = 0; k < FOUR; k++) {
        adamw_step(job, &p.x[k], &m.x[k], &v.x[k], g.x[k]);
    }
    store_4(job.p + i, p, left);
    store_4(job.m + i, m, left);
    store_4(job.v + i, v, left);
    if (job.seen == NULL) {
        return;
    }
    uint16_t *seen = job.seen + i;
    if (left >= FOUR && (uintptr_t)seen % sizeof(uint2) == 0) {
        *reinterpret_cast<uint2 *>(seen) = make_uint2(round_pair(p.x[0], p.x[1]), round_pair(p.x[2], p.x[3]));
        return;
    }
#pragma unroll
    for (unsigned k = 0; k < FOUR; k++) {
        if (k < left) {
            seen[k] = bf16_of(p.x[k]);
        }
    }
}

static r1_code
run_adamw(r1_dev *dev, float *p, uint16_t *seen, const r1_tensor *m, const r1_tensor *v, const r1_tensor *g,
          const r1_adamw_spec *spec, r1_status *st)
{
    size_t n = g->rows * g->cols;
    assert(m->rows * m->cols == n && v->rows * v->cols == n && spec->step >= 1);
    assert(g->rows <= 1 || (g->ld == g->cols && m->ld == m->cols && v->ld == v->cols));
    adamw_job job = {p, (float *)m->data, (float *)v->data, (const float *)g->data, seen, n, *spec,
                     adamw_correction(spec->beta1, spec->step), adamw_correction(spec->beta2, spec->step)};
    return LAUNCH(dev, st, adamw_kernel, grid_of(n, THREADS * FOUR), THREADS, 0, job);
}

r1_code
CUDA(adamw)(r1_dev *dev, const r1_tensor *p, const r1_tensor *m, const r1_tensor *v, const r1_tensor *g,
            const r1_adamw_spec *spec, r1_status *st)
{
    assert(p->rows == g->rows && p->cols == g->cols && (p->rows <= 1 || p->ld == p->cols));
    return run_adamw(dev, (float *)p->data, NULL, m, v, g, spec, st);
}

r1_code
CUDA(weight_adamw)(r1_dev *dev, r1_weight *w, size_t row0, const r1_tensor *m, const r1_tensor *v,
                   const r1_tensor *g, const r1_adamw_spec *spec, r1_status *st)
{
    assert(w->master != NULL && g->cols == w->I && row0 + g->rows <= w->E * w->O);
    uint16_t *seen = w->dtype == R1_BF16 ? static_cast<uint16_t *>(w->seen) + row0 * w->I : NULL;
    return run_adamw(dev, w->master + row0 * w->I, seen, m, v, g, spec, st);
}
