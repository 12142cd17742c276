/* attention.cu - causal attention over a block KV cache.  Vaswani et al. 2017, eq. 1; the online softmax of
 * Milakov & Gimelshein 2018; the sliding window of Beltagy et al. 2020, section 3.1.
 *
 *   s[n,h,j] = scale q[n,h] . k[j,g],   pos[n] - window < j <= pos[n],   g = h / (H / Hkv)
 *   o[n,h] = sum_j exp(s[j] - lse) v[j,g],   lse[n,h] = log sum_j exp(s[j])
 *
 * q (N, H D), o (N, H Dv), lse (N, H); K blocks (D, 64), V blocks (64, Dv). Saved: o and lse.
 *
 * Order of sums, the same for prefill, decode and training, because it depends on nothing but the
 * absolute positions of the keys; it is that of csrc/cpu/attention.c with vectors of 16:
 *   - a score is one chain over D;
 *   - inside a chunk of 512 keys, block after block of 64: m' = max(m, scores), c = exp(m - m'),
 *     l = l c + p (sixteen sums, key j in sum j % 16, added by halves at the end of the chunk),
 *     acc = acc c + p v, where p v is four chains, one per quarter of the block, added in order;
 *   - chunks in ascending order from (M, L) = (-inf, 0): each merges by
 *     M' = max(M, m), L = L exp(M - M') + l exp(m - M'), likewise the vectors.
 * A key that no row of a tile sees is 0 in its shared memory, one that a row does not see has p = 0.
 *
 * A tile is some positions of one sequence times the heads of one KV head, so that keys are fetched once for
 * all of them. A block has a tile, or, of few rows, one chunk of it: then merge_kernel adds up. Which of the
 * two, and how large a tile is, only time depends on. Knows nothing about which rows are prompt. */
#include "attention_tile.cuh"

constexpr unsigned CHUNK = 512, QUARTER = KEYS / 4;
constexpr unsigned TALL = 64, FLAT = 16; /* rows of a tile: many positions; heads of one or two */

struct fwd_job {
    r1_tensor o, lse, q;
    r1_kv kv;
    r1_seqs seqs;
    int window;          /* keys that a query sees */
    float scale;
    unsigned H, share;   /* heads; of a KV head */
    unsigned heads, step; /* heads of a tile; packed rows that a block has */
    unsigned chunks;     /* 0: a block takes all; else it leaves one of them in acc, m and l: */
    float *acc, *m, *l;  /* (N, H, chunks, Dv), (N, H, chunks), (N, H, chunks) */
};

/* What exponents are taken from: m, and 0 while nothing was seen, where -inf - -inf would be NaN. */
static __device__ inline float
softmax_base(float m)
{
    return m == -__uint_as_float(0x7f800000u) ? 0.0f : m;
}

/* (M, L) = merge((M, L), (m, l)); a vector becomes fma(the chunk's, *b, it * *a) */
static __device__ inline void
merge(float *M, float *L, float m, float l, float *a, float *b)
{
    float largest = f_max(*M, m), base = softmax_base(largest);
    *a = f_exp(*M - base);
    *b = f_exp(m - base);
    *L = fmaf(l, *b, *L * *a);
    *M = largest;
}

/* Keys of a block as a tile; those of rows beyond the sequence may be anything. */
template <bool bf16>
static __device__ inline void
load_keys(float *tile, const char *from, unsigned D)
{
    unsigned ld = tile_ld(D);
    for (unsigned i = threadIdx.x; i < (D + 7) / 8 * 8 * KEYS; i += blockDim.x) {
        unsigned d = i / KEYS, key = i % KEYS;
        float x = 0.0f;
        if (d < D && bf16) {
            uint32_t pair = reinterpret_cast<const uint32_t *>(from)[d / 2 * KEYS + key];
            x = __uint_as_float(d % 2 == 0 ? pair & 0xffff0000u : pair << 16);
        } else if (d < D) {
            x = reinterpret_cast<const float *>(from)[i];
        }
        tile[key * ld + d] = x;
    }
}

