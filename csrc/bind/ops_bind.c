/* ops_bind.c - the ops on rows, callable from Python for tests: matmul, gather, embedding, RMSNorm,
 * RoPE, MLA, SwiGLU, update. Each function here is the border of one op: it checks what ops.h
 * demands and calls it once.
 */
#include "bind.h"

static void
fill_zero(r1_call *c)
{
    const r1_tensor *x = arg_tensor(&c->args, "x", "N", "C", ARG_OUT);
    if (call_begin(c)) {
        c->ops->fill_zero(c->dev, x, &c->st);
    }
}

/* ---- matmul --------------------------------------------------------------------------------- */

static void
matmul_nt(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *y = arg_tensor(a, "y", "N", "O", ARG_OUT);
    const r1_tensor *x = arg_tensor(a, "x", "N", "I", ARG_IN);
    const r1_weight *w = arg_weight(c, "w", "E", "O", "I");
    const r1_tensor *bias = arg_tensor(a, "bias", "1", "O", ARG_IN | ARG_NULL);
    const int32_t *offsets = arg_offsets(c);
    int accumulate = arg_flag(a, "accumulate");
    arg_require(a, !accumulate || bias == NULL, "accumulate and bias exclude each other");
    if (call_begin(c)) {
        c->ops->matmul_nt(c->dev, y, x, w, bias, offsets, accumulate, &c->st);
    }
}

static void
matmul_nn(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dx = arg_tensor(a, "dx", "N", "I", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "N", "O", ARG_IN);
    const r1_weight *w = arg_weight(c, "w", "E", "O", "I");
    const int32_t *offsets = arg_offsets(c);
    int accumulate = arg_flag(a, "accumulate");
    if (call_begin(c)) {
        c->ops->matmul_nn(c->dev, dx, dy, w, offsets, accumulate, &c->st);
    }
}

static void
matmul_tn(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dw = arg_tensor(a, "dw", "E*O", "I", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "N", "O", ARG_IN);
    const r1_tensor *x = arg_tensor(a, "x", "N", "I", ARG_IN);
    size_t E = arg_size(a, "E");
    arg_bind(a, "E", E);
    arg_require(a, E > 0, "E is 0");
    arg_bind(a, "E*O", E * arg_dim(a, "O"));
    const int32_t *offsets = arg_offsets(c);
    r1_dtype dtype = arg_dtype(a, "dtype");
    const int32_t *id = arg_i32(a, "units", "U", "1", ARG_NULL);
    r1_units units = {id, arg_i32(a, "unit_rows", "N", "1", ARG_NULL)};
    if (units.id != NULL && units.row == NULL) {
        arg_require(a, arg_dim(a, "U") == arg_dim(a, "N"), "'units': one for each row");
    } else if (units.row != NULL) {
        arg_require(a, units.id != NULL, "'unit_rows': without units");
        arg_range(a, "unit_rows", units.row, arg_dim(a, "N"), 0, (int64_t)arg_dim(a, "U"));
    }
    int accumulate = arg_flag(a, "accumulate");
    if (call_begin(c)) {
        c->ops->matmul_tn(c->dev, dw, dy, x, E, offsets, dtype, units.id != NULL ? &units : NULL,
                          accumulate, &c->st);
    }
}

static void
bias_bwd(r1_call *c)
{
    const r1_tensor *dbias = arg_tensor(&c->args, "dbias", "1", "O", ARG_OUT);
    const r1_tensor *dy = arg_tensor(&c->args, "dy", "N", "O", ARG_IN);
    if (call_begin(c)) {
        c->ops->bias_bwd(c->dev, dbias, dy, &c->st);
    }
}

/* ---- rows and embedding --------------------------------------------------------------------- */

static void
add(r1_call *c)
{
    const r1_tensor *y = arg_tensor(&c->args, "y", "N", "C", ARG_OUT);
    const r1_tensor *a = arg_tensor(&c->args, "a", "N", "C", ARG_IN);
    const r1_tensor *b = arg_tensor(&c->args, "b", "N", "C", ARG_IN);
    if (call_begin(c)) {
        c->ops->add(c->dev, y, a, b, &c->st);
    }
}

static void
scale(r1_call *c)
{
    const r1_tensor *y = arg_tensor(&c->args, "y", "N", "C", ARG_OUT);
    const r1_tensor *x = arg_tensor(&c->args, "x", "N", "C", ARG_IN);
    float factor = arg_float(&c->args, "factor");
    if (call_begin(c)) {
        c->ops->scale(c->dev, y, x, factor, &c->st);
    }
}

