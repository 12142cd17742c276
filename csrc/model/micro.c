/* micro.c - sequences of a batch -> the integers of one packed micro-batch, on the device.
 *
 * Rows are the sequences one after another; the row of token j - 1 predicts token j, and its MTP
 * module predicts token j + 1.
 *
 * Neighbours of one group have the same prompt, and share the rows of its first S tokens: the first of
 * them has these rows, the others continue them (ops.h, r1_seqs). S leaves out the rows that predict
 * a completion's first token, the trunk's and the MTP module's one before it: they are each sequence's
 * own, so every row predicts one token, and what the MTP module reads beside a row is one token.
 *
 * A micro-batch consists of parts: as many neighbours of a group as have PART_ROWS rows behind the
 * shared ones, at least one. That is a function of the sizes of the group and of nothing else; were
 * it one of micro_rows, the sums over a prompt would depend on it. So splitting a batch into micro-
 * batches cannot change a bit: parts stay whole and in order, and every gradient is a chain over rows
 * (ops.h). The price: a micro-batch may have as many rows as a prompt and PART_ROWS, if not more.
 */
#include <string.h>

#include "internal.h"

enum { PART_ROWS = 2048 };

static size_t
seq_len(const r1_batch *batch, size_t b)
{
    return (size_t)(batch->start[b + 1] - batch->start[b]);
}

/* S of the group of sequence b. */
static size_t
shared_rows(const r1_config *c, const r1_batch *batch, size_t b)
{
    size_t own = 1 + c->mtp;
    return batch->group != NULL && (size_t)batch->first[b] > own ? (size_t)batch->first[b] - own : 0;
}

/* The end of the part that begins with sequence b0, and its rows. */
static size_t
part_end(const r1_config *c, const r1_batch *batch, size_t b0, size_t *rows)
{
    size_t b1 = b0 + 1, S = shared_rows(c, batch, b0);
    *rows = seq_len(batch, b0);
    if (batch->pairs) {
        *rows += seq_len(batch, b1++);
    }
    for (; S > 0 && b1 < batch->B && batch->group[b1] == batch->group[b0]; b1++) {
        size_t more = seq_len(batch, b1) - S;
        if (*rows - S + more > PART_ROWS) {
            break;
        }
        *rows += more;
    }
    return b1;
}

size_t
micro_end(const r1_config *c, const r1_batch *batch, size_t b0, size_t micro_rows)
{
    size_t rows, more, b1 = part_end(c, batch, b0, &rows);
    while (b1 < batch->B) {
        size_t end = part_end(c, batch, b1, &more);
        if (rows + more > micro_rows) {
            break;
        }
        rows += more;
        b1 = end;
    }
    return b1;
}

static size_t
kv_blocks(size_t positions)
{
    return (positions + R1_KV_BLOCK - 1) / R1_KV_BLOCK;
}

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What the micro-batch of sequences [b0, b1) takes. */
static r1_micro_size
size_of(const r1_config *c, const r1_batch *batch, size_t b0, size_t b1)
{
    r1_micro_size s = {.seqs = b1 - b0};
    for (size_t b = b0, rows; b < b1;) {
        size_t end = part_end(c, batch, b, &rows);
        size_t shared = shared_rows(c, batch, b) / R1_KV_BLOCK;
        s.rows += rows;
        s.blocks += shared;
        for (; b < end; b++) {
            s.blocks += kv_blocks(seq_len(batch, b)) - shared;
            s.longest = larger(s.longest, seq_len(batch, b));
        }
    }
    s.table = s.seqs * kv_blocks(s.longest);
    return s;
}

r1_micro_size
micro_size(const r1_config *c, const r1_batch *batch, size_t micro_rows)
{
    r1_micro_size s = {1, 1, 1, 1, 1};
    for (size_t b0 = 0, b1; b0 < batch->B; b0 = b1) {
        b1 = micro_end(c, batch, b0, micro_rows);
        r1_micro_size one = size_of(c, batch, b0, b1);
        s = (r1_micro_size){larger(s.rows, one.rows), larger(s.seqs, one.seqs),
                            larger(s.blocks, one.blocks), larger(s.table, one.table),
                            larger(s.longest, one.longest)};
    }
    return s;
}

r1_code
micro_reserve(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t micro_rows, r1_keep keep,
              r1_status *st)
{
    r1_micro_size s = micro_size(&m->config, batch, micro_rows);
    R1_TRY(rope_reserve(m, s.longest, st));
    return workspace_reserve(m, ws, s.rows, s.seqs, s.blocks, s.table, keep, st);
}

/* The integers of a micro-batch on the host; shapes: r1_micro, r1_seqs. */
typedef struct {
    int32_t *q_start, *pos0, *prefix, *last, *ids, *next, *pos, *seq, *unit, *row, *target;
    int32_t *row_unit, *mtp_row, *mtp_target, *mtp_unit, *blocks, *mtp_index;
    size_t max_blocks, used; /* used: KV blocks so far */
} micro_lists;

static int32_t *
take(int32_t **next, size_t n)
{
    int32_t *p = *next;
    *next += n;
    return p;
}

/* One list behind another from p on; those that stay on the host are last. In statements, since an
 * initialiser's calls come in any order. */
