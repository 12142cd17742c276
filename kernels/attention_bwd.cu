/* attention_bwd.cu - gradient of causal attention over whole packed sequences.
 *
 *   p[i,j] = exp(scale q[i] . k[j] - lse[i]),  i - window < j <= i     (recomputed; lse saved)
 *   delta[i] = do[i] . o[i]
 *   ds[i,j] = p[i,j] (do[i] . v[j] - delta[i]) scale
 *   dq[i] = sum_j ds[i,j] k[j]     dk[j] = sum_i ds[i,j] q[i]     dv[j] = sum_i p[i,j] do[i]
 *
 * q, dq (N, H D); k, dk (N, Hkv D); v, dv (N, Hkv Dv); o, dout (N, H Dv); lse (N, H). dq, dk and dv
 * are overwritten. Dao et al. 2022, algorithm 4, with the sums in the order of csrc/cpu/attention_bwd.c:
 *   - a dot product over D or Dv is one chain; delta is sixteen (column c in chain c % 16), added by halves;
 *   - dq: one chain over keys ascending;  dk, dv: one chain over the sequences of the group (ops.h: those
 *     that share a prefix, mostly one) ascending, in each over the KV head's query heads ascending, and
 *     there over queries ascending.
 * So a block owns what it sums up: dq of some rows and one head, which meet the keys before them, or dk
 * and dv of some rows, which meet the queries behind them, in their own sequence and in those that continue
 * it. Scores are computed for both; no block waits for another, and nothing is added in memory.
 * That is float32; attention_bwd_mma.cuh has bf16. */
#include "attention_bwd_mma.cuh"
#include "attention_tile.cuh"

constexpr unsigned MET = 32, PAIRS = MET / LANES; /* rows that are met at a time; of them a thread has */

/* Sixteen threads a row and head. */
static __global__ void
delta_kernel(bwd_job job)
{
    size_t i = (size_t)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    size_t n = min(i / job.H, job.o.rows - 1), h = i % job.H;
    const float *o = row_f32(job.o, n) + h * job.Dv, *dout = row_f32(job.dout, n) + h * job.Dv;
    float sum = 0.0f;
    for (unsigned c = threadIdx.x % LANES; c < job.Dv; c += LANES) {
        sum = fmaf(dout[c], o[c], sum);
    }
    sum = warp_sum<LANES>(sum);
    if (i < job.o.rows * job.H && threadIdx.x % LANES == 0) {
        job.delta[i] = sum;
    }
}

/* Rows first, first + 1, .. of head h of two tensors as tiles of `rows` rows, 0 behind the last of `count`.
 * Keys of a sequence have two parts: from position `split` on they follow row `other`. */
static __device__ inline void
load_tiles(float *a, const r1_tensor &x, unsigned wa, float *b, const r1_tensor &y, unsigned wb, unsigned h,
           unsigned rows, unsigned count, size_t first, unsigned split, size_t other)
{
    for (unsigned i = threadIdx.x / LANES; i < rows; i += blockDim.x / LANES) {
        size_t n = i < split ? first + i : other + (i - split);
        tile_row(a + i * tile_ld(wa), i < count ? row_f32(x, n) + h * wa : NULL, wa);
        tile_row(b + i * tile_ld(wb), i < count ? row_f32(y, n) + h * wb : NULL, wb);
    }
}

/* y (thread's rows and columns) goes to rows n .. n + count - 1 of head h. */
template <unsigned GROUPS>
static __device__ inline void
store(const r1_tensor &to, const float y[GROUPS][4][4], size_t n, unsigned count, unsigned h, unsigned width)
{
    unsigned row = threadIdx.x / LANES * 4;
#pragma unroll
    for (unsigned i = 0; i < GROUPS * 16; i++) {
        unsigned r = i / 4 % 4, column = i / 16 * KEYS + threadIdx.x % LANES * 4 + i % 4;
        if (row + r < count && column < width) {
            row_f32(to, n + row + r)[h * width + column] = y[i / 16][r][i % 4];
        }
    }
}

/* y += p x, MET rows of x */
template <unsigned ROWS, unsigned GROUPS>
static __device__ inline void
add_products(float y[GROUPS][4][4], const float *p, const float *x, unsigned width)
{
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++) {
        products<ROWS>(y[i], p, x, tile_ld(width), group_column(i, width), 0, MET);
    }
}

/* ---- dq: ROWS rows of one head against the keys before them ---- */

