/* isa.c - which instruction-set tier this processor runs. Compiled once, for any processor.
 *
 * The tiers are the same files compiled with other flags (cpu.h); bits are promised within a tier.
 * "auto" is the fastest: amx, whose matrix unit multiplies bf16 some fifteen times as fast as vectors
 * do; avx512bf16 only on AMD, whose vdpbf16ps starts as often as an fma (Zen 4); Intel's (Sapphire
 * Rapids, measured) starts every second cycle, so that avx512's two fmas a cycle give the same bits in
 * half the time.
 * R1_NO_AMX, R1_NO_AVX512BF16, R1_NO_AVX512 and R1_NO_AVX2: the compiler could not build that tier.
 * Knows nothing about what the tables hold. */
#define _GNU_SOURCE

#include <fenv.h>
#include <string.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../ops.h"

extern const r1_ops r1_ops_baseline;
#if defined(__x86_64__) && !defined(R1_NO_AVX512)
extern const r1_ops r1_ops_avx512;

static int
has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}
#endif
#if defined(__x86_64__) && !defined(R1_NO_AVX512) && !defined(R1_NO_AVX512BF16)
#define HAVE_AVX512BF16
extern const r1_ops r1_ops_avx512bf16;
extern int bf16_check_avx512bf16(void); /* bf16_check.c */

static int
has_avx512bf16(void)
{
    fenv_t caller;
    if (!has_avx512() || !__builtin_cpu_supports("avx512bf16")) {
        return 0;
    }
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    int right = bf16_check_avx512bf16();
    fesetenv(&caller);
    return right;
}
#endif
#if defined(__x86_64__) && defined(__linux__) && !defined(R1_NO_AVX512) && !defined(R1_NO_AMX)
#define HAVE_AMX
extern const r1_ops r1_ops_amx;
extern int amx_check_amx(void); /* amx_check.c */

/* The processor has the matrix unit and its bf16 products, and the kernel saves its registers and
 * lets this process use them: since they are large, it wants to be asked. */
static int
has_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    const unsigned bf16 = 1u << 22, tile = 1u << 24, xsave = 1u << 27;
    unsigned a, b, c, d;
    if (!has_avx512() || !__builtin_cpu_supports("avx512bf16") ||
        !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & bf16) == 0 || (d & tile) == 0 ||
        !__get_cpuid(1, &a, &b, &c, &d) || (c & xsave) == 0) {
        return 0;
    }
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
        return 0;
    }
    fenv_t caller;
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    int right = amx_check_amx();
    fesetenv(&caller);
    return right;
}
#endif
#if defined(__x86_64__) && !defined(R1_NO_AVX2)
extern const r1_ops r1_ops_avx2;

static int
has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

const r1_ops *
r1_cpu_ops(const char *tier)
{
    int any = strcmp(tier, "auto") == 0;
#if defined(HAVE_AMX)
    if ((any || strcmp(tier, "amx") == 0) && has_amx()) {
        return &r1_ops_amx;
    }
#endif
#if defined(HAVE_AVX512BF16)
    int fast = any && __builtin_cpu_is("amd");
    if ((fast || strcmp(tier, "avx512bf16") == 0) && has_avx512bf16()) {
        return &r1_ops_avx512bf16;
    }
#endif
#if defined(__x86_64__) && !defined(R1_NO_AVX512)
    if ((any || strcmp(tier, "avx512") == 0) && has_avx512()) {
        return &r1_ops_avx512;
    }
#endif
#if defined(__x86_64__) && !defined(R1_NO_AVX2)
    if ((any || strcmp(tier, "avx2") == 0) && has_avx2()) {
        return &r1_ops_avx2;
    }
#endif
    return any || strcmp(tier, "baseline") == 0 ? &r1_ops_baseline : NULL;
}
