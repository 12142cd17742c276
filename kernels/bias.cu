/* bias.cu - the gradient of a bias, dbias (O) += the sum of dy (N, O) over its rows.
 *
 * One chain of additions a column, rows ascending, that starts from the value in memory, as on the CPU: a sum
 * over rows split between two calls gives what one call gives. A block has 32 columns; all of its warps fetch
 * rows, a tile ahead of the one that adds. */
#include "mma.cuh"

constexpr unsigned TILE = 64, FETCHERS = 8; /* rows at a time; warps of a block */

static __global__ void
bias_bwd_kernel(float *dbias, r1_tensor dy)
{
    SHARED(rows, float[2][TILE][WARP]);
    unsigned lane = threadIdx.x, warp = threadIdx.y;
    size_t c = (size_t)blockIdx.x * WARP + lane, tiles = (dy.rows + TILE - 1) / TILE;
    bool mine = c < dy.cols;
    float sum = mine && warp == 0 ? dbias[c] : 0.0f;
    for (size_t tile = 0; tile <= tiles; tile++) {
        for (unsigned i = warp; i < TILE; i += FETCHERS) {
            size_t n = tile * TILE + i;
            bool there = mine && n < dy.rows;
            copy_4(&rows[tile % 2][i][lane], there ? row_f32(dy, n) + c : (const float *)dy.data, there);
        }
        copy_commit();
        if (tile > 0 && warp == 0) {
            size_t left = dy.rows - (tile - 1) * TILE;
#pragma unroll 8
            for (unsigned i = 0; i < (left < TILE ? left : TILE); i++) {
                sum += rows[(tile - 1) % 2][i][lane];
            }
        }
        copy_wait<0>();
        __syncthreads();
    }
    if (mine && warp == 0) {
        dbias[c] = sum;
    }
}

r1_code
CUDA(bias_bwd)(r1_dev *dev, const r1_tensor *dbias, const r1_tensor *dy, r1_status *st)
{
    assert(dbias->cols == dy->cols);
    return LAUNCH(dev, st, bias_bwd_kernel, grid_of(dy->cols, WARP), dim3(WARP, FETCHERS), 0,
                  (float *)dbias->data, *dy);
}
