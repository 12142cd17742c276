/* matmul.cu - the three products of a linear map, over one matrix or a group of experts (product.cuh).
 *
 *   nt   y  (N, O)   [+]= x (N, I) W^T [+ bias]
 *   nn   dx (N, I)   [+]= dy (N, O) W
 *   tn   dW (E O, I) [+]= dy^T (O, N) x (N, I)
 *
 * float32 (product_f32.cuh): an element is one chain of fused multiply-adds in ascending index order that
 * starts from the value in memory, from bias, or from 0: the CPU's bits. bf16 (product_bf16.cuh): a chain of
 * tensor-core instructions of 16 terms, likewise. Neither knows how many rows there are, so any tile gives
 * the same bits: the choice below is about speed alone, and large tiles are taken where they still make
 * enough blocks. At most 16 rows, those of decoding, have a kernel of their own (product_few.cuh).
 *
 * An instruction waits for the one before it, and in a product of one row that is most of the time where I is large.
 * So nt of bf16 cuts I into segments of at most CHAIN terms, as many as I says and nobody else: the first is a chain
 * from the start, the others from 0, and their sums are added in ascending order, of one row or of thousands. Where
 * that leaves a GPU idle, rows of more than a few are multiplied in narrower tiles (NARROW_TILES) and all segments
 * at once, their sums in scratch memory.
 *
 * tn sums over rows. Where a gradient is too small to keep a GPU busy, the rows are cut into segments, as many
 * as its shape and N say: each is a sum of its own from 0 and they are added in ascending order, so gradients
 * are the same from run to run, and between splits into calls to float32 rounding. Units are of no use here.
 *
 * One bf16 matrix of some shapes is multiplied by cuBLASLt instead, where it is there (cublaslt.cu has the rule).
 *
 * Activations are float32; for bf16 they are rounded once into scratch memory, since every tile of columns
 * reads them again, at half the bytes; a few rows are rounded as they are read. Numbers below 2^-126 count
 * as what they are. */
#include "cublaslt.cuh"
#include "product_f32.cuh"
#include "product_few.cuh"
#include "vector.cuh"

enum tile_size { FEW, MEDIUM, LARGE };

constexpr tile F32_TILES[] = {{16, 64, 32, 4}, {64, 64, 16, 4}, {128, 64, 16, 4}};
constexpr tile BF16_TILES[] = {few_tile(32), {64, 64, 64, 4}, {128, 256, 32, 4}};
constexpr tile NARROW_TILES[] = {{64, 32, 64, 6}, {64, 16, 64, 8}}; /* MEDIUM's, where its blocks were too few */

constexpr size_t ENOUGH = 128;          /* blocks that keep a GPU busy: tn's segments may not know which GPU */
constexpr size_t SEGMENT_ROWS = 1024;   /* at least, where tn's rows are cut */
constexpr size_t SEGMENT_STEP = 64;
constexpr size_t CHAIN = 2048;          /* terms of a sum of nt, at most, that one chain adds up */
constexpr size_t EACH = 8;              /* elements of a row that a thread rounds at a time */
constexpr unsigned ROUND_THREADS = 64, ROUND_ROWS = 4, MERGE_THREADS = 256;

static size_t
split(size_t count, size_t each)
{
    return count / each + (count % each != 0);
}

/* ---- before and after a product -------------------------------------------------------------- */

/* to (N, C) bf16, rows aligned to 16 bytes = x (N, C) rounded */
static __global__ void
round_rows_kernel(r1_tensor to, r1_tensor x)
{
    size_t n = (size_t)blockIdx.x * ROUND_ROWS + threadIdx.y;
    if (n >= x.rows) {
        return;
    }
    uint16_t *row = static_cast<uint16_t *>(to.data) + n * to.ld;
    for (size_t c = threadIdx.x * EACH; c < x.cols; c += ROUND_THREADS * EACH) {
        const float *from = row_f32(x, n) + c;
        size_t left = x.cols - c;
        four low = load_4(from, left), high = load_4(from + 4, left > 4 ? left - 4 : 0);
        *reinterpret_cast<uint4 *>(row + c) =
            make_uint4(round_pair(low.x[0], low.x[1]), round_pair(low.x[2], low.x[3]),
                       round_pair(high.x[0], high.x[1]), round_pair(high.x[2], high.x[3]));
    }
}

