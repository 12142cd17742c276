/* product_few.cuh - y (N, O) [+]= x (N, I) W^T + bias of at most 16 rows, or of experts with about as few: what
 * decoding does at every step. bf16 weights, x float32 and rounded on its way to registers.
 *
 * An element is what product_bf16.cuh makes of it: a chain of mma m16n8k16 for each segment of I, the sums of
 * segments added in ascending order. Here the time is that of reading W once, so the point is to have much of it
 * under way: a warp has 8 columns of a segment, and FEW_STAGES - 1 stages of its 8 rows of W fly ahead of it.
 * Side by side in a block are warps of COLUMNS / 8 neighbours, which share their x, and of so many segments as
 * shared memory holds (`groups`); their sums meet there. What COLUMNS and groups are, no bit depends on. */
#ifndef R1_PRODUCT_FEW_CUH
#define R1_PRODUCT_FEW_CUH

#include "product_bf16.cuh"

constexpr unsigned FEW_ROWS = 16, FEW_DEPTH = 64, FEW_STAGES = 8, FEW_LENGTH = FEW_DEPTH + PAD;
constexpr unsigned FEW_WARPS = 8;               /* of a block, at most */
constexpr size_t FEW_SHARED = 96 * 1024;        /* two blocks to a multiprocessor */

static __host__ __device__ constexpr tile
few_tile(unsigned columns)
{
    return {FEW_ROWS, columns, FEW_DEPTH, FEW_STAGES};
}

/* Bytes of a stage of one group, and of all that a group has. rows: of x that there are at most. */
static __host__ __device__ constexpr size_t
few_stage(unsigned columns, unsigned rows)
{
    return FEW_LENGTH * (rows * sizeof(float) + columns * sizeof(uint16_t));
}

static __host__ __device__ constexpr size_t
few_shared(unsigned columns, unsigned rows)
{
    return FEW_STAGES * few_stage(columns, rows) + FEW_ROWS * columns * sizeof(float);
}

/* How many segments a block has at a time. */
static unsigned
few_groups(const product &p, unsigned columns)
{
    size_t fit = FEW_SHARED / few_shared(columns, at_most(p.N, FEW_ROWS)), most = FEW_WARPS / (columns / 8);
    fit = fit < 1 ? 1 : fit < most ? fit : most;
    return at_most(p.segments, (unsigned)fit);
}

/* to [lines][FEW_LENGTH] = FEW_DEPTH numbers of each line, by one group's threads; what is not there is 0. */
template <class X, unsigned THREADS>
static __device__ inline void
few_fetch(X *to, const X *from, size_t ld, unsigned lines, unsigned lines_left, unsigned left, bool aligned,
          unsigned thread)
{
    constexpr unsigned each = 16 / sizeof(X), pieces = FEW_DEPTH / each;
#pragma unroll 4
    for (unsigned i = thread; i < lines * pieces; i += THREADS) {
        unsigned line = i / pieces, first = i % pieces * each;
        unsigned have = line < lines_left && first < left ? at_most(left - first, each) : 0;
        const X *at = have > 0 ? from + line * ld + first : from;
        X *there = to + line * FEW_LENGTH + first;
        if (aligned) {
            copy_16(there, at, (int)(have * sizeof(X)));
        } else {
            for (unsigned j = 0; j < each; j++) {
                there[j] = j < have ? at[j] : X();
            }
        }
    }
}

/* c += rows of x times 8 columns, over a stage's first `left` terms. x [rows][FEW_LENGTH], w [8][FEW_LENGTH] */
static __device__ inline void
few_multiply(float c[4], const float *x, const uint16_t *w, unsigned rows, unsigned left)
{
    unsigned lane = threadIdx.x;
#pragma unroll
    for (unsigned k = 0; k < FEW_DEPTH; k += 2 * K16) {
        uint32_t b[4], a[4];
        load_matrix(b, w + lane % 8 * FEW_LENGTH + k + lane / 8 * 8);
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            if (k + half * K16 < left) {
#pragma unroll
                for (unsigned i = 0; i < 4; i++) {
                    unsigned row = lane / 4 + i % 2 * 8, at = k + half * K16 + lane % 4 * 2 + i / 2 * 8;
                    float2 two = row < rows ? *reinterpret_cast<const float2 *>(x + row * FEW_LENGTH + at)
                                            : make_float2(0.0f, 0.0f);
                    a[i] = round_pair(two.x, two.y);
                }
                mma_bf16(c, a, b + 2 * half);
            }
        }
    }
}

