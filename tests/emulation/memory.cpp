/* memory.cpp - the memory of emulated GPUs, and the runtime calls on it.
 *
 * One region of address space for all devices, which the host may touch between emulated_unlock and
 * emulated_lock alone: elsewhere a read of it ends the process, as on a machine with a GPU it would. What
 * cudaMalloc gives is NaN. Errors are sticky if a kernel caused them. A copy from memory that is not pinned
 * is staged, and one to it waits, as a GPU's driver has it: only pinned memory is read and written late. */
#include "cuda_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(p, n) ((void)(p), (void)(n))
#define __asan_unpoison_memory_region(p, n) ((void)(p), (void)(n))
#endif

namespace {

enum { DEVICES = 4, GUARD = 256, PROCESSORS = 4, MANY_PROCESSORS = 64 }; /* many: the last device */
const size_t REGION = (size_t)1 << 34, CAPACITY = (size_t)1 << 31;
size_t capacity = CAPACITY;

std::recursive_mutex guard;
char *region;
size_t used, taken; /* address space that was ever given away; bytes that are */
size_t wanted, peak; /* as they were asked for, not rounded; the most of them */
int depth;
std::multimap<size_t, char *> freed; /* by size */
std::map<const char *, size_t> given, mapped;
std::map<const void *, size_t> asked; /* by kernel: cudaFuncSetAttribute */
thread_local cudaError_t last;        /* that nobody has asked for yet */
bool explained, broken;
std::string reason;
int (*ask_at_free)(void);
int answers;

size_t
rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

const char *
find(const std::map<const char *, size_t> &spans, const char *p, size_t bytes)
{
    auto next = spans.upper_bound(p);
    if (next == spans.begin()) {
        return NULL;
    }
    --next;
    return p + bytes <= next->first + next->second ? next->first : NULL;
}

void
protect(int how)
{
    if (used > 0) {
        mprotect(region, used, how);
    }
}

struct open_memory {
    open_memory() { emulated_unlock(); }
    ~open_memory() { emulated_lock(); }
};

} // namespace

void
emulated_unlock()
{
    guard.lock();
    if (depth++ == 0) {
        protect(PROT_READ | PROT_WRITE);
    }
}

void
emulated_lock()
{
    if (--depth == 0) {
        protect(PROT_NONE);
    }
    guard.unlock();
}

bool
emulated_reachable(const void *p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    const char *at = (const char *)p;
    return find(given, at, bytes) != NULL || find(mapped, at, bytes) != NULL;
}

cudaError_t
emulated_failure(const char *why)
{
    reason = why;
    explained = true;
    return cudaErrorLaunchFailure;
}

void
emulated_break(bool now)
{
    broken = now;
    explained = false;
}

bool
emulated_broken()
{
    return broken;
}

void
emulated_limit(size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    capacity = bytes < CAPACITY ? bytes : CAPACITY;
}

cudaError_t
cudaMalloc(void **p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    *p = NULL;
    if (emulated_spoils()) {
        return emulated_answer(cudaErrorStreamCaptureUnsupported);
    }
    if (bytes > capacity || taken > capacity || rounded(bytes) > capacity - taken) {
        return emulated_answer(cudaErrorMemoryAllocation);
    }
    size_t size = rounded(bytes);
    if (region == NULL) {
        region = (char *)mmap(NULL, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    char *found = NULL;
    auto fit = freed.find(size);
    if (fit != freed.end()) {
        found = fit->second;
        freed.erase(fit);
    } else if (size + GUARD <= REGION - used) {
        found = region + used;
        used += size + GUARD;
        __asan_poison_memory_region(found, size + GUARD);
    } else {
        return emulated_answer(cudaErrorMemoryAllocation);
    }
    taken += size;
    wanted += bytes;
    peak = wanted > peak ? wanted : peak;
    given[found] = bytes;
    __asan_unpoison_memory_region(found, bytes);
    open_memory access;
    memset(found, 0xff, bytes);
    *p = found;
    return cudaSuccess;
}

size_t
emulated_peak()
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    size_t before = peak;
    peak = wanted;
    return before;
}

int
emulated_ask_at_free(int (*ask)(void))
{
    int before = answers;
    ask_at_free = ask;
    answers = 0;
    return before;
}

cudaError_t
cudaFree(void *p)
{
    if (p == NULL) {
        return cudaSuccess;
    }
    answers += ask_at_free != NULL && ask_at_free() != 0;
    if (emulated_spoils()) {
        return emulated_answer(cudaErrorStreamCaptureUnsupported);
    }
    emulated_finish();
    std::lock_guard<std::recursive_mutex> hold(guard);
    auto one = given.find((char *)p);
    if (one == given.end()) {
        return emulated_answer(cudaErrorInvalidValue);
    }
    size_t size = rounded(one->second);
    uintptr_t page = 4096, begin = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)p + size) / page * page; /* the pages at both ends are others' too */
    if (begin < end) {
        madvise((void *)begin, end - begin, MADV_DONTNEED);
    }
    __asan_poison_memory_region(p, size);
    taken -= size;
    wanted -= one->second;
    freed.insert({size, (char *)p});
    given.erase(one);
    return cudaSuccess;
}

cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (emulated_spoils()) { /* a GPU would note the host's address, which means nothing later */
        return emulated_answer(cudaErrorStreamCaptureUnsupported);
    }
    bool staged, waits;
    {
        std::lock_guard<std::recursive_mutex> hold(guard);
        const char *device = (const char *)(kind == cudaMemcpyDeviceToHost ? from : to);
        const char *host = (const char *)(kind == cudaMemcpyDeviceToHost ? to : from);
        bool other = kind != cudaMemcpyDeviceToDevice || find(given, (const char *)from, bytes) != NULL;
        if (bytes > 0 && (find(given, device, bytes) == NULL || !other)) {
            return emulated_answer(cudaErrorInvalidValue);
        }
        bool pinned = find(mapped, host, bytes) != NULL;
        staged = kind == cudaMemcpyHostToDevice && !pinned;
        waits = kind == cudaMemcpyDeviceToHost && !pinned;
    }
    std::string stage(staged ? (const char *)from : "", staged ? bytes : 0);
    cudaError_t error = emulated_do(stream, [=]() {
        open_memory access;
        memcpy(to, staged ? stage.data() : from, bytes);
        return cudaSuccess;
    });
    return error == cudaSuccess && waits ? cudaStreamSynchronize(stream) : error;
}

cudaError_t
cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                  cudaMemcpyKind kind, cudaStream_t stream)
{
    return emulated_do(stream, [=]() {
        open_memory access;
        if (width == 0 || height == 0) {
            return cudaSuccess;
        }
        if (kind != cudaMemcpyDefault || !emulated_reachable(to, (height - 1) * to_pitch + width) ||
            !emulated_reachable(from, (height - 1) * from_pitch + width)) {
            return cudaErrorInvalidValue;
        }
        for (size_t y = 0; y < height; y++) {
            memcpy((char *)to + y * to_pitch, (const char *)from + y * from_pitch, width);
        }
        return cudaSuccess;
    });
}

cudaError_t
cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    return emulated_do(stream, [=]() {
        open_memory access;
        if (width == 0 || height == 0) {
            return cudaSuccess;
        }
        if (!emulated_reachable(p, (height - 1) * pitch + width)) {
            return cudaErrorInvalidValue;
        }
        for (size_t y = 0; y < height; y++) {
            memset((char *)p + y * pitch, value, width);
        }
        return cudaSuccess;
    });
}

cudaError_t
cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset2DAsync(p, bytes, value, bytes, 1, stream);
}

cudaError_t
cudaHostRegister(void *p, size_t bytes, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    mapped[(char *)p] = bytes;
    return cudaSuccess;
}

cudaError_t
cudaHostUnregister(void *p)
{
    emulated_finish();
    std::lock_guard<std::recursive_mutex> hold(guard);
    return mapped.erase((char *)p) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

void
emulated_pin(void *p, size_t bytes)
{
    (void)(bytes > 0 ? cudaHostRegister(p, bytes, 0) : cudaHostUnregister(p));
}

/* Registered, as what cudaHostRegister is given: page-locked either way. */
cudaError_t
cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*p, 0xff, bytes);
    return cudaHostRegister(*p, bytes, 0);
}

cudaError_t
cudaFreeHost(void *p)
{
    cudaError_t error = cudaHostUnregister(p);
    free(p);
    return error;
}

cudaError_t
cudaMemGetInfo(size_t *left, size_t *total)
{
    *left = taken < capacity ? capacity - taken : 0;
    *total = CAPACITY;
    return cudaSuccess;
}

cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *gpu, int)
{
    *gpu = {"an emulated GPU", 8, 0};
    return cudaSuccess;
}

cudaError_t
cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t
cudaRuntimeGetVersion(int *version)
{
    return cudaDriverGetVersion(version);
}

cudaError_t
cudaGetDeviceCount(int *count)
{
    *count = DEVICES;
    return cudaSuccess;
}

cudaError_t
cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int ordinal)
{
    int processors = ordinal < DEVICES - 1 ? PROCESSORS : MANY_PROCESSORS;
    *value = what == cudaDevAttrComputeCapabilityMajor ? 8 : what == cudaDevAttrMultiProcessorCount ? processors : 0;
    return cudaSuccess;
}

cudaError_t
cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    asked[kernel] = (size_t)value;
    return cudaSuccess;
}

size_t
emulated_asked(const void *kernel)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    return asked[kernel];
}

cudaError_t
emulated_answer(cudaError_t error)
{
    last = error != cudaSuccess ? error : last;
    return error;
}

cudaError_t
cudaGetLastError()
{
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

const char *
cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorLaunchFailure && explained ? reason.c_str() : "an emulated error";
}
