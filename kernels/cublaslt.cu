/* cublaslt.cu - which products cuBLASLt computes, and by which of its algorithms.
 *
 * THE RULE. In exact mode a row's bits may not depend on how many rows there are. For each form y = x W^T of a
 * weight's shape there is one algorithm for 1 row, up to 7, 64, 257, and more rows: of those that the library
 * proposes for so many, the first that gives every row, with the fewest and with the most rows that it would
 * serve and with some number between (TRIED), the bits that the row has among 4,096 (find_equal). Products of more
 * rows than were tried are done in parts (lt_shape.most; a wide matrix is tried with fewer, so that a trial stays
 * small). If a number of rows has no algorithm, our own kernel
 * computes the form for all. Gradients need the same bits in every run alone, and the fast mode no more than that
 * for all forms: there the library's first proposal is taken, untried, and where it turns out not to do some
 * number of rows (its parts outgrow the workspace), our kernel multiplies those. In all of them an algorithm is
 * fixed for good when the first weight of its shape is opened, works in one fixed workspace, and never adds up
 * in the order in which parts happen to be done (reductions in place).
 *
 * The bits are compared on rows and weights of noise: what is proven is the order of sums, not a value. */
#include <stdarg.h>
#include <stdio.h>

#include "cublaslt_library.cuh"
#include "math.cuh"

constexpr size_t ROWS[LT_CLASSES] = {1, 7, 64, 257, 4096};
/* Rows at once: as many as have x and y in so many bytes, within these bounds. */
constexpr size_t LEAST = ROWS[LT_CLASSES - 2] + 1, MOST = 3 * 4096 + 1, TRIAL_BYTES = (size_t)256 << 20;
/* What an algorithm is tried with beside ROWS: the fewest of its class, one just above a likely tile, the most. */
constexpr size_t TRIED[LT_CLASSES][3] = {{}, {2, 4}, {8, 33}, {65, 129}, {LEAST, 2049, MOST}};
constexpr size_t PERIOD = 61;  /* test rows repeat after so many, a prime: each lies everywhere in a tile */
constexpr size_t ALIGNED = 8;  /* O and I are multiples of so many elements: 16 bytes of bf16 */
constexpr int PROPOSALS = 8;
constexpr unsigned THREADS = 256, EACH = 64; /* elements of a thread, THREADS apart */

/* ---- products ---- */

static lt_shape *
find_shape(const r1_dev *dev, size_t O, size_t I)
{
    lt_shape *shape = dev->lt != NULL ? dev->lt->shapes : NULL;
    while (shape != NULL && (shape->O != O || shape->I != I)) {
        shape = shape->next;
    }
    return shape;
}

static bool
may_serve(const r1_dev *dev, size_t O, size_t I)
{
    return dev->lt != NULL && O > 0 && I > 0 && O % ALIGNED == 0 && I % ALIGNED == 0;
}

bool
lt_serves(const r1_dev *dev, lt_form form, size_t O, size_t I)
{
    const lt_shape *shape = find_shape(dev, O, I);
    return dev->pretends ? may_serve(dev, O, I) : shape != NULL && shape->serves[form];
}

static size_t
class_of(size_t rows)
{
    size_t i = 0;
    while (i < LT_CLASSES - 1 && rows > ROWS[i]) {
        i++;
    }
    return i;
}

/* `count` rows of x, or as many as there are, from `first` on. */
static r1_tensor
rows_from(const r1_tensor &x, size_t first, size_t count)
{
    size_t left = x.rows - first, width = x.dtype == R1_BF16 ? sizeof(uint16_t) : sizeof(float);
    return {static_cast<unsigned char *>(x.data) + first * x.ld * width, x.dtype, left < count ? left : count, x.cols,
            x.ld};
}

r1_code
lt_multiply(r1_dev *dev, lt_form form, size_t O, size_t I, const r1_tensor &c, const r1_tensor &a,
            const r1_tensor &b, const float *bias, int accumulate, bool *refused, r1_status *st)
{
    *refused = dev->pretends; /* our kernel's need is looked at too */
    if (*refused) {
        return R1_OK;
    }
    const lt_shape *shape = find_shape(dev, O, I);
    bool bound = !dev->fast && form <= LT_NT_ADD; /* by the rule, to its algorithms and what they were tried with */
    size_t parts = bound ? (a.rows - 1) / shape->most + 1 : 1, each = (a.rows - 1) / parts + 1;
    int status = 0;
    assert(shape->serves[form] && a.rows > 0);
    R1_TRY(dev_ready(dev, st));
    for (size_t first = 0; first < a.rows && status == 0; first += each) {
        operands o = {c, a, b};
        if (parts > 1) {
            o = {rows_from(c, first, each), rows_from(a, first, each), b};
        }
        status = lt_queue(dev, form, o, bias, accumulate || form == LT_NT_ADD ? 1.0f : 0.0f,
                          &shape->algorithm[form][class_of(o.a.rows)]);
    }
    *refused = !bound && (status == LT_INVALID || status == LT_UNSUPPORTED);
    return *refused ? R1_OK : lt_check(status, "Matmul", st);
}

