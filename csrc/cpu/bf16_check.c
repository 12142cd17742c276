/* bf16_check.c - does this processor's multiply-add of pairs do what bf16.h says?
 *
 * Our bits depend on the order of vdpbf16ps's two steps, on each being rounded, and on what it does
 * to denormals. isa.c asks before it hands out the tier; where the answer is no, the tier below
 * emulates. Here the definition is computed one number at a time, in float64, and compared on pairs
 * whose sums cancel, overflow, and end below 2^-126. */
#include "bf16.h"
#include "cpu.h"

#if BF16_PAIRS
int TIER(bf16_check)(void);

static float
flush(float x)
{
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

/* fma(a, b, c) between flushed operands and result. What is tiny is decided after rounding to 24
 * bits, which the float32 nearest to sum 2^64 has where the one nearest to sum has fewer. */
static float
step(float a, float b, float c)
{
    double sum = (double)flush(a) * (double)flush(b) + (double)flush(c);
    int tiny = __builtin_fabs(sum) < 0x1p-125 && __builtin_fabsf((float)(sum * 0x1p64)) < 0x1p-62f;
    return tiny ? (float)__builtin_copysign(0.0, sum) : (float)sum;
}

/* A number with random sign and mantissa and an exponent near `exponent` (biased, -1: any). */
static uint32_t
draw(uint64_t *state, int exponent)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    uint32_t r = (uint32_t)(*state >> 32), e = r >> 16 & 0xffu;
    if (exponent >= 0) {
        e = (uint32_t)exponent + (e & 15u);
    }
    return (r & 0x80000000u) | e << 23 | (r & 0xffffu) << 7 | (uint32_t)(*state >> 25 & 0x7fu);
}

static float
float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* True if all lanes of some thousand pairs agree with the chain, NaN with NaN. */
int
TIER(bf16_check)(void)
{
    static const int near[5][2] = {{120, 120}, {56, 0}, {60, 10}, {183, 240}, {-1, -1}};
    uint64_t state = 1;
    for (int i = 0; i < 512; i++) {
        uint32_t a = 0, pairs[W];
        float c[W];
        int at = near[i % 5][0];
        a = (draw(&state, at) & 0xffff0000u) | draw(&state, at) >> 16;
        for (int j = 0; j < W; j++) {
            pairs[j] = (draw(&state, at) & 0xffff0000u) | draw(&state, at) >> 16;
            c[j] = float_of(draw(&state, near[i % 5][1]));
        }
        vf got = vf_dot2(vf_load(c), (const float *)(const void *)&a, *(const vu_u *)pairs);
        for (int j = 0; j < W; j++) {
            float upper = float_of(a & 0xffff0000u), lower = float_of(a << 16);
            float want = step(upper, float_of(pairs[j] & 0xffff0000u), c[j]), one = got[j];
            want = step(lower, float_of(pairs[j] << 16), want);
            if (memcmp(&want, &one, sizeof one) != 0 && (want == want || one == one)) {
                return 0;
            }
        }
    }
    return 1;
}
#endif
