/* decode.c - sampling: prompts -> completions, a step at a time, slots handed on as they free up.
 *
 * A step gives every live sequence one token, or two where a guess of the first was right:
 *   admit     free slots take the next sequences (prompt p, generation g) in order; a prompt is run
 *             through the network once, whatever the number of its generations
 *   forward   the last token of every sequence that has one, as one batch of rows
 *   sample    fresh sequences from their prompt's last hidden state, the others from that batch
 *   guess     in a speculative session: see speculate.c
 *
 * A draw depends on (key, prompt, generation, position) and on the sequence's own tokens, never on
 * the slot or the company: rows do not influence each other (ops.h), and Philox has no state. A step
 * that fails or is interrupted may be run again: nothing is recorded before the tokens are there.
 */
#include <string.h>

#include "decode.h"

/* ---- prompts ---------------------------------------------------------------------------------- */

/* Prompts [p0, p1) through the network; their last hidden states into d->hidden. */
static r1_code
prefill(r1_decode *d, size_t p0, size_t p1, r1_status *st)
{
    size_t B = p1 - p0;
    if (B == 0) {
        return R1_OK;
    }
    batch_seq *seqs = r1_alloc(B, sizeof *seqs);
    size_t N = 0;
    if (seqs == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu prompts", B);
    }
    for (size_t b = 0; b < B; b++) {
        prompt_state *p = &d->prompts[p0 + b];
        seqs[b] = (batch_seq){d->spec.ids + d->spec.start[p0 + b], p->blocks, p->length, 0};
        N += p->length;
    }
    decode_batch batch = decode_batch_at(d, B, N);
    r1_code code = decode_upload(d, seqs, B, B, N, st);
    r1_free(seqs);
    R1_TRY(code);
    R1_TRY(trunk_fwd(d->m, d->ws, batch.ids, &batch.seqs, d->pool.layers, st));
    r1_tensor y = r1_rows(&d->ws->y, 0, N), h = r1_rows(&d->hidden, p0, B);
    R1_TRY(d->m->ops->gather_rows(d->m->dev, &h, &y, batch.last, st));
    if (d->spec.speculative) {
        R1_TRY(drafts_prefill(d, p0, p1, st));
    }
    for (size_t p = p0; p < p1; p++) {
        d->prompts[p].prefilled = 1;
    }
    return R1_OK;
}

/* ---- admission and retirement ---------------------------------------------------------------- */

/* Sequence i takes a slot: its prompt's full blocks are shared, a partial one is copied. The MTP module
 * has still to write the prompt's last position, since it reads the token behind it. */
static r1_code
seq_start(r1_decode *d, size_t i, r1_status *st)
{
    size_t p = i / d->spec.G, length = d->prompts[p].length;
    size_t fixed = length - (d->spec.speculative != 0);
    size_t whole = fixed / R1_KV_BLOCK, total = seq_blocks(d, p);
    slot_state *slot = &d->slots[d->n_slots];
    slot->seq = i;
    slot->n_blocks = total;
    d->seqs[i].first = whole < total ? whole : total;
    memcpy(slot->table, d->prompts[p].blocks, d->seqs[i].first * sizeof(int32_t));
    kvpool_take(&d->pool, slot->table + d->seqs[i].first, total - d->seqs[i].first);
    if (whole < d->prompts[p].n_blocks && whole < total) {
        int32_t pair[2] = {d->prompts[p].blocks[whole], slot->table[whole]};
        r1_code code = d->m->ops->mem_upload(d->m->dev, d->ints, pair, sizeof pair, st);
        for (size_t l = 0; code == R1_OK && l < d->pool.n_layers; l++) {
            code = d->m->ops->kv_copy(d->m->dev, &d->pool.layers[l], d->ints, 1, st);
        }
        if (code != R1_OK) {
            kvpool_give(&d->pool, slot->table + whole, total - whole);
            return code;
        }
    }
    d->seqs[i].live = 1;
    d->n_slots++;
    return R1_OK;
}

