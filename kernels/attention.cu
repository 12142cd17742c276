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
 * That is float32's order; attention_mma.cuh has bf16's, where p v is not exact and tensor cores multiply.
 * A key that no row of a tile sees is 0 in its shared memory, one that a row does not see has p = 0.
 *
 * A tile is some positions of one sequence times the heads of one KV head, so that keys are fetched once for
 * all of them. A block has a tile, or, of few rows, one chunk of it: then merge_kernel adds up. Which of the
 * two, and how large a tile is, only time depends on. Knows nothing about which rows are prompt. */
#include "attention_mma.cuh"
#include "attention_tile.cuh"

constexpr unsigned QUARTER = KEYS / 4;
constexpr unsigned TALL = 64, FLAT = 16; /* rows of a tile: many positions; heads of one or two */

/* Keys of a block as a tile; those of rows beyond the sequence may be anything. */
static __device__ inline void
load_keys(float *tile, const float *from, unsigned D)
{
    unsigned ld = tile_ld(D);
    for (unsigned i = threadIdx.x; i < (D + 7) / 8 * 8 * KEYS; i += blockDim.x) {
        tile[i % KEYS * ld + i / KEYS] = i / KEYS < D ? from[i] : 0.0f;
    }
}

/* Values of keys first .. end - 1 of a block as a tile; the others are 0. */
static __device__ inline void
load_values(float *tile, const float *from, unsigned Dv, int first, int end)
{
    for (int j = (int)(threadIdx.x / LANES); j < (int)KEYS; j += (int)(blockDim.x / LANES)) {
        bool there = j >= first && j < end;
        tile_row(tile + (unsigned)j * tile_ld(Dv), there ? from + (unsigned)j * Dv : NULL, Dv);
    }
}

/* One tile. q (ROWS, D), kv (64, D, then Dv) and p (64, ROWS + 4) are shared memory. */
template <unsigned ROWS, unsigned GROUPS>
static __device__ inline void
tile_fwd(const fwd_job &job, const fwd_tile &x, float *q, float *kv, float *p)
{
    constexpr unsigned E = KEYS / LANES;
    const float none = -__uint_as_float(INFINITE);
    unsigned D = (unsigned)job.kv.D, Dv = (unsigned)job.kv.Dv;
    unsigned lane = threadIdx.x % LANES, row = threadIdx.x / LANES * 4; /* the first of this thread's */
    int t[4];
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        t[r] = row_position(x, row + r);
    }
    for (unsigned r = row / 4; r < ROWS; r += ROWS / 4) {
        bool there = row_position(x, r) >= 0;
        tile_row(q + r * tile_ld(D),
                 there ? row_f32(job.q, x.n + r / x.heads) + (x.h + r % x.heads) * D : NULL, D);
    }
    float M[4] = {none, none, none, none}, L[4] = {0}, total[4][4 * GROUPS] = {{0}};
    float m[4] = {none, none, none, none}, l[4] = {0}, acc[4][4 * GROUPS] = {{0}};
    for (int base = x.first; base < x.stop; base += KEYS) {
        int32_t block = x.blocks[base / (int)KEYS];
        float s[4][E], shrink[4];
        __syncthreads(); /* q is there; kv and p are free */
        load_keys(kv, reinterpret_cast<const float *>(block_k(job.kv, block, x.g)), D);
        __syncthreads();
        dots<KEYS>(s, q, kv, D);
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            float largest = none;
#pragma unroll
            for (unsigned e = 0; e < E; e++) {
                int j = base + (int)(lane + e * LANES);
                s[r][e] = j <= t[r] && t[r] - j < job.window ? s[r][e] * job.scale : none;
                largest = f_max(largest, s[r][e]);
            }
            largest = f_max(m[r], warp_max<LANES>(largest));
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
        load_values(kv, reinterpret_cast<const float *>(block_v(job.kv, block, x.g)), Dv, x.seen - base,
                    x.end - base);
        __syncthreads();
#pragma unroll
        for (unsigned i = 0; i < GROUPS; i++) {
            unsigned column = group_column(i, Dv);
            for (unsigned quarter = 0; quarter < KEYS; quarter += QUARTER) {
                float c[4][4] = {{0}};
                products<ROWS>(c, p, kv, tile_ld(Dv), column, quarter, quarter + QUARTER);
#pragma unroll
                for (unsigned k = 0; k < 16; k++) {
                    float *a = &acc[k / 4][4 * i + k % 4], part = c[k / 4][k % 4];
                    *a = quarter == 0 ? fmaf(*a, shrink[k / 4], part) : *a + part;
                }
            }
        }
        if (!chunk_ends(x, base)) {
            continue;
        }
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            float sum = warp_sum<LANES>(l[r]), a, b;
            size_t head = (x.n + (row + r) / x.heads) * job.H + x.h + (row + r) % x.heads;
            size_t part = head * job.chunks + (size_t)(base / (int)CHUNK);
            if (job.chunks > 0 && t[r] >= 0 && lane == 0) {
                job.m[part] = m[r];
                job.l[part] = sum;
            }
            merge(&M[r], &L[r], m[r], sum, &a, &b);
            m[r] = none;
            l[r] = 0.0f;
#pragma unroll
            for (unsigned c = 0; c < 4 * GROUPS; c++) {
                unsigned column = c / 4 * KEYS + 4 * lane + c % 4;
                if (job.chunks == 0) {
                    total[r][c] = fmaf(acc[r][c], b, total[r][c] * a);
                } else if (t[r] >= 0 && column < Dv) {
                    job.acc[part * Dv + column] = acc[r][c];
                }
                acc[r][c] = 0.0f;
            }
        }
    }
