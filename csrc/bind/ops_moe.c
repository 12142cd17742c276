/* ops_moe.c - router, balance and dispatch, callable from Python for tests. */
#include "bind.h"

/* The tuple (E, K, groups, top_groups, softmax, normalize, scale); binds E and K. */
static void
arg_router_spec(r1_args *a, r1_router_spec *spec)
{
    arg_enter(a, "spec", 7);
    spec->E = arg_size(a, "E");
    spec->K = arg_size(a, "K");
    spec->groups = arg_size(a, "groups");
    spec->top_groups = arg_size(a, "top_groups");
    spec->softmax = arg_flag(a, "softmax");
    spec->normalize = arg_flag(a, "normalize");
    spec->scale = arg_float(a, "scale");
    arg_leave(a);
    size_t E = spec->E, K = spec->K;
    arg_require(a, E > 0 && E <= R1_MAX_EXPERTS, "E is %zu, must be in 1 .. %d", E,
                (int)R1_MAX_EXPERTS);
    arg_require(a, K > 0 && K <= E && K <= R1_MAX_TOPK,
                "K is %zu, must be in 1 .. %d and at most E, %zu", K, (int)R1_MAX_TOPK, E);
    arg_require(a, spec->groups > 0 && E % spec->groups == 0, "%zu groups do not divide E, %zu",
                spec->groups, E);
    arg_require(a, spec->top_groups > 0 && spec->top_groups <= spec->groups,
                "top_groups is %zu, must be in 1 .. %zu", spec->top_groups, spec->groups);
    arg_require(a, a->failed || K <= spec->top_groups * (E / spec->groups),
                "K is %zu, but %zu groups hold fewer experts", K, spec->top_groups);
    arg_bind(a, "E", E);
    arg_bind(a, "K", K);
}

/* Chosen experts are experts. */
static void
check_idx(r1_args *a, const int32_t *idx, const r1_router_spec *spec)
{
    arg_range(a, "idx", idx, arg_dim(a, "N") * arg_dim(a, "K"), 0, (int64_t)spec->E);
}

static void
router_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_router_spec spec;
    int32_t *idx = arg_i32(a, "idx", "N", "K", ARG_OUT);
    const r1_tensor *weight = arg_tensor(a, "weight", "N", "K", ARG_OUT);
    const r1_tensor *scores = arg_tensor(a, "scores", "N", "E", ARG_OUT);
    const r1_tensor *logits = arg_tensor(a, "logits", "N", "E", ARG_IN);
    const r1_tensor *bias = arg_tensor(a, "bias", "1", "E", ARG_IN | ARG_NULL);
    arg_router_spec(a, &spec);
    if (call_begin(c)) {
        c->ops->router_fwd(c->dev, idx, weight, scores, logits, bias, &spec, &c->st);
    }
}

static void
router_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_router_spec spec;
    const r1_tensor *dlogits = arg_tensor(a, "dlogits", "N", "E", ARG_OUT);
    const r1_tensor *dweight = arg_tensor(a, "dweight", "N", "K", ARG_IN);
    const r1_tensor *dscores = arg_tensor(a, "dscores", "N", "E", ARG_IN | ARG_NULL);
    const int32_t *idx = arg_i32(a, "idx", "N", "K", ARG_IN);
    const r1_tensor *scores = arg_tensor(a, "scores", "N", "E", ARG_IN);
    arg_router_spec(a, &spec);
    check_idx(a, idx, &spec);
    if (call_begin(c)) {
        c->ops->router_bwd(c->dev, dlogits, dweight, dscores, idx, scores, &spec, &c->st);
    }
}

static void
router_load(r1_call *c)
{
    r1_args *a = &c->args;
    r1_router_spec spec;
    int64_t *load = arg_i64(a, "load", "E", "1", ARG_OUT);
    const int32_t *idx = arg_i32(a, "idx", "N", "K", ARG_IN);
    r1_seqs seqs;
    arg_seqs(c, &seqs, NULL);
    arg_groups(c, &seqs);
    arg_router_spec(a, &spec);
    check_idx(a, idx, &spec);
    if (call_begin(c)) {
        c->ops->router_load(c->dev, load, idx, &seqs, &spec, &c->st);
    }
}

static void
balance_loss(r1_call *c)
{
    r1_args *a = &c->args;
    r1_router_spec spec;
    r1_seqs seqs;
    const r1_tensor *loss = arg_tensor(a, "loss", "B", "1", ARG_OUT);
    const r1_tensor *dscores = arg_tensor(a, "dscores", "N", "E", ARG_OUT);
    const r1_tensor *scores = arg_tensor(a, "scores", "N", "E", ARG_IN);
    const int32_t *idx = arg_i32(a, "idx", "N", "K", ARG_IN);
    arg_seqs(c, &seqs, NULL);
    arg_groups(c, &seqs);
    arg_router_spec(a, &spec);
    float coef = arg_float(a, "coef");
    check_idx(a, idx, &spec);
    if (call_begin(c)) {
        c->ops->balance_loss(c->dev, loss, dscores, scores, idx, &seqs, &spec, coef, &c->st);
    }
}

