/* split.h - how many rows, columns or elements one task of the pool gets.
 *
 * Small enough that threads finish together, large enough that a task outweighs its hand-out; work
 * below one task runs on the caller without waking anybody. No result depends on these numbers. */
#ifndef R1_SPLIT_H
#define R1_SPLIT_H

#include <stddef.h>

enum {
    SPLIT_ELEMENTS = 8192, /* of a loop over elements */
    SPLIT_COLUMNS = 16,    /* of a sum over rows: one cache line of each row */
};

/* Rows a task takes where a row costs about `cols` elements. */
static inline size_t
split_rows(size_t cols)
{
    return cols < SPLIT_ELEMENTS ? SPLIT_ELEMENTS / (cols + 1) + 1 : 1;
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
