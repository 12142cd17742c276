/* attention_bwd.c - gradient of causal attention over whole packed sequences.
 *
 *   p[i,j] = exp(scale q[i] . k[j] - lse[i]),  i - window < j <= i     (recomputed; lse saved)
 *   delta[i] = do[i] . o[i]
 *   ds[i,j] = p[i,j] (do[i] . v[j] - delta[i]) scale
 *   dq[i] = sum_j ds[i,j] k[j]     dk[j] = sum_i ds[i,j] q[i]     dv[j] = sum_i p[i,j] do[i]
 *
 * q, dq (N, H D); k, dk (N, Hkv D); v, dv (N, Hkv Dv); o, dout (N, H Dv); lse (N, H). dq, dk and dv
 * are overwritten. Dao et al. 2022, algorithm 4, with the sums in this order:
 *   - a dot product over D or Dv is one chain, keys are the lanes (as in forward); delta is
 *     W chains and a tree;
 *   - dq: one chain over keys ascending;  dk, dv: one chain over the sequences of the group
 *     ascending, in each over the KV head's query heads ascending, and there over queries ascending.
 * Only pairs that forward saw enter a sum; blocks without one are not visited. A group (ops.h: the
 * sequences that share a prefix, mostly one) depends on itself alone: one task is one (group, KV
 * head), which owns its rows of dk and dv and its heads of dq.
 */
#include "attention_tile.h"
#include "split.h"
#include "transpose.h"

/* Rows and columns of p and ds that are kept at a time: the more keys, the fewer copies of a query. */
enum { QUERIES = 64, SPAN = 2 * R1_KV_BLOCK };

typedef struct {
    const r1_tensor *dq, *dk, *dv, *dout, *o, *lse, *q, *k, *v;
    const r1_seqs *seqs;
    size_t H, Hkv, D, Dv, wide, wide_v; /* wide: of a copied row, D and Dv in whole vectors */
    ptrdiff_t window; /* keys that a query sees */
    float scale;
} bwd_job;

/* One block of SPAN keys (j0 ..) against QUERIES queries (i0 ..) of one head, with copies of what its
 * products read and add up: in the tensors the rows of a head lie far apart, often in the same cache
 * sets. Copied rows are filled up with 0. */
typedef struct {
    size_t krow0, qrow0; /* packed rows of position 0, of the keys and of the queries */
    size_t h, g;         /* query head, KV head */
    size_t j0, nj, i0, ni;
    _Alignas(64) float kt[R1_MAX_HEAD_DIM * SPAN]; /* (D, SPAN) */
    _Alignas(64) float vt[R1_MAX_HEAD_DIM * SPAN]; /* (Dv, SPAN) */
    _Alignas(64) float k[SPAN * R1_MAX_HEAD_DIM];  /* (SPAN, wide) */
    _Alignas(64) float dk[SPAN * R1_MAX_HEAD_DIM]; /* (SPAN, wide) */
    _Alignas(64) float dv[SPAN * R1_MAX_HEAD_DIM]; /* (SPAN, wide_v) */
    _Alignas(64) float q[QUERIES * R1_MAX_HEAD_DIM];    /* (QUERIES, wide) */
    _Alignas(64) float dout[QUERIES * R1_MAX_HEAD_DIM]; /* (QUERIES, wide_v) */
    float lse[QUERIES], delta[QUERIES];
    _Alignas(64) float p[QUERIES][SPAN];
    _Alignas(64) float ds[QUERIES][SPAN];
} bwd_block;

static float
dot(const float *a, const float *b, size_t n)
{
    vf sum = {0};
    for (size_t c = 0; c < n; c += W) {
        sum = vf_fma(vf_load_left(a + c, n - c), vf_load_left(b + c, n - c), sum);
    }
    return vf_sum(sum);
}

/* to, in whole vectors, = from (n) */
static void
load_row(float *to, const float *from, size_t n)
{
    size_t c = 0;
    for (; c + W <= n; c += W) {
        vf_store(to + c, vf_load(from + c));
    }
    if (c < n) {
        vf_store(to + c, vf_load_n(from + c, n - c));
    }
}

