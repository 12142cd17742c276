/* copies.cu - copies between the device and host memory, beside the ops: a second stream.
 *
 *   mem_fetch, mem_store   the copies' stream waits for what the ops' stream has been given, then copies
 *   mem_join               the ops' stream waits for what the copies' stream has been given
 *
 * So with two buffers one is copied while ops use the other. The host's memory is pinned, which makes a copy
 * asynchronous; other memory would be staged by the host. The stream comes with the first copy. */
#include <string.h>

#include "cuda.cuh"

void *
CUDA(mem_alloc_host)(r1_dev *dev, size_t bytes, r1_status *st)
{
    void *p = NULL;
    if (dev_ready(dev, st) != R1_OK || dev_not_recording(dev, "mem_alloc_host", st) != R1_OK) {
        return NULL;
    }
    if (dev->pretends) {
        return nowhere();
    }
    cudaError_t error = cudaHostAlloc(&p, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    r1_status *tell = error == cudaErrorMemoryAllocation ? NULL : st;
    return dev_check(dev, error, "cudaHostAlloc", tell) == R1_OK ? memset(p, 0, bytes) : NULL;
}

void
CUDA(mem_free_host)(r1_dev *dev, void *p)
{
    if (p != NULL && !dev->pretends && dev_ready(dev, NULL) == R1_OK) {
        if (dev->copies != NULL) {
            (void)cudaStreamSynchronize(dev->copies);
        }
        (void)cudaFreeHost(p);
    }
}

static r1_code
copy_beside(r1_dev *dev, void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, const char *what,
            r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_not_recording(dev, what, st));
    if (dev->pretends) {
        return R1_OK;
    }
    if (dev->copies == NULL) {
        R1_TRY(dev_check(dev, cudaStreamCreateWithFlags(&dev->copies, cudaStreamNonBlocking), what, st));
    }
    R1_TRY(dev_check(dev, cudaEventRecord(dev->reached, dev->stream), what, st));
    R1_TRY(dev_check(dev, cudaStreamWaitEvent(dev->copies, dev->reached, 0), what, st));
    return dev_check(dev, cudaMemcpyAsync(dst, src, bytes, kind, dev->copies), what, st);
}

r1_code
CUDA(mem_fetch)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    return copy_beside(dev, dst, src, bytes, cudaMemcpyHostToDevice, "mem_fetch", st);
}

r1_code
CUDA(mem_store)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    return copy_beside(dev, dst, src, bytes, cudaMemcpyDeviceToHost, "mem_store", st);
}

r1_code
CUDA(mem_join)(r1_dev *dev, int host, r1_status *st)
{
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_not_recording(dev, "mem_join", st));
    if (dev->pretends) {
        return R1_OK;
    }
    if (dev->copies != NULL) {
        R1_TRY(dev_check(dev, cudaEventRecord(dev->reached, dev->copies), "mem_join", st));
        R1_TRY(dev_check(dev, cudaStreamWaitEvent(dev->stream, dev->reached, 0), "mem_join", st));
    }
    return host ? dev_wait(dev, "mem_join", st) : R1_OK;
}
