/* ops.h - THE op table: every op of the network, its equation, its shapes, what forward saves.
 *
 * A backend fills one `r1_ops`; no entry is optional but those of plans and graphs. The model calls nothing else.
 *
 * Rules of every op
 *   - Argument order: device, outputs, inputs, sizes and options, status. Inputs are const.
 *   - Forward overwrites every element of its outputs. Backward ACCUMULATES into parameter gradients
 *     (float32, one chain per element over rows in ascending order that starts from the value in
 *     memory, so that splitting the rows over calls cannot change a bit; matmul_tn may go by units of
 *     rows: r1_units) and OVERWRITES activation gradients. An op at a branch takes the other branch's
 *     gradient as an addend (`add`, may be NULL).
 *   - What a row of an output holds depends on that row's inputs only: never on the number of rows,
 *     their order, or the threads.
 *   - Outputs do not alias inputs unless the op says "in place".
 *   - Sizes are validated by the caller (bind/ or model/); ops assert. They return a code because a
 *     device may fail.
 *   - All pointers are device memory. Arrays of counts (offsets, ids, positions) are never read back.
 */
#ifndef R1_OPS_H
#define R1_OPS_H

#include "r1.h"

enum {
    R1_OPS_ABI = 5,
    R1_KV_BLOCK = 64,
    R1_MAX_HEAD_DIM = 256,
    R1_MAX_TOPK = 64,
    R1_MAX_EXPERTS = 1024
};

typedef struct r1_dev r1_dev;       /* a backend's device: threads or streams, handles */
typedef struct r1_weight r1_weight; /* E matrices (O, I): float32 master and packed copies */
typedef struct r1_graph r1_graph;   /* ops that a backend has recorded */

/* Sequences packed one after another: rows q_start[b] .. q_start[b + 1] of sequence b are its
 * positions pos0[b] .. . Decode: keys of positions 0 .. pos0[b] - 1 were written before.
 * Training: sequences that share their first S positions stand together, a group. The first has all
 * of its rows (pos0 0); the others continue its rows of positions 0 .. S - 1 (pos0 S), which are
 * theirs too. `prefix` says where those begin; a group of one sequence shares nothing.
 * Position t of sequence b lives in KV block blocks[b * max_blocks + t / 64], slot t % 64. A group
 * shares the S / 64 blocks that its prefix fills; the block it ends in each has for itself. */
typedef struct {
    size_t B, N, max_blocks;
    const int32_t *q_start; /* (B + 1) */
    const int32_t *pos0;    /* (B) */
    const int32_t *blocks;  /* (B, max_blocks) */
    const int32_t *pos;     /* (N) position of each row */
    const int32_t *seq;     /* (N) sequence of each row */
    const int32_t *unit;    /* (N) r1_units: rows of one sequence in one block of positions; NULL in decode */
    const int32_t *prefix;  /* (B) row of position 0, q_start[b] where pos0[b] is 0; NULL in decode */
} r1_seqs;

/* Which rows of a sum may be added up in one go: neighbours of one unit, which is row n's id[row[n]], or
 * id[n] where row is NULL. A unit has at most R1_UNIT rows and never lies in two micro-batches, so an
 * op that adds up many rows at once, in an order of its own, gives the same bits however a batch is cut. */
enum { R1_UNIT = 32 };
typedef struct {
    const int32_t *id, *row;
} r1_units;

/* One layer's KV cache. Block b, KV head h: K is (D, 64) at k + (b Hkv + h) D 64, keys side by side
 * so that one query meets 64 keys at a time; V is (64, Dv) at v + (b Hkv + h) 64 Dv. In bf16 K is
 * (ceil(D / 2), 64) of pairs: rows 2i in the upper, 2i + 1 in the lower half of 32 bits. */
typedef struct {
    void *k, *v;
    r1_dtype dtype;
    size_t blocks, Hkv, D, Dv;
} r1_kv;

/* Bytes of one block of one KV head: of K, of V. */
static inline size_t
r1_kv_k_bytes(const r1_kv *kv)
{
    return R1_KV_BLOCK * 4 * (kv->dtype == R1_BF16 ? (kv->D + 1) / 2 : kv->D);
}

