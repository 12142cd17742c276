/* decode.h - a decode session: what decode_open.c sizes and decode.c runs. */
#ifndef R1_DECODE_H
#define R1_DECODE_H

#include "kvpool.h"

typedef struct {
    size_t length, n_blocks, finished;
    int prefilled;
    int32_t *blocks; /* (max_blocks) */
} prompt_state;

typedef struct {
    size_t length, first; /* tokens so far; blocks[first ..] of the table are its own */
    int done, stopped, live;
} seq_state;

typedef struct {
    size_t seq, n_blocks;
    int32_t *table; /* (max_blocks) */
} slot_state;

struct r1_decode {
    r1_model *m;
    r1_decode_spec spec;
    uint64_t version; /* of the weights that the KV blocks were made with */
    r1_workspace *ws; /* the model's: nothing in it outlives a step */
    r1_kvpool pool;
    size_t next, n_slots, max_blocks; /* next sequence to admit; slots in use */
    prompt_state *prompts;            /* (P) */
    seq_state *seqs;                  /* (P G) */
    slot_state *slots;                /* (spec.slots) the first n_slots are in use */
    int32_t *ids;                     /* (P G, max_new) */
    float *logp;
    int32_t *host, *ints;             /* integers of one batch: host and device */
    size_t n_ints, rows;              /* rows: of the largest batch */
    void *hidden_memory;
    r1_tensor hidden;                 /* (P, C) last hidden state of each prompt */
};

/* How a session is sized: the longest prompt, blocks of a sequence, slots wanted. */
typedef struct {
    size_t slots, blocks; /* sequences at a time; KV blocks of all */
    size_t rows, ints;    /* of the largest batch; integers of one */
} r1_decode_size;
r1_decode_size decode_size(const r1_model *m, size_t sequences, size_t tokens, size_t longest,
                           size_t max_blocks, size_t slots);

static inline size_t
blocks_of(size_t positions)
{
    return (positions + R1_KV_BLOCK - 1) / R1_KV_BLOCK;
}

/* Tokens that a generation of a prompt of this length may have. */
static inline size_t
room_of(const r1_config *c, size_t prompt, size_t max_new)
{
    size_t left = c->T - prompt;
    return left < max_new ? left : max_new;
}

static inline size_t
room(const r1_decode *d, size_t p)
{
    return room_of(&d->m->config, d->prompts[p].length, d->spec.max_new);
}

/* Blocks of the positions that it can write: its last token is never fed back. */
static inline size_t
seq_blocks(const r1_decode *d, size_t p)
{
    return blocks_of(d->prompts[p].length + room(d, p) - 1);
}

#endif
