/* describe.cu - what a GPU is called and how much memory it has, for `r1grpo doctor` and for memory plans.
 *
 * Opens no device of ours: it says why there is none too. Called by csrc/bind/cuda_module.c alone. */
#include <stdio.h>

#include "cuda.cuh"

enum { TEXT = 256 };

static r1_code
ask(cudaError_t error, r1_status *st)
{
    return error == cudaSuccess ? R1_OK : R1_FAIL(st, R1_EDEVICE, "%s", cudaGetErrorString(error));
}

/* text: "NVIDIA H200, sm_90, driver 13.0, runtime 13.0"; memory: bytes free, bytes in all. */
extern "C" r1_code
r1_cuda_describe(size_t ordinal, char text[TEXT], size_t memory[2], r1_status *st)
{
    int count = 0, driver = 0, runtime = 0;
    cudaDeviceProp gpu;
    R1_TRY(ask(cudaDriverGetVersion(&driver), st));
    R1_TRY(ask(cudaRuntimeGetVersion(&runtime), st));
    if (driver == 0) {
        return R1_FAIL(st, R1_EDEVICE, "no NVIDIA driver is installed");
    }
    R1_TRY(ask(cudaGetDeviceCount(&count), st));
    if (ordinal >= (size_t)count) {
        return R1_FAIL(st, R1_EDEVICE, "there are %d GPUs", count);
    }
    R1_TRY(ask(cudaGetDeviceProperties(&gpu, (int)ordinal), st));
    R1_TRY(ask(cudaSetDevice((int)ordinal), st));
    R1_TRY(ask(cudaMemGetInfo(&memory[0], &memory[1]), st));
    snprintf(text, TEXT, "%.128s, sm_%d%d, driver %d.%d, runtime %d.%d", gpu.name, gpu.major, gpu.minor,
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return R1_OK;
}