/* ---- planning ---- */

static r1_tensor
matrix(void *data, r1_dtype dtype, size_t rows, size_t cols)
{
    return {data, dtype, rows, cols, cols};
}

/* A form's operands with N rows, at these places. */
static operands
operands_of(lt_form form, size_t O, size_t I, size_t N, void *c, void *a, void *b)
{
    if (form == LT_TN) {
        return {matrix(c, R1_F32, O, I), matrix(a, R1_BF16, N, O), matrix(b, R1_BF16, N, I)};
    }
    size_t columns = form == LT_NN ? I : O, depth = form == LT_NN ? O : I;
    return {matrix(c, R1_F32, N, columns), matrix(a, R1_BF16, N, depth), matrix(b, R1_BF16, O, I)};
}

/* The library's proposals for N rows, the fastest as it thinks first: how many. */
static int
propose(lt *t, lt_form form, size_t O, size_t I, size_t N, uint32_t reductions, lt_proposal *found)
{
    int count = 0;
    int status = lt_lay_out(t, operands_of(form, O, I, N, NULL, NULL, NULL));
    status = status != 0 ? status : t->call.MatmulPreferenceSetAttribute(t->preference, LT_REDUCTIONS,
                                                                         &reductions, sizeof reductions);
    status = status != 0 ? status
        : t->call.MatmulAlgoGetHeuristic(t->handle, t->desc[form], t->b, t->a, t->c, t->c, t->preference,
                                         PROPOSALS, found, &count);
    return status == 0 ? count : 0; /* not supported: no proposals */
}

static bool
take_first(lt *t, lt_shape *shape, lt_form form)
{
    for (size_t i = 0; i < LT_CLASSES; i++) {
        lt_proposal found[PROPOSALS];
        if (propose(t, form, shape->O, shape->I, ROWS[i], LT_IN_WORKSPACE, found) == 0 ||
            found[0].status != 0) {
            return false;
        }
        shape->algorithm[form][i] = found[0].algorithm;
    }
    return true;
}

/* What equal rows are looked for with: w is a weight's own memory, the rest lies in scratch memory. */
struct trial {
    float *c, *first; /* results (most, O); those that rows must have, (PERIOD, O) */
    uint16_t *x, *w;  /* (most, I), (O, I) */
    float *bias;      /* (O) */
    int32_t *differ;
};

/* Numbers of -1 to 1, rows again the same after PERIOD. */
static __device__ inline float
noise(size_t i, size_t cols)
{
    uint32_t x = (uint32_t)(i / cols % PERIOD * cols + i % cols) + 1;
    for (int round = 0; round < 2; round++) {
        x = (x ^ x >> 16) * 0x45d9f3bu;
    }
    return (float)((x ^ x >> 16) >> 8) * 0x1p-23f - 1.0f;
}

/* The first of a thread's elements, and behind the last of its block's. */
static __device__ inline size_t
begin_of()
{
    return (size_t)blockIdx.x * THREADS * EACH + threadIdx.x;
}

static __device__ inline size_t
end_of(size_t count)
{
    size_t end = (size_t)(blockIdx.x + 1) * THREADS * EACH;
    return end < count ? end : count;
}

static __global__ void
noise_kernel(float *to, size_t count, size_t cols)
{
    for (size_t i = begin_of(); i < end_of(count); i += THREADS) {
        to[i] = noise(i, cols);
    }
}

static __global__ void
noise_bf16_kernel(uint16_t *to, size_t count, size_t cols)
{
    for (size_t i = begin_of(); i < end_of(count); i += THREADS) {
        to[i] = bf16_of(noise(i, cols));
    }
}