static void
gather_rows(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *y = arg_tensor(a, "y", "M", "C", ARG_OUT);
    const r1_tensor *x = arg_tensor(a, "x", "N", "C", ARG_IN);
    const int32_t *idx = arg_i32(a, "idx", "M", "1", ARG_IN);
    arg_range(a, "idx", idx, arg_dim(a, "M"), 0, (int64_t)arg_dim(a, "N"));
    if (call_begin(c)) {
        c->ops->gather_rows(c->dev, y, x, idx, &c->st);
    }
}

static void
scatter_rows(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dx = arg_tensor(a, "dx", "N", "C", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "M", "C", ARG_IN);
    const int32_t *idx = arg_i32(a, "idx", "M", "1", ARG_IN);
    arg_range(a, "idx", idx, arg_dim(a, "M"), 0, (int64_t)arg_dim(a, "N"));
    if (call_begin(c)) {
        c->ops->scatter_rows(c->dev, dx, dy, idx, &c->st);
    }
}

static void
round_bf16(r1_call *c)
{
    const r1_tensor *x = arg_tensor(&c->args, "x", "N", "C", ARG_OUT);
    if (call_begin(c)) {
        c->ops->round_bf16(c->dev, x, &c->st);
    }
}

static void
embed_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *y = arg_tensor(a, "y", "N", "C", ARG_OUT);
    const r1_weight *w = arg_weight(c, "w", "E", "V", "C");
    const int32_t *ids = arg_i32(a, "ids", "N", "1", ARG_IN);
    arg_require(a, arg_dim(a, "E") == 1, "argument 'w': holds %zu matrices, expected 1",
                arg_dim(a, "E"));
    arg_range(a, "ids", ids, arg_dim(a, "N"), -1, (int64_t)arg_dim(a, "V"));
    if (call_begin(c)) {
        c->ops->embed_fwd(c->dev, y, w, ids, &c->st);
    }
}

static void
embed_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dw = arg_tensor(a, "dw", "V", "C", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "N", "C", ARG_IN);
    const int32_t *ids = arg_i32(a, "ids", "N", "1", ARG_IN);
    arg_range(a, "ids", ids, arg_dim(a, "N"), -1, (int64_t)arg_dim(a, "V"));
    if (call_begin(c)) {
        c->ops->embed_bwd(c->dev, dw, dy, ids, &c->st);
    }
}

/* ---- RMSNorm, RoPE, MLA, SwiGLU ------------------------------------------------------------- */

static void
rmsnorm_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *y = arg_tensor(a, "y", "N", "C", ARG_OUT);
    const r1_tensor *sum = arg_tensor(a, "sum", "N", "C", ARG_OUT | ARG_NULL);
    const r1_tensor *r = arg_tensor(a, "r", "N", "1", ARG_OUT);
    const r1_tensor *x = arg_tensor(a, "x", "N", "C", ARG_IN);
    const r1_tensor *residual = arg_tensor(a, "residual", "N", "C", ARG_IN | ARG_NULL);
    const r1_tensor *w = arg_tensor(a, "w", "1", "C", ARG_IN);
    float eps = arg_float(a, "eps");
    arg_require(a, !sum == !residual, "'sum' and 'residual' come together or not at all");
    if (call_begin(c)) {
        c->ops->rmsnorm_fwd(c->dev, y, sum, r, x, residual, w, eps, &c->st);
    }
}

static void
rmsnorm_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *ds = arg_tensor(a, "ds", "N", "C", ARG_OUT);
    const r1_tensor *dw = arg_tensor(a, "dw", "1", "C", ARG_OUT);
    const r1_tensor *dy = arg_tensor(a, "dy", "N", "C", ARG_IN);
    const r1_tensor *branch = arg_tensor(a, "add", "N", "C", ARG_IN | ARG_NULL);
    const r1_tensor *s = arg_tensor(a, "s", "N", "C", ARG_IN);
    const r1_tensor *r = arg_tensor(a, "r", "N", "1", ARG_IN);
    const r1_tensor *w = arg_tensor(a, "w", "1", "C", ARG_IN);
    if (call_begin(c)) {
        c->ops->rmsnorm_bwd(c->dev, ds, dw, dy, branch, s, r, w, &c->st);
    }
}

