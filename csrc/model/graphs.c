/* graphs.c - the parts of a decode step, recorded once per size and queued again with one call, where the
 * backend has graphs (ops.h): there, queueing hundreds of small ops takes longer than doing them.
 *
 *   part       a fixed row of ops: the trunk, the draw, with speculation the MTP module and its draw
 *   size       rows of the batch, padded (padded_rows), so that few sizes occur; a padding row computes
 *              something that nobody reads, and changes no other row (ops.h)
 *
 * The first run of a part and size does its ops one by one, and so finds every op's memory; the second
 * records them. What differs between steps - tokens, positions, tables, counters - is uploaded before, to
 * the same places (decode_upload). A graph ends with what it knows the address of: the session's memory
 * never moves, the model's workspace and rotary table may between two runs of the session (m->moved counts
 * that: an address may come back with other things at it), the device's scratch memory at any time. Then the
 * ops are done one by one once more. Knows nothing about what a part does.
 */
#include "decode.h"

enum { TILE = 16 }; /* rows that tensor cores compute at a time: fewer cost the same */

size_t
padded_rows(const r1_ops *ops, size_t rows)
{
    if (ops->graph_begin == NULL) {
        return rows;
    }
    size_t power = 1;
    while (power < rows && power < TILE) {
        power *= 2;
    }
    return rows <= TILE ? (rows > 0 ? power : 0) : (rows + TILE - 1) / TILE * TILE;
}

/* Which of the sizes that padded_rows gives: 1, 2, 4, 8, 16, 32, 48, .. */
static size_t
size_index(size_t rows)
{
    size_t i = 0;
    while (i < 4 && (size_t)1 << i < rows) {
        i++;
    }
    return rows <= TILE ? i : 3 + rows / TILE;
}

r1_code
graphs_open(r1_decode *d, size_t rows, r1_status *st)
{
    r1_graphs *g = &d->graphs;
    if (d->m->ops->graph_begin == NULL || d->m->offload.host != NULL) { /* copies are not recorded */
        return R1_OK;
    }
    g->sizes = size_index(padded_rows(d->m->ops, rows)) + 1;
    g->parts = r1_alloc(R1_PARTS * g->sizes, sizeof *g->parts);
    return g->parts != NULL ? R1_OK : R1_FAIL(st, R1_ENOMEM, "out of memory for %zu graphs",
                                              R1_PARTS * g->sizes);
}

/* Forgets all graphs. */
static void
graphs_clear(r1_decode *d)
{
    for (size_t i = 0; d->graphs.parts != NULL && i < R1_PARTS * d->graphs.sizes; i++) {
        if (d->graphs.parts[i].graph != NULL) {
            d->m->ops->graph_close(d->m->dev, d->graphs.parts[i].graph);
        }
        d->graphs.parts[i] = (r1_recorded){0};
    }
}

void
graphs_close(r1_decode *d)
{
    graphs_clear(d);
    r1_free(d->graphs.parts);
}

void
graphs_check(r1_decode *d)
{
    if (d->graphs.dev != d->m->dev || d->graphs.moved != d->m->moved) {
        graphs_clear(d);
        d->graphs.dev = d->m->dev;
        d->graphs.moved = d->m->moved;
    }
}

/* The ops of a part are noted down; nobody may interrupt that. */
static r1_code
record(r1_decode *d, part_body body, size_t rows, r1_graph **graph, r1_status *st)
{
    r1_model *m = d->m;
    int (*poll)(void *) = m->poll;
    R1_TRY(m->ops->graph_begin(m->dev, st));
    m->poll = NULL;
    r1_code code = body(d, rows, st);
    m->poll = poll;
    r1_code ended = m->ops->graph_end(m->dev, graph, code == R1_OK ? st : NULL);
    if (code != R1_OK && *graph != NULL) {
        m->ops->graph_close(m->dev, *graph);
        *graph = NULL;
    }
    return code != R1_OK ? code : ended;
}

r1_code
part_run(r1_decode *d, decode_part part, part_body body, size_t rows, r1_status *st)
{
    const r1_ops *ops = d->m->ops;
    R1_TRY(model_poll(d->m, st));
    if (d->graphs.parts == NULL) {
        return body(d, rows, st);
    }
    r1_recorded *r = &d->graphs.parts[(size_t)part * d->graphs.sizes + size_index(rows)];
    int stale = 0;
    if (r->graph != NULL) {
        R1_TRY(ops->graph_run(d->m->dev, r->graph, &stale, st));
        if (!stale) {
            return R1_OK;
        }
        ops->graph_close(d->m->dev, r->graph);
        *r = (r1_recorded){0};
    }
    if (!r->ran) {
        R1_TRY(body(d, rows, st));
        r->ran = 1;
        return R1_OK;
    }
    r1_code code = record(d, body, rows, &r->graph, st);
    r->ran = code == R1_OK; /* else the memory that it found has gone since */
    R1_TRY(code);
    return ops->graph_run(d->m->dev, r->graph, &stale, st);
}
