/* speculate.c - speculative decoding with the MTP module: one step, two tokens.
 *
 *   guess    the MTP module's token for position n + 1, made from the trunk's y[n - 1] and token n
 *   verify   the next step feeds tokens n and the guess as two rows; the first row draws token n + 1
 *   accept   if that is the guess, the second row draws token n + 2
 *
 * DeepSeek-V3, section 5.4.3; but instead of the rejection rule of Leviathan et al. 2023 the guess is
 * drawn with the very random number that will draw the token (after the same temperature and filters):
 * two similar distributions then mostly give the same id, and what is kept are always the trunk's own
 * draws. Rows do not influence each other (ops.h), so tokens and log-probs are those of plain decoding,
 * bit for bit: E4 of docs/numerics.md. A wrong guess costs its row. Nothing is rolled back but a length:
 * the next step writes that position's keys anew, in every layer, before anyone reads them.
 *
 * The module's past is one more layer of the KV blocks: position i is written once token i + 1 is
 * known, a prompt's last one by each generation. A guess waits in d->ids behind the last token.
 */
#include <string.h>

#include "decode.h"

size_t
drafts_bytes(const r1_config *c, size_t rows)
{
    r1_arena a = {0};
    r1_mtp io;
    mtp_place(&io, &a, c, rows);
    r1_arena_push(&a, rows, sizeof(int32_t));
    return a.used + rows * sizeof(int32_t);
}

r1_code
drafts_open(r1_decode *d, r1_status *st)
{
    r1_drafts *s = &d->drafts;
    r1_arena a = {.size = drafts_bytes(&d->m->config, d->rows)};
    s->host = r1_alloc(d->rows, sizeof *s->host);
    s->memory = a.base = d->m->ops->mem_alloc(d->m->dev, a.size, st);
    if (s->host == NULL || s->memory == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for the guesses of %zu rows", d->rows);
    }
    mtp_place(&s->io, &a, &d->m->config, d->rows);
    s->ints = r1_arena_push(&a, d->rows, sizeof *s->ints);
    return R1_OK;
}

void
drafts_close(r1_decode *d)
{
    if (d->drafts.memory != NULL) {
        d->m->ops->mem_free(d->m->dev, d->drafts.memory);
    }
    r1_free(d->drafts.host);
}

/* Which rows of ws->y the module goes on from, N with its padding. */
static r1_code
upload_rows(r1_decode *d, size_t N, r1_status *st)
{
    return d->m->ops->mem_upload(d->m->dev, d->drafts.ints, d->drafts.host, N * sizeof(int32_t), st);
}

/* The module on the batch of B sequences, N rows, that was uploaded: tokens are those AFTER the rows, whose
 * hidden states are the rows of ws->y that drafts.ints names. *z: its output. */
static r1_code
module_fwd(r1_decode *d, size_t B, size_t N, r1_tensor *z, r1_status *st)
{
    r1_model *m = d->m;
    r1_drafts *s = &d->drafts;
    decode_batch batch = decode_batch_at(d, B, N);
    r1_mtp io = mtp_view(&s->io, N);
    r1_acts a = acts_view(&d->ws->acts[0], N, m->config.K);
    r1_temps t = temps_view(&d->ws->t, N, B, m->config.K);
    a.s0 = io.x;
    m->temps = &d->ws->t; /* no trunk ran before it where all sequences are fresh */
    R1_TRY(m->ops->gather_rows(m->dev, &io.y, &d->ws->y, s->ints, st)); /* read before z is there */
    *z = io.y;
    return mtp_fwd(m, &io, &io.y, batch.ids, &a, &t, &d->pool.layers[m->config.L], &batch.seqs, st);
}

/* The module on a step's batch, and the last row of each sequence to ws->hm. */
r1_code
module_part(r1_decode *d, size_t rows, r1_status *st)
{
    r1_tensor z, h = r1_rows(&d->ws->hm, 0, rows);
    R1_TRY(module_fwd(d, rows, rows, &z, st));
    return d->m->ops->gather_rows(d->m->dev, &h, &z, decode_batch_at(d, rows, rows).last, st);
}

r1_code
drafts_prefill(r1_decode *d, size_t p0, size_t p1, r1_status *st)
{
    batch_seq *seqs = r1_alloc(p1 - p0, sizeof *seqs);
    if (seqs == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu prompts", p1 - p0);
    }
    size_t B = 0, N = 0, row = 0;
    for (size_t p = p0; p < p1; p++, row++) { /* over a prompt's last row too */
        const prompt_state *prompt = &d->prompts[p];
        if (prompt->length > 1) {
            seqs[B++] = (batch_seq){d->spec.ids + d->spec.start[p] + 1, prompt->blocks,
                                    prompt->length - 1, 0};
        }
        for (size_t j = 1; j < prompt->length; j++) {
            d->drafts.host[N++] = (int32_t)row++;
        }
    }
    r1_tensor z;
    r1_code code = B > 0 ? decode_upload(d, seqs, B, B, N, st) : R1_OK;
    r1_free(seqs);
    R1_TRY(code);
    if (B == 0) {
        return R1_OK;
    }
    R1_TRY(upload_rows(d, N, st));
    return module_fwd(d, B, N, &z, st);
}

r1_code
drafts_make(r1_decode *d, const step_seq *kept, size_t n, const int32_t *ids, r1_status *st)
{
    batch_seq *seqs = r1_alloc(n, sizeof *seqs);
    draw *draws = r1_alloc(n, sizeof *draws);
    int32_t *guess = r1_alloc(n, sizeof *guess);
    r1_code code = R1_OK;
    size_t B = 0, N = 0;
    if (seqs == NULL || draws == NULL || guess == NULL) {
        code = R1_FAIL(st, R1_ENOMEM, "out of memory for %zu guesses", n);
        goto done;
    }
    for (size_t j = 0; j < n; j++) {
        const step_seq *s = &kept[j];
        size_t have = d->seqs[s->seq].length, after = have + s->kept;
        if (decode_is_stop(d, ids[s->row + s->kept - 1]) || !worth_guessing(d, s->seq, after)) {
            continue;
        }
        seqs[B] = (batch_seq){&ids[s->row], s->table, s->kept,
                              d->prompts[s->seq / d->spec.G].length + have - 1};
        draws[B++] = (draw){s->seq, after};
        for (size_t k = 0; k < s->kept; k++) {
            d->drafts.host[N++] = (int32_t)(s->row + k);
        }
    }
    if (B > 0) {
        size_t rows = padded_rows(d->m->ops, N);
        memset(d->drafts.host + N, 0, (rows - N) * sizeof *d->drafts.host);
        code = decode_upload(d, seqs, B, rows, rows, st);
        code = code == R1_OK ? upload_rows(d, rows, st) : code;
        code = code == R1_OK ? part_run(d, R1_PART_MODULE, module_part, rows, st) : code;
        code = code == R1_OK ? decode_sample(d, draws, B, guess, NULL, st) : code;
    }
    for (size_t j = 0; code == R1_OK && j < n; j++) {
        d->seqs[kept[j].seq].guessed = 0;
    }
    for (size_t b = 0; code == R1_OK && b < B; b++) {
        d->seqs[draws[b].seq].guessed = 1;
        d->ids[draws[b].seq * d->spec.max_new + draws[b].position] = guess[b];
    }
done:
    r1_free(seqs);
    r1_free(draws);
    r1_free(guess);
    return code;
}
