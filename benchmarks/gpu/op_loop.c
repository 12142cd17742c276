/* op_loop.c - ops of a backend's table on memory of its own device, again and again.
 *
 *     loop_open(&loop, ops, 0, &spec, message)    operands made and written, the op called once
 *     loop_run(loop, times)                       called `times` times, then waited for
 *     loop_close(loop)
 *
 * The functions of r1grpo._core take arrays of the host, which a GPU reads through its bus; here everything
 * lies where the op has it in a model. The caller has the clock. Operands are random, not 0: a GPU is faster
 * on zeros. Compiled by op_loop.py with the host's compiler; takes any table, so the emulated GPU's too. Calls
 * nothing but the table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops.h"

/* What to call; sizes that an op does not have are 0. op: the position in op_loop.py's OPS. */
enum { COPY, MATMUL_NT, MATMUL_NN, MATMUL_TN, ATTENTION_FWD, ATTENTION_BWD, RMSNORM_FWD, RMSNORM_BWD, ADAMW };
typedef struct {
    size_t op, bf16;
    size_t N, O, I, E;              /* rows, and matrices (O, I); N / E rows of an expert */
    size_t B, T, rows, H, Hkv, D, Dv; /* sequences of T positions, of which the last `rows` are queries */
} loop_spec;

enum { MAX_BLOCKS = 32, NOISE = 1 << 20 };
typedef struct {
    const r1_ops *ops;
    r1_dev *dev;
    r1_status st;
    loop_spec spec;
    size_t blocks; /* memory to give back */
    void *block[MAX_BLOCKS];
    r1_tensor t[12];
    r1_weight *weight;
    r1_kv kv;
    r1_seqs seqs, whole; /* those of the queries, those of all positions */
    int32_t *offsets, *unit;
    float *noise; /* (NOISE) on the host */
} loop;

static void *
loop_alloc(loop *l, size_t bytes)
{
    void *p = l->blocks < MAX_BLOCKS ? l->ops->mem_alloc(l->dev, bytes, &l->st) : NULL;
    if (p == NULL) {
        r1_status_set(&l->st, R1_ENOMEM, "%zu bytes of device memory cannot be had", bytes);
        return NULL;
    }
    l->block[l->blocks++] = p;
    return p;
}

/* (rows, cols) of random numbers. */
static r1_tensor
loop_tensor(loop *l, size_t rows, size_t cols)
{
    size_t count = rows * cols;
    r1_tensor x = r1_f32(loop_alloc(l, count * sizeof(float)), rows, cols);
    for (size_t i = 0; x.data != NULL && i < count; i += NOISE) {
        size_t n = count - i < NOISE ? count - i : NOISE;
        l->ops->mem_upload(l->dev, (float *)x.data + i, l->noise, n * sizeof(float), &l->st);
    }
    return x;
}

/* count numbers f(i) as int32 on the device */
static int32_t *
loop_ids(loop *l, size_t count, size_t (*f)(const loop_spec *, size_t i))
{
    int32_t *p = loop_alloc(l, count * sizeof *p), *host = malloc(count * sizeof *host);
    for (size_t i = 0; host != NULL && i < count; i++) {
        host[i] = (int32_t)f(&l->spec, i);
    }
    if (p != NULL && host != NULL) {
        l->ops->mem_upload(l->dev, p, host, count * sizeof *host, &l->st);
    }
    free(host);
    return p;
}

static size_t id_of(const loop_spec *s, size_t i) { (void)s; return i; }
static size_t unit_of(const loop_spec *s, size_t i) { (void)s; return i / R1_UNIT; }
static size_t offset_of(const loop_spec *s, size_t i) { return i * s->N / s->E; }
static size_t start_of(const loop_spec *s, size_t i) { return i * s->rows; }
static size_t pos0_of(const loop_spec *s, size_t i) { (void)i; return s->T - s->rows; }
static size_t pos_of(const loop_spec *s, size_t i) { return s->T - s->rows + i % s->rows; }
static size_t seq_of(const loop_spec *s, size_t i) { return i / s->rows; }

static r1_seqs
loop_seqs(loop *l, size_t rows, const int32_t *blocks, size_t max_blocks)
{
    l->spec.rows = rows;
    size_t B = l->spec.B, N = B * rows;
    r1_seqs s = {.B = B, .N = N, .max_blocks = max_blocks, .blocks = blocks};
    s.q_start = loop_ids(l, B + 1, start_of);
    s.pos0 = loop_ids(l, B, pos0_of);
    s.pos = loop_ids(l, N, pos_of);
    s.seq = loop_ids(l, N, seq_of);
    s.unit = loop_ids(l, N, unit_of);
    s.prefix = rows == l->spec.T ? s.q_start : NULL;
    return s;
}

