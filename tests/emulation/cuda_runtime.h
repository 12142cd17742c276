/* cuda_runtime.h - what stands in for CUDA's own when kernels are compiled for the host: tests only.
 *
 * The words of the language, the intrinsics and the runtime calls that kernels/ uses, over emulator.h. Something
 * that is missing here is added here; what a GPU forbids should be refused. The memory of the host and of the
 * devices are kept apart (memory.cpp), and emulate() looks at every pointer that a kernel is given. */
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <type_traits>

#include "emulator.h"

extern "C" {
#include "../../csrc/ops.h"
}

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define SHARED(name, ...)            \
    using name##_type = __VA_ARGS__; \
    static const char name##_key = 0; \
    name##_type &name = *static_cast<name##_type *>(emulated_shared(&name##_key, sizeof(name##_type)))
#define DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(emulated_dynamic_shared())

/* ---- numbers ---- */

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };

static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

template <class To, class From>
static inline To
emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline uint32_t __float_as_uint(float a) { return emulated_bits<uint32_t>(a); }
static inline float __uint_as_float(uint32_t a) { return emulated_bits<float>(a); }
static inline int __float_as_int(float a) { return emulated_bits<int>(a); }
static inline float __int_as_float(int a) { return emulated_bits<float>(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline int __clz(int a) { return a == 0 ? 32 : __builtin_clz((unsigned)a); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

template <class T>
static inline T
__ldg(const T *p)
{
    return *p;
}

template <class T>
static inline T
min(T a, T b)
{
    return b < a ? b : a;
}

template <class T>
static inline T
max(T a, T b)
{
    return a < b ? b : a;
}

/* ---- barriers, warps ---- */

static inline void __syncthreads() { (void)emulated_barrier(false); }
static inline int __syncthreads_count(int p) { return (int)emulated_barrier(p != 0); }
static inline int __syncthreads_or(int p) { return emulated_barrier(p != 0) > 0; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline void
emulated_nothing(void *const *, unsigned)
{
}

static inline void
__syncwarp(unsigned mask = 0xffffffffu)
{
    int unused = 0;
    emulated_meet(mask, emulated_nothing, &unused);
}

template <class T>
struct emulated_shuffle {
    T value;
    unsigned source;
};

/* Each lane gets the value of its source; all have read before anyone writes. */
template <class T>
static void
emulated_exchange(void *const *all, unsigned mask)
{
    T values[WARP_LANES];
    for (int lane = 0; lane < WARP_LANES; lane++) {
        if (mask >> lane & 1) {
            values[lane] = static_cast<emulated_shuffle<T> *>(all[lane])->value;
        }
    }
    for (int lane = 0; lane < WARP_LANES; lane++) {
        if (mask >> lane & 1) {
            emulated_shuffle<T> *one = static_cast<emulated_shuffle<T> *>(all[lane]);
            if (mask >> one->source & 1) {
                one->value = values[one->source];
            } else {
                memset(&one->value, 0xff, sizeof one->value); /* undefined on a GPU */
            }
        }
    }
}

/* source: a lane of the warp; outside this lane's segment of `width` it is the lane itself. */
template <class T>
static inline T
emulated_shuffle_from(unsigned mask, T value, int source, int width, bool wrap)
{
    int lane = (int)emulated_now.lane, first = lane / width * width;
    int inside = wrap ? first + (source - first) % width : source;
    emulated_shuffle<T> mine = {value, (unsigned)(inside >= first && inside < first + width ? inside : lane)};
    emulated_meet(mask, emulated_exchange<T>, &mine);
    return mine.value;
}

template <class T>
static inline T
__shfl_sync(unsigned mask, T value, int source, int width = WARP_LANES)
{
    int lane = (int)emulated_now.lane;
    return emulated_shuffle_from(mask, value, lane / width * width + source % width, width, true);
}

template <class T>
static inline T
__shfl_xor_sync(unsigned mask, T value, int with, int width = WARP_LANES)
{
    return emulated_shuffle_from(mask, value, (int)emulated_now.lane ^ with, width, false);
}

template <class T>
static inline T
__shfl_down_sync(unsigned mask, T value, unsigned by, int width = WARP_LANES)
{
    return emulated_shuffle_from(mask, value, (int)(emulated_now.lane + by), width, false);
}

template <class T>
static inline T
__shfl_up_sync(unsigned mask, T value, unsigned by, int width = WARP_LANES)
{
    return emulated_shuffle_from(mask, value, (int)emulated_now.lane - (int)by, width, false);
}

struct emulated_vote {
    uint64_t value;
    unsigned equal, nonzero;
};

static void
emulated_count(void *const *all, unsigned mask)
{
    for (int lane = 0; lane < WARP_LANES; lane++) {
        for (int other = 0; other < WARP_LANES; other++) {
            if ((mask >> lane & 1) && (mask >> other & 1)) {
                emulated_vote *a = static_cast<emulated_vote *>(all[lane]);
                const emulated_vote *b = static_cast<const emulated_vote *>(all[other]);
                a->equal |= (unsigned)(a->value == b->value) << other;
                a->nonzero |= (unsigned)(b->value != 0) << other;
            }
        }
    }
}

template <class T>
static inline emulated_vote
emulated_vote_on(unsigned mask, T value)
{
    emulated_vote mine = {0, 0, 0};
    memcpy(&mine.value, &value, sizeof value);
    emulated_meet(mask, emulated_count, &mine);
    return mine;
}

static inline unsigned __ballot_sync(unsigned mask, int p) { return emulated_vote_on(mask, p).nonzero; }
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

template <class T>
static inline unsigned
__match_any_sync(unsigned mask, T value)
{
    return emulated_vote_on(mask, value).equal;
}

/* ---- atomics, on integers alone: sums of floats would depend on who comes first ---- */

template <class T, class U>
static inline T
atomicAdd(T *p, U by)
{
    static_assert(std::is_integral<T>::value, "atomics are for integers");
    T old = *p;
    *p = (T)(old + (T)by);
    return old;
}

template <class T>
static inline T
atomicMax(T *p, T value)
{
    static_assert(std::is_integral<T>::value, "atomics are for integers");
    T old = *p;
    *p = old < value ? value : old;
    return old;
}

template <class T>
static inline T
atomicMin(T *p, T value)
{
    static_assert(std::is_integral<T>::value, "atomics are for integers");
    T old = *p;
    *p = value < old ? value : old;
    return old;
}

template <class T>
static inline T
atomicCAS(T *p, T expected, T value)
{
    static_assert(std::is_integral<T>::value, "atomics are for integers");
    T old = *p;
    *p = old == expected ? value : old;
    return old;
}

/* ---- the runtime (memory.cpp; streams.cpp, graph.cpp) ---- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorMemoryAllocation,
    cudaErrorNotReady,
    cudaErrorInvalidDevice,
    cudaErrorLaunchFailure,
    cudaErrorStreamCaptureUnsupported,
    cudaErrorStreamCaptureInvalidated
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaStreamNonBlocking = 1, cudaHostRegisterDefault = 0, cudaHostAllocDefault = 0 };
enum { cudaEventDisableTiming = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_event *cudaEvent_t;
typedef struct emulated_graph *cudaGraph_t, *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    int major, minor;
};
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *gpu, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int device);
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute what, int value);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaMemGetInfo(size_t *left, size_t *total);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);

/* ---- a launch ---- */

/* NULL, or what is wrong with an argument of a kernel. */
static inline bool
emulated_good(const r1_tensor &x)
{
    size_t width = x.dtype == R1_BF16 ? 2 : 4;
    return x.data == NULL || x.rows == 0 || x.cols == 0 ||
           emulated_reachable(x.data, ((x.rows - 1) * x.ld + x.cols) * width);
}

template <class T>
static inline bool
emulated_good(T *const &p)
{
    return p == NULL || emulated_reachable(p, 0);
}

static inline bool
emulated_good(const r1_seqs &s)
{
    return s.B == 0 || (emulated_good(s.q_start) && emulated_good(s.pos0) && emulated_good(s.blocks) &&
                        emulated_good(s.pos) && emulated_good(s.seq) && emulated_good(s.unit) &&
                        emulated_good(s.prefix));
}

static inline bool
emulated_good(const r1_units &u)
{
    return emulated_good(u.id) && emulated_good(u.row);
}

static inline bool
emulated_good(const r1_kv &kv)
{
    return kv.blocks == 0 || (emulated_reachable(kv.k, kv.blocks * kv.Hkv * r1_kv_k_bytes(&kv)) &&
                              emulated_reachable(kv.v, kv.blocks * kv.Hkv * r1_kv_v_bytes(&kv)));
}

template <class T>
static inline typename std::enable_if<!std::is_pointer<T>::value, bool>::type
emulated_good(const T &)
{
    return true;
}

/* Keeps why a launch failed for cudaGetErrorString. */
cudaError_t emulated_failure(const char *why);
/* What a call answers, kept for cudaGetLastError if it is no success: a launch answers there alone. */
cudaError_t emulated_answer(cudaError_t error);
/* Dynamic shared memory that cudaFuncSetAttribute has been asked for. */
size_t emulated_asked(const void *kernel);

template <class... Params>
struct emulated_call {
    void (*kernel)(Params...);
    std::tuple<Params...> args;
    static void
    run(void *self)
    {
        emulated_call *call = static_cast<emulated_call *>(self);
        std::apply(call->kernel, call->args);
    }
};

/* Does work, now or later (streams.cpp), or notes it down if the stream records. */
cudaError_t emulated_do(cudaStream_t stream, const std::function<cudaError_t()> &work);
cudaError_t emulated_note(emulated_graph *graph, const std::function<cudaError_t()> &work);
emulated_graph *&emulated_graph_of(cudaStream_t stream);
/* Does all that any stream has been given. */
void emulated_finish();

template <class... Params, class... Args>
static void
emulate(cudaStream_t stream, int device, const char *name, void (*kernel)(Params...), dim3 grid, dim3 block,
        size_t shared, Args... args)
{
    emulated_call<Params...> given = {kernel, std::tuple<Params...>(args...)};
    size_t asked = emulated_asked(reinterpret_cast<const void *>(kernel));
    (void)emulated_answer(emulated_do(stream, [=]() {
        emulated_call<Params...> call = given;
        bool good = std::apply([](const auto &...each) { return (emulated_good(each) && ...); }, call.args);
        if (!good) {
            return emulated_failure("a pointer among its arguments is no memory of the device");
        }
        emulated_unlock();
        const char *why = emulated_run(device, name, grid, block, {shared, asked}, call.run, &call);
        emulated_lock();
        return why != NULL ? emulated_failure(why) : cudaSuccess;
    }));
}

#endif
