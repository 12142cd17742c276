/* attention_mma.cuh - attention over a bf16 KV cache on tensor cores.
 *
 * The equation, the blocks of 64 keys in chunks of 512 and their merging are attention.cu's; keys and values
 * are bf16, and so is q here: the model has rounded it. A product q k is exact, a probability goes into p v as
 * the sum of two bf16 numbers, p = hi + lo + 2^-17 p at most, so that o is near to what float32 gives. Order:
 *   - a score: mma_bf16 over D, 16 at a time, ascending, 0 beyond D;
 *   - l = l c + g0 + g1 + g2 + g3, g of 16 keys, in four sums that are added at the end of the chunk;
 *   - acc = acc c, then for each 16 keys ascending mma_bf16 with hi, mma_bf16 with lo.
 * A K block has its pairs with the even d above, so q is kept the same way round. Key 16 j + 2 c + b of a block
 * is column c of the products 2 j + b: then a lane finds two of its keys side by side, and V's rows are put
 * where that order wants them.
 *
 * A block has four warps and two stages of K and V: one arrives while the other is used. Tall: a warp has 16
 * rows, all keys and all columns. Flat: the warps share 16 rows; each has 16 of the 64 keys and every fourth
 * group of 16 columns, and hands on its maxima, its sums g and its p as fragments. Both do the same
 * instructions on the same numbers for an element of o, so they agree bit for bit. */
#ifndef R1_ATTENTION_MMA_CUH
#define R1_ATTENTION_MMA_CUH

#include "attention.cuh"
#include "mma.cuh"

constexpr unsigned MMA_WARPS = 4, MMA_K = 16, PAIR_LD = KEYS + 8; /* 32-bit words between rows of pairs */
constexpr unsigned MMA_COLUMNS = 128;                             /* of v that a block has, at most */

/* Numbers of a row of q or v in shared memory: whole steps, and 16 bytes so that rows begin in other banks. */
static __host__ __device__ inline unsigned
mma_ld(size_t width)
{
    return (unsigned)(width + MMA_K - 1) / MMA_K * MMA_K + 8;
}

/* What flat warps hand on. */
struct mma_exchange {
    uint4 hi[MMA_WARPS][WARP], lo[MMA_WARPS][WARP]; /* fragments of p, 16 keys each */
    float2 sum[MMA_WARPS][WARP], largest[MMA_WARPS][WARP / 4];
};

/* Shared memory of a block with `rows` rows: q (rows, ld), two stages of K (pairs, PAIR_LD), then of V
 * (64, ld); behind it what flat warps hand on. */
static __host__ __device__ inline size_t
mma_shared(size_t D, size_t columns, unsigned rows)
{
    size_t pairs = (mma_ld(D) - 8) / 2;
    return rows * mma_ld(D) * 2 + 2 * (pairs * PAIR_LD * 4 + KEYS * mma_ld(columns) * 2);
}

/* q of the tile, rounded, number d in place d ^ 1; 0 beyond D and in rows that are not there. */
static __device__ inline void
mma_load_q(uint16_t *q, const fwd_job &job, const fwd_tile &x, unsigned rows)
{
    unsigned D = (unsigned)job.kv.D, ld = mma_ld(D), width = ld - 8;
    for (unsigned i = threadIdx.x; i < rows * width; i += blockDim.x) {
        unsigned r = i / width, d = i % width;
        bool there = d < D && row_position(x, r) >= 0;
        const float *from = row_f32(job.q, x.n + (there ? r / x.heads : 0)) + (x.h + r % x.heads) * D;
        q[r * ld + (d ^ 1u)] = there ? bf16_of(from[d]) : (uint16_t)0;
    }
}

/* Starts the copies of the block at base: K's pairs, and columns `column` .. of V, `columns` of them. Pairs
 * and columns that are not there become 0, and so do values of keys that no row sees. */
