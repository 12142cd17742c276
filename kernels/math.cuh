/* math.cuh - the one exp, log, sigmoid, bf16 rounding of the CUDA backend, and sums and maxima over warps
 * and blocks.
 *
 * The functions are those of csrc/cpu/simd.h and bf16.h, operation for operation, so that a float32 op with
 * the CPU's order of sums has the bits of its AVX tiers. No libm, no fast intrinsics; where a fused
 * multiply-add is meant it is written (--fmad=false). Sums are one fixed tree: by halves inside a warp,
 * then warps the same way; their order depends on blockDim alone, which an op derives from the width of a
 * row, never from the number of rows. */
#ifndef R1_MATH_CUH
#define R1_MATH_CUH

#include "cuda.cuh"

constexpr unsigned WARP = 32;
#define ALL_LANES 0xffffffffu

/* ---- bf16: the upper half of a float32, to the nearest, ties to even; NaN stays ---- */

static __device__ inline uint16_t
bf16_of(float a)
{
    uint32_t bits = __float_as_uint(a);
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return (uint16_t)(((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) >> 16);
}

static __device__ inline float
f32_of(uint16_t a)
{
    return __uint_as_float((uint32_t)a << 16);
}

static __device__ inline float
bf16_round(float a)
{
    return f32_of(bf16_of(a));
}

/* Two neighbours as tensor cores take them: the lower index in the LOWER half (not as a KV block's K). */
static __device__ inline uint32_t
bf16_pair(float low, float high)
{
    return (uint32_t)bf16_of(low) | (uint32_t)bf16_of(high) << 16;
}

/* ---- functions ---- */

/* The larger one; a NaN in either gives b, and so does a tie. */
static __device__ inline float
f_max(float a, float b)
{
    return a > b ? a : b;
}

/* exp(x), about 1 ulp; exp(0) is exactly 1; below -87.3 it is 0, above 88.37 infinity; NaN stays. */
static __device__ inline float
f_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 x 2^23: adding it rounds to an integer */
    float t = fmaf(x, 1.44269504088896341f, magic);
    float n = t - magic;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    uint32_t bits = (__float_as_uint(t) - __float_as_uint(magic) + 127u) << 23;
    float y = x < -87.3f ? 0.0f : p * __uint_as_float(bits);
    return x > 88.37f ? __uint_as_float(0x7f800000u) : y;
}

/* log(x) for x >= 0, about 1 ulp; log(0) is -infinity, log(1) exactly 0; negative x gives NaN. */
static __device__ inline float
f_log(float x)
{
    bool tiny = x < 0x1p-126f;
    uint32_t bits = __float_as_uint(tiny ? x * 0x1p25f : x);
    int e = (int)(bits >> 23 & 255u) - 126 - (tiny ? 25 : 0);
    float m = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u); /* [1/2, 1) */
    bool low = m < 0.707106781186547524f;
    e -= low;
    m = (low ? m + m : m) - 1.0f;
    float ef = (float)e, z = m * m;
    float p = 7.0376836292e-2f;
    p = fmaf(p, m, -1.1514610310e-1f);
    p = fmaf(p, m, 1.1676998740e-1f);
    p = fmaf(p, m, -1.2420140846e-1f);
    p = fmaf(p, m, 1.4249322787e-1f);
    p = fmaf(p, m, -1.6668057665e-1f);
    p = fmaf(p, m, 2.0000714765e-1f);
    p = fmaf(p, m, -2.4999993993e-1f);
    p = fmaf(p, m, 3.3333331174e-1f);
    float y = p * (m * z);
    y = fmaf(ef, -2.12194440e-4f, y);
    y = fmaf(z, -0.5f, y);
    y = fmaf(ef, 0.693359375f, m + y);
    const float infinite = __uint_as_float(0x7f800000u);
    y = x == 0.0f ? -infinite : y;
    y = x == infinite ? x : y;
    return x >= 0.0f ? y : __uint_as_float(0x7fc00000u);
}

/* 1 / (1 + exp(-x)) */
static __device__ inline float
f_sigmoid(float x)
{
    return 1.0f / (1.0f + f_exp(-x));
}

/* ---- over a warp (or each `lanes` neighbours of it), over a block: every thread gets the result ---- */

template <unsigned lanes = WARP, class T>
static __device__ inline T
warp_sum(T a)
{
    for (unsigned step = lanes / 2; step > 0; step /= 2) {
        a += __shfl_xor_sync(ALL_LANES, a, step);
    }
    return a;
}

template <unsigned lanes = WARP>
static __device__ inline float
warp_max(float a)
{
    for (unsigned step = lanes / 2; step > 0; step /= 2) {
        a = f_max(a, __shfl_xor_sync(ALL_LANES, a, step));
    }
    return a;
}

/* blockDim is (a multiple of 32, 1, 1); all threads call. */
static __device__ inline float
block_sum(float a)
{
    SHARED(warps, float[WARP]);
    unsigned lane = threadIdx.x % WARP, count = blockDim.x / WARP;
    a = warp_sum(a);
    if (count == 1) {
        return a;
    }
    if (lane == 0) {
        warps[threadIdx.x / WARP] = a;
    }
    __syncthreads();
    a = warp_sum(lane < count ? warps[lane] : 0.0f);
    __syncthreads(); /* warps may be written again */
    return a;
}

static __device__ inline float
block_max(float a)
{
    SHARED(warps, float[WARP]);
    unsigned lane = threadIdx.x % WARP, count = blockDim.x / WARP;
    a = warp_max(a);
    if (count == 1) {
        return a;
    }
    if (lane == 0) {
        warps[threadIdx.x / WARP] = a;
    }
    __syncthreads();
    a = warp_max(warps[lane < count ? lane : 0]);
    __syncthreads();
    return a;
}

/* Threads of a block that has a row of `cols` floats to itself: a function of the width alone. */
static inline unsigned
row_threads(size_t cols)
{
    return cols <= 256 ? WARP : cols <= 1024 ? 4 * WARP : 8 * WARP;
}

#endif
