/* attention.c - causal attention over a block KV cache.  Vaswani et al. 2017, eq. 1; the online
 * softmax of Milakov & Gimelshein 2018; the sliding window of Beltagy et al. 2020, section 3.1.
 *
 *   s[n,h,j] = scale q[n,h] . k[j,g],   pos[n] - window < j <= pos[n],   g = h / (H / Hkv)
 *   o[n,h] = sum_j exp(s[j] - lse) v[j,g],   lse[n,h] = log sum_j exp(s[j])
 *
 * q (N, H D), o (N, H Dv), lse (N, H); K blocks (D, 64), V blocks (64, Dv). Saved: o and lse.
 *
 * Order of sums, the same for prefill, decode and training, because it depends on nothing but the
 * absolute positions of the keys:
 *   - a score is one chain over D; keys are the lanes;
 *   - inside a chunk of 512 keys, block after block of 64: m' = max(m, scores), c = exp(m - m'),
 *     l = l c + p (lane by lane, lanes summed at the end of the chunk), acc = acc c + p v, where
 *     p v is four chains, one per quarter of the block, added in order;
 *   - chunks in ascending order from (M, L) = (-inf, 0): each merges by
 *     M' = max(M, m), L = L exp(M - M') + l exp(m - M'), likewise the vectors.
 * A key outside the window or beyond pos[n] is never read into a sum. Blocks before the window of a
 * group's first row are not visited; one that only its other rows skip leaves them at (-inf, 0, 0),
 * bit for bit where they would be without it. bf16 keys and values are widened to float32 as they
 * are read; nothing else changes.
 *
 * Rows are worked on in groups: consecutive positions of one sequence, so that a key is loaded once
 * for all, or, where a sequence has a row or two as in decoding, heads of one position, so that the many
 * short sums of one softmax need not wait for each other. No row's bits depend on its group. Knows
 * nothing about which rows are prompt.
 */
#include "attention_row.h"
#include "split.h"
#include "transpose.h"

enum { CHUNK = 512, TASK_ROWS = 32, MIN_TASK_ROWS = 4, FEW_ROWS = 2, WRITE_ROWS = 4 };

typedef struct {
    const r1_tensor *o, *lse, *q;
    const r1_kv *kv;
    const r1_seqs *seqs;
    size_t H;
    ptrdiff_t window; /* keys that a query sees */
    float scale;
    size_t rows, heads; /* of a task, at most */
} fwd_job;

static void *
block_k(const r1_kv *kv, size_t block, size_t g)
{
    return (char *)kv->k + (block * kv->Hkv + g) * r1_kv_k_bytes(kv);
}

static void *
block_v(const r1_kv *kv, size_t block, size_t g)
{
    return (char *)kv->v + (block * kv->Hkv + g) * r1_kv_v_bytes(kv);
}

/* ---- one group of rows ---- */

/* What a chunk has summed so far; lane r of the vectors is row r. */
typedef struct {
    vf m;                                  /* largest score */
    vf l[TILE_ROWS];                       /* sum of p, in W partial sums */
    _Alignas(64) float acc[TILE_ROWS][R1_MAX_HEAD_DIM]; /* sum of p v */
} chunk_state;

/* What exponents are taken from: m, and 0 while nothing was seen, where -inf - -inf would be NaN. */
static inline vf
softmax_base(vf m)
{
    return vf_select(m == vf_set1(-__builtin_inff()), vf_set1(0.0f), m);
}

/* Scores to probabilities: scales and masks s (row r sees keys from + r later .. until + r later - 1;
 * later is 1, or 0 where all rows are at one position), updates m and l and leaves p in s. Returns the
 * factor by which each row's acc must shrink. */