static void
make_attention(loop *l)
{
    const loop_spec s = l->spec;
    size_t per = (s.T + R1_KV_BLOCK - 1) / R1_KV_BLOCK, N = s.B * s.T, n = s.B * s.rows;
    l->kv = (r1_kv){NULL, NULL, s.bf16 ? R1_BF16 : R1_F32, s.B * per, s.Hkv, s.D, s.Dv};
    l->kv.k = loop_alloc(l, l->kv.blocks * s.Hkv * r1_kv_k_bytes(&l->kv));
    l->kv.v = loop_alloc(l, l->kv.blocks * s.Hkv * r1_kv_v_bytes(&l->kv));
    int32_t *blocks = loop_ids(l, s.B * per, id_of);
    l->whole = loop_seqs(l, s.T, blocks, per);
    l->seqs = s.rows == s.T ? l->whole : loop_seqs(l, s.rows, blocks, per);
    l->spec = s;
    const r1_tensor made[] = {
        loop_tensor(l, n, s.H * s.D), loop_tensor(l, N, s.Hkv * s.D), loop_tensor(l, N, s.Hkv * s.Dv),
        loop_tensor(l, n, s.H * s.Dv), loop_tensor(l, n, s.H)}; /* q, k, v, o, lse */
    memcpy(l->t, made, sizeof made);
    for (int i = 0; s.bf16 && i < 3 && l->st.code == R1_OK; i++) {
        l->ops->round_bf16(l->dev, &l->t[i], &l->st);
    }
    if (l->st.code == R1_OK) {
        l->ops->kv_write(l->dev, &l->kv, &l->t[1], &l->t[2], &l->whole, &l->st);
    }
    if (s.op == ATTENTION_BWD && l->st.code == R1_OK) {
        l->ops->attention_fwd(l->dev, &l->t[3], &l->t[4], &l->t[0], &l->kv, &l->seqs, s.H, 0, 0.125f, &l->st);
        l->t[5] = loop_tensor(l, n, s.H * s.D);   /* dq, dk, dv, dout */
        l->t[6] = loop_tensor(l, N, s.Hkv * s.D);
        l->t[7] = loop_tensor(l, N, s.Hkv * s.Dv);
        l->t[8] = loop_tensor(l, n, s.H * s.Dv);
    }
}

static void
make_weight(loop *l)
{
    const loop_spec *s = &l->spec;
    size_t count = s->E * s->O * s->I;
    float *host = malloc(count * sizeof *host);
    if (host == NULL) {
        r1_status_set(&l->st, R1_ENOMEM, "no host memory for a weight");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        host[i] = l->noise[i % NOISE];
    }
    if (l->ops->weight_open(l->dev, &l->weight, s->E, s->O, s->I, s->bf16 ? R1_BF16 : R1_F32, NULL,
                            &l->st) == R1_OK) {
        l->ops->weight_write(l->dev, l->weight, host, &l->st);
    }
    free(host);
}

static void
loop_make(loop *l)
{
    const loop_spec *s = &l->spec;
    switch (s->op) {
    case COPY:
        l->t[0] = loop_tensor(l, s->N, s->I);
        l->t[1] = loop_tensor(l, s->N, s->I);
        break;
    case MATMUL_NT:
    case MATMUL_NN:
    case MATMUL_TN:
        l->t[0] = loop_tensor(l, s->N, s->I);
        l->t[1] = loop_tensor(l, s->N, s->O);
        l->offsets = s->E > 1 ? loop_ids(l, s->E + 1, offset_of) : NULL;
        if (s->op == MATMUL_TN) {
            l->t[2] = loop_tensor(l, s->E * s->O, s->I);
            l->unit = loop_ids(l, s->N, unit_of);
        } else {
            make_weight(l);
        }
        break;
    case RMSNORM_FWD:
    case RMSNORM_BWD:
        for (int i = 0; i < 4; i++) {
            l->t[i] = loop_tensor(l, s->N, s->I);
        }
        l->t[4] = loop_tensor(l, s->N, 1);
        l->t[5] = loop_tensor(l, 1, s->I);
        l->t[6] = loop_tensor(l, 1, s->I);
        break;
    case ADAMW:
        make_weight(l);
        for (int i = 0; i < 3; i++) {
            l->t[i] = loop_tensor(l, s->O, s->I);
        }
        break;
    default:
        make_attention(l);
    }
}

