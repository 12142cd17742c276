/* router.cu - which experts a token goes to.  DeepSeek-V3, eq. 12-16, and the Gate of its code.
 *
 *   scores = sigmoid(logits) or softmax(logits)          (N, E)
 *   choice = scores + bias                               bias steers the choice alone
 *   group score = sum of the two largest choices of the group (the largest alone without a bias)
 *   the best top_groups groups keep their experts; idx = the K largest choices, descending
 *   weight = scores[idx] [/ (sum + 1e-20)] scale         (N, K)
 *
 * Every tie goes to the lowest index. Saved: scores, idx. Backward, with idx constant:
 *
 *   g_k = scale dweight_k, or normalised scale (dweight_k - sum_j dweight_j s_j / sum) / sum
 *   ds = dscores, with g_k added at idx_k
 *   sigmoid: dlogits = ds s (1 - s)      softmax: dlogits = s (ds - sum_e ds s)
 *
 * A warp has a row. Sums over K are chains, so with the sigmoid all is the CPU's bit for bit; sums over E are
 * a chain for each lane and a tree. The load counts and the bias update (section 2.1.2) are here too and are
 * integers; the balance loss: balance.cu. */
#include "math.cuh"

constexpr unsigned ROUTERS = 4; /* warps, and so rows, of a block */
constexpr unsigned LOADERS = 8; /* blocks that count the load of one sequence */

static __device__ inline float
none()
{
    return __uint_as_float(0xff800000u); /* -infinity */
}

static __device__ inline float
closed()
{
    return __uint_as_float(0x7fc00000u); /* NaN: larger than nothing, equal to nothing */
}

/* s (E) in shared memory; lane l has experts l, l + 32, .. here and below. */
static __device__ void
row_scores(float *s, const float *x, unsigned E, bool softmax)
{
    unsigned lane = threadIdx.x;
    if (!softmax) {
        for (unsigned e = lane; e < E; e += WARP) {
            s[e] = f_sigmoid(x[e]);
        }
        return;
    }
    float m = none(), sum = 0.0f;
    for (unsigned e = lane; e < E; e += WARP) {
        m = f_max(m, x[e]);
    }
    m = warp_max(m);
    for (unsigned e = lane; e < E; e += WARP) {
        s[e] = f_exp(x[e] - m);
        sum += s[e];
    }
    sum = warp_sum(sum);
    for (unsigned e = lane; e < E; e += WARP) {
        s[e] /= sum;
    }
}

/* The largest of x (n), lowest index first, closed on the way out; one is open. */
static __device__ unsigned
take_largest(float *x, unsigned n)
{
    float m = none();
    for (unsigned i = threadIdx.x; i < n; i += WARP) {
        m = f_max(x[i], m);
    }
    m = warp_max(m);
    unsigned at = threadIdx.x;
    while (at < n && x[at] != m) {
        at += WARP;
    }
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        at = min(at, __shfl_xor_sync(ALL_LANES, at, step));
    }
    if (at % WARP == threadIdx.x) {
        x[at] = closed();
    }
    __syncwarp();
    return at;
}

/* Closes all experts but those of the best top_groups groups. score (groups) is scratch. */
static __device__ void
close_groups(float *choice, float *score, bool biased, const r1_router_spec &spec)
{
    unsigned groups = (unsigned)spec.groups, size = (unsigned)spec.E / groups;
    for (unsigned g = threadIdx.x; g < groups; g += WARP) {
        float first = none(), second = first;
        for (unsigned e = g * size; e < (g + 1) * size; e++) {
            float lesser = choice[e] > first ? first : choice[e];
            first = f_max(choice[e], first);
            second = f_max(lesser, second);
        }
        float sum = biased && size > 1 ? first + second : first;
        score[g] = f_max(sum, none()); /* inf - inf is NaN, which would be closed */
    }
    __syncwarp();
    for (unsigned i = 0; i < spec.top_groups; i++) {
        (void)take_largest(score, groups);
    }
    for (unsigned e = threadIdx.x; e < spec.E; e += WARP) {
        if (score[e / size] == score[e / size]) { /* not taken */
            choice[e] = closed();
        }
    }
    __syncwarp();
}