static __device__ inline void
mma_fetch(uint32_t *k, uint16_t *v, const fwd_job &job, const fwd_tile &x, int base, unsigned column,
          unsigned columns)
{
    int32_t block = x.blocks[base / (int)KEYS];
    unsigned pairs = (mma_ld(job.kv.D) - 8) / 2, there = (unsigned)(job.kv.D + 1) / 2;
    const uint32_t *from = reinterpret_cast<const uint32_t *>(block_k(job.kv, block, x.g));
    for (unsigned i = threadIdx.x; i < pairs * (KEYS / 4); i += blockDim.x) {
        unsigned row = i / (KEYS / 4), at = i % (KEYS / 4) * 4;
        copy_16(k + row * PAIR_LD + at, row < there ? from + row * KEYS + at : from, row < there ? 16 : 0);
    }
    const uint16_t *values = reinterpret_cast<const uint16_t *>(block_v(job.kv, block, x.g)) + column;
    unsigned Dv = (unsigned)job.kv.Dv, ld = mma_ld(columns), groups = (ld - 8) / 8;
    for (unsigned i = threadIdx.x; i < KEYS * groups; i += blockDim.x) {
        unsigned key = i / groups, at = i % groups * 8;
        unsigned row = key / 16 * 16 + key % 2 * 8 + key % 16 / 2;
        bool seen = base + (int)key >= x.seen && base + (int)key < x.end;
        unsigned left = seen && at < columns ? min(columns - at, 8u) : 0;
        if (Dv % 8 == 0) {
            copy_16(v + row * ld + at, left ? values + key * Dv + at : job.kv.v, (int)left * 2);
        } else {
            for (unsigned c = 0; c < 8; c++) {
                v[row * ld + at + c] = c < left ? values[key * Dv + at + c] : (uint16_t)0;
            }
        }
    }
    copy_commit();
}

/* s[2 j + b]: rows 16 .. of q against column c = key 16 (j0 + j) + 2 c + b */
template <unsigned STEPS>
static __device__ inline void
mma_scores(float s[2 * STEPS][4], const uint16_t *q, const uint32_t *k, unsigned j0, unsigned D)
{
    unsigned lane = threadIdx.x % WARP, ld = mma_ld(D);
#pragma unroll
    for (unsigned i = 0; i < 8 * STEPS; i++) {
        s[i / 4][i % 4] = 0.0f;
    }
    q += lane % 16 * ld + lane / 16 * 8;
    k += lane % 4 * PAIR_LD + lane / 4 * 2 + j0 * MMA_K;
#pragma unroll 4
    for (unsigned d = 0; d < D; d += MMA_K) {
        uint32_t a[4];
        load_matrix(a, q + d);
#pragma unroll
        for (unsigned j = 0; j < STEPS; j++) {
            uint2 low = *reinterpret_cast<const uint2 *>(k + d / 2 * PAIR_LD + j * MMA_K);
            uint2 high = *reinterpret_cast<const uint2 *>(k + (d / 2 + 4) * PAIR_LD + j * MMA_K);
            const uint32_t even[2] = {low.x, high.x}, odd[2] = {low.y, high.y};
            mma_bf16(s[2 * j], a, even);
            mma_bf16(s[2 * j + 1], a, odd);
        }
    }
}

/* p of 16 keys, two products, as the other side of the next product: hi, and what is missing. */
static __device__ inline void
mma_split(uint32_t part[2][4], const float p[2][4])
{
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        float low = p[i / 2][i % 2 * 2], high = p[i / 2][i % 2 * 2 + 1];
        uint32_t hi = round_pair(low, high);
        part[0][i] = hi;
        part[1][i] = round_pair(low - __uint_as_float(hi << 16), high - __uint_as_float(hi & 0xffff0000u));
    }
}

/* acc += p v for 16 keys, with PARTS parts of p; group i of the columns is `first` + i `step`, those from
 * `groups` on are nobody's */
template <unsigned GROUPS, unsigned PARTS>
static __device__ inline void
mma_values(float acc[2 * GROUPS][4], const uint32_t part[PARTS][4], const uint16_t *v, unsigned ld,
           unsigned first, unsigned step, unsigned groups)
{
    constexpr unsigned PAIR = GROUPS > 1 ? 2 : 1; /* groups at a time: no product waits for the one before */
    v += threadIdx.x % 16 * ld + threadIdx.x % WARP / 16 * 8;
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i += PAIR) {
        uint32_t b[PAIR][4];
        if (first + i * step >= groups) {
            break;
        }
#pragma unroll
        for (unsigned u = 0; u < PAIR; u++) {
            load_matrix_transposed(b[u], v + min(first + (i + u) * step, groups - 1) * MMA_K);
        }
#pragma unroll
        for (unsigned u = 0; u < 2 * PAIR * PARTS; u++) {
            unsigned tile = u % (2 * PAIR);
            mma_bf16(acc[2 * i + tile], part[u / (2 * PAIR)], b[tile / 2] + tile % 2 * 2);
        }
    }
}

