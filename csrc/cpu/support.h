/* support.h - the tempered logits of a row, and which ids truncated sampling leaves of it.
 *
 *   z = logits (1 / temperature), in float32
 *
 * Ids sorted by (z descending, id ascending), then, in this order (Holtzman et al. 2020 for top-p):
 *   top-k   the first k ids;
 *   top-p   the shortest beginning of them whose e = exp(z - max z), summed in that order, reaches
 *           top_p x total; total is that sum over the k ids or, with top-k off, over the vocabulary
 *           in tiles (row_sum). That is top-p of the probabilities renormalised after top-k;
 *   min-p   of those the ids with e >= min_p, that is p >= min_p x the largest p, up to the first
 *           that fails.
 * The first id always stays. Each filter keeps a beginning of the sorted order, so the support is
 * one bound, the last pair (z, id): an id belongs to it if it sorts no later. The union with the
 * target is row_z's `id == target`.
 *
 * The order comes from a heap that gives up its largest as long as it is asked: only the support is
 * ever sorted, and the result is that of the full sort. NaN sorts somewhere, always the same place.
 */
#ifndef R1_SUPPORT_H
#define R1_SUPPORT_H

#include "../options.h"
#include "cpu.h"
#include "simd.h"

enum { TILE_IDS = 1024 };

/* One row of logits and what is left of it. */
typedef struct {
    const float *logits; /* (V) */
    size_t V;
    float inverse;
    int truncated;
    float last_z; /* the bound */
    int32_t last_id, target;
} row_view;

/* z of ids v .. v + W - 1; -infinity outside the support and beyond V */
static inline vf
row_z(const row_view *row, size_t v)
{
    const vf none = vf_set1(-__builtin_inff());
    vf z = vf_load_left(row->logits + v, row->V - v) * vf_set1(row->inverse);
    if (row->truncated) {
        vi id = vi_iota() + vi_set1((int32_t)v);
        vf last = vf_set1(row->last_z);
        vi in = (z > last) | ((z == last) & (id <= vi_set1(row->last_id)));
        z = vf_select(in | (id == vi_set1(row->target)), z, none);
    }
    return row->V - v < W ? vf_select(vi_first(row->V - v), z, none) : z;
}

/* The largest z of ids [first, end) */
static inline float
row_max(const row_view *row, size_t first, size_t end)
{
    vf m = vf_set1(-__builtin_inff());
    for (size_t v = first; v < end; v += W) {
        m = vf_max(m, row_z(row, v));
    }
    return vf_hmax(m);
}

/* Sum of exp(z - m) over the ids of one tile: W chains and a tree */
static inline float
row_tile_sum(const row_view *row, size_t first, float m)
{
    size_t end = row->V - first < TILE_IDS ? row->V : first + TILE_IDS;
    vf sum = {0};
    for (size_t v = first; v < end; v += W) {
        sum = sum + vf_exp(row_z(row, v) - vf_set1(m));
    }
    return vf_sum(sum);
}

/* Sum of exp(z - m) over the row, tile by tile */
static inline float
row_sum(const row_view *row, float m)
{
    float sum = 0.0f;
    for (size_t first = 0; first < row->V; first += TILE_IDS) {
        sum += row_tile_sum(row, first, m);
    }
    return sum;
}

/* ---- the sorted order ---- */

/* (z descending, id ascending) as one integer ascending: the bits of a float sort like integers
 * once negative ones are flipped. */
static inline uint64_t
key_of(float z, int32_t id)
{
    uint32_t bits;
    z = z + 0.0f; /* -0 and 0 are a tie */
    memcpy(&bits, &z, sizeof bits);
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return (uint64_t)bits << 32 | (uint32_t)id;
}

static inline int32_t
key_id(uint64_t key)
{
    return (int32_t)(uint32_t)key;
}

/* Moves keys[i] down until no child is smaller: a min-heap of n. */
static inline void
heap_sift(uint64_t *keys, size_t i, size_t n)
{
    uint64_t key = keys[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && keys[child + 1] < keys[child];
        if (key <= keys[child]) {
            break;
        }
        keys[i] = keys[child];
    }
    keys[i] = key;
}

/* The next key in order; it moves to the end of the heap's array, so key i ends up at
 * keys[V - 1 - i]. */
static inline uint64_t
heap_pop(uint64_t *keys, size_t *n)
{
    uint64_t top = keys[0];
    *n -= 1;
    keys[0] = keys[*n];
    keys[*n] = top;
    heap_sift(keys, 0, *n);
    return top;
}

/* Sets the row's bound. keys (V) is scratch. */
static inline void
row_truncate(row_view *row, const row_filter *f, uint64_t *keys)
{
    size_t V = row->V, heap = V;
    row->truncated = 0; /* row_z shows every id while the bound is sought */
    for (size_t v = 0; v < V; v++) {
        keys[v] = key_of(row->logits[v] * f->inverse, (int32_t)v);
    }
    for (size_t i = V / 2; i-- > 0;) {
        heap_sift(keys, i, V);
    }
    float largest = row->logits[key_id(keys[0])] * f->inverse;
    float enough = __builtin_inff(), sum = 0.0f;
    if (f->top_p < 1.0f) {
        float total = 0.0f;
        if (f->top_k < V) {
            for (size_t i = 0; i < f->top_k; i++) {
                int32_t id = key_id(heap_pop(keys, &heap));
                total += f_exp(row->logits[id] * f->inverse - largest);
            }
        } else {
            total = row_sum(row, largest);
        }
        enough = f->top_p * total;
    }
    for (size_t i = 0; i < f->top_k; i++) {
        int32_t id = key_id(i < V - heap ? keys[V - 1 - i] : heap_pop(keys, &heap));
        float z = row->logits[id] * f->inverse;
        float e = f_exp(z - largest);
        if (i > 0 && e < f->min_p) {
            break;
        }
        row->last_z = z;
        row->last_id = id;
        sum += e;
        if (sum >= enough) {
            break;
        }
    }
    row->truncated = 1;
}

/* The row as `how` sees it; target -1: none. keys (V) is read and written only when truncated. */
static inline row_view
row_open(const float *logits, size_t V, const row_filter *f, int32_t target, uint64_t *keys)
{
    row_view row = {logits, V, f->inverse, f->truncated, 0.0f, 0, target};
    if (f->truncated) {
        row_truncate(&row, f, keys);
    }
    return row;
}

#endif
