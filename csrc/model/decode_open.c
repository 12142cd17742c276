/* decode_open.c - the memory of a decode session: how many slots and KV blocks, and all of it freed.
 *
 * A step allocates only its own lists, and the model's workspace where that is still too small.
 */
#include <string.h>

#include "decode.h"

enum { KV_BYTES = 1 << 30, PREFILL_ROWS = 512 };

static int32_t *
copy_ints(const int32_t *from, size_t n)
{
    int32_t *to = r1_alloc(n + 1, sizeof *to);
    if (to != NULL && n > 0) {
        memcpy(to, from, n * sizeof *to);
    }
    return to;
}

static r1_code
host_open(r1_decode *d, r1_status *st)
{
    r1_decode_spec *s = &d->spec;
    size_t n = s->P * s->G;
    s->ids = copy_ints(s->ids, (size_t)s->start[s->P]);
    s->start = copy_ints(s->start, s->P + 1);
    s->sample_ids = copy_ints(s->sample_ids, s->P);
    s->stop = copy_ints(s->stop, s->n_stop);
    d->prompts = r1_alloc(s->P, sizeof *d->prompts);
    d->seqs = r1_alloc(n, sizeof *d->seqs);
    d->ids = r1_alloc(n, s->max_new * sizeof *d->ids); /* the product of all may overflow */
    d->logp = r1_alloc(n, s->max_new * sizeof *d->logp);
    if (s->ids == NULL || s->start == NULL || s->sample_ids == NULL || s->stop == NULL ||
        d->prompts == NULL || d->seqs == NULL || d->ids == NULL || d->logp == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu sequences of %zu tokens", n,
                       s->max_new);
    }
    for (size_t p = 0; p < s->P; p++) {
        d->prompts[p].length = (size_t)(s->start[p + 1] - s->start[p]);
        size_t blocks = seq_blocks(d, p);
        d->max_blocks = blocks > d->max_blocks ? blocks : d->max_blocks;
        blocks = blocks_of(d->prompts[p].length);
        d->max_blocks = blocks > d->max_blocks ? blocks : d->max_blocks;
    }
    for (size_t p = 0; p < s->P; p++) {
        d->prompts[p].blocks = r1_alloc(d->max_blocks, sizeof(int32_t));
        if (d->prompts[p].blocks == NULL) {
            return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu prompts", s->P);
        }
    }
    return R1_OK;
}

/* As many slots as asked for, as there are sequences, and as fit a gibibyte of KV; at least one.
 * tokens: of all prompts; longest: of one; max_blocks: of one sequence. */
r1_decode_size
decode_size(const r1_model *m, size_t sequences, size_t tokens, size_t longest, size_t max_blocks,
            size_t slots, int speculative)
{
    size_t layers = m->config.L + (size_t)speculative, rows_a_slot = speculative ? 2 : 1;
    size_t per_slot = max_blocks + 1; /* own and its prompt's; one is in both */
    size_t bytes; /* of a slot, in a plan beyond any memory */
    if (__builtin_mul_overflow(per_slot, kvpool_block_bytes(m, layers), &bytes)) {
        bytes = SIZE_MAX;
    }
    size_t fit = KV_BYTES / bytes;
    slots = slots < sequences ? slots : sequences;
    slots = slots < fit ? slots : fit;
    slots = slots > 0 ? slots : 1;
    size_t step = padded_rows(m->ops, rows_a_slot * slots), seqs = step > slots ? step : slots + 1;
    size_t rows = longest > PREFILL_ROWS ? longest : PREFILL_ROWS;
    rows = rows < tokens ? rows : tokens;
    rows = rows > step ? rows : step;
    /* Every slot holds a sequence, and a prompt of its own at worst; one more prompt may wait. And rows
     * that pad a step have a block. */
    return (r1_decode_size){slots, (slots + 1) * per_slot + (m->ops->graph_begin != NULL), rows,
                            3 * rows + (3 + max_blocks) * seqs + 1};
}

