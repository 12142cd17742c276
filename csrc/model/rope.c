/* rope.c - the rotary table: cos and sin of every position that a call needs (Su et al. 2021, eq. 34).
 *
 *   table[t] = factor (cos(t inv_freq[0]) .. , sin(t inv_freq[0]) ..)   (Dr / 2 each), in double once
 *
 * It grows to the next power of two when a call reaches further, because a declared context of 131,072
 * positions costs tens of MiB and a good part of a second, and few calls come near it. An entry is a
 * function of its position and pair: growing changes no bit. Where frequencies come from is
 * r1grpo/rope.py's business.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

enum { FEWEST = 512, ROWS = 64 }; /* positions; of them computed at a time */

r1_code
rope_open(r1_model *m, const r1_rope *rope, r1_status *st)
{
    size_t pairs = config_rotary(&m->config) / 2;
    if (rope->pairs != pairs) {
        return R1_FAIL(st, R1_EINVAL, "rope: %zu inverse frequencies for a rotary width of %zu",
                       rope->pairs, 2 * pairs);
    }
    for (size_t i = 0; i < pairs; i++) {
        if (!isfinite(rope->inv_freq[i])) {
            return R1_FAIL(st, R1_EINVAL, "rope: inverse frequency %zu is %g", i,
                           rope->inv_freq[i]);
        }
    }
    if (!(rope->factor > 0.0 && isfinite((float)rope->factor))) {
        return R1_FAIL(st, R1_EINVAL, "rope: the attention factor is %g", rope->factor);
    }
    m->rope_factor = rope->factor;
    m->inv_freq = r1_alloc(pairs, sizeof(double));
    if (m->inv_freq == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "out of memory for %zu inverse frequencies", pairs);
    }
    memcpy(m->inv_freq, rope->inv_freq, pairs * sizeof(double));
    return R1_OK;
}

void
rope_close(r1_model *m)
{
    r1_free(m->inv_freq);
    if (m->rope.data != NULL) {
        m->ops->mem_free(m->dev, m->rope.data);
    }
}

/* Positions that a table for `needed` has. */
static size_t
reach(const r1_config *c, size_t needed)
{
    size_t positions = FEWEST;
    while (positions < needed) {
        positions *= 2;
    }
    return positions < c->T ? positions : c->T;
}

size_t
rope_bytes(const r1_config *c, size_t positions)
{
    return reach(c, positions) * config_rotary(c) * sizeof(float);
}

/* to (n, Dr): positions t0 .. t0 + n */
static void
fill(const r1_model *m, float *to, size_t t0, size_t n)
{
    size_t Dr = config_rotary(&m->config), half = Dr / 2;
    for (size_t t = 0; t < n; t++) {
        for (size_t i = 0; i < half; i++) {
            double angle = (double)(t0 + t) * m->inv_freq[i];
            to[t * Dr + i] = (float)(m->rope_factor * cos(angle));
            to[t * Dr + half + i] = (float)(m->rope_factor * sin(angle));
        }
    }
}

r1_code
rope_reserve(r1_model *m, size_t positions, r1_status *st)
{
    if (positions <= m->rope.rows) {
        return R1_OK;
    }
    const r1_config *c = &m->config;
    size_t T = reach(c, positions), Dr = config_rotary(c);
    float *rows = r1_alloc(ROWS * Dr, sizeof(float));
    float *table = m->ops->mem_alloc(m->dev, T * Dr * sizeof(float), st);
    r1_code code = R1_OK;
    if (rows == NULL || table == NULL) {
        code = R1_FAIL(st, R1_ENOMEM, "out of memory for %zu rotary positions", T);
    }
    for (size_t t = 0; code == R1_OK && t < T; t += ROWS) {
        size_t n = T - t < ROWS ? T - t : ROWS;
        fill(m, rows, t, n);
        code = m->ops->mem_upload(m->dev, table + t * Dr, rows, n * Dr * sizeof(float), st);
    }
    r1_free(rows);
    void *unused = table;
    if (code == R1_OK) {
        unused = m->rope.data;
        m->rope = r1_f32(table, T, Dr);
        m->moved++;
    }
    if (unused != NULL) {
        m->ops->mem_free(m->dev, unused);
    }
    return code;
}
