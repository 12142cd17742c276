/* pool.c - the thread pool: tasks of one job, handed out one by one from an atomic counter.
 *
 *   state = epoch << 16 | inside     epoch odd: a job is open;  inside: workers taking part in it
 *
 * The caller opens a job, takes part as worker 0, closes the job when no task is left, and waits
 * until nobody is inside. A worker joins by a compare-and-swap that needs the job to be open, so
 * one that wakes late finds it closed and holds up nobody: with more threads than cores, or a
 * busy neighbour, a job costs what those who came need.
 *
 * Who waits spins for some tens of microseconds (a model's ops follow one another closely), then
 * yields its core in turns for about a millisecond, so that nobody has to be woken within a step of
 * a model (on a virtual machine that alone takes as long as a layer), then sleeps on a condition
 * variable; with more threads than the machine has cores it sleeps at once. Sleeper and waker
 * each write their own flag before they read the other's (sequentially consistent), so no
 * wake-up is lost.
 *
 * Threads do not survive fork: a child notices by its process id and runs everything on the caller.
 * Runs from several threads take turns. Knows nothing about tensors. */
#define _DEFAULT_SOURCE

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "../r1.h"

enum {
    SPIN_PAUSES = 1000, /* 20 to 50 microseconds */
    SPIN_YIELDS = 4000, /* then about a millisecond, where nobody else wants the core */
    MAX_THREADS = 1024,
    STACK_BYTES = 2 << 20,
};

static const uint64_t EPOCH = 1u << 16, INSIDE_MASK = (1u << 16) - 1;

typedef struct {
    r1_pool *pool;
    size_t index;
    pthread_t id;
} pool_worker;

struct r1_pool {
    size_t threads;      /* with the caller */
    size_t started;      /* workers 1 .. started are running */
    int spin;            /* pauses before sleep */
    pid_t pid;           /* the process the threads live in */
    pool_worker *worker; /* (threads); 0 is the caller's place, unused */

    /* the job: written while it is closed and nobody is inside */
    r1_task fn;
    void *ctx;
    size_t tasks;

    _Atomic uint64_t state;
    atomic_size_t next;     /* task to hand out */
    atomic_size_t sleepers; /* workers asleep, or about to be */
    atomic_int waiting;     /* the caller sleeps until nobody is inside */
    atomic_int stop;
    pthread_mutex_t turn; /* one run at a time */
    pthread_mutex_t lock; /* around the conditions */
    pthread_cond_t wake, done;
};

static void
pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The i-th wait of a spin. */
static void
spin_once(int i)
{
    if (i < SPIN_PAUSES) {
        pause_cpu();
    } else {
        sched_yield();
    }
}

static void
run_tasks(r1_pool *pool, size_t worker)
{
    for (;;) {
        size_t task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->tasks) {
            return;
        }
        pool->fn(pool->ctx, task, worker);
    }
}

/* A job is open that this worker has not been in. */
static int
is_news(uint64_t state, uint64_t last)
{
    return (state & EPOCH) != 0 && state / EPOCH != last;
}

/* Waits for a job newer than epoch `last`; returns the state seen, or 0 to stop. */
static uint64_t
await_job(r1_pool *pool, uint64_t last)
{
    for (int i = 0; i < pool->spin; i++) {
        uint64_t state = atomic_load(&pool->state);
        if (is_news(state, last)) {
            return state;
        }
        if (atomic_load(&pool->stop)) {
            return 0;
        }
        spin_once(i);
    }
    uint64_t state;
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!is_news(state = atomic_load(&pool->state), last)) {
        if (atomic_load(&pool->stop)) {
            state = 0;
            break;
        }
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return state;
}

