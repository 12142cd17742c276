/* backend.cu - the CUDA op table, its device and its memory.
 *
 * One stream does everything in order. Uploads and launches are queued; downloads, mem_unmap and dev_spin
 * wait for all that came before, and there an error inside a kernel is seen. Such an error is for good (CUDA
 * calls it sticky): the device is dead from then on and says so at every call. Nothing of CUDA is called
 * in a forked child, where the driver is not. Knows nothing about any op. */
#include <string.h>
#include <unistd.h>

#include "cublaslt.cuh"
#include "mma.cuh"

constexpr int MIN_CAPABILITY = 80, SPIN_CHAINS = 8;
constexpr size_t STAGING = (size_t)1 << 20, SMALL = (size_t)1 << 16; /* bytes of dev->staging, of an upload in it */

/* ---- errors --------------------------------------------------------------------------------- */

r1_code
dev_check(r1_dev *dev, cudaError_t error, const char *what, r1_status *st)
{
    if (error == cudaSuccess) {
        return R1_OK;
    }
    (void)cudaGetLastError(); /* it is told once, here */
    if (error == cudaErrorMemoryAllocation) {
        return R1_FAIL(st, R1_ENOMEM, "%s: no GPU memory", what);
    }
    if (dev->recording) { /* nothing runs that could have failed, and asking would spoil the graph */
        return R1_FAIL(st, R1_EDEVICE, "%s: %s", what, cudaGetErrorString(error));
    }
    cudaError_t now = dev->stream != NULL ? cudaStreamQuery(dev->stream) : error;
    (void)cudaGetLastError(); /* "not ready" is an answer, which the next launch would take for its own failure */
    dev->dead = now != cudaSuccess && now != cudaErrorNotReady;
    return R1_FAIL(st, R1_EDEVICE, "%s%s: %s%s", what, dev->dead ? ", or what was queued before it" : "",
                   cudaGetErrorString(error),
                   dev->dead ? "; this GPU is lost to this process, start a new one" : "");
}

r1_code
dev_ready(r1_dev *dev, r1_status *st)
{
    if (dev->pretends) {
        return R1_OK;
    }
    if (dev->pid != (int)getpid()) {
        return R1_FAIL(st, R1_EDEVICE, "CUDA does not work in a forked process: start it with 'spawn'");
    }
    if (dev->dead) {
        return R1_FAIL(st, R1_EDEVICE, "this GPU is lost to this process since an earlier error");
    }
    return dev_check(dev, cudaSetDevice(dev->ordinal), "cudaSetDevice", st);
}

r1_code
dev_not_recording(const r1_dev *dev, const char *what, r1_status *st)
{
    return dev->recording ? R1_FAIL(st, R1_EDEVICE, "%s while ops are recorded", what) : R1_OK;
}

r1_code
dev_wait(r1_dev *dev, const char *what, r1_status *st)
{
    R1_TRY(dev_not_recording(dev, what, st));
    R1_TRY(dev_check(dev, cudaStreamSynchronize(dev->stream), what, st));
    dev->staged = 0;
    return R1_OK;
}

/* ---- device --------------------------------------------------------------------------------- */

static r1_code
open_stream(r1_dev *dev, r1_status *st)
{
    int major = 0, minor = 0;
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_check(dev, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                                 dev->ordinal), "dev_open", st));
    R1_TRY(dev_check(dev, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                                 dev->ordinal), "dev_open", st));
    R1_TRY(dev_check(dev, cudaDeviceGetAttribute(&dev->processors, cudaDevAttrMultiProcessorCount,
                                                 dev->ordinal), "dev_open", st));
    if (10 * major + minor < MIN_CAPABILITY) {
        return R1_FAIL(st, R1_EDEVICE, "GPU %d is sm_%d%d, and sm_%d is needed", dev->ordinal, major,
                       minor, MIN_CAPABILITY);
    }
    R1_TRY(dev_check(dev, cudaEventCreateWithFlags(&dev->reached, cudaEventDisableTiming), "dev_open", st));
    R1_TRY(dev_check(dev, cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking), "dev_open", st));
    R1_TRY(dev_check(dev, cudaHostAlloc(&dev->staging, STAGING, cudaHostAllocDefault), "dev_open", st));
    return lt_open(dev, st);
}

