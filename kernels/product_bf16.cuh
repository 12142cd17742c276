/* product_bf16.cuh - a tile of a product on the tensor cores: bf16 operands, float32 sums.
 *
 * An element is ceil(depth / 16) instructions mma m16n8k16 in ascending order that start from c, the last one
 * filled up with zeros. In NT each segment of the depth is such a chain, the first from c, the others from 0, and
 * is added to those before it. Every tile size does this and nothing else, so a row's bits depend neither on how
 * many rows there are nor on the tile they are in. What the 16 products of one instruction add up to is the
 * hardware's affair, and the same wherever they stand in it. This kernel has one segment at a time, or where
 * p.more is given all of them, each in blocks of its own (matmul.cu).
 *
 * A warp has a square of the tile in registers. The operands come to shared memory by 16 bytes, behind the
 * threads' backs, some stages ahead; rows there are 16 bytes longer than they need be, which keeps eight rows
 * of a matrix load out of each other's banks. */
#ifndef R1_PRODUCT_BF16_CUH
#define R1_PRODUCT_BF16_CUH

#include "product.cuh"

constexpr unsigned PAD = 8, K16 = 16; /* elements behind a row of shared memory; terms an instruction adds */

/* Rows and columns that a warp has of a tile. */
static __host__ __device__ constexpr unsigned
warp_side(tile t)
{
    return t.columns < t.rows / 2 ? t.columns : t.rows / 2;
}

static __host__ __device__ constexpr unsigned
bf16_threads(tile t)
{
    return t.rows / warp_side(t) * (t.columns / warp_side(t)) * WARP;
}

/* Elements of a stage: `lines` rows of shared memory of `length` elements. */
static __host__ __device__ constexpr unsigned
stage_size(unsigned lines, unsigned length)
{
    return lines * (length + PAD);
}

static __host__ __device__ constexpr unsigned
stage_of(tile t, unsigned width, bool turned)
{
    return turned ? stage_size(t.depth, width) : stage_size(width, t.depth);
}

constexpr size_t
bf16_shared(form f, tile t)
{
    return t.stages * sizeof(uint16_t) *
           (stage_of(t, t.rows, f == FORM_TN) + stage_of(t, t.columns, f != FORM_NT));
}

/* to [lines][length + PAD] = a part of an operand; beyond what is left of it 0. */
template <unsigned lines, unsigned length, unsigned threads>
static __device__ inline void
fetch(uint16_t *to, const uint16_t *from, size_t ld, unsigned lines_left, unsigned length_left, bool aligned)
{
    constexpr unsigned each = 16 / sizeof *to;
#pragma unroll
    for (unsigned i = threadIdx.x; i < lines * (length / each); i += threads) {
        unsigned line = i / (length / each), first = i % (length / each) * each;
        unsigned left = line < lines_left && first < length_left ? at_most(length_left - first, each) : 0;
        const uint16_t *at = left > 0 ? from + line * ld + first : from;
        uint16_t *there = to + line * (length + PAD) + first;
        if (aligned) {
            copy_16(there, at, (int)(left * sizeof *to));
        } else {
            for (unsigned j = 0; j < each; j++) {
                there[j] = j < left ? at[j] : 0;
            }
        }
    }
}

/* Rows row .. + 15 of a, terms k .. + 15, out of a stage. */
template <bool turned, unsigned length>
static __device__ inline void
take_a(uint32_t to[4], const uint16_t *stage, unsigned row, unsigned k)
{
    unsigned lane = threadIdx.x % WARP;
    if (turned) { /* [depth][rows] */
        unsigned line = k + lane / 16 * 8 + lane % 8;
        load_matrix_transposed(to, stage + line * (length + PAD) + row + lane / 8 % 2 * 8);
    } else {
        load_matrix(to, stage + (row + lane % 16) * (length + PAD) + k + lane / 16 * 8);
    }
}

/* Columns column .. + 15 of b: two fragments of 8. */
template <bool turned, unsigned length>
static __device__ inline void
take_b(uint32_t to[4], const uint16_t *stage, unsigned column, unsigned k)
{
    unsigned lane = threadIdx.x % WARP;
    if (turned) { /* [depth][columns] */
        unsigned line = k + lane / 8 % 2 * 8 + lane % 8;
        load_matrix_transposed(to, stage + line * (length + PAD) + column + lane / 16 * 8);
    } else {
        unsigned line = column + lane / 16 * 8 + lane % 8;
        load_matrix(to, stage + line * (length + PAD) + k + lane / 8 % 2 * 8);
    }
}

/* c += a b over the first `terms` of a stage; row, column: of this warp in the tile. */
template <form F, tile T>
static __device__ inline void
multiply(float (*c)[warp_side(T) / 8][4], const uint16_t *a, const uint16_t *b, unsigned row, unsigned column,
         unsigned terms)
{
    constexpr unsigned ROWS = warp_side(T) / 16, COLUMNS = warp_side(T) / 16;
    constexpr unsigned A_LENGTH = F == FORM_TN ? T.rows : T.depth, B_LENGTH = F == FORM_NT ? T.depth : T.columns;
#pragma unroll
    for (unsigned k = 0; k < T.depth; k += K16) {
        if (k < terms) {
            uint32_t av[ROWS][4], bv[COLUMNS][4];
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
                take_a<F == FORM_TN, A_LENGTH>(av[i], a, row + 16 * i, k);
            }
#pragma unroll
            for (unsigned j = 0; j < COLUMNS; j++) {
                take_b<F != FORM_NT, B_LENGTH>(bv[j], b, column + 16 * j, k);
            }
#pragma unroll
            for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                for (unsigned j = 0; j < 2 * COLUMNS; j++) {
                    mma_bf16(c[i][j], av[i], bv[j / 2] + j % 2 * 2);
                }
            }
        }
    }
}

