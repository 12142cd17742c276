/* internal.h - what the files of model/ share and nobody else sees: linear maps, memory, layers,
 * micro-batches, the MTP module, the head. model.h has the map of the files. */
#ifndef R1_INTERNAL_H
#define R1_INTERNAL_H

#include "model.h"

r1_code linear_fwd(r1_model *m, const r1_tensor *y, const r1_tensor *x, const r1_linear *l,
                   const int32_t *offsets, r1_status *st);
/* The rows of a backward: offsets of experts (NULL: one matrix), units that sums over rows go by. */
typedef struct {
    const int32_t *offsets;
    r1_units units;
} r1_sum_rows;
/* dx may be NULL (no gradient wanted); accumulate adds to dx. */
r1_code linear_bwd(r1_model *m, const r1_tensor *dx, const r1_tensor *dy, const r1_tensor *x,
                   const r1_linear *l, const r1_sum_rows *rows, int accumulate, r1_status *st);

static inline size_t /* of its value, a vector's being one row */
param_rows(const r1_param *p)
{
    return p->O == 0 ? 1 : p->E * p->O;
}

/* dW of one use of a trained matrix, which is added to what there is. */
r1_code weight_grad(r1_model *m, r1_param *w, size_t use, const r1_tensor *dy, const r1_tensor *x,
                    const int32_t *offsets, const r1_units *units, r1_status *st);
/* Before anybody else reads or adds to a gradient: one that counts as 0 becomes 0. */
r1_code param_settle(r1_model *m, r1_param *p, size_t use, r1_status *st);
r1_code param_settle_all(r1_model *m, r1_param *p, r1_status *st); /* of all its uses */

static inline r1_sum_rows /* a packed batch's */
sum_rows(const r1_seqs *seqs)
{
    return (r1_sum_rows){NULL, {seqs->unit, NULL}};
}

/* The list of parameters, without their memory; then their memory (packed: see r1_model_open). */
r1_code layout_params(r1_model *m, r1_status *st);
r1_code layout_memory(r1_model *m, r1_arena *packed, r1_status *st);
/* R1_EINVAL: it is frozen and has no `what`. */
r1_code model_trainable(const r1_model *m, const char *what, r1_status *st);
/* Adds the bytes of all matrices but those of off-loaded layers: masters, packed copies. */
void matrices_measure(const r1_model *m, r1_arena *master, r1_arena *packed);
/* Checks and copies; the rotary table of at least so many positions; the bytes it then takes. */
r1_code rope_open(r1_model *m, const r1_rope *rope, r1_status *st);
void rope_close(r1_model *m);
r1_code rope_reserve(r1_model *m, size_t positions, r1_status *st);
size_t rope_bytes(const r1_config *c, size_t positions);
/* Place every tensor of their kind in an arena; one without memory measures. */
void vectors_place(r1_model *m, r1_arena *a);
void grads_place(r1_model *m, r1_arena *a);
void moments_place(r1_model *m, r1_arena *a);
/* offload.c: bytes of the layers in host memory (0: none is), and of the largest; is a parameter one of
 * theirs, and whose; their memory, and where each weight is opened; layer i is on the device for ops that
 * are queued from now on; what was written to a parameter of layer i there goes to host memory too. */
size_t offload_measure(const r1_model *m, size_t *largest);
int offload_layer(const r1_model *m, size_t param, size_t *layer);
r1_code offload_open(r1_model *m, r1_status *st);
void offload_close(r1_model *m);
r1_code offload_enter(r1_model *m, size_t i, r1_status *st);
r1_code offload_keep(r1_model *m, size_t i, const r1_param *p, r1_status *st);
/* rehearse.c: bytes that the device comes to hold for itself in the calls that plan.c sizes. */
r1_code rehearse_model(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, size_t *bytes,
                       r1_status *st);
r1_code rehearse_pass(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, const r1_batch *batch,
                      size_t micro_rows, r1_keep keep, size_t *bytes, r1_status *st);
r1_code rehearse_decode(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
                        const r1_decode_spec *sizes, size_t prompt, size_t *bytes, r1_status *st);
/* Bytes that an update takes while it runs. */
size_t update_bytes(const r1_model *m);
/* Makes ws hold at least these and keep just this; contents are lost when it changes. */
r1_code workspace_reserve(r1_model *m, r1_workspace *ws, size_t rows, size_t seqs, size_t blocks,
                          size_t table, r1_keep keep, r1_status *st);
/* Bytes that workspace_reserve would take, by purpose. */
r1_code workspace_measure(r1_model *m, size_t rows, size_t seqs, size_t blocks, size_t table,
                          r1_keep keep, r1_pass_bytes *out, r1_status *st);
void workspace_release(r1_model *m, r1_workspace *ws);

/* What a pass with these flags keeps. */
static inline r1_keep
keep_of(int grad, int recompute)
{
    return !grad ? R1_KEEP_NONE : recompute ? R1_KEEP_STREAM : R1_KEEP_ALL;
}

