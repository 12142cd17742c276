/* product_f32.cuh - a tile of a product in float32: every element one chain of fused multiply-adds over the
 * depth in ascending order, as on the CPU.
 *
 * 256 threads stand 16 x 16 and have rows / 16 x columns / 16 elements each in registers. Both operands lie in
 * shared memory with the depth as their rows; single floats are copied there behind the threads' backs, from
 * any address, so that no size or stride is special. */
#ifndef R1_PRODUCT_F32_CUH
#define R1_PRODUCT_F32_CUH

#include "product.cuh"

constexpr unsigned SIDE = 16, F32_THREADS = SIDE * SIDE, F32_PAD = 4;

constexpr size_t
f32_shared(tile t)
{
    return sizeof(float) * t.stages * t.depth * (t.rows + t.columns + 2 * F32_PAD);
}

/* to [depth][width + pad] = an operand whose rows are the depth (`turned`) or whose columns are; beyond what
 * is left of it 0. */
template <bool turned, unsigned width, unsigned depth>
static __device__ inline void
fetch_f32(float *to, const float *from, size_t ld, unsigned width_left, unsigned depth_left)
{
#pragma unroll 2 /* more would keep addresses in registers that the sums need */
    for (unsigned i = threadIdx.x; i < width * depth; i += F32_THREADS) {
        unsigned k = turned ? i / width : i % depth, r = turned ? i % width : i / depth;
        bool there = r < width_left && k < depth_left;
        const float *at = turned ? from + k * ld + r : from + r * ld + k;
        copy_4(to + k * (width + F32_PAD) + r, there ? at : from, there);
    }
}

/* Which row, or column, of the tile is thread t's i-th of `count`: by fours where there are fours. */
template <unsigned count>
static __device__ inline unsigned
place_f32(unsigned i, unsigned t)
{
    return count % 4 == 0 ? i / 4 * 4 * SIDE + 4 * t + i % 4 : i * SIDE + t;
}

template <unsigned count>
static __device__ inline void
take_f32(float *to, const float *from, unsigned t)
{
#pragma unroll
    for (unsigned i = 0; i < count; i++) {
        if (count % 4 != 0) {
            to[i] = from[place_f32<count>(i, t)];
        } else if (i % 4 == 0) {
            float4 v = *reinterpret_cast<const float4 *>(from + place_f32<count>(i, t));
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    }
}

template <form F, tile T>
static __global__ void __launch_bounds__(F32_THREADS, 2)
product_f32_kernel(r1_tensor c, r1_tensor a, r1_tensor b, const float *bias, const int32_t *offsets,
                   product p)
{
    constexpr unsigned ROWS = T.rows / SIDE, COLUMNS = T.columns / SIDE;
    constexpr unsigned A_STAGE = T.depth * (T.rows + F32_PAD), B_STAGE = T.depth * (T.columns + F32_PAD);
    DYNAMIC_SHARED(float, stages);
    part t;
    if (!find_part<F, T>(&t, p, offsets)) {
        return;
    }
    unsigned x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const float *a0 = static_cast<const float *>(a.data) + a_begin<F>(p, t, a.ld);
    const float *b0 = static_cast<const float *>(b.data) + b_begin<F>(p, t, b.ld);
    float *c0 = static_cast<float *>(c.data) + c_begin<F>(p, t, c.ld);
    float sum[ROWS][COLUMNS];
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned j = 0; j < COLUMNS; j++) {
            unsigned row = place_f32<ROWS>(i, y), column = place_f32<COLUMNS>(j, x);
            bool there = row < t.rows && column < t.columns;
            sum[i][j] = !there ? 0.0f : p.accumulate ? c0[row * c.ld + column]
                      : bias != NULL ? bias[t.column + column] : 0.0f;
        }
    }
    size_t steps = (t.depth + T.depth - 1) / T.depth;
    for (size_t step = 0; step < steps + T.stages - 1; step++) {
        if (step >= T.stages - 1) {
            copy_wait<T.stages - 2>();
            __syncthreads();
        }
        if (step < steps) {
            float *to = stages + step % T.stages * (A_STAGE + B_STAGE);
            size_t k = step * T.depth;
            unsigned left = at_most(t.depth - k, T.depth);
            fetch_f32<F == FORM_TN, T.rows, T.depth>(to, a0 + (F == FORM_TN ? k * a.ld : k), a.ld, t.rows, left);
            fetch_f32<F != FORM_NT, T.columns, T.depth>(to + A_STAGE, b0 + (F != FORM_NT ? k * b.ld : k), b.ld,
                                                        t.columns, left);
        }
        copy_commit();
        if (step >= T.stages - 1) {
            size_t now = step - (T.stages - 1);
            unsigned left = at_most(t.depth - now * T.depth, T.depth);
            const float *from = stages + now % T.stages * (A_STAGE + B_STAGE);
#pragma unroll
            for (unsigned k = 0; k < T.depth; k++) {
                if (k < left) { /* a product 0 x 0 would make a 0 of -0 */
                    float av[ROWS], bv[COLUMNS];
                    take_f32<ROWS>(av, from + k * (T.rows + F32_PAD), y);
                    take_f32<COLUMNS>(bv, from + A_STAGE + k * (T.columns + F32_PAD), x);
#pragma unroll
                    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
                        for (unsigned j = 0; j < COLUMNS; j++) {
                            sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (unsigned i = 0; i < ROWS; i++) {
#pragma unroll
        for (unsigned j = 0; j < COLUMNS; j++) {
            unsigned row = place_f32<ROWS>(i, y), column = place_f32<COLUMNS>(j, x);
            if (row < t.rows && column < t.columns) {
                c0[row * c.ld + column] = sum[i][j];
            }
        }
    }
}

#endif
