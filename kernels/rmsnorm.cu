/* rmsnorm.cu - RMSNorm with the residual add in front. Zhang & Sennrich 2019, eq. 4.
 *
 *   s = x + residual  (s = x without one)         x, residual, s, y (N, C), r (N, 1), w (1, C)
 *   r[n] = (mean_c s[n,c]^2 + eps)^(-1/2)
 *   y = s r w
 *
 *   t = dy w
 *   ds = add + r (t - s r^2 mean_c(t s))
 *   dw[c] += sum_n dy s r
 *
 * Forward saves s (in `sum`; x itself without a residual) and r. A row has a block of row_threads(C) threads: a
 * chain of fused multiply-adds each over its columns, then block_sum's tree, the same for every row; the
 * root and the quotient are correctly rounded. dw is one chain per column over rows in ascending order that
 * starts from memory, as on the CPU, so that it may be split into calls: a block has 32 columns, all of its
 * threads fetch, one warp adds. */
#include "math.cuh"

static __global__ void
rmsnorm_fwd_kernel(r1_tensor y, r1_tensor sum, r1_tensor r, r1_tensor x, r1_tensor residual,
                   const float *w, float eps)
{
    size_t n = blockIdx.x, C = x.cols;
    const float *from = row_f32(x, n);
    float squares = 0.0f;
    if (residual.data != NULL) {
        const float *branch = row_f32(residual, n);
        float *s = row_f32(sum, n);
        for (size_t c = threadIdx.x; c < C; c += blockDim.x) {
            float v = from[c] + branch[c];
            s[c] = v;
            squares = fmaf(v, v, squares);
        }
        from = s; /* a thread reads what it wrote */
    } else {
        for (size_t c = threadIdx.x; c < C; c += blockDim.x) {
            squares = fmaf(from[c], from[c], squares);
        }
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / (float)C + eps);
    if (threadIdx.x == 0) {
        row_f32(r, n)[0] = scale;
    }
    for (size_t c = threadIdx.x; c < C; c += blockDim.x) {
        row_f32(y, n)[c] = from[c] * scale * w[c];
    }
}

r1_code
CUDA(rmsnorm_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *sum, const r1_tensor *r,
                  const r1_tensor *x, const r1_tensor *residual, const r1_tensor *w, float eps,
                  r1_status *st)
{
    assert(y->rows == x->rows && y->cols == x->cols && w->cols == x->cols && r->rows == x->rows);
    assert((residual == NULL) == (sum == NULL));
    return LAUNCH(dev, st, rmsnorm_fwd_kernel, grid_of(x->rows, 1), row_threads(x->cols), 0, *y,
                  tensor_or_none(sum), *r, *x, tensor_or_none(residual), (const float *)w->data, eps);
}

/* ds of one row a block. add may be ds. */
static __global__ void
rmsnorm_bwd_kernel(r1_tensor ds, r1_tensor dy, r1_tensor add, r1_tensor s, r1_tensor r, const float *w)
{
    size_t n = blockIdx.x, C = s.cols;
    const float *from = row_f32(s, n), *grad = row_f32(dy, n);
    float dot = 0.0f, scale = row_f32(r, n)[0];
    for (size_t c = threadIdx.x; c < C; c += blockDim.x) {
        dot = fmaf(grad[c] * w[c], from[c], dot);
    }
    float pull = -(scale * scale * (block_sum(dot) / (float)C));
    for (size_t c = threadIdx.x; c < C; c += blockDim.x) {
        float base = add.data != NULL ? row_f32(add, n)[c] : 0.0f;
        row_f32(ds, n)[c] = fmaf(scale, fmaf(from[c], pull, grad[c] * w[c]), base);
    }
}

constexpr unsigned TILE = 64, FETCHERS = 8; /* rows at a time; warps of a block */

/* dw of 32 columns a block. */
static __global__ void
rmsnorm_dw_kernel(float *dw, r1_tensor dy, r1_tensor s, r1_tensor r)
{
    SHARED(grad, float[TILE][WARP]);
    SHARED(unit, float[TILE][WARP]); /* s r */
    unsigned lane = threadIdx.x, warp = threadIdx.y;
    size_t c = (size_t)blockIdx.x * WARP + lane;
    bool mine = c < s.cols;
    float sum = mine && warp == 0 ? dw[c] : 0.0f;
    for (size_t first = 0; first < s.rows; first += TILE) {
        size_t rows = s.rows - first < TILE ? s.rows - first : TILE;
        for (size_t i = warp; mine && i < rows; i += FETCHERS) {
            grad[i][lane] = row_f32(dy, first + i)[c];
            unit[i][lane] = row_f32(s, first + i)[c] * row_f32(r, first + i)[0];
        }
        __syncthreads();
        for (size_t i = 0; mine && warp == 0 && i < rows; i++) {
            sum = fmaf(grad[i][lane], unit[i][lane], sum);
        }
        __syncthreads();
    }
    if (mine && warp == 0) {
        dw[c] = sum;
    }
}

r1_code
CUDA(rmsnorm_bwd)(r1_dev *dev, const r1_tensor *ds, const r1_tensor *dw, const r1_tensor *dy,
                  const r1_tensor *add, const r1_tensor *s, const r1_tensor *r, const r1_tensor *w,
                  r1_status *st)
{
    assert(ds->rows == s->rows && dy->rows == s->rows && r->rows == s->rows);
    assert(ds->cols == s->cols && dy->cols == s->cols && w->cols == s->cols);
    if (dw != NULL) {
        R1_TRY(LAUNCH(dev, st, rmsnorm_dw_kernel, grid_of(s->cols, WARP), dim3(WARP, FETCHERS), 0,
                      (float *)dw->data, *dy, *s, *r));
    }
    return LAUNCH(dev, st, rmsnorm_bwd_kernel, grid_of(s->rows, 1), row_threads(s->cols), 0, *ds, *dy,
                  tensor_or_none(add), *s, *r, (const float *)w->data);
}
