/* peak_x86.c - limits of instructions that not every tier uses: bf16 products on x86.
 *
 *   peak_dot   vdpbf16ps: 16 pairs of bf16 an instruction, 24 chains
 *   peak_amx   tdpbf16ps: 16 x 16 x 32 multiply-adds an instruction, four tiles of sums
 *
 * Both return their floating-point operations. Whether the processor has them is the caller's
 * business. Linux gives a process the tiles when it asks: peak_amx returns 0 where it does not.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define VISIBLE __attribute__((visibility("default")))
enum { CHAINS = 24, REQUEST_PERMISSION = 0x1023 /* ARCH_REQ_XCOMP_PERM */, TILE_DATA = 18 };

__attribute__((target("avx512f,avx512bf16"))) VISIBLE double
peak_dot(size_t reps)
{
    __m512 chain[CHAINS], sum = _mm512_setzero_ps();
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f403f00), b = (__m512bh)_mm512_set1_epi32(0x3e803e80);
    for (int i = 0; i < CHAINS; i++) {
        chain[i] = _mm512_set1_ps((float)i);
    }
    for (size_t r = 0; r < reps; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) {
            chain[i] = _mm512_dpbf16_ps(chain[i], a, b);
        }
    }
    for (int i = 0; i < CHAINS; i++) {
        sum = _mm512_add_ps(sum, chain[i]);
    }
    volatile float sink = _mm512_reduce_add_ps(sum);
    (void)sink;
    return 64.0 * CHAINS * (double)reps;
}

__attribute__((target("amx-tile,amx-bf16"))) VISIBLE double
peak_amx(size_t reps)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
        return 0.0;
    }
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* the intrinsic claims to read 8 bytes of it */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (size_t r = 0; r < reps; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * 2.0 * 16.0 * 16.0 * 32.0 * (double)reps;
}
