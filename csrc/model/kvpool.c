/* kvpool.c - see kvpool.h. */
#include <assert.h>
#include <string.h>

#include "kvpool.h"

static r1_kv
layer_kv(const r1_model *m, size_t blocks)
{
    const r1_config *c = &m->config;
    return (r1_kv){NULL, NULL, m->dtype, blocks, config_hkv(c), config_dqk(c), config_dv(c)};
}

size_t
kvpool_block_bytes(const r1_model *m, size_t layers)
{
    r1_kv kv = layer_kv(m, 1);
    return layers * kv.Hkv * (r1_kv_k_bytes(&kv) + r1_kv_v_bytes(&kv));
}

r1_code
kvpool_open(r1_kvpool *pool, r1_model *m, size_t layers, size_t blocks, r1_status *st)
{
    *pool = (r1_kvpool){.n_layers = layers, .n_free = blocks};
    pool->layers = r1_alloc(layers, sizeof *pool->layers);
    pool->free = r1_alloc(blocks, sizeof *pool->free);
    pool->memory = m->ops->mem_alloc(m->dev, blocks * kvpool_block_bytes(m, layers), st);
    if (pool->layers == NULL || pool->free == NULL || pool->memory == NULL) {
        kvpool_close(pool, m);
        return R1_FAIL(st, R1_ENOMEM, "out of memory: %zu bytes of KV blocks",
                       blocks * kvpool_block_bytes(m, layers));
    }
    char *at = pool->memory;
    for (size_t i = 0; i < layers; i++) {
        r1_kv kv = layer_kv(m, blocks);
        kv.k = at;
        kv.v = at + blocks * kv.Hkv * r1_kv_k_bytes(&kv);
        at = (char *)kv.v + blocks * kv.Hkv * r1_kv_v_bytes(&kv);
        pool->layers[i] = kv;
    }
    for (size_t i = 0; i < blocks; i++) {
        pool->free[i] = (int32_t)(blocks - 1 - i);
    }
    return R1_OK;
}

void
kvpool_close(r1_kvpool *pool, r1_model *m)
{
    if (pool->memory != NULL) {
        m->ops->mem_free(m->dev, pool->memory);
    }
    r1_free(pool->layers);
    r1_free(pool->free);
    *pool = (r1_kvpool){0};
}

void
kvpool_take(r1_kvpool *pool, int32_t *out, size_t n)
{
    assert(n <= pool->n_free);
    pool->n_free -= n;
    memcpy(out, pool->free + pool->n_free, n * sizeof *out);
}

void
kvpool_give(r1_kvpool *pool, const int32_t *blocks, size_t n)
{
    memcpy(pool->free + pool->n_free, blocks, n * sizeof *blocks);
    pool->n_free += n;
}
