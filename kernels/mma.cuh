/* mma.cuh - the tensor-core instructions that kernels use: the one place with PTX, and what takes its place
 * in the emulation.
 *
 *   mma_bf16      c (16, 8) += a (16, 16) b (16, 8), bf16 in, float32 out: mma.sync m16n8k16, sm_80 and up
 *   load_matrix   8 x 8 tiles of 16-bit numbers from shared memory to registers: ldmatrix
 *   round_pair    two float32 to two bf16: cvt.rn.bf16x2, math.cuh's bf16_pair
 *   copy_16       16 bytes from global to shared memory behind the threads' backs: cp.async; copy_4: 4 bytes
 *
 * Fragments of lane l, with g = l / 4 and t = l % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"); two bf16 in
 * 32 bits, the lower column or row in the lower half:
 *   a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8)    row, first column
 *   b[0] (2t, g), b[1] (2t + 8, g)                                            first row, column
 *   c[0] (g, 2t), c[1] (g, 2t + 1), c[2] (g + 8, 2t), c[3] (g + 8, 2t + 1)
 *
 * The order in which the hardware adds the 16 products is its own and fixed; one op uses one sequence of
 * these instructions for an element, whatever the number of rows: that makes its bits. The emulation adds
 * in index order, with fused multiply-adds. */
#ifndef R1_MMA_CUH
#define R1_MMA_CUH

#include "math.cuh"

#ifdef __CUDACC__

static __device__ inline void
mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* bf16_pair in one instruction. */
static __device__ inline uint32_t
round_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Four tiles: lane l gives the address of row l % 8 of tile l / 8 (16 bytes, aligned); r[i] is then tile i's
 * row l / 4, columns 2 (l % 4) and the next. Transposed: its column l / 4. */
static __device__ inline void
load_matrix(uint32_t r[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ inline void
load_matrix_transposed(uint32_t r[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* bytes <= 16 are copied, the rest of the 16 is 0; both addresses 16-byte aligned. */
static __device__ inline void
copy_16(void *shared, const void *global, int bytes)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(at), "l"(global), "r"(bytes) : "memory");
}

/* One float, or 0 and nothing is read. */
static __device__ inline void
copy_4(float *shared, const float *global, bool copied)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(at), "l"(global), "r"(copied ? 4 : 0) : "memory");
}

/* What this thread has started since the last commit is one group; wait until at most `left` of its newest
 * groups are under way, then __syncthreads for what other threads have copied. */
static __device__ inline void
copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int left>
static __device__ inline void
copy_wait()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(left) : "memory");
}

#else
#include <mma_emulated.h>

static __device__ inline uint32_t
round_pair(float low, float high)
{
    return bf16_pair(low, high);
}
#endif

#endif
