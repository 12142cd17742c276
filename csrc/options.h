/* options.h - what options mean in numbers, for every backend: the filters of truncated sampling, the bias
 * corrections of AdamW.
 *
 * Host code, compiled by C and by CUDA's C++ alike, so that both ask the same of a row and of a step. Knows
 * no device. */
#ifndef R1_OPTIONS_H
#define R1_OPTIONS_H

#include "ops.h"

/* What a call's r1_sampling asks of every row. Temperature 0: the row as it is, no filter. */
typedef struct {
    float inverse; /* 1 / temperature */
    int truncated;
    size_t top_k;
    float top_p, min_p;
} row_filter;

static inline row_filter
row_filter_of(const r1_sampling *how, size_t V)
{
    row_filter f = {1.0f, 0, V, 1.0f, 0.0f};
    if (how->temperature > 0.0f) {
        f.inverse = 1.0f / how->temperature;
        f.top_k = how->top_k > 0 && (size_t)how->top_k < V ? (size_t)how->top_k : V;
        f.top_p = how->top_p;
        f.min_p = how->min_p;
        f.truncated = f.top_k < V || f.top_p < 1.0f || f.min_p > 0.0f;
    }
    return f;
}

/* 1 / (1 - beta^step), the power by squaring: no libm. */
static inline float
adamw_correction(float beta, uint64_t step)
{
    double power = 1.0, square = beta;
    for (; step > 0; step >>= 1) {
        if (step & 1) {
            power *= square;
        }
        square *= square;
    }
    return (float)(1.0 / (1.0 - power));
}

#endif
