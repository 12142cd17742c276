/* attention_bwd_mma.cuh - the gradient of attention on tensor cores, where q, k and v are bf16 already.
 *
 * Equations and the order over blocks of rows are attention_bwd.cu's. What is not bf16 goes into a product as
 * the sum of two bf16 numbers, hi + lo, which is within 2^-17 of it: dout, p and ds (of lo times lo nothing is
 * left). Each element of dq, dk and dv is one chain of mma_bf16 over 16 rows at a time, ascending, for dv
 * p_hi dout_hi, p_lo dout_hi, p_hi dout_lo. What q, k, v and dout are as bf16 is laid out once, heads padded
 * to whole steps with 0, so that tiles are copied 16 bytes at a time. A block has four warps with 16 rows each
 * of what is summed up, and meets 32 rows at a time, of absolute positions: what is added together in one
 * instruction does not depend on where in the batch a sequence stands. Of what is summed up it has 128 columns,
 * as many as its registers hold: of wider heads grid.z has the rest, with the scores computed once more. */
#ifndef R1_ATTENTION_BWD_MMA_CUH
#define R1_ATTENTION_BWD_MMA_CUH

#include "attention_mma.cuh"

constexpr unsigned MMA_ROWS = 16 * MMA_WARPS, MMA_MET = 32, MMA_TILES = MMA_MET / 8;

/* As bf16, heads of `wide` or `wide_v` numbers: q, dout and what dout lacks (N, H, ..), k, v (N, Hkv, ..). */
struct mma_bwd {
    bwd_job job;
    unsigned wide, wide_v;
    uint16_t *q, *k, *v, *dout, *lack;
};

/* to (N, heads, wide) = x (N, heads width) in bf16, or what x lacks then */
static __global__ void
mma_pack_kernel(uint16_t *to, r1_tensor x, unsigned heads, unsigned wide, int lack)
{
    size_t width = x.cols / heads, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < x.rows * heads * wide) {
        size_t c = i % wide, row = i / wide;
        float a = c < width ? row_f32(x, row / heads)[row % heads * width + c] : 0.0f;
        to[i] = bf16_of(lack ? a - bf16_round(a) : a);
    }
}

/* Starts the copies of `rows` rows of head h, row `first` and on, from `split` on row `other` and on; those
 * before `skip` and behind `count` become 0. */
static __device__ inline void
mma_copy_rows(uint16_t *tile, const uint16_t *x, unsigned heads, unsigned h, unsigned wide, unsigned rows,
              unsigned skip, unsigned count, size_t first, unsigned split, size_t other)
{
    unsigned pieces = wide / 8;
    for (unsigned i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        unsigned r = i / pieces, at = i % pieces * 8;
        size_t n = r < split ? first + r : other + (r - split);
        bool there = r >= skip && r < count;
        copy_16(tile + r * (wide + 8) + at, there ? x + (n * heads + h) * wide + at : x, there ? 16 : 0);
    }
}

/* s[i] += 16 rows of a against rows 8 i .. of b */
static __device__ inline void
mma_dots(float s[MMA_TILES][4], const uint16_t *a, const uint16_t *b, unsigned wide)
{
    unsigned lane = threadIdx.x % WARP, ld = wide + 8;
    a += lane % 16 * ld + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8;
#pragma unroll 4
    for (unsigned d = 0; d < wide; d += MMA_K) {
        uint32_t of_a[4], of_b[4];
        load_matrix(of_a, a + d);
#pragma unroll
        for (unsigned i = 0; i < MMA_TILES; i += 2) {
            load_matrix(of_b, b + i * 8 * ld + d);
            mma_bf16(s[i], of_a, of_b);
            mma_bf16(s[i + 1], of_a, of_b + 2);
        }
    }
}

/* acc (this warp's 16 rows) goes to rows n .. n + count - 1 of head h, its columns from group `first` on. */
template <unsigned GROUPS>
static __device__ inline void
mma_store(const r1_tensor &to, const float acc[2 * GROUPS][4], size_t n, unsigned count, unsigned h,
          unsigned first, unsigned width)
{
    unsigned lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (unsigned i = 0; i < 8 * GROUPS; i++) {
        unsigned r = row + i % 4 / 2 * 8, c = first * MMA_K + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (r < count && c < width) {
            row_f32(to, n + r)[h * width + c] = acc[i / 4][i % 4];
        }
    }
}

/* ---- dq: rows of one head against the keys before them ---- */

