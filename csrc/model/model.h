/* model.h - the network, written once against the op table: its state, and what bind/ may call.
 *
 *   config.c  can this configuration be?           block.c   one layer, forward then backward
 *   layout.c  every parameter                       mtp.c    the multi-token-prediction module
 *   workspace.c  every buffer of a batch            head.c   hidden -> log-prob, loss, d hidden
 *   linear.c  weight + bias + adapter               model.c  open, close, log-probs and gradients
 *   rope.c    cos and sin of positions              offload.c  layers in host memory
 *   micro.c   sequences -> one packed micro-batch   score.c  the scalar head of reward models
 *   update.c  norm, clip, AdamW, router bias        decode.c sampling (decode_open.c, kvpool.c)
 *             (its batches: decode_batch.c)        graphs.c  steps recorded where a backend can
 *   plan.c    bytes of all this, nothing allocated  speculate.c drafts of the MTP module
 *   rehearse.c what a device holds for itself
 *
 * What these files share with each other alone is internal.h.
 * A model is not locked here: whoever calls owns it. Errors leave the weights as they were, except
 * that an interrupted or failed gradient leaves partial gradients (zero them).
 */
#ifndef R1_MODEL_H
#define R1_MODEL_H

#include "../ops.h"

enum { R1_MAX_LAYERS = 4096 };

/* DeepSeek-V3 (MLA, MoE, MTP) and Llama, Qwen2, Qwen3 shapes (GQA, dense or MoE). */
typedef struct {
    size_t V, C, L, T;            /* vocabulary, width, layers, longest context */
    size_t H, Hkv, D;             /* heads, KV heads, head width (GQA; ignored under MLA) */
    size_t F;                     /* width of the dense FFN */
    size_t q_lora, kv_lora;       /* MLA: latent widths; kv_lora 0: GQA; q_lora 0: q direct */
    size_t Dn, Dr, Dv;            /* MLA: head widths: no-position, rotary, value */
    size_t E, K, Fe, shared;      /* experts (0: dense), per token, width, shared experts */
    size_t groups, top_groups;
    size_t mtp;                   /* 0 or 1 MTP modules */
    unsigned char moe[R1_MAX_LAYERS]; /* (L) 1: the FFN of this layer is a mixture of experts */
    size_t window;                /* sliding window of the layers below; 0: none */
    unsigned char windowed[R1_MAX_LAYERS]; /* (L) 1: attention of this layer is windowed */
    int softmax_gate, normalize, router_bias;
    int qkv_bias;                 /* of q, k, v; MLA: of the projections down to the latents */
    int o_bias, mlp_bias;         /* mlp_bias: dense layers only */
    int qk_norm;                  /* GQA: every head of q and of k is normed before RoPE */
    int tied, interleaved, score;
    int frozen;                   /* no masters, gradients, moments: what forward needs */
    int offload;                  /* in host memory: a frozen model's layers, else Adam's moments */
    size_t lora;                  /* rank of the low-rank adapters; 0: none */
    size_t lora_targets;          /* bit i: the i-th matrix of layout.c's list has one */
    float routed_scale, eps;
    float attn_scale;             /* times (width of q and k)^(-1/2): the scale of the scores */
} r1_config;

/* Rotary positions (rope.c): pair i turns by inv_freq[i] a position; cos and sin are multiplied by factor.
 * Where the frequencies come from is r1grpo/rope.py's business. */
typedef struct {
    const double *inv_freq;       /* (pairs) host */
    size_t pairs;
    double factor;
} r1_rope;

/* ValueError naming the field when the configuration cannot be. */
r1_code r1_config_check(const r1_config *c, r1_status *st);

static inline int
config_mla(const r1_config *c)
{
    return c->kv_lora > 0;
}

static inline size_t /* width of q and k heads */
config_dqk(const r1_config *c)
{
    return config_mla(c) ? c->Dn + c->Dr : c->D;
}

static inline size_t /* width of v heads */
config_dv(const r1_config *c)
{
    return config_mla(c) ? c->Dv : c->D;
}

static inline size_t
config_hkv(const r1_config *c)
{
    return config_mla(c) ? c->H : c->Hkv;
}

static inline size_t /* columns of a head that RoPE turns */
config_rotary(const r1_config *c)
{
    return config_mla(c) ? c->Dr : c->D;
}

