/* router.c - which experts a token goes to.  DeepSeek-V3, eq. 12-16, and the Gate of its code.
 *
 *   scores = sigmoid(logits) or softmax(logits)          (N, E)
 *   choice = scores + bias                               bias steers the choice alone
 *   group score = sum of the two largest choices of the group (the largest alone without a bias)
 *   the best top_groups groups keep their experts; idx = the K largest choices, descending
 *   weight = scores[idx] [/ (sum + 1e-20)] scale         (N, K)
 *
 * Every tie goes to the lowest index. Saved: scores, idx. Backward, with idx constant:
 *
 *   g_k = scale dweight_k, or normalised scale (dweight_k - sum_j dweight_j s_j / sum) / sum
 *   ds = dscores, with g_k added at idx_k
 *   sigmoid: dlogits = ds s (1 - s)      softmax: dlogits = s (ds - sum_e ds s)
 *
 * Sums over K are chains, sums over E are W chains and a tree. A row is one task's alone.
 *
 * The load counts and the bias update (section 2.1.2) are here too; the balance loss: balance.c.
 */
#include "cpu.h"
#include "simd.h"
#include "split.h"

typedef struct {
    int32_t *idx_out;
    const int32_t *idx;
    const r1_tensor *weight, *scores, *logits, *bias;
    const r1_tensor *dlogits, *dweight, *dscores;
    const r1_router_spec *spec;
    size_t rows; /* of a task */
} router_job;

/* Both fill whole vectors of s; what is behind the E scores is no score. */
static void
row_softmax(float *s, const float *x, size_t E)
{
    const vf none = vf_set1(-__builtin_inff());
    vf m = none, sum = {0};
    for (size_t e = 0; e < E; e += W) {
        vf y = vf_load_left(x + e, E - e);
        m = vf_max(m, E - e < W ? vf_select(vi_first(E - e), y, none) : y);
    }
    m = vf_set1(vf_hmax(m));
    for (size_t e = 0; e < E; e += W) {
        vf y = vf_exp(vf_load_left(x + e, E - e) - m);
        y = E - e < W ? vf_select(vi_first(E - e), y, vf_set1(0.0f)) : y;
        vf_store(s + e, y);
        sum = sum + y;
    }
    vf total = vf_set1(vf_sum(sum));
    for (size_t e = 0; e < E; e += W) {
        vf_store(s + e, vf_load(s + e) / total);
    }
}

static void
row_sigmoid(float *s, const float *x, size_t E)
{
    for (size_t e = 0; e < E; e += W) {
        vf_store(s + e, vf_sigmoid(vf_load_left(x + e, E - e)));
    }
}

/* ---- the choice ----
 * Arrays of scores and choices reach to whole vectors, and are written so: a search that begins at once
 * reads them on their way to memory. A choice that is not open is NaN: larger than nothing, equal to
 * nothing. */

static void
close_rest(float *x, size_t n)
{
    if (n % W != 0) {
        float *last = x + n / W * W;
        vf_store(last, vf_select(vi_first(n % W), vf_load(last), vf_set1(__builtin_nanf(""))));
    }
}

/* The largest of x (n), lowest index first, closed on the way out; one is open. */
static inline size_t
take_largest(float *x, size_t n)
{
    vf m = vf_set1(-__builtin_inff());
    for (size_t i = 0; i < n; i += W) {
        m = vf_max(vf_load(x + i), m);
    }
    m = vf_set1(vf_hmax(m));
    size_t i = 0, lane;
    while ((lane = vi_lowest(vf_load(x + i) == m)) == W) {
        i += W;
        assert(i < n);
    }
    vi taken = vi_iota() == vi_set1((int32_t)lane);
    vf_store(x + i, vf_select(taken, vf_set1(__builtin_nanf("")), vf_load(x + i)));
    return i + lane;
}

