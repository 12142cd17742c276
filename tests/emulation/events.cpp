/* events.cpp - events of emulated GPUs. What a stream is given is done at once, so there is nothing to wait for. */
#include "cuda_runtime.h"

cudaError_t
cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned)
{
    return event != NULL ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    static char one;
    *event = (cudaEvent_t)&one;
    return cudaSuccess;
}

cudaError_t
cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}

cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t)
{
    return event != NULL ? cudaSuccess : cudaErrorInvalidValue;
}
