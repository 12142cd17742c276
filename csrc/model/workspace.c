/* workspace.c - the buffers of one packed batch, sized from the configuration first.
 *
 * One function places every tensor; run without memory it measures. Training keeps the activations
 * of all layers, or with recomputation (Chen et al. 2016) only the stream that enters each; forward
 * passes reuse one layer's. Every tensor has `rows` rows; a batch of fewer rows uses views cut to its
 * N (acts_view, temps_view).
 */
#include <string.h>

#include "internal.h"

static r1_tensor
push(r1_arena *a, size_t rows, size_t cols)
{
    return r1_f32(r1_arena_push(a, rows, cols * sizeof(float)), rows, cols);
}

/* The widest FFN that is no routed expert: a dense layer's, or the shared experts'. */
static size_t
ffn_width(const r1_config *c)
{
    size_t dense = config_dense(c) > 0 ? c->F : 0;
    size_t shared = c->E > 0 ? c->shared * c->Fe : 0;
    return dense > shared ? dense : shared;
}

static void
acts_place(r1_acts *a, r1_arena *ar, const r1_config *c, size_t n)
{
    size_t H = c->H, Hkv = config_hkv(c), D = config_dqk(c), Dv = config_dv(c);
    size_t F = ffn_width(c);
    a->r0 = push(ar, n, 1);
    a->h0 = push(ar, n, c->C);
    if (config_mla(c)) {
        a->qa = push(ar, n, c->q_lora);
        a->rq = push(ar, n, 1);
        a->qn = push(ar, n, c->q_lora);
        a->kva = push(ar, n, c->kv_lora + c->Dr);
        a->rkv = push(ar, n, 1);
        a->cn = push(ar, n, c->kv_lora);
    } else if (c->qk_norm) {
        a->q0 = push(ar, n, H * D);
        a->rq = push(ar, n, H);
        a->k0 = push(ar, n, Hkv * D);
        a->rkv = push(ar, n, Hkv);
    }
    a->q = push(ar, n, H * D);
    a->k = push(ar, n, Hkv * D);
    a->v = push(ar, n, Hkv * Dv);
    a->o = push(ar, n, H * Dv);
    a->lse = push(ar, n, H);
    a->s1 = push(ar, n, c->C);
    a->r1 = push(ar, n, 1);
    a->h1 = push(ar, n, c->C);
    a->gate = push(ar, n, F);
    a->up = push(ar, n, F);
    a->act = push(ar, n, F);
    a->f = push(ar, n, c->C);
    if (c->E > 0) {
        a->scores = push(ar, n, c->E);
        a->weight = push(ar, n, c->K);
        a->idx = r1_arena_push(ar, n * c->K, sizeof(int32_t));
        a->offsets = r1_arena_push(ar, c->E + 1, sizeof(int32_t));
        a->source = r1_arena_push(ar, n * c->K, sizeof(int32_t));
        a->place = r1_arena_push(ar, n * c->K, sizeof(int32_t));
        a->xs = push(ar, n * c->K, c->C);
        a->egate = push(ar, n * c->K, c->Fe);
        a->eup = push(ar, n * c->K, c->Fe);
        a->eact = push(ar, n * c->K, c->Fe);
        a->ys = push(ar, n * c->K, c->C);
    }
}

static void
temps_place(r1_temps *t, r1_arena *ar, const r1_config *c, size_t n, size_t seqs, r1_keep keep)
{
    size_t H = c->H, Hkv = config_hkv(c), D = config_dqk(c), Dv = config_dv(c);
    size_t F = ffn_width(c);
    t->a = push(ar, n, c->C);
    t->kvb = push(ar, n, config_mla(c) ? H * (c->Dn + c->Dv) : 0);
    t->logits = push(ar, n, c->E);
    t->low = push(ar, c->E > 0 ? n * c->K : n, c->lora);
    if (keep == R1_KEEP_NONE) {
        return;
    }
    t->dlow = push(ar, c->E > 0 ? n * c->K : n, c->lora);
    t->ds = push(ar, n, c->C);
    t->dh = push(ar, n, c->C);
    t->dq = push(ar, n, H * D);
    t->dk = push(ar, n, Hkv * D);
    t->dv = push(ar, n, Hkv * Dv);
    t->dout = push(ar, n, H * Dv);
    t->dqa = push(ar, n, c->q_lora);
    t->dqn = push(ar, n, c->q_lora);
    t->dkva = push(ar, n, c->kv_lora + c->Dr);
    t->dcn = push(ar, n, c->kv_lora);
    t->dkvb = push(ar, n, config_mla(c) ? H * (c->Dn + c->Dv) : 0);
    t->dq0 = push(ar, n, c->qk_norm ? H * D : 0);
    t->dk0 = push(ar, n, c->qk_norm ? Hkv * D : 0);
    t->dact = push(ar, n, F);
    t->dxs = push(ar, n * c->K, c->C);
    t->dweight = push(ar, n, c->K);
    t->dscores = push(ar, n, c->E);
    t->dlogits = push(ar, n, c->E);
    t->balance = push(ar, seqs, 1);
    t->balance_sum = push(ar, seqs, 1);
    t->deact = push(ar, n * c->K, c->Fe);
}