static inline size_t
r1_kv_v_bytes(const r1_kv *kv)
{
    return R1_KV_BLOCK * kv->Dv * (kv->dtype == R1_BF16 ? 2 : 4);
}

/* DeepSeekMoE routing, DeepSeek-V3 eq. 12-16 and its Gate. */
typedef struct {
    size_t E, K;
    size_t groups, top_groups; /* 1, 1: no grouping */
    int softmax;               /* 0: sigmoid gate */
    int normalize;             /* divide the K weights by their sum + 1e-20 */
    float scale;               /* routed_scaling_factor */
} r1_router_spec;

/* Temperature 0 is argmax (lowest id wins ties); 0, 1 and 0 switch the filters off. */
typedef struct {
    float temperature;
    int32_t top_k;
    float top_p, min_p;
} r1_sampling;

typedef enum { R1_LOSS_NLL, R1_LOSS_CLIP, R1_LOSS_CISPO } r1_loss_form;
typedef enum { R1_KL_K1, R1_KL_K2, R1_KL_K3 } r1_kl; /* estimators of the KL to the reference */

typedef struct {
    r1_loss_form form;
    float scale;              /* multiplies every token's loss: 1 / total_tokens */
    float eps_low, eps_high;  /* clip: range 1 - eps_low .. 1 + eps_high; cispo: weight <= eps_high */
    float delta;              /* clip: bound of the ratio outside the range; infinity: none */
    r1_kl kl;
    int kl_ratio;             /* the KL is multiplied by rho */
    float beta;               /* coefficient of the KL */
    float entropy_coef;       /* subtracts entropy_coef x entropy from the token's loss */
} r1_loss_spec;

typedef enum { R1_SCALE_NONE, R1_SCALE_GROUP, R1_SCALE_BATCH } r1_reward_scale;
typedef enum { R1_AGG_GRPO, R1_AGG_DAPO, R1_AGG_BNPO, R1_AGG_DR_GRPO } r1_aggregation;

typedef struct {
    size_t group;             /* G: rewards g*G .. g*G + G - 1 are one group */
    r1_reward_scale scale;
    int ddof;                 /* of the standard deviation: 1 (TRL) or 0 */
    r1_aggregation aggregation;
    size_t max_length;        /* dr_grpo's constant */
    size_t local_batch;       /* bnpo: sequences in a local batch */
} r1_advantage_spec;

typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale;         /* clip factor, 1 when not clipped */
    uint64_t step;            /* 1, 2, ...: bias corrections 1 - beta^step */
} r1_adamw_spec;

typedef enum { R1_SCORE_PAIRWISE, R1_SCORE_POINTWISE } r1_score_form;

/* Where device memory is, as DLPack counts: kind 1 the host, 2 a CUDA GPU, with its number, and the stream
 * (a cudaStream_t) that all of the device's work is queued on; 0 on the CPU. */
typedef struct {
    int32_t kind, number;
    uintptr_t stream;
} r1_place;

