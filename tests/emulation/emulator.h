/* emulator.h - a CUDA block on one host thread: what kernels see as threadIdx, barriers, warps, shared memory.
 *
 * The threads of a block are fibers. They run one at a time, each until it waits at a barrier of its block
 * or its warp; who is next is drawn from the device's seed (device 0 takes a fixed order), and so is the
 * order of blocks. A missing barrier therefore gives other bits on another device. Shared memory starts as
 * NaN. Blocks run one after another: they may not wait for each other. See blocks.cpp, memory.cpp. */
#ifndef EMULATOR_H
#define EMULATOR_H

#include <stddef.h>
#include <stdint.h>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct uint3 {
    unsigned x, y, z;
};

enum { WARP_LANES = 32, SHARED_LIMIT = 163 * 1024 /* of sm_80 */, SHARED_UNASKED = 48 * 1024 };

/* What the running fiber is. */
struct emulated_place {
    uint3 thread, block;
    dim3 threads, blocks;
    unsigned lane;
};
extern emulated_place emulated_now;
#define threadIdx (emulated_now.thread)
#define blockIdx (emulated_now.block)
#define blockDim (emulated_now.threads)
#define gridDim (emulated_now.blocks)
#define warpSize 32

/* Dynamic shared memory of a launch, and how much the kernel may have: what cudaFuncSetAttribute said. */
struct emulated_dynamic {
    size_t bytes, asked;
};

/* Runs body(context) once per thread. NULL, or why the launch failed; the text lives until the next one. */
const char *emulated_run(int device, const char *name, dim3 grid, dim3 block, emulated_dynamic shared,
                         void (*body)(void *), void *context);

/* The block's barrier; returns how many threads brought a true predicate. */
unsigned emulated_barrier(bool predicate);

/* The lanes of mask meet; the last one there runs meet(all, mask), all[lane] being what that lane brought.
 * Lanes that come with another mask or another function never meet: that is a deadlock, and reported. */
typedef void (*emulated_meeting)(void *const all[WARP_LANES], unsigned mask);
void emulated_meet(unsigned mask, emulated_meeting meet, void *mine);

/* Shared memory of the running block: static under a key, dynamic as launched. */
void *emulated_shared(const void *key, size_t bytes);
void *emulated_dynamic_shared();

/* Copies to shared memory, and 0 in the rest of the room, that arrive when the thread waits for them, as late
 * as they may: see copy_16 in kernels/mma.cuh. */
void emulated_copy(void *to, const void *from, int bytes, int room);
void emulated_copy_commit();
void emulated_copy_wait(unsigned left);

/* ---- memory.cpp ---- */

/* May a kernel be given this address? bytes 0: only the address counts. */
bool emulated_reachable(const void *p, size_t bytes);
/* Between these two the host may touch device memory; they nest, and keep other threads out. */
void emulated_unlock();
void emulated_lock();
bool emulated_broken();
/* For tests, which call them through ctypes. From now on every call fails, as after a kernel that read a
 * wrong address; false: no longer. A GPU's memory is so many bytes, at most what it is by nature. Host memory
 * is pinned, by another library say; bytes 0: no longer. The most bytes that were given at a time, all GPUs
 * together, since this was called last. From now on cudaFree asks (Python, whether it is kept
 * waiting); returns how many answers since the last call were yes. */
#define FOR_TESTS extern "C" __attribute__((visibility("default")))
FOR_TESTS void emulated_break(bool broken);
FOR_TESTS void emulated_limit(size_t bytes);
FOR_TESTS void emulated_pin(void *p, size_t bytes);
FOR_TESTS size_t emulated_peak();
FOR_TESTS int emulated_ask_at_free(int (*ask)(void));

/* ---- graph.cpp ---- */

/* Does this thread record? What it has asked for then spoils its graph. */
bool emulated_spoils();

#endif
