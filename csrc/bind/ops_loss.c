/* ops_loss.c - log-probs, sampling, losses and advantages, callable from Python for tests. */
#include "bind.h"

#include <math.h>
#include <string.h>

/* The tuple (temperature, top_k, top_p, min_p). */
void
arg_sampling(r1_args *a, r1_sampling *how)
{
    arg_enter(a, "how", 4);
    how->temperature = arg_float(a, "temperature");
    how->top_k = arg_int(a, "top_k");
    how->top_p = arg_float(a, "top_p");
    how->min_p = arg_float(a, "min_p");
    arg_leave(a);
    arg_require(a, how->temperature == 0.0f ||
                       (how->temperature >= 1e-6f && isfinite(how->temperature)),
                "temperature is %g, must be 0 or at least 1e-6", (double)how->temperature);
    arg_require(a, how->top_k >= 0, "top_k is %d, must be 0 or more", (int)how->top_k);
    arg_require(a, how->top_p > 0.0f && how->top_p <= 1.0f, "top_p is %g, must be in (0, 1]",
                (double)how->top_p);
    arg_require(a, how->min_p >= 0.0f && how->min_p <= 1.0f, "min_p is %g, must be in [0, 1]",
                (double)how->min_p);
}

/* The fields form .. entropy_coef of a tuple that is open. */
void
arg_loss(r1_args *a, r1_loss_spec *spec)
{
    static const char *const forms[] = {"nll", "clip", "cispo", NULL}; /* r1_loss_form */
    static const char *const estimators[] = {"k1", "k2", "k3", NULL};  /* r1_kl */
    spec->form = (r1_loss_form)arg_choice(a, "form", forms);
    spec->scale = arg_float(a, "scale");
    spec->eps_low = arg_float(a, "eps_low");
    spec->eps_high = arg_float(a, "eps_high");
    spec->delta = arg_float(a, "delta");
    spec->kl = (r1_kl)arg_choice(a, "kl", estimators);
    spec->kl_ratio = arg_flag(a, "kl_ratio");
    spec->beta = arg_float(a, "beta");
    spec->entropy_coef = arg_float(a, "entropy_coef");
    arg_require(a, spec->delta > 0.0f, "delta is %g, must be above 0", (double)spec->delta);
}

/* The op's scratch, full of NaN: an op may not read what it has not written. */
static void *
alloc_scratch(r1_call *c)
{
    if (c->args.failed) {
        return NULL;
    }
    size_t bytes = c->ops->logp_scratch(c->dev, arg_dim(&c->args, "V"));
    void *scratch = call_alloc(c, bytes, 1);
    if (scratch) {
        memset(scratch, 0xff, bytes);
    }
    return scratch;
}

static void
logp_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_sampling how;
    const r1_tensor *logp = arg_tensor(a, "logp", "M", "1", ARG_OUT);
    const r1_tensor *entropy = arg_tensor(a, "entropy", "M", "1", ARG_OUT | ARG_NULL);
    const r1_tensor *lse = arg_tensor(a, "lse", "M", "1", ARG_OUT);
    const r1_tensor *logits = arg_tensor(a, "logits", "M", "V", ARG_IN);
    const int32_t *ids = arg_i32(a, "ids", "M", "1", ARG_IN);
    arg_range(a, "ids", ids, arg_dim(a, "M"), 0, (int64_t)arg_dim(a, "V"));
    arg_sampling(a, &how);
    void *scratch = alloc_scratch(c);
    if (call_begin(c)) {
        c->ops->logp_fwd(c->dev, logp, entropy, lse, logits, ids, &how, scratch, &c->st);
    }
}