TILE_INLINE vf
block_softmax(chunk_state *st, float (*s)[KEYS], size_t rows, ptrdiff_t later, float scale,
              ptrdiff_t from, ptrdiff_t until, size_t lanes)
{
    const vf none = vf_set1(-__builtin_inff());
    float largest[W] = {0};
    for (size_t r = 0; r < rows; r++) {
        vf m = none;
        for (size_t j = 0; j < lanes; j += W) {
            vf x = vf_load(s[r] + j) * vf_set1(scale);
            ptrdiff_t left = until + (ptrdiff_t)r * later - (ptrdiff_t)j;
            ptrdiff_t before = from + (ptrdiff_t)r * later - (ptrdiff_t)j;
            if (left < W) {
                x = vf_select(vi_first((size_t)clamp_to(left, W)), x, none);
            }
            if (before > 0) {
                x = vf_select(vi_first((size_t)clamp_to(before, W)), none, x);
            }
            vf_store(s[r] + j, x);
            m = vf_max(m, x);
        }
        largest[r] = vf_hmax(m);
    }
    vf m = vf_max(st->m, vf_load(largest)), base = softmax_base(m);
    vf shrink = vf_exp_down(st->m - base);
    for (size_t r = 0; r < rows; r++) {
        vf l = st->l[r] * vf_set1(shrink[r]);
        for (size_t j = 0; j < lanes; j += W) {
            vf p = vf_exp_down(vf_load(s[r] + j) - vf_set1(base[r]));
            vf_store(s[r] + j, p);
            l = l + p;
        }
        st->l[r] = l;
    }
    st->m = m;
    return shrink;
}

/* acc = acc shrink + p v on `vecs` vectors of columns from column c0 */
TILE_INLINE void
block_columns(chunk_state *st, float (*p)[KEYS], size_t rows, size_t vecs, vf shrink,
              const void *v, int bf16, size_t Dv, size_t c0, size_t cols, ptrdiff_t from,
              ptrdiff_t until)
{
    for (size_t quarter = 0; quarter < 4; quarter++) {
        size_t j = quarter * QUARTER;
        vf c[TILE_ROWS][2] = {{{0}}};
        tile_ab x = {p[0] + j, KEYS, 1, element(v, j * Dv + c0, bf16), Dv, cols, bf16};
        tile_band(c, rows, vecs, x, QUARTER, from - (ptrdiff_t)j, until - (ptrdiff_t)j);
#pragma GCC unroll 8
        for (size_t r = 0; r < rows; r++) {
            for (size_t i = 0; i < vecs; i++) {
                float *acc = st->acc[r] + c0 + i * W;
                vf a = vf_load_left(acc, cols);
                a = quarter == 0 ? vf_fma(a, vf_set1(shrink[r]), c[r][i]) : a + c[r][i];
                vf_store_left(acc, a, cols);
            }
        }
    }
}

TILE_INLINE void
block_values(chunk_state *st, float (*p)[KEYS], size_t rows, vf shrink, const void *v, int bf16,
             size_t Dv, ptrdiff_t from, ptrdiff_t until)
{
    size_t c0 = 0;
    for (; c0 + 2 * W <= Dv; c0 += 2 * W) {
        block_columns(st, p, rows, 2, shrink, v, bf16, Dv, c0, W, from, until);
    }
    for (; c0 + W <= Dv; c0 += W) {
        block_columns(st, p, rows, 1, shrink, v, bf16, Dv, c0, W, from, until);
    }
    if (c0 < Dv) {
        block_columns(st, p, rows, 1, shrink, v, bf16, Dv, c0, Dv - c0, from, until);
    }
}

/* total (M, L, vectors) = merge(total, chunk); x = x a + y b per row */
static void
chunk_merge(vf *M, vf *L, float (*total)[R1_MAX_HEAD_DIM], const chunk_state *st, vf l, size_t rows,
            size_t Dv)
{
    vf m = vf_max(*M, st->m), base = softmax_base(m);
    vf a = vf_exp(*M - base), b = vf_exp(st->m - base);
    *L = vf_fma(l, b, *L * a);
    *M = m;
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < Dv; c += W) {
            vf x = vf_load(total[r] + c) * vf_set1(a[r]);
            x = vf_fma(vf_load(st->acc[r] + c), vf_set1(b[r]), x);
            vf_store(total[r] + c, x);
        }
    }
}