/* Blocks of (32, COLUMNS / 8, groups) threads. */
template <unsigned COLUMNS>
static __global__ void __launch_bounds__(FEW_WARPS * WARP, 2)
product_few_kernel(r1_tensor c, r1_tensor a, r1_tensor b, const float *bias, const int32_t *offsets,
                   product p)
{
    constexpr unsigned AHEAD = FEW_STAGES - 1, THREADS = COLUMNS / 8 * WARP, COUNT = FEW_ROWS * COLUMNS;
    DYNAMIC_SHARED(unsigned char, shared);
    part t;
    if (!find_part<FORM_NT, few_tile(COLUMNS)>(&t, p, offsets)) {
        return;
    }
    unsigned lane = threadIdx.x, group = threadIdx.z, groups = blockDim.z, thread = threadIdx.y * WARP + lane;
    unsigned kept = at_most(p.N, FEW_ROWS);
    size_t stage = few_stage(COLUMNS, kept);
    unsigned char *stages = shared + group * FEW_STAGES * stage;
    float *sums = reinterpret_cast<float *>(shared + groups * FEW_STAGES * stage); /* [groups][16][COLUMNS] */
    const float *a0 = static_cast<const float *>(a.data) + a_begin<FORM_NT>(p, t, a.ld);
    const uint16_t *b0 = static_cast<const uint16_t *>(b.data) + b_begin<FORM_NT>(p, t, b.ld);
    float *c0 = static_cast<float *>(c.data) + c_begin<FORM_NT>(p, t, c.ld);
    bool a_aligned = ((uintptr_t)a.data | a.ld * sizeof *a0) % 16 == 0;
    bool b_aligned = ((uintptr_t)b.data | b.ld * sizeof *b0) % 16 == 0;
    size_t steps = p.segment / FEW_DEPTH;
    float total[4];

    for (size_t s0 = 0; s0 < p.segments; s0 += groups) {
        size_t s = s0 + group, begin = s * p.segment, end = begin + p.segment < p.depth ? begin + p.segment : p.depth;
        float sum[4];
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            unsigned y = lane / 4 + k / 2 * 8, x = threadIdx.y * 8 + lane % 4 * 2 + k % 2;
            sum[k] = s > 0 || y >= t.rows || x >= t.columns ? 0.0f
                   : p.accumulate ? c0[y * c.ld + x] : bias != NULL ? bias[t.column + x] : 0.0f;
        }
        for (size_t step = 0; step < steps + AHEAD; step++) {
            if (step >= AHEAD) {
                copy_wait<AHEAD - 1>();
                __syncthreads();
            }
            if (step < steps) {
                size_t k = begin + step * FEW_DEPTH;
                unsigned left = k < end ? at_most(end - k, FEW_DEPTH) : 0;
                float *to = reinterpret_cast<float *>(stages + step % FEW_STAGES * stage);
                k = left > 0 ? k : 0;
                few_fetch<float, THREADS>(to, a0 + k, a.ld, t.rows, t.rows, left, a_aligned, thread);
                few_fetch<uint16_t, THREADS>(reinterpret_cast<uint16_t *>(to + kept * FEW_LENGTH), b0 + k, b.ld,
                                             COLUMNS, t.columns, left, b_aligned, thread);
            }
            copy_commit();
            if (step >= AHEAD) {
                size_t now = step - AHEAD, k = begin + now * FEW_DEPTH;
                const float *from = reinterpret_cast<float *>(stages + now % FEW_STAGES * stage);
                const uint16_t *w = reinterpret_cast<const uint16_t *>(from + kept * FEW_LENGTH);
                few_multiply(sum, from, w + threadIdx.y * 8 * FEW_LENGTH, t.rows,
                             k < end ? at_most(end - k, FEW_DEPTH) : 0);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            unsigned y = lane / 4 + k / 2 * 8, x = threadIdx.y * 8 + lane % 4 * 2 + k % 2;
            sums[group * COUNT + y * COLUMNS + x] = sum[k];
        }
        __syncthreads();
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            unsigned i = group * THREADS + thread + k * groups * THREADS;
            for (unsigned g = 0; i < COUNT && g < groups && s0 + g < p.segments; g++) {
                float more = sums[g * COUNT + i];
                total[k] = s0 + g > 0 ? total[k] + more : more;
            }
        }
        __syncthreads(); /* stages and sums may be written again */
    }
#pragma unroll
    for (unsigned k = 0; k < 4; k++) {
        unsigned i = group * THREADS + thread + k * groups * THREADS, y = i / COLUMNS, x = i % COLUMNS;
        if (i < COUNT && y < t.rows && x < t.columns) {
            c0[y * c.ld + x] = total[k];
        }
    }
}

#endif