static r1_code
open_device(r1_dev **out, size_t ordinal, int fast, r1_status *st)
{
    *out = NULL;
    int count = 0, driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        return R1_FAIL(st, R1_EDEVICE, "no GPU for CUDA: no NVIDIA driver is installed");
    }
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || ordinal >= (size_t)count) {
        return R1_FAIL(st, R1_EDEVICE, "there is no GPU %zu: %s", ordinal,
                       error != cudaSuccess ? cudaGetErrorString(error) : "fewer are visible");
    }
    r1_dev *dev = static_cast<r1_dev *>(r1_alloc(1, sizeof *dev));
    if (dev == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a device");
    }
    dev->ordinal = (int)ordinal;
    dev->pid = (int)getpid();
    dev->fast = fast;
    r1_code code = open_stream(dev, st);
    if (code != R1_OK) {
        CUDA(dev_close)(dev);
        return code;
    }
    *out = dev;
    return R1_OK;
}

r1_code
CUDA(dev_open)(r1_dev **out, size_t ordinal, r1_status *st)
{
    return open_device(out, ordinal, 0, st);
}

static r1_code
dev_open_fast(r1_dev **out, size_t ordinal, r1_status *st)
{
    return open_device(out, ordinal, 1, st);
}

void
CUDA(dev_close)(r1_dev *dev)
{
    if (dev != NULL && !dev->pretends && dev_ready(dev, NULL) == R1_OK) { /* errors of the last moment help nobody */
        lt_close(dev);
        (void)cudaFree(dev->scratch);
        (void)cudaFreeHost(dev->staging);
        if (dev->stream != NULL) {
            (void)cudaStreamDestroy(dev->stream);
        }
        if (dev->copies != NULL) {
            (void)cudaStreamDestroy(dev->copies);
        }
        if (dev->reached != NULL) {
            (void)cudaEventDestroy(dev->reached);
        }
    }
    r1_free(dev);
}

size_t
CUDA(dev_threads)(const r1_dev *dev)
{
    return (size_t)dev->processors;
}

/* ---- memory --------------------------------------------------------------------------------- */

void *
CUDA(mem_alloc)(r1_dev *dev, size_t bytes, r1_status *st)
{
    void *p = NULL;
    if (dev_ready(dev, st) != R1_OK || dev_not_recording(dev, "mem_alloc", st) != R1_OK) {
        return NULL;
    }
    if (dev->pretends) {
        return nowhere();
    }
    cudaError_t error = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (dev_check(dev, error, "cudaMalloc", error == cudaErrorMemoryAllocation ? NULL : st) != R1_OK) {
        return NULL;
    }
    if (dev_check(dev, cudaMemsetAsync(p, 0, bytes, dev->stream), "cudaMemset", st) != R1_OK) {
        (void)cudaFree(p);
        return NULL;
    }
    return p;
}

void
CUDA(mem_free)(r1_dev *dev, void *p)
{
    if (p != NULL && !dev->pretends && dev_ready(dev, NULL) == R1_OK) {
        (void)cudaFree(p); /* waits for kernels that use it */
    }
}

/* A copy of src in pinned memory, until the stream has been waited for; where there is no room, src itself, which
 * the driver copies, after work of its own. */
static const void *
stage(r1_dev *dev, const void *src, size_t bytes)
{
    size_t begin = dev->staged, end = begin + (bytes + 15) / 16 * 16;
    if (bytes == 0 || bytes > SMALL || end > STAGING) {
        return src;
    }
    dev->staged = end;
    return memcpy(static_cast<char *>(dev->staging) + begin, src, bytes);
}

