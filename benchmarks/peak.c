/* peak.c - the two limits of a machine that bench_ops.py compares with. Compiled when the benchmark
 * runs, with the flags of the tier that the engine chose, on the engine's own vector type and fma,
 * so that a share of the limit is a share of what this tier could do at all.
 *
 * peak_fma     multiply-adds on registers alone: no load, no store, as many independent chains as
 *              registers allow, which is more than latency x units on every processor we know.
 * peak_stream  y = a + b over n floats: two loads and a store an element, again and again.
 */
#include "../csrc/cpu/simd.h"

#if W == 16
#define CHAINS 24 /* of 32 registers */
#else
#define CHAINS 12 /* of 16 */
#endif

/* 2 W CHAINS reps floating-point operations. The result only keeps the compiler honest. */
__attribute__((visibility("default"))) float
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
    return vf_sum(sum);
}

__attribute__((visibility("default"))) int
peak_flops_per_rep(void)
{
    return 2 * W * CHAINS;
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
