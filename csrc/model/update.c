/* update.c - one optimiser step: total gradients, global norm, clip, AdamW, repack; router bias.
 *
 *   norm = sqrt(sum over parameters of sum g^2), float64, parameters in order
 *   g <- g min(1, max_norm / norm);  AdamW (Loshchilov & Hutter 2019) on float32 masters
 *
 * Weight decay acts on matrices only, never on norms and biases (our choice, the usual one). The
 * gradients themselves are left alone. A norm that is not finite changes nothing and is an error.
 */
#include <math.h>

#include "model.h"

/* The gradient of a parameter: its only accumulator, or their sum in `total` in order of use. */
static r1_code
grad_total(r1_model *m, const r1_param *p, void *total, r1_tensor *g, r1_status *st)
{
    *g = p->grad[0];
    if (p->uses == 1) {
        return R1_OK;
    }
    g->data = total;
    R1_TRY(m->ops->add(m->dev, g, &p->grad[0], &p->grad[1], st));
    for (size_t u = 2; u < p->uses; u++) {
        R1_TRY(m->ops->add(m->dev, g, g, &p->grad[u], st));
    }
    return R1_OK;
}

size_t
update_scratch(const r1_model *m)
{
    size_t largest = 0;
    for (size_t i = 0; i < m->n_params; i++) {
        const r1_param *p = &m->params[i];
        size_t n = p->uses > 1 ? p->E * p->O * p->I : 0; /* only matrices are shared */
        largest = n > largest ? n : largest;
    }
    return largest;
}

static r1_code
grad_norm(r1_model *m, void *total, double *norm, r1_status *st)
{
    double sum = 0.0;
    for (size_t i = 0; i < m->n_params; i++) {
        double one;
        r1_tensor g;
        if (!m->params[i].trained) {
            continue;
        }
        R1_TRY(grad_total(m, &m->params[i], total, &g, st));
        R1_TRY(m->ops->sum_squares(m->dev, &one, &g, st));
        sum += one;
    }
    *norm = sqrt(sum);
    if (!isfinite(*norm)) {
        return R1_FAIL(st, R1_ENUMERIC, "the gradient norm is %g; the weights are unchanged",
                       *norm);
    }
    return R1_OK;
}

static r1_code
step_all(r1_model *m, void *total, const r1_update_spec *spec, double norm, r1_status *st)
{
    double max_norm = (double)spec->max_norm;
    double clip = max_norm > 0.0 && norm > max_norm ? max_norm / norm : 1.0;
    if (norm * clip > 1e19) { /* its square would be infinite, and Adam's v for ever */
        return R1_FAIL(st, R1_ENUMERIC, "the gradient norm is %g; the weights are unchanged",
                       norm * clip);
    }
    r1_adamw_spec a = {.lr = spec->lr, .beta1 = spec->beta1, .beta2 = spec->beta2,
                       .eps = spec->eps, .grad_scale = (float)clip,
                       .step = m->step + 1};
    for (size_t i = 0; i < m->n_params; i++) {
        r1_param *p = &m->params[i];
        r1_tensor g;
        if (!p->trained) {
            continue;
        }
        a.weight_decay = p->weight != NULL ? spec->weight_decay : 0.0f;
        R1_TRY(grad_total(m, p, total, &g, st));
        R1_TRY(m->ops->adamw(m->dev, &p->value, &p->m, &p->v, &g, &a, st));
        if (p->weight != NULL) {
            R1_TRY(m->ops->weight_pack(m->dev, p->weight, st));
        }
    }
    m->step++;
    m->version++;
    return R1_OK;
}

r1_code
r1_model_update(r1_model *m, const r1_update_spec *spec, double *norm, r1_status *st)
{
    R1_TRY(r1_model_grads(m, st));
    R1_TRY(r1_model_moments(m, st));
    void *total = m->ops->mem_alloc(m->dev, update_scratch(m) * sizeof(float));
    if (total == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for the update");
    }
    r1_code code = grad_norm(m, total, norm, st);
    if (code == R1_OK) {
        code = step_all(m, total, spec, *norm, st);
    }
    m->ops->mem_free(m->dev, total);
    return code;
}

/* DeepSeek-V3 section 2.1.2, from the loads counted since the last zero_grad. */
r1_code
r1_model_router_update(r1_model *m, float rate, r1_status *st)
{
    for (size_t i = 0; i < m->config.L + m->config.mtp; i++) {
        const r1_layer *l = &m->layers[i];
        if (l->router_bias != NULL) {
            R1_TRY(m->ops->router_bias_update(m->dev, &l->router_bias->value, l->load, rate, st));
        }
    }
    m->version++;
    return R1_OK;
}
