/* weight.c - E matrices (O, I): the float32 master and the packed copy that matmul_nt streams.
 *
 *   panels[e][p][i][j] = master[e][32 p + j][i],  j < 32;  0 beyond the last output column
 *
 * In bf16 panels[e][p][i][j] is the pair of inputs 2i and 2i + 1 (bf16.h), rounded; an odd last input
 * has a 0 beside it. matmul_nn and the embedding read the master, whose rows already lie the right
 * way, and round it to the same numbers. Knows nothing about what a weight means. */
#include "cpu.h"
#include "transpose.h"

static size_t
count_panels(size_t O)
{
    return (O + R1_PANEL - 1) / R1_PANEL;
}

/* x count; SIZE_MAX where that is too many, and from there on */
static size_t
times(size_t x, size_t count)
{
    size_t product;
    return __builtin_mul_overflow(x, count, &product) ? SIZE_MAX : product;
}

void
TIER(weight_bytes)(size_t *master, size_t *packed, size_t E, size_t O, size_t I, r1_dtype dtype)
{
    *master = times(times(times(E, O), I), sizeof(float));
    *packed = times(times(times(E, count_panels(O) * R1_PANEL), panel_rows(dtype, I)),
                    sizeof(float));
}

r1_code
TIER(weight_open)(r1_dev *dev, r1_weight **out, size_t E, size_t O, size_t I, r1_dtype dtype,
                  r1_status *st)
{
    (void)dev;
    *out = NULL;
    assert(dtype == R1_F32 || dtype == R1_BF16);
    size_t master, packed;
    TIER(weight_bytes)(&master, &packed, E, O, I, dtype);
    r1_weight *w = r1_alloc(1, sizeof *w);
    if (w == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a weight");
    }
    *w = (r1_weight){E, O, I, dtype, r1_alloc(master, 1), r1_alloc(packed, 1)};
    if (w->master == NULL || w->panels == NULL) {
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
        r1_free(w->master);
        r1_free(w->panels);
        r1_free(w);
    }
}

r1_tensor
TIER(weight_master)(const r1_weight *w)
{
    return r1_f32(w->master, w->E * w->O, w->I);
}

/* Task t is panel t of all E x ceil(O / 32). */
static void
pack_panel(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const r1_weight *w = ctx;
    size_t panels = count_panels(w->O), e = task / panels, o = task % panels * R1_PANEL;
    size_t used = w->O - o < R1_PANEL ? w->O - o : R1_PANEL;
    const float *from = w->master + (e * w->O + o) * w->I;
    float *to = w->panels + task * panel_rows(w->dtype, w->I) * R1_PANEL;
    if (w->dtype == R1_BF16) {
        transpose_pairs((u32_u *)to, R1_PANEL, R1_PANEL, from, w->I, used, w->I);
    } else {
        transpose_floats(to, R1_PANEL, R1_PANEL, from, w->I, used, w->I);
    }
}

r1_code
TIER(weight_pack)(r1_dev *dev, r1_weight *w, r1_status *st)
{
    (void)st;
    r1_pool_run(dev->pool, w->E * count_panels(w->O), pack_panel, w);
    return R1_OK;
}
