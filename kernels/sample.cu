/* sample.cu - draws one id per row.
 *
 *   e[v] = exp(z[v] - max z) on the support (support.cuh), 0 elsewhere
 *   ids[m] = the first id, ascending, whose cumulative e exceeds u x total
 *   u = uniform(philox(key, (prompt[m], generation[m], position[m], R1_DRAW_TOKEN)))   in [0, 1)
 *
 * Temperature 0: the largest logit, the lowest id of a tie. logits (M, V); the rest (M). The draw
 * depends on the row's logits and its four numbers, on nothing else.
 *
 * Cumulative sums are float32, one chain on three levels: tiles of 1,024 ids in order (support.cu sums them);
 * in the tile that is hit, runs of 32 ids, each a chain; in the run that is hit, ids. Where a level falls short
 * of what the one above promised, the last of positive e is taken, so an id of e = 0 is never drawn.
 * Knows no log-probabilities: those are logp_fwd's, for sampled and trained tokens alike. */
#include "../csrc/base/philox.h"
#include "support.cuh"

constexpr unsigned DRAWERS = 4; /* rows of a block: a warp has one */

/* The cumulative sum on its way to aim: where it stands, the last item of positive weight, and the sum before it. */
typedef struct {
    float aim, sum, before;
    size_t at;
    bool there;
} walk;

static __device__ inline walk
walk_from(float aim, float sum, size_t at)
{
    return {aim, sum, sum, at, false};
}

/* Goes on over the weights of lanes 0 .. count - 1, items first, first + 1, .. */
static __device__ inline void
walk_on(walk *w, float weight, size_t first, unsigned count)
{
    for (unsigned i = 0; i < count && !w->there; i++) {
        float x = __shfl_sync(ALL_LANES, weight, (int)i);
        if (x > 0.0f) {
            w->at = first + i;
            w->before = w->sum;
        }
        w->sum += x;
        w->there = w->sum > w->aim;
    }
}

/* e of an id; 0 beyond V */
static __device__ inline float
weight_of(const float *row, size_t v, size_t V, const id_filter &filter, sort_key limit, float m)
{
    return v < V ? f_exp(z_of(row[v], v, filter, limit, -1) - m) : 0.0f;
}

static __global__ void
sample_kernel(int32_t *ids, r1_tensor logits, row_sums sums, id_filter filter, uint64_t key,
              const int32_t *prompt, const int32_t *generation, const int32_t *position)
{
    size_t n = (size_t)blockIdx.x * DRAWERS + threadIdx.y, V = logits.cols;
    if (n >= logits.rows) {
        return;
    }
    const float *row = row_f32(logits, n);
    float m = row_max(sums, n), total = 0.0f, run = 0.0f;
    sort_key limit = limit_at(sums, n);
    for (size_t t = 0; t < sums.tiles; t += WARP) {
        unsigned count = sums.tiles - t < WARP ? (unsigned)(sums.tiles - t) : WARP;
        total = add_lanes(total, tile_weight(sums, n, t + threadIdx.x, m), count);
    }
    r1_philox4 counter = {{(uint32_t)prompt[n], (uint32_t)generation[n], (uint32_t)position[n], R1_DRAW_TOKEN}};
    float u = r1_uniform(r1_philox((uint32_t)key, (uint32_t)(key >> 32), counter).v[0]);
    walk tile = walk_from(u * total, 0.0f, 0);
    for (size_t t = 0; t < sums.tiles && !tile.there; t += WARP) {
        unsigned count = sums.tiles - t < WARP ? (unsigned)(sums.tiles - t) : WARP;
        walk_on(&tile, tile_weight(sums, n, t + threadIdx.x, m), t, count);
    }
    size_t first = tile.at * TILE_IDS;
    for (unsigned i = 0; i < WARP; i++) {
        run += weight_of(row, first + threadIdx.x * WARP + i, V, filter, limit, m);
    }
    walk runs = walk_from(tile.aim, tile.before, 0);
    walk_on(&runs, run, 0, WARP);
    first += runs.at * WARP;
    walk id = walk_from(tile.aim, runs.before, first);
    walk_on(&id, weight_of(row, first + threadIdx.x, V, filter, limit, m), first, WARP);
    if (threadIdx.x == 0) {
        ids[n] = (int32_t)id.at;
    }
}

/* Where is it true first, in lanes that stand for items first, first + 1, ..? *item, if anywhere. */
static __device__ inline bool
find_first(size_t *item, bool here, size_t first)
{
    unsigned lanes = __ballot_sync(ALL_LANES, here);
    *item = lanes != 0 ? first + (size_t)__ffs((int)lanes) - 1 : *item;
    return lanes != 0;
}

static __global__ void
argmax_kernel(int32_t *ids, r1_tensor logits, row_sums sums)
{
    size_t n = (size_t)blockIdx.x * DRAWERS + threadIdx.y, V = logits.cols, tile = 0, id = V - 1;
    if (n >= logits.rows) {
        return;
    }
    float m = row_max(sums, n);
    bool found = false;
    for (size_t first = 0; first < sums.tiles && !found; first += WARP) {
        size_t t = first + threadIdx.x;
        found = find_first(&tile, t < sums.tiles && sums.tile[n * sums.tiles + t].max == m, first);
    }
    found = false;
    for (size_t first = tile * TILE_IDS; first < V && !found; first += WARP) {
        size_t v = first + threadIdx.x;
        found = find_first(&id, v < V && row_f32(logits, n)[v] == m, first);
    }
    if (threadIdx.x == 0) {
        ids[n] = (int32_t)id;
    }
}

r1_code
CUDA(sample)(r1_dev *dev, int32_t *ids, const r1_tensor *logits, uint64_t key, const int32_t *prompt,
             const int32_t *generation, const int32_t *position, const r1_sampling *how, void *,
             r1_status *st)
{
    id_filter filter = filter_of(how, logits->cols);
    row_sums sums;
    unsigned grid = grid_of(logits->rows, DRAWERS);
    const dim3 block(WARP, DRAWERS);
    R1_TRY(sum_tiles(dev, &sums, logits, NULL, &filter, 0, st));
    return how->temperature == 0.0f
        ? LAUNCH(dev, st, argmax_kernel, grid, block, 0, ids, *logits, sums)
        : LAUNCH(dev, st, sample_kernel, grid, block, 0, ids, *logits, sums, filter, key, prompt,
                 generation, position);
}
