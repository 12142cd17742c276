/* probes.cu - kernels that are right, and some that are wrong, for tests/test_emulation.py: what the emulation
 * computes, and what it catches. Each probe runs on an emulated GPU of its own order; in and out are host
 * memory. 0, or the status' code, with its message in probe_message. */
#include <string.h>

#include "../../kernels/mma.cuh"

#define PROBE extern "C" __attribute__((visibility("default"))) int

extern "C" __attribute__((visibility("default"))) char probe_message[320];
char probe_message[320];

/* in (count) floats to the device, `run` with them and `count` more for its results, which go to out. */
typedef r1_code (*probe_body)(r1_dev *dev, float *in, float *out, size_t count, r1_status *st);

static int
run_probe(int device, const float *in, float *out, size_t count, probe_body body)
{
    r1_dev *dev = NULL;
    r1_status st = {};
    size_t bytes = count * sizeof(float);
    r1_code code = CUDA(dev_open)(&dev, (size_t)device, &st);
    if (code == R1_OK) {
        float *from = static_cast<float *>(CUDA(mem_alloc)(dev, bytes, &st));
        float *to = static_cast<float *>(CUDA(mem_alloc)(dev, bytes, &st));
        code = CUDA(mem_upload)(dev, from, in, bytes, &st);
        code = code == R1_OK ? body(dev, from, to, count, &st) : code;
        code = code == R1_OK ? CUDA(mem_download)(dev, out, to, bytes, &st) : code;
        CUDA(mem_free)(dev, from);
        CUDA(mem_free)(dev, to);
        CUDA(dev_close)(dev);
    }
    memcpy(probe_message, st.message, sizeof probe_message);
    return (int)code;
}

/* ---- warps: out[i] of 64 threads ---- */

static __global__ void
warp_kernel(float *out, const float *in)
{
    unsigned i = threadIdx.x, lane = i % WARP;
    float v = in[i];
    out[i] = warp_sum(v);
    out[64 + i] = block_sum(v);
    out[128 + i] = warp_max(v);
    out[192 + i] = __shfl_up_sync(ALL_LANES, v, 3);
    out[256 + i] = __shfl_down_sync(ALL_LANES, v, 1, 8);
    out[320 + i] = __shfl_sync(ALL_LANES, v, 5, 16);
    out[384 + i] = (float)__popc(__ballot_sync(ALL_LANES, v > 0.0f));
    out[448 + i] = (float)__popc(__match_any_sync(ALL_LANES, (int)v));
    if (lane < 8) { /* the others go on without */
        out[512 + i] = __shfl_xor_sync(0xffu, v, 1);
    }
}

PROBE
probe_warp(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, warp_kernel, 1, 64, 0, to, (const float *)from);
    });
}

/* ---- tensor cores: in a (16, 16), b (16, 8), c (16, 8) of bf16 numbers; out c + a b (16, 8) ---- */

static __global__ void
mma_kernel(float *out, const float *in, bool wait)
{
    SHARED(a, uint16_t[16][16]);
    SHARED(b, uint16_t[16][8]);
    SHARED(wide, float[16][8]);
    const float *in_b = in + 256, *in_c = in + 384;
    unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (unsigned i = lane; i < 256; i += WARP) {
        a[i / 16][i % 16] = bf16_of(in[i]);
    }
    for (unsigned i = lane; i < 128; i += WARP) {
        b[i / 8][i % 8] = bf16_of(in_b[i]);
    }
    copy_16(&wide[lane / 2][lane % 2 * 4], in_c + lane * 4, 16);
    copy_commit();
    if (wait) {
        copy_wait<0>();
    }
    __syncwarp();
    uint32_t fa[4], fb[4];
    load_matrix(fa, &a[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8]);
    load_matrix_transposed(fb, &b[lane % 16][0]); /* its last two tiles are the first two again */
    float c[4] = {wide[g][2 * t], wide[g][2 * t + 1], wide[g + 8][2 * t], wide[g + 8][2 * t + 1]};
    mma_bf16(c, fa, fb);
    out[g * 8 + 2 * t] = c[0];
    out[g * 8 + 2 * t + 1] = c[1];
    out[(g + 8) * 8 + 2 * t] = c[2];
    out[(g + 8) * 8 + 2 * t + 1] = c[3];
}

PROBE
probe_mma(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, mma_kernel, 1, WARP, 0, to, (const float *)from, true);
    });
}

PROBE
probe_no_wait(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, mma_kernel, 1, WARP, 0, to, (const float *)from, false);
    });
}

/* ---- what is wrong ---- */