/* c [+]= the segments' sums (segments, rows, columns), ascending */
static __global__ void
merge_kernel(r1_tensor c, const float *sums, size_t segments, int accumulate)
{
    size_t i = (size_t)blockIdx.x * MERGE_THREADS + threadIdx.x, count = c.rows * c.cols;
    if (i >= count) {
        return;
    }
    float *to = row_f32(c, i / c.cols) + i % c.cols;
    float sum = accumulate ? *to : 0.0f;
    for (size_t s = 0; s < segments; s++) {
        sum += sums[s * count + i];
    }
    *to = sum;
}

struct job {
    r1_tensor c, a, b;
    const float *bias;
    const int32_t *offsets;
    product p;
};

/* ---- which tiles ------------------------------------------------------------------------------- */

/* How many tiles c has, and blocks. */
template <form F>
static size_t
count_blocks(product *p, tile t, const int32_t *offsets)
{
    size_t rows = split(F == FORM_TN ? p->rows : p->N, t.rows);
    if (F != FORM_TN && offsets != NULL) { /* of each expert one may be begun */
        rows = p->N / t.rows + p->E < p->N ? p->N / t.rows + p->E : p->N;
    }
    p->row_tiles = (unsigned)rows;
    p->column_tiles = (unsigned)split(p->columns, t.columns);
    return rows * p->column_tiles * (F == FORM_TN ? p->E * p->segments : 1);
}

/* Few rows are for nt alone, which has them at every step of decoding; large tiles if there is one for every
 * multiprocessor. */
template <form F>
static tile_size
choose(product p, const tile *tiles, const r1_dev *dev)
{
    size_t rows = F == FORM_TN ? p.rows : p.N / p.E;
    if (F == FORM_NT && rows <= tiles[FEW].rows) {
        return FEW;
    }
    size_t blocks = count_blocks<F>(&p, tiles[LARGE], NULL);
    return rows >= tiles[LARGE].rows && blocks >= (size_t)dev->processors ? LARGE : MEDIUM;
}

/* MEDIUM tiles of nt, or narrower ones, are enough blocks if every other multiprocessor has one: fewer wait for
 * the weights alone, and more read x once more each. */
static bool
enough_blocks(const r1_dev *dev, const job &j, tile t)
{
    product p = j.p;
    size_t blocks = count_blocks<FORM_NT>(&p, t, j.offsets) * (p.more != NULL ? p.segments : 1);
    return 2 * blocks >= (size_t)dev->processors;
}

/* Cuts the rows of tn where large tiles are too few, by shapes alone. How many segments there is to be room for:
 * as they are whole steps, there may be one fewer of more rows. */
static size_t
cut_segments(product *p, tile large)
{
    size_t wanted = ENOUGH / split(p->rows, large.rows) / split(p->columns, large.columns);
    size_t most = p->N / SEGMENT_ROWS;
    wanted = wanted < most ? wanted : most;
    if (wanted > 1) {
        p->segment = split(split(p->N, wanted), SEGMENT_STEP) * SEGMENT_STEP;
        p->segments = split(p->N, p->segment);
    }
    return wanted;
}

/* Cuts the sums of nt, by their length alone. */
static void
cut_chain(product *p)
{
    size_t wanted = p->depth > CHAIN ? split(p->depth, CHAIN) : 1;
    p->segment = split(split(p->depth, wanted), SEGMENT_STEP) * SEGMENT_STEP;
    p->segments = wanted > 1 ? split(p->depth, p->segment) : 1;
}

/* ---- a product ------------------------------------------------------------------------------- */

template <form F, tile T>
static r1_code
start_f32(r1_dev *dev, job j, r1_status *st)
{
    unsigned blocks = grid_of(count_blocks<F>(&j.p, T, j.offsets), 1);
    return LAUNCH(dev, st, (product_f32_kernel<F, T>), blocks, F32_THREADS, f32_shared(T), j.c, j.a, j.b, j.bias,
                  j.offsets, j.p);
}