static void
rope(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *x = arg_tensor(a, "x", "N", "H*D", ARG_OUT);
    const r1_tensor *table = arg_tensor(a, "table", "T_max", "Dr", ARG_IN);
    const int32_t *pos = arg_i32(a, "pos", "N", "1", ARG_IN);
    size_t H = arg_size(a, "H"), first = arg_size(a, "first"), Dr = arg_size(a, "Dr");
    int interleaved = arg_flag(a, "interleaved"), inverse = arg_flag(a, "inverse");
    size_t width = arg_dim(a, "H*D");
    arg_bind(a, "Dr", Dr);
    arg_range(a, "pos", pos, arg_dim(a, "N"), 0, (int64_t)arg_dim(a, "T_max"));
    arg_require(a, H > 0 && width % H == 0, "%zu columns do not make %zu heads", width, H);
    arg_require(a, Dr % 2 == 0, "Dr is %zu, must be even", Dr);
    arg_require(a, H == 0 || (first <= width && Dr <= width / H && first <= width / H - Dr),
                "columns %zu .. %zu + %zu lie outside a head of %zu", first, first, Dr,
                H ? width / H : 0);
    if (call_begin(c)) {
        c->ops->rope(c->dev, x, table, pos, H, first, Dr, interleaved, inverse, &c->st);
    }
}

/* The sizes at the end of both MLA ops, and the products of dimensions they stand in. */
static void
mla_sizes(r1_args *a, size_t *H, size_t *Dn, size_t *Dv)
{
    *H = arg_size(a, "H");
    *Dn = arg_size(a, "Dn");
    *Dv = arg_size(a, "Dv");
    arg_require(a, *H > 0 && *H <= 4096 && *Dn <= 4096 && *Dv <= 4096,
                "H %zu, Dn %zu, Dv %zu: must be in 1 .. 4096", *H, *Dn, *Dv);
    arg_bind(a, "H*(Dn+Dr)", *H * (*Dn + arg_dim(a, "Dr")));
    arg_bind(a, "H*Dv", *H * *Dv);
    arg_bind(a, "H*(Dn+Dv)", *H * (*Dn + *Dv));
}

static void
mla_expand_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *k = arg_tensor(a, "k", "N", "H*(Dn+Dr)", ARG_OUT);
    const r1_tensor *v = arg_tensor(a, "v", "N", "H*Dv", ARG_OUT);
    const r1_tensor *kvb = arg_tensor(a, "kvb", "N", "H*(Dn+Dv)", ARG_IN);
    const r1_tensor *kr = arg_tensor(a, "kr", "N", "Dr", ARG_IN);
    size_t H, Dn, Dv;
    mla_sizes(a, &H, &Dn, &Dv);
    if (call_begin(c)) {
        c->ops->mla_expand_fwd(c->dev, k, v, kvb, kr, H, Dn, Dv, &c->st);
    }
}

static void
mla_expand_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *dkvb = arg_tensor(a, "dkvb", "N", "H*(Dn+Dv)", ARG_OUT);
    const r1_tensor *dkr = arg_tensor(a, "dkr", "N", "Dr", ARG_OUT);
    const r1_tensor *dk = arg_tensor(a, "dk", "N", "H*(Dn+Dr)", ARG_IN);
    const r1_tensor *dv = arg_tensor(a, "dv", "N", "H*Dv", ARG_IN);
    size_t H, Dn, Dv;
    mla_sizes(a, &H, &Dn, &Dv);
    if (call_begin(c)) {
        c->ops->mla_expand_bwd(c->dev, dkvb, dkr, dk, dv, H, Dn, Dv, &c->st);
    }
}

static void
swiglu_fwd(r1_call *c)
{
    const r1_tensor *y = arg_tensor(&c->args, "y", "N", "F", ARG_OUT);
    const r1_tensor *gate = arg_tensor(&c->args, "gate", "N", "F", ARG_IN);
    const r1_tensor *up = arg_tensor(&c->args, "up", "N", "F", ARG_IN);
    if (call_begin(c)) {
        c->ops->swiglu_fwd(c->dev, y, gate, up, &c->st);
    }
}

static void
swiglu_bwd(r1_call *c)
{
    const r1_tensor *dgate = arg_tensor(&c->args, "dgate", "N", "F", ARG_OUT);
    const r1_tensor *dup = arg_tensor(&c->args, "dup", "N", "F", ARG_OUT);
    const r1_tensor *dy = arg_tensor(&c->args, "dy", "N", "F", ARG_IN);
    const r1_tensor *gate = arg_tensor(&c->args, "gate", "N", "F", ARG_IN);
    const r1_tensor *up = arg_tensor(&c->args, "up", "N", "F", ARG_IN);
    if (call_begin(c)) {
        c->ops->swiglu_bwd(c->dev, dgate, dup, dy, gate, up, &c->st);
    }
}

/* ---- update --------------------------------------------------------------------------------- */