/* Closes all experts but those of the best top_groups groups. */
static void
close_groups(float *choice, int biased, const r1_router_spec *spec)
{
    size_t size = spec->E / spec->groups;
    float score[R1_MAX_EXPERTS + W];
    uint8_t best[R1_MAX_EXPERTS] = {0};
    for (size_t g = 0; g < spec->groups; g++) {
        float first = -__builtin_inff(), second = first;
        for (size_t e = g * size; e < (g + 1) * size; e++) {
            float lesser = choice[e] > first ? first : choice[e];
            first = f_max(choice[e], first);
            second = f_max(lesser, second);
        }
        float sum = biased && size > 1 ? first + second : first;
        score[g] = f_max(sum, -__builtin_inff()); /* inf - inf is NaN, which would be closed */
    }
    close_rest(score, spec->groups);
    for (size_t i = 0; i < spec->top_groups; i++) {
        best[take_largest(score, spec->groups)] = 1;
    }
    for (size_t g = 0; g < spec->groups; g++) {
        for (size_t e = g * size; !best[g] && e < (g + 1) * size; e++) {
            choice[e] = __builtin_nanf("");
        }
    }
}

/* choice = scores + bias; a NaN counts as -infinity, since K experts are chosen whatever comes */
static void
row_choice(float *choice, const float *scores, const float *bias, size_t E)
{
    for (size_t e = 0; e < E; e += W) {
        vf x = vf_load(scores + e);
        x = bias != NULL ? x + vf_load_left(bias + e, E - e) : x;
        vf_store(choice + e, vf_max(x, vf_set1(-__builtin_inff())));
    }
    close_rest(choice, E);
}

static void
row_fwd(int32_t *idx, float *weight, float *scores, const float *logits, const float *bias,
        const r1_router_spec *spec)
{
    float s[R1_MAX_EXPERTS + W], choice[R1_MAX_EXPERTS + W];
    if (spec->softmax) {
        row_softmax(s, logits, spec->E);
    } else {
        row_sigmoid(s, logits, spec->E);
    }
    for (size_t e = 0; e < spec->E; e += W) {
        vf_store_left(scores + e, vf_load(s + e), spec->E - e);
    }
    row_choice(choice, s, bias, spec->E);
    if (spec->top_groups < spec->groups) {
        close_groups(choice, bias != NULL, spec);
    }
    float sum = 0.0f;
    for (size_t k = 0; k < spec->K; k++) {
        size_t e = take_largest(choice, spec->E);
        idx[k] = (int32_t)e;
        weight[k] = s[e];
        sum += s[e];
    }
    for (size_t k = 0; k < spec->K; k++) {
        float w = spec->normalize ? weight[k] / (sum + 1e-20f) : weight[k];
        weight[k] = w * spec->scale;
    }
}

static void
router_fwd_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const router_job *job = ctx;
    size_t begin = task * job->rows, end = split_end(job->logits->rows, begin, job->rows);
    const float *bias = job->bias != NULL ? row_f32(job->bias, 0) : NULL;
    for (size_t n = begin; n < end; n++) {
        row_fwd(job->idx_out + n * job->spec->K, row_f32(job->weight, n), row_f32(job->scores, n),
                row_f32(job->logits, n), bias, job->spec);
    }
}

r1_code
TIER(router_fwd)(r1_dev *dev, int32_t *idx, const r1_tensor *weight, const r1_tensor *scores,
                 const r1_tensor *logits, const r1_tensor *bias, const r1_router_spec *spec,
                 r1_status *st)
{
    (void)st;
    assert(spec->E <= R1_MAX_EXPERTS && spec->K <= R1_MAX_TOPK && spec->E % spec->groups == 0);
    assert(spec->K <= spec->top_groups * (spec->E / spec->groups));
    router_job job = {.idx_out = idx, .weight = weight, .scores = scores, .logits = logits,
                      .bias = bias, .spec = spec};
    job.rows = split_rows(spec->E * (spec->K + 8));
    r1_pool_run(dev->pool, split_count(logits->rows, job.rows), router_fwd_task, &job);
    return R1_OK;
}