void
mtp_place(r1_mtp *io, r1_arena *ar, const r1_config *c, size_t n)
{
    io->emb = push(ar, n, c->C);
    io->cat = push(ar, n, 2 * c->C);
    io->re = push(ar, n, 1);
    io->rh = push(ar, n, 1);
    io->x = push(ar, n, c->C);
    io->y = push(ar, n, c->C);
    io->s = push(ar, n, c->C);
    io->r = push(ar, n, 1);
}

/* Rows of logits at a time: about a megabyte of them so that they stay in the cache, but at least
 * 256 rows, since every chunk reads the head's matrix, which does not fit where V is large, and
 * twice as many where it reads it twice more and adds to its gradient; never tokens x V. */
static size_t
head_chunk(const r1_workspace *ws, const r1_config *c)
{
    size_t chunk = (size_t)262144 / c->V, least = ws->keep != R1_KEEP_NONE ? 512 : 256;
    chunk = chunk < least ? least : chunk;
    return chunk < ws->rows ? chunk : ws->rows;
}

/* Activations of the layers and of the MTP module, and what is beside them. */
static void
trunk_place(r1_workspace *ws, r1_arena *ar, const r1_config *c)
{
    size_t n = ws->rows;
    int grad = ws->keep != R1_KEEP_NONE;
    for (size_t i = 0; i < ws->kept; i++) {
        acts_place(&ws->acts[i], ar, c, n);
    }
    temps_place(&ws->t, ar, c, n, ws->seqs, ws->keep);
    ws->streams = push(ar, (grad ? c->L : 1) * n, c->C);
    ws->y = push(ar, n, c->C);
    ws->s = push(ar, n, c->C);
    ws->r = push(ar, n, 1);
    if (grad && c->mtp) {
        if (ws->mtp_acts != ws->acts) {
            acts_place(ws->mtp_acts, ar, c, n);
        }
        mtp_place(&ws->mtp, ar, c, n);
        ws->demb = push(ar, n, c->C);
        ws->dcat = push(ar, n, 2 * c->C);
    }
    ws->dy = push(ar, grad ? n : 0, c->C);
    ws->ints = r1_arena_push(ar, 11 * n + 4 * ws->seqs + 1 + ws->table, sizeof(int32_t));
}

/* From hidden states to losses and back: a chunk of logits, and vectors of the rows. */
static void
head_place(r1_workspace *ws, r1_arena *ar, const r1_model *m)
{
    const r1_config *c = &m->config;
    size_t n = ws->rows;
    ws->hm = push(ar, n, c->C);
    ws->dhm = push(ar, ws->keep != R1_KEEP_NONE ? n : 0, c->C);
    ws->logits = push(ar, head_chunk(ws, c), c->V);
    for (size_t i = 0; i < sizeof ws->vec / sizeof ws->vec[0]; i++) {
        ws->vec[i] = push(ar, n, 1);
    }
    ws->logp_scratch = r1_arena_push(ar, m->ops->logp_scratch(m->dev, c->V), 1);
    ws->draft = r1_arena_push(ar, n, sizeof(int32_t));
}

static void
cache_place(r1_workspace *ws, r1_arena *ar, const r1_model *m)
{
    const r1_config *c = &m->config;
    size_t Hkv = config_hkv(c), D = config_dqk(c), Dv = config_dv(c);
    ws->kv = (r1_kv){.dtype = m->dtype, .blocks = ws->blocks, .Hkv = Hkv, .D = D, .Dv = Dv};
    ws->kv.k = r1_arena_push(ar, ws->blocks * Hkv, r1_kv_k_bytes(&ws->kv));
    ws->kv.v = r1_arena_push(ar, ws->blocks * Hkv, r1_kv_v_bytes(&ws->kv));
}

static void
workspace_place(r1_workspace *ws, r1_arena *ar, const r1_model *m)
{
    trunk_place(ws, ar, &m->config);
    head_place(ws, ar, m);
    cache_place(ws, ar, m);
}

/* The workspace of these sizes, without its memory. */
static r1_code
workspace_shape(r1_model *m, r1_workspace *ws, size_t rows, size_t seqs, size_t blocks,
                size_t table, r1_keep keep, r1_status *st)
{
    *ws = (r1_workspace){.rows = rows, .seqs = seqs, .blocks = blocks, .table = table,
                         .keep = keep, .threads = m->ops->dev_threads(m->dev),
                         .kept = keep == R1_KEEP_ALL ? m->config.L : 1};
    r1_acts *acts = r1_alloc(ws->kept + 1, sizeof *acts);
    if (acts == NULL) {
        *ws = (r1_workspace){0};
        return R1_FAIL(st, R1_ENOMEM, "out of memory for activations");
    }
    ws->acts = acts;
    ws->mtp_acts = &acts[keep == R1_KEEP_STREAM ? 0 : ws->kept]; /* it is done before the layers */
    return R1_OK;
}