/* tall: rows n .. n + count - 1 of head h, consecutive positions of one sequence inside one key block;
 * those beyond count hold the last row's q, and what they give is thrown away. Else: row n, heads
 * h .. h + count - 1. */
TILE_INLINE void
group_fwd(const fwd_job *job, int tall, size_t count, size_t n, size_t h, int bf16)
{
    const r1_kv *kv = job->kv;
    const r1_seqs *seqs = job->seqs;
    const int32_t *blocks = seqs->blocks + (size_t)seqs->seq[n] * seqs->max_blocks;
    size_t D = kv->D, Dv = kv->Dv, share = job->H / kv->Hkv;
    size_t rows = tall ? TILE_ROWS : count, keys = (size_t)seqs->pos[n] + (tall ? count : 1);
    size_t seen = (size_t)clamp_to(seqs->pos[n] + 1 - job->window, INT32_MAX); /* by row 0, on */
    size_t block0 = seen / KEYS * KEYS;
    _Alignas(64) float q[TILE_ROWS][R1_MAX_HEAD_DIM];
    _Alignas(64) float s[TILE_ROWS][KEYS];
    _Alignas(64) float total[TILE_ROWS][R1_MAX_HEAD_DIM];
    chunk_state st;
    vf M = vf_set1(-__builtin_inff()), L = {0};

    for (size_t r = 0; r < rows; r++) {
        size_t last = r < count ? r : count - 1, row = tall ? n + last : n, at = tall ? h : h + r;
        memcpy(q[r], row_f32(job->q, row) + at * D, D * sizeof(float));
        memset(total[r], 0, (Dv + W - 1) / W * W * sizeof(float));
    }
    for (size_t first = seen / CHUNK * CHUNK; first < keys; first += CHUNK) {
        st.m = vf_set1(-__builtin_inff());
        for (size_t r = 0; r < rows; r++) {
            st.l[r] = vf_set1(0.0f);
            memset(st.acc[r], 0, (Dv + W - 1) / W * W * sizeof(float));
        }
        size_t base = first > block0 ? first : block0;
        for (; base < keys && base < first + CHUNK; base += KEYS) {
            size_t block = (size_t)blocks[base / KEYS];
            ptrdiff_t until = seqs->pos[n] + 1 - (ptrdiff_t)base; /* row 0 sees [from, until) */
            ptrdiff_t from = until - job->window;
            size_t lanes = split_count(keys - base < KEYS ? keys - base : KEYS, W) * W;
            const void *k = block_k(kv, block, h / share), *v = block_v(kv, block, h / share);
            for (size_t r = 0; !tall && r < rows; r++) {
                row_scores(s[r], q[r], block_k(kv, block, (h + r) / share), bf16, D, lanes);
            }
            if (tall) {
                tile_scores(s[0], KEYS, rows, q[0], R1_MAX_HEAD_DIM, k, bf16, D, lanes);
            }
            vf shrink = block_softmax(&st, s, rows, tall, job->scale, from, until, lanes);
            for (size_t r = 0; !tall && r < rows; r++) {
                row_values(st.acc[r], s[r], shrink[r], block_v(kv, block, (h + r) / share), bf16, Dv,
                           from, until);
            }
            if (tall) {
                block_values(&st, s, rows, shrink, v, bf16, Dv, from, until);
            }
        }
        float sums[W] = {0};
        for (size_t r = 0; r < rows; r++) {
            sums[r] = vf_sum(st.l[r]);
        }
        chunk_merge(&M, &L, total, &st, vf_load(sums), rows, Dv);
    }
    vf lse = M + vf_log(L);
    for (size_t r = 0; r < count; r++) {
        size_t row = tall ? n + r : n, at = tall ? h : h + r;
        float *o = row_f32(job->o, row) + at * Dv;
        for (size_t c = 0; c < Dv; c += W) {
            vf_store_left(o + c, vf_load(total[r] + c) / vf_set1(L[r]), Dv - c);
        }
        row_f32(job->lse, row)[at] = lse[r];
    }
}

