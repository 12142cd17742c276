/* spin.c - multiply-adds on registers alone: what this tier could do at all.
 *
 *   float32   c = c a + b          bf16   c = c + a b, by the instruction that its products use
 *
 * CHAINS independent chains, more than latency x units of every processor that we know; no load, no
 * store. Whoever calls it has the clock (device.py): the share of the limit that a run shows is the
 * rate of its work over the rate of this. Knows nothing about time.
 */
#include "bf16.h"
#include "cpu.h"
#if BF16_AMX
#include "amx_tile.h"
#endif

enum {
    CHAINS = W == 16 ? 24 : 12, /* of 32 registers, of 16 */
    TILES = 4, /* of eight; each is 16 x 16 sums of 32 products */
    F32_OPERATIONS = 2 * W * CHAINS, /* of one round */
    BF16_OPERATIONS = BF16_AMX ? 2 * TILES * 16 * 16 * 32 : (1 + BF16_PAIRS) * F32_OPERATIONS,
    TASKS = 8 /* a thread: small enough that one which comes late costs little */
};

struct spin {
    r1_dtype dtype;
    size_t rounds;
};

/* The sums only keep the compiler honest. */
static float
spin_f32(size_t rounds)
{
    vf chain[CHAINS], a = vf_set1(0.75f), b = vf_set1(0.25f), sum = vf_set1(0.0f);
    for (int i = 0; i < CHAINS; i++) {
        chain[i] = vf_set1((float)i);
    }
    for (size_t r = 0; r < rounds; r++) {
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

#if BF16_AMX
static float
spin_bf16(size_t rounds)
{
    amx_configure(AMX_ROWS); /* all tiles are 0 */
    for (size_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    amx_release();
    return 0.0f;
}
#else
static float
spin_bf16(size_t rounds)
{
    vf chain[CHAINS], sum = vf_set1(0.0f);
#if BF16_PAIRS
    uint32_t bits = bf16_pair(0.75f, 0.5f);
    float a;
    memcpy(&a, &bits, sizeof a);
    vu b = bits - (vu){0};
#else
    vf a = vf_set1(0.75f), b = vf_set1(0.5f);
#endif
    for (int i = 0; i < CHAINS; i++) {
        chain[i] = vf_set1((float)i);
    }
    for (size_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) {
#if BF16_PAIRS
            chain[i] = vf_dot2(chain[i], &a, b);
#else
            chain[i] = vf_fma_bf16(a, b, chain[i]);
#endif
        }
    }
    for (int i = 0; i < CHAINS; i++) {
        sum = sum + chain[i];
    }
    return vf_sum(sum);
}
#endif

static void
spin_task(void *ctx, size_t task, size_t worker)
{
    const struct spin *s = ctx;
    volatile float sink = s->dtype == R1_BF16 ? spin_bf16(s->rounds) : spin_f32(s->rounds);
    (void)sink;
    (void)task;
    (void)worker;
}

double
TIER(dev_spin)(r1_dev *dev, r1_dtype dtype, size_t rounds)
{
    struct spin s = {dtype, rounds};
    size_t tasks = TASKS * r1_pool_threads(dev->pool);
    r1_pool_run(dev->pool, tasks, spin_task, &s);
    double operations = dtype == R1_BF16 ? BF16_OPERATIONS : F32_OPERATIONS;
    return operations * (double)rounds * (double)tasks;
}
