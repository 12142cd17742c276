/* support.cuh - the tempered logits of rows, which ids truncated sampling leaves of them, and their sums by tiles:
 * what logp.cu and sample.cu have in common. The filters and their order are those of csrc/cpu/support.h.
 *
 *   z = logits (1 / temperature), in float32
 *   key = (z descending, id ascending) as one integer ascending: 32 bits of z, id_bits of the id
 *   support = the ids whose key is below the row's limit, united with the target
 *
 * Each filter keeps a beginning of the sorted order, so it is a limit, and all of them are the least. */
#ifndef R1_SUPPORT_CUH
#define R1_SUPPORT_CUH

#include "vector.cuh"

extern "C" {
#include "../csrc/options.h"
}

constexpr unsigned TILE_IDS = 1024;

typedef unsigned long long sort_key; /* and whatever else is counted in 64 bits */

/* What is asked of a row, and how many bits its ids have. */
struct id_filter : row_filter {
    unsigned id_bits;
};

/* A tile's largest z m, its sum of e = exp(z - m), and of e (m - z) where the entropy is wanted. */
typedef struct {
    float max, sum, fall;
} tile_sums;

/* Of every row: its limit (NULL: nothing is truncated), the sums of its tiles. In the device's scratch. */
typedef struct {
    sort_key *limit;  /* (M) */
    tile_sums *tile;  /* (M, tiles) */
    size_t tiles;
} row_sums;

static inline size_t
tiles_of(const r1_tensor *logits)
{
    return (logits->cols + TILE_IDS - 1) / TILE_IDS;
}

/* support.cu */
id_filter filter_of(const r1_sampling *how, size_t V);
/* Finds the limits. Takes the device's scratch, for the tiles too if they are wanted. */
r1_code find_support(r1_dev *dev, row_sums *sums, const r1_tensor *logits, const id_filter *filter,
                     int with_tiles, r1_status *st);
/* find_support, then the sums of all tiles; targets (M) may be NULL. */
r1_code sum_tiles(r1_dev *dev, row_sums *sums, const r1_tensor *logits, const int32_t *targets,
                  const id_filter *filter, int entropy, r1_status *st);

/* ---- inside kernels ---- */

static __device__ inline float
minus_infinity()
{
    return __uint_as_float(0xff800000u);
}

/* The bits of a float sort like integers once negative ones are flipped. NaN sorts somewhere, always the
 * same place; -0 and 0 are a tie. */
static __device__ inline sort_key
key_of(float z, size_t id, unsigned id_bits)
{
    uint32_t bits = __float_as_uint(z + 0.0f);
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return (sort_key)bits << id_bits | id;
}

/* z of an id from its logit; -infinity outside the support */
static __device__ inline float
z_of(float logit, size_t id, const id_filter &filter, sort_key limit, int32_t target)
{
    float z = logit * filter.inverse;
    bool in = !filter.truncated || key_of(z, id, filter.id_bits) < limit || (int32_t)id == target;
    return in ? z : minus_infinity();
}

static __device__ inline sort_key
limit_at(const row_sums &sums, size_t n)
{
    return sums.limit != NULL ? sums.limit[n] : 0;
}

/* sum + x of lanes 0 .. count - 1 of the warp, in that order */
static __device__ inline float
add_lanes(float sum, float x, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        sum += __shfl_sync(ALL_LANES, x, i);
    }
    return sum;
}

/* The largest z of a row, from its tiles; all lanes of a warp call. */
static __device__ inline float
row_max(const row_sums &sums, size_t n)
{
    float m = minus_infinity();
    for (size_t t = threadIdx.x; t < sums.tiles; t += WARP) {
        m = f_max(m, sums.tile[n * sums.tiles + t].max);
    }
    return warp_max(m);
}

/* Sum of exp(z - m) of tile t, in units of m = the row's largest; 0 beyond the last. */
static __device__ inline float
tile_weight(const row_sums &sums, size_t n, size_t t, float m)
{
    tile_sums tile = t < sums.tiles ? sums.tile[n * sums.tiles + t] : tile_sums{};
    return tile.sum == 0.0f ? 0.0f : tile.sum * f_exp(tile.max - m);
}

#endif
