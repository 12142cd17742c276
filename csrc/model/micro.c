/* micro.c - sequences of a batch -> the integers of one packed micro-batch, on the device.
 *
 * Rows are the sequences one after another; the row of token j - 1 predicts token j, and its MTP
 * module predicts token j + 1. Splitting a batch into micro-batches cannot change a bit: sequences
 * stay whole and in order, and every gradient is a chain over rows (ops.h).
 */
#include <string.h>

#include "model.h"

static size_t
seq_len(const r1_batch *batch, size_t b)
{
    return (size_t)(batch->start[b + 1] - batch->start[b]);
}

size_t
micro_end(const r1_batch *batch, size_t b0, size_t micro_rows, size_t unit)
{
    size_t b1 = b0 + unit;
    while (b1 < batch->B &&
           (size_t)(batch->start[b1 + unit] - batch->start[b0]) <= micro_rows) {
        b1 += unit;
    }
    return b1;
}

static size_t
seq_blocks(const r1_batch *batch, size_t b)
{
    return (seq_len(batch, b) + R1_KV_BLOCK - 1) / R1_KV_BLOCK;
}

/* KV blocks of sequences [b0, b1); *most: of the longest, the width of the block table. */
static size_t
blocks_needed(const r1_batch *batch, size_t b0, size_t b1, size_t *most)
{
    size_t sum = 0;
    *most = 1;
    for (size_t b = b0; b < b1; b++) {
        size_t n = seq_blocks(batch, b);
        *most = n > *most ? n : *most;
        sum += n;
    }
    return sum;
}

r1_micro_size
micro_size(const r1_batch *batch, size_t micro_rows, size_t unit)
{
    r1_micro_size s = {1, 1, 1, 1, 1};
    for (size_t b0 = 0, b1; b0 < batch->B; b0 = b1) {
        b1 = micro_end(batch, b0, micro_rows, unit);
        size_t n = (size_t)(batch->start[b1] - batch->start[b0]);
        size_t most, sum = blocks_needed(batch, b0, b1, &most);
        for (size_t b = b0; b < b1; b++) {
            s.longest = seq_len(batch, b) > s.longest ? seq_len(batch, b) : s.longest;
        }
        s.rows = n > s.rows ? n : s.rows;
        s.seqs = b1 - b0 > s.seqs ? b1 - b0 : s.seqs;
        s.blocks = sum > s.blocks ? sum : s.blocks;
        s.table = (b1 - b0) * most > s.table ? (b1 - b0) * most : s.table;
    }
    return s;
}

r1_code
micro_reserve(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t micro_rows, size_t unit,
              r1_keep keep, r1_status *st)
{
    r1_micro_size s = micro_size(batch, micro_rows, unit);
    R1_TRY(rope_reserve(m, s.longest, st));
    return workspace_reserve(m, ws, s.rows, s.seqs, s.blocks, s.table, keep, st);
}

static int32_t *
take(int32_t **next, size_t n)
{
    int32_t *p = *next;
    *next += n;
    return p;
}

r1_code
micro_open(r1_model *m, r1_workspace *ws, const r1_batch *batch, size_t b0, size_t b1, size_t m0,
           r1_micro *mb, r1_status *st)
{
    size_t B = b1 - b0, N = (size_t)(batch->start[b1] - batch->start[b0]);
    size_t max_blocks, used = 0;
    blocks_needed(batch, b0, b1, &max_blocks);
    size_t device = 8 * N + 3 * B + 1 + B * max_blocks;
    *mb = (r1_micro){.b0 = b0, .N = N, .m0 = m0};
    mb->host = r1_alloc(device + N, sizeof(int32_t));
    if (mb->host == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for a micro-batch of %zu rows", N);
    }
    int32_t *p = mb->host;
    int32_t *q_start = take(&p, B + 1), *pos0 = take(&p, B), *last = take(&p, B);
    int32_t *ids = take(&p, N), *next = take(&p, N), *pos = take(&p, N), *seq = take(&p, N);
    int32_t *row = take(&p, N), *target = take(&p, N);
    int32_t *mtp_row = take(&p, N), *mtp_target = take(&p, N);
    int32_t *blocks = take(&p, B * max_blocks), *mtp_index = take(&p, N);

    for (size_t b = 0; b < B; b++) {
        const int32_t *tokens = batch->ids + batch->start[b0 + b];
        size_t T = seq_len(batch, b0 + b);
        size_t n0 = (size_t)(batch->start[b0 + b] - batch->start[b0]);
        q_start[b] = (int32_t)n0;
        q_start[b + 1] = (int32_t)(n0 + T);
        last[b] = (int32_t)(n0 + T - 1);
        for (size_t j = 0; j < T; j++) {
            ids[n0 + j] = tokens[j];
            next[n0 + j] = j + 1 < T ? tokens[j + 1] : -1;
            pos[n0 + j] = (int32_t)j;
            seq[n0 + j] = (int32_t)b;
        }
        for (size_t j = (size_t)batch->first[b0 + b]; j < T; j++) {
            if (j >= 2) {
                mtp_row[mb->mtp_M] = (int32_t)(n0 + j - 2);
                mtp_target[mb->mtp_M] = tokens[j];
                mtp_index[mb->mtp_M++] = (int32_t)mb->M;
            }
            row[mb->M] = (int32_t)(n0 + j - 1);
            target[mb->M++] = tokens[j];
        }
        for (size_t j = 0; j < seq_blocks(batch, b0 + b); j++) {
            blocks[b * max_blocks + j] = (int32_t)used++;
        }
    }
    r1_code code = m->ops->mem_upload(m->dev, ws->ints, mb->host, device * sizeof(int32_t), st);
    if (code != R1_OK) {
        micro_close(mb);
        return code;
    }
#define ON_DEVICE(array) (ws->ints + ((array) - mb->host))
    mb->seqs = (r1_seqs){B, N, max_blocks, ON_DEVICE(q_start), ON_DEVICE(pos0), ON_DEVICE(blocks),
                         ON_DEVICE(pos), ON_DEVICE(seq)};
    mb->ids = ON_DEVICE(ids);
    mb->next = ON_DEVICE(next);
    mb->row = ON_DEVICE(row);
    mb->target = ON_DEVICE(target);
    mb->last = ON_DEVICE(last);
    mb->mtp_row = ON_DEVICE(mtp_row);
    mb->mtp_target = ON_DEVICE(mtp_target);
#undef ON_DEVICE
    mb->mtp_index = mtp_index;
    return R1_OK;
}

void
micro_close(r1_micro *mb)
{
    r1_free(mb->host);
    mb->host = NULL;
}