static __global__ void
race_kernel(float *out, const float *in, bool barrier)
{
    SHARED(shared, float[256]);
    shared[threadIdx.x] = in[threadIdx.x];
    if (barrier) {
        __syncthreads();
    }
    out[threadIdx.x] = shared[255 - threadIdx.x];
}

PROBE
probe_barrier(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, race_kernel, 1, 256, 0, to, (const float *)from, true);
    });
}

PROBE
probe_race(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, race_kernel, 1, 256, 0, to, (const float *)from, false);
    });
}

/* An order of blocks shows as well: the last to write wins. */
static __global__ void
block_race_kernel(float *out)
{
    out[0] = (float)blockIdx.x;
}

PROBE
probe_block_race(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, block_race_kernel, 64, 1, 0, to);
    });
}

static __global__ void
deadlock_kernel(float *out)
{
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncwarp(0x000f0000u); /* lanes that it does not name wait for ever */
    }
    out[threadIdx.x] = 1.0f;
}

PROBE
probe_deadlock(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, deadlock_kernel, 1, 64, 0, to);
    });
}

PROBE
probe_host_pointer(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *, size_t, r1_status *st) {
        float mine[256];
        return LAUNCH(dev, st, race_kernel, 1, 256, 0, mine, (const float *)from, true);
    });
}

PROBE
probe_too_long(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t n, r1_status *st) {
        r1_tensor beyond = r1_f32(to, 2, n);
        return CUDA(scale)(dev, &beyond, &beyond, 1.0f, st);
    });
}

/* What went wrong before is no later launch's failure, though the stream is busy then. */
PROBE
probe_goes_on(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        float mine[256];
        r1_code code = LAUNCH(dev, NULL, race_kernel, 1, 256, 0, mine, (const float *)from, true);
        return code == R1_OK ? R1_FAIL(st, R1_EINVAL, "it was not refused")
                             : LAUNCH(dev, st, race_kernel, 1, 256, 0, to, (const float *)from, true);
    });
}

/* Static and dynamic shared memory together: LAUNCH asks for what is above 48 KiB, unless too much is static. */
template <unsigned KIB>
static __global__ void
shared_kernel(float *out)
{
    DYNAMIC_SHARED(float, dynamic);
    SHARED(fixed, float[KIB * 256]);
    dynamic[0] = fixed[0] = 1.0f;
    out[0] = dynamic[0] + fixed[0];
}

PROBE
probe_much_shared(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t, r1_status *st) {
        R1_TRY(LAUNCH(dev, st, shared_kernel<16>, 1, 1, 32 * 1024, to));
        return LAUNCH(dev, st, shared_kernel<16>, 1, 1, 100 * 1024, to);
    });
}

PROBE
probe_unasked_shared(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t, r1_status *st) {
        return LAUNCH(dev, st, shared_kernel<17>, 1, 1, 32 * 1024, to);
    });
}

/* The host reads device memory: the process ends. */
PROBE
probe_host_reads(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *, float *from, float *, size_t, r1_status *) {
        return from[0] > 0.0f ? R1_OK : R1_EINVAL;
    });
}

static __global__ void
fresh_kernel(float *out, const float *scratch)
{
    DYNAMIC_SHARED(float, dynamic);
    SHARED(fixed, float[4]);
    out[0] = dynamic[7];
    out[1] = fixed[3];
    out[2] = scratch[5];
}

PROBE
probe_fresh(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t, r1_status *st) {
        void *scratch;
        R1_TRY(dev_scratch(dev, &scratch, 64, st));
        return LAUNCH(dev, st, fresh_kernel, 1, 1, 8 * sizeof(float), to, (const float *)scratch);
    });
}

/* ---- graphs ---- */

static __global__ void
twice_kernel(float *out, const float *in)
{
    out[threadIdx.x] = 2.0f * in[threadIdx.x];
}

/* out: twice what `in` holds when the graph runs, four numbers; then what was there when it was recorded. */
PROBE
probe_graph(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        r1_graph *graph = NULL;
        void *scratch;
        int stale = 0, later = 0;
        R1_TRY(dev_scratch(dev, &scratch, 64, st));
        R1_TRY(CUDA(graph_begin)(dev, st));
        R1_TRY(dev_scratch(dev, &scratch, 64, st));
        R1_TRY(LAUNCH(dev, st, twice_kernel, 1, 4, 0, to, (const float *)from));
        R1_TRY(CUDA(graph_end)(dev, &graph, st));
        R1_TRY(LAUNCH(dev, st, twice_kernel, 1, 4, 0, to + 4, (const float *)to));
        for (int run = 0; run < 3; run++) { /* each finds what the one before has left */
            R1_TRY(CUDA(graph_run)(dev, graph, &stale, st));
            R1_TRY(LAUNCH(dev, st, twice_kernel, 1, 4, 0, from, (const float *)to));
        }
        R1_TRY(dev_scratch(dev, &scratch, 4096, st));
        R1_TRY(CUDA(graph_run)(dev, graph, &later, st));
        CUDA(graph_close)(dev, graph);
        return stale == 0 && later == 1 ? R1_OK : R1_FAIL(st, R1_EINVAL, "stale is %d, then %d", stale, later);
    });
}