/* Shared memory of a row: scores (E), choices (E), group scores (groups). */
static __global__ void
router_fwd_kernel(int32_t *idx, r1_tensor weight, r1_tensor scores, r1_tensor logits, const float *bias,
                  r1_router_spec spec)
{
    DYNAMIC_SHARED(float, rows);
    SHARED(chosen, int32_t[ROUTERS][R1_MAX_TOPK]);
    unsigned E = (unsigned)spec.E, K = (unsigned)spec.K, lane = threadIdx.x;
    size_t n = (size_t)blockIdx.x * ROUTERS + threadIdx.y;
    if (n >= logits.rows) {
        return;
    }
    float *s = rows + threadIdx.y * (2 * E + spec.groups), *choice = s + E, *group = choice + E;
    row_scores(s, row_f32(logits, n), E, spec.softmax);
    for (unsigned e = lane; e < E; e += WARP) {
        row_f32(scores, n)[e] = s[e];
        /* a NaN counts as -infinity: K experts are chosen whatever comes */
        choice[e] = f_max(bias != NULL ? s[e] + bias[e] : s[e], none());
    }
    __syncwarp();
    if (spec.top_groups < spec.groups) {
        close_groups(choice, group, bias != NULL, spec);
    }
    float sum = 0.0f;
    for (unsigned k = 0; k < K; k++) {
        unsigned e = take_largest(choice, E);
        sum += s[e];
        if (lane == 0) {
            chosen[threadIdx.y][k] = (int32_t)e;
        }
    }
    __syncwarp();
    for (unsigned k = lane; k < K; k += WARP) {
        int32_t e = chosen[threadIdx.y][k];
        idx[n * K + k] = e;
        row_f32(weight, n)[k] = (spec.normalize ? s[e] / (sum + 1e-20f) : s[e]) * spec.scale;
    }
}

r1_code
CUDA(router_fwd)(r1_dev *dev, int32_t *idx, const r1_tensor *weight, const r1_tensor *scores,
                 const r1_tensor *logits, const r1_tensor *bias, const r1_router_spec *spec, r1_status *st)
{
    assert(spec->E <= R1_MAX_EXPERTS && spec->K <= R1_MAX_TOPK && spec->E % spec->groups == 0);
    assert(spec->K <= spec->top_groups * (spec->E / spec->groups));
    return LAUNCH(dev, st, router_fwd_kernel, grid_of(logits->rows, ROUTERS), dim3(WARP, ROUTERS),
                  ROUTERS * (2 * spec->E + spec->groups) * sizeof(float), idx, *weight, *scores, *logits,
                  bias != NULL ? (const float *)bias->data : NULL, *spec);
}

/* Shared memory of a row: ds (E). */
static __global__ void
router_bwd_kernel(r1_tensor dlogits, r1_tensor dweight, r1_tensor dscores, const int32_t *idx,
                  r1_tensor scores, r1_router_spec spec)
{
    DYNAMIC_SHARED(float, rows);
    unsigned E = (unsigned)spec.E, K = (unsigned)spec.K, lane = threadIdx.x;
    size_t n = (size_t)blockIdx.x * ROUTERS + threadIdx.y;
    if (n >= scores.rows) {
        return;
    }
    float *ds = rows + threadIdx.y * E, sum = 0.0f, mean = 0.0f, dot = 0.0f;
    const float *s = row_f32(scores, n), *dw = row_f32(dweight, n);
    const int32_t *chosen = idx + n * K;
    for (unsigned e = lane; e < E; e += WARP) {
        ds[e] = dscores.data != NULL ? row_f32(dscores, n)[e] : 0.0f;
    }
    for (unsigned k = 0; k < K; k++) {
        sum += s[chosen[k]];
    }
    sum += 1e-20f;
    for (unsigned k = 0; k < K; k++) {
        mean += s[chosen[k]] / sum * dw[k];
    }
    __syncwarp();
    for (unsigned k = lane; k < K; k += WARP) {
        ds[chosen[k]] += (spec.normalize ? (dw[k] - mean) / sum : dw[k]) * spec.scale;
    }
    __syncwarp();
    for (unsigned e = lane; spec.softmax && e < E; e += WARP) {
        dot = fmaf(ds[e], s[e], dot);
    }
    dot = warp_sum(dot);
    for (unsigned e = lane; e < E; e += WARP) {
        row_f32(dlogits, n)[e] = spec.softmax ? s[e] * (ds[e] - dot) : ds[e] * s[e] * (1.0f - s[e]);
    }
}

