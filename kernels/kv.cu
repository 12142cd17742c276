/* kv.cu - the block KV cache: rows written into it, blocks copied. What attention.c's last part is.
 *
 * Blocks as in ops.h, "One layer's KV cache". A K block has a key a column, so 32 lanes are 32 rows, mostly
 * neighbours in a block: they write side by side, and what they read stays in the first cache for the next
 * d. A V block has a key a row, and lanes go along it. Moves and rounds, nothing is summed. */
#include "attention.cuh"

constexpr unsigned WRITERS = 8, COPIERS = 8; /* warps of a block; blocks that share a pair */

/* 32 rows of one KV head: those of the batch, or behind: what block pos0[b] / 64 of sequence b has of its
 * prefix, in two halves. */
template <bool bf16>
static __global__ void
kv_write_kernel(r1_kv kv, r1_tensor k, r1_tensor v, r1_seqs seqs, int behind)
{
    SHARED(block_of, int32_t[WARP]);
    SHARED(slot_of, int32_t[WARP]);
    SHARED(row_of, int32_t[WARP]);
    unsigned lane = threadIdx.x, warp = threadIdx.y, g = blockIdx.y;
    if (warp == 0) {
        int32_t row = -1, b = 0, t = 0;
        size_t n = (size_t)blockIdx.x * WARP + lane;
        if (behind) {
            b = (int32_t)(blockIdx.x / 2);
            t = seqs.pos0[b] / (int32_t)KEYS * (int32_t)KEYS + (int32_t)(blockIdx.x % 2 * WARP + lane);
            row = t < seqs.pos0[b] ? seqs.prefix[b] + t : -1;
        } else if (n < seqs.N) {
            row = (int32_t)n;
            b = seqs.seq[n];
            t = seqs.pos[n];
        }
        row_of[lane] = row;
        slot_of[lane] = t % (int32_t)KEYS;
        block_of[lane] = row < 0 ? 0 : seqs.blocks[(size_t)b * seqs.max_blocks + (size_t)t / KEYS];
    }
    __syncthreads();
    if (row_of[lane] >= 0) {
        const float *from = row_f32(k, (size_t)row_of[lane]) + g * kv.D;
        char *to = block_k(kv, block_of[lane], g);
        for (size_t i = warp; i < (bf16 ? (kv.D + 1) / 2 : kv.D); i += WRITERS) {
            size_t at = i * KEYS + (size_t)slot_of[lane];
            if (bf16) { /* the even row above */
                float odd = 2 * i + 1 < kv.D ? from[2 * i + 1] : 0.0f;
                reinterpret_cast<uint32_t *>(to)[at] = bf16_pair(odd, from[2 * i]);
            } else {
                reinterpret_cast<float *>(to)[at] = from[i];
            }
        }
    }
    for (unsigned i = warp; i < WARP; i += WRITERS) {
        if (row_of[i] < 0) {
            continue;
        }
        const float *from = row_f32(v, (size_t)row_of[i]) + g * kv.Dv;
        char *to = block_v(kv, block_of[i], g);
        size_t at = (size_t)slot_of[i] * kv.Dv;
        for (size_t c = lane; c < kv.Dv; c += WARP) {
            if (bf16) {
                reinterpret_cast<uint16_t *>(to)[at + c] = bf16_of(from[c]);
            } else {
                reinterpret_cast<float *>(to)[at + c] = from[c];
            }
        }
    }
}

static r1_code
write_rows(r1_dev *dev, const r1_kv *kv, const r1_tensor *k, const r1_tensor *v, const r1_seqs *seqs,
           size_t blocks, int behind, r1_status *st)
{
    dim3 grid(grid_of(blocks, 1), (unsigned)kv->Hkv), block(WARP, WRITERS);
    if (kv->dtype == R1_BF16) {
        return LAUNCH(dev, st, kv_write_kernel<true>, grid, block, 0, *kv, *k, *v, *seqs, behind);
    }
    return LAUNCH(dev, st, kv_write_kernel<false>, grid, block, 0, *kv, *k, *v, *seqs, behind);
}

r1_code
CUDA(kv_write)(r1_dev *dev, const r1_kv *kv, const r1_tensor *k, const r1_tensor *v, const r1_seqs *seqs,
               r1_status *st)
{
    assert(k->cols == kv->Hkv * kv->D && v->cols == kv->Hkv * kv->Dv);
    R1_TRY(write_rows(dev, kv, k, v, seqs, grid_of(seqs->N, WARP), 0, st));
    return seqs->prefix == NULL ? R1_OK : write_rows(dev, kv, k, v, seqs, 2 * seqs->B, 1, st);
}

/* bytes (a multiple of 16), by all threads of COPIERS blocks */
static __device__ void
copy_block(char *to, const char *from, size_t bytes)
{
    for (size_t i = (size_t)blockIdx.y * blockDim.x + threadIdx.x; i < bytes / sizeof(uint4);
         i += (size_t)COPIERS * blockDim.x) {
        reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
    }
}

static __global__ void
kv_copy_kernel(r1_kv kv, const int32_t *pairs, size_t k_bytes, size_t v_bytes)
{
    int32_t from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
    copy_block(block_k(kv, to, 0), block_k(kv, from, 0), k_bytes);
    copy_block(block_v(kv, to, 0), block_v(kv, from, 0), v_bytes);
}

r1_code
CUDA(kv_copy)(r1_dev *dev, const r1_kv *kv, const int32_t *pairs, size_t n, r1_status *st)
{
    return LAUNCH(dev, st, kv_copy_kernel, dim3(grid_of(n, 1), COPIERS), 128, 0, *kv, pairs,
                  kv->Hkv * r1_kv_k_bytes(kv), kv->Hkv * r1_kv_v_bytes(kv));
}
