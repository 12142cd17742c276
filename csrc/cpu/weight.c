/* weight.c - E matrices (O, I): the float32 master, unless frozen, and the packed copy that matmul_nt
 * streams.
 *
 *   panels[e][p][i][j] = master[e][32 p + j][i],  j < 32;  0 beyond the last output column
 *
 * In bf16 panels[e][p][i][j] is the pair of inputs 2i and 2i + 1 (bf16.h), rounded; an odd last input
 * has a 0 beside it. matmul_nn and the embedding read the master, whose rows already lie the right
 * way, and round it to the same numbers; the embedding of a frozen weight reads the panels. Knows
 * nothing about what a weight means. */
#include <string.h>

#include "cpu.h"
#include "panel.h"

/* x count; SIZE_MAX where that is too many, and from there on */
static size_t
times(size_t x, size_t count)
{
    size_t product;
    return __builtin_mul_overflow(x, count, &product) ? SIZE_MAX : product;
}

void
TIER(weight_bytes)(size_t *master, size_t *packed, size_t E, size_t O, size_t I, r1_dtype dtype,
                   int frozen)
{
    *master = frozen ? 0 : times(times(times(E, O), I), sizeof(float));
    *packed = times(times(times(E, count_panels(O) * R1_PANEL), panel_rows(dtype, I)),
                    sizeof(float));
}

r1_code
TIER(weight_open)(r1_dev *dev, r1_weight **out, size_t E, size_t O, size_t I, r1_dtype dtype,
                  void *packed_memory, r1_status *st)
{
    (void)dev;
    *out = NULL;
    assert(dtype == R1_F32 || dtype == R1_BF16);
    size_t master, packed;
    TIER(weight_bytes)(&master, &packed, E, O, I, dtype, packed_memory != NULL);
    r1_weight *w = r1_alloc(1, sizeof *w);
    if (w == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a weight");
    }
    *w = (r1_weight){E, O, I, dtype, NULL, packed_memory};
    if (packed_memory == NULL) {
        w->master = r1_alloc(master, 1);
        w->panels = w->master != NULL ? r1_alloc(packed, 1) : NULL;
    }
    if (w->panels == NULL) {
        TIER(weight_close)(dev, w);
        return R1_FAIL(st, R1_ENOMEM, "no memory for a weight of %zu x %zu x %zu", E, O, I);
    }
    *out = w;
    return R1_OK;
}

void
TIER(weight_close)(r1_dev *dev, r1_weight *w)
{
    (void)dev;
    if (w != NULL) {
        if (w->master != NULL) {
            r1_free(w->master);
            r1_free(w->panels);
        }
        r1_free(w);
    }
}

r1_tensor
TIER(weight_view)(const r1_weight *w)
{
    r1_dtype dtype = w->master != NULL ? R1_F32 : w->dtype; /* of panels there is no such view */
    return (r1_tensor){w->master, dtype, w->E * w->O, w->I, w->I};
}

typedef struct {
    const r1_weight *w;
    const float *from; /* (E O, I) */
} pack_job;

static void
pack_panel(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const pack_job *job = ctx;
    const r1_weight *w = job->w;
    panel_span rows = panel_find(w, task);
    const float *from = job->from + rows.first * w->I;
    if (w->master != NULL) {
        memcpy(w->master + rows.first * w->I, from, rows.count * w->I * sizeof *from);
    }
    panel_write(w, task, from, rows.count);
}

r1_code
TIER(weight_write)(r1_dev *dev, r1_weight *w, const float *from, r1_status *st)
{
    (void)st;
    pack_job job = {w, from};
    r1_pool_run(dev->pool, w->E * count_panels(w->O), pack_panel, &job);
    return R1_OK;
}

void
TIER(weight_row)(float *row, const r1_weight *w, size_t o)
{
    size_t rows = panel_rows(w->dtype, w->I), e = o / w->O, j = o % w->O;
    size_t panel = e * count_panels(w->O) + j / R1_PANEL;
    const float *from = w->panels + panel * rows * R1_PANEL + j % R1_PANEL;
    if (w->dtype == R1_F32) {
        for (size_t i = 0; i < w->I; i++) {
            row[i] = from[i * R1_PANEL];
        }
        return;
    }
    for (size_t i = 0; i < w->I; i++) {
        uint32_t pair = ((const u32_u *)from)[i / 2 * R1_PANEL];
        uint32_t bits = i % 2 == 0 ? pair & 0xffff0000u : pair << 16;
        memcpy(row + i, &bits, sizeof bits);
    }
}

typedef struct {
    const r1_weight *w;
    float *to; /* (E O, I) */
} read_job;

static void
read_panel(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const read_job *job = ctx;
    panel_span rows = panel_find(job->w, task);
    for (size_t o = rows.first; o < rows.first + rows.count; o++) {
        TIER(weight_row)(job->to + o * job->w->I, job->w, o);
    }
}

r1_code
TIER(weight_read)(r1_dev *dev, float *to, const r1_weight *w, r1_status *st)
{
    (void)st;
    if (w->master != NULL) {
        memcpy(to, w->master, w->E * w->O * w->I * sizeof *to);
        return R1_OK;
    }
    read_job job = {w, to};
    r1_pool_run(dev->pool, w->E * count_panels(w->O), read_panel, &job);
    return R1_OK;
}
