/* decode_batch.c - what a step tells the network about its rows, and the tokens that it draws from them.
 *
 * Integers of a batch, in one array, uploaded at once: where sequences start, their positions and block
 * tables; tokens, position and sequence of each row. Integers of draws: the words of the random counter, then
 * what comes back, ids and log-probs. The same sizes lie in the same places. Knows nothing about what
 * happens to a token.
 */
#include <assert.h>
#include <string.h>

#include "decode.h"

/* The integers of a batch, from `at`. */
typedef struct {
    int32_t *q_start, *pos0, *last, *blocks, *ids, *pos, *seq, *end;
} batch_ints;

static batch_ints
batch_place(const r1_decode *d, int32_t *at, size_t B, size_t N)
{
    batch_ints x = {.q_start = at};
    x.pos0 = x.q_start + B + 1;
    x.last = x.pos0 + B;
    x.blocks = x.last + B;
    x.ids = x.blocks + B * d->max_blocks;
    x.pos = x.ids + N;
    x.seq = x.pos + N;
    x.end = x.seq + N;
    return x;
}

decode_batch
decode_batch_at(const r1_decode *d, size_t B, size_t N)
{
    batch_ints x = batch_place(d, d->ints, B, N);
    return (decode_batch){{B, N, d->max_blocks, x.q_start, x.pos0, x.blocks, x.pos, x.seq, NULL, NULL},
                          x.ids, x.last};
}

r1_code
decode_upload(r1_decode *d, const batch_seq *seqs, size_t n, size_t B, size_t N, r1_status *st)
{
    const int32_t first = 0; /* padding: this token at position 0, in the spare block */
    batch_ints x = batch_place(d, d->host, B, N);
    size_t row = 0, table = d->max_blocks * sizeof *x.blocks;
    for (size_t b = 0; b < B; b++) {
        batch_seq s = b < n ? seqs[b] : (batch_seq){&first, NULL, row < N, 0};
        x.q_start[b] = (int32_t)row;
        x.pos0[b] = (int32_t)s.pos0;
        for (size_t j = 0; j < s.n; j++, row++) {
            x.ids[row] = s.tokens[j];
            x.pos[row] = (int32_t)(s.pos0 + j);
            x.seq[row] = (int32_t)b;
        }
        x.last[b] = (int32_t)row - 1;
        if (s.table != NULL) {
            memcpy(x.blocks + b * d->max_blocks, s.table, table);
        } else {
            memset(x.blocks + b * d->max_blocks, 0, table);
            x.blocks[b * d->max_blocks] = d->spare;
        }
    }
    x.q_start[B] = (int32_t)row;
    assert(row == N);
    return d->m->ops->mem_upload(d->m->dev, d->ints, d->host,
                                 (size_t)(x.end - d->host) * sizeof(int32_t), st);
}

/* d->ints has the numbers of n draws, prompts, generations, positions, and gets ids and, not of guesses,
 * log-probs. h: (n, C) */
static r1_code
draw_rows(r1_decode *d, const r1_tensor *h, int guesses, r1_status *st)
{
    r1_model *m = d->m;
    const r1_ops *ops = m->ops;
    size_t n = h->rows;
    int32_t *prompt = d->ints, *generation = prompt + n, *position = generation + n;
    int32_t *drawn = position + n;
    r1_tensor logits = r1_rows(&d->ws->logits, 0, n), live = model_live(m, &logits);
    r1_tensor logp = r1_f32((float *)(drawn + n), n, 1), lse = r1_rows(&d->ws->vec[1], 0, n);
    R1_TRY(ops->matmul_nt(m->dev, &logits, h, m->head.weight->weight, NULL, NULL, 0, st));
    R1_TRY(ops->sample(m->dev, drawn, &live, d->spec.key, prompt, generation, position,
                       &d->spec.sampling, d->ws->logp_scratch, st));
    return guesses ? R1_OK
                   : ops->logp_fwd(m->dev, &logp, NULL, &lse, &live, drawn, &d->spec.sampling,
                                   d->ws->logp_scratch, st);
}

r1_code
draw_part(r1_decode *d, size_t rows, r1_status *st)
{
    r1_tensor h = r1_rows(&d->ws->y, 0, rows);
    return draw_rows(d, &h, 0, st);
}

static r1_code
guess_part(r1_decode *d, size_t rows, r1_status *st)
{
    r1_tensor h = r1_rows(&d->ws->hm, 0, rows);
    return draw_rows(d, &h, 1, st);
}

r1_code
decode_sample(r1_decode *d, const draw *which, size_t n, int32_t *ids, float *logp, r1_status *st)
{
    const r1_ops *ops = d->m->ops;
    int guesses = logp == NULL;
    size_t chunk = d->ws->logits.rows, rows = padded_rows(ops, n);
    for (size_t n0 = 0, k; n0 < n; n0 += k) {
        k = n - n0 < chunk ? n - n0 : chunk;
        size_t all = rows <= chunk ? rows : k; /* only what is one chunk is recorded, and padded */
        int32_t *prompt = d->host, *generation = prompt + all, *position = generation + all;
        memset(d->host, 0, 3 * all * sizeof *d->host);
        for (size_t j = 0; j < k; j++) {
            size_t i = which[n0 + j].seq;
            prompt[j] = d->spec.sample_ids[i / d->spec.G];
            generation[j] = (int32_t)(i % d->spec.G);
            position[j] = (int32_t)which[n0 + j].position;
        }
        R1_TRY(ops->mem_upload(d->m->dev, d->ints, d->host, 3 * all * sizeof *d->host, st));
        if (rows <= chunk) {
            R1_TRY(guesses ? part_run(d, R1_PART_GUESS, guess_part, all, st)
                           : part_run(d, R1_PART_DRAW, draw_part, all, st));
        } else {
            r1_tensor h = r1_rows(guesses ? &d->ws->hm : &d->ws->y, n0, k);
            R1_TRY(draw_rows(d, &h, guesses, st));
        }
        R1_TRY(ops->mem_download(d->m->dev, d->host, d->ints + 3 * all,
                                 (guesses ? 1 : 2) * all * sizeof *d->host, st));
        memcpy(ids + n0, d->host, k * sizeof *ids);
        if (!guesses) {
            memcpy(logp + n0, d->host + all, k * sizeof *logp);
        }
    }
    return R1_OK;
}
