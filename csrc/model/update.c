/* update.c - one optimiser step: total gradients, global norm, clip, AdamW, repack; router bias.
 *
 *   norm = sqrt(sum over parameters of sum g^2), float64, parameters in order
 *   g <- g min(1, max_norm / norm);  AdamW (Loshchilov & Hutter 2019) on float32 masters
 *
 * Weight decay acts on matrices only, never on norms and biases (our choice, the usual one). The
 * gradients themselves are left alone. A norm that is not finite changes nothing and is an error. With
 * config.offload the moments lie in host memory and come to the device part by part.
 */
#include <math.h>

#include "internal.h"

/* A gradient with several accumulators is added up so many rows at a time: few enough that the sum
 * stays in cache, and at any width whole blocks of sum_squares, whose bits then do not change, and
 * whole panels of a weight. */
enum { PART_ROWS = 4096, PART_ELEMENTS = 1 << 17, BLOCK_ELEMENTS = 4096, PANEL_ROWS = 32 };
enum { MOMENT_ELEMENTS = 1 << 22 }; /* of off-loaded moments, stepped in one go: 16 MiB of m and of v */

static size_t
part_rows(const r1_param *p)
{
    size_t rows = param_rows(p), part = PART_ROWS;
    if (p->uses == 1) {
        return rows;
    }
    while (part > PANEL_ROWS && part / 2 * p->I >= PART_ELEMENTS &&
           part / 2 * p->I % BLOCK_ELEMENTS == 0) {
        part /= 2;
    }
    return rows < part ? rows : part;
}

/* Rows of a part: all that grad_part adds up at a time; of off-loaded moments so few that two buffers of
 * them are small, whole panels of one matrix. */
static size_t
step_rows(const r1_model *m, const r1_param *p, size_t r0)
{
    size_t left = param_rows(p) - r0, rows = part_rows(p), few = MOMENT_ELEMENTS / p->I;
    if (m->config.offload && p->O > 0) {
        few = few > PANEL_ROWS ? few / PANEL_ROWS * PANEL_ROWS : PANEL_ROWS;
        rows = few < rows ? few : rows;
        rows = p->O - r0 % p->O < rows ? p->O - r0 % p->O : rows;
    }
    return left < rows ? left : rows;
}

/* Rows [r0, r0 + n) of a parameter's gradient: of its only accumulator, or of their sum in order of
 * use, which `total` holds. */
static r1_code
grad_part(r1_model *m, const r1_param *p, size_t r0, size_t n, float *total, r1_tensor *g,
          r1_status *st)
{
    *g = r1_rows(&p->grad[0], r0, n);
    for (size_t u = 1; u < p->uses; u++) {
        r1_tensor sum = r1_f32(total, n, p->I), more = r1_rows(&p->grad[u], r0, n);
        R1_TRY(m->ops->add(m->dev, &sum, g, &more, st));
        *g = sum;
    }
    return R1_OK;
}

/* The memory of an update, on the device: a float64 sum a parameter, and the largest part's total; of
 * off-loaded moments two buffers, each for m and v of the largest part. */
typedef struct {
    double *sums;
    float *total, *moments[2];
} update_memory;

static update_memory
memory_place(const r1_model *m, r1_arena *a)
{
    size_t largest = 0, widest = 0, sums = m->config.frozen ? 0 : m->n_params;
    for (size_t i = 0; i < m->n_params; i++) {
        const r1_param *p = &m->params[i];
        size_t n = p->uses > 1 && p->trained ? part_rows(p) * p->I : 0;
        largest = n > largest ? n : largest;
        size_t away = m->config.offload && p->trained ? step_rows(m, p, 0) * p->I : 0;
        widest = away > widest ? away : widest;
    }
    update_memory memory;
    memory.sums = r1_arena_push(a, sums, sizeof *memory.sums);
    memory.total = r1_arena_push(a, largest, sizeof *memory.total);
    memory.moments[0] = r1_arena_push(a, 2 * widest, sizeof *memory.moments[0]);
    memory.moments[1] = r1_arena_push(a, 2 * widest, sizeof *memory.moments[1]);
    return memory;
}

size_t
update_bytes(const r1_model *m)
{
    r1_arena a = {0};
    memory_place(m, &a);
    return a.used;
}

/* The sums start as 0. */
static r1_code
grad_norm(r1_model *m, const update_memory *memory, double *norm, r1_status *st)
{
    for (size_t i = 0; i < m->n_params; i++) {
        const r1_param *p = &m->params[i];
        for (size_t r0 = 0, n; p->trained && r0 < p->value.rows; r0 += n) {
            r1_tensor g;
            n = p->value.rows - r0 < part_rows(p) ? p->value.rows - r0 : part_rows(p);
            R1_TRY(grad_part(m, p, r0, n, memory->total, &g, st));
            R1_TRY(m->ops->sum_squares(m->dev, &memory->sums[i], &g, st));
        }
    }
    double *sums = r1_alloc(m->n_params, sizeof *sums), sum = 0.0;
    if (sums == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for the norms of %zu gradients", m->n_params);
    }
    r1_code code =
        m->ops->mem_download(m->dev, sums, memory->sums, m->n_params * sizeof *sums, st);
    for (size_t i = 0; code == R1_OK && i < m->n_params; i++) {
        sum += sums[i];
    }
    r1_free(sums);
    R1_TRY(code);
    *norm = sqrt(sum);
    if (!isfinite(*norm)) {
        return R1_FAIL(st, R1_ENUMERIC, "the gradient norm is %g; the weights are unchanged",
                       *norm);
    }
    return R1_OK;
}

