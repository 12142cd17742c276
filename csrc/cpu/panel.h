/* panel.h - one panel of a weight's packed copy: up to 32 rows of its master, turned over (weight.c).
 *
 * Panels are counted through all matrices: matrix e has those from e ceil(O / 32) on. */
#ifndef R1_PANEL_H
#define R1_PANEL_H

#include "cpu.h"
#include "transpose.h"

static inline size_t
count_panels(size_t O)
{
    return O / R1_PANEL + (O % R1_PANEL != 0);
}

/* Rows of the master (E O, I) */
typedef struct {
    size_t first, count;
} panel_span;

static inline panel_span
panel_find(const r1_weight *w, size_t panel)
{
    size_t panels = count_panels(w->O), o = panel % panels * R1_PANEL;
    return (panel_span){panel / panels * w->O + o, w->O - o < R1_PANEL ? w->O - o : R1_PANEL};
}

/* Packs rows (count, I). */
static inline void
panel_write(const r1_weight *w, size_t panel, const float *rows, size_t count)
{
    float *to = w->panels + panel * panel_rows(w->dtype, w->I) * R1_PANEL;
    if (w->dtype == R1_BF16) {
        transpose_pairs((u32_u *)to, R1_PANEL, R1_PANEL, rows, w->I, count, w->I);
    } else {
        transpose_floats(to, R1_PANEL, R1_PANEL, rows, w->I, count, w->I);
    }
}

#endif
