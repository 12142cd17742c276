/* r1.h - the story of the core, and what every file of it shares.
 *
 * r1grpo samples from a transformer and trains it with the same kernels, so that the log-probability
 * the sampler reports for a token is, bit for bit, the one the training forward computes.
 *
 *   Python arrays -> bind/ (checks, locks) -> model/ (the network, once) -> ops.h (a table) -> cpu/
 *
 * model/ knows the table and no backend; cpu/ knows tensors and no model. The core opens no file,
 * reads no environment variable, prints nothing and never exits: it is handed arrays and options, and
 * hands back arrays or an error.
 *
 * Map       base/   status (one error channel), arena, thread pool, Philox
 *           ops.h   every op: equation, shapes, what forward saves
 *           cpu/    the table on the CPU, one op a file, compiled once per instruction-set tier
 *           model/  config -> layout -> blocks -> log-probs and gradients -> decode -> update
 *           bind/   CPython; args.c is the only file that sees NumPy
 *
 * Alphabet  B sequences, T positions, N packed tokens (rows), C width, H heads, D head width,
 *           R latent width (kv_lora), F FFN width, E experts, K experts a token, V vocabulary,
 *           G samples a prompt, M rows that carry a loss. Gradients are d + name.
 *
 * Memory    Ops never allocate. Everything lives in arenas, one per lifetime: parameters, gradients,
 *           moments, activations of one micro-batch, KV blocks, scratch.
 */
#ifndef R1_H
#define R1_H

#include <stddef.h>
#include <stdint.h>

/* ---- errors: one code, one message, set where the fault is seen ---------------------------- */

typedef enum {
    R1_OK = 0,
    R1_EINVAL,   /* ValueError */
    R1_ENOMEM,   /* MemoryError */
    R1_ENUMERIC, /* FloatingPointError */
    R1_EDEVICE,  /* RuntimeError: the device is gone or refuses */
    R1_EINTR     /* the caller's poll asked to stop; its exception is already set */
} r1_code;

typedef struct {
    r1_code code;
    char message[320];
} r1_status;

#if defined(__GNUC__)
#define R1_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define R1_PRINTF(f, a)
#endif

/* Records the fault (the first one wins) and returns code. st may be NULL. */
r1_code r1_status_set(r1_status *st, r1_code code, const char *format, ...) R1_PRINTF(3, 4);
#define R1_FAIL(st, code, ...) r1_status_set((st), (code), __VA_ARGS__)
#define R1_TRY(call)                 \
    do {                             \
        r1_code r1_try_ = (call);    \
        if (r1_try_ != R1_OK) {      \
            return r1_try_;          \
        }                            \
    } while (0)

/* ---- tensors: a row-major matrix with a row stride ----------------------------------------- */

typedef enum { R1_F32, R1_BF16, R1_I32 } r1_dtype;

/* rows x cols, row n at data + n * ld elements; heads are columns: (N, H, D) is N x (H D).
 * A slice of columns is a tensor with the parent's ld. */
typedef struct {
    void *data;
    r1_dtype dtype;
    size_t rows, cols, ld;
} r1_tensor;

static inline r1_tensor
r1_f32(float *data, size_t rows, size_t cols)
{
    return (r1_tensor){data, R1_F32, rows, cols, cols};
}

/* Columns [c0, c0 + cols) of x. */
static inline r1_tensor
r1_cols(const r1_tensor *x, size_t c0, size_t cols)
{
    return (r1_tensor){(float *)x->data + c0, x->dtype, x->rows, cols, x->ld};
}

/* Rows [n0, n0 + rows) of x. */
static inline r1_tensor
r1_rows(const r1_tensor *x, size_t n0, size_t rows)
{
    return (r1_tensor){(float *)x->data + n0 * x->ld, x->dtype, rows, x->cols, x->ld};
}

/* ---- host memory (base/arena.c) ------------------------------------------------------------ */

/* count x size bytes, zeroed, 64-byte aligned; NULL on overflow or when memory is out. */
void *r1_alloc(size_t count, size_t size);
void r1_free(void *p);
/* Tests: make the n-th r1_alloc from now fail (1 = the next one; 0 = never). Returns the number of
 * allocations made since the last call. */
size_t r1_alloc_fail_at(size_t n);

/* Some bytes of it. */
typedef struct {
    void *p;
    size_t bytes;
} r1_span;

/* A bump allocator over memory somebody else owns. base == NULL measures: push then returns NULL
 * and used still grows, so one layout function both sizes and places. */
typedef struct {
    unsigned char *base;
    size_t size, used;
} r1_arena;

/* count x size bytes, 64-byte aligned; NULL when measuring, or when it does not fit. */
void *r1_arena_push(r1_arena *a, size_t count, size_t size);

/* ---- threads (base/pool.c) ----------------------------------------------------------------- */

typedef struct r1_pool r1_pool;
typedef void (*r1_task)(void *ctx, size_t task, size_t worker);

r1_code r1_pool_open(r1_pool **pool, size_t threads, r1_status *st);
void r1_pool_close(r1_pool *pool);
size_t r1_pool_threads(const r1_pool *pool);
/* Calls fn(ctx, i, worker) for every i < tasks, in no order, on all threads; returns when all are
 * done. worker < threads. Tasks are handed out one by one, so a result must not depend on who ran
 * what. In a forked child, where the threads are gone, everything runs on the caller. */
void r1_pool_run(r1_pool *pool, size_t tasks, r1_task fn, void *ctx);

#endif