/* Values of keys first .. end - 1 of a block as a tile; the others are 0. */
template <bool bf16>
static __device__ inline void
load_values(float *tile, const char *from, unsigned Dv, int first, int end)
{
    unsigned ld = tile_ld(Dv);
    for (unsigned j = threadIdx.x / LANES; j < KEYS; j += blockDim.x / LANES) {
        for (unsigned c = threadIdx.x % LANES; c < ld; c += LANES) {
            float x = 0.0f;
            if (c < Dv && (int)j >= first && (int)j < end) {
                x = bf16 ? f32_of(reinterpret_cast<const uint16_t *>(from)[j * Dv + c])
                         : reinterpret_cast<const float *>(from)[j * Dv + c];
            }
            tile[j * ld + c] = x;
        }
    }
}

/* The tile of `count` packed rows from n on, heads h .. h + heads - 1. q (ROWS, D), x (64, D or Dv) and
 * p (64, ROWS + 4) are shared memory. */
template <bool bf16, unsigned ROWS, unsigned GROUPS>
static __device__ inline void
tile_fwd(const fwd_job &job, float *q, float *x, float *p, size_t n, unsigned count, unsigned h,
         unsigned heads)
{
    constexpr unsigned E = KEYS / LANES;
    const r1_kv &kv = job.kv;
    const int32_t *blocks = job.seqs.blocks + (size_t)job.seqs.seq[n] * job.seqs.max_blocks;
    const float none = -__uint_as_float(0x7f800000u);
    unsigned D = (unsigned)kv.D, Dv = (unsigned)kv.Dv, g = h / job.share;
    unsigned x16 = threadIdx.x % LANES, y = threadIdx.x / LANES;
    int pos0 = job.seqs.pos[n], end = pos0 + (int)count, seen = max(0, pos0 + 1 - job.window);
    int t[4]; /* positions of this thread's rows, -1 beyond the last */
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        t[r] = 4 * y + r < count * heads ? pos0 + (int)((4 * y + r) / heads) : -1;
    }
    for (unsigned r = y; r < ROWS; r += ROWS / 4) {
        bool there = r < count * heads;
        tile_row(q + r * tile_ld(D),
                 there ? row_f32(job.q, n + r / heads) + (h + r % heads) * D : NULL, D);
    }
    float M[4] = {none, none, none, none}, L[4] = {0}, total[4][4 * GROUPS] = {{0}};
    int first = seen / (int)CHUNK, last = (end - 1) / (int)CHUNK;
    if (job.chunks > 0) {
        first = max(first, (int)blockIdx.z);
        last = min(last, (int)blockIdx.z);
    }
    for (int chunk = first; chunk <= last; chunk++) {
        float m[4] = {none, none, none, none}, l[4] = {0}, acc[4][4 * GROUPS] = {{0}};
        int base = max(chunk * (int)CHUNK, seen / (int)KEYS * (int)KEYS);
        for (; base < min(end, (chunk + 1) * (int)CHUNK); base += KEYS) {
            int32_t block = blocks[base / (int)KEYS];
            float s[4][E], shrink[4];
            __syncthreads(); /* q is there; x and p are free */
            load_keys<bf16>(x, block_k(kv, block, g), D);
            __syncthreads();
            dots<KEYS>(s, q, x, D);
#pragma unroll
            for (unsigned r = 0; r < 4; r++) {
                float largest = none;
#pragma unroll
                for (unsigned e = 0; e < E; e++) {
                    int j = base + (int)(x16 + e * LANES);
                    s[r][e] = j <= t[r] && t[r] - j < job.window ? s[r][e] * job.scale : none;
                    largest = f_max(largest, s[r][e]);
                }
                largest = f_max(m[r], lanes_max(largest));
                float from = softmax_base(largest);
                shrink[r] = f_exp(m[r] - from);
                m[r] = largest;
                l[r] *= shrink[r];
#pragma unroll
                for (unsigned e = 0; e < E; e++) {
                    s[r][e] = f_exp(s[r][e] - from);
                    l[r] += s[r][e];
                }
            }
            keep<ROWS, KEYS>(p, s);
            __syncthreads(); /* the keys are read */
            load_values<bf16>(x, block_v(kv, block, g), Dv, seen - base, end - base);
            __syncthreads();
#pragma unroll
            for (unsigned i = 0; i < GROUPS; i++) {
                unsigned column = group_column(i, Dv);
                for (unsigned quarter = 0; quarter < KEYS; quarter += QUARTER) {
                    float c[4][4] = {{0}};
                    products<ROWS>(c, p, x, tile_ld(Dv), column, quarter, quarter + QUARTER);
#pragma unroll
                    for (unsigned k = 0; k < 16; k++) {
                        float *a = &acc[k / 4][4 * i + k % 4], part = c[k / 4][k % 4];
                        *a = quarter == 0 ? fmaf(*a, shrink[k / 4], part) : *a + part;
                    }
                }
            }
        }
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            float sum = lanes_sum(l[r]), a, b;
            size_t row = n + (4 * y + r) / heads, head = h + (4 * y + r) % heads;
            size_t part = (row * job.H + head) * job.chunks + (size_t)chunk;
            if (job.chunks > 0 && t[r] >= 0 && x16 == 0) {
                job.m[part] = m[r];
                job.l[part] = sum;
            }
            merge(&M[r], &L[r], m[r], sum, &a, &b);
#pragma unroll
            for (unsigned c = 0; c < 4 * GROUPS; c++) {
                unsigned column = c / 4 * KEYS + 4 * x16 + c % 4;
                if (job.chunks == 0) {
                    total[r][c] = fmaf(acc[r][c], b, total[r][c] * a);
                } else if (t[r] >= 0 && column < Dv) {
                    job.acc[part * Dv + column] = acc[r][c];
                }
            }
        }
    }
