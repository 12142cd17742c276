/* offload.c - the layers of a frozen model in host memory: each comes to the device ahead of its turn.
 *
 * With config.offload the packed matrices of the L layers lie in host memory, one layer after another. Two
 * buffers on the device have room for the largest; layer i computes in buffer i % 2, where its weights are
 * opened, while layer i + 1 is copied into the other. After the last layer comes the first, unless both have
 * the same buffer. All else (embedding, head, adapters, an MTP module) stays on the device. Weights are
 * copied, not computed: no bit depends on where they lie.
 */
#include "internal.h"

/* Bytes of the packed copy of parameter p; a vector has none. */
static size_t
packed_bytes(const r1_model *m, const r1_param *p)
{
    size_t master = 0, packed = 0;
    if (p->O > 0) {
        m->ops->weight_bytes(&master, &packed, p->E, p->O, p->I, p->dtype, m->config.frozen);
    }
    return packed;
}

size_t
offload_measure(const r1_model *m, size_t *largest)
{
    r1_arena all = {0};
    *largest = 0;
    for (size_t i = 0; m->config.frozen && m->config.offload && i < m->config.L; i++) {
        size_t before = all.used;
        for (size_t j = m->layers[i].first; j < m->layers[i].end; j++) {
            r1_arena_push(&all, packed_bytes(m, &m->params[j]), 1);
        }
        *largest = all.used - before > *largest ? all.used - before : *largest;
    }
    return all.used;
}

int
offload_layer(const r1_model *m, size_t param, size_t *layer)
{
    for (*layer = 0; m->config.frozen && m->config.offload && *layer < m->config.L; ++*layer) {
        if (param >= m->layers[*layer].first && param < m->layers[*layer].end) {
            return 1;
        }
    }
    return 0;
}

r1_code
offload_open(r1_model *m, r1_status *st)
{
    r1_offload *o = &m->offload;
    size_t largest, bytes = offload_measure(m, &largest);
    o->host = m->ops->mem_alloc_host(m->dev, bytes, st);
    o->buffer[0] = m->ops->mem_alloc(m->dev, largest, st);
    o->buffer[1] = m->ops->mem_alloc(m->dev, largest, st);
    if (o->host == NULL || o->buffer[0] == NULL || o->buffer[1] == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu bytes of off-loaded matrices in host memory and "
                       "two layers of them, %zu bytes each", bytes, largest);
    }
    r1_arena all = {0};
    for (size_t i = 0; i < m->config.L; i++) {
        r1_arena one = {o->buffer[i % 2], largest, 0};
        o->start[i] = all.used;
        for (size_t j = m->layers[i].first; j < m->layers[i].end; j++) {
            m->params[j].packed = r1_arena_push(&one, packed_bytes(m, &m->params[j]), 1);
        }
        all.used += one.used;
    }
    o->start[m->config.L] = all.used;
    return R1_OK;
}

void
offload_close(r1_model *m)
{
    r1_offload *o = &m->offload;
    m->ops->mem_free_host(m->dev, o->host);
    m->ops->mem_free(m->dev, o->buffer[0]);
    m->ops->mem_free(m->dev, o->buffer[1]);
}

/* Queues the copy of layer i into its buffer, unless it is there. */
static r1_code
fetch(r1_model *m, size_t i, r1_status *st)
{
    r1_offload *o = &m->offload;
    if (o->held[i % 2] == i + 1) {
        return R1_OK;
    }
    o->held[i % 2] = 0;
    R1_TRY(m->ops->mem_fetch(m->dev, o->buffer[i % 2], o->host + o->start[i], o->start[i + 1] - o->start[i], st));
    o->held[i % 2] = i + 1;
    return R1_OK;
}

r1_code
offload_enter(r1_model *m, size_t i, r1_status *st)
{
    if (m->offload.host == NULL) {
        return R1_OK;
    }
    size_t next = i + 1 < m->config.L ? i + 1 : 0;
    R1_TRY(fetch(m, i, st));
    R1_TRY(m->ops->mem_join(m->dev, 0, st));
    return next % 2 != i % 2 ? fetch(m, next, st) : R1_OK; /* once layer i - 1 is done with the buffer */
}

r1_code
offload_keep(r1_model *m, size_t i, const r1_param *p, r1_status *st)
{
    r1_offload *o = &m->offload;
    size_t at = o->start[i] + (size_t)((unsigned char *)p->packed - o->buffer[i % 2]);
    R1_TRY(m->ops->mem_store(m->dev, o->host + at, p->packed, packed_bytes(m, p), st));
    return m->ops->mem_join(m->dev, 1, st);
}
