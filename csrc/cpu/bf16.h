/* bf16.h - bfloat16: rounding, pairs, and the multiply-add of a pair.
 *
 * A bf16 number is the upper half of a float32; rounding goes to the nearest, ties to even, and a
 * NaN stays one. Two neighbours of a sum share 32 bits, a pair, the one with the lower index in the
 * UPPER half: then the instruction vdpbf16ps is two steps of an index-order chain,
 *
 *   dot2(c, a, b) = fma(a1, b1, fma(a0, b0, c)),    0 the upper half, 1 the lower,
 *
 * where operands and results below 2^-126 count as 0 (of their sign), whatever the processor's mode.
 * bf16_check.c compares the instruction with this definition.
 *
 * Tiers without it give the same bits: they widen the halves (BF16_PAIRS is 0: `a` is kept as rounded
 * floats) and use their own fma between bf16_enter and bf16_leave, which flush. A product of two bf16
 * numbers has 16 significant bits. The baseline has no fma and adds that exact product to c in
 * float64: where the sum needs more than float64's 53 bits, the smaller summand is less than 1/16 of
 * the last place that float32 gives the larger one, so rounding twice is rounding once.
 *
 * Who pads an odd sum writes -0 into a and 0 into b: c + (-0) is c, even where c is -0.
 * Only x86 flushes; elsewhere denormals take part (docs/numerics.md). */
#ifndef R1_BF16_H
#define R1_BF16_H

#include "simd.h"

#if defined(__AVX512BF16__)
#define BF16_PAIRS 1
#else
#define BF16_PAIRS 0
#endif

typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint32_t vu_u __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint32_t u32_u __attribute__((aligned(4), may_alias));

/* ---- rounding ---- */

/* Bits of the float32 that a rounds to: the lower half is 0. */
static inline uint32_t
bf16_bits(float a)
{
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) & 0xffff0000u;
}

static inline float
bf16_round(float a)
{
    uint32_t bits = bf16_bits(a);
    memcpy(&a, &bits, sizeof a);
    return a;
}

static inline uint32_t
bf16_pair(float a0, float a1)
{
    return bf16_bits(a0) | bf16_bits(a1) >> 16;
}

/* ---- vectors ---- */

/* W bf16 numbers as floats */
static inline vf
vf_load_bf16(const uint16_t *p)
{
    vh half;
    memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

/* The next W of a row that has `left` more; 0 beyond it. */
static inline vf
vf_load_bf16_left(const uint16_t *p, size_t left)
{
    if (left >= W) {
        return vf_load_bf16(p);
    }
    vh half = {0};
    memcpy(&half, p, left * sizeof *p);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

/* Half 0 or 1 of W pairs as floats */
static inline vf
vf_half(const void *pairs, int which)
{
    vu p = *(const vu_u *)pairs;
    return (vf)(which == 0 ? p & 0xffff0000u : p << 16);
}

#if BF16_PAIRS
/* The pair at a, W times, with the W pairs at b */
static inline vf
vf_dot2(vf c, const float *a, vu b)
{
    __m512i pair = _mm512_set1_epi32((int32_t)*(const u32_u *)a);
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)pair, (__m512bh)b);
}
#else
/* a b + c with one rounding, a and b bf16 numbers */
static inline vf
vf_fma_bf16(vf a, vf b, vf c)
{
#if defined(__FMA__)
    return vf_fma(a, b, c);
#else
    typedef double vd __attribute__((vector_size(8 * W)));
    vd sum = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
    return __builtin_convertvector(sum + __builtin_convertvector(c, vd), vf);
#endif
}
#endif

/* ---- flushing ---- */

/* Between the two, this thread's operands and results below 2^-126 count as 0. The code in between
 * must be a function of its own, not inlined: compilers move arithmetic across them. */
static inline uint32_t
bf16_enter(void)
{
#if defined(__SSE2__) && !BF16_PAIRS
    uint32_t mode = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(mode | 0x8040u); /* FTZ, DAZ */
    return mode;
#else
    return 0;
#endif
}

static inline void
bf16_leave(uint32_t mode)
{
#if defined(__SSE2__) && !BF16_PAIRS
    __builtin_ia32_ldmxcsr(mode);
#else
    (void)mode;
#endif
}

#endif