static inline int /* is the FFN of layer i a mixture? Of the MTP module's, L, if any is. */
config_moe(const r1_config *c, size_t i)
{
    return i < c->L ? c->moe[i] : c->E > 0;
}

static inline size_t /* layers with a dense FFN, the MTP module's counted */
config_dense(const r1_config *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->L + c->mtp; i++) {
        n += !config_moe(c, i);
    }
    return n;
}

/* ---- parameters ---------------------------------------------------------------------------- */

enum { R1_MAX_USES = 4 };

/* One tensor of the state dict; experts are one parameter of E matrices. A matrix lives in an
 * r1_weight, a vector (1, I) in the arena. A parameter used in several places has a gradient
 * accumulator per use, so that micro-batches cannot change the order of its sums. */
typedef struct {
    char name[96];    /* Hugging Face name; '*' stands for the expert's number */
    size_t E, O, I;
    r1_dtype dtype;    /* of what products see; values, gradients and moments are float32 */
    r1_weight *weight; /* NULL: a vector */
    r1_tensor value;   /* (E O, I): the weight's master (data NULL: frozen), or the vector */
    void *packed;      /* of an off-loaded layer: where on the device its packed copy comes to lie */
    int trained;       /* 0: the router's selection bias; all but the adapters where there are any;
                        * all of a frozen model */
    size_t uses;
    r1_tensor grad[R1_MAX_USES]; /* (E O, I) float32 each */
    int cleared[R1_MAX_USES];    /* of a matrix: counts as 0, whatever its memory still holds */
    r1_tensor m, v;              /* Adam's moments */
} r1_param;

/* What the model multiplies with; linear.c has the equation. use: which accumulator. */
typedef struct {
    r1_param *weight, *bias; /* bias may be NULL */
    size_t use;
    r1_param *down, *up;     /* adapter: (E, lora, I) and (E, O, lora); NULL: none */
} r1_linear;

static inline const r1_tensor * /* where a vector's gradient is added up; NULL: it is frozen */
param_grad(const r1_param *p, size_t use)
{
    return p->trained ? &p->grad[use] : NULL;
}

typedef struct {
    size_t window;                           /* of its attention; 0: none */
    r1_param *attn_norm, *ffn_norm;
    r1_linear q, k, v, o;                    /* GQA; o also under MLA, q when q_lora is 0 */
    r1_linear q_a, q_b, kv_a, kv_b;          /* MLA */
    r1_param *q_norm, *kv_norm;              /* of MLA's latents, or of every head of q and of k */
    int moe;
    r1_linear gate, up, down;                /* dense FFN, or the shared experts */
    r1_linear router, egate, eup, edown;     /* MoE */
    r1_param *router_bias;                   /* NULL without */
    int64_t *load;                           /* (E) device: rows per expert since the last update */
    size_t first, end;                       /* its parameters, adapters left out */
} r1_layer;

/* The layers of a frozen model that lie in host memory: offload.c. */
typedef struct {
    unsigned char *host;                     /* NULL: they do not */
    unsigned char *buffer[2];                /* device memory: layer i computes in buffer i % 2 */
    size_t start[R1_MAX_LAYERS + 1];         /* byte of `host` where a layer begins */
    size_t held[2];                          /* 1 + the layer in each buffer; 0: none */
} r1_offload;

/* Activations of one layer for N rows; what backward needs of it. See block.c for the equations.
 * The stream s0 is the caller's: it outlives the rest where that is recomputed. Backward leaves the
 * gradients of gate, up, egate, eup and ys in their places. */
typedef struct {
    r1_tensor s0, r0, h0;                 /* stream in (N, C), rstd (N, 1), normed (N, C) */
    r1_tensor qa, rq, qn;                 /* MLA q latent (N, q_lora), rstd, normed */
    r1_tensor kva, rkv, cn;               /* MLA (N, kv_lora + Dr), rstd, normed latent */
    r1_tensor q0, k0;                     /* with qk_norm: q, k before it; rq (N, H), rkv (N, Hkv) */
    r1_tensor q, k, v, o, lse;            /* (N, H Dqk) (N, Hkv Dqk) (N, Hkv Dv) (N, H Dv) (N, H) */
    r1_tensor s1, r1, h1;                 /* stream after attention, rstd, normed */
    r1_tensor gate, up, act;              /* (N, F) dense or shared */
    r1_tensor scores, weight;             /* (N, E) (N, K) */
    int32_t *idx, *offsets, *source, *place; /* (N K) (E + 1) (N K) (N K) */
    r1_tensor xs, egate, eup, eact, ys;   /* (N K, C) (N K, Fe) x3 (N K, C) */
    r1_tensor f;                          /* FFN output (N, C) */
} r1_acts;

