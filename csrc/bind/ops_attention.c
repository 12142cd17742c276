/* ops_attention.c - the KV cache and attention, callable from Python for tests. */
#include "bind.h"

static void
kv_write(r1_call *c)
{
    r1_args *a = &c->args;
    r1_seqs seqs;
    const r1_kv *kv = arg_kv(c, "kv");
    const r1_tensor *k = arg_tensor(a, "k", "N", "Hkv*D", ARG_IN);
    const r1_tensor *v = arg_tensor(a, "v", "N", "Hkv*Dv", ARG_IN);
    arg_seqs(c, &seqs, kv);
    if (args_more(a) && arg_flag(a, "groups")) {
        arg_groups(c, &seqs);
    }
    arg_bind(a, "Hkv*D", arg_dim(a, "Hkv") * arg_dim(a, "D"));
    arg_bind(a, "Hkv*Dv", arg_dim(a, "Hkv") * arg_dim(a, "Dv"));
    if (call_begin(c)) {
        c->ops->kv_write(c->dev, kv, k, v, &seqs, &c->st);
    }
}

static void
kv_copy(r1_call *c)
{
    r1_args *a = &c->args;
    const r1_kv *kv = arg_kv(c, "kv");
    const int32_t *pairs = arg_i32(a, "pairs", "n", "2", ARG_IN);
    size_t n = arg_dim(a, "n");
    arg_bind(a, "2", 2);
    arg_range(a, "pairs", pairs, 2 * n, 0, kv ? (int64_t)kv->blocks : 0);
    if (call_begin(c)) {
        c->ops->kv_copy(c->dev, kv, pairs, n, &c->st);
    }
}

/* The cache's own memory, blocks of (Hkv, D, 64) and (Hkv, 64, Dv). Not an op: the layout is a
 * promise of ops.h, and tests look at it. Of a bf16 cache it is the bytes: two numbers in a float. */
static void
kv_read(r1_call *c)
{
    r1_args *a = &c->args;
    float *k = arg_f32(a, "k", "blocks*Hkv*D", "64", ARG_OUT);
    float *v = arg_f32(a, "v", "blocks*Hkv*64", "Dv", ARG_OUT);
    const r1_kv *kv = arg_kv(c, "kv");
    size_t k_bytes = kv ? kv->blocks * kv->Hkv * r1_kv_k_bytes(kv) : 0;
    size_t v_bytes = kv ? kv->blocks * kv->Hkv * r1_kv_v_bytes(kv) : 0;
    arg_bind(a, "64", R1_KV_BLOCK);
    arg_bind(a, "blocks*Hkv*D", k_bytes / (R1_KV_BLOCK * sizeof *k));
    arg_bind(a, "blocks*Hkv*64", kv ? v_bytes / (kv->Dv * sizeof *v) : 0);
    if (call_begin(c) && c->ops->mem_download(c->dev, k, kv->k, k_bytes, &c->st) == R1_OK) {
        c->ops->mem_download(c->dev, v, kv->v, v_bytes, &c->st);
    }
}

static void
attention_fwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_seqs seqs;
    const r1_tensor *o = arg_tensor(a, "o", "N", "H*Dv", ARG_OUT);
    const r1_tensor *lse = arg_tensor(a, "lse", "N", "H", ARG_OUT);
    const r1_tensor *q = arg_tensor(a, "q", "N", "H*D", ARG_IN);
    const r1_kv *kv = arg_kv(c, "kv");
    arg_seqs(c, &seqs, kv);
    size_t H = arg_size(a, "H"), window = arg_size(a, "window");
    float scale = arg_float(a, "scale");
    arg_bind(a, "H", H);
    arg_bind(a, "H*D", H * arg_dim(a, "D"));
    arg_bind(a, "H*Dv", H * arg_dim(a, "Dv"));
    arg_require(a, kv && H > 0 && H % kv->Hkv == 0, "H %zu is no multiple of Hkv %zu", H,
                kv ? kv->Hkv : 0);
    if (call_begin(c)) {
        c->ops->attention_fwd(c->dev, o, lse, q, kv, &seqs, H, window, scale, &c->st);
    }
}

static void
attention_bwd(r1_call *c)
{
    r1_args *a = &c->args;
    r1_seqs seqs;
    const r1_tensor *dq = arg_tensor(a, "dq", "N", "H*D", ARG_OUT);
    const r1_tensor *dk = arg_tensor(a, "dk", "N", "Hkv*D", ARG_OUT);
    const r1_tensor *dv = arg_tensor(a, "dv", "N", "Hkv*Dv", ARG_OUT);
    const r1_tensor *dout = arg_tensor(a, "dout", "N", "H*Dv", ARG_IN);
    const r1_tensor *o = arg_tensor(a, "o", "N", "H*Dv", ARG_IN);
    const r1_tensor *lse = arg_tensor(a, "lse", "N", "H", ARG_IN);
    const r1_tensor *q = arg_tensor(a, "q", "N", "H*D", ARG_IN);
    const r1_tensor *k = arg_tensor(a, "k", "N", "Hkv*D", ARG_IN);
    const r1_tensor *v = arg_tensor(a, "v", "N", "Hkv*Dv", ARG_IN);
    arg_seqs(c, &seqs, NULL);
    arg_groups(c, &seqs);
    size_t H = arg_size(a, "H"), Hkv = arg_size(a, "Hkv"), window = arg_size(a, "window");
    float scale = arg_float(a, "scale");
    r1_dtype dtype = args_more(a) ? arg_dtype(a, "dtype") : R1_F32;
    size_t D = H ? arg_dim(a, "H*D") / H : 0, Dv = H ? arg_dim(a, "H*Dv") / H : 0;
    arg_require(a, H > 0 && Hkv > 0 && H % Hkv == 0, "H %zu is no multiple of Hkv %zu", H, Hkv);
    arg_require(a, D > 0 && D <= R1_MAX_HEAD_DIM && Dv > 0 && Dv <= R1_MAX_HEAD_DIM,
                "D is %zu and Dv %zu, must be in 1 .. %d", D, Dv, (int)R1_MAX_HEAD_DIM);
    arg_bind(a, "H", H);
    arg_bind(a, "H*D", H * D);
    arg_bind(a, "H*Dv", H * Dv);
    arg_bind(a, "Hkv*D", Hkv * D);
    arg_bind(a, "Hkv*Dv", Hkv * Dv);
    if (call_begin(c)) {
        c->ops->attention_bwd(c->dev, dq, dk, dv, dout, o, lse, q, k, v, &seqs, H, Hkv, window,
                              scale, dtype, &c->st);
    }
}

static r1_op ops[] = {
    R1_OP(kv_write, "kv, k, v, seqs, groups"),
    R1_OP(kv_copy, "kv, pairs"),
    R1_OP(kv_read, "k, v, kv"),
    R1_OP(attention_fwd, "o, lse, q, kv, seqs, H, window, scale"),
    R1_OP(attention_bwd, "dq, dk, dv, dout, o, lse, q, k, v, seqs, H, Hkv, window, scale, dtype"),
    {{0}, NULL},
};

int
ops_attention_add(PyObject *module)
{
    return ops_add(module, ops);
}
