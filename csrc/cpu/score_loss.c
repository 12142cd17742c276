/* score_loss.c - losses of reward models on scores (B, 1).
 *
 *   pairwise   rows 2i chosen, 2i + 1 rejected, x = s[2i] - s[2i+1] (Bradley & Terry 1952):
 *              loss[2i] = -log sigmoid(x) scale,  loss[2i+1] = 0
 *              dscore[2i] = -sigmoid(-x) scale,   dscore[2i+1] = sigmoid(-x) scale
 *   pointwise  y = label (B, 1): loss = -(y log sigmoid(s) + (1 - y) log sigmoid(-s)) scale
 *              dscore = (sigmoid(s) - y) scale
 *
 * DeepSeek-R1 names both kinds and prints neither formula: these are the usual ones, our choice.
 * Both use -log sigmoid(x) = max(-x, 0) + log(1 + exp(-|x|)), which cannot overflow. A score per
 * sequence: the arrays are short, so one thread.
 */
#include "cpu.h"
#include "simd.h"

/* -log sigmoid(x) */
static float
softplus_minus(float x)
{
    float size = x < 0.0f ? -x : x;
    return (x < 0.0f ? size : 0.0f) + f_log(1.0f + f_exp(-size));
}

r1_code
TIER(score_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscore,
                 const r1_tensor *score, const r1_tensor *label, r1_score_form form, float scale,
                 r1_status *st)
{
    (void)dev;
    (void)st;
    if (form == R1_SCORE_PAIRWISE) {
        assert(score->rows % 2 == 0);
        for (size_t b = 0; b < score->rows; b += 2) {
            float x = *row_f32(score, b) - *row_f32(score, b + 1);
            float slope = f_sigmoid(-x) * scale;
            *row_f32(loss, b) = softplus_minus(x) * scale;
            *row_f32(loss, b + 1) = 0.0f;
            *row_f32(dscore, b) = -slope;
            *row_f32(dscore, b + 1) = slope;
        }
        return R1_OK;
    }
    for (size_t b = 0; b < score->rows; b++) {
        float s = *row_f32(score, b), y = *row_f32(label, b);
        *row_f32(loss, b) = (softplus_minus(s) + (1.0f - y) * s) * scale;
        *row_f32(dscore, b) = (f_sigmoid(s) - y) * scale;
    }
    return R1_OK;
}