typedef struct {
    int abi;
    const char *name; /* "cpu/avx512" */

    /* ---- device and memory ---- */
    /* which: the CPU's number of threads, a GPU's ordinal */
    r1_code (*dev_open)(r1_dev **dev, size_t which, r1_status *st);
    void (*dev_close)(r1_dev *dev);
    size_t (*dev_threads)(const r1_dev *dev); /* of a GPU: its multiprocessors */
    /* Multiply-adds on registers alone, by every thread at once; returns how many floating-point
     * operations they were. The caller's clock makes it the limit that products are measured by. */
    double (*dev_spin)(r1_dev *dev, r1_dtype dtype, size_t rounds);
    /* Beside this build, what bits depend on, as lines "what: which" for a run's manifest: a GPU's library of
     * products and its algorithms. At most `bytes` with the 0 at the end; how many it has without that. */
    size_t (*dev_pins)(r1_dev *dev, char *text, size_t bytes);
    /* Zeroed, 64-byte aligned. NULL when out, which the caller puts into words; of a fault of another
     * kind, a lost GPU, st then tells already. */
    void *(*mem_alloc)(r1_dev *dev, size_t bytes, r1_status *st);
    void (*mem_free)(r1_dev *dev, void *p);
    r1_code (*mem_upload)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st);
    r1_code (*mem_download)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st);
    /* For tests of single ops: until mem_unmap ops may be given pointers into these spans of host
     * memory as if they were device memory. mem_unmap waits for what was queued; nothing is read or
     * written after it. On the CPU neither has anything to do. */
    r1_code (*mem_map)(r1_dev *dev, const r1_span *spans, size_t count, r1_status *st);
    r1_code (*mem_unmap)(r1_dev *dev, r1_status *st);
    /* Copies beside the ops: mem_fetch to the device, mem_store from it; the other side is host memory that
     * mem_alloc_host gave. They are done in the order of the calls, each once the ops queued before it are
     * done, while later ops go on. After mem_join, ops that are queued from then on come after all copies
     * so far; host: so does the caller, who waits. On the CPU a copy is done at once. */
    void *(*mem_alloc_host)(r1_dev *dev, size_t bytes, r1_status *st);
    void (*mem_free_host)(r1_dev *dev, void *p);
    r1_code (*mem_fetch)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st);
    r1_code (*mem_store)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st);
    r1_code (*mem_join)(r1_dev *dev, int host, r1_status *st);
    /* For who looks at device memory from outside: where it is; and what was queued so far comes before
     * what they queue on `stream`, a stream of theirs. On the CPU nothing is ever queued. */
    r1_place (*mem_place)(const r1_dev *dev);
    r1_code (*mem_share)(r1_dev *dev, uintptr_t stream, r1_status *st);
    r1_code (*fill_zero)(r1_dev *dev, const r1_tensor *x, r1_status *st);

    /* ---- weights ----
     * E matrices of (O, I), row-major as in Hugging Face files. The master is a float32 tensor of
     * (E O, I) in device memory; only weight_write and weight_adamw change it. dtype:
     * what products and the embedding see, float32 or bf16 (rounded to the nearest, ties to even).
     * A frozen weight has the packed copy alone: matmul_nt and embed_fwd give the same bits, and
     * matmul_nn and weight_adamw are not for it. */
    /* Bytes of E matrices (O, I): the float32 master, 0 of a frozen weight, and the packed copy, 0 where
     * products read the master; SIZE_MAX: too many. */
    void (*weight_bytes)(size_t *master, size_t *packed, size_t E, size_t O, size_t I,
                         r1_dtype dtype, int frozen);
    /* packed: NULL, or memory of that size, zeroed, 64-byte aligned, which outlives the weight: it is
     * then frozen and its packed copy lies there. */
    r1_code (*weight_open)(r1_dev *dev, r1_weight **w, size_t E, size_t O, size_t I, r1_dtype dtype,
                           void *packed, r1_status *st);
    void (*weight_close)(r1_dev *dev, r1_weight *w);
    /* (E O, I) to be looked at, never to be written: the master; of a frozen weight what products see,
     * in its dtype, where it lies row-major, else data is NULL. */
    r1_tensor (*weight_view)(const r1_weight *w);
    /* All matrices in (and packed) or out, (E O, I) in host memory. What comes out is the master; of a
     * frozen weight, what products see. */
    r1_code (*weight_write)(r1_dev *dev, r1_weight *w, const float *from, r1_status *st);
    r1_code (*weight_read)(r1_dev *dev, float *to, const r1_weight *w, r1_status *st);

    /* ---- matmul ----
     * One element = one chain of fused multiply-adds in ascending index order that starts from the
     * value in memory (accumulate), from bias, or from 0: blocking and row count cannot change a bit.
     * A matrix unit may add up a bf16 sum by blocks of 32 (a GPU's: 16) from its first term, in matmul_tn by units;
     * a GPU's library in an order of its own, one for all rows of a forward product (kernels/cublaslt.cu), or
     * in matmul_nt by segments of at most 2,048 terms, which only the sum's length says.
     * offsets (E + 1, int32; NULL when E is 1): rows offsets[e] .. offsets[e + 1] of x, y, dy use
     * matrix e. Rows beyond offsets[E] are left alone.
     * A bf16 weight multiplies rounded with rounded: W, x and dy to bf16 (nearest even) where they
     * meet, products exact, the chain float32; its operands and results below 2^-126 count as 0. */
    /* y (N, O) [+]= x (N, I) W^T + bias (1, O);  accumulate and bias exclude each other */
    r1_code (*matmul_nt)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const r1_weight *w,
                         const r1_tensor *bias, const int32_t *offsets, int accumulate,
                         r1_status *st);
    /* dx (N, I) [+]= dy (N, O) W */
    r1_code (*matmul_nn)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const r1_weight *w,
                         const int32_t *offsets, int accumulate, r1_status *st);
    /* dW (E O, I) [+]= dy^T (O, N) x (N, I), the sum over rows in ascending order; dtype: the weight's;
     * units may be NULL */
    r1_code (*matmul_tn)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const r1_tensor *x,
                         size_t E, const int32_t *offsets, r1_dtype dtype, const r1_units *units,
                         int accumulate, r1_status *st);
    /* dbias (1, O) += sum_n dy[n] */
    r1_code (*bias_bwd)(r1_dev *dev, const r1_tensor *dbias, const r1_tensor *dy, r1_status *st);

    /* ---- rows ---- */
    /* y = a + b, elementwise; in place allowed (y == a) */
    r1_code (*add)(r1_dev *dev, const r1_tensor *y, const r1_tensor *a, const r1_tensor *b,
                   r1_status *st);
    /* y = factor x, elementwise; in place allowed */
    r1_code (*scale)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, float factor,
                     r1_status *st);
    /* y[m] = x[idx[m]]; idx (M) */
    r1_code (*gather_rows)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const int32_t *idx,
                           r1_status *st);
    /* dx = 0, then dx[idx[m]] = dy[m]; the idx are distinct */
    r1_code (*scatter_rows)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy,
                            const int32_t *idx, r1_status *st);

    /* x = x rounded to bf16, nearest even; in place */
    r1_code (*round_bf16)(r1_dev *dev, const r1_tensor *x, r1_status *st);

    /* ---- embedding: y[n] = W[ids[n]]; id -1 gives a zero row and no gradient ---- */
    r1_code (*embed_fwd)(r1_dev *dev, const r1_tensor *y, const r1_weight *w, const int32_t *ids,
                         r1_status *st);
    /* dW[ids[n]] += dy[n], n ascending */
    r1_code (*embed_bwd)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const int32_t *ids,
                         r1_status *st);

    /* ---- RMSNorm, Zhang & Sennrich 2019 eq. 4, with the residual add in front ----
     * s = x + residual (residual NULL: s is x and `sum` is NULL);
     * r[n] = (mean_c s^2 + eps)^(-1/2);  y = s r w.     sum (N, C), r (N, 1), w (1, C) */
    r1_code (*rmsnorm_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *sum,
                           const r1_tensor *r, const r1_tensor *x, const r1_tensor *residual,
                           const r1_tensor *w, float eps, r1_status *st);
    /* ds = add + r (dy w - s r^2 mean_c(dy w s));  dw[c] += sum_n dy s r (NULL: w is frozen).
     * ds may alias add */
    r1_code (*rmsnorm_bwd)(r1_dev *dev, const r1_tensor *ds, const r1_tensor *dw,
                           const r1_tensor *dy, const r1_tensor *add, const r1_tensor *s,
                           const r1_tensor *r, const r1_tensor *w, r1_status *st);

    /* ---- RoPE, Su et al. 2021 eq. 34, in place on columns [first, first + Dr) of each head ----
     * x (N, H D); table (T_max, Dr): cos then sin, each Dr / 2, both times a common factor (YaRN's).
     * interleaved: pairs (2i, 2i+1), else (i, i + Dr/2). inverse turns the other way, and is the
     * transpose: that is the backward. */
    r1_code (*rope)(r1_dev *dev, const r1_tensor *x, const r1_tensor *table, const int32_t *pos,
                    size_t H, size_t first, size_t Dr, int interleaved, int inverse,
                    r1_status *st);

    /* ---- MLA, DeepSeek-V3 eq. 1-11, expanded form ----
     * kvb (N, H (Dn + Dv)): per head k_nope then v;  kr (N, Dr): the rotated key part all heads share;
     * k (N, H (Dn + Dr)) = [k_nope, kr];  v (N, H Dv). */
    r1_code (*mla_expand_fwd)(r1_dev *dev, const r1_tensor *k, const r1_tensor *v,
                              const r1_tensor *kvb, const r1_tensor *kr, size_t H, size_t Dn,
                              size_t Dv, r1_status *st);
    /* dkvb gathers; dkr[n] = sum over heads ascending of dk's last Dr columns */
    r1_code (*mla_expand_bwd)(r1_dev *dev, const r1_tensor *dkvb, const r1_tensor *dkr,
                              const r1_tensor *dk, const r1_tensor *dv, size_t H, size_t Dn,
                              size_t Dv, r1_status *st);

    /* ---- attention, causal, grouped queries (H a multiple of Hkv; query head h reads KV head
     * h / (H / Hkv)). window 0: none; else a query at position t sees keys
     * max(0, t - window + 1) .. t, and the cost falls with the window ---- */
    /* Writes k (N, Hkv D) and v (N, Hkv Dv) into their blocks, rounded to their dtype. With prefix:
     * keys before pos0[b] in the block of pos0[b] are written to the block that b has for itself. */
    r1_code (*kv_write)(r1_dev *dev, const r1_kv *kv, const r1_tensor *k, const r1_tensor *v,
                        const r1_seqs *seqs, r1_status *st);
    /* Block pairs[2i + 1] becomes a copy of block pairs[2i]; pairs (n, 2). */
    r1_code (*kv_copy)(r1_dev *dev, const r1_kv *kv, const int32_t *pairs, size_t n,
                       r1_status *st);
    /* o (N, H Dv) = softmax(scale q k^T) v;  lse (N, H) = log-sum-exp of the scaled scores.
     * Keys in blocks of 64 at absolute positions inside chunks of 512; every chunk has its own
     * (m, l, acc), chunks merge in ascending order by one formula, so prefill, decode and training
     * agree bit for bit. A masked key is excluded, never multiplied. bf16 keys and values are
     * widened, everything else is float32, or a tensor core's equal to 17 bits at least; q may be
     * rounded like k: attention_bwd is its gradient where q, k and v are already rounded. */
    r1_code (*attention_fwd)(r1_dev *dev, const r1_tensor *o, const r1_tensor *lse,
                             const r1_tensor *q, const r1_kv *kv, const r1_seqs *seqs, size_t H,
                             size_t window, float scale, r1_status *st);
    /* Whole sequences: every key is a row of this batch. q (N, H D), k (N, Hkv D), v (N, Hkv Dv)
     * row-major. p = exp(scale q k^T - lse); delta = sum(do o); ds = p (do v - delta) scale; dq, dk,
     * dv; a prefix's dk and dv gather from its whole group, sequences ascending. dtype: of the cache
     * that forward read; bf16 says that q, k and v are rounded. */
    r1_code (*attention_bwd)(r1_dev *dev, const r1_tensor *dq, const r1_tensor *dk,
                             const r1_tensor *dv, const r1_tensor *dout, const r1_tensor *o,
                             const r1_tensor *lse, const r1_tensor *q, const r1_tensor *k,
                             const r1_tensor *v, const r1_seqs *seqs, size_t H, size_t Hkv,
                             size_t window, float scale, r1_dtype dtype,
                             r1_status *st);

    /* ---- SwiGLU, Shazeer 2020: y = silu(gate) up, all (N, F). dgate may alias gate, dup up. ---- */
    r1_code (*swiglu_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *gate,
                          const r1_tensor *up, r1_status *st);
    r1_code (*swiglu_bwd)(r1_dev *dev, const r1_tensor *dgate, const r1_tensor *dup,
                          const r1_tensor *dy, const r1_tensor *gate, const r1_tensor *up,
                          r1_status *st);

    /* ---- router ----
     * scores (N, E) = sigmoid(logits) or softmax; choice = scores + bias (1, E; NULL none);
     * group score = sum of the two largest choices (the largest alone when bias is NULL); the best
     * top_groups groups keep their experts; idx (N, K int32) = the K largest choices in descending
     * order, ties to the lowest index; weight (N, K) = scores[idx], normalised, times scale. */
    r1_code (*router_fwd)(r1_dev *dev, int32_t *idx, const r1_tensor *weight,
                          const r1_tensor *scores, const r1_tensor *logits, const r1_tensor *bias,
                          const r1_router_spec *spec, r1_status *st);
    /* dlogits (N, E) from dweight (N, K) and dscores (N, E; the balance loss's part, may be NULL).
     * idx and bias are constants under differentiation. */
    r1_code (*router_bwd)(r1_dev *dev, const r1_tensor *dlogits, const r1_tensor *dweight,
                          const r1_tensor *dscores, const int32_t *idx, const r1_tensor *scores,
                          const r1_router_spec *spec, r1_status *st);
    /* load (E, int64) += positions that chose each expert; a prefix counts for each that shares it */
    r1_code (*router_load)(r1_dev *dev, int64_t *load, const int32_t *idx, const r1_seqs *seqs,
                           const r1_router_spec *spec, r1_status *st);
    /* Sequence-wise balance loss, DeepSeek-V3 eq. 17-20, for sequence b of T rows, P over normalised
     * scores: loss[b] (B, 1) = coef T sum_i f_i P_i, f_i = E / (K T) #{t: i chosen},
     * P_i = mean_t s_ti / sum_j s_tj. dscores (N, E) = its gradient (f is constant), of a prefix the
     * sum over its group. */
    r1_code (*balance_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscores,
                            const r1_tensor *scores, const int32_t *idx, const r1_seqs *seqs,
                            const r1_router_spec *spec, float coef, r1_status *st);
    /* bias[i] += rate sign(mean load - load[i]): DeepSeek-V3 section 2.1.2 */
    r1_code (*router_bias_update)(r1_dev *dev, const r1_tensor *bias, const int64_t *load,
                                  float rate, r1_status *st);

    /* ---- dispatch: rows sorted by expert, token order kept inside an expert ----
     * offsets (E + 1); source (N K): token of each sorted row; place (N K): sorted row of (n, k). */
    r1_code (*dispatch_plan)(r1_dev *dev, int32_t *offsets, int32_t *source, int32_t *place,
                             const int32_t *idx, size_t N, const r1_router_spec *spec,
                             r1_status *st);
    /* y[n] = add[n] + sum_k weight[n,k] ys[place[n,k]], k ascending; add may be NULL */
    r1_code (*combine_fwd)(r1_dev *dev, const r1_tensor *y, const r1_tensor *ys,
                           const r1_tensor *weight, const int32_t *place, const r1_tensor *add,
                           r1_status *st);
    /* dys[place[n,k]] = weight[n,k] dy[n];  dweight[n,k] = dy[n] . ys[place[n,k]]; dys may alias ys */
    r1_code (*combine_bwd)(r1_dev *dev, const r1_tensor *dys, const r1_tensor *dweight,
                           const r1_tensor *dy, const r1_tensor *ys, const r1_tensor *weight,
                           const int32_t *place, r1_status *st);
    /* dx[n] = add[n] + sum_k dxs[place[n,k]], k ascending; add may be NULL, may alias dx */
    r1_code (*dispatch_bwd)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dxs,
                            const int32_t *place, size_t K, const r1_tensor *add, r1_status *st);

    /* ---- log-probabilities of a chunk of logits (M, V) ----
     * z = logits / temperature, restricted to the support of top-k, then top-p, then min-p over z
     * sorted by (z descending, id ascending), united with the target. ids (M).
     * logp (M, 1) = z[id] - lse;  entropy (M, 1) = -sum p log p over the support (may be NULL);
     * lse (M, 1) saved: (max, sum) per tile of 1,024 ids, merged in tile order.
     * Temperature 0 means the untempered, untruncated softmax. scratch: logp_scratch bytes. */
    size_t (*logp_scratch)(const r1_dev *dev, size_t V);
    r1_code (*logp_fwd)(r1_dev *dev, const r1_tensor *logp, const r1_tensor *entropy,
                        const r1_tensor *lse, const r1_tensor *logits, const int32_t *ids,
                        const r1_sampling *how, void *scratch, r1_status *st);
    /* In place: logits become dlogits = (dlogp (1[v = id] - p) + dentropy dH/dz) / temperature, 0
     * outside the support. dentropy may be NULL. */
    r1_code (*logp_bwd)(r1_dev *dev, const r1_tensor *logits, const r1_tensor *dlogp,
                        const r1_tensor *dentropy, const r1_tensor *entropy, const r1_tensor *lse,
                        const int32_t *ids, const r1_sampling *how, void *scratch,
                        r1_status *st);
    /* ids[m] drawn from the same distribution by inverting its cumulative float32 sum at
     * u = philox(key, (prompt[m], generation[m], position[m], R1_DRAW_TOKEN)); temperature 0: argmax.
     * Never an id of probability 0. The log-prob is logp_fwd's. */
    r1_code (*sample)(r1_dev *dev, int32_t *ids, const r1_tensor *logits, uint64_t key,
                      const int32_t *prompt, const int32_t *generation, const int32_t *position,
                      const r1_sampling *how, void *scratch, r1_status *st);

    /* ---- losses on vectors; every array (M, 1); a row of weight 0 is masked: its inputs never
     * reach an exp, its outputs are 0 ----
     * nll:   loss = w scale (-logp)
     * clip:  loss = w scale (-min(min(rho, delta) A, clip(rho, 1 - eps_low, 1 + eps_high) A)
     *        + beta k - entropy_coef entropy), rho = exp(logp - old). (DeepSeekMath eq. 3-4.)
     * cispo: the first term is -c A logp, c = min(rho, eps_high) a constant. (MiniMax-M1.)
     * d = ref - logp:  k1 = -d,  k2 = d^2 / 2,  k3 = exp(d) - d - 1;  k = that, times rho if kl_ratio.
     * old, ref, adv, entropy may be NULL where unused. dlogp, dentropy = derivatives; kl = the
     * estimator without rho (0 without ref); clipped = -1 low, +1 high, 0 not. */
    r1_code (*token_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dlogp,
                          const r1_tensor *dentropy, const r1_tensor *kl, const r1_tensor *clipped,
                          const r1_tensor *logp, const r1_tensor *entropy, const r1_tensor *weight,
                          const r1_tensor *adv, const r1_tensor *old_logp,
                          const r1_tensor *ref_logp, const r1_loss_spec *spec, r1_status *st);
    /* Reward models, score (B, 1). pairwise: rows 2i chosen, 2i + 1 rejected,
     * loss[2i] = -log sigmoid(s_c - s_r), loss[2i + 1] = 0. pointwise: binary cross-entropy of
     * sigmoid(s) against label (B, 1). Both times scale. dscore (B, 1). */
    r1_code (*score_loss)(r1_dev *dev, const r1_tensor *loss, const r1_tensor *dscore,
                          const r1_tensor *score, const r1_tensor *label, r1_score_form form,
                          float scale, r1_status *st);

    /* ---- advantage: HOST arrays; once per optimiser step, before micro-batching ----
     * reward (n; NaN: not applicable), length (n), keep (n: 0 drops the completion from the loss).
     * adv[i] = (r - mean of its group) [/ (std + 1e-4)]; NaN rewards are left out of mean and std
     * and get 0; a group whose rewards are all EQUAL gets exactly 0. weight[i] = the weight of each
     * token of completion i under the aggregation (recipe 2.2); 0 where keep is 0. */
    r1_code (*advantage)(float *adv, float *weight, const double *reward, const int32_t *length,
                         const float *keep, size_t n, const r1_advantage_spec *spec,
                         r1_status *st);

    /* ---- update ---- */
    /* *sum (float64, device memory) += sum of squares, float64 partials of fixed blocks of 4,096 elements added in index order
     * to the value that is there: a tensor given in parts of whole blocks has the bits of one call */
    r1_code (*sum_squares)(r1_dev *dev, double *sum, const r1_tensor *g, r1_status *st);
    /* AdamW, Loshchilov & Hutter 2019 alg. 2: p, m, v updated in place from g */
    r1_code (*adamw)(r1_dev *dev, const r1_tensor *p, const r1_tensor *m, const r1_tensor *v,
                     const r1_tensor *g, const r1_adamw_spec *spec, r1_status *st);
    /* The same on rows row0, row0 + 1, .. of a weight's master, as many as m, v and g have, and their
     * packed copy with them: all rows, or of one of its matrices a part between multiples of 32 rows
     * (the last part ends where the matrix does). */
    r1_code (*weight_adamw)(r1_dev *dev, r1_weight *w, size_t row0, const r1_tensor *m,
                            const r1_tensor *v, const r1_tensor *g, const r1_adamw_spec *spec,
                            r1_status *st);

    /* ---- plans: what a device's memory holds beside what ops are given; both NULL in a backend that takes
     * none, the CPU's ----
     * dev_pretend: a device like this one, which outlives it, that does nothing: ops return R1_OK, memory has
     * an address that nobody may read, downloads are 0. It knows no graphs. dev_own: bytes that a device holds
     * for itself; one that pretends: that it would hold once such ops as it was given were done, of as many rows
     * or fewer. */
    r1_code (*dev_pretend)(r1_dev **out, r1_dev *like, r1_status *st);
    size_t (*dev_own)(const r1_dev *dev);

    /* ---- graphs: ops recorded once and queued again with one call; all four NULL in a backend
     * that gains nothing by them, the CPU's ----
     * Between graph_begin and graph_end ops are noted down, with the pointers and sizes that they are
     * given, and not done: what differs from run to run must lie in device memory. R1_EDEVICE for
     * what cannot be noted: mem_ functions, and an op that needs more memory of the device than any
     * before it, so that ops should have run once as they will be recorded. graph_end ends what
     * graph_begin began even if an op has failed; *graph is NULL then. graph_run queues the ops; with
     * *stale it has not, since the device's own memory has moved: close it, record it anew. */
    r1_code (*graph_begin)(r1_dev *dev, r1_status *st);
    r1_code (*graph_end)(r1_dev *dev, r1_graph **graph, r1_status *st);
    r1_code (*graph_run)(r1_dev *dev, r1_graph *graph, int *stale, r1_status *st);
    void (*graph_close)(r1_dev *dev, r1_graph *graph);
} r1_ops;