static void
router_bias_update(r1_call *c)
{
    const r1_tensor *bias = arg_tensor(&c->args, "bias", "1", "E", ARG_OUT);
    const int64_t *load = arg_i64(&c->args, "load", "E", "1", ARG_IN);
    float rate = arg_float(&c->args, "rate");
    if (call_begin(c)) {
        c->ops->router_bias_update(c->dev, bias, load, rate, &c->st);
    }
}

static void
dispatch_plan(r1_call *c)
{
    r1_args *a = &c->args;
    r1_router_spec spec;
    int32_t *offsets = arg_i32(a, "offsets", "E+1", "1", ARG_OUT);
    int32_t *source = arg_i32(a, "source", "N*K", "1", ARG_OUT);
    int32_t *place = arg_i32(a, "place", "N", "K", ARG_OUT);
    const int32_t *idx = arg_i32(a, "idx", "N", "K", ARG_IN);
    arg_router_spec(a, &spec);
    size_t N = arg_dim(a, "N");
    arg_bind(a, "E+1", spec.E + 1);
    arg_bind(a, "N*K", N * spec.K);
    check_idx(a, idx, &spec);
    if (call_begin(c)) {
        c->ops->dispatch_plan(c->dev, offsets, source, place, idx, N, &spec, &c->st);
    }
}

/* place (N, K) holds sorted rows. */
static const int32_t *
arg_place(r1_args *a)
{
    const int32_t *place = arg_i32(a, "place", "N", "K", ARG_IN);
    size_t pairs = arg_dim(a, "N") * arg_dim(a, "K");
    arg_bind(a, "N*K", pairs);
    arg_range(a, "place", place, pairs, 0, (int64_t)pairs);
    return place;
}

static void
combine_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *y = arg_tensor(a, "y", "N", "C", ARG_OUT);
    const r1_tensor *ys = arg_tensor(a, "ys", "N*K", "C", ARG_IN);
    const r1_tensor *weight = arg_tensor(a, "weight", "N", "K", ARG_IN);
    const int32_t *place = arg_place(a);
    const r1_tensor *branch = arg_tensor(a, "add", "N", "C", ARG_IN | ARG_NULL);
    if (call_begin(c)) {
        c->ops->combine_fwd(c->dev, y, ys, weight, place, branch, &c->st);
    }
}

static void
combine_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dys = arg_tensor(a, "dys", "N*K", "C", ARG_OUT);
    const r1_tensor *dweight = arg_tensor(a, "dweight", "N", "K", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "N", "C", ARG_IN);
    const r1_tensor *ys = arg_tensor(a, "ys", "N*K", "C", ARG_IN);
    const r1_tensor *weight = arg_tensor(a, "weight", "N", "K", ARG_IN);
    const int32_t *place = arg_place(a);
    if (call_begin(c)) {
        c->ops->combine_bwd(c->dev, dys, dweight, dy, ys, weight, place, &c->st);
    }
}

static void
dispatch_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dx = arg_tensor(a, "dx", "N", "C", ARG_OUT);
    const r1_tensor *dxs = arg_tensor(a, "dxs", "N*K", "C", ARG_IN);
    const int32_t *place = arg_place(a);
    const r1_tensor *branch = arg_tensor(a, "add", "N", "C", ARG_IN | ARG_NULL);
    if (call_begin(c)) {
        c->ops->dispatch_bwd(c->dev, dx, dxs, place, arg_dim(a, "K"), branch, &c->st);
    }
}

static r1_op ops[] = {
    R1_OP(router_fwd, "idx, weight, scores, logits, bias, spec"),
    R1_OP(router_bwd, "dlogits, dweight, dscores, idx, scores, spec"),
    R1_OP(router_load, "load, idx, seqs, spec"),
    R1_OP(balance_loss, "loss, dscores, scores, idx, seqs, spec, coef"),
    R1_OP(router_bias_update, "bias, load, rate"),
    R1_OP(dispatch_plan, "offsets, source, place, idx, spec"),
    R1_OP(combine_fwd, "y, ys, weight, place, add"),
    R1_OP(combine_bwd, "dys, dweight, dy, ys, weight, place"),
    R1_OP(dispatch_bwd, "dx, dxs, place, add"),
    {{0}, NULL},
};

int
ops_moe_add(PyObject *module)
{
    return ops_add(module, ops);
}
