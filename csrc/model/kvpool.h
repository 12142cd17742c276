/* kvpool.h - the KV blocks of a decode session, all layers: allocation and the sharing of prompts.
 *
 * A block number means the same block in every layer. The blocks of a prompt belong to the prompt
 * and are read by all its generations; a generation owns what comes after. A prompt's last, partial
 * block is copied for each generation, since they write behind it.
 */
#ifndef R1_KVPOOL_H
#define R1_KVPOOL_H

#include "internal.h"

typedef struct {
    size_t n_layers;   /* L, and one of the MTP module where it guesses */
    r1_kv *layers;     /* (n_layers) */
    void *memory;      /* device */
    int32_t *free;     /* stack of free block numbers */
    size_t n_free;
} r1_kvpool;

/* Bytes of one block over all layers. */
size_t kvpool_block_bytes(const r1_model *m, size_t layers);
r1_code kvpool_open(r1_kvpool *pool, r1_model *m, size_t layers, size_t blocks, r1_status *st);
void kvpool_close(r1_kvpool *pool, r1_model *m);
/* n blocks into out: the pool is sized so that there always are enough (decode_open.c). */
void kvpool_take(r1_kvpool *pool, int32_t *out, size_t n);
void kvpool_give(r1_kvpool *pool, const int32_t *blocks, size_t n);

#endif