/* Behind the last position of sequence b. */
static size_t
seq_end(const r1_seqs *seqs, size_t b)
{
    return (size_t)(seqs->pos0[b] + seqs->q_start[b + 1] - seqs->q_start[b]);
}

/* The block's keys: positions j0 .. of `left` that follow, in the sequence whose position 0 is row
 * krow0. Those that are missing in the last vector are 0 in kt and vt. Their sums begin at 0. */
static void
load_keys(bwd_block *x, const bwd_job *job, size_t krow0, size_t j0, size_t left)
{
    x->krow0 = krow0;
    x->j0 = j0;
    x->nj = left < SPAN ? left : SPAN;
    const float *k = row_f32(job->k, krow0 + j0) + x->g * job->D;
    const float *v = row_f32(job->v, krow0 + j0) + x->g * job->Dv;
    size_t lanes = split_count(x->nj, W) * W;
    transpose_floats(x->kt, SPAN, lanes, k, job->k->ld, x->nj, job->D);
    transpose_floats(x->vt, SPAN, lanes, v, job->v->ld, x->nj, job->Dv);
    for (size_t j = 0; j < x->nj; j++) {
        load_row(x->k + j * job->wide, k + j * job->k->ld, job->D);
    }
    memset(x->dk, 0, x->nj * job->wide * sizeof(float));
    memset(x->dv, 0, x->nj * job->wide_v * sizeof(float));
}

/* dk and dv of the block's `count` keys are complete. */
static void
store_keys(const bwd_block *x, const bwd_job *job, size_t count)
{
    for (size_t j = 0; j < count; j++) {
        size_t n = x->krow0 + x->j0 + j;
        vf_copy(row_f32(job->dk, n) + x->g * job->D, x->dk + j * job->wide, job->D);
        vf_copy(row_f32(job->dv, n) + x->g * job->Dv, x->dv + j * job->wide_v, job->Dv);
    }
}