static void *
worker_main(void *arg)
{
    pool_worker *self = arg;
    r1_pool *pool = self->pool;
    uint64_t last = 0;
    fesetenv(FE_DFL_ENV); /* not the creator's rounding and flush modes: bits depend on them */
    for (;;) {
        uint64_t state = await_job(pool, last);
        if (state == 0) {
            return NULL;
        }
        /* Join: fails when the job was closed, or when another worker was quicker. */
        if (!atomic_compare_exchange_strong(&pool->state, &state, state + 1)) {
            continue;
        }
        last = state / EPOCH;
        run_tasks(pool, self->index);
        uint64_t left = atomic_fetch_sub(&pool->state, 1) - 1;
        if ((left & (EPOCH | INSIDE_MASK)) == 0 && atomic_load(&pool->waiting)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static int
is_inside(r1_pool *pool)
{
    return (atomic_load(&pool->state) & INSIDE_MASK) != 0;
}

static void
await_workers(r1_pool *pool)
{
    for (int i = 0; i < pool->spin; i++) {
        if (!is_inside(pool)) {
            return;
        }
        spin_once(i);
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, 1);
    while (is_inside(pool)) {
        pthread_cond_wait(&pool->done, &pool->lock);
    }
    atomic_store(&pool->waiting, 0);
    pthread_mutex_unlock(&pool->lock);
}

void
r1_pool_run(r1_pool *pool, size_t tasks, r1_task fn, void *ctx)
{
    if (tasks <= 1 || pool->threads == 1 || getpid() != pool->pid) {
        for (size_t task = 0; task < tasks; task++) {
            fn(ctx, task, 0);
        }
        return;
    }
    pthread_mutex_lock(&pool->turn);
    pool->fn = fn;
    pool->ctx = ctx;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_fetch_add(&pool->state, EPOCH); /* open */
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    run_tasks(pool, 0);
    atomic_fetch_add(&pool->state, EPOCH); /* closed */
    await_workers(pool);
    pthread_mutex_unlock(&pool->turn);
}

/* Signals belong to the caller's threads (Python's): the new one starts with all of them
 * blocked. Its stack does not depend on the platform's default: attention backward needs 850 KiB. */
static int
start_worker(pool_worker *worker)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int failed = pthread_create(&worker->id, &attributes, worker_main, worker);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

r1_code
r1_pool_open(r1_pool **out, size_t threads, r1_status *st)
{
    *out = NULL;
    if (threads < 1 || threads > MAX_THREADS) {
        return R1_FAIL(st, R1_EINVAL, "threads is %zu, expected 1 to %d", threads, MAX_THREADS);
    }
    r1_pool *pool = r1_alloc(1, sizeof *pool);
    if (pool == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a thread pool");
    }
    pool->worker = r1_alloc(threads, sizeof *pool->worker);
    if (pool->worker == NULL) {
        r1_free(pool);
        return R1_FAIL(st, R1_ENOMEM, "no memory for a pool of %zu threads", threads);
    }
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    pool->threads = threads;
    pool->spin = (long)threads <= cpus ? SPIN_PAUSES + SPIN_YIELDS : 0;
    pool->pid = getpid();
    pthread_mutex_init(&pool->turn, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (size_t i = 1; i < threads; i++) {
        pool->worker[i] = (pool_worker){.pool = pool, .index = i};
        int failed = start_worker(&pool->worker[i]);
        if (failed) {
            r1_pool_close(pool);
            return R1_FAIL(st, R1_EDEVICE, "cannot start thread %zu of %zu: %s", i + 1, threads,
                           strerror(failed));
        }
        pool->started = i;
    }
    *out = pool;
    return R1_OK;
}

void
r1_pool_close(r1_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    if (getpid() == pool->pid) {
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->stop, 1);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
        for (size_t i = 1; i <= pool->started; i++) {
            pthread_join(pool->worker[i].id, NULL);
        }
        pthread_mutex_destroy(&pool->turn);
        pthread_mutex_destroy(&pool->lock);
        pthread_cond_destroy(&pool->wake);
        pthread_cond_destroy(&pool->done);
    }
    r1_free(pool->worker);
    r1_free(pool);
}

size_t
r1_pool_threads(const r1_pool *pool)
{
    return pool->threads;
}
