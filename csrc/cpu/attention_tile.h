/* attention_tile.h - the inner loop of attention, forward and backward: rows of a small matrix
 * product, shortened at both ends by the causal mask and the window.
 *
 *   c[r][:] += sum over k ascending of a[r lda + k ka] b[k ldb + :],   r < rows
 *
 * c is `vecs` vectors wide and stays in registers; every element is one chain of multiply-adds.
 * Row r of a tile is one position later than row r - 1, so its band of k begins and ends one later.
 * A k outside a row's band is skipped, not multiplied by 0: what lies there may be NaN.
 *
 * rows (TILE_ROWS or 1), vecs (1 or 2) are constants where these are inlined.
 */
#ifndef R1_ATTENTION_TILE_H
#define R1_ATTENTION_TILE_H

#include "bf16.h"
#include "cpu.h"
#include "simd.h"

enum {
    KEYS = R1_KV_BLOCK,
    TILE_ROWS = W == 16 ? 8 : 4, /* with two vectors a row, as many chains as registers can feed */
};

#define TILE_INLINE static inline __attribute__((always_inline))

typedef struct {
    const float *a;
    size_t lda, ka;
    const void *b; /* float, or bf16 */
    size_t ldb, cols; /* cols < W: the vector is loaded by mask */
    int bf16;
} tile_ab;

/* Element `at` of x, of either kind */
TILE_INLINE const void *
element(const void *x, size_t at, int bf16)
{
    return bf16 ? (const void *)((const uint16_t *)x + at) : (const void *)((const float *)x + at);
}

/* Columns [at, at + W) of row k of b, of which `cols` are there */
TILE_INLINE vf
tile_row(tile_ab x, ptrdiff_t k, size_t at, size_t cols)
{
    const void *b = element(x.b, (size_t)k * x.ldb + at, x.bf16);
    return x.bf16 ? vf_load_bf16_left(b, cols) : vf_load_left(b, cols);
}

/* One k, for rows [r0, r1) */
TILE_INLINE void
tile_step(vf (*c)[2], const size_t r0, const size_t r1, const size_t vecs, tile_ab x, ptrdiff_t k)
{
    const float *a = x.a + (size_t)k * x.ka;
    vf b0 = tile_row(x, k, 0, x.cols);
    vf b1 = vecs == 2 ? tile_row(x, k, W, W) : b0;
#pragma GCC unroll 8
    for (size_t r = r0; r < r1; r++) {
        vf ar = vf_set1(a[r * x.lda]);
        c[r][0] = vf_fma(ar, b0, c[r][0]);
        if (vecs == 2) {
            c[r][1] = vf_fma(ar, b1, c[r][1]);
        }
    }
}

/* k in [first, end) for every row */
TILE_INLINE void
tile_all(vf (*c)[2], size_t rows, size_t vecs, tile_ab x, ptrdiff_t first, ptrdiff_t end)
{
    for (ptrdiff_t k = first; k < end; k++) {
        tile_step(c, 0, rows, vecs, x, k);
    }
}

/* k in [first, end), row r only where from + r <= k < until + r */
TILE_INLINE void
tile_edge(vf (*c)[2], size_t rows, size_t vecs, tile_ab x, ptrdiff_t first, ptrdiff_t end,
          ptrdiff_t from, ptrdiff_t until)
{
    for (ptrdiff_t k = first; k < end; k++) {
#pragma GCC unroll 8
        for (size_t r = 0; r < rows; r++) {
            if ((size_t)(k - from - (ptrdiff_t)r) < (size_t)(until - from)) {
                tile_step(c, r, r + 1, vecs, x, k);
            }
        }
    }
}

static inline ptrdiff_t
clamp_to(ptrdiff_t x, ptrdiff_t n)
{
    return x < 0 ? 0 : x < n ? x : n;
}