static r1_code
loop_call(loop *l)
{
    const r1_ops *ops = l->ops;
    const loop_spec *s = &l->spec;
    const r1_tensor *t = l->t;
    const r1_units units = {l->unit, NULL};
    const r1_adamw_spec how = {1e-6f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f, 10};
    r1_status *st = &l->st;
    switch (s->op) {
    case COPY:
        return ops->scale(l->dev, &t[1], &t[0], 0.5f, st);
    case MATMUL_NT:
        return ops->matmul_nt(l->dev, &t[1], &t[0], l->weight, NULL, l->offsets, 0, st);
    case MATMUL_NN:
        return ops->matmul_nn(l->dev, &t[0], &t[1], l->weight, l->offsets, 0, st);
    case MATMUL_TN:
        return ops->matmul_tn(l->dev, &t[2], &t[1], &t[0], s->E, l->offsets, s->bf16 ? R1_BF16 : R1_F32,
                              &units, 1, st);
    case ATTENTION_FWD:
        return ops->attention_fwd(l->dev, &t[3], &t[4], &t[0], &l->kv, &l->seqs, s->H, 0, 0.125f, st);
    case ATTENTION_BWD:
        return ops->attention_bwd(l->dev, &t[5], &t[6], &t[7], &t[8], &t[3], &t[4], &t[0], &t[1], &t[2],
                                  &l->seqs, s->H, s->Hkv, 0, 0.125f, s->bf16 ? R1_BF16 : R1_F32, st);
    case RMSNORM_FWD:
        return ops->rmsnorm_fwd(l->dev, &t[0], &t[1], &t[4], &t[2], &t[3], &t[5], 1e-6f, st);
    case RMSNORM_BWD:
        return ops->rmsnorm_bwd(l->dev, &t[0], &t[6], &t[1], &t[2], &t[3], &t[4], &t[5], st);
    case ADAMW:
        return ops->weight_adamw(l->dev, l->weight, 0, &t[0], &t[1], &t[2], &how, st);
    default:
        return R1_FAIL(st, R1_EINVAL, "op %zu is unknown", s->op);
    }
}

/* 0, or 1 with the reason in message (320). */
int
loop_run(loop *l, size_t times, char *message)
{
    char last[4];
    for (size_t i = 0; i < times && l->st.code == R1_OK; i++) {
        loop_call(l);
    }
    if (l->st.code == R1_OK) { /* waits for all of them */
        l->ops->mem_download(l->dev, last, l->t[0].data, sizeof last, &l->st);
    }
    memcpy(message, l->st.message, sizeof l->st.message);
    return l->st.code != R1_OK;
}

void
loop_close(loop *l)
{
    if (l != NULL && l->dev != NULL) {
        if (l->weight != NULL) {
            l->ops->weight_close(l->dev, l->weight);
        }
        while (l->blocks > 0) {
            l->ops->mem_free(l->dev, l->block[--l->blocks]);
        }
        l->ops->dev_close(l->dev);
    }
    free(l != NULL ? l->noise : NULL);
    free(l);
}

/* As loop_run; *out is to be closed whatever comes back. */
int
loop_open(loop **out, const r1_ops *ops, size_t ordinal, const loop_spec *spec, char *message)
{
    loop *l = *out = calloc(1, sizeof *l);
    float *noise = l != NULL ? l->noise = malloc(NOISE * sizeof *noise) : NULL;
    if (noise == NULL || ops->abi != R1_OPS_ABI) {
        snprintf(message, sizeof(r1_status), noise == NULL ? "no memory" : "a table of another version");
        return 1;
    }
    uint32_t x = 1;
    for (size_t i = 0; i < NOISE; i++) { /* twelve bits of a linear congruence, -1 .. 1 */
        x = 1664525u * x + 1013904223u;
        noise[i] = (float)(x >> 20) / 2048.0f - (spec->op == ADAMW ? 0.0f : 1.0f); /* a variance is positive */
    }
    l->ops = ops;
    l->spec = *spec;
    if (ops->dev_open(&l->dev, ordinal, &l->st) == R1_OK) {
        loop_make(l);
    }
    return loop_run(l, 1, message);
}
