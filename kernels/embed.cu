/* embed.cu - token embedding: a row of the table for each id.
 *
 *   y[n] = W[ids[n]];   dW[ids[n]] += dy[n], n ascending
 *
 * W (V, C) is what products see of a weight, float32 or bf16; ids (N), y (N, C). Id -1 (no token) gives a row
 * of zeros and no gradient. Forward copies.
 *
 * Backward is one chain per element over rows in ascending order, starting from memory, as on the CPU: rows
 * are sorted by (id, n) first, then a block takes all rows of one id. The sort counts, for every row, the rows
 * before it in that order: N^2 comparisons of integers cost less than the pass over dy up to some ten thousand
 * rows, and the order of anything else cannot matter to them. */
#include "vector.cuh"

constexpr unsigned COUNTERS = 8;  /* warps of a block that sorts */
constexpr unsigned LISTED = 128;  /* rows of one id that a block looks up at a time */

template <class T>
static __global__ void
embed_fwd_kernel(r1_tensor y, const T *w, const int32_t *ids)
{
    size_t n = my_row(), c = my_column(), C = y.cols;
    if (n >= y.rows || c >= C) {
        return;
    }
    four a = {};
    if (ids[n] >= 0) {
        const T *from = w + (size_t)ids[n] * C + c;
        if constexpr (std::is_same<T, float>::value) {
            a = load_4(from, C - c);
        } else {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                a.x[i] = c + i < C ? f32_of(from[i]) : 0.0f;
            }
        }
    }
    store_4(row_f32(y, n) + c, a, C - c);
}

r1_code
CUDA(embed_fwd)(r1_dev *dev, const r1_tensor *y, const r1_weight *w, const int32_t *ids, r1_status *st)
{
    assert(w->E == 1 && y->cols == w->I);
    dim3 grid = fours_grid(y->rows, y->cols), block = fours_block(y->cols);
    return w->dtype == R1_BF16
        ? LAUNCH(dev, st, embed_fwd_kernel<uint16_t>, grid, block, 0, *y, (const uint16_t *)w->seen, ids)
        : LAUNCH(dev, st, embed_fwd_kernel<float>, grid, block, 0, *y, (const float *)w->seen, ids);
}

/* sorted (N): the rows in the order of (id, n). A warp has one row n. */
static __global__ void
embed_sort_kernel(int32_t *sorted, const int32_t *ids, size_t N)
{
    size_t n = (size_t)blockIdx.x * COUNTERS + threadIdx.y;
    if (n >= N) {
        return;
    }
    int32_t id = ids[n];
    unsigned before = 0;
#pragma unroll 4
    for (size_t m = threadIdx.x; m < N; m += WARP) {
        before += ids[m] < id || (ids[m] == id && m < n);
    }
    before = warp_sum(before);
    if (threadIdx.x == 0) {
        sorted[before] = (int32_t)n;
    }
}

/* The block of an id's first row in sorted order adds all of them. */
static __global__ void
embed_bwd_kernel(r1_tensor dw, r1_tensor dy, const int32_t *ids, const int32_t *sorted)
{
    SHARED(rows, int32_t[LISTED]);
    size_t N = dy.rows, first = blockIdx.x, C = dy.cols, c = my_column();
    int32_t id = ids[sorted[first]];
    if (id < 0 || (first > 0 && ids[sorted[first - 1]] == id)) {
        return;
    }
    four sum = c < C ? load_4(row_f32(dw, (size_t)id) + c, C - c) : four{};
    for (int listed = LISTED; listed == LISTED; first += LISTED) {
        bool mine = threadIdx.x < LISTED && first + threadIdx.x < N;
        int32_t row = mine ? sorted[first + threadIdx.x] : 0;
        mine = mine && ids[row] == id;
        if (mine) {
            rows[threadIdx.x] = row;
        }
        listed = __syncthreads_count(mine);
        if (c < C) {
#pragma unroll 4
            for (int i = 0; i < listed; i++) {
                four d = load_4(row_f32(dy, (size_t)rows[i]) + c, C - c);
#pragma unroll
                for (unsigned j = 0; j < 4; j++) {
                    sum.x[j] += d.x[j];
                }
            }
        }
        __syncthreads(); /* rows may be written again */
    }
    if (c < C) {
        store_4(row_f32(dw, (size_t)id) + c, sum, C - c);
    }
}

r1_code
CUDA(embed_bwd)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const int32_t *ids, r1_status *st)
{
    assert(dw->cols == dy->cols && dy->rows <= INT32_MAX);
    void *sorted = NULL;
    R1_TRY(dev_scratch(dev, &sorted, dy->rows * sizeof(int32_t), st));
    R1_TRY(LAUNCH(dev, st, embed_sort_kernel, grid_of(dy->rows, COUNTERS), dim3(WARP, COUNTERS), 0,
                  (int32_t *)sorted, ids, dy->rows));
    dim3 block(LISTED);
    return LAUNCH(dev, st, embed_bwd_kernel, dim3((unsigned)dy->rows, grid_of(dy->cols, 4 * LISTED)), block, 0,
                  *dw, *dy, ids, (const int32_t *)sorted);
}
