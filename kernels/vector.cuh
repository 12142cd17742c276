/* vector.cuh - four neighbouring columns of a row at a time: 16 bytes where the address allows it.
 *
 * A thread has columns c .. c + 3 either way, so where a row lies changes neither who adds what nor the order. The
 * launch of elementwise kernels is here too: blocks of 256 threads, as many along a row as it needs, at most all. */
#ifndef R1_VECTOR_CUH
#define R1_VECTOR_CUH

#include "math.cuh"

struct four {
    float x[4];
};

/* Four of a row that has `left` more (1 or more); what is behind its end is 0. */
static __device__ inline four
load_4(const float *p, size_t left)
{
    if (left >= 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
        float4 v = *reinterpret_cast<const float4 *>(p);
        return {{v.x, v.y, v.z, v.w}};
    }
    four a = {};
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        a.x[i] = i < left ? p[i] : 0.0f;
    }
    return a;
}

static __device__ inline void
store_4(float *p, const four &a, size_t left)
{
    if (left >= 4 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
        *reinterpret_cast<float4 *>(p) = make_float4(a.x[0], a.x[1], a.x[2], a.x[3]);
        return;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        if (i < left) {
            p[i] = a.x[i];
        }
    }
}

/* ---- elementwise: a thread has four columns of one row ---- */

static inline dim3
fours_block(size_t cols)
{
    unsigned across = cols <= 128 ? 32 : cols <= 256 ? 64 : cols <= 512 ? 128 : 256;
    return dim3(across, 256 / across);
}

static inline dim3
fours_grid(size_t rows, size_t cols)
{
    dim3 block = fours_block(cols);
    return dim3(grid_of(rows, block.y), grid_of(cols, 4 * (size_t)block.x));
}

static __device__ inline size_t
my_row()
{
    return (size_t)blockIdx.x * blockDim.y + threadIdx.y;
}

static __device__ inline size_t
my_column()
{
    return 4 * ((size_t)blockIdx.y * blockDim.x + threadIdx.x);
}

#endif
