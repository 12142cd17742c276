/* adamw.c - the update: the gradient's norm, and AdamW. Loshchilov & Hutter 2019, algorithm 2.
 *
 *   g' = grad_scale g
 *   m = beta1 m + (1 - beta1) g'
 *   v = beta2 v + (1 - beta2) g'^2
 *   p = p - lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay p)
 *
 * Tensors are contiguous (whole parameters, gradients, moments) and float32. The bias corrections
 * are computed once, in float64; root and quotients are correctly rounded. Our choice, and common
 * practice: lr multiplies the weight decay too, where the algorithm has its schedule factor only.
 *
 * A weight is updated and packed a panel at a time, while its rows are in cache.
 *
 * sum_squares is float64: blocks of 4,096 elements, 8 chains and a tree each, added in index order to
 * the value in memory, so threads and tensor size cannot change a bit. All in parallel over
 * blocks, or panels. */
#include "../options.h"
#include "cpu.h"
#include "panel.h"
#include "simd.h"
#include "split.h"

enum {
    BLOCK = 4096, /* elements of a partial sum, or of a task of the update */
    ROUND = 256,  /* partial sums that are held at a time */
    CHAINS = 8,
};

typedef struct {
    const float *g;
    size_t n;
    double partial[ROUND];
} square_job;

static void
square_block(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    square_job *job = ctx;
    const float *g = job->g + task * BLOCK;
    size_t n = split_end(job->n, task * BLOCK, BLOCK) - task * BLOCK, i = 0;
    double sum[CHAINS] = {0};
    for (; i + CHAINS <= n; i += CHAINS) {
        for (size_t j = 0; j < CHAINS; j++) {
            double x = g[i + j];
            sum[j] += x * x;
        }
    }
    for (size_t j = 0; i + j < n; j++) {
        double x = g[i + j];
        sum[j] += x * x;
    }
    job->partial[task] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) +
                         ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

r1_code
TIER(sum_squares)(r1_dev *dev, double *sum, const r1_tensor *g, r1_status *st)
{
    (void)st;
    assert(g->ld == g->cols || g->rows <= 1);
    size_t n = g->rows * g->cols, step = (size_t)ROUND * BLOCK;
    double total = *sum;
    for (size_t first = 0; first < n; first += step) {
        square_job job = {.g = (const float *)g->data + first,
                          .n = split_end(n, first, step) - first};
        size_t blocks = split_count(job.n, BLOCK);
        r1_pool_run(dev->pool, blocks, square_block, &job);
        for (size_t i = 0; i < blocks; i++) {
            total += job.partial[i];
        }
    }
    *sum = total;
    return R1_OK;
}

typedef struct {
    float *p, *m, *v;
    const float *g;
    size_t n;
    const r1_adamw_spec *spec;
    float m_scale, v_scale; /* 1 / (1 - beta^step) */
    const r1_weight *w;     /* weight_adamw: the weight, p its first row, and that row's panel */
    size_t panel;
} adamw_job;

/* Elements [first, end) */
static void
adamw_span(const adamw_job *job, size_t first, size_t end)
{
    const r1_adamw_spec *spec = job->spec;
    vf beta1 = vf_set1(spec->beta1), rest1 = vf_set1(1.0f - spec->beta1);
    vf beta2 = vf_set1(spec->beta2), rest2 = vf_set1(1.0f - spec->beta2);
    vf minus_lr = vf_set1(-spec->lr), decay = vf_set1(spec->weight_decay);
    for (size_t i = first; i < end; i += W) {
        size_t left = end - i;
        vf g = vf_load_left(job->g + i, left) * vf_set1(spec->grad_scale);
        vf m = vf_fma(beta1, vf_load_left(job->m + i, left), rest1 * g);
        vf v = vf_fma(beta2, vf_load_left(job->v + i, left), rest2 * (g * g));
        vf p = vf_load_left(job->p + i, left);
        vf root = vf_sqrt(v * vf_set1(job->v_scale)) + vf_set1(spec->eps);
        vf step = vf_fma(decay, p, m * vf_set1(job->m_scale) / root);
        vf_store_left(job->m + i, m, left);
        vf_store_left(job->v + i, v, left);
        vf_store_left(job->p + i, vf_fma(minus_lr, step, p), left);
    }
}

static void
adamw_block(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const adamw_job *job = ctx;
    adamw_span(job, task * BLOCK, split_end(job->n, task * BLOCK, BLOCK));
}

static void
adamw_panel(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const adamw_job *job = ctx;
    size_t row0 = panel_find(job->w, job->panel).first;
    panel_span rows = panel_find(job->w, job->panel + task);
    size_t first = (rows.first - row0) * job->w->I;
    adamw_span(job, first, first + rows.count * job->w->I);
    panel_write(job->w, job->panel + task, job->p + first, rows.count);
}

static adamw_job
adamw_open(float *p, const r1_tensor *m, const r1_tensor *v, const r1_tensor *g,
           const r1_adamw_spec *spec)
{
    size_t n = g->rows * g->cols;
    assert(m->rows * m->cols == n && v->rows * v->cols == n && spec->step >= 1);
    assert(g->rows <= 1 || (g->ld == g->cols && m->ld == m->cols && v->ld == v->cols));
    return (adamw_job){.p = p, .m = m->data, .v = v->data, .g = g->data, .n = n, .spec = spec,
                       .m_scale = adamw_correction(spec->beta1, spec->step),
                       .v_scale = adamw_correction(spec->beta2, spec->step)};
}

r1_code
TIER(adamw)(r1_dev *dev, const r1_tensor *p, const r1_tensor *m, const r1_tensor *v,
            const r1_tensor *g, const r1_adamw_spec *spec, r1_status *st)
{
    (void)st;
    assert(p->rows == g->rows && p->cols == g->cols && (p->rows <= 1 || p->ld == p->cols));
    adamw_job job = adamw_open(p->data, m, v, g, spec);
    r1_pool_run(dev->pool, split_count(job.n, BLOCK), adamw_block, &job);
    return R1_OK;
}

r1_code
TIER(weight_adamw)(r1_dev *dev, r1_weight *w, size_t row0, const r1_tensor *m, const r1_tensor *v,
                   const r1_tensor *g, const r1_adamw_spec *spec, r1_status *st)
{
    (void)st;
    assert(w->master != NULL && g->cols == w->I && row0 + g->rows <= w->E * w->O);
    size_t o = row0 % w->O; /* where in its matrix the part begins */
    assert(g->rows == w->E * w->O || (o % R1_PANEL == 0 && o + g->rows <= w->O));
    adamw_job job = adamw_open(w->master + row0 * w->I, m, v, g, spec);
    job.w = w;
    job.panel = row0 / w->O * count_panels(w->O) + o / R1_PANEL;
    size_t panels = g->rows > w->O ? w->E * count_panels(w->O) : count_panels(g->rows);
    r1_pool_run(dev->pool, panels, adamw_panel, &job);
    return R1_OK;
}