r1_code
workspace_measure(r1_model *m, size_t rows, size_t seqs, size_t blocks, size_t table, r1_keep keep,
                  r1_pass_bytes *out, r1_status *st)
{
    r1_workspace ws;
    r1_arena acts = {0}, head = {0}, cache = {0};
    R1_TRY(workspace_shape(m, &ws, rows, seqs, blocks, table, keep, st));
    trunk_place(&ws, &acts, &m->config);
    head_place(&ws, &head, m);
    cache_place(&ws, &cache, m);
    *out = (r1_pass_bytes){acts.used, head.used, cache.used, 0};
    r1_free(ws.acts);
    return R1_OK;
}

void
workspace_release(r1_model *m, r1_workspace *ws)
{
    if (ws->memory != NULL) {
        m->ops->mem_free(m->dev, ws->memory);
    }
    r1_free(ws->acts);
    *ws = (r1_workspace){0};
}

r1_code
workspace_reserve(r1_model *m, r1_workspace *ws, size_t rows, size_t seqs, size_t blocks,
                  size_t table, r1_keep keep, r1_status *st)
{
    size_t threads = m->ops->dev_threads(m->dev); /* each has its share of the scratch */
    if (ws->memory != NULL && rows <= ws->rows && seqs <= ws->seqs && blocks <= ws->blocks &&
        table <= ws->table && keep == ws->keep && threads <= ws->threads) {
        return R1_OK;
    }
    r1_workspace old = *ws;
    workspace_release(m, ws);
    m->moved++;
    R1_TRY(workspace_shape(m, ws, rows > old.rows ? rows : old.rows,
                           seqs > old.seqs ? seqs : old.seqs,
                           blocks > old.blocks ? blocks : old.blocks,
                           table > old.table ? table : old.table, keep, st));
    r1_arena a = {0};
    workspace_place(ws, &a, m);
    a.size = a.used;
    ws->memory = a.base = m->ops->mem_alloc(m->dev, a.size, st);
    if (a.base == NULL) {
        size_t bytes = a.size;
        workspace_release(m, ws);
        return R1_FAIL(st, R1_ENOMEM, "out of memory: %zu bytes of activations for %zu rows",
                       bytes, rows);
    }
    a.used = 0;
    workspace_place(ws, &a, m);
    return R1_OK;
}

r1_acts
acts_view(const r1_acts *a, size_t N, size_t K)
{
    r1_acts v = *a;
    r1_tensor *by_row[] = {&v.r0, &v.h0, &v.qa,   &v.rq, &v.qn,  &v.kva, &v.rkv, &v.cn,
                           &v.q0, &v.k0, &v.q,    &v.k,  &v.v,   &v.o,   &v.lse, &v.s1,
                           &v.r1, &v.h1, &v.gate, &v.up, &v.act, &v.f,   &v.scores, &v.weight};
    r1_tensor *by_slot[] = {&v.xs, &v.egate, &v.eup, &v.eact, &v.ys};
    for (size_t i = 0; i < sizeof by_row / sizeof by_row[0]; i++) {
        by_row[i]->rows = N;
    }
    for (size_t i = 0; i < sizeof by_slot / sizeof by_slot[0]; i++) {
        by_slot[i]->rows = N * K;
    }
    return v;
}

r1_temps
temps_view(const r1_temps *t, size_t N, size_t B, size_t K)
{
    r1_temps v = *t;
    r1_tensor *by_row[] = {&v.a,   &v.kvb, &v.logits, &v.ds,   &v.dh,  &v.dq,      &v.dk,
                           &v.dv,  &v.dout, &v.dqa,   &v.dqn,  &v.dkva, &v.dcn,    &v.dkvb,
                           &v.dact, &v.dweight, &v.dscores, &v.dlogits,
                           &v.dq0, &v.dk0};
    r1_tensor *by_slot[] = {&v.dxs, &v.deact};
    for (size_t i = 0; i < sizeof by_row / sizeof by_row[0]; i++) {
        by_row[i]->rows = N;
    }
    for (size_t i = 0; i < sizeof by_slot / sizeof by_slot[0]; i++) {
        by_slot[i]->rows = N * K;
    }
    v.balance.rows = v.balance_sum.rows = B;
    return v;
}

r1_mtp
mtp_view(const r1_mtp *io, size_t N)
{
    r1_mtp v = *io;
    r1_tensor *by_row[] = {&v.emb, &v.cat, &v.re, &v.rh, &v.x, &v.y, &v.s, &v.r};
    for (size_t i = 0; i < sizeof by_row / sizeof by_row[0]; i++) {
        by_row[i]->rows = N;
    }
    return v;
}