static void
row_bwd(float *dlogits, const float *dweight, const float *dscores, const int32_t *idx,
        const float *scores, const r1_router_spec *spec)
{
    size_t E = spec->E;
    float ds[R1_MAX_EXPERTS];
    float sum = 0.0f, mean = 0.0f;
    if (dscores != NULL) {
        memcpy(ds, dscores, E * sizeof(float));
    } else {
        memset(ds, 0, E * sizeof(float));
    }
    for (size_t k = 0; k < spec->K; k++) {
        sum += scores[idx[k]];
    }
    sum += 1e-20f;
    for (size_t k = 0; k < spec->K; k++) {
        mean += scores[idx[k]] / sum * dweight[k];
    }
    for (size_t k = 0; k < spec->K; k++) {
        float g = spec->normalize ? (dweight[k] - mean) / sum : dweight[k];
        ds[idx[k]] += g * spec->scale;
    }
    vf dot = {0};
    if (spec->softmax) {
        for (size_t e = 0; e < E; e += W) {
            dot = vf_fma(vf_load_left(ds + e, E - e), vf_load_left(scores + e, E - e), dot);
        }
        dot = vf_set1(vf_sum(dot));
    }
    for (size_t e = 0; e < E; e += W) {
        vf s = vf_load_left(scores + e, E - e), d = vf_load_left(ds + e, E - e);
        d = spec->softmax ? s * (d - dot) : d * s * (vf_set1(1.0f) - s);
        vf_store_left(dlogits + e, d, E - e);
    }
}

static void
router_bwd_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const router_job *job = ctx;
    size_t begin = task * job->rows, end = split_end(job->scores->rows, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        row_bwd(row_f32(job->dlogits, n), row_f32(job->dweight, n),
                job->dscores != NULL ? row_f32(job->dscores, n) : NULL,
                job->idx + n * job->spec->K, row_f32(job->scores, n), job->spec);
    }
}

r1_code
TIER(router_bwd)(r1_dev *dev, const r1_tensor *dlogits, const r1_tensor *dweight,
                 const r1_tensor *dscores, const int32_t *idx, const r1_tensor *scores,
                 const r1_router_spec *spec, r1_status *st)
{
    (void)st;
    router_job job = {.idx = idx, .scores = scores, .dlogits = dlogits, .dweight = dweight,
                      .dscores = dscores, .spec = spec};
    job.rows = split_rows(spec->E * 4);
    r1_pool_run(dev->pool, split_count(scores->rows, job.rows), router_bwd_task, &job);
    return R1_OK;
}

static void
add_load(int64_t *load, const int32_t *idx, int32_t row0, int32_t rows, size_t K)
{
    idx += (size_t)row0 * K;
    for (size_t i = 0; i < (size_t)rows * K; i++) {
        load[idx[i]] += 1;
    }
}

r1_code
TIER(router_load)(r1_dev *dev, int64_t *load, const int32_t *idx, const r1_seqs *seqs,
                  const r1_router_spec *spec, r1_status *st)
{
    (void)dev;
    (void)st;
    for (size_t b = 0; b < seqs->B; b++) {
        const int32_t *start = seqs->q_start + b;
        add_load(load, idx, seqs->prefix[b], seqs->pos0[b], spec->K);
        add_load(load, idx, start[0], start[1] - start[0], spec->K);
    }
    return R1_OK;
}

r1_code
TIER(router_bias_update)(r1_dev *dev, const r1_tensor *bias, const int64_t *load, float rate,
                         r1_status *st)
{
    (void)dev;
    (void)st;
    float *b = row_f32(bias, 0);
    int64_t E = (int64_t)bias->cols, total = 0;
    for (int64_t e = 0; e < E; e++) {
        total += load[e];
    }
    for (int64_t e = 0; e < E; e++) {
        int64_t excess = load[e] * E - total; /* exact, unlike a comparison with the mean */
        b[e] += excess < 0 ? rate : excess > 0 ? -rate : 0.0f;
    }
    return R1_OK;
}
