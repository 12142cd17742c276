/* attention_tile.cuh - float32 attention, forward and backward: tiles of rows in shared memory, and the two
 * small products of attention on them.
 *
 *   dots       s[a][b]  = chain over d of A[a][d] B[b][d]          a chain of fused multiply-adds
 *   products   y[a][c] += chain over b of P[b][a] X[b][c]
 *
 * a < ROWS are rows that something is summed up for, b < COLS rows that are met on the way. A block has
 * 4 ROWS threads; thread (x, y), x < 16, has rows 4 y .. 4 y + 3 of A, rows x, x + 16, .. of B, and columns
 * 4 x .. 4 x + 3 of every 64 of y: so four numbers of A serve four of B, and back, at 16 bytes a load.
 * Every element is one chain, ascending, so nothing depends on the shape of the tile.
 *
 * A tile has a row stride of tile_ld(width): whole groups of 8 floats, which are 0 beyond the width, and 4
 * more, so that the rows of neighbours begin in other banks. */
#ifndef R1_ATTENTION_TILE_CUH
#define R1_ATTENTION_TILE_CUH

#include "attention.cuh"

constexpr unsigned LANES = 16; /* threads that share rows of A */

static __host__ __device__ inline unsigned
tile_ld(size_t width)
{
    return (unsigned)(width + 7) / 8 * 8 + 4;
}

/* One row of a tile, by the 16 threads of one y; from NULL: zeros. */
static __device__ inline void
tile_row(float *to, const float *from, unsigned width)
{
    for (unsigned c = threadIdx.x % LANES; c < tile_ld(width); c += LANES) {
        to[c] = from != NULL && c < width ? from[c] : 0.0f;
    }
}

/* s[r][e]: row 4 y + r of a with row x + 16 e of b */
template <unsigned COLS>
static __device__ inline void
dots(float s[4][COLS / LANES], const float *a, const float *b, unsigned width)
{
    unsigned ld = tile_ld(width);
    a += threadIdx.x / LANES * 4 * ld;
    b += threadIdx.x % LANES * ld;
#pragma unroll
    for (unsigned i = 0; i < COLS / LANES * 4; i++) {
        s[i % 4][i / 4] = 0.0f;
    }
    for (unsigned d = 0; d < width; d += 4) {
        float4 ar[4];
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            ar[r] = *reinterpret_cast<const float4 *>(a + r * ld + d);
        }
#pragma unroll
        for (unsigned e = 0; e < COLS / LANES; e++) {
            float4 be = *reinterpret_cast<const float4 *>(b + e * LANES * ld + d);
#pragma unroll
            for (unsigned r = 0; r < 4; r++) {
                s[r][e] = fmaf(ar[r].x, be.x, s[r][e]);
                s[r][e] = fmaf(ar[r].y, be.y, s[r][e]);
                s[r][e] = fmaf(ar[r].z, be.z, s[r][e]);
                s[r][e] = fmaf(ar[r].w, be.w, s[r][e]);
            }
        }
    }
}

/* p (COLS, ROWS + 4) = what dots gave, turned over: products reads four rows of it at once. */
template <unsigned ROWS, unsigned COLS>
static __device__ inline void
keep(float *p, const float s[4][COLS / LANES])
{
    p += threadIdx.x % LANES * (ROWS + 4) + threadIdx.x / LANES * 4;
#pragma unroll
    for (unsigned e = 0; e < COLS / LANES; e++) {
        *reinterpret_cast<float4 *>(p + e * LANES * (ROWS + 4)) =
            make_float4(s[0][e], s[1][e], s[2][e], s[3][e]);
    }
}

/* y[r][i]: row 4 y + r, column `column` + i; b runs from `first` until `end` */
template <unsigned ROWS>
static __device__ inline void
products(float y[4][4], const float *p, const float *x, unsigned ld, unsigned column, unsigned first,
         unsigned end)
{
    p += threadIdx.x / LANES * 4;
    x += column;
#pragma unroll 4
    for (unsigned b = first; b < end; b++) {
        float4 pb = *reinterpret_cast<const float4 *>(p + b * (ROWS + 4));
        float4 xb = *reinterpret_cast<const float4 *>(x + b * ld);
        const float weight[4] = {pb.x, pb.y, pb.z, pb.w};
#pragma unroll
        for (unsigned r = 0; r < 4; r++) {
            y[r][0] = fmaf(weight[r], xb.x, y[r][0]);
            y[r][1] = fmaf(weight[r], xb.y, y[r][1]);
            y[r][2] = fmaf(weight[r], xb.z, y[r][2]);
            y[r][3] = fmaf(weight[r], xb.w, y[r][3]);
        }
    }
}

/* This thread's columns of group i, of 64; those beyond the width read zeros and belong to nobody. */
static __device__ inline unsigned
group_column(unsigned i, unsigned width)
{
    return min(i * KEYS + threadIdx.x % LANES * 4, tile_ld(width) - 4);
}

#endif
