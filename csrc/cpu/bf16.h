/* bf16.h - bfloat16: rounding, pairs, and the multiply-add of a pair.
 *
 * A bf16 number is the upper half of a float32; rounding goes to the nearest, ties to even, and a
 * NaN stays one. Two neighbours of a sum share 32 bits, a pair, the one with the lower index in the
 * UPPER half: then the instruction vdpbf16ps is two steps of an index-order chain,
 *
 *   dot2(c, a, b) = fma(a1, b1, fma(a0, b0, c)),    0 the upper half, 1 the lower,
 *
 * where operands and results below 2^-126 count as 0 (of their sign), whatever the processor's
 * mode. bf16_check.c compares the instruction with this definition.
 *
 * Tiers without it give the same bits: they widen the halves (BF16_PAIRS is 0: `a` is kept as
 * rounded floats) and use their own fma between bf16_enter and bf16_leave, which flush. A product
 * of two bf16 numbers has 16 significant bits. The baseline has no fma and adds that exact product
 * to c in float64: where the sum needs more than float64's 53 bits, the smaller summand is less
 * than 1/16 of the last place that float32 gives the larger one, so rounding twice is rounding
 * once.
 *
 * Who pads an odd sum writes -0 into a and 0 into b: c + (-0) is c, even where c is -0.
 * Only x86 flushes; elsewhere denormals take part (docs/numerics.md). */
#ifndef R1_BF16_H
#define R1_BF16_H

#include "simd.h"

/* BF16_CONVERT: there is an instruction that rounds. BF16_PAIRS: and one that multiplies pairs,
 * which the tier takes; beside a matrix unit it is slower than two fmas (isa.c). */
#if defined(__AVX512BF16__)
#define BF16_CONVERT 1
#else
#define BF16_CONVERT 0
#endif
#if BF16_CONVERT && !defined(__AMX_BF16__)
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

/* bf16_bits of W floats */
static inline vu
vf_bf16_bits(vf a)
{
    vu bits = (vu)a;
    vu rounded = bits + 0x7fffu + (bits >> 16 & 1u);
#if defined(__AVX512F__)
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q);
    __m512i quiet = _mm512_set1_epi32(0x400000);
    rounded = (vu)_mm512_mask_or_epi32((__m512i)rounded, nan, (__m512i)bits, quiet);
#else
    rounded = (vu)vf_select(a != a, (vf)(bits | 0x400000u), (vf)rounded);
#endif
    return rounded & 0xffff0000u;
}

/* W bf16 numbers as floats */
static inline vf
vf_of_bf16(vh half)
{
#if defined(__AVX512F__) /* gcc takes two halves and joins them */
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}

static inline vf
vf_load_bf16(const uint16_t *p)
{
    vh half;
    memcpy(&half, p, sizeof half);
    return vf_of_bf16(half);
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
    return vf_of_bf16(half);
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

/* ---- rows: the same bits as the scalar functions ---- */

/* to (n) = from (n) rounded; in place allowed */
static inline void
bf16_round_row(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i += W) {
        vf_store_left(to + i, (vf)vf_bf16_bits(vf_load_left(from + i, n - i)), n - i);
    }
}

/* to (n) = the upper halves of from (n) rounded */
static inline void
bf16_store_row(uint16_t *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i += W) {
        vf x = vf_load_left(from + i, n - i);
        vh half = __builtin_convertvector(vf_bf16_bits(x) >> 16, vh);
        if (n - i >= W) {
            memcpy(to + i, &half, sizeof half);
        } else {
            memcpy(to + i, &half, (n - i) * sizeof *to);
        }
    }
}

#if BF16_CONVERT
/* The instruction that rounds takes denormals for 0, and bf16_bits does not. Asked of the bits,
 * since bf16_enter makes denormals zeros for floating point. */
static inline int
any_denormal(vf a, vf b)
{
    vu x = ((vu)a & 0x7fffffffu) - 1u, y = ((vu)b & 0x7fffffffu) - 1u; /* of 0: the largest number */
    __m512i least = _mm512_min_epu32((__m512i)x, (__m512i)y);
    return _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32(0x7fffff)) != 0;
}
#endif

/* bf16_pair of W lanes of a0 and a1 */
static inline vu
vf_bf16_pair(vf a0, vf a1)
{
#if BF16_CONVERT
    if (!any_denormal(a0, a1)) {
        const vu lane = (vu)vi_iota(), interleaved = lane | (lane + W) << 16;
        __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)a0, (__m512)a1); /* of a1, of a0 */
        return (vu)_mm512_permutexvar_epi16((__m512i)interleaved, halves);
    }
#endif
    return vf_bf16_bits(a0) | vf_bf16_bits(a1) >> 16;
}

/* to (n) = pairs of two rows, a0[i] in the upper half, a1[i] (a1 NULL: pad) in the lower */
static inline void
bf16_pair_rows(u32_u *to, const float *a0, const float *a1, float pad, size_t n)
{
    for (size_t i = 0; i < n; i += W) {
        vf lower = a1 != NULL ? vf_load_left(a1 + i, n - i) : vf_set1(pad);
        vf_store_left((float *)to + i, (vf)vf_bf16_pair(vf_load_left(a0 + i, n - i), lower), n - i);
    }
}

/* W pairs of neighbours of a row */
static inline vu
vf_bf16_neighbours(const float *from)
{
#if defined(__AVX512F__)
    vf x = vf_load(from), y = vf_load(from + W);
#if BF16_CONVERT
    if (!any_denormal(x, y)) { /* in order, and so with the lower index in the lower half */
        __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
        return (vu)_mm512_rol_epi32(halves, 16);
    }
#endif
    const __m512i even = (__m512i)(vi_iota() * 2), odd = (__m512i)(vi_iota() * 2 + 1);
    return vf_bf16_pair((vf)_mm512_permutex2var_ps((__m512)x, even, (__m512)y),
                        (vf)_mm512_permutex2var_ps((__m512)x, odd, (__m512)y));
#else
    vu pairs;
    for (size_t k = 0; k < W; k++) {
        pairs[k] = bf16_pair(from[2 * k], from[2 * k + 1]);
    }
    return pairs;
#endif
}

/* to (ceil(n / 2)) = pairs of neighbours of a row; an odd last one meets `pad`. */
static inline void
bf16_pair_neighbours(u32_u *to, const float *from, size_t n, float pad)
{
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        vf_store((float *)to + i / 2, (vf)vf_bf16_neighbours(from + i));
    }
    if (i < n) {
        float rest[2 * W] = {0};
        memcpy(rest, from + i, (n - i) * sizeof *rest);
        rest[n - i] = pad;
        vf_store_n((float *)to + i / 2, (vf)vf_bf16_neighbours(rest), (n - i + 1) / 2);
    }
}

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
