/* balance.c - the sequence-wise balance loss of DeepSeekMoE.  DeepSeek-V3, eq. 17-20.
 *
 * For one sequence of T rows, with c_i = rows of it that chose expert i and S_t = sum_j s_tj:
 *   f_i = E c_i / (K T),   P_i = 1/T sum_t s_ti / S_t,   loss = coef T sum_i f_i P_i
 *   dscores[t,j] = coef / S_t (f_j - sum_i f_i s_ti / S_t)         f is constant
 *
 * scores, dscores (N, E), idx (N, K), loss (B, 1). The factor T weights a sequence by its tokens
 * (our choice): a caller who passes coef / total tokens gets the mean over tokens, however they are
 * split into calls.
 *
 * A prefix belongs to every sequence of its group: it counts in the loss of each, and as a row's
 * gradient is linear in f, its rows take the sum of the sequences' f, in ascending order.
 *
 * The loss is summed in float64 over rows ascending, then experts ascending; one group is one task, a
 * sequence without rows has loss 0.
 */
#include "cpu.h"
#include "simd.h"

typedef struct {
    const r1_tensor *loss, *dscores, *scores;
    const int32_t *idx;
    const r1_seqs *seqs;
    const r1_router_spec *spec;
    float coef;
} balance_job;

static const float TINY = 1e-20f; /* all gates may underflow; otherwise it adds nothing */

static float
row_sum(const float *x, size_t E)
{
    vf sum = {0};
    for (size_t e = 0; e < E; e += W) {
        sum = sum + vf_load_left(x + e, E - e);
    }
    return vf_sum(sum);
}

/* ds = coef / S (f - f . s / S) */
static void
row_gradient(float *ds, const float *s, const float *f, float S, float coef, size_t E)
{
    vf dot = {0};
    for (size_t e = 0; e < E; e += W) {
        dot = vf_fma(vf_load_left(f + e, E - e), vf_load_left(s + e, E - e), dot);
    }
    vf mean = vf_set1(vf_sum(dot) / S), factor = vf_set1(coef / S);
    for (size_t e = 0; e < E; e += W) {
        vf_store_left(ds + e, (vf_load_left(f + e, E - e) - mean) * factor, E - e);
    }
}

/* What rows have summed so far. */
typedef struct {
    float count[R1_MAX_EXPERTS]; /* rows that chose each expert */
    double P[R1_MAX_EXPERTS];    /* T times the mean share of each */
} balance_sums;

/* Rows [begin, end) join the sums. */
static void
add_rows(balance_sums *x, const balance_job *job, size_t begin, size_t end)
{
    size_t E = job->spec->E, K = job->spec->K;
    for (size_t i = begin * K; i < end * K; i++) {
        x->count[job->idx[i]] += 1.0f;
    }
    for (size_t n = begin; n < end; n++) {
        const float *s = row_f32(job->scores, n);
        float S = row_sum(s, E) + TINY;
        for (size_t e = 0; e < E; e++) {
            x->P[e] += (double)s[e] / S;
        }
    }
}

/* The gradient of rows [begin, end). */
static void
rows_gradient(const balance_job *job, const float *f, size_t begin, size_t end)
{
    size_t E = job->spec->E;
    for (size_t n = begin; n < end; n++) {
        const float *s = row_f32(job->scores, n);
        row_gradient(row_f32(job->dscores, n), s, f, row_sum(s, E) + TINY, job->coef, E);
    }
}

static void
balance_task(void *ctx, size_t first, size_t worker)
{
    (void)worker;
    const balance_job *job = ctx;
    const r1_seqs *seqs = job->seqs;
    size_t E = job->spec->E, end = group_end(seqs, first), row0 = (size_t)seqs->q_start[first];
    size_t shared = end > first + 1 ? (size_t)seqs->pos0[first + 1] : 0;
    balance_sums prefix = {0};
    float f_all[R1_MAX_EXPERTS] = {0};
    if (seqs->pos0[first] > 0) {
        return; /* not the first of its group */
    }
    add_rows(&prefix, job, row0, row0 + shared);
    for (size_t b = first; b < end; b++) {
        size_t own = (size_t)seqs->q_start[b] + (b == first ? shared : 0);
        size_t own_end = (size_t)seqs->q_start[b + 1], T = shared + own_end - own;
        balance_sums all = prefix;
        float f[R1_MAX_EXPERTS];
        double loss = 0.0;
        add_rows(&all, job, own, own_end);
        for (size_t e = 0; e < E && T > 0; e++) {
            f[e] = all.count[e] * (float)E / (float)(job->spec->K * T);
            f_all[e] += f[e];
            loss += (double)f[e] * all.P[e];
        }
        *row_f32(job->loss, b) = (float)(loss * job->coef);
        rows_gradient(job, f, own, own_end);
    }
    rows_gradient(job, f_all, row0, row0 + shared);
}

r1_code
TIER(balance_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscores,
                   const r1_tensor *scores, const int32_t *idx, const r1_seqs *seqs,
                   const r1_router_spec *spec, float coef, r1_status *st)
{
    (void)st;
    assert(spec->E <= R1_MAX_EXPERTS);
    balance_job job = {loss, dscores, scores, idx, seqs, spec, coef};
    r1_pool_run(dev->pool, seqs->B, balance_task, &job);
    return R1_OK;
}