#pragma unroll
    for (unsigned r = 0; r < 4; r++) {
        size_t n = x.n + (row + r) / x.heads, h = x.h + (row + r) % x.heads;
        if (job.chunks > 0 || t[r] < 0) {
            continue;
        }
        if (lane == 0) {
            row_f32(job.lse, n)[h] = M[r] + f_log(L[r]);
        }
#pragma unroll
        for (unsigned c = 0; c < 4 * GROUPS; c++) {
            unsigned column = c / 4 * KEYS + 4 * lane + c % 4;
            if (column < Dv) {
                row_f32(job.o, n)[h * Dv + column] = total[r][c] / L[r];
            }
        }
    }
    __syncthreads(); /* q may be written again */
}

/* Packed rows blockIdx.x step .., the last blocks first, whose keys are most. */
template <unsigned ROWS, unsigned GROUPS>
static __global__ void __launch_bounds__(4 * ROWS)
attention_fwd_kernel(fwd_job job)
{
    DYNAMIC_SHARED(float, q);
    float *kv = q + ROWS * tile_ld(job.kv.D);
    float *p = kv + KEYS * tile_ld(max(job.kv.D, job.kv.Dv));
    size_t n = (size_t)(gridDim.x - 1 - blockIdx.x) * job.step, end = min(n + job.step, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        behind = min(end, (size_t)job.seqs.q_start[job.seqs.seq[n] + 1]);
        fwd_tile x = tile_of(job, n, behind, blockIdx.y);
        if (x.first < x.stop) {
            tile_fwd<ROWS, GROUPS>(job, x, q, kv, p);
        }
    }
}

/* o and lse of row blockIdx.x, head blockIdx.y, from its chunks: a thread per column. */
static __global__ void
merge_kernel(fwd_job job)
{
    size_t n = blockIdx.x, h = blockIdx.y, Dv = job.kv.Dv;
    int t = job.seqs.pos[n], first = max(0, t + 1 - job.window) / (int)CHUNK, last = t / (int)CHUNK;
    size_t part = (n * job.H + h) * job.chunks;
    float M = -__uint_as_float(INFINITE), L = 0.0f, total = 0.0f, a, b;
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

template <unsigned ROWS>
static r1_code
tile_launch(r1_dev *dev, const fwd_job &job, dim3 grid, r1_status *st)
{
    unsigned D = tile_ld(job.kv.D), kv = tile_ld(max(job.kv.D, job.kv.Dv));
    size_t shared = (ROWS * D + KEYS * kv + KEYS * (ROWS + 4)) * sizeof(float);
    if (job.kv.Dv <= 64) {
        return LAUNCH(dev, st, (attention_fwd_kernel<ROWS, 1>), grid, 4 * ROWS, shared, job);
    }
    if (job.kv.Dv <= 128) {
        return LAUNCH(dev, st, (attention_fwd_kernel<ROWS, 2>), grid, 4 * ROWS, shared, job);
    }
    return LAUNCH(dev, st, (attention_fwd_kernel<ROWS, 4>), grid, 4 * ROWS, shared, job);
}

static r1_code
fwd_launch(r1_dev *dev, const fwd_job &job, dim3 grid, bool tall, r1_status *st)
{
    if (job.kv.dtype == R1_BF16) {
        return tall ? mma_launch<false>(dev, job, grid, st) : mma_launch<true>(dev, job, grid, st);
    }
    return tall ? tile_launch<TALL>(dev, job, grid, st) : tile_launch<FLAT>(dev, job, grid, st);
}

/* A tile is tall where sequences have many rows. Blocks take one chunk each where there would be too few: in a plan
 * that may be, for as many rows as such a grid can have. */
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
    size_t few = 2 * (size_t)dev->processors, most = few * FLAT * chunks; /* blocks; parts of theirs */
    bool split = rows == FLAT && chunks > 1 && (size_t)grid.x * grid.y < few;
    if (split || (dev->pretends && chunks > 1)) {
        void *scratch;
        assert(dev->pretends || parts <= most);
        R1_TRY(dev_scratch(dev, &scratch, min(parts, most) * (kv->Dv + 2) * sizeof(float), st));
        job.chunks = grid.z = (unsigned)chunks;
        job.acc = static_cast<float *>(scratch);
        job.m = job.acc + parts * kv->Dv;
        job.l = job.m + parts;
    }
    R1_TRY(fwd_launch(dev, job, grid, rows == TALL, st));
    return !split ? R1_OK
                  : LAUNCH(dev, st, merge_kernel, dim3(grid_of(seqs->N, 1), (unsigned)H),
                           grid_of(kv->Dv, WARP) * WARP, 0, job);
}