/* src may be written again as soon as this returns: what is pageable is staged, the small uploads of a decode step
 * here. */
r1_code
CUDA(mem_upload)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_not_recording(dev, "mem_upload", st));
    if (dev->pretends) {
        return R1_OK;
    }
    return dev_check(dev, cudaMemcpyAsync(dst, stage(dev, src, bytes), bytes, cudaMemcpyHostToDevice, dev->stream),
                     "mem_upload", st);
}

r1_code
CUDA(mem_download)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_not_recording(dev, "mem_download", st));
    if (dev->pretends) {
        memset(dst, 0, bytes);
        return R1_OK;
    }
    R1_TRY(dev_check(dev, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, dev->stream),
                     "mem_download", st));
    return dev_wait(dev, "mem_download", st);
}

r1_code
dev_scratch(r1_dev *dev, void **p, size_t bytes, r1_status *st)
{
    *p = NULL;
    if (dev->pretends) {
        dev->scratch_bytes = bytes > dev->scratch_bytes ? bytes : dev->scratch_bytes;
        *p = nowhere();
        return R1_OK;
    }
    if (bytes > dev->scratch_bytes) {
        R1_TRY(dev_ready(dev, st));
        R1_TRY(dev_not_recording(dev, "scratch memory grows", st));
        (void)cudaFree(dev->scratch); /* waits for kernels that use it */
        dev->scratch = NULL;
        dev->scratch_bytes = 0;
        R1_TRY(dev_check(dev, cudaMalloc(&dev->scratch, bytes), "scratch memory", st));
        dev->scratch_bytes = bytes;
    }
#ifndef __CUDACC__
    (void)cudaMemsetAsync(dev->scratch, 0xff, dev->scratch_bytes, dev->stream);
#endif
    *p = dev->scratch;
    return R1_OK;
}

/* Whole pages are registered, and none twice: spans are widened, sorted and joined first. */
r1_code
CUDA(mem_map)(r1_dev *dev, const r1_span *spans, size_t count, r1_status *st)
{
    const uintptr_t page = 4096;
    struct {
        uintptr_t begin, end;
    } part[R1_MAX_MAPPED];
    size_t parts = 0;
    assert(count <= R1_MAX_MAPPED && dev->mapped == 0);
    for (size_t i = 0; i < count; i++) {
        if (spans[i].bytes > 0) {
            uintptr_t begin = (uintptr_t)spans[i].p / page * page, at = parts++;
            uintptr_t end = ((uintptr_t)spans[i].p + spans[i].bytes + page - 1) / page * page;
            for (; at > 0 && part[at - 1].begin > begin; at--) {
                part[at] = part[at - 1];
            }
            part[at] = {begin, end};
        }
    }
    for (size_t i = 0; i < parts; i++) {
        char *p = (char *)part[i].begin;
        uintptr_t end = part[i].end;
        for (; i + 1 < parts && part[i + 1].begin <= end; i++) {
            end = part[i + 1].end > end ? part[i + 1].end : end;
        }
        r1_code code = dev_ready(dev, st);
        if (code == R1_OK) {
            code = dev_check(dev, cudaHostRegister(p, end - (uintptr_t)p, cudaHostRegisterDefault),
                             "mem_map", st);
        }
        if (code != R1_OK) {
            CUDA(mem_unmap)(dev, NULL);
            return code;
        }
        dev->map[dev->mapped++] = {p, end - (uintptr_t)p};
    }
    return R1_OK;
}

r1_code
CUDA(mem_unmap)(r1_dev *dev, r1_status *st)
{
    r1_code code = dev_ready(dev, st);
    if (code == R1_OK) {
        code = dev_wait(dev, "mem_unmap", st);
        for (size_t i = 0; i < dev->mapped; i++) {
            (void)cudaHostUnregister(dev->map[i].p);
        }
    }
    dev->mapped = 0;
    return code;
}

