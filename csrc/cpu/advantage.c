/* advantage.c - rewards to advantages and token weights, once per optimiser step, on host arrays.
 *
 *   adv[i] = (r[i] - mean of its group) / (std + 1e-4)           DeepSeekMath, section 4.1.2
 *   std over the group, over the whole batch, or no division (Dr. GRPO); ddof 1 or 0
 *
 * The papers print neither ddof nor epsilon; ddof 1 and 1e-4 are TRL's. A NaN reward is left
 * out of mean and std and gets 0. A group whose rewards are all equal gets exactly 0: the test is
 * equality, not a small std, which rounding could miss. Rewards g G .. g G + G - 1 are one group.
 *
 * weight[i], the weight of every token of completion i, so that the loss of the step is the sum
 * over tokens of weight x loss; n sequences, l[i] tokens, kept sequences only in the token counts:
 *   grpo      1 / (n l[i])                  mean of each sequence, mean over sequences
 *   dapo      1 / sum of l                  mean over all tokens
 *   bnpo      1 / (batches x sum of l in its local batch): token mean in each `local_batch`
 *             consecutive sequences, mean over these
 *   dr_grpo   1 / (n max_length)            a constant
 * n counts every sequence of the step, dropped ones too (as TRL's mean over the batch does):
 * dropping one does not make the others heavier. weight is 0 where keep is 0 or l is 0.
 *
 * float64 inside, sums in index order. Knows nothing about rewards' meaning.
 */
#include "cpu.h"

typedef struct {
    double mean, std;
    int equal; /* all rewards that are not NaN are the same number, or there is none */
} reward_stats;

static reward_stats
stats_of(const double *r, size_t n, int ddof)
{
    reward_stats s = {0.0, 0.0, 1};
    double first = 0.0, sum = 0.0, squares = 0.0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (r[i] == r[i]) {
            first = count == 0 ? r[i] : first;
            s.equal = s.equal && r[i] == first;
            sum += r[i];
            count++;
        }
    }
    s.mean = count > 0 ? sum / (double)count : 0.0;
    for (size_t i = 0; i < n; i++) {
        if (r[i] == r[i]) {
            squares += (r[i] - s.mean) * (r[i] - s.mean);
        }
    }
    if (count > (size_t)ddof) {
        s.std = __builtin_sqrt(squares / (double)(count - (size_t)ddof));
    }
    return s;
}

static void
advantages(float *adv, const double *reward, size_t n, const r1_advantage_spec *spec)
{
    double batch_std = stats_of(reward, n, spec->ddof).std;
    for (size_t first = 0; first < n; first += spec->group) {
        reward_stats s = stats_of(reward + first, spec->group, spec->ddof);
        double divisor = spec->scale == R1_SCALE_GROUP   ? s.std + 1e-4
                         : spec->scale == R1_SCALE_BATCH ? batch_std + 1e-4
                                                         : 1.0;
        for (size_t i = first; i < first + spec->group; i++) {
            int none = s.equal || reward[i] != reward[i];
            adv[i] = none ? 0.0f : (float)((reward[i] - s.mean) / divisor);
        }
    }
}

/* Tokens of the kept sequences [first, end) */
static double
count_tokens(const int32_t *length, const float *keep, size_t first, size_t end)
{
    double tokens = 0.0;
    for (size_t i = first; i < end; i++) {
        tokens += keep[i] != 0.0f ? (double)length[i] : 0.0;
    }
    return tokens;
}

static void
token_weights(float *weight, const int32_t *length, const float *keep, size_t n,
              const r1_advantage_spec *spec)
{
    int bnpo = spec->aggregation == R1_AGG_BNPO;
    size_t batch = bnpo ? spec->local_batch : n; /* sequences whose tokens are counted together */
    for (size_t first = 0; first < n; first += batch) {
        size_t end = n - first < batch ? n : first + batch;
        double tokens = count_tokens(length, keep, first, end);
        double batches = (double)((n + batch - 1) / batch);
        for (size_t i = first; i < end; i++) {
            double divisor = batches * tokens; /* dapo, bnpo */
            if (spec->aggregation == R1_AGG_GRPO) {
                divisor = (double)n * length[i];
            } else if (spec->aggregation == R1_AGG_DR_GRPO) {
                divisor = (double)n * (double)spec->max_length;
            }
            weight[i] = keep[i] != 0.0f && length[i] > 0 ? (float)(1.0 / divisor) : 0.0f;
        }
    }
}

r1_code
TIER(advantage)(float *adv, float *weight, const double *reward, const int32_t *length,
                const float *keep, size_t n, const r1_advantage_spec *spec, r1_status *st)
{
    if (spec->group == 0 || n % spec->group != 0) {
        return R1_FAIL(st, R1_EINVAL, "advantage: %zu rewards do not divide into groups of %zu", n,
                       spec->group);
    }
    if (spec->ddof != 0 && spec->ddof != 1) {
        return R1_FAIL(st, R1_EINVAL, "advantage: ddof is %d, must be 0 or 1", spec->ddof);
    }
    if (spec->aggregation == R1_AGG_DR_GRPO && spec->max_length == 0) {
        return R1_FAIL(st, R1_EINVAL, "advantage: dr_grpo needs max_length above 0");
    }
    if (spec->aggregation == R1_AGG_BNPO && spec->local_batch == 0) {
        return R1_FAIL(st, R1_EINVAL, "advantage: bnpo needs local_batch above 0");
    }
    for (size_t i = 0; i < n; i++) {
        if (__builtin_isinf(reward[i])) {
            return R1_FAIL(st, R1_EINVAL, "advantage: reward %zu is infinite", i);
        }
        if (length[i] < 0) {
            return R1_FAIL(st, R1_EINVAL, "advantage: length %zu is %d", i, (int)length[i]);
        }
    }
    advantages(adv, reward, n, spec);
    token_weights(weight, length, keep, n, spec);
    return R1_OK;
}