r1_code
CUDA(router_bwd)(r1_dev *dev, const r1_tensor *dlogits, const r1_tensor *dweight, const r1_tensor *dscores,
                 const int32_t *idx, const r1_tensor *scores, const r1_router_spec *spec, r1_status *st)
{
    return LAUNCH(dev, st, router_bwd_kernel, grid_of(scores->rows, ROUTERS), dim3(WARP, ROUTERS),
                  ROUTERS * spec->E * sizeof(float), *dlogits, *dweight, tensor_or_none(dscores), idx,
                  *scores, *spec);
}

/* One of the LOADERS blocks of a sequence: its prefix, then its own rows. */
static __global__ void
router_load_kernel(unsigned long long *load, const int32_t *idx, r1_seqs seqs, unsigned E, unsigned K)
{
    SHARED(count, unsigned[R1_MAX_EXPERTS]);
    size_t b = blockIdx.x / LOADERS, part = blockIdx.x % LOADERS;
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        count[e] = 0;
    }
    __syncthreads();
    size_t shared = (size_t)seqs.pos0[b] * K, own = (size_t)(seqs.q_start[b + 1] - seqs.q_start[b]) * K;
    const int32_t *prefix = idx + (size_t)seqs.prefix[b] * K, *rows = idx + (size_t)seqs.q_start[b] * K;
    for (size_t i = part * blockDim.x + threadIdx.x; i < shared + own; i += LOADERS * blockDim.x) {
        atomicAdd(&count[i < shared ? prefix[i] : rows[i - shared]], 1u);
    }
    __syncthreads();
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        if (count[e] > 0) {
            atomicAdd(&load[e], (unsigned long long)count[e]);
        }
    }
}

r1_code
CUDA(router_load)(r1_dev *dev, int64_t *load, const int32_t *idx, const r1_seqs *seqs,
                  const r1_router_spec *spec, r1_status *st)
{
    assert(spec->E <= R1_MAX_EXPERTS);
    return LAUNCH(dev, st, router_load_kernel, grid_of(seqs->N > 0 ? seqs->B * LOADERS : 0, 1), 256, 0,
                  (unsigned long long *)load, idx, *seqs, (unsigned)spec->E, (unsigned)spec->K);
}

/* One block. */
static __global__ void
router_bias_update_kernel(float *bias, const int64_t *load, int64_t E, float rate)
{
    int64_t total = 0;
    for (int64_t e = 0; e < E; e++) {
        total += load[e];
    }
    for (int64_t e = threadIdx.x; e < E; e += blockDim.x) {
        int64_t excess = load[e] * E - total; /* exact, unlike a comparison with the mean */
        bias[e] += excess < 0 ? rate : excess > 0 ? -rate : 0.0f;
    }
}

r1_code
CUDA(router_bias_update)(r1_dev *dev, const r1_tensor *bias, const int64_t *load, float rate, r1_status *st)
{
    return LAUNCH(dev, st, router_bias_update_kernel, 1, 256, 0, (float *)bias->data, load,
                  (int64_t)bias->cols, rate);
}