/* A tile; GROUPS: of 16 columns, all that there may be. */
template <bool flat, unsigned GROUPS>
static __device__ inline void
mma_tile(const fwd_job &job, const fwd_tile &x, unsigned char *shared, unsigned column)
{
    constexpr unsigned STEPS = flat ? 1 : KEYS / MMA_K; /* 16 keys each */
    constexpr unsigned MINE = flat ? GROUPS / MMA_WARPS : GROUPS, ROWS = flat ? 16 : 16 * MMA_WARPS;
    unsigned D = (unsigned)job.kv.D, columns = min((unsigned)job.kv.Dv - column, MMA_COLUMNS);
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row0 = flat ? 0 : 16 * warp;
    unsigned first = flat ? warp : 0, step = flat ? MMA_WARPS : 1, ld = mma_ld(columns), groups = ld / MMA_K;
    unsigned k_words = (mma_ld(D) - 8) / 2 * PAIR_LD;
    uint16_t *q = reinterpret_cast<uint16_t *>(shared);
    uint32_t *k = reinterpret_cast<uint32_t *>(q + ROWS * mma_ld(D)); /* two stages, then V's */
    uint16_t *v = reinterpret_cast<uint16_t *>(k + 2 * k_words);
    mma_exchange *give = reinterpret_cast<mma_exchange *>(shared + mma_shared(D, columns, ROWS));
    const float none = -__uint_as_float(INFINITE);

    const unsigned row[2] = {row0 + lane / 4, row0 + lane / 4 + 8}; /* this lane's */
    const int t[2] = {row_position(x, row[0]), row_position(x, row[1])};
    int earliest = row_position(x, row0), latest = x.pos + (int)(min(row0 + 15, x.count * x.heads - 1) / x.heads);
    float M[2] = {none, none}, L[2] = {0.0f, 0.0f}, total[2 * MINE][4] = {{0}};
    float m[2] = {none, none}, l[2] = {0.0f, 0.0f}, acc[2 * MINE][4] = {{0}};

    mma_load_q(q, job, x, ROWS);
    mma_fetch(k, v, job, x, x.first, column, columns);
    unsigned stage = 0;
    for (int base = x.first; base < x.stop; base += KEYS, stage ^= 1) {
        if (base + (int)KEYS < x.stop) {
            mma_fetch(k + (stage ^ 1) * k_words, v + (stage ^ 1) * KEYS * ld, job, x, base + KEYS, column, columns);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        bool visible = earliest >= 0 && base <= latest && earliest - (base + (int)KEYS - 1) < job.window;
        if (flat || visible) { /* flat warps have the same rows */
            float s[2 * STEPS][4], largest[2], shrink[2];
            mma_scores<STEPS>(s, q + row0 * mma_ld(D), k + stage * k_words, flat ? warp : 0, D);
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                largest[r] = none;
#pragma unroll
                for (unsigned i = 0; i < 4 * STEPS; i++) {
                    unsigned j = i / 4 + (flat ? warp : 0), c = lane % 4 * 2 + i % 2, b = i / 2 % 2;
                    int key = base + (int)(j * MMA_K + c * 2 + b);
                    float *score = &s[i / 2][2 * r + i % 2];
                    *score = key <= t[r] && t[r] - key < job.window ? *score * job.scale : none;
                    largest[r] = f_max(largest[r], *score);
                }
                largest[r] = f_max(largest[r], __shfl_xor_sync(ALL_LANES, largest[r], 1));
                largest[r] = f_max(largest[r], __shfl_xor_sync(ALL_LANES, largest[r], 2));
            }
            if (flat) {
                give->largest[warp][lane / 4] = make_float2(largest[0], largest[1]);
                __syncthreads();
                for (unsigned w = 0; w < MMA_WARPS; w++) {
                    float2 other = give->largest[w][lane / 4];
                    largest[0] = f_max(largest[0], other.x);
                    largest[1] = f_max(largest[1], other.y);
                }
            }
            float2 sum[STEPS];
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                largest[r] = f_max(m[r], largest[r]);
                float from = softmax_base(largest[r]);
                shrink[r] = f_exp(m[r] - from);
                m[r] = largest[r];
                l[r] *= shrink[r];
#pragma unroll
                for (unsigned j = 0; j < STEPS; j++) {
                    float *even = s[2 * j] + 2 * r, *odd = s[2 * j + 1] + 2 * r;
                    even[0] = f_exp(even[0] - from);
                    even[1] = f_exp(even[1] - from);
                    odd[0] = f_exp(odd[0] - from);
                    odd[1] = f_exp(odd[1] - from);
                    (r == 0 ? sum[j].x : sum[j].y) = (even[0] + even[1]) + (odd[0] + odd[1]);
                }
            }
#pragma unroll
            for (unsigned i = 0; i < 8 * MINE; i++) {
                acc[i / 4][i % 4] *= shrink[i % 4 / 2];
            }
            uint32_t p[2][4];
            if (flat) {
                mma_split(p, s);
                give->hi[warp][lane] = make_uint4(p[0][0], p[0][1], p[0][2], p[0][3]);
                give->lo[warp][lane] = make_uint4(p[1][0], p[1][1], p[1][2], p[1][3]);
                give->sum[warp][lane] = sum[0];
                __syncthreads();
            }
#pragma unroll
            for (unsigned j = 0; j < KEYS / MMA_K; j++) {
                float2 part = flat ? give->sum[j][lane] : sum[j % STEPS];
                l[0] += part.x;
                l[1] += part.y;
                if (flat) {
                    uint4 hi = give->hi[j][lane], lo = give->lo[j][lane];
                    p[0][0] = hi.x, p[0][1] = hi.y, p[0][2] = hi.z, p[0][3] = hi.w;
                    p[1][0] = lo.x, p[1][1] = lo.y, p[1][2] = lo.z, p[1][3] = lo.w;
                } else {
                    mma_split(p, s + 2 * (j % STEPS));
                }
                mma_values<MINE, 2>(acc, p, v + (stage * KEYS + j * MMA_K) * ld, ld, first, step, groups);
            }
        }
        if (chunk_ends(x, base)) {
#pragma unroll
            for (unsigned r = 0; r < 2; r++) {
                float a, b, sum = warp_sum<4>(l[r]);
                size_t head = (x.n + row[r] / x.heads) * job.H + x.h + row[r] % x.heads;
                size_t part = head * job.chunks + (size_t)(base / (int)CHUNK);
                if (job.chunks > 0 && t[r] >= 0 && column == 0 && lane % 4 == 0) {
                    job.m[part] = m[r];
                    job.l[part] = sum;
                }
                merge(&M[r], &L[r], m[r], sum, &a, &b);
                m[r] = none;
                l[r] = 0.0f;
#pragma unroll
                for (unsigned i = 0; i < 4 * MINE; i++) {
                    float *of = &acc[i / 2][2 * r + i % 2];
                    unsigned c = (first + i / 4 * step) * MMA_K + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2;
                    if (job.chunks == 0) {
                        total[i / 2][2 * r + i % 2] = fmaf(*of, b, total[i / 2][2 * r + i % 2] * a);
                    } else if (t[r] >= 0 && c < columns) {
                        job.acc[part * job.kv.Dv + column + c] = *of;
                    }
                    *of = 0.0f;
                }
            }
        }
        __syncthreads(); /* the stage may be written again */
    }
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        size_t n = x.n + row[r] / x.heads, h = x.h + row[r] % x.heads;
        if (job.chunks > 0 || t[r] < 0) {
            continue;
        }
        if (column == 0 && lane % 4 == 0) {
            row_f32(job.lse, n)[h] = M[r] + f_log(L[r]);
        }