template <unsigned ROWS, unsigned GROUPS>
static __global__ void __launch_bounds__(4 * ROWS)
attention_dq_kernel(bwd_job job)
{
    DYNAMIC_SHARED(float, q); /* (ROWS, D), dout (ROWS, Dv), k (MET, D), v (MET, Dv), ds (MET, ROWS + 4) */
    float *dout = q + ROWS * tile_ld(job.D), *k = dout + ROWS * tile_ld(job.Dv);
    float *v = k + MET * tile_ld(job.D), *kept = v + MET * tile_ld(job.Dv);
    unsigned h = blockIdx.y, g = h / (job.H / job.Hkv), y = threadIdx.x / LANES, x = threadIdx.x % LANES;
    size_t n = (size_t)(gridDim.x - 1 - blockIdx.x) * ROWS, end = min(n + ROWS, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        int32_t b = job.seqs.seq[n];
        behind = min(end, (size_t)job.seqs.q_start[b + 1]);
        unsigned count = (unsigned)(behind - n);
        int pos0 = job.seqs.pos0[b], t = job.seqs.pos[n], last = t + (int)count - 1; /* of these rows */
        size_t prefix = (size_t)job.seqs.prefix[b], own = (size_t)job.seqs.q_start[b];
        float sum[GROUPS][4][4] = {{{0}}}, lse[4], delta[4];
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            size_t row = n + min(4 * y + r, count - 1);
            lse[r] = row_f32(job.lse, row)[h];
            delta[r] = job.delta[row * job.H + h];
        }
        load_tiles(q, job.q, job.D, dout, job.dout, job.Dv, h, ROWS, count, n, ROWS, 0);
        for (int j0 = max(0, t + 1 - job.window) / (int)MET * (int)MET; j0 <= last; j0 += MET) {
            float s[4][PAIRS], dp[4][PAIRS];
            unsigned split = (unsigned)min(max(pos0 - j0, 0), (int)MET); /* keys that the prefix has */
            load_tiles(k, job.k, job.D, v, job.v, job.Dv, g, MET, (unsigned)(last + 1 - j0),
                       prefix + (size_t)j0, split, own + (size_t)max(j0 - pos0, 0));
            __syncthreads();
            dots<MET>(s, q, k, job.D);
            dots<MET>(dp, dout, v, job.Dv);
#pragma unroll
            for (unsigned i = 0; i < 4 * PAIRS; i++) {
                unsigned r = i % 4, e = i / 4;
                int far = t + (int)(4 * y + r) - j0 - (int)(x + e * LANES);
                bool seen = 4 * y + r < count && far >= 0 && far < job.window;
                float p = f_exp(s[r][e] * job.scale - lse[r]);
                s[r][e] = seen ? p * (dp[r][e] - delta[r]) * job.scale : 0.0f;
            }
            keep<ROWS, MET>(kept, s);
            __syncthreads();
            add_products<ROWS, GROUPS>(sum, kept, k, job.D);
            __syncthreads(); /* k, v and ds are free */
        }
        store<GROUPS>(job.dq, sum, n, count, h, job.D);
    }
}

/* ---- dk, dv: ROWS rows of one KV head against the queries behind them ---- */

/* Positions begin .. end - 1 of sequence b, heads of KV head g, meet the tile's rows: positions t .. of
 * which the first `count` are in the sequence. */
template <unsigned ROWS, unsigned GROUPS>
static __device__ inline void
meet_queries(const bwd_job &job, float *k, float *v, float *q, float *dout, float *kept,
             float dk[GROUPS][4][4], float dv[GROUPS][4][4], int32_t b, unsigned g, int t, unsigned count)
{
    unsigned share = job.H / job.Hkv, y = threadIdx.x / LANES, x = threadIdx.x % LANES;
    int pos0 = job.seqs.pos0[b], rows = job.seqs.q_start[b + 1] - job.seqs.q_start[b];
    int begin = max(t, pos0), end = pos0 + rows, reach = t + (int)count - 1; /* of the last key */
    end = end - reach > job.window ? reach + job.window : end;
    for (unsigned h = g * share; h < (g + 1) * share; h++) {
        for (int i0 = begin; i0 < end; i0 += MET) {
            float s[4][PAIRS], dp[4][PAIRS];
            size_t n = (size_t)(job.seqs.q_start[b] + i0 - pos0);
            __syncthreads(); /* q, dout and p are free */
            load_tiles(q, job.q, job.D, dout, job.dout, job.Dv, h, MET, (unsigned)(end - i0), n, MET, 0);
            __syncthreads();
            dots<MET>(s, k, q, job.D);
            dots<MET>(dp, v, dout, job.Dv);
#pragma unroll
            for (unsigned e = 0; e < PAIRS; e++) {
                int i = i0 + (int)(x + e * LANES);
                size_t row = n + min(x + e * LANES, (unsigned)(end - 1 - i0));
                float lse = row_f32(job.lse, row)[h], delta = job.delta[row * job.H + h];
#pragma unroll
                for (unsigned r = 0; r < 4; r++) {
                    int far = i - t - (int)(4 * y + r);
                    bool seen = 4 * y + r < count && i < end && far >= 0 && far < job.window;
                    float p = f_exp(s[r][e] * job.scale - lse);
                    s[r][e] = seen ? p : 0.0f;
                    dp[r][e] = seen ? p * (dp[r][e] - delta) * job.scale : 0.0f;
                }
            }
            keep<ROWS, MET>(kept, s);
            keep<ROWS, MET>(kept + MET * (ROWS + 4), dp);
            __syncthreads();
            add_products<ROWS, GROUPS>(dv, kept, dout, job.Dv);
            add_products<ROWS, GROUPS>(dk, kept + MET * (ROWS + 4), q, job.D);
        }
    }
}