/* The constants of each form */
static void
group_any(const fwd_job *job, int tall, size_t count, size_t n, size_t h)
{
    if (job->kv->dtype == R1_BF16) {
        if (tall) {
            group_fwd(job, 1, count, n, h, 1);
        } else {
            group_fwd(job, 0, count, n, h, 1);
        }
    } else if (tall) {
        group_fwd(job, 1, count, n, h, 0);
    } else {
        group_fwd(job, 0, count, n, h, 0);
    }
}

/* ---- groups: positions [8 i, 8 i + 8) of a sequence, as far as its rows reach ---- */

/* A task owns the groups that begin in its rows, so that no group is cut by a task's border. Head after
 * head, whose keys stay in the cache; groups of one or two rows with the first, all heads at once. */
static void
attention_fwd_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const fwd_job *job = ctx;
    const r1_seqs *seqs = job->seqs;
    size_t parts = split_count(job->H, job->heads), h0 = task % parts * job->heads;
    size_t h1 = split_end(job->H, h0, job->heads), begin = task / parts * job->rows;
    size_t end = split_end(seqs->N, begin, job->rows);
    for (size_t h = h0; h < h1; h++) {
        for (size_t n = begin, count; n < end; n += count) {
            size_t b = (size_t)seqs->seq[n], t = (size_t)seqs->pos[n];
            size_t left = (size_t)seqs->q_start[b + 1] - n;
            count = TILE_ROWS - t % TILE_ROWS;
            count = count < left ? count : left;
            if (t % TILE_ROWS != 0 && n != (size_t)seqs->q_start[b]) {
                /* inside a group that began before this task */
            } else if (count > FEW_ROWS) {
                group_any(job, 1, count, n, h);
            } else if (h == h0) {
                for (size_t i = 0; i < count; i++) {
                    group_any(job, 0, h1 - h0, n + i, h);
                }
            }
        }
    }
}

/* Large tasks reuse keys most; they shrink until every thread has a few. */
r1_code
TIER(attention_fwd)(r1_dev *dev, const r1_tensor *o, const r1_tensor *lse, const r1_tensor *q,
                    const r1_kv *kv, const r1_seqs *seqs, size_t H, size_t window, float scale,
                    r1_status *st)
{
    (void)st;
    assert(kv->D <= R1_MAX_HEAD_DIM && kv->Dv <= R1_MAX_HEAD_DIM && H % kv->Hkv == 0);
    size_t threads = r1_pool_threads(dev->pool), tasks;
    fwd_job job = {o, lse, q, kv, seqs, H, window_keys(window), scale, TASK_ROWS, TILE_ROWS};
    while ((tasks = split_count(seqs->N, job.rows) * split_count(H, job.heads)) < 4 * threads) {
        if (job.rows > MIN_TASK_ROWS) {
            job.rows /= 2;
        } else if (tasks < threads && job.heads > 1) {
            job.heads /= 2;
        } else {
            break;
        }
    }
    r1_pool_run(dev->pool, tasks, attention_fwd_task, &job);
    return R1_OK;
}

/* ---- the cache ---- */

typedef struct {
    const r1_kv *kv;
    const r1_tensor *k, *v;
    const r1_seqs *seqs;
    const int32_t *pairs;
    size_t step; /* rows a task of kv_write takes */
} kv_job;

/* Keys of `count` positions from `slot` on, of one head: k (count, D) */
static void
write_keys(const r1_kv *kv, void *to, const float *k, size_t ld, size_t slot, size_t count)
{
    if (kv->dtype == R1_BF16 && count > 1) {
        transpose_pairs((u32_u *)to + slot, KEYS, count, k, ld, count, kv->D);
    } else if (kv->dtype == R1_BF16) {
        for (size_t d = 0; d < kv->D; d += 2) {
            uint32_t pair = bf16_pair(k[d], d + 1 < kv->D ? k[d + 1] : 0.0f);
            ((uint32_t *)to)[d / 2 * KEYS + slot] = pair;
        }
    } else if (count > 1) {
        transpose_floats((float *)to + slot, KEYS, count, k, ld, count, kv->D);
    } else {
        for (size_t d = 0; d < kv->D; d++) {
            ((float *)to)[d * KEYS + slot] = k[d];
        }
    }
}

