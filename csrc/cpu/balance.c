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
 * The loss is summed in float64 over rows ascending, then experts ascending; one sequence is one
 * task, a sequence without rows has loss 0.
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

static void
balance_task(void *ctx, size_t b, size_t worker)
{
    (void)worker;
    const balance_job *job = ctx;
    size_t E = job->spec->E, K = job->spec->K;
    size_t begin = (size_t)job->seqs->q_start[b], end = (size_t)job->seqs->q_start[b + 1];
    double P[R1_MAX_EXPERTS] = {0}, loss = 0.0; /* P: sum over rows, T times the mean */
    float f[R1_MAX_EXPERTS] = {0};
    if (begin == end) {
        *row_f32(job->loss, b) = 0.0f;
        return;
    }
    for (size_t i = begin * K; i < end * K; i++) {
        f[job->idx[i]] += 1.0f;
    }
    for (size_t e = 0; e < E; e++) {
        f[e] = f[e] * (float)E / (float)(K * (end - begin));
    }
    for (size_t n = begin; n < end; n++) {
        const float *s = row_f32(job->scores, n);
        float S = row_sum(s, E) + 1e-20f; /* all gates may underflow; otherwise it adds nothing */
        for (size_t e = 0; e < E; e++) {
            P[e] += (double)s[e] / S;
        }
        row_gradient(row_f32(job->dscores, n), s, f, S, job->coef, E);
    }
    for (size_t e = 0; e < E; e++) {
        loss += (double)f[e] * P[e];
    }
    *row_f32(job->loss, b) = (float)(loss * job->coef);
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
