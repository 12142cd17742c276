/* streams.cpp - streams of emulated GPUs: when what they are given is done.
 *
 * A stream does everything at once, until it and another have waited for each other (cudaStreamWaitEvent). From
 * then on both have queues, each done in order and nothing before what it waits for; for the rest it is the
 * device's business: an even one does nothing before somebody waits for it, an odd one a little of any queue
 * now and then, drawn from a seed. A missing wait therefore gives other bits on some device. */
#include "cuda_runtime.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <vector>

namespace {

struct task {
    std::function<cudaError_t()> work;
    cudaStream_t other; /* of a wait: the stream, which must have done so many tasks before */
    unsigned long long count;
};

} // namespace

struct emulated_stream {
    emulated_graph *graph; /* records into it; NULL: it does not */
    int device;
    bool late;             /* has a queue */
    cudaError_t failed;    /* the first error of what was done late */
    std::deque<task> queue;
    unsigned long long given, done;
};

struct emulated_event {
    cudaStream_t stream;
    unsigned long long count; /* tasks that it had been given */
};

namespace {

std::recursive_mutex guard;
std::vector<cudaStream_t> streams; /* in the order of their birth */
thread_local int current;
unsigned long long seed;

bool
lives(cudaStream_t stream)
{
    return std::find(streams.begin(), streams.end(), stream) != streams.end();
}

/* The default streams, which others' libraries use, do everything at once. */
bool
is_default(cudaStream_t stream)
{
    return (uintptr_t)stream <= 2;
}

/* Does what the stream has been given, up to its task number `count`. */
void
advance(cudaStream_t stream, unsigned long long count)
{
    while (stream->done < count && !stream->queue.empty()) {
        task one = stream->queue.front();
        stream->queue.pop_front();
        if (one.other != NULL && lives(one.other)) {
            advance(one.other, one.count);
        } else if (one.other == NULL) {
            cudaError_t error = one.work();
            stream->failed = stream->failed == cudaSuccess ? error : stream->failed;
        }
        stream->done++;
    }
}

/* A little of any queue of an odd device. */
void
wander(int device)
{
    for (cudaStream_t stream : streams) {
        if (device % 2 == 1 && stream->device == device && stream->late) {
            seed = seed * 6364136223846793005u + 1442695040888963407u + (unsigned)device;
            advance(stream, stream->done + (seed >> 60) % 4);
        }
    }
}

cudaError_t
give(cudaStream_t stream, const task &one)
{
    stream->queue.push_back(one);
    stream->given++;
    if (stream->late) {
        wander(stream->device);
        return cudaSuccess;
    }
    advance(stream, stream->given);
    cudaError_t error = stream->failed;
    stream->failed = cudaSuccess;
    return error;
}

} // namespace

cudaError_t
emulated_do(cudaStream_t stream, const std::function<cudaError_t()> &work)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    if (is_default(stream)) {
        return work();
    }
    return stream->graph != NULL ? emulated_note(stream->graph, work) : give(stream, {work, NULL, 0});
}

void
emulated_finish()
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    for (cudaStream_t stream : streams) {
        advance(stream, stream->given);
    }
}

emulated_graph *&
emulated_graph_of(cudaStream_t stream)
{
    return stream->graph;
}

cudaError_t
cudaSetDevice(int device)
{
    int count;
    cudaGetDeviceCount(&count);
    current = device >= 0 && device < count ? device : current;
    return device == current ? cudaSuccess : emulated_answer(cudaErrorInvalidDevice);
}

cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    *stream = new emulated_stream{};
    (*stream)->device = current;
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    advance(stream, stream->given);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}

cudaError_t
cudaStreamSynchronize(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    if (emulated_spoils()) {
        return emulated_answer(cudaErrorStreamCaptureUnsupported);
    }
    if (emulated_broken()) {
        return emulated_answer(cudaErrorLaunchFailure);
    }
    if (is_default(stream)) {
        return cudaSuccess;
    }
    advance(stream, stream->given);
    cudaError_t error = stream->failed;
    stream->failed = cudaSuccess;
    return emulated_answer(error);
}

/* A stream may always have something to do. */
cudaError_t
cudaStreamQuery(cudaStream_t)
{
    return emulated_answer(emulated_spoils() ? cudaErrorStreamCaptureUnsupported
                           : emulated_broken() ? cudaErrorLaunchFailure : cudaErrorNotReady);
}

cudaError_t
cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    if (event->stream == NULL || !lives(event->stream)) {
        return cudaSuccess;
    }
    if (is_default(stream)) {
        advance(event->stream, event->count);
        return cudaSuccess;
    }
    stream->late = event->stream->late = true;
    return give(stream, {{}, event->stream, event->count});
}

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new emulated_event{};
    return cudaSuccess;
}

cudaError_t
cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> hold(guard);
    *event = {is_default(stream) ? NULL : stream, is_default(stream) ? 0 : stream->given};
    return cudaSuccess;
}
