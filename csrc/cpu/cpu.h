/* cpu.h - what the files of the CPU backend share: the device, the weight, and the names of a tier.
 *
 * setup.py compiles every file of this folder but isa.c once per tier with -DR1_TIER=avx512 (avx2,
 * baseline, avx512bf16, amx) and that tier's instruction flags. TIER(rmsnorm_fwd) is rmsnorm_fwd_avx512 there.
 */
#ifndef R1_CPU_H
#define R1_CPU_H

#include <assert.h>

#include "../ops.h"

#define R1_JOIN_(a, b) a##_##b
#define R1_JOIN(a, b) R1_JOIN_(a, b)
#define TIER(name) R1_JOIN(name, R1_TIER)

#if defined(__AMX_BF16__)
#define BF16_AMX 1
#else
#define BF16_AMX 0
#endif

struct r1_dev {
    r1_pool *pool;
    float *scratch; /* (threads, PRODUCT_SCRATCH): product.h */
};

/* master (E O, I) row-major; panels: for each expert and each panel of R1_PANEL output columns the
 * (I, R1_PANEL) transpose, the last panel padded with zeros: what matmul_nt streams. In bf16 a row
 * of a panel is a row of pairs (bf16.h), inputs 2i and 2i + 1. A frozen weight has no master, and its
 * panels belong to somebody else. */
enum { R1_PANEL = 32 };
struct r1_weight {
    size_t E, O, I;
    r1_dtype dtype;
    float *master; /* (E O, I); NULL: frozen */
    float *panels; /* (E, ceil(O / 32), panel_rows, 32) */
};

/* Rows of a panel: inputs, or pairs of them; a matrix unit takes 16 pairs at a time. */
static inline size_t
panel_rows(r1_dtype dtype, size_t I)
{
    return dtype != R1_BF16 ? I : BF16_AMX ? (I / 32 + (I % 32 != 0)) * 16 : I / 2 + I % 2;
}

#define R1_DECLARE(op) __typeof__(*((r1_ops *)0)->op) TIER(op);
R1_OPS(R1_DECLARE)

/* weight.c: row (I) = row o of the E O that products see, from the panels. */
void TIER(weight_row)(float *row, const r1_weight *w, size_t o);

static inline float *
row_f32(const r1_tensor *x, size_t n)
{
    return (float *)x->data + n * x->ld;
}

/* The end of the group whose first sequence is b: ops.h, r1_seqs. */
static inline size_t
group_end(const r1_seqs *seqs, size_t b)
{
    for (b++; b < seqs->B && seqs->pos0[b] > 0; b++) {
    }
    return b;
}

#endif
