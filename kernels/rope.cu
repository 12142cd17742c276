/* rope.cu - rotary position embedding, in place. Su et al. 2021, eq. 34.
 *
 *   (a, b) -> (a cos - b sin, b cos + a sin)   for pair i of each head at position pos[n]
 *
 * x (N, H D); the rotated columns are [first, first + Dr) of every head; table (T_max, Dr)
 * holds cos (Dr / 2) then sin (Dr / 2) of a position, both times a factor that is 1 but for YaRN.
 * Pairs are (2i, 2i + 1) when interleaved, else (i, i + Dr / 2); every element keeps its place.
 * The inverse rotates by -sin: the transpose, which is the backward whatever the factor. Each
 * result is a product and a fused multiply-add. A row has a block, a pair a thread. */
#include "math.cuh"

static __global__ void
rope_kernel(r1_tensor x, r1_tensor table, const int32_t *pos, unsigned H, unsigned first, unsigned half,
            int interleaved, float sign)
{
    size_t n = blockIdx.x, D = x.cols / H;
    const float *cosine = row_f32(table, (size_t)pos[n]), *sine = cosine + half;
    for (unsigned j = threadIdx.x; j < H * half; j += blockDim.x) {
        unsigned h = j / half, i = j % half;
        float *p = row_f32(x, n) + h * D + first + (interleaved ? 2 * i : i);
        float *q = p + (interleaved ? 1 : half);
        float a = *p, b = *q, s = sign * sine[i];
        *p = fmaf(a, cosine[i], -(b * s));
        *q = fmaf(b, cosine[i], a * s);
    }
}

r1_code
CUDA(rope)(r1_dev *dev, const r1_tensor *x, const r1_tensor *table, const int32_t *pos, size_t H,
           size_t first, size_t Dr, int interleaved, int inverse, r1_status *st)
{
    assert(H > 0 && x->cols % H == 0 && Dr % 2 == 0 && first + Dr <= x->cols / H);
    assert(table->cols == Dr);
    return LAUNCH(dev, st, rope_kernel, Dr == 0 ? 0 : grid_of(x->rows, 1), row_threads(H * Dr / 2), 0, *x,
                  *table, pos, (unsigned)H, (unsigned)first, (unsigned)(Dr / 2), interleaved,
                  inverse ? -1.0f : 1.0f);
}
