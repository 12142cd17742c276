/* rows.cu - rows that are cleared, added, rounded, gathered and scattered.
 *
 *   fill_zero     x = 0
 *   add           y = a + b
 *   scale         y = factor x
 *   round_bf16    x = the nearest bf16 number (math.cuh)
 *   gather_rows   y[m] = x[idx[m]]
 *   scatter_rows  dx = 0, then dx[idx[m]] = dy[m];  the gradient of gather: the idx are distinct
 *
 * One addition, one product or a copy: nothing has an order. A thread has four columns of a row (vector.cuh); y
 * may be a or b, since it reads what it alone writes. */
#include "vector.cuh"

static __global__ void
add_kernel(r1_tensor y, r1_tensor a, r1_tensor b)
{
    size_t n = my_row(), c = my_column();
    if (n >= y.rows || c >= y.cols) {
        return;
    }
    four u = load_4(row_f32(a, n) + c, y.cols - c), v = load_4(row_f32(b, n) + c, y.cols - c);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        u.x[i] += v.x[i];
    }
    store_4(row_f32(y, n) + c, u, y.cols - c);
}

static __global__ void
scale_kernel(r1_tensor y, r1_tensor x, float factor)
{
    size_t n = my_row(), c = my_column();
    if (n >= y.rows || c >= y.cols) {
        return;
    }
    four u = load_4(row_f32(x, n) + c, y.cols - c);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        u.x[i] *= factor;
    }
    store_4(row_f32(y, n) + c, u, y.cols - c);
}

static __global__ void
round_bf16_kernel(r1_tensor x)
{
    size_t n = my_row(), c = my_column();
    if (n >= x.rows || c >= x.cols) {
        return;
    }
    four u = load_4(row_f32(x, n) + c, x.cols - c);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        u.x[i] = bf16_round(u.x[i]);
    }
    store_4(row_f32(x, n) + c, u, x.cols - c);
}

/* `count` rows: y[m] = x[idx[m]], or y[idx[m]] = x[m] if scattered. */
template <bool scattered>
static __global__ void
move_kernel(r1_tensor y, r1_tensor x, const int32_t *idx, size_t count)
{
    size_t m = my_row(), c = my_column();
    if (m >= count || c >= y.cols) {
        return;
    }
    size_t other = (size_t)idx[m];
    store_4(row_f32(y, scattered ? other : m) + c, load_4(row_f32(x, scattered ? m : other) + c, y.cols - c),
            y.cols - c);
}

r1_code
CUDA(fill_zero)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    if (dev->pretends || x->rows == 0 || x->cols == 0) {
        return R1_OK;
    }
    size_t size = sizeof(float);
    if (x->ld == x->cols || x->rows == 1) {
        return dev_check(dev, cudaMemsetAsync(x->data, 0, x->rows * x->cols * size, dev->stream),
                         "fill_zero", st);
    }
    return dev_check(dev, cudaMemset2DAsync(x->data, x->ld * size, 0, x->cols * size, x->rows,
                                            dev->stream), "fill_zero", st);
}

r1_code
CUDA(add)(r1_dev *dev, const r1_tensor *y, const r1_tensor *a, const r1_tensor *b, r1_status *st)
{
    assert(y->rows == a->rows && y->rows == b->rows && y->cols == a->cols && y->cols == b->cols);
    return LAUNCH(dev, st, add_kernel, fours_grid(y->rows, y->cols), fours_block(y->cols), 0, *y, *a, *b);
}

r1_code
CUDA(scale)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, float factor, r1_status *st)
{
    assert(y->rows == x->rows && y->cols == x->cols);
    return LAUNCH(dev, st, scale_kernel, fours_grid(y->rows, y->cols), fours_block(y->cols), 0, *y, *x,
                  factor);
}

r1_code
CUDA(round_bf16)(r1_dev *dev, const r1_tensor *x, r1_status *st)
{
    return LAUNCH(dev, st, round_bf16_kernel, fours_grid(x->rows, x->cols), fours_block(x->cols), 0, *x);
}

r1_code
CUDA(gather_rows)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const int32_t *idx,
                  r1_status *st)
{
    assert(y->cols == x->cols);
    return LAUNCH(dev, st, move_kernel<false>, fours_grid(y->rows, y->cols), fours_block(y->cols), 0, *y,
                  *x, idx, y->rows);
}

r1_code
CUDA(scatter_rows)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const int32_t *idx,
                   r1_status *st)
{
    assert(dx->cols == dy->cols && dy->rows <= dx->rows);
    R1_TRY(CUDA(fill_zero)(dev, dx, st));
    return LAUNCH(dev, st, move_kernel<true>, fours_grid(dy->rows, dy->cols), fours_block(dy->cols), 0,
                  *dx, *dy, idx, dy->rows);
}