/* What cannot be recorded says so; the device goes on as if nothing had happened. */
static r1_code
refused(r1_dev *dev, float *from, float *to, r1_status *st, r1_code (*what)(r1_dev *, float *, r1_status *))
{
    r1_graph *graph = NULL;
    R1_TRY(CUDA(graph_begin)(dev, st));
    r1_code code = what(dev, to, st);
    (void)CUDA(graph_end)(dev, &graph, NULL);
    CUDA(graph_close)(dev, graph);
    r1_code after = LAUNCH(dev, NULL, twice_kernel, 1, 4, 0, to, (const float *)from);
    return after == R1_OK ? code : R1_FAIL(st, R1_EINVAL, "nothing works after it");
}

PROBE
probe_graph_upload(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *p, r1_status *s) {
            return CUDA(mem_upload)(d, p, &d->ordinal, sizeof d->ordinal, s);
        });
    });
}

PROBE
probe_graph_download(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *p, r1_status *s) {
            float host;
            return CUDA(mem_download)(d, &host, p, sizeof host, s);
        });
    });
}

PROBE
probe_graph_scratch(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *, r1_status *s) {
            void *p;
            return dev_scratch(d, &p, 64, s);
        });
    });
}

PROBE
probe_graph_alloc(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *, r1_status *s) {
            void *p = CUDA(mem_alloc)(d, 64, s);
            return p == NULL ? R1_FAIL(s, R1_ENOMEM, "and s has the reason already") : R1_OK;
        });
    });
}

PROBE
probe_graph_alloc_host(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *, r1_status *s) {
            void *p = CUDA(mem_alloc_host)(d, 64, s);
            return p == NULL ? R1_FAIL(s, R1_ENOMEM, "and s has the reason already") : R1_OK;
        });
    });
}

PROBE
probe_graph_fetch(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *p, r1_status *s) {
            return CUDA(mem_fetch)(d, p, &d->ordinal, sizeof d->ordinal, s);
        });
    });
}

PROBE
probe_graph_join(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *, r1_status *s) { return CUDA(mem_join)(d, 0, s); });
    });
}

PROBE
probe_graph_share(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *from, float *to, size_t, r1_status *st) {
        return refused(dev, from, to, st, [](r1_dev *d, float *, r1_status *s) { return CUDA(mem_share)(d, 1, s); });
    });
}

/* A kernel goes wrong while it runs: the next synchronisation says so, then every call. */
PROBE
probe_lost(int device, const float *in, float *out, size_t count)
{
    r1_dev *dev = NULL;
    r1_status st = {}, later = {};
    (void)in;
    (void)count;
    if (CUDA(dev_open)(&dev, (size_t)device, &st) != R1_OK) {
        return (int)st.code;
    }
    void *p = CUDA(mem_alloc)(dev, 64, &st);
    emulated_break(true);
    (void)CUDA(mem_download)(dev, out, p, 16, &st);
    (void)CUDA(mem_upload)(dev, p, out, 16, &later);
    emulated_break(false);
    out[0] = (float)(later.code == R1_EDEVICE && strstr(later.message, "since an earlier error") != NULL);
    CUDA(mem_free)(dev, p); /* and neither this nor the end touches the GPU */
    CUDA(dev_close)(dev);
    memcpy(probe_message, st.message, sizeof probe_message);
    return (int)st.code;
}

/* One element beyond shared memory, beyond an allocation: AddressSanitizer's business. */
static __global__ void
overrun_kernel(float *out, size_t count, bool shared)
{
    SHARED(tile, float[16]);
    float *end = shared ? tile + 16 : out + count;
    end[threadIdx.x] = 1.0f;
}

PROBE
probe_overrun_shared(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t n, r1_status *st) {
        return LAUNCH(dev, st, overrun_kernel, 1, 1, 0, to, n, true);
    });
}

PROBE
probe_overrun_global(int device, const float *in, float *out, size_t count)
{
    return run_probe(device, in, out, count, [](r1_dev *dev, float *, float *to, size_t n, r1_status *st) {
        return LAUNCH(dev, st, overrun_kernel, 1, 1, 0, to, n, false);
    });
}
