/* support.cu - see support.cuh. Two kernels: a row's limit, and the sums of a tile.
 *
 * Limits. The CPU sorts; here a block has a row and narrows the key down, ten bits a pass: a histogram of the
 * keys that begin like what is known so far, whose bins count 1 (top-k) or e = exp(z - max z) (top-p), and
 * the first bin where the count reaches what is asked for. All counts are integers, e in units of 2^-40, so
 * neither the order of threads nor their number matters. top-p's sum along the sorted order is then exact to V 2^-40
 * where the CPU's is a chain of float32: the supports are the same but for an id that lies on the border by that
 * much. What must be reached is the CPU's float32 product of top_p and the total.
 *
 * Sums. A warp has a tile of 1,024 ids in registers, 32 a lane, and reads it once: its largest z, then one chain a
 * lane, four neighbours in every 128, and a tree. */
#include "support.cuh"

constexpr unsigned DIGIT = 10, BINS = 1u << DIGIT; /* BINS is 32 times 32: two steps of a warp find one */
constexpr unsigned SUMMERS = 8;                    /* warps of a block that sums tiles */
constexpr unsigned FOURS = TILE_IDS / (4 * WARP);  /* of a lane */
constexpr float MASS = 0x1p40f;                    /* how often e's unit goes into 1 */

id_filter
filter_of(const r1_sampling *how, size_t V)
{
    id_filter f = {row_filter_of(how, V), 1};
    assert(V < (size_t)1 << 22); /* keys have 54 bits, sums of e 62 */
    while (V >> f.id_bits > 0) {
        f.id_bits++;
    }
    return f;
}

/* ---- limits ---- */

/* What an id weighs where the support is cut by probability; NaN weighs nothing. */
static __device__ inline sort_key
mass_of(float z, float largest)
{
    float e = f_exp(z - largest);
    return e > 0.0f ? (sort_key)(e * MASS) : 0;
}

/* Of 32 weights in the order of the lanes: the first lane at which their sum, begun at *before, reaches
 * enough (the last one if none does); *before becomes the sum in front of it. */
static __device__ inline unsigned
reach(sort_key weight, sort_key enough, sort_key *before)
{
    sort_key upto = weight;
    for (unsigned step = 1; step < WARP; step *= 2) {
        sort_key lower = __shfl_up_sync(ALL_LANES, upto, step);
        upto += threadIdx.x >= step ? lower : 0;
    }
    unsigned there = __ballot_sync(ALL_LANES, *before + upto >= enough);
    unsigned lane = there != 0 ? (unsigned)__ffs((int)there) - 1 : WARP - 1;
    *before += __shfl_sync(ALL_LANES, upto - weight, (int)lane);
    return lane;
}

/* A histogram of 64 bits in halves: shared memory adds 32 bits in one instruction, 64 in a loop. */
typedef struct {
    uint32_t low[BINS], high[BINS];
} histogram;

static __device__ inline void
bin_add(histogram &bins, unsigned bin, sort_key weight)
{
    uint32_t low = (uint32_t)weight, old = atomicAdd(&bins.low[bin], low);
    uint32_t high = (uint32_t)(weight >> 32) + (old + low < old); /* the one that wraps around carries */
    if (high > 0) {
        atomicAdd(&bins.high[bin], high);
    }
}

static __device__ inline sort_key
bin_sum(const histogram &bins, unsigned bin)
{
    return (sort_key)bins.high[bin] << 32 | bins.low[bin];
}

/* The bin at which the sum of bins reaches enough, by one warp; *before as in reach. */
static __device__ inline unsigned
find_bin(const histogram &bins, sort_key enough, sort_key *before)
{
    sort_key own = 0;
    for (unsigned i = 0; i < WARP; i++) {
        own += bin_sum(bins, threadIdx.x * WARP + (i + threadIdx.x) % WARP); /* each lane another bank */
    }
    unsigned first = reach(own, enough, before) * WARP;
    return first + reach(bin_sum(bins, first + threadIdx.x), enough, before);
}

/* The least key such that the keys up to it weigh enough, among those below limit. by_mass: an id weighs
 * mass_of, else 1. */
template <bool by_mass>
static __device__ sort_key
least_key(const float *logits, size_t V, const id_filter &filter, float largest, sort_key limit,
          sort_key enough)
{
    SHARED(bins, histogram);
    SHARED(found, sort_key[2]); /* the bin, what lies before it */
    sort_key known = 0;
    for (unsigned left = 32 + filter.id_bits; left > 0;) {
        unsigned digit = left < DIGIT ? left : DIGIT, next = left - digit;
        for (unsigned i = threadIdx.x; i < BINS; i += blockDim.x) {
            bins.low[i] = bins.high[i] = 0;
        }
        __syncthreads();
        for (size_t v = 4 * threadIdx.x; v < V; v += 4 * blockDim.x) {
            four x = load_4(logits + v, V - v);
#pragma unroll
            for (unsigned i = 0; i < 4 && v + i < V; i++) {
                float z = x.x[i] * filter.inverse;
                sort_key key = key_of(z, v + i, filter.id_bits);
                if (key < limit && key >> left == known) {
                    bin_add(bins, (unsigned)(key >> next) & ((1u << digit) - 1u),
                            by_mass ? mass_of(z, largest) : 1ull);
                }
            }
        }
        __syncthreads();
        if (threadIdx.x < WARP) {
            sort_key before = 0;
            unsigned bin = find_bin(bins, enough, &before);
            if (threadIdx.x == 0) {
                found[0] = bin;
                found[1] = before;
            }
        }
        __syncthreads();
        known = known << digit | found[0];
        enough -= found[1];
        left = next;
    }
    return known;
}