/* Temporaries of forward and backward, shared by all layers; N rows. */
typedef struct {
    r1_tensor a, kvb, logits;             /* attention output (N, C), (N, H (Dn + Dv)), (N, E) */
    r1_tensor low, dlow;                  /* of an adapter (N K, lora): see linear.c */
    r1_tensor ds, dh;                     /* (N, C) */
    r1_tensor dq, dk, dv, dout, dqa, dqn, dkva, dcn, dkvb;
    r1_tensor dq0, dk0;                   /* with qk_norm: gradients of q0, k0 */
    r1_tensor dact;                       /* (N, F) */
    r1_tensor dxs, dweight, dscores, dlogits; /* (N K, C) (N, K) (N, E) x2 */
    r1_tensor balance, balance_sum;       /* (B, 1) of one layer, of all */
    r1_tensor deact;                      /* (N K, Fe) */
} r1_temps;

/* What the MTP module has beside its layer's activations, N rows; mtp.c has the equations. */
typedef struct {
    r1_tensor emb, cat, re, rh;           /* embedding (N, C), both normed (N, 2 C), rstds (N, 1) */
    r1_tensor x, y, s, r;                 /* into the layer (N, C); final norm: output, stream, rstd */
} r1_mtp;

/* What is kept of a forward pass: its output; what enters each layer, from which backward computes
 * the layer's activations again, to the same bits; or every layer's activations. */
typedef enum { R1_KEEP_NONE, R1_KEEP_STREAM, R1_KEEP_ALL } r1_keep;

/* Buffers for one packed batch of at most `rows` rows and `seqs` sequences, with `blocks` KV blocks
 * and a block table of `table` entries. */
typedef struct {
    size_t rows, seqs, blocks, table, threads;
    r1_keep keep;
    void *memory;
    size_t kept;                          /* layers whose activations are stored: L, or 1 for all */
    r1_acts *acts;                        /* (kept, and one for MTP) host array */
    r1_temps t;
    r1_tensor streams;                    /* (layers rows, C) s0 of all layers, or of one for all */
    r1_tensor y, s, r, dy;                /* final norm: output, stream, rstd; d y */
    r1_mtp mtp;
    r1_tensor demb, dcat;                 /* of mtp.emb and mtp.cat */
    r1_acts *mtp_acts;                    /* shares acts[0] where all is recomputed */
    r1_tensor hm, dhm;                    /* (rows, C) rows that carry a loss */
    r1_tensor logits;                     /* (chunk, V) */
    r1_tensor vec[12];                    /* (rows, 1) loss inputs and outputs: see head.c */
    void *logp_scratch;
    int32_t *draft;                       /* (rows) most likely tokens of the MTP module */
    int32_t *ints;                        /* the integers of a micro-batch: see micro.c */
    r1_kv kv;                             /* one layer's blocks: training and scoring */
} r1_workspace;

typedef struct {
    r1_config config;
    r1_dtype dtype;                       /* of weights and KV cache: float32 or bf16 */
    size_t live;                          /* see model_live */
    float adapter_scale;                  /* of all adapters; 0: the model without them */
    const r1_temps *temps;                /* of the pass at work, for linear.c */
    const r1_ops *ops;
    r1_dev *dev;
    size_t n_params;
    r1_param *params;
    r1_layer *layers;                     /* (L + mtp) */
    r1_param *embed, *norm;
    r1_linear head, mtp_head, eh, score;
    r1_param *enorm, *hnorm, *mtp_norm;
    size_t mtp_embed_use;
    double *inv_freq, rope_factor;        /* r1_rope, copied */
    r1_tensor rope;                       /* (positions so far, Dr): cos, sin; see rope_reserve */
    void *vectors, *grads, *moments;      /* device memory of all vectors, gradients, moments */
    void *packed;                         /* of a frozen model's matrices, unless it is given */
    r1_offload offload;
    int64_t *loads;                       /* (L + mtp, E) */
    uint64_t step;                        /* optimiser updates so far */
    uint64_t version;                     /* counts every change of a weight */
    uint64_t moved;                       /* and of where a workspace or the rotary table lies */
    r1_workspace train, infer;
    int (*poll)(void *);                  /* nonzero: stop with R1_EINTR */
    void *poll_ctx;
} r1_model;

