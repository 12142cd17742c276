/* simd.h - one vector of W floats, and the one exp, log and sigmoid of the CPU backend.
 *
 * Every file of cpu/ is compiled once per tier (setup.py gives the flags); this header is where the
 * tiers differ. Arithmetic is the compiler's vector extension; only what it cannot say (fused
 * multiply-add, masked loads) uses intrinsics. The baseline tier multiplies and adds with two
 * roundings: bits are promised per tier, not across tiers.
 *
 * Tails use the same vector code through vf_load_n, so a value never depends on where in a row it
 * stands. No libm: its bits change with the C library.
 */
#ifndef R1_SIMD_H
#define R1_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define W 16
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define W 8
#else
#define W 4 /* SSE2, NEON: what every processor of the kind has */
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_u __attribute__((vector_size(4 * W), aligned(4), may_alias));

static inline vf
vf_set1(float a)
{
    return a - (vf){0};
}

static inline vi
vi_set1(int32_t a)
{
    return a - (vi){0};
}

static inline vf
vf_load(const float *p)
{
    return *(const vf_u *)p;
}

static inline void
vf_store(float *p, vf a)
{
    *(vf_u *)p = a;
}

/* a b + c: one rounding where the tier has it */
static inline vf
vf_fma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Correctly rounded square root */
static inline vf
vf_sqrt(vf a)
{
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < W; i++) {
        a[i] = __builtin_sqrtf(a[i]);
    }
    return a;
#endif
}

/* mask ? a : b, lane by lane; a mask lane is 0 or -1 (what < and == give) */
static inline vf
vf_select(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* The larger lane; a NaN in either operand gives b, and so does a tie. */
static inline vf
vf_max(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

static inline vf
vf_min(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vf_select(a < b, a, b);
#endif
}

/* 0, 1, .. W - 1 */
static inline vi
vi_iota(void)
{
    vi lane;
    for (int i = 0; i < W; i++) {
        lane[i] = i;
    }
    return lane;
}

/* -1 in the first n lanes */
static inline vi
vi_first(size_t n)
{
    return vi_iota() < vi_set1((int32_t)n);
}

/* The lowest lane whose mask is -1; W: none is */
static inline size_t
vi_lowest(vi mask)
{
#if defined(__AVX512F__)
    return (size_t)__builtin_ctz(_mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) | 1u << W);
#elif defined(__AVX2__) && defined(__FMA__)
    return (size_t)__builtin_ctz((unsigned)_mm256_movemask_ps((__m256)mask) | 1u << W);
#else
    size_t lane = 0;
    while (lane < W && mask[lane] == 0) {
        lane++;
    }
    return lane;
#endif
}

/* The first n lanes (n <= W); the others are 0 and their memory is not touched. */
static inline vf
vf_load_n(const float *p, size_t n)
{
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
    vf a = {0};
    memcpy(&a, p, n * sizeof(float));
    return a;
#endif
}

static inline void
vf_store_n(float *p, vf a, size_t n)
{
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)a);
#else
    memcpy(p, &a, n * sizeof(float));
#endif
}

/* The next W elements of a row that has `left` more, or all of them if they are fewer. */
static inline vf
vf_load_left(const float *p, size_t left)
{
    return left >= W ? vf_load(p) : vf_load_n(p, left);
}

static inline void
vf_store_left(float *p, vf a, size_t left)
{
    if (left >= W) {
        vf_store(p, a);
    } else {
        vf_store_n(p, a, left);
    }
}

/* to (n) = from (n), which do not overlap: memcpy for a row of a head, shorter than what that call costs */
static inline void
vf_copy(float *to, const float *from, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W) {
        vf_store(to + i, vf_load(from + i));
    }
    if (i < n) {
        vf_store_n(to + i, vf_load_n(from + i, n - i), n - i);
    }
}

/* Horizontal sum and maximum by halves: a fixed tree. The halves are taken in registers: a vector
 * whose address is taken lives in memory, and so would the sum of a loop that ends here. */
typedef float vf4 __attribute__((vector_size(16)));

#if defined(__AVX512F__)
typedef float vf8 __attribute__((vector_size(32)));

static inline vf8
vf_low8(vf a)
{
    return (vf8)_mm512_castps512_ps256((__m512)a);
}

static inline vf8
vf_high8(vf a)
{
    return (vf8)_mm512_extractf32x8_ps((__m512)a, 1);
}
#endif

static inline float
vf_sum(vf a)
{
#if W == 4
    vf4 x = a;
#else
#if W == 16
    __m256 low = (__m256)(vf_low8(a) + vf_high8(a));
#else
    __m256 low = (__m256)a;
#endif
    vf4 x = (vf4)_mm256_castps256_ps128(low) + (vf4)_mm256_extractf128_ps(low, 1);
#endif
    return (x[0] + x[2]) + (x[1] + x[3]);
}

static inline float
f_max(float a, float b)
{
    return a > b ? a : b;
}