static r1_code
admit(r1_decode *d, r1_status *st)
{
    size_t G = d->spec.G, end = d->spec.P * G;
    size_t want = d->next + (d->spec.slots - d->n_slots);
    size_t rows = 0, p0 = d->spec.P, p1 = 0, stop = d->next;
    want = want < end ? want : end;
    for (; stop < want; stop++) {
        prompt_state *p = &d->prompts[stop / G];
        if (p->prefilled || stop / G < p1) {
            continue;
        }
        if (rows > 0 && rows + p->length > d->rows) {
            break;
        }
        rows += p->length;
        p0 = p0 < stop / G ? p0 : stop / G;
        p1 = stop / G + 1;
        if (p->n_blocks == 0) {
            p->n_blocks = blocks_of(p->length);
            kvpool_take(&d->pool, p->blocks, p->n_blocks);
        }
    }
    if (p1 > p0) {
        R1_TRY(prefill(d, p0, p1, st));
    }
    for (; d->next < stop; d->next++) {
        R1_TRY(model_poll(d->m, st)); /* the first touch of a slot's blocks is slow */
        R1_TRY(seq_start(d, d->next, st));
    }
    return R1_OK;
}

static void
prompt_finish(r1_decode *d, size_t p)
{
    if (++d->prompts[p].finished == d->spec.G) {
        kvpool_give(&d->pool, d->prompts[p].blocks, d->prompts[p].n_blocks);
    }
}

static void
seq_finish(r1_decode *d, size_t i, int stopped)
{
    size_t s = 0, first = d->seqs[i].first;
    while (d->slots[s].seq != i) {
        s++;
    }
    kvpool_give(&d->pool, d->slots[s].table + first, d->slots[s].n_blocks - first);
    slot_state freed = d->slots[s];
    d->slots[s] = d->slots[--d->n_slots];
    d->slots[d->n_slots] = freed;
    d->seqs[i].done = 1;
    d->seqs[i].stopped = stopped;
    d->seqs[i].live = 0;
    prompt_finish(d, i / d->spec.G);
}

/* ---- one step -------------------------------------------------------------------------------- */

/* The trunk on a step's batch. */
r1_code
trunk_part(r1_decode *d, size_t rows, r1_status *st)
{
    decode_batch batch = decode_batch_at(d, rows, rows);
    return trunk_fwd(d->m, d->ws, batch.ids, &batch.seqs, d->pool.layers, st);
}

int
decode_is_stop(const r1_decode *d, int32_t id)
{
    for (size_t j = 0; j < d->spec.n_stop; j++) {
        if (d->spec.stop[j] == id) {
            return 1;
        }
    }
    return 0;
}

static void
append(r1_decode *d, size_t i, int32_t id, float logp)
{
    seq_state *s = &d->seqs[i];
    size_t at = i * d->spec.max_new + s->length++;
    d->ids[at] = id;
    d->logp[at] = logp;
    if (decode_is_stop(d, id)) {
        seq_finish(d, i, 1);
    } else if (s->length == room(d, i / d->spec.G)) {
        seq_finish(d, i, 0);
    }
}

/* The scratch lists of a step, with an entry a slot or a row. */
typedef struct {
    step_seq *seqs;
    batch_seq *fed;
    draw *draws;
    int32_t *ids;
    float *logp;
} step_lists;

/* The sequences of a step and their rows: those that have tokens, then fresh ones. A guess is a row of
 * its own behind the last token. */
static size_t
list_rows(r1_decode *d, const step_lists *l, int with_guesses, size_t *old)
{
    size_t rows = 0, n = 0;
    for (int fresh = 0; fresh < 2; fresh++) {
        for (size_t s = 0; s < d->n_slots; s++) {
            size_t i = d->slots[s].seq, have = d->seqs[i].length;
            if ((have == 0) != fresh) {
                continue;
            }
            size_t k = with_guesses && d->seqs[i].guessed ? 2 : 1;
            l->seqs[n] = (step_seq){i, rows, k, 1, 0, d->slots[s].table};
            if (!fresh) {
                l->fed[n] = (batch_seq){&d->ids[i * d->spec.max_new + have - 1], d->slots[s].table,
                                        k, d->prompts[i / d->spec.G].length + have - 1};
                *old = n + 1;
            }
            for (size_t j = 0; j < k; j++) {
                l->draws[rows++] = (draw){i, have + j};
            }
            n++;
        }
    }
    return rows;
}

/* The draw behind a guess counts if the guess is what was drawn, and does not end the sequence. */
static void
accept(r1_decode *d, const step_lists *l, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        step_seq *s = &l->seqs[j];
        const int32_t *guess = &d->ids[s->seq * d->spec.max_new + d->seqs[s->seq].length];
        int32_t drawn = l->ids[s->row];
        s->right = s->rows == 2 && *guess == drawn;
        s->kept = s->right && !decode_is_stop(d, drawn) ? 2 : 1;
    }
}