template <unsigned GROUPS>
static __global__ void __launch_bounds__(MMA_WARPS * WARP)
mma_dq_kernel(mma_bwd x)
{
    DYNAMIC_SHARED(uint16_t, q); /* (64, D), dout and its lack (64, Dv), k (32, D), v (32, Dv) */
    const bwd_job &job = x.job;
    unsigned ld = x.wide + 8, ld_v = x.wide_v + 8;
    uint16_t *dout = q + MMA_ROWS * ld, *lack = dout + MMA_ROWS * ld_v, *k = lack + MMA_ROWS * ld_v;
    uint16_t *v = k + MMA_MET * ld;
    unsigned h = blockIdx.y, g = h / (job.H / job.Hkv), lane = threadIdx.x % WARP;
    unsigned row0 = threadIdx.x / WARP * 16, row = row0 + lane / 4;
    size_t n = (size_t)(gridDim.x - 1 - blockIdx.x) * MMA_ROWS, end = min(n + MMA_ROWS, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        int32_t b = job.seqs.seq[n];
        behind = min(end, (size_t)job.seqs.q_start[b + 1]);
        unsigned count = (unsigned)(behind - n);
        int pos0 = job.seqs.pos0[b], t = job.seqs.pos[n], last = t + (int)count - 1;
        size_t prefix = (size_t)job.seqs.prefix[b], own = (size_t)job.seqs.q_start[b];
        float acc[2 * GROUPS][4] = {{0}}, lse[2], delta[2];
        for (unsigned r = 0; r < 2; r++) {
            size_t of = n + min(row + 8 * r, count - 1);
            lse[r] = row_f32(job.lse, of)[h];
            delta[r] = job.delta[of * job.H + h];
        }
        mma_copy_rows(q, x.q, job.H, h, x.wide, MMA_ROWS, 0, count, n, MMA_ROWS, 0);
        mma_copy_rows(dout, x.dout, job.H, h, x.wide_v, MMA_ROWS, 0, count, n, MMA_ROWS, 0);
        mma_copy_rows(lack, x.lack, job.H, h, x.wide_v, MMA_ROWS, 0, count, n, MMA_ROWS, 0);
        for (int j0 = max(0, t + 1 - job.window) / (int)MMA_MET * (int)MMA_MET; j0 <= last; j0 += MMA_MET) {
            unsigned split = (unsigned)min(max(pos0 - j0, 0), (int)MMA_MET); /* keys that the prefix has */
            size_t first = prefix + (size_t)j0, other = own + (size_t)max(j0 - pos0, 0);
            unsigned there = (unsigned)(last + 1 - j0);
            mma_copy_rows(k, x.k, job.Hkv, g, x.wide, MMA_MET, 0, there, first, split, other);
            mma_copy_rows(v, x.v, job.Hkv, g, x.wide_v, MMA_MET, 0, there, first, split, other);
            copy_commit();
            copy_wait<0>();
            __syncthreads();
            float s[MMA_TILES][4] = {{0}}, dp[MMA_TILES][4] = {{0}};
            mma_dots(s, q + row0 * ld, k, x.wide);
            mma_dots(dp, dout + row0 * ld_v, v, x.wide_v);
            mma_dots(dp, lack + row0 * ld_v, v, x.wide_v);
#pragma unroll
            for (unsigned i = 0; i < 4 * MMA_TILES; i++) {
                unsigned r = i % 4 / 2, j = i / 4 * 8 + lane % 4 * 2 + i % 2;
                int far = t + (int)(row + 8 * r) - j0 - (int)j;
                bool seen = row + 8 * r < count && far >= 0 && far < job.window;
                float p = f_exp(s[i / 4][i % 4] * job.scale - lse[r]);
                s[i / 4][i % 4] = seen ? p * (dp[i / 4][i % 4] - delta[r]) * job.scale : 0.0f;
            }
#pragma unroll
            for (unsigned j = 0; j < MMA_MET / MMA_K; j++) {
                uint32_t ds[2][4];
                mma_split(ds, s + 2 * j);
                mma_values<GROUPS, 2>(acc, ds, k + j * MMA_K * ld, ld, blockIdx.z * GROUPS, 1, x.wide / MMA_K);
            }
            __syncthreads(); /* k and v are free */
        }
        mma_store<GROUPS>(job.dq, acc, n, count, h, blockIdx.z * GROUPS, job.D);
    }
}

/* ---- dk, dv: rows of one KV head against the queries behind them ---- */

/* Shared memory of mma_dkv_kernel. */
struct mma_dkv_tiles {
    uint16_t *k, *v, *q, *dout, *lack; /* (64, D), (64, Dv), (32, D), twice (32, Dv) */
    float *lse, *delta;                /* (32) */
};

/* Rows of sequence b, heads of KV head g, meet the tile's rows: positions t .. of which the first `count` are
 * in the sequence. */