/* The block's queries; the last one again until the last tile is full. */
static void
load_queries(bwd_block *x, const bwd_job *job)
{
    size_t D = job->D, Dv = job->Dv, rows = (x->ni + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (size_t i = 0; i < rows; i++) {
        size_t n = x->qrow0 + x->i0 + (i < x->ni ? i : x->ni - 1);
        float *dout = x->dout + i * job->wide_v;
        load_row(x->q + i * job->wide, row_f32(job->q, n) + x->h * D, D);
        load_row(dout, row_f32(job->dout, n) + x->h * Dv, Dv);
        x->lse[i] = row_f32(job->lse, n)[x->h];
        x->delta[i] = dot(dout, row_f32(job->o, n) + x->h * Dv, Dv);
    }
}

/* p and ds of queries i .. i + TILE_ROWS - 1 of the block (i counts from i0); rows beyond the
 * last query are read by nobody. */
static void
rows_scores(bwd_block *x, const bwd_job *job, size_t i)
{
    ptrdiff_t until = (ptrdiff_t)(x->i0 + i + 1) - (ptrdiff_t)x->j0; /* keys that row i sees */
    size_t first = (size_t)clamp_to(until - job->window, SPAN) / W * W;
    size_t end = split_count((size_t)clamp_to(until + TILE_ROWS - 1, (ptrdiff_t)x->nj), W) * W;
    float(*p)[SPAN] = x->p + i, (*ds)[SPAN] = x->ds + i;
    tile_scores(p[0] + first, SPAN, TILE_ROWS, x->q + i * job->wide, job->wide, x->kt + first, 0,
                job->D, end - first);
    tile_scores(ds[0] + first, SPAN, TILE_ROWS, x->dout + i * job->wide_v, job->wide_v,
                x->vt + first, 0, job->Dv, end - first);
    for (size_t r = 0; r < TILE_ROWS; r++) {
        vf lse = vf_set1(x->lse[i + r]), delta = vf_set1(x->delta[i + r]);
        for (size_t j = first; j < end; j += W) {
            vf s = vf_load(p[r] + j) * vf_set1(job->scale);
            vf e = vf_exp(s - lse);
            vf_store(p[r] + j, e);
            vf d = vf_load(ds[r] + j) - delta;
            vf_store(ds[r] + j, e * d * vf_set1(job->scale));
        }
    }
}

/* c (count rows of `ld`, cols) += a chain per element over its band of k: tile_band. fresh: c is not
 * written yet and counts as 0. Rows of the tile beyond count read and write the last one, first of all. */
TILE_INLINE void
product_columns(float *c, size_t ld, size_t count, int fresh, size_t vecs, tile_ab x, ptrdiff_t n,
                ptrdiff_t from, ptrdiff_t until)
{
    vf t[TILE_ROWS][2] = {{{0}}};
#pragma GCC unroll 8
    for (size_t r = 0; !fresh && r < TILE_ROWS; r++) {
        const float *row = c + (r < count ? r : count - 1) * ld;
        t[r][0] = vf_load_left(row, x.cols);
        t[r][1] = vecs == 2 ? vf_load(row + W) : t[r][0];
    }
    tile_band(t, TILE_ROWS, vecs, x, n, from, until);
#pragma GCC unroll 8
    for (size_t r = TILE_ROWS; r-- > 0;) {
        float *row = c + (r < count ? r : count - 1) * ld;
        vf_store_left(row, t[r][0], x.cols);
        if (vecs == 2) {
            vf_store(row + W, t[r][1]);
        }
    }
}

TILE_INLINE void
product(float *c, size_t ldc, size_t count, int fresh, const float *a, size_t lda, size_t ka,
        const float *b, size_t ldb, size_t cols, ptrdiff_t n, ptrdiff_t from, ptrdiff_t until)
{
    size_t c0 = 0;
    for (; c0 + 2 * W <= cols; c0 += 2 * W) {
        tile_ab x = {a, lda, ka, b + c0, ldb, W, 0};
        product_columns(c + c0, ldc, count, fresh, 2, x, n, from, until);
    }
    for (; c0 + W <= cols; c0 += W) {
        tile_ab x = {a, lda, ka, b + c0, ldb, W, 0};
        product_columns(c + c0, ldc, count, fresh, 1, x, n, from, until);
    }
    if (c0 < cols) {
        tile_ab x = {a, lda, ka, b + c0, ldb, cols - c0, 0};
        product_columns(c + c0, ldc, count, fresh, 1, x, n, from, until);
    }
}

/* dq[i ..] += ds k. Without a window every query sees the first keys. */
static void
rows_dq(const bwd_block *x, const bwd_job *job, size_t i)
{
    size_t n = x->qrow0 + x->i0 + i, count = x->ni - i < TILE_ROWS ? x->ni - i : TILE_ROWS;
    ptrdiff_t until = (ptrdiff_t)(x->i0 + i + 1) - (ptrdiff_t)x->j0; /* keys, from j0 */
    int fresh = x->j0 == 0 && job->window == window_keys(0);
    product(row_f32(job->dq, n) + x->h * job->D, job->dq->ld, count, fresh, x->ds[i], SPAN, 1, x->k,
            job->wide, job->D, (ptrdiff_t)x->nj, until - job->window, until);
}

/* dx[j ..] += pt^T y: dv from p and do, dk from ds and q */
static void
rows_dkv(const bwd_block *x, const bwd_job *job, float *dx, const float *y, const float (*pt)[SPAN],
         size_t j, size_t wide)
{
    size_t count = x->nj - j < TILE_ROWS ? x->nj - j : TILE_ROWS;
    ptrdiff_t from = (ptrdiff_t)(x->j0 + j) - (ptrdiff_t)x->i0; /* queries, from i0 */
    product(dx + j * wide, wide, count, 0, pt[0] + j, 1, SPAN, y, wide, wide, (ptrdiff_t)x->ni, from,
            from + job->window);
}

static void
zero_columns(const r1_tensor *x, size_t row0, size_t rows, size_t c0, size_t cols)
{
    for (size_t n = row0; n < row0 + rows; n++) {
        memset(row_f32(x, n) + c0, 0, cols * sizeof(float));
    }
}

/* The rows of sequence b that see one of the block's first nj keys meet them. */
static void
queries_bwd(bwd_block *x, const bwd_job *job, size_t b, size_t nj)
{
    size_t per = job->H / job->Hkv, pos0 = (size_t)job->seqs->pos0[b];
    size_t begin = x->j0 > pos0 ? x->j0 : pos0, end = seq_end(job->seqs, b);
    size_t seen = x->j0 + nj - 1 + (size_t)job->window; /* behind the last query that sees one */
    end = seen < end ? seen : end;
    x->qrow0 = (size_t)job->seqs->q_start[b] - pos0;
    x->nj = nj;
    for (x->h = x->g * per; x->h < (x->g + 1) * per; x->h++) {
        for (x->i0 = begin; x->i0 < end; x->i0 += QUERIES) {
            x->ni = end - x->i0 < QUERIES ? end - x->i0 : QUERIES;
            load_queries(x, job);
            for (size_t i = 0; i < x->ni; i += TILE_ROWS) {
                rows_scores(x, job, i);
                rows_dq(x, job, i);
            }
            for (size_t j = 0; j < nj && x->j0 + j < x->i0 + x->ni; j += TILE_ROWS) {
                rows_dkv(x, job, x->dv, x->dout, (const float(*)[SPAN])x->p, j, job->wide_v);
                rows_dkv(x, job, x->dk, x->q, (const float(*)[SPAN])x->ds, j, job->wide);
            }
        }
    }
}

/* The group that begins with sequence `first`: the keys of that one, which the prefix of the others
 * is part of; then the keys that each of the others has alone. */
static void
attention_bwd_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const bwd_job *job = ctx;
    const r1_seqs *seqs = job->seqs;
    size_t first = task / job->Hkv, per = job->H / job->Hkv, last = group_end(seqs, first);
    size_t row0 = (size_t)seqs->q_start[first], rows = (size_t)seqs->q_start[last] - row0;
    bwd_block x;
    x.g = task % job->Hkv;
    if (seqs->pos0[first] > 0) {
        return; /* not the first of its group */
    }
    if (job->window != window_keys(0)) {
        zero_columns(job->dq, row0, rows, x.g * per * job->D, per * job->D);
    }
    for (size_t j0 = 0, T = seq_end(seqs, first); j0 < T; j0 += SPAN) {
        load_keys(&x, job, row0, j0, T - j0);
        size_t count = x.nj;
        queries_bwd(&x, job, first, count);
        for (size_t b = first + 1; b < last && j0 < (size_t)seqs->pos0[b]; b++) {
            size_t shared = (size_t)seqs->pos0[b] - j0;
            queries_bwd(&x, job, b, shared < SPAN ? shared : SPAN);
        }
        store_keys(&x, job, count);
    }
    for (size_t b = first + 1; b < last; b++) {
        size_t S = (size_t)seqs->pos0[b], T = seq_end(seqs, b);
        for (size_t j0 = S; j0 < T; j0 += SPAN) {
            load_keys(&x, job, (size_t)seqs->q_start[b] - S, j0, T - j0);
            queries_bwd(&x, job, b, x.nj);
            store_keys(&x, job, x.nj);
        }
    }
}

r1_code
TIER(attention_bwd)(r1_dev *dev, const r1_tensor *dq, const r1_tensor *dk, const r1_tensor *dv,
                    const r1_tensor *dout, const r1_tensor *o, const r1_tensor *lse,
                    const r1_tensor *q, const r1_tensor *k, const r1_tensor *v,
                    const r1_seqs *seqs, size_t H, size_t Hkv, size_t window, float scale,
                    r1_dtype dtype, r1_status *st)
{
    (void)dtype;
    (void)st;
    size_t D = k->cols / Hkv, Dv = v->cols / Hkv;
    assert(H % Hkv == 0 && D <= R1_MAX_HEAD_DIM && Dv <= R1_MAX_HEAD_DIM);
    bwd_job job = {dq, dk, dv, dout, o, lse, q, k, v, seqs, H, Hkv, D, Dv, split_count(D, W) * W,
                   split_count(Dv, W) * W, window_keys(window), scale};
    r1_pool_run(dev->pool, seqs->B * Hkv, attention_bwd_task, &job);
    return R1_OK;
}
