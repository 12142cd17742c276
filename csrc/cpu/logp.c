/* logp.c - log-probability and entropy of a chunk of logits, and their gradient.
 *
 *   z = logits / temperature on the support S (support.h), united with the target
 *   lse = log sum_S exp(z),  logp = z[id] - lse,  p = exp(z - lse),  entropy = sum_S p (lse - z)
 *   dlogits = (dlogp (1[v = id] - p) + dentropy p (lse - z - entropy)) / temperature,  0 outside S
 *
 * logits (M, V), ids (M), logp, entropy, lse (M, 1). The support is constant under differentiation
 * and is found again from the logits by backward. Temperature 0 is the plain softmax of the logits.
 *
 * Order of sums: per tile of 1,024 ids (max m, s = sum exp(z - m) in W chains and a tree), tiles
 * merged in order by M' = max(M, m), S = S exp(M - M') + s exp(m - M'); the entropy adds tile sums
 * in order. It sums p (lse - z), which has no cancellation, instead of lse - sum p z.
 * A row without gradient (dlogp and dentropy 0) is filled with 0 and reaches no exp.
 */
#include "split.h"
#include "support.h"

typedef struct {
    const r1_tensor *logp, *entropy, *lse, *logits, *dlogp, *dentropy;
    const int32_t *ids;
    row_filter filter;
    uint64_t *scratch; /* (threads, V) */
    size_t rows;       /* of a task */
} logp_job;

/* One worker's keys; the sampler's V floats fit in the same place. */
size_t
TIER(logp_scratch)(const r1_dev *dev, size_t V)
{
    return r1_pool_threads(dev->pool) * V * sizeof(uint64_t);
}

static float
row_lse(const row_view *row)
{
    float M = -__builtin_inff(), S = 0.0f;
    for (size_t first = 0; first < row->V; first += TILE_IDS) {
        size_t end = row->V - first < TILE_IDS ? row->V : first + TILE_IDS;
        float m = row_max(row, first, end);
        if (m == -__builtin_inff()) {
            continue; /* nothing of this tile is in the support */
        }
        float s = row_tile_sum(row, first, m), larger = f_max(M, m);
        S = S * f_exp(M - larger) + s * f_exp(m - larger);
        M = larger;
    }
    return M + f_log(S);
}

static float
row_entropy(const row_view *row, float lse)
{
    float entropy = 0.0f;
    for (size_t first = 0; first < row->V; first += TILE_IDS) {
        size_t end = row->V - first < TILE_IDS ? row->V : first + TILE_IDS;
        vf sum = {0};
        for (size_t v = first; v < end; v += W) {
            vf minus_logp = vf_set1(lse) - row_z(row, v);
            vf p = vf_exp(-minus_logp);
            sum = sum + vf_select(p == vf_set1(0.0f), p, p * minus_logp);
        }
        entropy += vf_sum(sum);
    }
    return entropy;
}

static void
logp_fwd_task(void *ctx, size_t task, size_t worker)
{
    const logp_job *job = ctx;
    size_t V = job->logits->cols;
    size_t begin = task * job->rows, end = split_end(job->logits->rows, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        const float *logits = row_f32(job->logits, n);
        int32_t id = job->ids[n];
        row_view row = row_open(logits, V, &job->filter, id, job->scratch + worker * V);
        float lse = row_lse(&row);
        *row_f32(job->lse, n) = lse;
        *row_f32(job->logp, n) = logits[id] * row.inverse - lse;
        if (job->entropy != NULL) {
            *row_f32(job->entropy, n) = row_entropy(&row, lse);
        }
    }
}

r1_code
TIER(logp_fwd)(r1_dev *dev, const r1_tensor *logp, const r1_tensor *entropy, const r1_tensor *lse,
               const r1_tensor *logits, const int32_t *ids, const r1_sampling *how, void *scratch,
               r1_status *st)
{
    (void)st;
    logp_job job = {.logp = logp, .entropy = entropy, .lse = lse, .logits = logits, .ids = ids,
                    .filter = row_filter_of(how, logits->cols), .scratch = scratch,
                    .rows = split_rows(logits->cols * 4)};
    r1_pool_run(dev->pool, split_count(logits->rows, job.rows), logp_fwd_task, &job);
    return R1_OK;
}

static void
row_gradient(float *logits, const row_view *row, float lse, float dlogp, float dentropy,
             float entropy)
{
    vf scale = vf_set1(row->inverse);
    for (size_t v = 0; v < row->V; v += W) {
        vf minus_logp = vf_set1(lse) - row_z(row, v);
        vf p = vf_exp(-minus_logp);
        vf slope = vf_set1(dentropy) * (minus_logp - vf_set1(entropy)) - vf_set1(dlogp);
        vf d = vf_select(p == vf_set1(0.0f), p, p * slope);
        vi hit = vi_iota() + vi_set1((int32_t)v) == vi_set1(row->target);
        d = d + vf_select(hit, vf_set1(dlogp), vf_set1(0.0f));
        vf_store_left(logits + v, d * scale, row->V - v);
    }
}

static void
logp_bwd_task(void *ctx, size_t task, size_t worker)
{
    const logp_job *job = ctx;
    size_t V = job->logits->cols;
    size_t begin = task * job->rows, end = split_end(job->logits->rows, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        float *logits = row_f32(job->logits, n);
        float dlogp = *row_f32(job->dlogp, n);
        float dentropy = job->dentropy != NULL ? *row_f32(job->dentropy, n) : 0.0f;
        if (dlogp == 0.0f && dentropy == 0.0f) {
            memset(logits, 0, V * sizeof(float));
            continue;
        }
        float entropy = dentropy != 0.0f ? *row_f32(job->entropy, n) : 0.0f;
        row_view row = row_open(logits, V, &job->filter, job->ids[n], job->scratch + worker * V);
        row_gradient(logits, &row, *row_f32(job->lse, n), dlogp, dentropy, entropy);
    }
}

r1_code
TIER(logp_bwd)(r1_dev *dev, const r1_tensor *logits, const r1_tensor *dlogp,
               const r1_tensor *dentropy, const r1_tensor *entropy, const r1_tensor *lse,
               const int32_t *ids, const r1_sampling *how, void *scratch, r1_status *st)
{
    (void)st;
    logp_job job = {.entropy = entropy, .lse = lse, .logits = logits, .dlogp = dlogp,
                    .dentropy = dentropy, .ids = ids,
                    .filter = row_filter_of(how, logits->cols), .scratch = scratch,
                    .rows = split_rows(logits->cols * 4)};
    r1_pool_run(dev->pool, split_count(logits->rows, job.rows), logp_bwd_task, &job);
    return R1_OK;
}
