/* linear.c - y = x W^T + b + s (x A^T) B^T, the only way the model multiplies with a weight.
 *
 *   dx = dy W + dt A,   dW += dy^T x,   db += sum_n dy[n]
 *   dB += dy^T t,   dA += dt^T x,   t = s x A^T,   dt = s dy B
 *
 * x (N, I), y (N, O), W (O, I) or E of them with the rows of expert e at offsets[e] .. (ops.h). A
 * (lora, I) and B (O, lora), one pair an expert, are the adapter (LoRA, Hu et al. 2021, eq. 3), where
 * there is one; s is m->adapter_scale, alpha / rank, and 0 leaves it out. t (N, lora) lives in the
 * temporaries of the pass and is computed again in backward. A weight that is not trained gets no
 * gradient and costs none. Rows do not meet, so an adapter keeps the exactness of what it adds to.
 */
#include "internal.h"

r1_code
weight_grad(r1_model *m, r1_param *w, size_t use, const r1_tensor *dy, const r1_tensor *x,
            const int32_t *offsets, const r1_units *units, r1_status *st)
{
    int accumulate = !w->cleared[use];
    w->cleared[use] = 0;
    return m->ops->matmul_tn(m->dev, &w->grad[use], dy, x, w->E, offsets, w->dtype, units,
                             accumulate, st);
}

static int
has_adapter(const r1_model *m, const r1_linear *l)
{
    return l->down != NULL && m->adapter_scale != 0.0f;
}

/* t = s x A^T */
static r1_code
adapter_down(r1_model *m, const r1_tensor *t, const r1_tensor *x, const r1_linear *l,
             const int32_t *offsets, r1_status *st)
{
    R1_TRY(m->ops->matmul_nt(m->dev, t, x, l->down->weight, NULL, offsets, 0, st));
    return m->ops->scale(m->dev, t, t, m->adapter_scale, st);
}

r1_code
linear_fwd(r1_model *m, const r1_tensor *y, const r1_tensor *x, const r1_linear *l,
           const int32_t *offsets, r1_status *st)
{
    const r1_tensor *bias = l->bias != NULL ? &l->bias->value : NULL;
    R1_TRY(m->ops->matmul_nt(m->dev, y, x, l->weight->weight, bias, offsets, 0, st));
    if (has_adapter(m, l)) {
        r1_tensor t = r1_rows(&m->temps->low, 0, x->rows);
        R1_TRY(adapter_down(m, &t, x, l, offsets, st));
        R1_TRY(m->ops->matmul_nt(m->dev, y, &t, l->up->weight, NULL, offsets, 1, st));
    }
    return R1_OK;
}

/* Gradients of A and B; *dx, where wanted, has dy W and gets dt A. */
static r1_code
adapter_bwd(r1_model *m, const r1_tensor *dx, const r1_tensor *dy, const r1_tensor *x,
            const r1_linear *l, const r1_sum_rows *rows, r1_status *st)
{
    const r1_ops *ops = m->ops;
    const int32_t *offsets = rows->offsets;
    r1_tensor t = r1_rows(&m->temps->low, 0, x->rows), dt = r1_rows(&m->temps->dlow, 0, x->rows);
    R1_TRY(adapter_down(m, &t, x, l, offsets, st));
    R1_TRY(weight_grad(m, l->up, 0, dy, &t, offsets, &rows->units, st));
    R1_TRY(ops->matmul_nn(m->dev, &dt, dy, l->up->weight, offsets, 0, st));
    R1_TRY(ops->scale(m->dev, &dt, &dt, m->adapter_scale, st));
    R1_TRY(weight_grad(m, l->down, 0, &dt, x, offsets, &rows->units, st));
    return dx != NULL ? ops->matmul_nn(m->dev, dx, &dt, l->down->weight, offsets, 1, st) : R1_OK;
}

r1_code
linear_bwd(r1_model *m, const r1_tensor *dx, const r1_tensor *dy, const r1_tensor *x,
           const r1_linear *l, const r1_sum_rows *rows, int accumulate, r1_status *st)
{
    const r1_ops *ops = m->ops;
    const int32_t *offsets = rows->offsets;
    r1_param *w = l->weight;
    if (w->trained) {
        R1_TRY(weight_grad(m, w, l->use, dy, x, offsets, &rows->units, st));
    }
    if (l->bias != NULL && l->bias->trained) {
        R1_TRY(ops->bias_bwd(m->dev, &l->bias->grad[0], dy, st));
    }
    if (dx != NULL) {
        R1_TRY(ops->matmul_nn(m->dev, dx, dy, w->weight, offsets, accumulate, st));
    }
    return has_adapter(m, l) ? adapter_bwd(m, dx, dy, x, l, rows, st) : R1_OK;
}
