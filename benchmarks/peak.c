/* peak.c - the limits of a machine that the benchmarks compare with. Compiled when a benchmark
 * runs, with the flags of the tier that the engine chose, on the engine's own vector type and fma,
 * so that a share of the limit is a share of what this tier could do at all.
 *
 * peak_fma     multiply-adds on registers alone: no load, no store, as many independent chains as
 *              registers allow, which is more than latency x units on every processor we know.
 * peak_stream  y = a + b over n floats: two loads and a store an element, again and again.
 * peak_read    the sum of n floats: what a matrix of one row's product could be read at.
 */
#include "../csrc/cpu/simd.h"

#if W == 16
#define CHAINS 24 /* of 32 registers */
#else
#define CHAINS 12 /* of 16 */
#endif

/* Returns its floating-point operations. */
__attribute__((visibility("default"))) double
peak_fma(size_t reps)
{
    vf chain[CHAINS], a = vf_set1(0.75f), b = vf_set1(0.25f), sum = {0};
    for (int i = 0; i < CHAINS; i++) {
        chain[i] = vf_set1((float)i);
    }
    for (size_t r = 0; r < reps; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) {
            chain[i] = vf_fma(chain[i], a, b);
        }
    }
    for (int i = 0; i < CHAINS; i++) {
        sum = sum + chain[i];
    }
    volatile float sink = vf_sum(sum);
    (void)sink;
    return 2.0 * W * CHAINS * (double)reps;
}

/* 12 n reps bytes; n a multiple of W. */
__attribute__((visibility("default"))) void
peak_stream(float *y, const float *a, const float *b, size_t n, size_t reps)
{
    for (size_t r = 0; r < reps; r++) {
        for (size_t i = 0; i < n; i += W) {
            vf_store(y + i, vf_load(a + i) + vf_load(b + i));
        }
    }
}

/* 4 n bytes; n a multiple of 16 W. */
__attribute__((visibility("default"))) float
peak_read(const float *x, size_t n)
{
    vf sum[16] = {{0}};
    for (size_t i = 0; i < n; i += 16 * W) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            sum[j] = sum[j] + vf_load(x + i + (size_t)j * W);
        }
    }
    for (int j = 1; j < 16; j++) {
        sum[0] = sum[0] + sum[j];
    }
    return vf_sum(sum[0]);
}