/* The columns of a bf16 tensor from `first` on. */
static r1_tensor
columns_from(const r1_tensor &x, size_t first)
{
    return {static_cast<uint16_t *>(x.data) + first, R1_BF16, x.rows, x.cols - first, x.ld};
}

/* Segment after segment of nt, or all at once; the other forms have one. */
template <form F, tile T>
static r1_code
start_bf16(r1_dev *dev, const job &given, r1_status *st)
{
    size_t segments = F == FORM_NT ? given.p.segments : 1, at_once = given.p.more != NULL ? segments : 1;
    for (size_t s = 0; s < segments; s += at_once) {
        job j = given;
        size_t first = F == FORM_NT ? s * j.p.segment : 0, left = j.p.depth - first;
        if (F == FORM_NT) {
            j.a = columns_from(j.a, first);
            j.b = columns_from(j.b, first);
            j.p.depth = at_once > 1 || left < j.p.segment ? left : j.p.segment;
        }
        if (s > 0) {
            j.bias = NULL;
            j.p.accumulate = 0;
            j.p.add = 1;
        }
        unsigned blocks = grid_of(count_blocks<F>(&j.p, T, j.offsets) * at_once, 1);
        R1_TRY(LAUNCH(dev, st, (product_bf16_kernel<F, T>), blocks, bf16_threads(T), bf16_shared(F, T), j.c, j.a,
                      j.b, j.bias, j.offsets, j.p));
    }
    return R1_OK;
}

template <unsigned COLUMNS>
static r1_code
start_few(r1_dev *dev, job j, r1_status *st)
{
    unsigned blocks = grid_of(count_blocks<FORM_NT>(&j.p, few_tile(COLUMNS), j.offsets), 1);
    unsigned groups = few_groups(j.p, COLUMNS);
    return LAUNCH(dev, st, product_few_kernel<COLUMNS>, blocks, dim3(WARP, COLUMNS / 8, groups),
                  groups * few_shared(COLUMNS, at_most(j.p.N, FEW_ROWS)), j.c, j.a, j.b, j.bias, j.offsets, j.p);
}

template <form F>
static r1_code
start(r1_dev *dev, const job &j, tile_size size, bool bf16, r1_status *st)
{
    if constexpr (F == FORM_NT) {
        if (size == FEW) {
            product p = j.p;
            return !bf16 ? start_f32<F, F32_TILES[FEW]>(dev, j, st)
                   : count_blocks<F>(&p, BF16_TILES[FEW], j.offsets) >= ENOUGH ? start_few<32>(dev, j, st)
                                                                               : start_few<8>(dev, j, st);
        }
    }
    if constexpr (F == FORM_NT) {
        if (bf16 && size == MEDIUM && !enough_blocks(dev, j, BF16_TILES[MEDIUM])) {
            return enough_blocks(dev, j, NARROW_TILES[0]) ? start_bf16<F, NARROW_TILES[0]>(dev, j, st)
                                                          : start_bf16<F, NARROW_TILES[1]>(dev, j, st);
        }
    }
    if (size == MEDIUM) {
        return bf16 ? start_bf16<F, BF16_TILES[MEDIUM]>(dev, j, st)
                    : start_f32<F, F32_TILES[MEDIUM]>(dev, j, st);
    }
    return bf16 ? start_bf16<F, BF16_TILES[LARGE]>(dev, j, st)
                : start_f32<F, F32_TILES[LARGE]>(dev, j, st);
}

/* x becomes its rounded copy, which is not there yet if `a` only measures. */
static void
copy_place(r1_arena *a, r1_tensor *x)
{
    size_t ld = split(x->cols, EACH) * EACH;
    *x = {r1_arena_push(a, x->rows * ld, sizeof(uint16_t)), R1_BF16, x->rows, x->cols, ld};
}

static r1_code
round_rows(r1_dev *dev, const r1_tensor &to, const r1_tensor &x, r1_status *st)
{
    return LAUNCH(dev, st, round_rows_kernel, grid_of(x.rows, ROUND_ROWS), dim3(ROUND_THREADS, ROUND_ROWS), 0, to,
                  x);
}

/* The shape of the one weight of a product, and the form that cuBLASLt would have to compute. */
struct lt_job {
    size_t O, I;
    lt_form form;
};