/* The mass of the keys below limit; the least key below it whose e is under min_p. */
static __device__ void
scan_row(sort_key *total, sort_key *failing, const float *logits, size_t V, const id_filter &filter,
         float largest, sort_key limit)
{
    SHARED(all, sort_key[2]);
    sort_key sum = 0, least = limit;
    if (threadIdx.x == 0) {
        all[0] = 0;
        all[1] = limit;
    }
    __syncthreads();
    for (size_t v = 4 * threadIdx.x; v < V; v += 4 * blockDim.x) {
        four x = load_4(logits + v, V - v);
#pragma unroll
        for (unsigned i = 0; i < 4 && v + i < V; i++) {
            float z = x.x[i] * filter.inverse;
            sort_key key = key_of(z, v + i, filter.id_bits);
            if (key < limit) {
                sum += mass_of(z, largest);
                least = f_exp(z - largest) < filter.min_p && key < least ? key : least;
            }
        }
    }
    atomicAdd(&all[0], sum);
    atomicMin(&all[1], least);
    __syncthreads();
    *total = all[0];
    *failing = all[1];
}

/* A block has a row. */
static __global__ void __launch_bounds__(1024)
limit_kernel(sort_key *limits, r1_tensor logits, id_filter filter)
{
    const float *row = row_f32(logits, blockIdx.x);
    size_t V = logits.cols;
    float largest = minus_infinity();
    sort_key limit = 1ull << (32 + filter.id_bits), total = 0, failing = limit;
    for (size_t v = 4 * threadIdx.x; v < V; v += 4 * blockDim.x) {
        four x = load_4(row + v, V - v);
#pragma unroll
        for (unsigned i = 0; i < 4 && v + i < V; i++) {
            largest = f_max(x.x[i] * filter.inverse, largest);
        }
    }
    largest = block_max(largest);
    if (filter.top_k < V) {
        limit = least_key<false>(row, V, filter, largest, limit, filter.top_k) + 1;
    }
    if (filter.top_p < 1.0f || filter.min_p > 0.0f) {
        scan_row(&total, &failing, row, V, filter, largest, limit);
    }
    if (filter.top_p < 1.0f) {
        sort_key enough = (sort_key)(filter.top_p * (float)total);
        limit = least_key<true>(row, V, filter, largest, limit, enough > 0 ? enough : 1) + 1;
    }
    if (threadIdx.x == 0) {
        limits[blockIdx.x] = failing < limit ? failing : limit;
    }
}

r1_code
find_support(r1_dev *dev, row_sums *sums, const r1_tensor *logits, const id_filter *filter, int with_tiles,
             r1_status *st)
{
    size_t M = logits->rows, V = logits->cols;
    void *p = NULL;
    *sums = {NULL, NULL, tiles_of(logits)};
    size_t limits = filter->truncated ? M * sizeof(sort_key) : 0;
    size_t tiles = with_tiles ? M * sums->tiles * sizeof(tile_sums) : 0;
    R1_TRY(dev_scratch(dev, &p, limits + tiles, st));
    sums->limit = filter->truncated ? static_cast<sort_key *>(p) : NULL;
    sums->tile = reinterpret_cast<tile_sums *>(static_cast<char *>(p) + limits);
    if (!filter->truncated) {
        return R1_OK;
    }
    return LAUNCH(dev, st, limit_kernel, grid_of(M, 1), V <= 256 ? 32 : V <= 8192 ? 256 : 1024, 0,
                  sums->limit, *logits, *filter);
}

/* ---- sums ---- */

template <bool entropy>
static __global__ void
tile_kernel(row_sums sums, r1_tensor logits, const int32_t *targets, id_filter filter)
{
    size_t task = (size_t)blockIdx.x * SUMMERS + threadIdx.y, n = task / sums.tiles;
    if (n >= logits.rows) {
        return;
    }
    size_t first = task % sums.tiles * TILE_IDS + 4 * threadIdx.x, V = logits.cols;
    sort_key limit = limit_at(sums, n);
    int32_t target = targets != NULL ? targets[n] : -1;
    float z[FOURS][4], m = minus_infinity(), sum = 0.0f, fall = 0.0f;
#pragma unroll
    for (unsigned j = 0; j < FOURS; j++) {
        size_t v = first + j * 4 * WARP;
        four x = v < V ? load_4(row_f32(logits, n) + v, V - v) : four{};
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            z[j][i] = v + i < V ? z_of(x.x[i], v + i, filter, limit, target) : minus_infinity();
            m = f_max(m, z[j][i]);
        }
    }
    m = warp_max(m);
    float base = m == minus_infinity() ? 0.0f : m; /* nothing of this tile is in the support: all e are 0 */
#pragma unroll
    for (unsigned j = 0; j < FOURS; j++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            float e = f_exp(z[j][i] - base);
            sum += e;
            if (entropy) {
                fall += e == 0.0f ? 0.0f : e * (base - z[j][i]);
            }
        }
    }
    sum = warp_sum(sum);
    fall = entropy ? warp_sum(fall) : 0.0f;
    if (threadIdx.x == 0) {
        sums.tile[task] = {m, sum, fall};
    }
}

r1_code
sum_tiles(r1_dev *dev, row_sums *sums, const r1_tensor *logits, const int32_t *targets,
          const id_filter *filter, int entropy, r1_status *st)
{
    R1_TRY(find_support(dev, sums, logits, filter, 1, st));
    unsigned grid = grid_of(logits->rows * sums->tiles, SUMMERS);
    const dim3 block(WARP, SUMMERS);
    return entropy ? LAUNCH(dev, st, tile_kernel<true>, grid, block, 0, *sums, *logits, targets, *filter)
                   : LAUNCH(dev, st, tile_kernel<false>, grid, block, 0, *sums, *logits, targets, *filter);
}