/* packed: NULL, or memory for a frozen model's packed matrices, of as many bytes as the plan says,
 * zeroed, 64-byte aligned, which outlives the model: a file that the caller has mapped, say. */
r1_code r1_model_open(r1_model **m, const r1_config *c, r1_dtype dtype, const r1_rope *rope,
                      r1_arena *packed, const r1_ops *ops, r1_dev *dev, r1_status *st);
void r1_model_close(r1_model *m);
/* The parameters that a model of this configuration would have: names and shapes, nothing behind
 * them. The caller frees *params with r1_free. */
r1_code r1_model_params(r1_param **params, size_t *n, const r1_config *c, r1_status *st);
/* Allocate gradients and Adam's moments, zeroed, if absent; a frozen model has none: R1_EINVAL. */
r1_code r1_model_grads(r1_model *m, r1_status *st);
r1_code r1_model_moments(r1_model *m, r1_status *st);
/* Copies a whole parameter out (what: value, gradient, Adam's m and v) or, but for gradients, in. */
enum { R1_VALUE, R1_GRAD, R1_MOMENT1, R1_MOMENT2 };
r1_code r1_param_read(r1_model *m, size_t i, int what, float *out, r1_status *st);
r1_code r1_param_write(r1_model *m, size_t i, int what, const float *in, r1_status *st);

static inline r1_code
model_poll(r1_model *m, r1_status *st)
{
    if (m->poll != NULL && m->poll(m->poll_ctx)) {
        return R1_FAIL(st, R1_EINTR, "interrupted");
    }
    return R1_OK;
}

/* The columns of logits (n, V) that have a probability: the first `live` ids, all unless told. Rows of
 * the head beyond the tokenizer (a padded vocabulary) are never drawn and count in no softmax, whether
 * of the sampler or of training. */
static inline r1_tensor
model_live(const r1_model *m, const r1_tensor *logits)
{
    return r1_cols(logits, 0, m->live);
}
/* 1 <= live <= V. Sessions that are open end, as after a change of a weight. */
r1_code r1_model_set_live(r1_model *m, size_t live, r1_status *st);
/* Adam's moments are to lie in host memory: before there are any. */
r1_code r1_model_set_offload(r1_model *m, int offload, r1_status *st);
/* s of linear.c for all adapters; 0 leaves them out. Sessions that are open end. */
r1_code r1_model_set_adapter_scale(r1_model *m, float scale, r1_status *st);

/* ---- log-probs and gradients ---------------------------------------------------------------- */

/* B sequences, packed. Tokens first[b] .. of sequence b are targets: M of them in all, in order. */
typedef struct {
    size_t B;
    const int32_t *ids;                   /* (N) */
    const int32_t *start;                 /* (B + 1) */
    const int32_t *first;                 /* (B) >= 1 */
    const int32_t *group;                 /* (B) neighbours of one group have the same prompt, tokens
                                           * 0 .. first[b] - 1, and share its rows; NULL: none do */
    int pairs;                            /* sequences 2i and 2i + 1 stay in one micro-batch */
    const float *weight, *adv, *old_logp, *ref_logp; /* (M), NULL where unused */
} r1_batch;

typedef struct {
    int grad;                             /* 0: forward only */
    int recompute;                        /* backward: layers once more instead of keeping them */
    int base;                             /* the adapters are left out */
    r1_loss_spec loss;
    r1_sampling sampling;
    float mtp_coef;                       /* 0: the MTP module does not run */
    int mtp_detach;                       /* its gradient stops at the trunk */
    float balance_coef;
    size_t micro_rows;                    /* packed rows of a micro-batch, at least one part: micro.c */
} r1_pass;