/* Keys that a query sees; a window of 0 is none, and no position is INT32_MAX back. */
static inline ptrdiff_t
window_keys(size_t window)
{
    return window == 0 || window > INT32_MAX ? INT32_MAX : (ptrdiff_t)window;
}

/* row r: k in [max(0, from + r), min(n, until + r)) */
TILE_INLINE void
tile_band(vf (*c)[2], size_t rows, size_t vecs, tile_ab x, ptrdiff_t n, ptrdiff_t from,
          ptrdiff_t until)
{
    ptrdiff_t last = (ptrdiff_t)rows - 1;
    ptrdiff_t first = clamp_to(from, n), end = clamp_to(until + last, n);
    ptrdiff_t all = clamp_to(from + last, n), all_end = clamp_to(until, n); /* k of every row */
    if (all >= all_end) { /* a band narrower than the tile */
        tile_edge(c, rows, vecs, x, first, end, from, until);
        return;
    }
    if (all - first == last) { /* whole ramps need no tests */
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < last; i++) {
            tile_step(c, 0, (size_t)i + 1, vecs, x, first + i);
        }
    } else {
        tile_edge(c, rows, vecs, x, first, all, from, until);
    }
    tile_all(c, rows, vecs, x, all, all_end);
    if (end - all_end == last) {
#pragma GCC unroll 8
        for (ptrdiff_t i = 0; i < last; i++) {
            tile_step(c, (size_t)i + 1, rows, vecs, x, all_end + i);
        }
    } else {
        tile_edge(c, rows, vecs, x, all_end, end, from, until);
    }
}

/* c[r] += q[r] kt, one step of a score: kt is a row of keys, or the pairs of rows that hold it as `half` */
TILE_INLINE void
score_step(vf (*c)[2], size_t rows, size_t vecs, const float *q, size_t ldq, const float *kt, int bf16,
           int half)
{
    vf b0 = bf16 ? vf_half(kt, half) : vf_load(kt), b1 = b0;
    if (vecs == 2) {
        b1 = bf16 ? vf_half(kt + W, half) : vf_load(kt + W);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        vf x = vf_set1(q[r * ldq]);
        c[r][0] = vf_fma(x, b0, c[r][0]);
        if (vecs == 2) {
            c[r][1] = vf_fma(x, b1, c[r][1]);
        }
    }
}

/* s (rows, vecs W) = q (rows, D) times kt (D, vecs W), or its bf16 pairs; s and kt have `keys` columns */
TILE_INLINE void
score_columns(float *s, size_t keys, size_t rows, size_t vecs, const float *q, size_t ldq,
              const float *kt, int bf16, size_t D)
{
    vf c[TILE_ROWS][2] = {{{0}}};
    for (size_t d = 0; d < D / 2; d++, q += 2, kt += bf16 ? keys : 2 * keys) {
        score_step(c, rows, vecs, q, ldq, kt, bf16, 0);
        score_step(c, rows, vecs, q + 1, ldq, bf16 ? kt : kt + keys, bf16, 1);
    }
    if (D % 2 == 1) {
        score_step(c, rows, vecs, q, ldq, kt, bf16, 0);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        vf_store(s + r * keys, c[r][0]);
        if (vecs == 2) {
            vf_store(s + r * keys + W, c[r][1]);
        }
    }
}

/* The first `lanes` columns, a multiple of W, of s (rows, keys) = q (rows, D) times kt (D, keys) */
TILE_INLINE void
tile_scores(float *s, size_t keys, size_t rows, const float *q, size_t ldq, const void *kt, int bf16,
            size_t D, size_t lanes)
{
    size_t j = 0;
    for (; j + 2 * W <= lanes; j += 2 * W) {
        score_columns(s + j, keys, rows, 2, q, ldq, (const float *)kt + j, bf16, D);
    }
    if (j < lanes) {
        score_columns(s + j, keys, rows, 1, q, ldq, (const float *)kt + j, bf16, D);
    }
}

#endif