#pragma unroll
    for (unsigned r = 0; r < 4 && job.chunks == 0; r++) {
        size_t row = n + (4 * y + r) / heads, head = h + (4 * y + r) % heads;
        if (t[r] >= 0 && x16 == 0) {
            row_f32(job.lse, row)[head] = M[r] + f_log(L[r]);
        }
#pragma unroll
        for (unsigned c = 0; c < 4 * GROUPS; c++) {
            unsigned column = c / 4 * KEYS + 4 * x16 + c % 4;
            if (t[r] >= 0 && column < Dv) {
                row_f32(job.o, row)[head * Dv + column] = total[r][c] / L[r];
            }
        }
    }
    __syncthreads(); /* q may be written again */
}

/* Packed rows blockIdx.x step .., the last blocks first, whose keys are most; y: KV heads, and parts of one
 * that has more heads than a tile has rows. */
template <bool bf16, unsigned ROWS, unsigned GROUPS>
static __global__ void __launch_bounds__(4 * ROWS)
attention_fwd_kernel(fwd_job job)
{
    DYNAMIC_SHARED(float, q);
    float *x = q + ROWS * tile_ld(job.kv.D);
    float *p = x + KEYS * tile_ld(max(job.kv.D, job.kv.Dv));
    unsigned parts = (job.share + job.heads - 1) / job.heads;
    unsigned part = blockIdx.y % parts * job.heads, h = blockIdx.y / parts * job.share + part;
    size_t n = (size_t)(gridDim.x - 1 - blockIdx.x) * job.step, end = min(n + job.step, job.seqs.N);
    while (n < end) {
        size_t behind = min(end, (size_t)job.seqs.q_start[job.seqs.seq[n] + 1]);
        tile_fwd<bf16, ROWS, GROUPS>(job, q, x, p, n, (unsigned)(behind - n), h,
                                     min(job.heads, job.share - part));
        n = behind;
    }
}

