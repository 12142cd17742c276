/* score_loss.cu - losses of reward models on scores (B, 1).
 *
 *   pairwise   rows 2i chosen, 2i + 1 rejected, x = s[2i] - s[2i+1] (Bradley & Terry 1952):
 *              loss[2i] = -log sigmoid(x) scale,  loss[2i+1] = 0
 *              dscore[2i] = -sigmoid(-x) scale,   dscore[2i+1] = sigmoid(-x) scale
 *   pointwise  y = label (B, 1): loss = -(y log sigmoid(s) + (1 - y) log sigmoid(-s)) scale
 *              dscore = (sigmoid(s) - y) scale
 *
 * Both use -log sigmoid(x) = max(-x, 0) + log(1 + exp(-|x|)), which cannot overflow. A thread has a row or a
 * pair; no sums: the CPU's bits. */
#include "math.cuh"

constexpr unsigned SCORERS = 128;

/* -log sigmoid(x) */
static __device__ float
softplus_minus(float x)
{
    float size = x < 0.0f ? -x : x;
    return (x < 0.0f ? size : 0.0f) + f_log(1.0f + f_exp(-size));
}

static __global__ void
pairwise_kernel(r1_tensor loss, r1_tensor dscore, r1_tensor score, float scale)
{
    size_t b = 2 * ((size_t)blockIdx.x * SCORERS + threadIdx.x);
    if (b >= score.rows) {
        return;
    }
    float x = row_f32(score, b)[0] - row_f32(score, b + 1)[0], slope = f_sigmoid(-x) * scale;
    row_f32(loss, b)[0] = softplus_minus(x) * scale;
    row_f32(loss, b + 1)[0] = 0.0f;
    row_f32(dscore, b)[0] = -slope;
    row_f32(dscore, b + 1)[0] = slope;
}

static __global__ void
pointwise_kernel(r1_tensor loss, r1_tensor dscore, r1_tensor score, r1_tensor label, float scale)
{
    size_t b = (size_t)blockIdx.x * SCORERS + threadIdx.x;
    if (b >= score.rows) {
        return;
    }
    float s = row_f32(score, b)[0], y = row_f32(label, b)[0];
    row_f32(loss, b)[0] = (softplus_minus(s) + (1.0f - y) * s) * scale;
    row_f32(dscore, b)[0] = (f_sigmoid(s) - y) * scale;
}

r1_code
CUDA(score_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscore, const r1_tensor *score,
                 const r1_tensor *label, r1_score_form form, float scale, r1_status *st)
{
    if (form == R1_SCORE_PAIRWISE) {
        assert(score->rows % 2 == 0);
        return LAUNCH(dev, st, pairwise_kernel, grid_of(score->rows / 2, SCORERS), SCORERS, 0, *loss,
                      *dscore, *score, scale);
    }
    return LAUNCH(dev, st, pointwise_kernel, grid_of(score->rows, SCORERS), SCORERS, 0, *loss, *dscore,
                  *score, *label, scale);
}
