/* plan.c - what a model and a call on it would take, in bytes, before anything is allocated.
 *
 * Every figure comes from the function that places or sizes the thing itself, run without memory:
 * layout.c (parameters, gradients, moments), the backend's weight_bytes, workspace.c (a pass),
 * decode_open.c and kvpool.c (a session), rope.c. rehearse.c has what a device holds beside.
 * So the plan cannot differ from what is allocated. Knows nothing about what else lives in the process.
 */
#include "decode.h"

/* A model with its list of parameters and no memory; r1_model_close ends it. */
static r1_code
plan_open(r1_model **out, const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
          r1_status *st)
{
    *out = NULL;
    R1_TRY(r1_config_check(c, st));
    r1_model *m = r1_alloc(1, sizeof *m);
    if (m == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a plan");
    }
    m->config = *c;
    m->dtype = dtype;
    m->ops = ops;
    m->dev = dev;
    r1_code code = layout_params(m, st);
    if (code != R1_OK) {
        r1_model_close(m);
        return code;
    }
    *out = m;
    return R1_OK;
}

/* Beyond the memory of any device: nobody asks what it would hold beside. */
static int
is_absurd(size_t bytes)
{
    return bytes > (size_t)1 << 39;
}

static int
is_absurd_model(const r1_model *m)
{
    r1_arena master = {0}, packed = {0};
    size_t largest;
    matrices_measure(m, &master, &packed);
    return is_absurd(master.used) || is_absurd(packed.used) || is_absurd(offload_measure(m, &largest));
}

r1_code
r1_plan_model(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
              r1_model_bytes *out, r1_status *st)
{
    r1_model *m;
    r1_arena vectors = {0}, grads = {0}, moments = {0}, master = {0}, packed = {0};
    R1_TRY(plan_open(&m, c, dtype, ops, dev, st));
    vectors_place(m, &vectors);
    grads_place(m, &grads);
    moments_place(m, &moments);
    matrices_measure(m, &master, &packed);
    size_t largest, layers = offload_measure(m, &largest);
    *out = (r1_model_bytes){master.used, packed.used + 2 * largest, vectors.used, grads.used,
                            c->offload ? 0 : moments.used, update_bytes(m),
                            layers + (c->offload ? moments.used : 0), 0};
    int absurd = is_absurd_model(m);
    r1_model_close(m);
    return absurd ? R1_OK : rehearse_model(c, dtype, ops, dev, &out->own, st);
}

r1_code
r1_plan_pass(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev,
             const r1_batch *batch, size_t micro_rows, r1_keep keep, r1_pass_bytes *out, r1_status *st)
{
    r1_model *m;
    R1_TRY(plan_open(&m, c, dtype, ops, dev, st));
    r1_micro_size s = micro_size(c, batch, micro_rows);
    r1_code code = workspace_measure(m, s.rows, s.seqs, s.blocks, s.table, keep, out, st);
    out->acts += rope_bytes(c, s.longest);
    int absurd = is_absurd_model(m) || is_absurd(out->acts) || is_absurd(out->head) || is_absurd(out->cache);
    r1_model_close(m);
    return code != R1_OK || absurd ? code
           : rehearse_pass(c, dtype, ops, dev, batch, micro_rows, keep, &out->own, st);
}

r1_code
r1_plan_decode(const r1_config *c, r1_dtype dtype, const r1_ops *ops, r1_dev *dev, size_t P,
               size_t G, size_t prompt, size_t max_new, size_t slots, int speculative,
               r1_decode_bytes *out, r1_status *st)
{
    r1_model *m;
    R1_TRY(plan_open(&m, c, dtype, ops, dev, st));
    size_t own = blocks_of(prompt + room_of(c, prompt, max_new) - 1), whole = blocks_of(prompt);
    size_t blocks = own > whole ? own : whole;
    r1_decode_size s = decode_size(m, P * G, P * prompt, prompt, blocks, slots,
                                   speculative);
    r1_arena kv = {0}, rest = {0}; /* which know no overflow */
    r1_arena_push(&kv, s.blocks, kvpool_block_bytes(m, c->L + (size_t)speculative));
    r1_arena_push(&rest, P * G, max_new * (sizeof(int32_t) + sizeof(float)) + sizeof(seq_state));
    r1_arena_push(&rest, P, sizeof(prompt_state) + (prompt + blocks) * sizeof(int32_t) +
                                c->C * sizeof(float));
    r1_arena_push(&rest, 2 * s.ints, sizeof(int32_t));
    if (speculative) {
        r1_arena_push(&rest, 1, drafts_bytes(c, s.rows));
    }
    *out = (r1_decode_bytes){.slots = s.slots, .kv = kv.used, .rest = rest.used};
    r1_code code = workspace_measure(m, s.rows, s.slots + 1, 0, 0, R1_KEEP_NONE, &out->pass, st);
    out->pass.acts += rope_bytes(c, prompt + room_of(c, prompt, max_new));
    int absurd = is_absurd_model(m) || is_absurd(out->pass.acts) || is_absurd(out->pass.head) || is_absurd(out->kv);
    r1_model_close(m);
    r1_decode_spec spec = {.P = P, .G = G, .max_new = max_new, .slots = s.slots, .speculative = speculative};
    return code != R1_OK || absurd ? code
           : rehearse_decode(c, dtype, ops, dev, &spec, prompt, &out->pass.own, st);
}