template <unsigned GROUPS>
static __device__ inline void
mma_meet(const mma_bwd &x, const mma_dkv_tiles &tile, float dk[2 * GROUPS][4], float dv[2 * GROUPS][4], int32_t b,
         unsigned g, int t, unsigned count)
{
    const bwd_job &job = x.job;
    unsigned share = job.H / job.Hkv, lane = threadIdx.x % WARP, ld = x.wide + 8, ld_v = x.wide_v + 8;
    unsigned row0 = threadIdx.x / WARP * 16, row = row0 + lane / 4, first = blockIdx.z * GROUPS;
    int pos0 = job.seqs.pos0[b], rows = job.seqs.q_start[b + 1] - job.seqs.q_start[b];
    int begin = max(t, pos0), end = pos0 + rows, reach = t + (int)count - 1; /* of the last key */
    end = end - reach > job.window ? reach + job.window : end;
    for (unsigned h = g * share; h < (g + 1) * share; h++) {
        for (int i0 = begin / (int)MMA_MET * (int)MMA_MET; i0 < end; i0 += MMA_MET) {
            size_t n = (size_t)(job.seqs.q_start[b] + i0 - pos0); /* may lie before the sequence: skip */
            unsigned there = (unsigned)(end - i0), skip = (unsigned)max(begin - i0, 0);
            __syncthreads(); /* the queries' tiles are free */
            mma_copy_rows(tile.q, x.q, job.H, h, x.wide, MMA_MET, skip, there, n, MMA_MET, 0);
            mma_copy_rows(tile.dout, x.dout, job.H, h, x.wide_v, MMA_MET, skip, there, n, MMA_MET, 0);
            mma_copy_rows(tile.lack, x.lack, job.H, h, x.wide_v, MMA_MET, skip, there, n, MMA_MET, 0);
            copy_commit();
            if (threadIdx.x < MMA_MET) {
                size_t of = n + max(skip, min(threadIdx.x, there - 1));
                tile.lse[threadIdx.x] = row_f32(job.lse, of)[h];
                tile.delta[threadIdx.x] = job.delta[of * job.H + h];
            }
            copy_wait<0>();
            __syncthreads();
            float s[MMA_TILES][4] = {{0}}, dp[MMA_TILES][4] = {{0}};
            mma_dots(s, tile.k + row0 * ld, tile.q, x.wide);
            mma_dots(dp, tile.v + row0 * ld_v, tile.dout, x.wide_v);
            mma_dots(dp, tile.v + row0 * ld_v, tile.lack, x.wide_v);
#pragma unroll
            for (unsigned e = 0; e < 4 * MMA_TILES; e++) {
                unsigned r = row + e % 4 / 2 * 8, i = e / 4 * 8 + lane % 4 * 2 + e % 2;
                int far = i0 + (int)i - t - (int)r;
                bool seen = r < count && i >= skip && i < there && far >= 0 && far < job.window;
                float *score = &s[e / 4][e % 4], *ds = &dp[e / 4][e % 4];
                float p = f_exp(*score * job.scale - tile.lse[i]);
                *score = seen ? p : 0.0f;
                *ds = seen ? p * (*ds - tile.delta[i]) * job.scale : 0.0f;
            }
#pragma unroll
            for (unsigned j = 0; j < MMA_MET / MMA_K; j++) {
                uint32_t part[2][4];
                mma_split(part, s + 2 * j);
                mma_values<GROUPS, 2>(dv, part, tile.dout + j * MMA_K * ld_v, ld_v, first, 1, x.wide_v / MMA_K);
                mma_values<GROUPS, 1>(dv, part, tile.lack + j * MMA_K * ld_v, ld_v, first, 1, x.wide_v / MMA_K);
                mma_split(part, dp + 2 * j);
                mma_values<GROUPS, 2>(dk, part, tile.q + j * MMA_K * ld, ld, first, 1, x.wide / MMA_K);
            }
        }
    }
}