/* Every function of the table but a plan's and a graph's, in its order: what a backend declares and lists. */
#define R1_OPS(X)                                                                                \
    X(dev_open) X(dev_close) X(dev_threads) X(dev_spin) X(dev_pins) X(mem_alloc) X(mem_free)     \
    X(mem_upload) X(mem_download) X(mem_map) X(mem_unmap) X(mem_alloc_host) X(mem_free_host)     \
    X(mem_fetch) X(mem_store) X(mem_join) X(mem_place) X(mem_share) X(fill_zero)                 \
    X(weight_bytes) X(weight_open) X(weight_close) X(weight_view) X(weight_write)               \
    X(weight_read) X(matmul_nt) X(matmul_nn)                                                     \
    X(matmul_tn) X(bias_bwd) X(add) X(scale) X(gather_rows) X(scatter_rows) X(round_bf16)        \
    X(embed_fwd) X(embed_bwd) X(rmsnorm_fwd) X(rmsnorm_bwd) X(rope) X(mla_expand_fwd)            \
    X(mla_expand_bwd) X(kv_write) X(kv_copy) X(attention_fwd) X(attention_bwd) X(swiglu_fwd)     \
    X(swiglu_bwd) X(router_fwd) X(router_bwd) X(router_load) X(balance_loss)                     \
    X(router_bias_update) X(dispatch_plan) X(combine_fwd) X(combine_bwd) X(dispatch_bwd)         \
    X(logp_scratch) X(logp_fwd) X(logp_bwd) X(sample) X(token_loss) X(score_loss) X(advantage)   \
    X(sum_squares) X(adamw) X(weight_adamw)
#define R1_PLAN_OPS(X) X(dev_pretend) X(dev_own)
#define R1_GRAPH_OPS(X) X(graph_begin) X(graph_end) X(graph_run) X(graph_close)

/* The CPU's table for a tier ("auto", "amx", "avx512bf16", "avx512", "avx2", "baseline"); NULL when this processor or
 * this build lacks it. */
const r1_ops *r1_cpu_ops(const char *tier);

#endif