template <form F>
static lt_job
lt_job_of(const job &j)
{
    size_t inner = F == FORM_TN ? j.p.rows : j.p.depth;
    if (F == FORM_NT) {
        return {j.p.columns, inner, j.bias != NULL ? LT_NT_BIAS : j.p.accumulate ? LT_NT_ADD : LT_NT};
    }
    return {inner, j.p.columns, F == FORM_NN ? LT_NN : LT_TN};
}

/* Rows to or from a place that is aligned; they may lie in mapped memory of the host. */
static r1_code
copy_rows(r1_dev *dev, const r1_tensor &to, const r1_tensor &from, r1_status *st)
{
    return dev->pretends ? R1_OK
         : dev_check(dev, cudaMemcpy2DAsync(to.data, to.ld * sizeof(float), from.data, from.ld * sizeof(float),
                                            to.cols * sizeof(float), to.rows, cudaMemcpyDefault,
                                            dev->stream), "copying rows", st);
}

/* The product of j by cuBLASLt, all of whose operands lie aligned: in scratch memory where they do not.
 * *refused: nothing has been written, and our kernel computes it. */
template <form F>
static r1_code
run_lt(r1_dev *dev, const job &given, const lt_job &how, bool *refused, r1_status *st)
{
    job j = given;
    bool move = ((uintptr_t)j.c.data | j.c.ld * sizeof(float)) % 16 != 0;
    r1_arena memory = {};
    for (int placing = 0; placing < 2; placing++) { /* measured, then placed */
        copy_place(&memory, &j.a);
        if (F == FORM_TN) {
            copy_place(&memory, &j.b);
        }
        if (move) {
            size_t rows = given.c.rows, columns = given.c.cols;
            j.c = r1_f32(static_cast<float *>(r1_arena_push(&memory, rows * columns, sizeof(float))), rows,
                         columns);
        }
        if (placing == 0) {
            void *base = NULL;
            R1_TRY(dev_scratch(dev, &base, memory.used, st));
            memory = {static_cast<unsigned char *>(base), memory.used, 0};
        }
    }
    R1_TRY(round_rows(dev, j.a, given.a, st));
    if (F == FORM_TN) {
        R1_TRY(round_rows(dev, j.b, given.b, st));
    }
    if (move && j.p.accumulate) {
        R1_TRY(copy_rows(dev, j.c, given.c, st));
    }
    R1_TRY(lt_multiply(dev, how.form, how.O, how.I, j.c, j.a, j.b, j.bias, j.p.accumulate, refused, st));
    return move && !*refused ? copy_rows(dev, given.c, j.c, st) : R1_OK;
}

