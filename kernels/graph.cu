/* graph.cu - ops recorded once and queued again with one call: a CUDA graph of what the device's stream is given.
 *
 * A kernel of a graph has the arguments that it was recorded with, the address of the device's scratch memory
 * among them, so a graph ends with that address. Recording is the thread's own business: other threads may
 * allocate meanwhile. Knows nothing about which ops they are. */
#include "cuda.cuh"

struct r1_graph {
    cudaGraphExec_t ops;
    const void *scratch; /* what its kernels know */
};

r1_code
CUDA(graph_begin)(r1_dev *dev, r1_status *st)
{
    assert(!dev->recording);
    R1_TRY(dev_ready(dev, st));
    R1_TRY(dev_check(dev, cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal),
                     "graph_begin", st));
    dev->recording = 1;
    return R1_OK;
}

r1_code
CUDA(graph_end)(r1_dev *dev, r1_graph **out, r1_status *st)
{
    *out = NULL;
    cudaGraph_t noted = NULL;
    r1_graph *graph = static_cast<r1_graph *>(r1_alloc(1, sizeof *graph));
    dev->recording = 0;
    r1_code code = dev_check(dev, cudaStreamEndCapture(dev->stream, &noted), "graph_end", st);
    if (code == R1_OK && graph == NULL) {
        code = R1_FAIL(st, R1_ENOMEM, "no memory for a graph");
    }
    if (code == R1_OK) {
        code = dev_check(dev, cudaGraphInstantiate(&graph->ops, noted, 0), "graph_end", st);
    }
    if (noted != NULL) {
        (void)cudaGraphDestroy(noted);
    }
    if (code != R1_OK) {
        r1_free(graph);
        return code;
    }
    graph->scratch = dev->scratch;
    *out = graph;
    return R1_OK;
}

r1_code
CUDA(graph_run)(r1_dev *dev, r1_graph *graph, int *stale, r1_status *st)
{
    *stale = graph->scratch != dev->scratch;
    R1_TRY(dev_ready(dev, st));
    return *stale ? R1_OK : dev_check(dev, cudaGraphLaunch(graph->ops, dev->stream), "graph_run", st);
}

void
CUDA(graph_close)(r1_dev *dev, r1_graph *graph)
{
    if (graph != NULL && dev_ready(dev, NULL) == R1_OK) {
        (void)cudaStreamSynchronize(dev->stream); /* a run of it may be under way */
        (void)cudaGraphExecDestroy(graph->ops);
    }
    r1_free(graph);
}