/* o and lse of row blockIdx.x, head blockIdx.y, from its chunks: a thread per column. */
static __global__ void
merge_kernel(fwd_job job)
{
    size_t n = blockIdx.x, h = blockIdx.y, Dv = job.kv.Dv;
    int t = job.seqs.pos[n], first = max(0, t + 1 - job.window) / (int)CHUNK, last = t / (int)CHUNK;
    size_t part = (n * job.H + h) * job.chunks;
    float M = -__uint_as_float(0x7f800000u), L = 0.0f, total = 0.0f, a, b;
    for (int c = first; c <= last; c++) {
        merge(&M, &L, job.m[part + (size_t)c], job.l[part + (size_t)c], &a, &b);
        if (threadIdx.x < Dv) {
            total = fmaf(job.acc[(part + (size_t)c) * Dv + threadIdx.x], b, total * a);
        }
    }
    if (threadIdx.x < Dv) {
        row_f32(job.o, n)[h * Dv + threadIdx.x] = total / L;
    }
    if (threadIdx.x == 0) {
        row_f32(job.lse, n)[h] = M + f_log(L);
    }
}

template <bool bf16, unsigned ROWS>
static r1_code
attention_rows(r1_dev *dev, const fwd_job &job, dim3 grid, r1_status *st)
{
    unsigned D = tile_ld(job.kv.D), x = tile_ld(max(job.kv.D, job.kv.Dv));
    size_t shared = (ROWS * D + KEYS * x + KEYS * (ROWS + 4)) * sizeof(float);
    if (job.kv.Dv <= 64) {
        return LAUNCH(dev, st, (attention_fwd_kernel<bf16, ROWS, 1>), grid, 4 * ROWS, shared, job);
    }
    if (job.kv.Dv <= 128) {
        return LAUNCH(dev, st, (attention_fwd_kernel<bf16, ROWS, 2>), grid, 4 * ROWS, shared, job);
    }
    return LAUNCH(dev, st, (attention_fwd_kernel<bf16, ROWS, 4>), grid, 4 * ROWS, shared, job);
}

template <bool bf16>
static r1_code
attention_launch(r1_dev *dev, const fwd_job &job, dim3 grid, bool tall, r1_status *st)
{
    return tall ? attention_rows<bf16, TALL>(dev, job, grid, st)
                : attention_rows<bf16, FLAT>(dev, job, grid, st);
}

/* A tile is tall where sequences have many rows. Blocks take one chunk each where there would be too few. */
r1_code
CUDA(attention_fwd)(r1_dev *dev, const r1_tensor *o, const r1_tensor *lse, const r1_tensor *q,
                    const r1_kv *kv, const r1_seqs *seqs, size_t H, size_t window, float scale,
                    r1_status *st)
{
    assert(kv->D <= R1_MAX_HEAD_DIM && kv->Dv <= R1_MAX_HEAD_DIM && H % kv->Hkv == 0);
    unsigned share = (unsigned)(H / kv->Hkv);
    size_t each = seqs->N / (seqs->B + (seqs->B == 0)); /* rows of a sequence, about */
    unsigned rows = each * share > FLAT ? TALL : FLAT, heads = min(share, rows);
    unsigned step = (unsigned)max((size_t)1, min((size_t)(rows / heads), each));
    dim3 grid(grid_of(seqs->N, step), (unsigned)kv->Hkv * grid_of(share, heads));
    fwd_job job = {*o, *lse, *q, *kv, *seqs, window_keys(window), scale, (unsigned)H, share, heads, step,
                   0, NULL, NULL, NULL};
    size_t chunks = (seqs->max_blocks * KEYS + CHUNK - 1) / CHUNK, parts = seqs->N * H * chunks;
    bool split = rows == FLAT && chunks > 1 && (size_t)grid.x * grid.y < 2 * (size_t)dev->processors;
    if (split) {
        void *scratch;
        R1_TRY(dev_scratch(dev, &scratch, parts * (kv->Dv + 2) * sizeof(float), st));
        job.chunks = grid.z = (unsigned)chunks;
        job.acc = static_cast<float *>(scratch);
        job.m = job.acc + parts * kv->Dv;
        job.l = job.m + parts;
    }
    R1_TRY(kv->dtype == R1_BF16 ? attention_launch<true>(dev, job, grid, rows == TALL, st)
                                : attention_launch<false>(dev, job, grid, rows == TALL, st));
    return !split ? R1_OK
                  : LAUNCH(dev, st, merge_kernel, dim3(grid_of(seqs->N, 1), (unsigned)H),
                           grid_of(kv->Dv, WARP) * WARP, 0, job);
}
