/* attention.cuh - what the files of attention share: where a KV block lies, what a launch of the forward
 * pass is, how two parts of a softmax become one. */
#ifndef R1_ATTENTION_CUH
#define R1_ATTENTION_CUH

#include "math.cuh"

constexpr unsigned KEYS = R1_KV_BLOCK, CHUNK = 512;

/* Block `block` of KV head g. */
static __device__ inline char *
block_k(const r1_kv &kv, int32_t block, unsigned g)
{
    size_t lines = kv.dtype == R1_BF16 ? (kv.D + 1) / 2 : kv.D;
    return static_cast<char *>(kv.k) + ((size_t)block * kv.Hkv + g) * lines * KEYS * sizeof(float);
}

static __device__ inline char *
block_v(const r1_kv &kv, int32_t block, unsigned g)
{
    size_t size = kv.dtype == R1_BF16 ? sizeof(uint16_t) : sizeof(float);
    return static_cast<char *>(kv.v) + ((size_t)block * kv.Hkv + g) * kv.Dv * KEYS * size;
}

/* Keys that a query sees; a window of 0 is none, and no position is INT32_MAX back. */
static inline int
window_keys(size_t window)
{
    return window == 0 || window > INT32_MAX ? INT32_MAX : (int)window;
}

/* A launch of the gradient. */
struct bwd_job {
    r1_tensor dq, dk, dv, dout, o, lse, q, k, v;
    r1_seqs seqs;
    unsigned H, Hkv, D, Dv;
    int window; /* keys that a query sees */
    float scale;
    float *delta; /* (N, H) */
};

/* A tile is some positions of one sequence times heads of one KV head: row r is position r / heads, head
 * r % heads. A block has the tiles of `step` packed rows, mostly one, and grid.y says which heads. */
struct fwd_job {
    r1_tensor o, lse, q;
    r1_kv kv;
    r1_seqs seqs;
    int window; /* keys that a query sees */
    float scale;
    unsigned H, share;    /* heads; of a KV head */
    unsigned heads, step; /* heads of a tile; packed rows of a block */
    unsigned chunks;      /* 0: a block takes all; else it leaves one of them in acc, m and l: */
    float *acc, *m, *l;   /* (N, H, chunks, Dv), (N, H, chunks), (N, H, chunks) */
};

/* Packed rows n .. n + count - 1, heads h .. h + heads - 1; the keys that they see: [seen, end), in blocks
 * that begin at [first, stop). */
struct fwd_tile {
    size_t n;
    unsigned count, h, heads, g;
    int pos, seen, end, first, stop;
    const int32_t *blocks;
};

/* The tile of rows n .. behind - 1, of part `y` of the heads. */
static __device__ inline fwd_tile
tile_of(const fwd_job &job, size_t n, size_t behind, unsigned y)
{
    unsigned parts = (job.share + job.heads - 1) / job.heads, part = y % parts * job.heads;
    fwd_tile x;
    x.n = n;
    x.count = (unsigned)(behind - n);
    x.g = y / parts;
    x.h = x.g * job.share + part;
    x.heads = min(job.heads, job.share - part);
    x.pos = job.seqs.pos[n];
    x.end = x.pos + (int)x.count;
    x.seen = max(0, x.pos + 1 - job.window);
    x.first = x.seen / (int)KEYS * (int)KEYS;
    x.stop = x.end;
    if (job.chunks > 0) {
        x.first = max(x.first, (int)(blockIdx.z * CHUNK));
        x.stop = min(x.stop, (int)((blockIdx.z + 1) * CHUNK));
    }
    x.blocks = job.seqs.blocks + (size_t)job.seqs.seq[n] * job.seqs.max_blocks;
    return x;
}

/* Position of a row, -1 behind the last. */
static __device__ inline int
row_position(const fwd_tile &x, unsigned row)
{
    return row < x.count * x.heads ? x.pos + (int)(row / x.heads) : -1;
}

/* Does the chunk of the block at base end with it? */
static __device__ inline bool
chunk_ends(const fwd_tile &x, int base)
{
    return (base + (int)KEYS) % (int)CHUNK == 0 || base + (int)KEYS >= x.stop;
}

constexpr uint32_t INFINITE = 0x7f800000u;

/* What exponents are taken from: m, and 0 while nothing was seen, where -inf - -inf would be NaN. */
static __device__ inline float
softmax_base(float m)
{
    return m == -__uint_as_float(INFINITE) ? 0.0f : m;
}

/* (M, L) = merge((M, L), (m, l)); a vector becomes fma(the chunk's, *b, it * *a) */
static __device__ inline void
merge(float *M, float *L, float m, float l, float *a, float *b)
{
    float largest = f_max(*M, m), base = softmax_base(largest);
    *a = f_exp(*M - base);
    *b = f_exp(m - base);
    *L = fmaf(l, *b, *L * *a);
    *M = largest;
}

#endif