/* *gained: the most tokens that a sequence got. */
static r1_code
step(r1_decode *d, const step_lists *l, int with_guesses, size_t *gained, r1_status *st)
{
    size_t old = 0, n = d->n_slots, rows = list_rows(d, l, with_guesses, &old);
    size_t fed = old < n ? l->seqs[old].row : rows;
    if (old > 0) {
        size_t padded = padded_rows(d->m->ops, fed);
        R1_TRY(decode_upload(d, l->fed, old, padded, padded, st));
        R1_TRY(part_run(d, R1_PART_TRUNK, trunk_part, padded, st));
    }
    if (old < n) {
        for (size_t j = old; j < n; j++) {
            d->host[j - old] = (int32_t)(l->seqs[j].seq / d->spec.G);
        }
        R1_TRY(d->m->ops->mem_upload(d->m->dev, d->ints, d->host, (n - old) * sizeof(int32_t), st));
        r1_tensor h = r1_rows(&d->ws->y, fed, n - old);
        R1_TRY(d->m->ops->gather_rows(d->m->dev, &h, &d->hidden, d->ints, st));
    }
    R1_TRY(decode_sample(d, l->draws, rows, l->ids, l->logp, st));
    accept(d, l, n);
    if (d->spec.speculative) {
        R1_TRY(drafts_make(d, l->seqs, n, l->ids, st));
    }
    *gained = 1;
    for (size_t j = 0; j < n; j++) {
        const step_seq *s = &l->seqs[j];
        for (size_t k = 0; k < s->kept; k++) {
            append(d, s->seq, l->ids[s->row + k], l->logp[s->row + k]);
        }
        *gained = s->kept > *gained ? s->kept : *gained;
        d->drafts.proposed += s->rows - 1;
        d->drafts.accepted += s->right;
    }
    return R1_OK;
}

r1_code
r1_decode_run(r1_decode *d, size_t tokens, size_t *live, r1_status *st)
{
    size_t slots = d->spec.slots, rows = slots * (d->spec.speculative ? 2 : 1);
    if (d->spec.P * d->spec.G == 0) {
        *live = 0;
        return R1_OK;
    }
    if (d->version != d->m->version) {
        return R1_FAIL(st, R1_EINVAL,
                       "the weights have changed since this session began; open a new one");
    }
    step_lists l = {r1_alloc(slots, sizeof *l.seqs), r1_alloc(slots, sizeof *l.fed),
                    r1_alloc(rows, sizeof *l.draws), r1_alloc(rows, sizeof *l.ids),
                    r1_alloc(rows, sizeof *l.logp)};
    r1_code code = workspace_reserve(d->m, d->ws, d->rows, slots + 1, 0, 0, R1_KEEP_NONE, st);
    if (l.seqs == NULL || l.fed == NULL || l.draws == NULL || l.ids == NULL || l.logp == NULL) {
        code = R1_FAIL(st, R1_ENOMEM, "out of memory for a decode step of %zu slots", slots);
    }
    if (code == R1_OK) {
        graphs_check(d);
    }
    for (size_t left = tokens, gained = 1; code == R1_OK && left > 0; left -= gained) {
        code = admit(d, st);
        if (code != R1_OK || d->n_slots == 0) {
            break;
        }
        code = step(d, &l, left > 1, &gained, st);
    }
    void *lists[] = {l.seqs, l.fed, l.draws, l.ids, l.logp};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        r1_free(lists[i]);
    }
    *live = d->n_slots + (d->spec.P * d->spec.G - d->next);
    return code;
}

/* ---- results --------------------------------------------------------------------------------- */

r1_sequence
r1_decode_get(const r1_decode *d, size_t i)
{
    size_t at = i * d->spec.max_new;
    return (r1_sequence){d->ids + at, d->logp + at, d->seqs[i].length, d->seqs[i].done,
                         d->seqs[i].stopped};
}

void
r1_decode_drafts(const r1_decode *d, uint64_t *proposed, uint64_t *accepted)
{
    *proposed = d->drafts.proposed;
    *accepted = d->drafts.accepted;
}

void
r1_decode_stop(r1_decode *d, size_t i, size_t keep)
{
    seq_state *s = &d->seqs[i];
    s->length = keep < s->length ? keep : s->length;
    if (s->live) {
        seq_finish(d, i, 1);
    }
    s->stopped = s->done;
}
