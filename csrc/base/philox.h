/* philox.h - Philox4x32-10, the counter-based generator. Salmon et al. 2011, "Parallel random numbers:
 * as easy as 1, 2, 3", section 4.3.
 *
 * A random number is a function of (key, counter): key = mix(seed, step), counter = (prompt,
 * generation, position, purpose). Nothing else decides a draw: no batch order, slot, thread or
 * resume. Compiled by C and CUDA alike. */
#ifndef R1_PHILOX_H
#define R1_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define R1_HD __host__ __device__
#else
#define R1_HD
#endif

typedef struct {
    uint32_t v[4];
} r1_philox4;

static inline R1_HD r1_philox4
r1_philox(uint32_t k0, uint32_t k1, r1_philox4 c)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.v[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c.v[2];
        r1_philox4 next = {{(uint32_t)(p1 >> 32) ^ c.v[1] ^ k0, (uint32_t)p1,
                            (uint32_t)(p0 >> 32) ^ c.v[3] ^ k1, (uint32_t)p0}};
        c = next;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

/* Uniform in [0, 1): the top 24 bits, so that the float is exact and never 1. */
static inline R1_HD float
r1_uniform(uint32_t x)
{
    return (float)(x >> 8) * 0x1p-24f;
}

/* key = mix(seed, step): the splitmix64 finaliser (Steele et al. 2014), our choice. */
static inline R1_HD uint64_t
r1_key(uint64_t seed, uint64_t step)
{
    uint64_t z = seed + 0x9E3779B97F4A7C15u * (step + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Purposes: the fourth word of the counter. */
enum { R1_DRAW_TOKEN = 0 };

#endif