static micro_lists
lists_of(int32_t *p, const r1_micro_size *s)
{
    size_t B = s->seqs, N = s->rows;
    micro_lists x = {.max_blocks = s->table / B};
    int32_t **const of_seqs[] = {&x.pos0, &x.prefix, &x.last};
    int32_t **const of_rows[] = {&x.ids, &x.next, &x.pos, &x.seq, &x.unit, &x.row, &x.target,
                                 &x.row_unit, &x.mtp_row, &x.mtp_target, &x.mtp_unit};
    x.q_start = take(&p, B + 1);
    for (size_t i = 0; i < sizeof of_seqs / sizeof of_seqs[0]; i++) {
        *of_seqs[i] = take(&p, B);
    }
    for (size_t i = 0; i < sizeof of_rows / sizeof of_rows[0]; i++) {
        *of_rows[i] = take(&p, N);
    }
    x.blocks = take(&p, s->table);
    x.mtp_index = take(&p, N);
    return x;
}

/* Sequence b behind the one before it. All of a part but its first sequence have their first `shared`
 * positions in the rows of that one. */
static void
put_sequence(micro_lists *x, r1_micro *mb, const r1_batch *batch, size_t b, size_t first,
             size_t shared)
{
    const int32_t *tokens = batch->ids + batch->start[b];
    size_t i = b - mb->b0, i_first = first - mb->b0, T = seq_len(batch, b);
    size_t pos0 = b > first ? shared : 0, row0 = (size_t)x->q_start[i] - pos0; /* of position 0 */
    int32_t *table = x->blocks + i * x->max_blocks;
    x->pos0[i] = (int32_t)pos0;
    x->prefix[i] = x->q_start[pos0 > 0 ? i_first : i];
    x->q_start[i + 1] = (int32_t)(row0 + T);
    x->last[i] = (int32_t)(row0 + T - 1);
    for (size_t j = pos0; j < T; j++) {
        x->ids[row0 + j] = tokens[j];
        x->next[row0 + j] = j + 1 < T ? tokens[j + 1] : -1;
        x->pos[row0 + j] = (int32_t)j;
        x->seq[row0 + j] = (int32_t)i;
        x->unit[row0 + j] = (int32_t)(row0 + larger(pos0, j / R1_UNIT * R1_UNIT));
    }
    for (size_t j = (size_t)batch->first[b]; j < T; j++) {
        if (j >= pos0 + 2) { /* with an MTP module: always, or j < 2 */
            x->mtp_row[mb->mtp_M] = (int32_t)(row0 + j - 2);
            x->mtp_target[mb->mtp_M] = tokens[j];
            x->mtp_unit[mb->mtp_M] = x->unit[row0 + j - 2];
            x->mtp_index[mb->mtp_M++] = (int32_t)mb->M;
        }
        x->row[mb->M] = (int32_t)(row0 + j - 1);
        x->row_unit[mb->M] = x->unit[row0 + j - 1];
        x->target[mb->M++] = tokens[j];
    }
    for (size_t j = 0; j < kv_blocks(T); j++) {
        int theirs = j < pos0 / R1_KV_BLOCK;
        table[j] = theirs ? x->blocks[i_first * x->max_blocks + j] : (int32_t)x->used++;
    }
}

r1_code
micro_open(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t b0, size_t b1, size_t m0,
           r1_micro *mb, r1_status *st)
{
    const r1_config *c = &m->config;
    r1_micro_size s = size_of(c, batch, b0, b1);
    size_t B = s.seqs, N = s.rows, device = 11 * N + 4 * B + 1 + s.table;
    *mb = (r1_micro){.b0 = b0, .N = N, .m0 = m0};
    mb->host = r1_alloc(device + N, sizeof(int32_t));
    if (mb->host == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a micro-batch of %zu rows", N);
    }
    micro_lists x = lists_of(mb->host, &s);
    for (size_t first = b0, rows; first < b1;) {
        size_t end = part_end(c, batch, first, &rows), shared = shared_rows(c, batch, first);
        for (size_t b = first; b < end; b++) {
            put_sequence(&x, mb, batch, b, first, shared);
        }
        first = end;
    }
    r1_code code = m->ops->mem_upload(m->dev, ws->ints, mb->host, device * sizeof(int32_t), st);
    if (code != R1_OK) {
        micro_close(mb);
        return code;
    }
#define ON_DEVICE(array) (ws->ints + ((array) - mb->host))
    mb->seqs = (r1_seqs){B, N, x.max_blocks, ON_DEVICE(x.q_start), ON_DEVICE(x.pos0),
                         ON_DEVICE(x.blocks), ON_DEVICE(x.pos), ON_DEVICE(x.seq),
                         ON_DEVICE(x.unit), ON_DEVICE(x.prefix)};
    mb->ids = ON_DEVICE(x.ids);
    mb->next = ON_DEVICE(x.next);
    mb->row = ON_DEVICE(x.row);
    mb->target = ON_DEVICE(x.target);
    mb->row_unit = ON_DEVICE(x.row_unit);
    mb->last = ON_DEVICE(x.last);
    mb->mtp_row = ON_DEVICE(x.mtp_row);
    mb->mtp_target = ON_DEVICE(x.mtp_target);
    mb->mtp_unit = ON_DEVICE(x.mtp_unit);
#undef ON_DEVICE
    mb->mtp_index = x.mtp_index;
    mb->row_cut = x.row_unit;
    mb->mtp_cut = x.mtp_unit;
    return R1_OK;
}

void
micro_close(r1_micro *mb)
{
    r1_free(mb->host);
    mb->host = NULL;
}