template <form F, tile T>
static __global__ void __launch_bounds__(bf16_threads(T), 1)
product_bf16_kernel(r1_tensor c, r1_tensor a, r1_tensor b, const float *bias, const int32_t *offsets,
                    product p)
{
    constexpr unsigned SIDE = warp_side(T), ROWS = SIDE / 16, COLUMNS = SIDE / 8, THREADS = bf16_threads(T);
    constexpr unsigned A_STAGE = stage_of(T, T.rows, F == FORM_TN), AHEAD = T.stages - 1;
    constexpr unsigned B_STAGE = stage_of(T, T.columns, F != FORM_NT);
    constexpr unsigned A_LINES = F == FORM_TN ? T.depth : T.rows, B_LINES = F == FORM_NT ? T.columns : T.depth;
    constexpr unsigned A_LENGTH = A_STAGE / A_LINES - PAD, B_LENGTH = B_STAGE / B_LINES - PAD;
    DYNAMIC_SHARED(uint16_t, a_stages);
    uint16_t *b_stages = a_stages + T.stages * A_STAGE;
    part t;
    if (!find_part<F, T>(&t, p, offsets)) {
        return;
    }
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned row = warp % (T.rows / SIDE) * SIDE, column = warp / (T.rows / SIDE) * SIDE;
    if (F == FORM_NT) {
        size_t s = blockIdx.x / (p.row_tiles * p.column_tiles), skip = s * p.segment;
        a.data = static_cast<uint16_t *>(a.data) + skip;
        b.data = static_cast<uint16_t *>(b.data) + skip;
        t.depth = at_most(t.depth - skip, (unsigned)p.segment);
        if (s > 0) {
            c = {p.more + (s - 1) * p.N * p.columns, R1_F32, p.N, p.columns, p.columns};
            p.accumulate = 0;
            bias = NULL;
        }
    }
    const uint16_t *a0 = static_cast<const uint16_t *>(a.data) + a_begin<F>(p, t, a.ld);
    const uint16_t *b0 = static_cast<const uint16_t *>(b.data) + b_begin<F>(p, t, b.ld);
    float *c0 = static_cast<float *>(c.data) + c_begin<F>(p, t, c.ld);
    bool a_aligned = ((uintptr_t)a.data | a.ld * sizeof *a0) % 16 == 0;
    bool b_aligned = ((uintptr_t)b.data | b.ld * sizeof *b0) % 16 == 0;
    bool pairs = ((uintptr_t)c.data | c.ld * sizeof *c0) % sizeof(float2) == 0;

    float sum[ROWS][COLUMNS][4];
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned j = 0; j < COLUMNS; j++) {
#pragma unroll
            for (unsigned k = 0; k < 4; k++) {
                unsigned y = row + 16 * i + lane / 4 + k / 2 * 8, x = column + 8 * j + lane % 4 * 2 + k % 2;
                bool there = y < t.rows && x < t.columns;
                sum[i][j][k] = !there ? 0.0f : p.accumulate ? c0[y * c.ld + x]
                             : bias != NULL ? bias[t.column + x] : 0.0f;
            }
        }
    }
    size_t steps = (t.depth + T.depth - 1) / T.depth;
    for (size_t step = 0; step < steps + AHEAD; step++) {
        if (step >= AHEAD) {
            copy_wait<AHEAD - 1>();
            __syncthreads();
        }
        if (step < steps) {
            size_t k = step * T.depth, at = step % T.stages;
            unsigned left = at_most(t.depth - k, T.depth);
            bool a_turned = F == FORM_TN, b_turned = F != FORM_NT;
            fetch<A_LINES, A_LENGTH, THREADS>(a_stages + at * A_STAGE, a0 + (a_turned ? k * a.ld : k), a.ld,
                                              a_turned ? left : t.rows, a_turned ? t.rows : left, a_aligned);
            fetch<B_LINES, B_LENGTH, THREADS>(b_stages + at * B_STAGE, b0 + (b_turned ? k * b.ld : k), b.ld,
                                              b_turned ? left : t.columns, b_turned ? t.columns : left, b_aligned);
        }
        copy_commit();
        if (step >= AHEAD) {
            size_t now = step - AHEAD, at = now % T.stages;
            unsigned left = at_most(t.depth - now * T.depth, T.depth);
            const uint16_t *av = a_stages + at * A_STAGE;
            const uint16_t *bv = b_stages + at * B_STAGE;
            if (left == T.depth) { /* compiled without a branch */
                multiply<F, T>(sum, av, bv, row, column, T.depth);
            } else {
                multiply<F, T>(sum, av, bv, row, column, left);
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned j = 0; j < COLUMNS; j++) {
#pragma unroll
            for (unsigned k = 0; k < 4; k += 2) {
                unsigned y = row + 16 * i + lane / 4 + k / 2 * 8, x = column + 8 * j + lane % 4 * 2;
                float *to = c0 + y * c.ld + x, one = sum[i][j][k], two = sum[i][j][k + 1];
                if (y < t.rows && x + 1 < t.columns && pairs) {
                    float2 *both = reinterpret_cast<float2 *>(to);
                    *both = p.add ? make_float2(both->x + one, both->y + two) : make_float2(one, two);
                } else if (y < t.rows && x < t.columns) {
                    to[0] = p.add ? to[0] + one : one;
                    if (x + 1 < t.columns) {
                        to[1] = p.add ? to[1] + two : two;
                    }
                }
            }
        }
    }
}

#endif