void mtp_place(r1_mtp *io, r1_arena *a, const r1_config *c, size_t rows);
r1_mtp mtp_view(const r1_mtp *io, size_t N);
/* acts as seen by a batch of N <= rows rows (all tensors but s0 cut to N rows). */
r1_acts acts_view(const r1_acts *a, size_t N, size_t K);
r1_temps temps_view(const r1_temps *t, size_t N, size_t B, size_t K);

/* One layer. Stream in: x + f (f NULL: x alone). Out: act->s1 and act->f. */
r1_code block_fwd(r1_model *m, const r1_layer *l, const r1_acts *act, const r1_temps *t,
                  const r1_tensor *x, const r1_tensor *f, const r1_kv *kv, const r1_seqs *seqs,
                  r1_status *st);
/* t->ds: in, gradient of s1 + f; out, gradient of x + f. The balance loss goes to t->balance_sum. */
r1_code block_bwd(r1_model *m, const r1_layer *l, const r1_acts *act, const r1_temps *t,
                  const r1_seqs *seqs, float balance_coef, r1_status *st);

/* Embedding, all layers, final norm: ws->y. kvs: one cache a layer; NULL: the workspace's own. */
r1_code trunk_fwd(r1_model *m, r1_workspace *ws, const int32_t *ids, const r1_seqs *seqs,
                  const r1_kv *kvs, r1_status *st);
/* dy (N, C): gradient of ws->y; adds all parameter gradients. */
r1_code trunk_bwd(r1_model *m, r1_workspace *ws, const r1_tensor *dy, const int32_t *ids,
                  const r1_seqs *seqs, float balance_coef, r1_status *st);

/* One micro-batch on the device: sequences [b0, b1) of a batch. */
typedef struct {
    size_t b0, N, M, m0;                  /* rows; targets, and the first of them in the batch */
    r1_seqs seqs;
    const int32_t *ids, *next;            /* (N) token; (N) token after it, -1 at the end */
    const int32_t *row, *target, *row_unit; /* (M) row that predicts, token predicted, row's unit */
    const int32_t *last;                  /* (B) last row of each sequence */
    size_t mtp_M;                         /* targets that the MTP module predicts too */
    const int32_t *mtp_row, *mtp_target, *mtp_unit; /* (mtp_M) */
    int32_t *host;                        /* the same integers on the host, and after them: */
    const int32_t *mtp_index;             /* (mtp_M) host: which of the M targets */
    const int32_t *row_cut, *mtp_cut;     /* host: row_unit, mtp_unit */
} r1_micro;
/* End of the micro-batch that starts at b0: whole parts, at least one. */
size_t micro_end(const r1_config *c, const r1_batch *batch, size_t b0, size_t micro_rows);
/* What the workspace of every micro-batch of the batch must hold. */
typedef struct {
    size_t rows, seqs, blocks, table;
    size_t longest;                       /* sequence, the positions of the rotary table */
} r1_micro_size;
r1_micro_size micro_size(const r1_config *c, const r1_batch *batch, size_t micro_rows);
/* Makes the workspace large enough for it. */
r1_code micro_reserve(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t micro_rows,
                      r1_keep keep, r1_status *st);
r1_code micro_open(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t b0, size_t b1,
                   size_t m0, r1_micro *mb, r1_status *st);
void micro_close(r1_micro *mb);

/* Rows y (N, C) and the tokens after them, -1 for none, to io->y; io->x enters the layer. */
r1_code mtp_fwd(r1_model *m, const r1_mtp *io, const r1_tensor *y, const int32_t *next,
                const r1_acts *a, const r1_temps *t, const r1_kv *kv, const r1_seqs *seqs,
                r1_status *st);
/* Forward and backward of the MTP module. dy: gradient of ws->y, added to. */
r1_code mtp_run(r1_model *m, r1_workspace *ws, const r1_micro *mb, const r1_batch *batch,
                const r1_pass *pass, const r1_tensor *dy, r1_outputs *out, r1_status *st);

/* The head over M rows of hidden states: ws->hm -> log-probs, loss and ws->dhm, chunk by chunk. */
typedef struct {
    r1_linear head;
    int freeze;                           /* no gradient of the head's weight */
    const int32_t *target, *unit;         /* (M) device: unit of each row (ops.h, r1_units) */
    const int32_t *cut;                   /* (M) host: the same; no chunk ends inside a unit */
    const float *weight, *adv, *old_logp, *ref_logp; /* (M) host, NULL where unused */
    float *logp, *entropy, *loss, *kl, *clipped;     /* (M) host, NULL where unwanted */
    int32_t *draft;                       /* (M) host: most likely token */
    int grad;
    r1_loss_spec loss_spec;
    r1_sampling sampling;
} r1_head_job;
r1_code head_run(r1_model *m, r1_workspace *ws, const r1_head_job *job, size_t M, r1_status *st);

#endif