/* The product of j in this dtype; its operands that are float32 are rounded, its segments added up. */
template <form F>
static r1_code
run(r1_dev *dev, const job &given, r1_dtype dtype, r1_status *st)
{
    bool bf16 = dtype == R1_BF16;
    const tile *tiles = bf16 ? BF16_TILES : F32_TILES;
    job j = given;
    lt_job how = lt_job_of<F>(j);
    if (bf16 && j.offsets == NULL && j.p.N > 0 && lt_serves(dev, how.form, how.O, how.I)) {
        bool refused;
        R1_TRY(run_lt<F>(dev, given, how, &refused, st));
        if (!refused) {
            return R1_OK;
        }
    }
    size_t room = F == FORM_TN && j.offsets == NULL ? cut_segments(&j.p, tiles[LARGE]) : 1;
    if (F == FORM_NT && bf16) {
        cut_chain(&j.p);
    }
    tile_size size = choose<F>(j.p, tiles, dev);
    bool copy_a = bf16 && size != FEW, copy_b = bf16 && F == FORM_TN, merge = F == FORM_TN && j.p.segments > 1;
    bool may_spread = F == FORM_NT && bf16 && j.p.segments > 1 && j.offsets == NULL;
    bool spread = may_spread && size == MEDIUM && !enough_blocks(dev, j, tiles[MEDIUM]);
    r1_arena memory = {};
    for (int placing = 0; placing < 2; placing++) { /* measured, then placed */
        if (copy_a) {
            copy_place(&memory, &j.a);
        }
        if (copy_b) {
            copy_place(&memory, &j.b);
        }
        if (merge) {
            size_t rows = j.p.segments * j.p.rows, columns = j.p.columns;
            float *sums = static_cast<float *>(r1_arena_push(&memory, room * j.p.rows * columns, sizeof(float)));
            j.c = r1_f32(sums, rows, columns);
            j.p.accumulate = 0;
        }
        if (spread || (may_spread && dev->pretends)) { /* a plan: of as many rows as are spread at most */
            size_t most = (size_t)dev->processors / 2 * tiles[MEDIUM].rows * tiles[MEDIUM].columns;
            size_t behind = (j.p.segments - 1) * (j.p.N * j.p.columns < most ? j.p.N * j.p.columns : most);
            j.p.more = static_cast<float *>(r1_arena_push(&memory, behind, sizeof(float)));
        }
        if (placing == 0 && memory.used > 0) {
            void *base = NULL;
            R1_TRY(dev_scratch(dev, &base, memory.used, st));
            memory = {static_cast<unsigned char *>(base), memory.used, 0};
        }
    }
    if (copy_a) {
        R1_TRY(round_rows(dev, j.a, given.a, st));
    }
    if (copy_b) {
        R1_TRY(round_rows(dev, j.b, given.b, st));
    }
    R1_TRY(start<F>(dev, j, size, bf16, st));
    if (spread) {
        return LAUNCH(dev, st, merge_kernel, grid_of(j.p.N * j.p.columns, MERGE_THREADS), MERGE_THREADS, 0, given.c,
                      (const float *)j.p.more, j.p.segments - 1, 1);
    }
    return merge ? LAUNCH(dev, st, merge_kernel, grid_of(j.p.rows * j.p.columns, MERGE_THREADS), MERGE_THREADS, 0,
                          given.c, (const float *)j.c.data, j.p.segments, given.p.accumulate)
                 : R1_OK;
}

static r1_tensor
matrices(const r1_weight *w)
{
    return {w->seen, w->dtype, w->E * w->O, w->I, w->I};
}

r1_code
CUDA(matmul_nt)(r1_dev *dev, const r1_tensor *y, const r1_tensor *x, const r1_weight *w, const r1_tensor *bias,
                const int32_t *offsets, int accumulate, r1_status *st)
{
    assert(y->rows == x->rows && y->cols == w->O && x->cols == w->I);
    assert(!(accumulate && bias != NULL) && (offsets != NULL || w->E == 1));
    product p = {.N = x->rows, .E = w->E, .rows = x->rows, .columns = w->O, .depth = w->I,
                 .accumulate = accumulate};
    job j = {*y, *x, matrices(w), bias != NULL ? (const float *)bias->data : NULL, offsets, p};
    return run<FORM_NT>(dev, j, w->dtype, st);
}

r1_code
CUDA(matmul_nn)(r1_dev *dev, const r1_tensor *dx, const r1_tensor *dy, const r1_weight *w,
                const int32_t *offsets, int accumulate, r1_status *st)
{
    assert(dx->rows == dy->rows && dy->cols == w->O && dx->cols == w->I);
    assert(w->master != NULL && (offsets != NULL || w->E == 1));
    product p = {.N = dy->rows, .E = w->E, .rows = dy->rows, .columns = w->I, .depth = w->O,
                 .accumulate = accumulate};
    return run<FORM_NN>(dev, {*dx, *dy, matrices(w), NULL, offsets, p}, w->dtype, st);
}

r1_code
CUDA(matmul_tn)(r1_dev *dev, const r1_tensor *dw, const r1_tensor *dy, const r1_tensor *x, size_t E,
                const int32_t *offsets, r1_dtype dtype, const r1_units *, int accumulate, r1_status *st)
{
    assert(dw->rows == E * dy->cols && dw->cols == x->cols && dy->rows == x->rows);
    assert(offsets != NULL || E == 1);
    product p = {.N = x->rows, .E = E, .rows = dy->cols, .columns = x->cols,
                 .accumulate = accumulate, .segment = x->rows};
    return run<FORM_TN>(dev, {*dw, *dy, *x, NULL, offsets, p}, dtype, st);
}
