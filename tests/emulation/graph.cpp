/* graph.cpp - graphs of what the streams of emulated GPUs are given.
 *
 * Between BeginCapture and EndCapture a stream does nothing: it notes what it is given, and a launch of the
 * graph gives it to the stream in that order. Addresses are looked at when it is done. Whatever would wait or
 * allocate meanwhile, in the thread that records, is refused and spoils the graph. */
#include "cuda_runtime.h"

#include <vector>

struct emulated_graph {
    std::vector<std::function<cudaError_t()>> work;
};

namespace {

thread_local cudaStream_t recording;
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
emulated_note(emulated_graph *graph, const std::function<cudaError_t()> &work)
{
    graph->work.push_back(work);
    return cudaSuccess;
}

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    if (recording != NULL) {
        return cudaErrorStreamCaptureUnsupported;
    }
    recording = stream;
    spoiled = false;
    emulated_graph_of(stream) = new emulated_graph();
    return cudaSuccess;
}

cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = emulated_graph_of(stream);
    emulated_graph_of(stream) = NULL;
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
cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    launched++;
    for (const auto &work : exec->work) {
        cudaError_t error = emulated_do(stream, work);
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
