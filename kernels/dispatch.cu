/* dispatch.cu - rows to experts and back.  DeepSeek-V3, eq. 12: y = add + sum_k w_k expert_k(x).
 *
 *   plan     the N K (token, choice) pairs sorted by expert, token order kept inside an expert:
 *            offsets (E + 1), source (N K) token of a sorted row, place (N, K) sorted row of a
 *            pair. No token is dropped; an expert may be empty.
 *   combine  y[n] = add[n] + sum_k weight[n,k] ys[place[n,k]]
 *            dys[place[n,k]] = weight[n,k] dy[n],   dweight[n,k] = dy[n] . ys[place[n,k]]
 *            dys may alias ys
 *   dispatch (forward is gather_rows by source)   dx[n] = add[n] + sum_k dxs[place[n,k]]
 *
 * ys, dys, dxs (N K, C). Sums over k are chains in slot order that start from add (0 without it), so where an
 * expert's rows stand cannot matter, and the bits are the CPU's; dweight is a chain for each lane of a warp,
 * four columns in every 128, and a tree.
 *
 * The plan is a counting sort by blocks of 1,024 pairs: one kernel counts, one adds up what stands before a
 * block and places; up to 1,024 pairs (decode) the second does both. Integers: no order to keep. */
#include "vector.cuh"

constexpr unsigned SORTERS = 8, ROUNDS = 4;          /* warps of a block that sorts; pairs of a lane */
constexpr unsigned PAIRS = SORTERS * ROUNDS * WARP;

/* The expert of this lane's pair in a round, -1 beyond the last; warps and rounds follow the pairs' order. */
static __device__ inline int32_t
my_expert(size_t *pair, const int32_t *idx, size_t pairs, unsigned round)
{
    unsigned warp = threadIdx.x / WARP;
    *pair = (size_t)blockIdx.x * PAIRS + (warp * ROUNDS + round) * WARP + threadIdx.x % WARP;
    return *pair < pairs ? idx[*pair] : -1;
}

/* counts (blocks, E) */
static __global__ void
count_kernel(int32_t *counts, const int32_t *idx, size_t pairs, unsigned E)
{
    SHARED(count, int32_t[R1_MAX_EXPERTS]);
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        count[e] = 0;
    }
    __syncthreads();
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t pair;
        int32_t e = my_expert(&pair, idx, pairs, round);
        if (e >= 0) {
            atomicAdd(&count[e], 1);
        }
    }
    __syncthreads();
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        counts[(size_t)blockIdx.x * E + e] = count[e];
    }
}

/* Of lanes with the same expert the lowest; how many of them there are, and how many before this one. */
static __device__ inline bool
leads(unsigned *same, unsigned *before, int32_t expert)
{
    unsigned lanes = __match_any_sync(ALL_LANES, expert), lower = (1u << threadIdx.x % WARP) - 1u;
    *same = (unsigned)__popc(lanes);
    *before = (unsigned)__popc(lanes & lower);
    return *before == 0 && expert >= 0;
}

/* start (E) = the sums of what stands before each of total (E), by one warp; may be total. */
static __device__ void
sum_before(int32_t *start, const int32_t *total, unsigned E)
{
    int32_t sum = 0;
    for (unsigned first = 0; first < E; first += WARP) {
        unsigned e = first + threadIdx.x;
        int32_t own = e < E ? total[e] : 0, upto = own;
        for (unsigned step = 1; step < WARP; step *= 2) {
            int32_t lower = __shfl_up_sync(ALL_LANES, upto, step);
            upto += threadIdx.x >= step ? lower : 0;
        }
        if (e < E) {
            start[e] = sum + upto - own;
        }
        sum += __shfl_sync(ALL_LANES, upto, WARP - 1);
    }
}

/* counts NULL: this block is the only one. next (SORTERS, E): the row that a warp's next pair of an expert
 * gets; at first, how many it has. */
static __global__ void
place_kernel(int32_t *offsets, int32_t *source, int32_t *place, const int32_t *counts, const int32_t *idx,
             size_t pairs, unsigned E, unsigned K)
{
    DYNAMIC_SHARED(int32_t, next);
    SHARED(start, int32_t[R1_MAX_EXPERTS]);  /* of an expert: rows of all; then where they begin */
    SHARED(before, int32_t[R1_MAX_EXPERTS]); /* rows of blocks before this one */
    int32_t *mine = next + threadIdx.x / WARP * E;
    unsigned same, rank;
    size_t pair;
    for (unsigned i = threadIdx.x; i < SORTERS * E; i += blockDim.x) {
        next[i] = 0;
    }
    __syncthreads();
    for (unsigned round = 0; round < ROUNDS; round++) {
        int32_t e = my_expert(&pair, idx, pairs, round);
        if (leads(&same, &rank, e)) {
            mine[e] += (int32_t)same;
        }
        __syncwarp();
    }
    __syncthreads();
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        start[e] = before[e] = 0;
        for (unsigned warp = 0; counts == NULL && warp < SORTERS; warp++) {
            start[e] += next[warp * E + e];
        }
        for (unsigned block = 0; counts != NULL && block < gridDim.x; block++) {
            int32_t count = counts[(size_t)block * E + e];
            start[e] += count;
            before[e] += block < blockIdx.x ? count : 0;
        }
    }
    __syncthreads();
    if (threadIdx.x < WARP) {
        sum_before(start, start, E);
    }
    __syncthreads();
    for (unsigned e = threadIdx.x; e < E; e += blockDim.x) {
        int32_t row = start[e] + before[e];
        for (unsigned warp = 0; warp < SORTERS; warp++) {
            int32_t count = next[warp * E + e];
            next[warp * E + e] = row;
            row += count;
        }
        if (blockIdx.x == 0) {
            offsets[e] = start[e];
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        offsets[E] = (int32_t)pairs;
    }
    __syncthreads();
    for (unsigned round = 0; round < ROUNDS; round++) {
        int32_t e = my_expert(&pair, idx, pairs, round);
        bool first = leads(&same, &rank, e);
        if (e >= 0) {
            int32_t row = mine[e] + (int32_t)rank;
            source[row] = (int32_t)(pair / K);
            place[pair] = row;
        }
        __syncwarp();
        if (first) {
            mine[e] += (int32_t)same;
        }
        __syncwarp();
    }
}