static inline float
vf_hmax(vf a)
{
#if W == 4
    vf4 x = a;
#else
#if W == 16
    __m256 low = _mm256_max_ps((__m256)vf_low8(a), (__m256)vf_high8(a));
#else
    __m256 low = (__m256)a;
#endif
    vf4 x = (vf4)_mm_max_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
#endif
    return f_max(f_max(x[0], x[2]), f_max(x[1], x[3]));
}

/* exp(x), about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, degree-6 polynomial (coefficients of the
 * Cephes library's expf), 2^n through the exponent bits. exp(0) is exactly 1; below -87.3 it is 0,
 * above 88.37 infinity; NaN stays NaN. vf_exp_down is the same for x that are not above 88.37. */
static inline vf
vf_exp_down(vf x)
{
    const float magic = 12582912.0f; /* 1.5 x 2^23: adding it rounds to an integer */
    vf t = vf_fma(x, vf_set1(1.44269504088896341f), vf_set1(magic));
    vf n = t - vf_set1(magic);
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + vf_set1(1.0f);
    vi bits = ((vi)t - (vi)vf_set1(magic) + vi_set1(127)) << 23;
    const vf low = vf_set1(-87.3f);
#if defined(__AVX512F__) /* masks in registers of their own, which gcc 12 does not find */
    __mmask16 some = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
    return (vf)_mm512_maskz_mul_ps(some, (__m512)p, (__m512)bits);
#else
    return vf_select(x < low, vf_set1(0.0f), p * (vf)bits);
#endif
}

static inline vf
vf_exp(vf x)
{
    const vf high = vf_set1(88.37f), infinite = vf_set1(__builtin_inff());
    vf y = vf_exp_down(x);
#if defined(__AVX512F__)
    __mmask16 over = _mm512_cmp_ps_mask((__m512)x, (__m512)high, _CMP_GT_OQ);
    return (vf)_mm512_mask_mov_ps((__m512)y, over, (__m512)infinite);
#else
    return vf_select(x > high, infinite, y);
#endif
}

/* log(x) for x >= 0, about 1 ulp (Cephes logf's polynomial): x = 2^e m, m in [sqrt(1/2), sqrt(2)).
 * log(0) is -infinity, log(1) exactly 0; negative x gives NaN. */
static inline vf
vf_log(vf x)
{
    vi tiny = x < vf_set1(0x1p-126f);
    vf scaled = vf_select(tiny, x * vf_set1(0x1p25f), x);
    vi bits = (vi)scaled;
    vi e = ((bits >> 23) & 255) - 126;
    e = e - (tiny & vi_set1(25));
    vf m = (vf)((bits & 0x007fffff) | 0x3f000000); /* [1/2, 1) */
    vi low = m < vf_set1(0.707106781186547524f);
    e = e + low; /* low is -1 where m must be doubled */
    m = vf_select(low, m + m, m) - vf_set1(1.0f);
    vf ef = __builtin_convertvector(e, vf);
    vf z = m * m;
    vf p = vf_set1(7.0376836292e-2f);
    p = vf_fma(p, m, vf_set1(-1.1514610310e-1f));
    p = vf_fma(p, m, vf_set1(1.1676998740e-1f));
    p = vf_fma(p, m, vf_set1(-1.2420140846e-1f));
    p = vf_fma(p, m, vf_set1(1.4249322787e-1f));
    p = vf_fma(p, m, vf_set1(-1.6668057665e-1f));
    p = vf_fma(p, m, vf_set1(2.0000714765e-1f));
    p = vf_fma(p, m, vf_set1(-2.4999993993e-1f));
    p = vf_fma(p, m, vf_set1(3.3333331174e-1f));
    vf y = p * (m * z);
    y = vf_fma(ef, vf_set1(-2.12194440e-4f), y);
    y = vf_fma(z, vf_set1(-0.5f), y);
    y = vf_fma(ef, vf_set1(0.693359375f), m + y);
    y = vf_select(x == vf_set1(0.0f), vf_set1(-__builtin_inff()), y);
    y = vf_select(x == vf_set1(__builtin_inff()), x, y);
    return vf_select(x >= vf_set1(0.0f), y, vf_set1(__builtin_nanf("")));
}

/* 1 / (1 + exp(-x)) */
static inline vf
vf_sigmoid(vf x)
{
    return vf_set1(1.0f) / (vf_set1(1.0f) + vf_exp(-x));
}

/* The same functions on one number: the same code, one lane of it. */
static inline float
f_exp(float x)
{
    return vf_exp(vf_set1(x))[0];
}

static inline float
f_log(float x)
{
    return vf_log(vf_set1(x))[0];
}

static inline float
f_sigmoid(float x)
{
    return vf_sigmoid(vf_set1(x))[0];
}

/* a b + c with the tier's own rounding */
static inline float
f_fma(float a, float b, float c)
{
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

#endif