static void
sum_squares(r1_call *c)
{
    double *sum = arg_f64(&c->args, "sum", "1", "1", ARG_OUT);
    const r1_tensor *g = arg_tensor(&c->args, "g", "rows", "cols", ARG_IN | ARG_FLAT);
    if (call_begin(c)) {
        c->ops->sum_squares(c->dev, sum, g, &c->st);
    }
}

static r1_adamw_spec
adamw_spec(r1_args *a)
{
    r1_adamw_spec spec;
    arg_enter(a, "spec", 7);
    spec.lr = arg_float(a, "lr");
    spec.beta1 = arg_float(a, "beta1");
    spec.beta2 = arg_float(a, "beta2");
    spec.eps = arg_float(a, "eps");
    spec.weight_decay = arg_float(a, "weight_decay");
    spec.grad_scale = arg_float(a, "grad_scale");
    spec.step = arg_u64(a, "step");
    arg_leave(a);
    arg_require(a, spec.step > 0, "spec.step is 0, steps count from 1");
    return spec;
}

static void
adamw(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_tensor *p = arg_tensor(a, "p", "rows", "cols", ARG_OUT | ARG_FLAT);
    const r1_tensor *m = arg_tensor(a, "m", "rows", "cols", ARG_OUT | ARG_FLAT);
    const r1_tensor *v = arg_tensor(a, "v", "rows", "cols", ARG_OUT | ARG_FLAT);
    const r1_tensor *g = arg_tensor(a, "g", "rows", "cols", ARG_IN | ARG_FLAT);
    r1_adamw_spec spec = adamw_spec(a);
    if (call_begin(c)) {
        c->ops->adamw(c->dev, p, m, v, g, &spec, &c->st);
    }
}

static void
weight_adamw(r1_call *c)
{
    r1_args *a = &c->args;
    r1_weight *w = arg_weight(c, "w", "E", "O", "I");
    size_t row0 = arg_size(a, "row0");
    const r1_tensor *m = arg_tensor(a, "m", "rows", "I", ARG_OUT | ARG_FLAT);
    const r1_tensor *v = arg_tensor(a, "v", "rows", "I", ARG_OUT | ARG_FLAT);
    const r1_tensor *g = arg_tensor(a, "g", "rows", "I", ARG_IN | ARG_FLAT);
    r1_adamw_spec spec = adamw_spec(a);
    size_t rows = arg_dim(a, "rows"), E = arg_dim(a, "E"), all = E * arg_dim(a, "O");
    arg_require(a, row0 <= all && rows <= all - row0, "rows %zu to %zu of %zu", row0, row0 + rows,
                all);
    arg_require(a, rows == all || (E == 1 && row0 % 32 == 0 &&
                                   (rows % 32 == 0 || row0 + rows == all)),
                "a part of a weight is one of a single matrix, between multiples of 32 rows");
    if (call_begin(c)) {
        c->ops->weight_adamw(c->dev, w, row0, m, v, g, &spec, &c->st);
    }
}

static r1_op ops[] = {
    R1_OP(fill_zero, "x"),
    R1_OP(matmul_nt, "y, x, w, bias, offsets, accumulate"),
    R1_OP(matmul_nn, "dx, dy, w, offsets, accumulate"),
    R1_OP(matmul_tn, "dw, dy, x, E, offsets, dtype, units, unit_rows, accumulate"),
    R1_OP(bias_bwd, "dbias, dy"),
    R1_OP(add, "y, a, b"),
    R1_OP(scale, "y, x, factor"),
    R1_OP(gather_rows, "y, x, idx"),
    R1_OP(scatter_rows, "dx, dy, idx"),
    R1_OP(round_bf16, "x"),
    R1_OP(embed_fwd, "y, w, ids"),
    R1_OP(embed_bwd, "dw, dy, ids"),
    R1_OP(rmsnorm_fwd, "y, sum, r, x, residual, w, eps"),
    R1_OP(rmsnorm_bwd, "ds, dw, dy, add, s, r, w"),
    R1_OP(rope, "x, table, pos, H, first, Dr, interleaved, inverse"),
    R1_OP(mla_expand_fwd, "k, v, kvb, kr, H, Dn, Dv"),
    R1_OP(mla_expand_bwd, "dkvb, dkr, dk, dv, H, Dn, Dv"),
    R1_OP(swiglu_fwd, "y, gate, up"),
    R1_OP(swiglu_bwd, "dgate, dup, dy, gate, up"),
    R1_OP(sum_squares, "sum, g"),
    R1_OP(adamw, "p, m, v, g, spec"),
    R1_OP(weight_adamw, "w, row0, m, v, g, spec"),
    {{0}, NULL},
};

int
ops_bind_add(PyObject *module)
{
    return ops_add(module, ops);
}
