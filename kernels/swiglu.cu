/* swiglu.cu - the gated activation of a feed-forward block. Shazeer 2020, eq. 6.
 *
 *   y = silu(g) u,   silu(g) = g sigmoid(g)                  g, u, y (N, F)
 *   du = dy silu(g)
 *   dg = dy u sigmoid(g) (1 + g (1 - sigmoid(g)))
 *
 * Saves nothing: backward computes the sigmoid again. Elementwise, operation for operation the CPU's; dg may
 * alias g, du may alias u: a thread writes what it alone has read. */
#include "vector.cuh"

static __global__ void
swiglu_fwd_kernel(r1_tensor y, r1_tensor gate, r1_tensor up)
{
    size_t n = my_row(), c = my_column(), F = y.cols;
    if (n >= y.rows || c >= F) {
        return;
    }
    four g = load_4(row_f32(gate, n) + c, F - c), u = load_4(row_f32(up, n) + c, F - c);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        u.x[i] = g.x[i] * f_sigmoid(g.x[i]) * u.x[i];
    }
    store_4(row_f32(y, n) + c, u, F - c);
}

static __global__ void
swiglu_bwd_kernel(r1_tensor dgate, r1_tensor dup, r1_tensor dy, r1_tensor gate, r1_tensor up)
{
    size_t n = my_row(), c = my_column(), F = dy.cols;
    if (n >= dy.rows || c >= F) {
        return;
    }
    four g = load_4(row_f32(gate, n) + c, F - c), u = load_4(row_f32(up, n) + c, F - c);
    four d = load_4(row_f32(dy, n) + c, F - c);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        float s = f_sigmoid(g.x[i]), slope = s * fmaf(g.x[i], 1.0f - s, 1.0f);
        float silu = g.x[i] * s;
        g.x[i] = d.x[i] * u.x[i] * slope;
        u.x[i] = d.x[i] * silu;
    }
    store_4(row_f32(dgate, n) + c, g, F - c);
    store_4(row_f32(dup, n) + c, u, F - c);
}

r1_code
CUDA(swiglu_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *gate, const r1_tensor *up,
                 r1_status *st)
{
    assert(gate->rows == y->rows && up->rows == y->rows && gate->cols == y->cols && up->cols == y->cols);
    return LAUNCH(dev, st, swiglu_fwd_kernel, fours_grid(y->rows, y->cols), fours_block(y->cols), 0,
                  *y, *gate, *up);
}

r1_code
CUDA(swiglu_bwd)(r1_dev *dev, const r1_tensor *dgate, const r1_tensor *dup, const r1_tensor *dy,
                 const r1_tensor *gate, const r1_tensor *up, r1_status *st)
{
    assert(gate->rows == dy->rows && up->rows == dy->rows && gate->cols == dy->cols);
    return LAUNCH(dev, st, swiglu_bwd_kernel, fours_grid(dy->rows, dy->cols), fours_block(dy->cols), 0,
                  *dgate, *dup, *dy, *gate, *up);
}
