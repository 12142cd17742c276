/* cuda.cuh - what every file of the CUDA backend shares: the device, the weight, the names of ops, how a
 * kernel is started. The counterpart of csrc/cpu/cpu.h.
 *
 * An op file is: contract, kernel, static launcher where one is needed, CUDA(op). Everything runs on one
 * stream, in order; an op returns when its kernels are queued. Kernels take r1_tensor, r1_seqs, r1_kv by
 * value: their pointers are device memory, which host code passes on and never reads.
 *
 * Compiled by nvcc, and by a C++ compiler over tests/emulation/, whose cuda_runtime.h comes first in the
 * path. Where the two differ (LAUNCH, SHARED) is said here and in mma.cuh, nowhere else. docs/cuda.md has
 * the rules. */
#ifndef R1_CUDA_CUH
#define R1_CUDA_CUH

#include <assert.h>
#include <cuda_runtime.h>
#include <type_traits>

extern "C" {
#include "../csrc/ops.h"
}

#define CUDA(op) op##_cuda

/* Every op, declared from its entry in the table. */
#define R1_DECLARE(op) extern "C" std::remove_pointer<decltype(r1_ops::op)>::type CUDA(op);
R1_OPS(R1_DECLARE) R1_PLAN_OPS(R1_DECLARE) R1_GRAPH_OPS(R1_DECLARE)

/* ---- the device (backend.cu) --------------------------------------------------------------- */

enum { R1_MAX_MAPPED = 32 };

struct r1_dev {
    int ordinal; /* which GPU */
    int pid;     /* who opened it: a forked child may not use it */
    int dead;    /* an error that only a new process gets rid of */
    int fast;    /* E1 is given up for speed: cublaslt.cu */
    int processors;
    int pretends;  /* nothing is done on it: pretend.cu */
    int recording; /* between graph_begin and graph_end: nothing may wait, copy or allocate */
    cudaStream_t stream;
    cudaStream_t copies; /* beside the ops': copies.cu; NULL before the first copy */
    cudaEvent_t reached; /* how far a stream has come: for another one that waits for it */
    void *scratch; /* dev_scratch's */
    size_t scratch_bytes;
    void *staging; /* pinned; uploads under way have its first bytes */
    size_t staged;
    struct lt *lt; /* cuBLASLt (cublaslt.cuh); NULL: there is none, */
    r1_status no_lt; /* or there is, and this is why it is of no use */
    size_t mapped; /* host memory that kernels may see for the length of a call: mem_map */
    struct {
        char *p;
        size_t bytes;
    } map[R1_MAX_MAPPED];
};

/* R1_OK if this thread may use dev now; before everything that calls CUDA. */
r1_code dev_ready(r1_dev *dev, r1_status *st);
/* R1_EDEVICE while ops are recorded: `what` cannot be. */
r1_code dev_not_recording(const r1_dev *dev, const char *what, r1_status *st);
/* What a CUDA call answered, as a code: out of memory, or a message that names `what`. */
r1_code dev_check(r1_dev *dev, cudaError_t error, const char *what, r1_status *st);
/* Waits until the device has done everything; R1_EDEVICE while ops are recorded. */
r1_code dev_wait(r1_dev *dev, const char *what, r1_status *st);
/* bytes of device memory, 256-byte aligned, undefined, the op's own until it returns. Once per op: the
 * next call gives the same memory away again. It grows to the largest op's need and stays. On a device that
 * pretends an op asks for what any number of rows up to its own can need. */
r1_code dev_scratch(r1_dev *dev, void **p, size_t bytes, r1_status *st);

/* The memory of a device that pretends. */
static inline void *
nowhere()
{
    return reinterpret_cast<void *>((uintptr_t)1 << 12);
}

/* ---- the weight (weight.cu) ---- */

/* master (E O, I) row-major; seen: what products and the embedding read, row-major too: (E O, I) of bf16,
 * or the master itself in float32. A frozen weight has no master, and `seen` is somebody else's. */
struct r1_weight {
    size_t E, O, I;
    r1_dtype dtype;
    float *master; /* (E O, I); NULL: frozen */
    void *seen;    /* (E O, I) of dtype */
};

/* ---- starting a kernel ---- */

/* 48 KiB of shared memory need no asking, static and dynamic together: no kernel has more than 16 static ones. */
constexpr size_t UNASKED_SHARED = 32 * 1024;

/* R1_TRY(LAUNCH(dev, st, kernel, grid, block, shared, args...)): shared is the bytes of dynamic shared
 * memory; a template kernel stands in parentheses. An empty grid is no launch. A failure carries the
 * kernel's name; what a kernel does wrong while it runs is seen at the next synchronisation. */
#define LAUNCH(dev, st, kernel, ...) launch((dev), (st), #kernel, kernel, __VA_ARGS__)

template <class... Params, class... Args>
static r1_code
launch(r1_dev *dev, r1_status *st, const char *name, void (*kernel)(Params...), dim3 grid, dim3 block,
       size_t shared, Args... args)
{
    R1_TRY(dev_ready(dev, st));
    if (dev->pretends || grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return R1_OK;
    }
    if (shared > UNASKED_SHARED) {
        R1_TRY(dev_check(dev, cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   (int)shared), name, st));
    }
#ifdef __CUDACC__
    kernel<<<grid, block, shared, dev->stream>>>(args...);
#else
    emulate(dev->stream, dev->ordinal, name, kernel, grid, block, shared, args...);
#endif
    return dev_check(dev, cudaGetLastError(), name, st);
}

/* Blocks that cover count things, `each` a block. */
static inline unsigned
grid_of(size_t count, size_t each)
{
    size_t blocks = count / each + (count % each != 0);
    assert(blocks <= 0x7fffffffu);
    return (unsigned)blocks;
}

/* What a kernel gets for a tensor that may be NULL: data says which. */
static inline r1_tensor
tensor_or_none(const r1_tensor *x)
{
    return x != NULL ? *x : r1_tensor{};
}

/* ---- inside kernels ---- */

/* SHARED(tile, float[32][33]); is static shared memory. DYNAMIC_SHARED(float, p); is a pointer to the
 * launch's, 16-byte aligned. */
#ifdef __CUDACC__
#define SHARED(name, ...)          \
    using name##_type = __VA_ARGS__; \
    __shared__ name##_type name
#define DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type *name = reinterpret_cast<type *>(dynamic_shared)
#endif

/* Row n of a float32 tensor. */
static __device__ inline float *
row_f32(const r1_tensor &x, size_t n)
{
    return static_cast<float *>(x.data) + n * x.ld;
}

#endif
