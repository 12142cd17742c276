/* balance.cu - the sequence-wise balance loss of DeepSeekMoE.  DeepSeek-V3, eq. 17-20.
 *
 * For one sequence of T rows, with c_i = rows of it that chose expert i and S_t = sum_j s_tj:
 *   f_i = E c_i / (K T),   P_i = 1/T sum_t s_ti / S_t,   loss = coef T sum_i f_i P_i
 *   dscores[t,j] = coef / S_t (f_j - sum_i f_i s_ti / S_t)         f is constant
 *
 * scores, dscores (N, E), idx (N, K), loss (B, 1). The factor T weights a sequence by its tokens
 * (our choice): a caller who passes coef / total tokens gets the mean over tokens, however they are
 * split into calls.
 *
 * A prefix belongs to every sequence of its group: it counts in the loss of each, and as a row's gradient is
 * linear in f, its rows take the sum of the sequences' f, in ascending order.
 *
 * S and the dot product of the gradient are a chain for each lane of a warp and a tree. T P is one float64 chain
 * over rows ascending, the loss one over experts ascending; a sequence without rows has loss 0. Four kernels:
 * S of every row; f and T P of every sequence, 32 experts a block; the losses; the gradients. */
#include "math.cuh"

constexpr unsigned BALANCERS = 8; /* warps of a block */
constexpr unsigned TILE = 32;     /* rows whose shares a block has in shared memory */

/* What one kernel leaves the next. */
typedef struct {
    float *S;  /* (N) */
    float *f;  /* (B, E) */
    double *P; /* (B, E), T times */
} balance_sums;

static __global__ void
row_sums_kernel(float *S, r1_tensor scores)
{
    size_t n = (size_t)blockIdx.x * BALANCERS + threadIdx.y;
    if (n >= scores.rows) {
        return;
    }
    float sum = 0.0f;
    for (size_t e = threadIdx.x; e < scores.cols; e += WARP) {
        sum += row_f32(scores, n)[e];
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        S[n] = sum + 1e-20f; /* all gates may underflow; otherwise it adds nothing */
    }
}

/* Row of position t of sequence b: its prefix's, then its own. */
static __device__ inline size_t
row_at(const r1_seqs &seqs, size_t b, size_t t)
{
    size_t shared = (size_t)seqs.pos0[b];
    return t < shared ? (size_t)seqs.prefix[b] + t : (size_t)seqs.q_start[b] + (t - shared);
}

static __device__ inline size_t
length_of(const r1_seqs &seqs, size_t b)
{
    return (size_t)(seqs.pos0[b] + seqs.q_start[b + 1] - seqs.q_start[b]);
}

/* f and P of 32 experts of sequence blockIdx.x: all threads divide, one warp adds. */
static __global__ void
shares_kernel(balance_sums sums, r1_tensor scores, const int32_t *idx, r1_seqs seqs, unsigned K)
{
    SHARED(share, double[TILE][WARP]);
    SHARED(count, unsigned[WARP]);
    size_t b = blockIdx.x, E = scores.cols, first = (size_t)blockIdx.y * WARP, e = first + threadIdx.x;
    size_t T = length_of(seqs, b);
    double P = 0.0;
    if (threadIdx.y == 0) {
        count[threadIdx.x] = 0;
    }
    __syncthreads();
    for (size_t t0 = 0; t0 < T; t0 += TILE) {
        size_t rows = T - t0 < TILE ? T - t0 : TILE;
        for (size_t i = threadIdx.y; i < rows; i += BALANCERS) {
            size_t n = row_at(seqs, b, t0 + i);
            share[i][threadIdx.x] = e < E ? (double)row_f32(scores, n)[e] / (double)sums.S[n] : 0.0;
            for (unsigned k = threadIdx.x; k < K; k += WARP) {
                size_t chosen = (size_t)idx[n * K + k];
                if (chosen >= first && chosen < first + WARP) {
                    atomicAdd(&count[chosen - first], 1u);
                }
            }
        }
        __syncthreads();
        for (size_t i = 0; threadIdx.y == 0 && i < rows; i++) {
            P += share[i][threadIdx.x];
        }
        __syncthreads();
    }
    if (threadIdx.y == 0 && e < E) {
        sums.P[b * E + e] = P;
        sums.f[b * E + e] = T > 0 ? (float)count[threadIdx.x] * (float)E / (float)(K * T) : 0.0f;
    }
}