/* ---- the step, part by part ------------------------------------------------------------------- */

/* Rows [r0, r0 + n) of parameter i, stepped in one go. */
typedef struct {
    size_t i, r0, n;
} update_part;

/* The part after one that ended with row `end` of parameter i; 0: there is none. */
static int
find_part(const r1_model *m, size_t i, size_t end, update_part *part)
{
    for (; i < m->n_params; i++, end = 0) {
        const r1_param *p = &m->params[i];
        if (p->trained && end < p->value.rows) {
            *part = (update_part){i, end, step_rows(m, p, end)};
            return 1;
        }
    }
    return 0;
}

/* The moments of a part, m and then v, between host memory and a buffer. */
static r1_code
move_moments(r1_model *m, const update_part *part, float *buffer, int store, r1_status *st)
{
    const r1_param *p = &m->params[part->i];
    size_t n = part->n * p->I, bytes = n * sizeof(float);
    for (int k = 0; k < 2; k++) {
        r1_tensor host = r1_rows(k == 0 ? &p->m : &p->v, part->r0, part->n);
        float *here = buffer + (size_t)k * n;
        R1_TRY(store ? m->ops->mem_store(m->dev, host.data, here, bytes, st)
                     : m->ops->mem_fetch(m->dev, here, host.data, bytes, st));
    }
    return R1_OK;
}

/* buffer: where its off-loaded moments are; NULL: they are in their place. */
static r1_code
step_part(r1_model *m, const update_part *part, float *buffer, float *total, const r1_update_spec *spec,
          r1_adamw_spec *a, r1_status *st)
{
    r1_param *p = &m->params[part->i];
    r1_tensor m1 = r1_rows(&p->m, part->r0, part->n), m2 = r1_rows(&p->v, part->r0, part->n), g;
    if (buffer != NULL) {
        m1.data = buffer;
        m2.data = buffer + part->n * p->I;
    }
    a->weight_decay = p->weight != NULL ? spec->weight_decay : 0.0f;
    R1_TRY(grad_part(m, p, part->r0, part->n, total, &g, st));
    return p->weight != NULL
               ? m->ops->weight_adamw(m->dev, p->weight, part->r0, &m1, &m2, &g, a, st)
               : m->ops->adamw(m->dev, &p->value, &m1, &m2, &g, a, st);
}

/* Off-loaded moments go through two buffers: while a part is stepped, the one before goes back to host
 * memory and the next comes. Copies are done in order, so a buffer is stored before it is filled anew. */
static r1_code
step_parts(r1_model *m, const update_memory *memory, const r1_update_spec *spec, r1_adamw_spec *a,
           r1_status *st)
{
    update_part part = {0}, before = {0}, next = {0};
    int away = m->config.offload, more = find_part(m, 0, 0, &part);
    R1_TRY(away && more ? move_moments(m, &part, memory->moments[0], 0, st) : R1_OK);
    for (size_t k = 0; more; k++) {
        float *here = memory->moments[k % 2], *other = memory->moments[(k + 1) % 2];
        more = find_part(m, part.i, part.r0 + part.n, &next);
        if (away) {
            R1_TRY(m->ops->mem_join(m->dev, 0, st));
            R1_TRY(k > 0 ? move_moments(m, &before, other, 1, st) : R1_OK);
            R1_TRY(more ? move_moments(m, &next, other, 0, st) : R1_OK);
        }
        R1_TRY(step_part(m, &part, away ? here : NULL, memory->total, spec, a, st));
        if (away && !more) {
            R1_TRY(move_moments(m, &part, here, 1, st));
        }
        before = part;
        part = next;
    }
    return away ? m->ops->mem_join(m->dev, 1, st) : R1_OK; /* the host may read them now */
}

static r1_code
step_all(r1_model *m, const update_memory *memory, const r1_update_spec *spec, double norm, r1_status *st)
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
    R1_TRY(step_parts(m, memory, spec, &a, st));
    m->step++;
    m->version++;
    return R1_OK;
}

r1_code
r1_model_update(r1_model *m, const r1_update_spec *spec, double *norm, r1_status *st)
{
    R1_TRY(r1_model_grads(m, st));
    R1_TRY(r1_model_moments(m, st));
    for (size_t i = 0; i < m->n_params; i++) {
        R1_TRY(param_settle_all(m, &m->params[i], st));
    }
    r1_arena a = {.size = update_bytes(m)};
    a.base = m->ops->mem_alloc(m->dev, a.size, st);
    if (a.base == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for the update");
    }
    update_memory memory = memory_place(m, &a);
    r1_code code = grad_norm(m, &memory, norm, st);
    if (code == R1_OK) {
        code = step_all(m, &memory, spec, *norm, st);
    }
    m->ops->mem_free(m->dev, a.base);
    return code;
}

/* DeepSeek-V3 section 2.1.2, from the loads counted since the last zero_grad. */
r1_code
r1_model_router_update(r1_model *m, float rate, r1_status *st)
{
    R1_TRY(model_trainable(m, "router to move", st));
    for (size_t i = 0; i < m->config.L + m->config.mtp; i++) {
        const r1_layer *l = &m->layers[i];
        if (l->router_bias != NULL) {
            R1_TRY(m->ops->router_bias_update(m->dev, &l->router_bias->value, l->load, rate, st));
        }
    }
    m->version++;
    return R1_OK;
}
