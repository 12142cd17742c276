/* rows.cu - rows that are cleared, added, rounded, gathered and scattered.
 *
 *   fill_zero     x = 0
 *   add           y = a + b
 *   scale         y = factor x
 *   round_bf16    x = the nearest bf16 number (math.cuh)
 *   gather_rows   y[m] = x[idx[m]]
 *   scatter_rows  dx = 0, then dx[idx[m]] = dy[m];  the gradient of gather: the idx are distinct
 *
 * One addition, one product or a copy: nothing has an order. A block has ROWS rows, its threads go along
 * them side by side; y may be a or b, since a thread reads what it alone writes. */
#include "math.cuh"

constexpr unsigned COLUMNS = 64, ROWS = 4;

static __global__ void
add_kernel(r1_tensor y, r1_tensor a, r1_tensor b)
{
    size_t n = (size_t)blockIdx.x * ROWS + threadIdx.y;
    if (n >= y.rows) {
        return;
    }
    for (size_t c = threadIdx.x; c < y.cols; c += COLUMNS) {
        row_f32(y, n)[c] = row_f32(a, n)[c] + row_f32(b, n)[c];
    }
}

static __global__ void
scale_kernel(r1_tensor y, r1_tensor x, float factor)
{
    size_t n = (size_t)blockIdx.x * ROWS + threadIdx.y;
    if (n >= y.rows) {
        return;
    }
    for (size_t c = threadIdx.x; c < y.cols; c += COLUMNS) {
        row_f32(y, n)[c] = row_f32(x, n)[c] * factor;
    }
}

static __global__ void
round_bf16_kernel(r1_tensor x)
{
    size_t n = (size_t)blockIdx.x * ROWS + threadIdx.y;
    if (n >= x.rows) {
        return;
    }
    for (size_t c = threadIdx.x; c < x.cols; c += COLUMNS) {
        row_f32(x, n)[c] = bf16_round(row_f32(x, n)[c]);
    }
}

/* `count` rows: y[m] = x[idx[m]], or y[idx[m]] = x[m] if scattered. */
template <bool scattered>
static __global__ void
move_kernel(r1_tensor y, r1_tensor x, const int32_t *idx, size_t count)
{
    size_t m = (size_t)blockIdx.x * ROWS + threadIdx.y;
    if (m >= count) {
        return;
    }
    size_t other = (size_t)idx[m];
    float *to = row_f32(y, scattered ? other : m);
    const float *from = row_f32(x, scattered ? m : other);
    for (size_t c = threadIdx.x; c < y.cols; c += COLUMNS) {
        to[c] = from[c];
    }
}

static const dim3 row_block(COLUMNS, ROWS);

r1_code
CUDA(fill_zero)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    if (x->rows == 0 || x->cols == 0) {
        return R1_OK;
    }
    size_t size = sizeof(float);
    return dev_check(dev, cudaMemset2DAsync(x->data, x->ld * size, 0, x->cols * size, x->rows,
                                            dev->stream), "fill_zero", st);
}

r1_code
CUDA(add)(r1_dev *dev, const r1_tensor *y, const r1_tensor *a, const r1_tensor *b, r1_status *st)
{
    assert(y->rows == a->rows && y->rows == b->rows && y->cols == a->cols && y->cols == b->cols);
    return LAUNCH(dev, st, add_kernel, grid_of(y->rows, ROWS), row_block, 0, *y, *a, *b);
}

r1_code
CUDA(scale)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, float factor, r1_status *st)
{
    assert(y->rows == x->rows && y->cols == x->cols);
    return LAUNCH(dev, st, scale_kernel, grid_of(y->rows, ROWS), row_block, 0, *y, *x, factor);
}

r1_code
CUDA(round_bf16)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    return LAUNCH(dev, st, round_bf16_kernel, grid_of(x->rows, ROWS), row_block, 0, *x);
}

r1_code
CUDA(gather_rows)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const int32_t *idx,
                  r1_status *st)
{
    assert(y->cols == x->cols);
    return LAUNCH(dev, st, move_kernel<false>, grid_of(y->rows, ROWS), row_block, 0, *y, *x, idx,
                  y->rows);
}

r1_code
CUDA(scatter_rows)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const int32_t *idx,
                   r1_status *st)
{
    assert(dx->cols == dy->cols && dy->rows <= dx->rows);
    R1_TRY(CUDA(fill_zero)(dev, dx, st));
    return LAUNCH(dev, st, move_kernel<true>, grid_of(dy->rows, ROWS), row_block, 0, *dx, *dy, idx,
                  dy->rows);
}
