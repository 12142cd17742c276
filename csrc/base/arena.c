/* arena.c - host memory: an aligned, zeroed allocator, and a bump allocator on top of it.
 *
 * Everything starts at a multiple of 64 bytes: a cache line, and the widest vector. Large
 * blocks come from calloc as untouched pages, so memory that is reserved and never used costs
 * nothing, and ask the kernel for huge pages. Knows nothing about what is stored. */
#define _DEFAULT_SOURCE

#include <stdatomic.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../r1.h"

enum { ALIGN = 64, HUGE_PAGE = 2 << 20 };

/* The fail-at-the-n-th-allocation hook of the tests: the one piece of state in this folder. */
static atomic_size_t allocations, fail_at;

size_t
r1_alloc_fail_at(size_t n)
{
    size_t made = atomic_exchange(&allocations, 0);
    atomic_store(&fail_at, n);
    return made;
}

void *
r1_alloc(size_t count, size_t size)
{
    if (atomic_fetch_add(&allocations, 1) + 1 == atomic_load(&fail_at)) {
        return NULL;
    }
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, (size_t)ALIGN, &bytes)) {
        return NULL;
    }
    unsigned char *raw = calloc(bytes, 1);
    if (raw == NULL) {
        return NULL;
    }
    /* malloc aligns to 16, so between 16 and 64 bytes lie before p: room for the raw pointer. */
    unsigned char *p = raw + (ALIGN - (uintptr_t)raw % ALIGN);
    ((void **)p)[-1] = raw;
#if defined(MADV_HUGEPAGE)
    uintptr_t first = ((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t last = ((uintptr_t)raw + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (first < last) {
        madvise((void *)first, last - first, MADV_HUGEPAGE); /* a hint: it may fail */
    }
#endif
    return p;
}

void
r1_free(void *p)
{
    if (p != NULL) {
        free(((void **)p)[-1]);
    }
}

void *
r1_arena_push(r1_arena *a, size_t count, size_t size)
{
    size_t bytes, end;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, (size_t)(ALIGN - 1), &bytes) ||
        __builtin_add_overflow(a->used, bytes & ~(size_t)(ALIGN - 1), &end)) {
        a->used = SIZE_MAX & ~(size_t)(ALIGN - 1); /* no memory is that large: nothing fits again */
        return NULL;
    }
    size_t start = a->used;
    a->used = end;
    return a->base == NULL || end > a->size ? NULL : a->base + start;
}
