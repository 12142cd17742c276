/* logp.cu - log-probability and entropy of a chunk of logits, and their gradient.
 *
 *   z = logits / temperature on the support S (support.cuh), united with the target
 *   lse = log sum_S exp(z),  logp = z[id] - lse,  p = exp(z - lse),  entropy = sum_S p (lse - z)
 *   dlogits = (dlogp (1[v = id] - p) + dentropy p (lse - z - entropy)) / temperature,  0 outside S
 *
 * logits (M, V), ids (M), logp, entropy, lse (M, 1). The support is constant under differentiation
 * and is found again from the logits by backward. Temperature 0 is the plain softmax of the logits.
 *
 * Order of sums: per tile of 1,024 ids (m, s = sum e, f = sum e (m - z), e = exp(z - m): support.cu), then one
 * chain over tiles in ascending order: with M the largest m, S = sum s exp(m - M), lse = M + log S, and
 * entropy = sum exp(m - lse) (f + s (lse - m)): no term is negative, so nothing cancels, and the logits are read
 * once. A row depends on itself and V. Backward is elementwise, the CPU's operations one by one.
 * A row without gradient (dlogp and dentropy 0) is filled with 0 and reaches no exp. */
#include "support.cuh"

constexpr unsigned MERGERS = 4; /* rows of a block */

/* What is needed has a row for each of the logits', and is the device's scratch: support.cu. */
size_t
CUDA(logp_scratch)(const r1_dev *, size_t)
{
    return 0;
}

/* exp(m - lse) (f + s (lse - m)) of tile t of row n; 0 beyond the last */
static __device__ inline float
tile_entropy(const row_sums &sums, size_t n, size_t t, float lse)
{
    tile_sums tile = t < sums.tiles ? sums.tile[n * sums.tiles + t] : tile_sums{};
    float behind = lse - tile.max;
    return tile.sum == 0.0f ? 0.0f : f_exp(-behind) * (tile.fall + tile.sum * behind);
}

/* A warp has a row. */
static __global__ void
logp_fwd_kernel(r1_tensor logp, r1_tensor entropy, r1_tensor lse, row_sums sums, r1_tensor logits,
                const int32_t *ids, float inverse)
{
    size_t n = (size_t)blockIdx.x * MERGERS + threadIdx.y;
    if (n >= logits.rows) {
        return;
    }
    float M = row_max(sums, n), S = 0.0f, H = 0.0f;
    for (size_t t = 0; t < sums.tiles; t += WARP) {
        unsigned count = sums.tiles - t < WARP ? (unsigned)(sums.tiles - t) : WARP;
        S = add_lanes(S, tile_weight(sums, n, t + threadIdx.x, M), count);
    }
    float log_sum = M + f_log(S);
    for (size_t t = 0; entropy.data != NULL && t < sums.tiles; t += WARP) {
        unsigned count = sums.tiles - t < WARP ? (unsigned)(sums.tiles - t) : WARP;
        H = add_lanes(H, tile_entropy(sums, n, t + threadIdx.x, log_sum), count);
    }
    if (threadIdx.x == 0) {
        row_f32(lse, n)[0] = log_sum;
        row_f32(logp, n)[0] = row_f32(logits, n)[ids[n]] * inverse - log_sum;
        if (entropy.data != NULL) {
            row_f32(entropy, n)[0] = H;
        }
    }
}

r1_code
CUDA(logp_fwd)(r1_dev *dev, const r1_tensor *logp, const r1_tensor *entropy, const r1_tensor *lse,
               const r1_tensor *logits, const int32_t *ids, const r1_sampling *how, void *, r1_status *st)
{
    id_filter filter = filter_of(how, logits->cols);
    row_sums sums;
    R1_TRY(sum_tiles(dev, &sums, logits, ids, &filter, entropy != NULL, st));
    return LAUNCH(dev, st, logp_fwd_kernel, grid_of(logits->rows, MERGERS), dim3(WARP, MERGERS), 0, *logp,
                  tensor_or_none(entropy), *lse, sums, *logits, ids, filter.inverse);
}

/* A block has a tile, a thread four ids. */
static __global__ void
logp_bwd_kernel(r1_tensor logits, r1_tensor dlogp, r1_tensor dentropy, r1_tensor entropy, r1_tensor lse,
                const int32_t *ids, row_sums sums, id_filter filter)
{
    size_t n = blockIdx.x / sums.tiles, v = blockIdx.x % sums.tiles * TILE_IDS + 4 * threadIdx.x;
    size_t V = logits.cols;
    if (v >= V) {
        return;
    }
    float *row = row_f32(logits, n) + v, dl = row_f32(dlogp, n)[0];
    float dh = dentropy.data != NULL ? row_f32(dentropy, n)[0] : 0.0f;
    if (dl == 0.0f && dh == 0.0f) {
        store_4(row, four{}, V - v);
        return;
    }
    float H = dh != 0.0f ? row_f32(entropy, n)[0] : 0.0f, log_sum = row_f32(lse, n)[0];
    sort_key limit = limit_at(sums, n);
    four x = load_4(row, V - v);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        float minus_logp = log_sum - z_of(x.x[i], v + i, filter, limit, ids[n]);
        float p = f_exp(-minus_logp), slope = dh * (minus_logp - H) - dl;
        float d = p == 0.0f ? p : p * slope;
        d = d + (v + i == (size_t)ids[n] ? dl : 0.0f);
        x.x[i] = d * filter.inverse;
    }
    store_4(row, x, V - v);
}

r1_code
CUDA(logp_bwd)(r1_dev *dev, const r1_tensor *logits, const r1_tensor *dlogp, const r1_tensor *dentropy,
               const r1_tensor *entropy, const r1_tensor *lse, const int32_t *ids, const r1_sampling *how,
               void *, r1_status *st)
{
    id_filter filter = filter_of(how, logits->cols);
    row_sums sums;
    R1_TRY(find_support(dev, &sums, logits, &filter, 0, st));
    return LAUNCH(dev, st, logp_bwd_kernel, grid_of(logits->rows * sums.tiles, 1), TILE_IDS / 4, 0, *logits,
                  *dlogp, tensor_or_none(dentropy), tensor_or_none(entropy), *lse, ids, sums, filter);
}