r1_place
CUDA(mem_place)(const r1_dev *dev)
{
    return {2, dev->ordinal, (uintptr_t)dev->stream};
}

r1_code
CUDA(mem_share)(r1_dev *dev, uintptr_t stream, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_not_recording(dev, "mem_share", st));
    R1_TRY(dev_check(dev, cudaEventRecord(dev->reached, dev->stream), "mem_share", st));
    return dev_check(dev, cudaStreamWaitEvent((cudaStream_t)stream, dev->reached, 0), "mem_share", st);
}

/* ---- the limit that products are measured by ------------------------------------------------- */

static __global__ void
spin_f32_kernel(float *out, size_t rounds)
{
    float chain[SPIN_CHAINS], sum = 0.0f;
    for (int i = 0; i < SPIN_CHAINS; i++) {
        chain[i] = (float)(threadIdx.x + i);
    }
    for (size_t r = 0; r < rounds; r++) {
        for (int i = 0; i < SPIN_CHAINS; i++) {
            chain[i] = fmaf(chain[i], 0.75f, 0.25f);
        }
    }
    for (int i = 0; i < SPIN_CHAINS; i++) {
        sum += chain[i];
    }
    if (sum < 0.0f) { /* never: it keeps the compiler honest */
        *out = sum;
    }
}

static __global__ void
spin_bf16_kernel(float *out, size_t rounds)
{
    float c[SPIN_CHAINS][4] = {}, sum = 0.0f;
    const uint32_t a[4] = {0x3f003f00u, 0x3f003f00u, 0x3f003f00u, 0x3f003f00u}, b[2] = {0, 0};
    for (size_t r = 0; r < rounds; r++) {
        for (int i = 0; i < SPIN_CHAINS; i++) {
            mma_bf16(c[i], a, b);
        }
    }
    for (int i = 0; i < SPIN_CHAINS; i++) {
        sum += c[i][0];
    }
    if (sum < 0.0f) {
        *out = sum;
    }
}

double
CUDA(dev_spin)(r1_dev *dev, r1_dtype dtype, size_t rounds)
{
    const unsigned threads = 256, blocks = 4 * (unsigned)dev->processors;
    const size_t warps = (size_t)blocks * threads / WARP;
    const size_t each = dtype == R1_BF16 ? 2 * 16 * 16 * 8 : 2 * (size_t)WARP;
    r1_code code = dtype == R1_BF16
        ? LAUNCH(dev, NULL, spin_bf16_kernel, blocks, threads, 0, (float *)NULL, rounds)
        : LAUNCH(dev, NULL, spin_f32_kernel, blocks, threads, 0, (float *)NULL, rounds);
    code = code == R1_OK ? dev_wait(dev, "dev_spin", NULL) : code;
    return code == R1_OK ? (double)(each * warps * SPIN_CHAINS * rounds) : 0.0;
}

/* ---- the table ------------------------------------------------------------------------------- */

#ifdef __CUDACC__
#define R1_EXACT "cuda/exact"
#define R1_FAST "cuda/fast"
#else
#define R1_EXACT "cuda/emulated"
#define R1_FAST "cuda/emulated-fast"
#endif

#define R1_ENTRY(op) .op = CUDA(op),

static constexpr r1_ops
table(const char *name, decltype(r1_ops::dev_open) open)
{
    r1_ops ops = {.abi = R1_OPS_ABI, .name = name, R1_OPS(R1_ENTRY)
                  R1_PLAN_OPS(R1_ENTRY) R1_GRAPH_OPS(R1_ENTRY)};
    ops.dev_open = open;
    return ops;
}

extern "C" const r1_ops r1_cuda_ops, r1_cuda_fast_ops;
constexpr r1_ops r1_cuda_ops = table(R1_EXACT, CUDA(dev_open));
constexpr r1_ops r1_cuda_fast_ops = table(R1_FAST, dev_open_fast);