r1_code
CUDA(dispatch_plan)(r1_dev *dev, int32_t *offsets, int32_t *source, int32_t *place, const int32_t *idx,
                    size_t N, const r1_router_spec *spec, r1_status *st)
{
    assert(spec->E <= R1_MAX_EXPERTS && N * spec->K <= INT32_MAX);
    size_t pairs = N * spec->K;
    unsigned E = (unsigned)spec->E, blocks = grid_of(pairs, PAIRS);
    if (pairs == 0) { /* an int32 0 is a float 0 */
        r1_tensor none = r1_f32(reinterpret_cast<float *>(offsets), 1, E + 1);
        return CUDA(fill_zero)(dev, &none, st);
    }
    void *counts = NULL;
    if (blocks > 1) {
        R1_TRY(dev_scratch(dev, &counts, (size_t)blocks * E * sizeof(int32_t), st));
        R1_TRY(LAUNCH(dev, st, count_kernel, blocks, SORTERS * WARP, 0, (int32_t *)counts, idx, pairs, E));
    }
    return LAUNCH(dev, st, place_kernel, blocks, SORTERS * WARP, SORTERS * E * sizeof(int32_t), offsets,
                  source, place, (const int32_t *)counts, idx, pairs, E, (unsigned)spec->K);
}

/* out[n] = add[n] + sum_k weight[n,k] in[place[n,k]]; weight none: all 1 */
static __global__ void
sum_rows_kernel(r1_tensor out, r1_tensor in, r1_tensor weight, const int32_t *place, unsigned K,
                r1_tensor add)
{
    size_t n = my_row(), c = my_column(), C = out.cols;
    if (n >= out.rows || c >= C) {
        return;
    }
    four sum = {};
    if (add.data != NULL) {
        sum = load_4(row_f32(add, n) + c, C - c);
    }
#pragma unroll 4
    for (unsigned k = 0; k < K; k++) {
        four x = load_4(row_f32(in, (size_t)place[n * K + k]) + c, C - c);
        float w = weight.data != NULL ? row_f32(weight, n)[k] : 1.0f;
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            sum.x[i] = fmaf(w, x.x[i], sum.x[i]);
        }
    }
    store_4(row_f32(out, n) + c, sum, C - c);
}

r1_code
CUDA(combine_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *ys, const r1_tensor *weight,
                  const int32_t *place, const r1_tensor *add, r1_status *st)
{
    return LAUNCH(dev, st, sum_rows_kernel, fours_grid(y->rows, y->cols), fours_block(y->cols), 0, *y, *ys,
                  *weight, place, (unsigned)weight->cols, tensor_or_none(add));
}

r1_code
CUDA(dispatch_bwd)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dxs, const int32_t *place, size_t K,
                   const r1_tensor *add, r1_status *st)
{
    return LAUNCH(dev, st, sum_rows_kernel, fours_grid(dx->rows, dx->cols), fours_block(dx->cols), 0, *dx,
                  *dxs, r1_tensor{}, place, (unsigned)K, tensor_or_none(add));
}

/* A warp has a pair; it writes what it alone reads, so dys may be ys. */
static __global__ void
combine_bwd_kernel(r1_tensor dys, r1_tensor dweight, r1_tensor dy, r1_tensor ys, r1_tensor weight,
                   const int32_t *place)
{
    size_t pair = (size_t)blockIdx.x * SORTERS + threadIdx.y, K = weight.cols, C = dy.cols;
    if (pair >= dy.rows * K) {
        return;
    }
    size_t n = pair / K, k = pair % K, row = (size_t)place[pair];
    float w = row_f32(weight, n)[k], dot = 0.0f;
    for (size_t c = 4 * threadIdx.x; c < C; c += 4 * WARP) {
        four d = load_4(row_f32(dy, n) + c, C - c), y = load_4(row_f32(ys, row) + c, C - c);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            dot = fmaf(d.x[i], y.x[i], dot);
            d.x[i] = w * d.x[i];
        }
        store_4(row_f32(dys, row) + c, d, C - c);
    }
    dot = warp_sum(dot);
    if (threadIdx.x == 0) {
        row_f32(dweight, n)[k] = dot;
    }
}

r1_code
CUDA(combine_bwd)(r1_dev *dev, const r1_tensor *dys, const r1_tensor *dweight, const r1_tensor *dy,
                  const r1_tensor *ys, const r1_tensor *weight, const int32_t *place, r1_status *st)
{
    return LAUNCH(dev, st, combine_bwd_kernel, grid_of(dy->rows * weight->cols, SORTERS),
                  dim3(WARP, SORTERS), 0, *dys, *dweight, *dy, *ys, *weight, place);
}
