/* decode.h - a decode session: what decode_open.c sizes, decode.c runs, graphs.c records and speculate.c
 * guesses for. */
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
    int guessed;          /* the number behind its last token is a guess of the next one */
} seq_state;

typedef struct {
    size_t seq, n_blocks;
    int32_t *table; /* (max_blocks) */
} slot_state;

/* What a speculative session has beside: see speculate.c. */
typedef struct {
    uint64_t proposed, accepted;
    void *memory; /* device */
    r1_mtp io;    /* (rows) */
    int32_t *host, *ints; /* (rows) rows of hidden states to go on from: host and device */
} r1_drafts;

/* The parts of a step that are recorded: see graphs.c. */
typedef enum { R1_PART_TRUNK, R1_PART_DRAW, R1_PART_MODULE, R1_PART_GUESS, R1_PARTS } decode_part;

typedef struct {
    int ran;         /* its ops have run, one by one */
    r1_graph *graph; /* NULL: not recorded */
} r1_recorded;

typedef struct {
    size_t sizes;
    r1_recorded *parts;  /* (R1_PARTS, sizes); NULL: the backend has no graphs */
    const r1_dev *dev;   /* what they were recorded with: the model's device, and its `moved` */
    uint64_t moved;
} r1_graphs;

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
    int32_t spare;                    /* KV block of rows that pad a step */
    r1_drafts drafts;
    r1_graphs graphs;
};

/* n tokens of one sequence, the first at position pos0, and its block table. */
typedef struct {
    const int32_t *tokens, *table;
    size_t n, pos0;
} batch_seq;

/* Which token a row of hidden states predicts: of sequence `seq`, after `position` others. */
typedef struct {
    size_t seq, position;
} draw;

/* One sequence of a step: its rows of the batch, how many of their draws are its next tokens, whether
 * its guess was right. */
typedef struct {
    size_t seq, row, rows, kept, right;
    const int32_t *table;
} step_seq;

/* Where the integers of a batch of B sequences and N rows lie on the device, always the same places. */
typedef struct {
    r1_seqs seqs;
    const int32_t *ids, *last; /* (N) tokens; (B) last row of each sequence */
} decode_batch;
decode_batch decode_batch_at(const r1_decode *d, size_t B, size_t N);
/* The n sequences go there; rows up to N are padding, sequences up to B have one of those or none. */
r1_code decode_upload(r1_decode *d, const batch_seq *seqs, size_t n, size_t B, size_t N, r1_status *st);
/* Draws a token for each of the first n rows of ws->y, into ids and logp; logp NULL: guesses, of ws->hm. */
r1_code decode_sample(r1_decode *d, const draw *which, size_t n, int32_t *ids, float *logp,
                      r1_status *st);
int decode_is_stop(const r1_decode *d, int32_t id);

/* speculate.c: the memory of d->drafts, what it takes, and the two places where decode.c calls it. */
size_t drafts_bytes(const r1_config *c, size_t rows);
r1_code drafts_open(r1_decode *d, r1_status *st);
void drafts_close(r1_decode *d);
/* Prompts [p0, p1), whose hidden states are ws->y, become the past of the MTP module. */
r1_code drafts_prefill(r1_decode *d, size_t p0, size_t p1, r1_status *st);
/* Guesses the token after those that the sequences of a step keep; ids: all draws of the step. */
r1_code drafts_make(r1_decode *d, const step_seq *seqs, size_t n, const int32_t *ids,
                    r1_status *st);

/* graphs.c: rows that a step computes where `rows` are wanted; a session of steps of so many; what a
 * session's run begins with; a part, whose ops depend on rows alone. */
typedef r1_code (*part_body)(r1_decode *d, size_t rows, r1_status *st);
size_t padded_rows(const r1_ops *ops, size_t rows);
r1_code graphs_open(r1_decode *d, size_t rows, r1_status *st);
void graphs_close(r1_decode *d);
void graphs_check(r1_decode *d);
r1_code trunk_part(r1_decode *d, size_t rows, r1_status *st);  /* bodies: decode.c, */
r1_code draw_part(r1_decode *d, size_t rows, r1_status *st);   /* decode_batch.c, */
r1_code module_part(r1_decode *d, size_t rows, r1_status *st); /* speculate.c */
r1_code part_run(r1_decode *d, decode_part part, part_body body, size_t rows, r1_status *st);

/* How a session is sized: the longest prompt, blocks of a sequence, slots wanted. */
typedef struct {
    size_t slots, blocks; /* sequences at a time; KV blocks of all */
    size_t rows, ints;    /* of the largest batch; integers of one */
} r1_decode_size;
r1_decode_size decode_size(const r1_model *m, size_t sequences, size_t tokens, size_t longest,
                           size_t max_blocks, size_t slots, int speculative);

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

/* There is room for two more tokens behind `length`: a guess of the first is worth its row. */
static inline int
worth_guessing(const r1_decode *d, size_t i, size_t length)
{
    return length + 2 <= room(d, i / d->spec.G);
}

/* Blocks of the positions that it can write: its last token is never fed back. */
static inline size_t
seq_blocks(const r1_decode *d, size_t p)
{
    return blocks_of(d->prompts[p].length + room(d, p) - 1);
}

#endif
