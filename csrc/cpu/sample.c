/* sample.c - draws one id per row.
 *
 *   e[v] = exp(z[v] - max z) on the support (support.h), 0 elsewhere
 *   ids[m] = the first id, ascending, whose cumulative e exceeds u x total
 *   u = uniform(philox(key, (prompt[m], generation[m], position[m], R1_DRAW_TOKEN)))   in [0, 1)
 *
 * Temperature 0: the largest logit, the lowest id of a tie. logits (M, V); the rest (M). The draw
 * depends on the row's logits and its four numbers, on nothing else.
 *
 * Cumulative sums are float32: tiles of 1,024 ids (each W chains and a tree) added in order; inside
 * the tile that is hit, one chain over ids. Should that chain fall short of what the tile's tree
 * promised, the tile's last id of positive e is taken. An id of e = 0 is never drawn.
 * Knows no log-probabilities: those are logp_fwd's, for sampled and trained tokens alike.
 */
#include "../base/philox.h"
#include "split.h"
#include "support.h"

typedef struct {
    int32_t *ids;
    const r1_tensor *logits;
    uint64_t key;
    const int32_t *prompt, *generation, *position;
    int greedy;
    row_filter filter;
    uint64_t *scratch; /* (threads, V): keys, then e */
    size_t rows;
} sample_job;

static int32_t
row_argmax(const float *x, size_t V)
{
    size_t best = 0;
    row_view row = {x, V, 1.0f, 0, 0.0f, 0, -1};
    float largest = row_max(&row, 0, V);
    while (best < V - 1 && x[best] != largest) {
        best++;
    }
    return (int32_t)best;
}

/* e (V) = exp(z - max z); returns the total. */
static float
row_weights(float *e, const row_view *row)
{
    float m = row_max(row, 0, row->V), total = 0.0f;
    for (size_t first = 0; first < row->V; first += TILE_IDS) {
        size_t end = row->V - first < TILE_IDS ? row->V : first + TILE_IDS;
        vf sum = {0};
        for (size_t v = first; v < end; v += W) {
            vf x = vf_exp(row_z(row, v) - vf_set1(m));
            vf_store_left(e + v, x, row->V - v);
            sum = sum + x;
        }
        total += vf_sum(sum);
    }
    return total;
}

static float
tile_sum(const float *e, size_t n)
{
    vf sum = {0};
    for (size_t v = 0; v < n; v += W) {
        sum = sum + vf_load_left(e + v, n - v);
    }
    return vf_sum(sum);
}

/* The id where the cumulative e exceeds aim. */
static int32_t
row_draw(const float *e, size_t V, float aim)
{
    size_t hit = 0; /* the first id of the tile that is walked */
    float sum = 0.0f, before = 0.0f;
    for (size_t first = 0; first < V; first += TILE_IDS) {
        float tile = tile_sum(e + first, V - first < TILE_IDS ? V - first : TILE_IDS);
        if (tile > 0.0f) {
            hit = first;
            before = sum;
        }
        sum += tile;
        if (sum > aim) {
            break;
        }
    }
    size_t drawn = hit, end = V - hit < TILE_IDS ? V : hit + TILE_IDS;
    float inside = 0.0f;
    for (size_t v = hit; v < end; v++) {
        if (e[v] > 0.0f) {
            drawn = v;
            inside += e[v];
            if (before + inside > aim) {
                break;
            }
        }
    }
    return (int32_t)drawn;
}

static void
sample_task(void *ctx, size_t task, size_t worker)
{
    const sample_job *job = ctx;
    size_t V = job->logits->cols;
    uint32_t k0 = (uint32_t)job->key, k1 = (uint32_t)(job->key >> 32);
    size_t begin = task * job->rows, end = split_end(job->logits->rows, begin, job->rows);
    for (size_t n = begin; n < end; n++) {
        const float *logits = row_f32(job->logits, n);
        if (job->greedy) {
            job->ids[n] = row_argmax(logits, V);
            continue;
        }
        r1_philox4 counter = {{(uint32_t)job->prompt[n], (uint32_t)job->generation[n],
                               (uint32_t)job->position[n], R1_DRAW_TOKEN}};
        float u = r1_uniform(r1_philox(k0, k1, counter).v[0]);
        uint64_t *keys = job->scratch + worker * V;
        row_view row = row_open(logits, V, &job->filter, -1, keys);
        float *e = (float *)keys;
        float total = row_weights(e, &row);
        job->ids[n] = row_draw(e, V, u * total);
    }
}

r1_code
TIER(sample)(r1_dev *dev, int32_t *ids, const r1_tensor *logits, uint64_t key,
             const int32_t *prompt, const int32_t *generation, const int32_t *position,
             const r1_sampling *how, void *scratch, r1_status *st)
{
    (void)st;
    sample_job job = {.ids = ids, .logits = logits, .key = key, .prompt = prompt,
                      .generation = generation, .position = position,
                      .greedy = how->temperature == 0.0f,
                      .filter = row_filter_of(how, logits->cols), .scratch = scratch,
                      .rows = split_rows(logits->cols * 4)};
    r1_pool_run(dev->pool, split_count(logits->rows, job.rows), sample_task, &job);
    return R1_OK;
}