static void
logp_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_sampling how;
    const r1_tensor *logits = arg_tensor(a, "logits", "M", "V", ARG_OUT);
    const r1_tensor *dlogp = arg_tensor(a, "dlogp", "M", "1", ARG_IN);
    const r1_tensor *dentropy = arg_tensor(a, "dentropy", "M", "1", ARG_IN | ARG_NULL);
    const r1_tensor *entropy = arg_tensor(a, "entropy", "M", "1", ARG_IN | ARG_NULL);
    const r1_tensor *lse = arg_tensor(a, "lse", "M", "1", ARG_IN);
    const int32_t *ids = arg_i32(a, "ids", "M", "1", ARG_IN);
    arg_range(a, "ids", ids, arg_dim(a, "M"), 0, (int64_t)arg_dim(a, "V"));
    arg_sampling(a, &how);
    arg_require(a, dentropy == NULL || entropy, "'dentropy' needs 'entropy'");
    void *scratch = alloc_scratch(c);
    if (call_begin(c)) {
        c->ops->logp_bwd(c->dev, logits, dlogp, dentropy, entropy, lse, ids, &how, scratch,
                         &c->st);
    }
}

static void
sample(r1_call *c)
{
    r1_args *a = &c->args;
    r1_sampling how;
    int32_t *ids = arg_i32(a, "ids", "M", "1", ARG_OUT);
    const r1_tensor *logits = arg_tensor(a, "logits", "M", "V", ARG_IN);
    uint64_t key = arg_u64(a, "key");
    const int32_t *prompt = arg_i32(a, "prompt", "M", "1", ARG_IN);
    const int32_t *generation = arg_i32(a, "generation", "M", "1", ARG_IN);
    const int32_t *position = arg_i32(a, "position", "M", "1", ARG_IN);
    arg_sampling(a, &how);
    arg_require(a, arg_dim(a, "V") > 0, "there is no id to draw: V is 0");
    void *scratch = alloc_scratch(c);
    if (call_begin(c)) {
        c->ops->sample(c->dev, ids, logits, key, prompt, generation, position, &how, scratch,
                       &c->st);
    }
}

static void
token_loss(r1_call *c)
{
    r1_args *a = &c->args;
    r1_loss_spec spec;
    const r1_tensor *loss = arg_tensor(a, "loss", "M", "1", ARG_OUT);
    const r1_tensor *dlogp = arg_tensor(a, "dlogp", "M", "1", ARG_OUT);
    const r1_tensor *dentropy = arg_tensor(a, "dentropy", "M", "1", ARG_OUT | ARG_NULL);
    const r1_tensor *kl = arg_tensor(a, "kl", "M", "1", ARG_OUT | ARG_NULL);
    const r1_tensor *clipped = arg_tensor(a, "clipped", "M", "1", ARG_OUT | ARG_NULL);
    const r1_tensor *logp = arg_tensor(a, "logp", "M", "1", ARG_IN);
    const r1_tensor *entropy = arg_tensor(a, "entropy", "M", "1", ARG_IN | ARG_NULL);
    const r1_tensor *weight = arg_tensor(a, "weight", "M", "1", ARG_IN);
    const r1_tensor *adv = arg_tensor(a, "adv", "M", "1", ARG_IN | ARG_NULL);
    const r1_tensor *old_logp = arg_tensor(a, "old_logp", "M", "1", ARG_IN | ARG_NULL);
    const r1_tensor *ref_logp = arg_tensor(a, "ref_logp", "M", "1", ARG_IN | ARG_NULL);
    arg_enter(a, "spec", 9);
    arg_loss(a, &spec);
    arg_leave(a);
    int policy = spec.form != R1_LOSS_NLL;
    arg_require(a, !policy || adv, "forms 'clip' and 'cispo' need 'adv'");
    arg_require(a, !policy || spec.beta == 0.0f || ref_logp, "beta needs 'ref_logp'");
    arg_require(a, !policy || spec.entropy_coef == 0.0f || entropy, "entropy_coef needs 'entropy'");
    if (call_begin(c)) {
        c->ops->token_loss(c->dev, loss, dlogp, dentropy, kl, clipped, logp, entropy, weight, adv,
                           old_logp, ref_logp, &spec, &c->st);
    }
}