template <unsigned ROWS, unsigned GROUPS>
static __global__ void __launch_bounds__(4 * ROWS)
attention_dkv_kernel(bwd_job job)
{
    DYNAMIC_SHARED(float, k); /* (ROWS, D), v (ROWS, Dv), q (MET, D), dout (MET, Dv), 2 (MET, ROWS + 4) */
    float *v = k + ROWS * tile_ld(job.D), *q = v + ROWS * tile_ld(job.Dv);
    float *dout = q + MET * tile_ld(job.D), *kept = dout + MET * tile_ld(job.Dv);
    size_t n = (size_t)blockIdx.x * ROWS, end = min(n + ROWS, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        int32_t b = job.seqs.seq[n], t = job.seqs.pos[n];
        behind = min(end, (size_t)job.seqs.q_start[b + 1]);
        unsigned count = (unsigned)(behind - n);
        float dk[GROUPS][4][4] = {{{0}}}, dv[GROUPS][4][4] = {{{0}}};
        __syncthreads(); /* k and v are free */
        load_tiles(k, job.k, job.D, v, job.v, job.Dv, blockIdx.y, ROWS, count, n, ROWS, 0);
        meet_queries<ROWS, GROUPS>(job, k, v, q, dout, kept, dk, dv, b, blockIdx.y, t, count);
        bool first = job.seqs.pos0[b] == 0; /* of its group: the others continue it */
        for (size_t c = (size_t)b + 1; first && c < job.seqs.B && job.seqs.pos0[c] > 0; c++) {
            if (job.seqs.pos0[c] > t) {
                meet_queries<ROWS, GROUPS>(job, k, v, q, dout, kept, dk, dv, (int32_t)c, blockIdx.y, t,
                                           min(count, (unsigned)(job.seqs.pos0[c] - t)));
            }
        }
        store<GROUPS>(job.dk, dk, n, count, blockIdx.y, job.D);
        store<GROUPS>(job.dv, dv, n, count, blockIdx.y, job.Dv);
    }
}

/* ---- both ---- */

template <unsigned ROWS, unsigned GROUPS>
static r1_code
bwd_launch(r1_dev *dev, const bwd_job &job, r1_status *st)
{
    size_t wide = tile_ld(job.D) + tile_ld(job.Dv), rows = grid_of(job.seqs.N, ROWS);
    size_t tiles = (ROWS + MET) * wide * sizeof(float), kept = MET * (ROWS + 4) * sizeof(float);
    R1_TRY(LAUNCH(dev, st, (attention_dq_kernel<ROWS, GROUPS>), dim3((unsigned)rows, job.H), 4 * ROWS,
                  tiles + kept, job));
    return LAUNCH(dev, st, (attention_dkv_kernel<ROWS, GROUPS>), dim3((unsigned)rows, job.Hkv), 4 * ROWS,
                  tiles + 2 * kept, job);
}

r1_code
CUDA(attention_bwd)(r1_dev *dev, const r1_tensor *dq, const r1_tensor *dk, const r1_tensor *dv,
                    const r1_tensor *dout, const r1_tensor *o, const r1_tensor *lse, const r1_tensor *q,
                    const r1_tensor *k, const r1_tensor *v, const r1_seqs *seqs, size_t H, size_t Hkv,
                    size_t window, float scale, r1_dtype dtype, r1_status *st)
{
    size_t D = k->cols / Hkv, Dv = v->cols / Hkv, wide = max(D, Dv);
    assert(H % Hkv == 0 && D <= R1_MAX_HEAD_DIM && Dv <= R1_MAX_HEAD_DIM);
    bwd_job job = {*dq, *dk, *dv, *dout, *o, *lse, *q, *k, *v, *seqs, (unsigned)H, (unsigned)Hkv,
                   (unsigned)D, (unsigned)Dv, window_keys(window), scale, NULL};
    bool cores = dtype == R1_BF16;
    size_t deltas = (seqs->N * H * sizeof(float) + 255) / 256 * 256; /* aligned as mma's copies want it */
    void *scratch;
    R1_TRY(dev_scratch(dev, &scratch, deltas + (cores ? mma_bwd_bytes(job) : 0), st));
    job.delta = static_cast<float *>(scratch);
    R1_TRY(LAUNCH(dev, st, delta_kernel, grid_of(seqs->N * H * LANES, 256), 256, 0, job));
    if (cores) {
        return mma_bwd_run(dev, job, static_cast<char *>(scratch) + deltas, st);
    }
    if (wide <= 64) {
        return bwd_launch<64, 1>(dev, job, st);
    }
    return wide <= 128 ? bwd_launch<64, 2>(dev, job, st) : bwd_launch<32, 4>(dev, job, st);
}