/* Host arrays, NULL where not wanted. */
typedef struct {
    float *logp, *entropy, *loss, *kl, *clipped; /* (M) */
    float *mtp_loss;                      /* (M) unweighted -log p of the MTP module, 0 where none */
    int32_t *mtp_draft;                   /* (M) its most likely token, -1 where none */
    float *balance;                       /* (B) balance loss, summed over layers */
} r1_outputs;

r1_code r1_model_run(r1_model *m, const r1_batch *batch, const r1_pass *pass, r1_outputs *out,
                     r1_status *st);
r1_code r1_model_zero_grad(r1_model *m, r1_status *st);

/* Scalar head at the last token: scores (B). With a form: adds the gradient too. label (B). */
typedef struct {
    int grad, recompute;
    r1_score_form form;
    float scale;
    size_t micro_rows;
} r1_score_pass;
r1_code r1_model_score(r1_model *m, const r1_batch *batch, const float *label,
                       const r1_score_pass *pass, float *score, float *loss, r1_status *st);

/* ---- update --------------------------------------------------------------------------------- */

typedef struct {
    float lr, beta1, beta2, eps, weight_decay, max_norm; /* max_norm 0: no clipping */
} r1_update_spec;
r1_code r1_model_update(r1_model *m, const r1_update_spec *spec, double *norm, r1_status *st);
r1_code r1_model_router_update(r1_model *m, float rate, r1_status *st);

/* ---- memory plan: plan.c --------------------------------------------------------------------- */

typedef struct {
    size_t master, packed, vectors; /* parameters: matrices, their packed copies, all the rest */
    size_t grads, moments, update;  /* update: what an optimiser step takes while it runs */
    size_t host;                    /* in host memory: matrices, moments */
    size_t own;                     /* and in each of these: what the device then holds for itself */
} r1_model_bytes;
typedef struct {
    size_t acts, head, cache;       /* activations and rotary table; hidden states to losses; one
                                     * layer's KV */
    size_t own;
} r1_pass_bytes;
typedef struct {
    size_t slots, kv, rest;         /* sequences at a time; KV blocks; lists and results */
    r1_pass_bytes pass;
} r1_decode_bytes;

/* What a model of this configuration takes, and a call on it: r1_model_run of a batch without
 * its ids and targets, a decode session of P equal prompts. Nothing of it is allocated. */
r1_code r1_plan_model(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
                      r1_model_bytes *out, r1_status *st);
r1_code r1_plan_pass(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
                     const r1_batch *batch, size_t micro_rows, r1_keep keep, r1_pass_bytes *out,
                     r1_status *st);
r1_code r1_plan_decode(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
                       size_t P, size_t G, size_t prompt, size_t max_new, size_t slots,
                       int speculative, r1_decode_bytes *out, r1_status *st);

/* ---- decode ---------------------------------------------------------------------------------- */

typedef struct r1_decode r1_decode;
typedef struct {
    size_t P, G, max_new;
    const int32_t *ids, *start;           /* prompts packed (start: P + 1) */
    const int32_t *sample_ids;            /* (P) first word of the random counter */
    const int32_t *stop;                  /* (n_stop) */
    size_t n_stop, slots;                 /* sequences decoded at a time */
    int speculative;                      /* the MTP module guesses: see speculate.c */
    uint64_t key;
    r1_sampling sampling;
} r1_decode_spec;

typedef struct { /* of sequence p G + g */
    const int32_t *ids;
    const float *logp;
    size_t length;
    int done, stopped; /* stopped: by a stop token or r1_decode_stop; else out of room */
} r1_sequence;

r1_code r1_decode_open(r1_decode **d, r1_model *m, const r1_decode_spec *spec, r1_status *st);
void r1_decode_close(r1_decode *d);
/* Up to `tokens` more for every live sequence; *live = sequences not done. */
r1_code r1_decode_run(r1_decode *d, size_t tokens, size_t *live, r1_status *st);
r1_sequence r1_decode_get(const r1_decode *d, size_t i);
/* Guesses of the MTP module that a step looked at, and how many of them were right. */
void r1_decode_drafts(const r1_decode *d, uint64_t *proposed, uint64_t *accepted);
/* Cuts sequence i to its first `keep` tokens and ends it. One that has not started goes on. */
void r1_decode_stop(r1_decode *d, size_t i, size_t keep);

#endif
