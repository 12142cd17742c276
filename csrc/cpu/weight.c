/* weight.c - E matrices (O, I): the float32 master and the packed copy that matmul_nt streams.
 *
 *   panels[e][p][i][j] = master[e][32 p + j][i],  j < 32;  0 beyond the last output column
 *
 * matmul_nn and the embedding read the master itself, whose rows already lie the right way. Knows
 * nothing about what a weight means. */
#include "cpu.h"

static size_t
count_panels(size_t O)
{
    return (O + R1_PANEL - 1) / R1_PANEL;
}

r1_code
TIER(weight_open)(r1_dev *dev, r1_weight **out, size_t E, size_t O, size_t I, r1_dtype dtype,
                  r1_status *st)
{
    (void)dev;
    *out = NULL;
    if (dtype != R1_F32) {
        return R1_FAIL(st, R1_EINVAL, "weight: the CPU backend knows float32 only");
    }
    size_t width; /* of a packed row over all experts */
    if (__builtin_mul_overflow(E, count_panels(O) * R1_PANEL * sizeof(float), &width)) {
        return R1_FAIL(st, R1_ENOMEM, "weight of %zu x %zu x %zu is too large", E, O, I);
    }
    r1_weight *w = r1_alloc(1, sizeof *w);
    if (w == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a weight");
    }
    *w = (r1_weight){E, O, I, dtype, r1_alloc(E * O * sizeof(float), I), r1_alloc(width, I)};
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
    float *to = w->panels + task * w->I * R1_PANEL;
    for (size_t i = 0; i < w->I; i++) {
        for (size_t j = 0; j < used; j++) {
            to[i * R1_PANEL + j] = from[j * w->I + i];
        }
        for (size_t j = used; j < R1_PANEL; j++) {
            to[i * R1_PANEL + j] = 0.0f;
        }
    }
}

r1_code
TIER(weight_pack)(r1_dev *dev, r1_weight *w, r1_status *st)
{
    (void)st;
    r1_pool_run(dev->pool, w->E * count_panels(w->O), pack_panel, w);
    return R1_OK;
}
