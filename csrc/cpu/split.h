/* split.h - how many rows, columns or elements one task of the pool gets.
 *
 * Small enough that threads finish together, large enough that a task outweighs its hand-out; work
 * below one task runs on the caller without waking anybody. No result depends on these numbers. */
#ifndef R1_SPLIT_H
#define R1_SPLIT_H

#include <stddef.h>

enum {
    SPLIT_ELEMENTS = 16384, /* of a loop over elements */
    SPLIT_LINE = 16,        /* floats of a cache line */
};

/* Rows a task takes where a row costs about `cols` elements. */
static inline size_t
split_rows(size_t cols)
{
    return cols < SPLIT_ELEMENTS ? SPLIT_ELEMENTS / (cols + 1) + 1 : 1;
}

/* Columns a task takes where each is a sum over rows: a share for every thread, in whole cache
 * lines, since the narrower the share the more often memory is read in small pieces. */
static inline size_t
split_columns(size_t cols, size_t threads)
{
    return (cols / threads / SPLIT_LINE + 1) * SPLIT_LINE;
}

/* Tasks of `step` that cover n. */
static inline size_t
split_count(size_t n, size_t step)
{
    return (n + step - 1) / step;
}

/* The end of a task that starts at `first`. */
static inline size_t
split_end(size_t n, size_t first, size_t step)
{
    return n - first < step ? n : first + step;
}

#endif