template <unsigned GROUPS>
static __global__ void __launch_bounds__(MMA_WARPS * WARP)
mma_dkv_kernel(mma_bwd x)
{
    DYNAMIC_SHARED(uint16_t, shared);
    const bwd_job &job = x.job;
    unsigned ld = x.wide + 8, ld_v = x.wide_v + 8;
    mma_dkv_tiles tile;
    tile.k = shared;
    tile.v = tile.k + MMA_ROWS * ld;
    tile.q = tile.v + MMA_ROWS * ld_v;
    tile.dout = tile.q + MMA_MET * ld;
    tile.lack = tile.dout + MMA_MET * ld_v;
    tile.lse = reinterpret_cast<float *>(tile.lack + MMA_MET * ld_v);
    tile.delta = tile.lse + MMA_MET;
    unsigned g = blockIdx.y;
    size_t n = (size_t)blockIdx.x * MMA_ROWS, end = min(n + MMA_ROWS, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        int32_t b = job.seqs.seq[n], t = job.seqs.pos[n];
        behind = min(end, (size_t)job.seqs.q_start[b + 1]);
        unsigned count = (unsigned)(behind - n);
        float dk[2 * GROUPS][4] = {{0}}, dv[2 * GROUPS][4] = {{0}};
        __syncthreads(); /* k and v are free */
        mma_copy_rows(tile.k, x.k, job.Hkv, g, x.wide, MMA_ROWS, 0, count, n, MMA_ROWS, 0);
        mma_copy_rows(tile.v, x.v, job.Hkv, g, x.wide_v, MMA_ROWS, 0, count, n, MMA_ROWS, 0);
        mma_meet<GROUPS>(x, tile, dk, dv, b, g, t, count);
        bool first = job.seqs.pos0[b] == 0; /* of its group: the others continue it */
        for (size_t c = (size_t)b + 1; first && c < job.seqs.B && job.seqs.pos0[c] > 0; c++) {
            if (job.seqs.pos0[c] > t) {
                mma_meet<GROUPS>(x, tile, dk, dv, (int32_t)c, g, t, min(count, (unsigned)(job.seqs.pos0[c] - t)));
            }
        }
        mma_store<GROUPS>(job.dk, dk, n, count, g, blockIdx.z * GROUPS, job.D);
        mma_store<GROUPS>(job.dv, dv, n, count, g, blockIdx.z * GROUPS, job.Dv);
    }
}

/* ---- launches ---- */

static r1_code
mma_pack(r1_dev *dev, uint16_t *to, const r1_tensor &x, unsigned heads, unsigned wide, int lack, r1_status *st)
{
    return LAUNCH(dev, st, mma_pack_kernel, grid_of(x.rows * heads * wide, 256), 256, 0, to, x, heads, wide, lack);
}

template <unsigned GROUPS>
static r1_code
mma_bwd_launch(r1_dev *dev, const mma_bwd &x, r1_status *st)
{
    const bwd_job &job = x.job;
    size_t ld = x.wide + 8, ld_v = x.wide_v + 8, blocks = grid_of(job.seqs.N, MMA_ROWS);
    size_t dq = (MMA_ROWS + MMA_MET) * ld + (2 * MMA_ROWS + MMA_MET) * ld_v;
    size_t dkv = (MMA_ROWS + MMA_MET) * ld + (MMA_ROWS + 2 * MMA_MET) * ld_v;
    unsigned part = GROUPS * MMA_K, parts = (x.wide + part - 1) / part;
    R1_TRY(LAUNCH(dev, st, (mma_dq_kernel<GROUPS>), dim3((unsigned)blocks, job.H, parts), MMA_WARPS * WARP, 2 * dq, x));
    parts = (max(x.wide, x.wide_v) + part - 1) / part;
    return LAUNCH(dev, st, (mma_dkv_kernel<GROUPS>), dim3((unsigned)blocks, job.Hkv, parts), MMA_WARPS * WARP,
                  2 * dkv + 2 * MMA_MET * sizeof(float), x);
}

/* Bytes of scratch that mma_bwd_run takes. */
static inline size_t
mma_bwd_bytes(const bwd_job &job)
{
    size_t wide = mma_ld(job.D) - 8, wide_v = mma_ld(job.Dv) - 8;
    return job.seqs.N * 2 * ((job.H + job.Hkv) * wide + (2 * job.H + job.Hkv) * wide_v);
}

static r1_code
mma_bwd_run(r1_dev *dev, const bwd_job &job, void *scratch, r1_status *st)
{
    mma_bwd x = {job, mma_ld(job.D) - 8, mma_ld(job.Dv) - 8, static_cast<uint16_t *>(scratch), NULL, NULL, NULL, NULL};
    size_t N = job.seqs.N;
    x.k = x.q + N * job.H * x.wide;
    x.v = x.k + N * job.Hkv * x.wide;
    x.dout = x.v + N * job.Hkv * x.wide_v;
    x.lack = x.dout + N * job.H * x.wide_v;
    R1_TRY(mma_pack(dev, x.q, job.q, job.H, x.wide, 0, st));
    R1_TRY(mma_pack(dev, x.k, job.k, job.Hkv, x.wide, 0, st));
    R1_TRY(mma_pack(dev, x.v, job.v, job.Hkv, x.wide_v, 0, st));
    R1_TRY(mma_pack(dev, x.dout, job.dout, job.H, x.wide_v, 0, st));
    R1_TRY(mma_pack(dev, x.lack, job.dout, job.H, x.wide_v, 1, st));
    return max(x.wide, x.wide_v) <= 64 ? mma_bwd_launch<4>(dev, x, st) : mma_bwd_launch<8>(dev, x, st);
}

#endif