static void
score_loss(r1_call *c)
{
    static const char *const forms[] = {"pairwise", "pointwise", NULL};
    r1_args *a = &c->args;
    const r1_tensor *loss = arg_tensor(a, "loss", "B", "1", ARG_OUT);
    const r1_tensor *dscore = arg_tensor(a, "dscore", "B", "1", ARG_OUT);
    const r1_tensor *score = arg_tensor(a, "score", "B", "1", ARG_IN);
    const r1_tensor *label = arg_tensor(a, "label", "B", "1", ARG_IN | ARG_NULL);
    int pointwise = arg_choice(a, "form", forms);
    float scale = arg_float(a, "scale");
    arg_require(a, pointwise || arg_dim(a, "B") % 2 == 0, "%zu scores do not make pairs",
                arg_dim(a, "B"));
    arg_require(a, !pointwise || label, "form 'pointwise' needs 'label'");
    if (call_begin(c)) {
        c->ops->score_loss(c->dev, loss, dscore, score, label,
                           pointwise ? R1_SCORE_POINTWISE : R1_SCORE_PAIRWISE, scale, &c->st);
    }
}

static void
advantage(r1_call *c)
{
    static const char *const scales[] = {"none", "group", "batch", NULL}; /* r1_reward_scale */
    static const char *const aggregations[] = {"grpo", "dapo", "bnpo", "dr_grpo", NULL};
    r1_args *a = &c->args;
    r1_advantage_spec spec;
    float *adv = arg_f32(a, "adv", "n", "1", ARG_OUT);
    float *weight = arg_f32(a, "weight", "n", "1", ARG_OUT);
    const double *reward = arg_f64(a, "reward", "n", "1", ARG_IN);
    const int32_t *length = arg_i32(a, "length", "n", "1", ARG_IN);
    const float *keep = arg_f32(a, "keep", "n", "1", ARG_IN);
    arg_enter(a, "spec", 6);
    spec.group = arg_size(a, "group");
    spec.scale = (r1_reward_scale)arg_choice(a, "scale", scales);
    spec.ddof = arg_int(a, "ddof");
    spec.aggregation = (r1_aggregation)arg_choice(a, "aggregation", aggregations);
    spec.max_length = arg_size(a, "max_length");
    spec.local_batch = arg_size(a, "local_batch");
    arg_leave(a);
    size_t n = arg_dim(a, "n");
    arg_range(a, "length", length, n, 0, INT32_MAX);
    arg_require(a, spec.group > 0 && n % spec.group == 0, "%zu rewards do not make groups of %zu",
                n, spec.group);
    arg_require(a, spec.ddof == 0 || spec.ddof == 1, "ddof is %d, must be 0 or 1", spec.ddof);
    arg_require(a, spec.aggregation != R1_AGG_DR_GRPO || spec.max_length > 0,
                "'dr_grpo' needs max_length");
    arg_require(a, spec.aggregation != R1_AGG_BNPO || spec.local_batch > 0,
                "'bnpo' needs local_batch");
    if (call_begin(c)) {
        c->ops->advantage(adv, weight, reward, length, keep, n, &spec, &c->st);
    }
}

static r1_op ops[] = {
    R1_OP(logp_fwd, "logp, entropy, lse, logits, ids, how"),
    R1_OP(logp_bwd, "logits, dlogp, dentropy, entropy, lse, ids, how"),
    R1_OP(sample, "ids, logits, key, prompt, generation, position, how"),
    R1_OP(token_loss, "loss, dlogp, dentropy, kl, clipped, logp, entropy, weight, adv, old_logp, "
                      "ref_logp, spec"),
    R1_OP(score_loss, "loss, dscore, score, label, form, scale"),
    R1_OP(advantage, "adv, weight, reward, length, keep, spec"),
    {{0}, NULL},
};

int
ops_loss_add(PyObject *module)
{
    return ops_add(module, ops);
}