/* A warp has a sequence: 32 products at a time, added one by one. */
static __global__ void
losses_kernel(r1_tensor loss, balance_sums sums, size_t E, float coef)
{
    size_t b = (size_t)blockIdx.x * BALANCERS + threadIdx.y;
    if (b >= loss.rows) {
        return;
    }
    double sum = 0.0;
    for (size_t first = 0; first < E; first += WARP) {
        size_t at = b * E + first + threadIdx.x;
        unsigned count = E - first < WARP ? (unsigned)(E - first) : WARP;
        double product = threadIdx.x < count ? (double)sums.f[at] * sums.P[at] : 0.0;
        for (unsigned i = 0; i < count; i++) {
            sum += __shfl_sync(ALL_LANES, product, i);
        }
    }
    if (threadIdx.x == 0) {
        row_f32(loss, b)[0] = (float)(sum * coef);
    }
}

/* Sequences b .. that row n belongs to: its own, or its whole group if it is of the prefix. */
static __device__ inline size_t
last_sharing(const r1_seqs &seqs, size_t b, size_t n)
{
    size_t end = b + 1;
    while (end < seqs.B && seqs.pos0[end] > seqs.pos[n] && seqs.pos0[b] == 0) {
        end++;
    }
    return end;
}

/* A warp has a row: ds = coef / S (f - f . s / S) */
static __global__ void
balance_bwd_kernel(r1_tensor dscores, r1_tensor scores, balance_sums sums, r1_seqs seqs, float coef)
{
    DYNAMIC_SHARED(float, shared);
    size_t n = (size_t)blockIdx.x * BALANCERS + threadIdx.y, E = scores.cols;
    if (n >= scores.rows) {
        return;
    }
    const float *s = row_f32(scores, n);
    float *f = shared + threadIdx.y * E, dot = 0.0f, S = sums.S[n];
    size_t b = (size_t)seqs.seq[n], end = last_sharing(seqs, b, n);
    for (size_t e = threadIdx.x; e < E; e += WARP) {
        float sum = 0.0f;
        for (size_t i = b; i < end; i++) {
            sum += sums.f[i * E + e];
        }
        f[e] = sum; /* this lane reads it again */
        dot = fmaf(sum, s[e], dot);
    }
    float mean = warp_sum(dot) / S, factor = coef / S;
    for (size_t e = threadIdx.x; e < E; e += WARP) {
        row_f32(dscores, n)[e] = (f[e] - mean) * factor;
    }
}

/* S, f and P in the device's scratch. */
static r1_code
open_sums(r1_dev *dev, balance_sums *sums, size_t N, size_t B, size_t E, r1_status *st)
{
    r1_arena arena = {};
    void *p = NULL;
    for (int placing = 0; placing < 2; placing++) {
        sums->S = static_cast<float *>(r1_arena_push(&arena, N, sizeof(float)));
        sums->f = static_cast<float *>(r1_arena_push(&arena, B * E, sizeof(float)));
        sums->P = static_cast<double *>(r1_arena_push(&arena, B * E, sizeof(double)));
        if (!placing) {
            R1_TRY(dev_scratch(dev, &p, arena.used, st));
            arena = {static_cast<unsigned char *>(p), arena.used, 0};
        }
    }
    return R1_OK;
}

r1_code
CUDA(balance_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscores, const r1_tensor *scores,
                   const int32_t *idx, const r1_seqs *seqs, const r1_router_spec *spec, float coef,
                   r1_status *st)
{
    assert(spec->E <= R1_MAX_EXPERTS && loss->rows == seqs->B && scores->cols == spec->E);
    balance_sums sums;
    const dim3 block(WARP, BALANCERS);
    size_t N = scores->rows, B = seqs->B, E = spec->E;
    if (N == 0) {
        return CUDA(fill_zero)(dev, loss, st);
    }
    R1_TRY(open_sums(dev, &sums, N, B, E, st));
    R1_TRY(LAUNCH(dev, st, row_sums_kernel, grid_of(N, BALANCERS), block, 0, sums.S, *scores));
    R1_TRY(LAUNCH(dev, st, shares_kernel, dim3((unsigned)B, grid_of(E, WARP)), block, 0, sums, *scores, idx,
                  *seqs, (unsigned)spec->K));
    R1_TRY(LAUNCH(dev, st, losses_kernel, grid_of(B, BALANCERS), block, 0, *loss, sums, E, coef));
    return LAUNCH(dev, st, balance_bwd_kernel, grid_of(N, BALANCERS), block,
                  BALANCERS * E * sizeof(float), *dscores, *scores, sums, *seqs, coef);
}