static __global__ void
differ_kernel(int32_t *differ, const float *c, const float *first, size_t count, size_t cols)
{
    bool same = true;
    for (size_t i = begin_of(); i < end_of(count); i += THREADS) {
        same = same && __float_as_uint(c[i]) == __float_as_uint(first[i / cols % PERIOD * cols + i % cols]);
    }
    if (!same) {
        atomicMax(differ, 1);
    }
}

static r1_code
open_trial(r1_dev *dev, trial *t, const lt_shape *shape, r1_status *st)
{
    size_t O = shape->O, I = shape->I, most = shape->most;
    r1_arena memory = {};
    for (int placing = 0; placing < 2; placing++) { /* measured, then placed */
        t->c = static_cast<float *>(r1_arena_push(&memory, most * O, sizeof(float)));
        t->first = static_cast<float *>(r1_arena_push(&memory, PERIOD * O, sizeof(float)));
        t->x = static_cast<uint16_t *>(r1_arena_push(&memory, most * I, sizeof(uint16_t)));
        t->bias = static_cast<float *>(r1_arena_push(&memory, O, sizeof(float)));
        t->differ = static_cast<int32_t *>(r1_arena_push(&memory, 1, sizeof(int32_t)));
        if (placing == 0) {
            void *base;
            R1_TRY(dev_scratch(dev, &base, memory.used, st));
            memory = {static_cast<unsigned char *>(base), memory.used, 0};
        }
    }
    R1_TRY(LAUNCH(dev, st, noise_bf16_kernel, grid_of(most * I, THREADS * EACH), THREADS, 0, t->x, most * I, I));
    R1_TRY(LAUNCH(dev, st, noise_bf16_kernel, grid_of(O * I, THREADS * EACH), THREADS, 0, t->w, O * I, I));
    return LAUNCH(dev, st, noise_kernel, grid_of(O, THREADS * EACH), THREADS, 0, t->bias, O, O);
}

/* Has each of N rows the bits of t.first? take: those are what the first rows have now. */
static r1_code
rows_are_equal(r1_dev *dev, const trial &t, lt_form form, const lt_shape *shape, size_t N, bool take,
               const lt_algorithm *algorithm, bool *equal, r1_status *st)
{
    size_t O = shape->O, count = N * O;
    int32_t differ = 0;
    operands o = operands_of(form, O, shape->I, N, t.c, t.x, t.w);
    R1_TRY(LAUNCH(dev, st, noise_kernel, grid_of(count, THREADS * EACH), THREADS, 0, t.c, count, O));
    if (lt_queue(dev, form, o, t.bias, form == LT_NT_ADD ? 1.0f : 0.0f, algorithm) != 0) {
        *equal = false; /* it cannot do so many rows */
        return R1_OK;
    }
    if (take) {
        R1_TRY(dev_check(dev, cudaMemcpyAsync(t.first, t.c, PERIOD * O * sizeof(float), cudaMemcpyDeviceToDevice,
                                              dev->stream), "the first rows", st));
    }
    R1_TRY(dev_check(dev, cudaMemsetAsync(t.differ, 0, sizeof differ, dev->stream), "cudaMemset", st));
    R1_TRY(LAUNCH(dev, st, differ_kernel, grid_of(count, THREADS * EACH), THREADS, 0, t.differ, (const float *)t.c,
                  (const float *)t.first, count, O));
    R1_TRY(CUDA(mem_download)(dev, &differ, t.differ, sizeof differ, st));
    *equal = differ == 0;
    return R1_OK;
}