#pragma unroll
        for (unsigned i = 0; i < 4 * MINE; i++) {
            unsigned c = (first + i / 4 * step) * MMA_K + i / 2 % 2 * 8 + lane % 4 * 2 + i % 2;
            if (c < columns) {
                row_f32(job.o, n)[h * job.kv.Dv + column + c] = total[i / 2][2 * r + i % 2] / L[r];
            }
        }
    }
}

/* grid.y: parts of the heads, times halves of v's columns where they are more than MMA_COLUMNS */
template <bool flat, unsigned GROUPS>
static __global__ void __launch_bounds__(MMA_WARPS * WARP)
attention_mma_kernel(fwd_job job)
{
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned halves = (unsigned)(job.kv.Dv + MMA_COLUMNS - 1) / MMA_COLUMNS;
    size_t n = (size_t)(gridDim.x - 1 - blockIdx.x) * job.step, end = min(n + job.step, job.seqs.N);
    for (size_t behind; n < end; n = behind) {
        behind = min(end, (size_t)job.seqs.q_start[job.seqs.seq[n] + 1]);
        fwd_tile x = tile_of(job, n, behind, blockIdx.y / halves);
        if (x.first < x.stop) {
            mma_tile<flat, GROUPS>(job, x, shared, blockIdx.y % halves * MMA_COLUMNS);
        }
    }
}

template <bool flat>
static r1_code
mma_launch(r1_dev *dev, const fwd_job &job, dim3 grid, r1_status *st)
{
    size_t columns = min(job.kv.Dv, (size_t)MMA_COLUMNS);
    size_t shared = flat ? mma_shared(job.kv.D, columns, 16) + sizeof(mma_exchange)
                         : mma_shared(job.kv.D, columns, 16 * MMA_WARPS);
    grid.y *= grid_of(job.kv.Dv, MMA_COLUMNS);
    if (columns <= 64) {
        return LAUNCH(dev, st, (attention_mma_kernel<flat, 4>), grid, MMA_WARPS * WARP, shared, job);
    }
    return LAUNCH(dev, st, (attention_mma_kernel<flat, 8>), grid, MMA_WARPS * WARP, shared, job);
}

#endif
