/* rope.c - rotary position embedding, in place. Su et al. 2021, eq. 34.
 *
 *   (a, b) -> (a cos - b sin, b cos + a sin)   for pair i of each head at position pos[n]
 *
 * x (N, H D); the rotated columns are [first, first + Dr) of every head; table (T_max, Dr)
 * holds cos (Dr / 2) then sin (Dr / 2) of a position, both times a factor that is 1 but for YaRN.
 * Pairs are (2i, 2i + 1) when interleaved, else (i, i + Dr / 2); every element keeps its place.
 * The inverse rotates by -sin: the transpose, which is the backward whatever the factor. Each
 * result is a product and a fused multiply-add. In parallel over rows; rows and heads do not
 * meet. */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    const r1_tensor *x, *table;
    const int32_t *pos;
    size_t H, first, half;
    int interleaved;
    float sign; /* of sin */
    size_t step;
} rope_job;

/* Element i of the pairs is x[i stride] and x[i stride + apart]. The strides are constants at each
 * call, so that the compiler makes vectors of the loop. */
static inline void
rotate(float *x, const float *cosine, const float *sine, float sign, size_t half, size_t stride,
       size_t apart)
{
    for (size_t i = 0; i < half; i++) {
        float a = x[i * stride], b = x[i * stride + apart], s = sign * sine[i];
        x[i * stride] = f_fma(a, cosine[i], -(b * s));
        x[i * stride + apart] = f_fma(b, cosine[i], a * s);
    }
}

static void
rotate_rows(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const rope_job *job = ctx;
    size_t n0 = task * job->step, n1 = split_end(job->x->rows, n0, job->step);
    size_t D = job->x->cols / job->H;
    for (size_t n = n0; n < n1; n++) {
        assert(job->pos[n] >= 0 && (size_t)job->pos[n] < job->table->rows);
        const float *cosine = row_f32(job->table, (size_t)job->pos[n]);
        const float *sine = cosine + job->half;
        for (size_t h = 0; h < job->H; h++) {
            float *x = row_f32(job->x, n) + h * D + job->first;
            if (job->interleaved) {
                rotate(x, cosine, sine, job->sign, job->half, 2, 1);
            } else {
                rotate(x, cosine, sine, job->sign, job->half, 1, job->half);
            }
        }
    }
}

r1_code
TIER(rope)(r1_dev *dev, const r1_tensor *x, const r1_tensor *table, const int32_t *pos, size_t H,
           size_t first, size_t Dr, int interleaved, int inverse, r1_status *st)
{
    (void)st;
    assert(H > 0 && x->cols % H == 0 && Dr % 2 == 0 && first + Dr <= x->cols / H);
    assert(table->cols == Dr);
    rope_job job = {x, table, pos, H, first, Dr / 2, interleaved, inverse ? -1.0f : 1.0f,
                    split_rows(H * Dr)};
    r1_pool_run(dev->pool, split_count(x->rows, job.step), rotate_rows, &job);
    return R1_OK;
}