static constexpr size_t
fewer(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The rule, for one form: algorithms whose rows are equal, or none. */
static r1_code
find_equal(r1_dev *dev, const trial &t, lt_shape *shape, lt_form form, r1_status *st)
{
    for (size_t i = LT_CLASSES; i-- > 0;) { /* the most rows first: they say what the bits are */
        lt_proposal found[PROPOSALS];
        size_t most = fewer(ROWS[i], shape->most);
        int count = propose(dev->lt, form, shape->O, shape->I, most, LT_ONE_SUM, found), k = 0;
        bool equal = false;
        for (; k < count && !equal; k++) {
            const lt_algorithm *one = &found[k].algorithm;
            R1_TRY(rows_are_equal(dev, t, form, shape, most, i == LT_CLASSES - 1, one, &equal, st));
            for (size_t rows : TRIED[i]) {
                if (equal && rows > 0) {
                    R1_TRY(rows_are_equal(dev, t, form, shape, fewer(rows, shape->most), false, one, &equal, st));
                }
            }
        }
        if (!equal) {
            return R1_OK;
        }
        shape->algorithm[form][i] = found[k - 1].algorithm;
    }
    shape->serves[form] = true;
    return R1_OK;
}

/* Rows at once of the products of a weight (O, I). */
static size_t
most_rows(size_t O, size_t I)
{
    size_t fit = TRIAL_BYTES / (O * sizeof(float) + I * sizeof(uint16_t));
    return fit < LEAST ? LEAST : fewer(fit, MOST);
}

static r1_code
plan_forward(r1_dev *dev, lt_shape *shape, uint16_t *w, r1_status *st)
{
    trial t = {};
    t.w = w;
    R1_TRY(open_trial(dev, &t, shape, st));
    for (int form = LT_NT; form <= LT_NT_ADD && !dev->pretends; form++) {
        R1_TRY(find_equal(dev, t, shape, (lt_form)form, st));
    }
    return dev->pretends ? R1_OK : dev_check(dev, cudaMemsetAsync(w, 0, shape->O * shape->I * sizeof *w, dev->stream),
                                             "cudaMemset", st);
}

r1_code
lt_plan(r1_dev *dev, size_t O, size_t I, uint16_t *w, r1_status *st)
{
    if (!may_serve(dev, O, I) || (!dev->pretends && find_shape(dev, O, I) != NULL)) {
        return R1_OK;
    }
    R1_TRY(dev_ready(dev, st));
    lt_shape *shape = static_cast<lt_shape *>(r1_alloc(1, sizeof *shape));
    if (shape == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a plan of cuBLASLt");
    }
    shape->O = O;
    shape->I = I;
    shape->most = most_rows(O, I);
    for (int form = 0; form < LT_FORMS && !dev->pretends; form++) {
        shape->serves[form] = (dev->fast || form > LT_NT_ADD) && take_first(dev->lt, shape, (lt_form)form);
    }
    r1_code code = dev->fast ? R1_OK : plan_forward(dev, shape, w, st);
    if (code != R1_OK || dev->pretends) {
        r1_free(shape);
        return code;
    }
    shape->next = dev->lt->shapes;
    dev->lt->shapes = shape;
    return R1_OK;
}

/* ---- what is pinned, for a run's manifest ---- */

/* Text at `used`, as far as there is room; where it ends if there were. */
static size_t
append(char *text, size_t bytes, size_t used, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(used < bytes ? text + used : NULL, used < bytes ? bytes - used : 0, format, args);
    va_end(args);
    return used + (size_t)length;
}

/* " id/tile/stages" */
static size_t
append_algorithm(const lt *t, const lt_algorithm *algorithm, char *text, size_t bytes, size_t used)
{
    uint32_t id = 0, tile = 0, stages = 0;
    size_t written;
    (void)t->call.MatmulAlgoConfigGetAttribute(algorithm, LT_ID, &id, sizeof id, &written);
    (void)t->call.MatmulAlgoConfigGetAttribute(algorithm, LT_TILE, &tile, sizeof tile, &written);
    (void)t->call.MatmulAlgoConfigGetAttribute(algorithm, LT_STAGES, &stages, sizeof stages, &written);
    return append(text, bytes, used, " %u/%u/%u", id, tile, stages);
}

size_t
CUDA(dev_pins)(r1_dev *dev, char *text, size_t bytes)
{
    static const char *const names[LT_FORMS] = {"x W^T", "x W^T + bias", "y + x W^T", "dy W", "dy^T x"};
    const lt *t = dev->lt;
    size_t used = append(text, bytes, 0, "%s", "");
    if (t != NULL) {
        used = append(text, bytes, used, "cuBLASLt: version %zu, %zu bytes of workspace\n",
                      t->call.GetVersion(), LT_WORKSPACE);
    } else if (dev->no_lt.code != R1_OK) {
        used = append(text, bytes, used, "%s; our kernels compute all products\n", dev->no_lt.message);
    }
    for (const lt_shape *shape = t != NULL ? t->shapes : NULL; shape != NULL; shape = shape->next) {
        for (int form = 0; form < LT_FORMS; form++) {
            used = append(text, bytes, used, "W (%zu, %zu), %s:", shape->O, shape->I, names[form]);
            for (size_t i = 0; i < LT_CLASSES && shape->serves[form]; i++) {
                used = append_algorithm(t, &shape->algorithm[form][i], text, bytes, used);
            }
            used = append(text, bytes, used, shape->serves[form] ? "\n" : " our kernel\n");
        }
    }
    return used;
}