static r1_code
device_open(r1_decode *d, r1_status *st)
{
    r1_decode_spec *s = &d->spec;
    r1_model *m = d->m;
    size_t longest = 1, positions = 1; /* of a prompt; of one with a completion */
    for (size_t p = 0; p < s->P; p++) {
        size_t length = d->prompts[p].length, whole = length + room(d, p);
        longest = length > longest ? length : longest;
        positions = whole > positions ? whole : positions;
    }
    r1_decode_size size = decode_size(m, s->P * s->G, (size_t)s->start[s->P], longest,
                                      d->max_blocks, s->slots, s->speculative);
    s->slots = size.slots;
    d->rows = size.rows;
    d->n_ints = size.ints;
    d->slots = r1_alloc(s->slots, sizeof *d->slots);
    d->host = r1_alloc(d->n_ints, sizeof(int32_t));
    d->ints = m->ops->mem_alloc(m->dev, d->n_ints * sizeof(int32_t), st);
    d->hidden_memory = m->ops->mem_alloc(m->dev, s->P * m->config.C * sizeof(float), st);
    if (d->slots == NULL || d->host == NULL || d->ints == NULL || d->hidden_memory == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu slots", s->slots);
    }
    d->hidden = r1_f32(d->hidden_memory, s->P, m->config.C);
    for (size_t i = 0; i < s->slots; i++) {
        d->slots[i].table = r1_alloc(d->max_blocks, sizeof(int32_t));
        if (d->slots[i].table == NULL) {
            return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu slots", s->slots);
        }
    }
    R1_TRY(rope_reserve(m, positions, st));
    if (s->speculative) {
        R1_TRY(drafts_open(d, st));
    }
    R1_TRY(graphs_open(d, s->slots * (s->speculative ? 2 : 1), st));
    R1_TRY(kvpool_open(&d->pool, m, m->config.L + (size_t)s->speculative, size.blocks, st));
    if (m->ops->graph_begin != NULL) { /* steps are padded, recorded or not */
        kvpool_take(&d->pool, &d->spare, 1);
    }
    return R1_OK;
}

r1_code
r1_decode_open(r1_decode **out, r1_model *m, const r1_decode_spec *spec, r1_status *st)
{
    *out = NULL;
    if (spec->speculative && m->config.mtp == 0) {
        return R1_FAIL(st, R1_EINVAL, "speculative decoding guesses with the MTP module, and this "
                                      "model has none");
    }
    r1_decode *d = r1_alloc(1, sizeof *d);
    if (d == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a decode session");
    }
    d->m = m;
    d->ws = &m->infer;
    d->version = m->version;
    d->spec = *spec;
    d->spec.speculative = spec->speculative != 0;
    r1_code code = host_open(d, st);
    if (code == R1_OK && spec->P > 0) {
        code = device_open(d, st);
    }
    if (code != R1_OK) {
        r1_decode_close(d);
        return code;
    }
    *out = d;
    return R1_OK;
}

void
r1_decode_close(r1_decode *d)
{
    if (d == NULL) {
        return;
    }
    for (size_t p = 0; d->prompts != NULL && p < d->spec.P; p++) {
        r1_free(d->prompts[p].blocks);
    }
    for (size_t i = 0; d->slots != NULL && i < d->spec.slots; i++) {
        r1_free(d->slots[i].table);
    }
    graphs_close(d);
    kvpool_close(&d->pool, d->m);
    drafts_close(d);
    if (d->ints != NULL) {
        d->m->ops->mem_free(d->m->dev, d->ints);
    }
    if (d->hidden_memory != NULL) {
        d->m->ops->mem_free(d->m->dev, d->hidden_memory);
    }
    void *owned[] = {(void *)d->spec.ids, (void *)d->spec.start, (void *)d->spec.sample_ids,
                     (void *)d->spec.stop, d->prompts, d->seqs, d->slots, d->ids, d->logp,
                     d->host, d};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        r1_free(owned[i]);
    }
}
