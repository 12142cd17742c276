/* graph.cpp - streams of emulated GPUs, and graphs of what they are given.
 *
 * A stream does everything at once, or, between BeginCapture and EndCapture, nothing: it notes what it is given,
 * and a launch of the graph does it in that order. Addresses are looked at when it is done. Whatever would wait or
 * allocate meanwhile, in the thread that records, is refused and spoils the graph. */
#include "cuda_runtime.h"

#include <vector>

struct emulated_graph {
    std::vector<std::function<cudaError_t()>> work;
};

struct emulated_stream {
    emulated_graph *graph; /* NULL: it does not record */
};

namespace {

thread_local emulated_stream *recording;
thread_local bool spoiled;
unsigned long long made, launched;

} // namespace

/* For tests: graphs that were made, and launched, so far. */
FOR_TESTS void
emulated_graphs(unsigned long long count[2])
{
    count[0] = made;
    count[1] = launched;
}

bool
emulated_spoils()
{
    spoiled = spoiled || recording != NULL;
    return recording != NULL;
}

cudaError_t
emulated_do(cudaStream_t stream, const std::function<cudaError_t()> &work)
{
    if (stream == NULL || stream->graph == NULL) {
        return work();
    }
    stream->graph->work.push_back(work);
    return cudaSuccess;
}

cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new emulated_stream();
    return cudaSuccess;
}

cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t
cudaStreamSynchronize(cudaStream_t)
{
    return emulated_spoils() ? cudaErrorStreamCaptureUnsupported
           : emulated_broken() ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t
cudaStreamQuery(cudaStream_t stream)
{
    return cudaStreamSynchronize(stream);
}

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    if (recording != NULL) {
        return cudaErrorStreamCaptureUnsupported;
    }
    recording = stream;
    spoiled = false;
    stream->graph = new emulated_graph();
    return cudaSuccess;
}

cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->graph;
    stream->graph = NULL;
    recording = NULL;
    if (spoiled) {
        delete *graph;
        *graph = NULL;
        return cudaErrorStreamCaptureInvalidated;
    }
    return cudaSuccess;
}

cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new emulated_graph(*graph);
    made++;
    return cudaSuccess;
}

cudaError_t
cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    launched++;
    for (const auto &work : exec->work) {
        cudaError_t error = work();
        if (error != cudaSuccess) {
            return error;
        }
    }
    return cudaSuccess;
}

cudaError_t
cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
