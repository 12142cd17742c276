/* linear.c - y = x W^T + b, the only way the model multiplies with a weight.
 *
 *   dx = dy W,   dW += dy^T x,   db += sum_n dy[n]
 *
 * x (N, I), y (N, O), W (O, I) or E of them with the rows of expert e at offsets[e] .. (ops.h).
 */
#include "model.h"

r1_code
linear_fwd(r1_model *m, const r1_tensor *y, const r1_tensor *x, const r1_linear *l,
           const int32_t *offsets, r1_status *st)
{
    const r1_tensor *bias = l->bias != NULL ? &l->bias->value : NULL;
    return m->ops->matmul_nt(m->dev, y, x, l->weight->weight, bias, offsets, 0, st);
}

r1_code
linear_bwd(r1_model *m, const r1_tensor *dx, const r1_tensor *dy, const r1_tensor *x,
           const r1_linear *l, const int32_t *offsets, int accumulate, r1_status *st)
{
    const r1_ops *ops = m->ops;
    r1_param *w = l->weight;
    R1_TRY(ops->matmul_tn(m->dev, &w->grad[l->use], dy, x, w->E, offsets, w->dtype,
                          st));
    if (l->bias != NULL) {
        R1_TRY(ops->bias_bwd(m->dev, &l->bias->grad[0], dy, st));
    }
    if (dx != NULL) {
        R1_TRY(ops->matmul_nn(m->dev, dx, dy, w->weight, offsets, accumulate, st));
    }
    return R1_OK;
}