/* Rows n .. n + count - 1: positions t .. of sequence b, inside one block */
static void
write_rows(const kv_job *job, size_t n, size_t count, size_t b, size_t t)
{
    const r1_kv *kv = job->kv;
    size_t slot = t % KEYS;
    size_t block = (size_t)job->seqs->blocks[b * job->seqs->max_blocks + t / KEYS];
    for (size_t g = 0; g < kv->Hkv; g++) {
        void *values = block_v(kv, block, g);
        write_keys(kv, block_k(kv, block, g), row_f32(job->k, n) + g * kv->D, job->k->ld, slot,
                   count);
        for (size_t i = 0; i < count; i++) {
            const float *v = row_f32(job->v, n + i) + g * kv->Dv;
            if (kv->dtype == R1_BF16) {
                bf16_store_row((uint16_t *)values + (slot + i) * kv->Dv, v, kv->Dv);
            } else {
                memcpy((float *)values + (slot + i) * kv->Dv, v, kv->Dv * sizeof(float));
            }
        }
    }
}

static void
kv_write_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const kv_job *job = ctx;
    const r1_seqs *seqs = job->seqs;
    size_t end = split_end(seqs->N, task * job->step, job->step);
    for (size_t n = task * job->step, count; n < end; n += count) {
        size_t in_block = KEYS - (size_t)seqs->pos[n] % KEYS;
        for (count = 1; count < in_block && n + count < end; count++) {
            if (seqs->seq[n + count] != seqs->seq[n]) {
                break;
            }
        }
        write_rows(job, n, count, (size_t)seqs->seq[n], (size_t)seqs->pos[n]);
    }
}

/* The prefix's positions in the block of pos0[b], from the prefix's rows. */
static void
kv_prefix_task(void *ctx, size_t b, size_t worker)
{
    (void)worker;
    const kv_job *job = ctx;
    size_t end = (size_t)job->seqs->pos0[b], t = end / KEYS * KEYS;
    if (t < end) {
        write_rows(job, (size_t)job->seqs->prefix[b] + t, end - t, b, t);
    }
}

r1_code
TIER(kv_write)(r1_dev *dev, const r1_kv *kv, const r1_tensor *k, const r1_tensor *v,
               const r1_seqs *seqs, r1_status *st)
{
    (void)st;
    size_t share = seqs->N / (4 * r1_pool_threads(dev->pool));
    size_t step = share < WRITE_ROWS ? WRITE_ROWS : share < W ? share : W;
    kv_job job = {.kv = kv, .k = k, .v = v, .seqs = seqs, .step = step};
    r1_pool_run(dev->pool, split_count(seqs->N, step), kv_write_task, &job);
    if (seqs->prefix != NULL) {
        r1_pool_run(dev->pool, seqs->B, kv_prefix_task, &job);
    }
    return R1_OK;
}

static void
kv_copy_task(void *ctx, size_t task, size_t worker)
{
    (void)worker;
    const kv_job *job = ctx;
    const r1_kv *kv = job->kv;
    size_t from = (size_t)job->pairs[2 * task], to = (size_t)job->pairs[2 * task + 1];
    memcpy(block_k(kv, to, 0), block_k(kv, from, 0), kv->Hkv * r1_kv_k_bytes(kv));
    memcpy(block_v(kv, to, 0), block_v(kv, from, 0), kv->Hkv * r1_kv_v_bytes(kv));
}

r1_code
TIER(kv_copy)(r1_dev *dev, const r1_kv *kv, const int32_t *pairs, size_t n, r1_status *st)
{
    (void)st;
    kv_job job = {.kv = kv, .pairs = pairs};
    r1_pool_run(dev->pool, n, kv_copy_task, &job);
    return R1_OK;
}
