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
 * Forward saves s (in `sum`; x itself without a residual) and r. A row has a block of row_threads(C) threads; each
 * goes along it in fours of columns with one chain of fused multiply-adds, then comes block_sum's tree, the
 * same for every row; the root and the quotient are correctly rounded. The second look at a row finds it in
 * the cache. dw is one chain per column over rows in ascending order that starts from memory, as on the CPU,
 * so that it may be split into calls: a block has 8 columns and fetches a tile of rows ahead of the
 * threads that add. */
#include "vector.cuh"

static __global__ void
rmsnorm_fwd_kernel(r1_tensor y, r1_tensor sum, r1_tensor r, r1_tensor x, r1_tensor residual,
                   const float *w, float eps)
{
    size_t n = blockIdx.x, C = x.cols, step = 4 * (size_t)blockDim.x;
    const float *from = row_f32(x, n);
    float squares = 0.0f;
    for (size_t c = 4 * threadIdx.x; c < C; c += step) {
        four v = load_4(from + c, C - c);
        if (residual.data != NULL) {
            four branch = load_4(row_f32(residual, n) + c, C - c);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                v.x[i] += branch.x[i];
            }
            store_4(row_f32(sum, n) + c, v, C - c);
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            squares = fmaf(v.x[i], v.x[i], squares);
        }
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / (float)C + eps);
    if (threadIdx.x == 0) {
        row_f32(r, n)[0] = scale;
    }
    from = residual.data != NULL ? row_f32(sum, n) : from; /* a thread reads what it wrote */
    for (size_t c = 4 * threadIdx.x; c < C; c += step) {
        four v = load_4(from + c, C - c), u = load_4(w + c, C - c);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            v.x[i] = v.x[i] * scale * u.x[i];
        }
        store_4(row_f32(y, n) + c, v, C - c);
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
    size_t n = blockIdx.x, C = s.cols, step = 4 * (size_t)blockDim.x;
    float dot = 0.0f, scale = row_f32(r, n)[0];
    for (size_t c = 4 * threadIdx.x; c < C; c += step) {
        four v = load_4(row_f32(s, n) + c, C - c), u = load_4(w + c, C - c);
        four t = load_4(row_f32(dy, n) + c, C - c);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            dot = fmaf(t.x[i] * u.x[i], v.x[i], dot);
        }
    }
    float pull = -(scale * scale * (block_sum(dot) / (float)C));
    for (size_t c = 4 * threadIdx.x; c < C; c += step) {
        four v = load_4(row_f32(s, n) + c, C - c), u = load_4(w + c, C - c);
        four t = load_4(row_f32(dy, n) + c, C - c), base = {};
        if (add.data != NULL) {
            base = load_4(row_f32(add, n) + c, C - c);
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            v.x[i] = fmaf(scale, fmaf(v.x[i], pull, t.x[i] * u.x[i]), base.x[i]);
        }
        store_4(row_f32(ds, n) + c, v, C - c);
    }
}

/* ---- dw ---- */

constexpr unsigned COLUMNS = 8, TILE = 128, FETCHERS = 256, EACH = TILE * COLUMNS / FETCHERS;

/* This thread's part of the tile that begins at row n0: rows n0 + its number / 8 + 32 i of column c. */
static __device__ inline void
fetch_tile(float grad[EACH], float unit[EACH], const r1_tensor &dy, const r1_tensor &s, const r1_tensor &r,
           size_t n0, size_t c)
{
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
        size_t n = n0 + threadIdx.x / COLUMNS + i * (FETCHERS / COLUMNS);
        bool there = n < s.rows && c < s.cols;
        grad[i] = there ? row_f32(dy, n)[c] : 0.0f;
        unit[i] = there ? row_f32(s, n)[c] * row_f32(r, n)[0] : 0.0f;
    }
}

static __global__ void
rmsnorm_dw_kernel(float *dw, r1_tensor dy, r1_tensor s, r1_tensor r)
{
    SHARED(grads, float[TILE][COLUMNS]);
    SHARED(units, float[TILE][COLUMNS]); /* s r */
    float grad[EACH], unit[EACH], sum = 0.0f;
    unsigned column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS;
    size_t c = (size_t)blockIdx.x * COLUMNS + column;
    bool adds = threadIdx.x < COLUMNS && c < s.cols;
    if (adds) {
        sum = dw[c];
    }
    fetch_tile(grad, unit, dy, s, r, 0, c);
    for (size_t n0 = 0; n0 < s.rows; n0 += TILE) {
#pragma unroll
        for (unsigned i = 0; i < EACH; i++) {
            grads[row + i * (FETCHERS / COLUMNS)][column] = grad[i];
            units[row + i * (FETCHERS / COLUMNS)][column] = unit[i];
        }
        __syncthreads();
        fetch_tile(grad, unit, dy, s, r, n0 + TILE, c); /* arrives while the chain is added */
        unsigned rows = s.rows - n0 < TILE ? (unsigned)(s.rows - n0) : TILE;
#pragma unroll 16
        for (unsigned i = 0; adds && i < rows; i++) {
            sum = fmaf(grads[i][column], units[i][column], sum);
        }
        __syncthreads();
    }
    if (adds) {
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
        R1_TRY(LAUNCH(dev, st, rmsnorm_dw_kernel, grid_of(s->cols, COLUMNS), FETCHERS, 0,
                      (float *)dw->data, *dy, *s, *r));
    }
    return LAUNCH(dev, st, rmsnorm_bwd_kernel, grid_of(s->rows, 1), row_threads(s->cols), 0, *ds, *dy,
                  tensor_or_none(add), *s, *r, (const float *)w->data);
}
