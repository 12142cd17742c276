/* attention_row.h - one query against a block of keys: the tile of attention_tile.h for a single row,
 * which is what decoding has.
 *
 *   s[j] = chain over d of q[d] k[d][j]        acc = acc shrink + sum over quarters of (p v)
 *
 * The same chains as the tile's, so the same bits. One row of a tile has two of them at a time, and a
 * chain waits for itself; here eight run side by side: keys next to keys, quarters next to quarters.
 */
#ifndef R1_ATTENTION_ROW_H
#define R1_ATTENTION_ROW_H

#include "attention_tile.h"

enum { QUARTER = KEYS / 4, ROW_VECS = 4 };

/* c[i] += q[d] kt[d], vectors i of the keys; kt: row d, or the pairs of rows that hold it as `half` */
TILE_INLINE void
row_score_step(vf *c, float q, const float *kt, int bf16, int half, const size_t vecs)
{
    vf x = vf_set1(q);
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        c[i] = vf_fma(x, bf16 ? vf_half(kt + i * W, half) : vf_load(kt + i * W), c[i]);
    }
}

/* s (vecs W) = q (D) times kt (D, 64), or its bf16 pairs */
TILE_INLINE void
row_score_vecs(float *s, const float *q, const float *kt, int bf16, size_t D, const size_t vecs)
{
    vf c[ROW_VECS] = {{0}};
    for (size_t d = 0; d < D / 2; d++, q += 2, kt += bf16 ? KEYS : 2 * KEYS) {
        row_score_step(c, q[0], kt, bf16, 0, vecs);
        row_score_step(c, q[1], bf16 ? kt : kt + KEYS, bf16, 1, vecs);
    }
    if (D % 2 == 1) {
        row_score_step(c, q[0], kt, bf16, 0, vecs);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < vecs; i++) {
        vf_store(s + i * W, c[i]);
    }
}

/* The first `lanes` keys, a multiple of W. */
TILE_INLINE void
row_scores(float *s, const float *q, const void *kt, int bf16, size_t D, size_t lanes)
{
    size_t j = 0;
    for (; j + ROW_VECS * W <= lanes; j += ROW_VECS * W) {
        row_score_vecs(s + j, q, (const float *)kt + j, bf16, D, ROW_VECS);
    }
    switch ((lanes - j) / W) { /* constants, so that the chains stay in registers */
    case 3: row_score_vecs(s + j, q, (const float *)kt + j, bf16, D, 3); break;
    case 2: row_score_vecs(s + j, q, (const float *)kt + j, bf16, D, 2); break;
    case 1: row_score_vecs(s + j, q, (const float *)kt + j, bf16, D, 1); break;
    }
}

/* c[i] = the product of quarter i, which is whole, with the columns at v; i < quarters */
TILE_INLINE void
row_quarters(vf (*c)[2], const float *p, const void *v, int bf16, size_t Dv, size_t cols,
             const size_t vecs, const size_t quarters)
{
    for (size_t k = 0; k < QUARTER; k++) {
#pragma GCC unroll 4
        for (size_t i = 0; i < quarters; i++) {
            tile_ab x = {p, 0, 1, v, Dv, cols, bf16};
            size_t j = i * QUARTER + k;
            vf a = vf_set1(p[j]);
            c[i][0] = vf_fma(a, tile_row(x, (ptrdiff_t)j, 0, cols), c[i][0]);
            if (vecs == 2) {
                c[i][1] = vf_fma(a, tile_row(x, (ptrdiff_t)j, W, W), c[i][1]);
            }
        }
    }
}

/* `vecs` vectors of acc (Dv), the last of `cols` columns: keys [from, until) of the block */
TILE_INLINE void
row_columns(float *acc, const float *p, float shrink, const void *v, int bf16, size_t Dv,
            size_t cols, const size_t vecs, ptrdiff_t from, ptrdiff_t until)
{
    vf c[4][2] = {{{0}}};
    size_t whole = from > 0 ? 0 : (size_t)clamp_to(until, KEYS) / QUARTER;
    switch (whole) { /* constants, so that c stays in registers */
    case 4: row_quarters(c, p, v, bf16, Dv, cols, vecs, 4); break;
    case 3: row_quarters(c, p, v, bf16, Dv, cols, vecs, 3); break;
    case 2: row_quarters(c, p, v, bf16, Dv, cols, vecs, 2); break;
    case 1: row_quarters(c, p, v, bf16, Dv, cols, vecs, 1); break;
    }
    for (size_t i = whole; i < 4; i++) {
        size_t j = i * QUARTER;
        tile_ab x = {p + j, 0, 1, element(v, j * Dv, bf16), Dv, cols, bf16};
        tile_band(&c[i], 1, vecs, x, QUARTER, from - (ptrdiff_t)j, until - (ptrdiff_t)j);
    }
    for (size_t i = 0; i < vecs; i++) {
        vf a = vf_fma(vf_load_left(acc + i * W, cols), vf_set1(shrink), c[0][i]);
        a = a + c[1][i];
        a = a + c[2][i];
        a = a + c[3][i];
        vf_store_left(acc + i * W, a, cols);
    }
}

/* acc (Dv) = acc shrink + p v over keys [from, until) of the block */
TILE_INLINE void
row_values(float *acc, const float *p, float shrink, const void *v, int bf16, size_t Dv,
           ptrdiff_t from, ptrdiff_t until)
{
    size_t c0 = 0;
    for (; c0 + 2 * W <= Dv; c0 += 2 * W) {
        row_columns(acc + c0, p, shrink, element(v, c0, bf16), bf16, Dv, W, 2, from, until);
    }
    for (; c0 + W <= Dv; c0 += W) {
        row_columns(acc + c0, p, shrink, element(v, c0, bf16), bf16, Dv, W, 1, from, until);
    }
    if (c0 < Dv) {
        row_columns(acc + c0, p, shrink, element(v, c0, bf16), bf16, Dv, Dv - c0, 1, from, until);
    }
}

#endif
