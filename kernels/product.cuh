/* product.cuh - what the kernels of the three products share: their operands, and which tile of the result a
 * block computes.
 *
 *   c (rows, columns) = start + a (rows, depth) b (depth, columns),   start: the value in memory, bias, or 0
 *
 *         c            a                 b                rows          columns   depth
 *   NT    y (N, O)     x (N, I)          W^T of W (O, I)  an expert's   O         I
 *   NN    dx (N, I)    dy (N, O)         W (O, I)         an expert's   I         O
 *   TN    dW (E O, I)  dy^T of dy (N, O) x (N, I)         O             I         an expert's, or a segment's
 *
 * A tile is never cut along the depth, so what a tile's size is cannot change a bit; segments of NT's depth and of
 * TN's rows are sums of their own (matmul.cu). Offsets are read here, by each warp for itself: the host counts the tiles that
 * there can be at most, and blocks without one return. */
#ifndef R1_PRODUCT_CUH
#define R1_PRODUCT_CUH

#include "mma.cuh"

enum form { FORM_NT, FORM_NN, FORM_TN };

/* Of a block: its part of c, and how much of the depth is in shared memory at a time, in so many stages. */
struct tile {
    unsigned rows, columns, depth, stages;
};

struct product {
    size_t N = 0, E = 1;                     /* rows of x and dy; matrices */
    size_t rows = 0, columns = 0, depth = 0; /* of one c and its sum; what offsets say is N, or 0 */
    int accumulate = 0; /* the sum starts from c */
    int add = 0;        /* it starts from 0, and is added to c */
    size_t segments = 1, segment = 0; /* NT: sums of so many terms, added up; TN with one matrix: of so many
                                       * rows of x and dy, one a c */
    float *more = NULL; /* NT: all segments at once, and the sums behind the first here, (segments - 1, N, columns) */
    unsigned row_tiles = 0, column_tiles = 0;
};

/* What a block computes. */
struct part {
    size_t matrix;          /* of c in TN, else of b */
    size_t n;               /* row of x and dy where its sum begins (TN), or its expert */
    size_t row, column;     /* of the tile in the matrix c, in NT and NN among the expert's rows */
    unsigned rows, columns; /* that the tile has, fewer at the edges of c */
    size_t depth;
};

constexpr unsigned BAND = 16; /* tiles of rows that are gone through together: their a stays in the L2 cache */

static __host__ __device__ inline unsigned
at_most(size_t count, unsigned limit)
{
    return count < limit ? (unsigned)count : limit;
}

/* Tile number `tile` of the experts' rows, each expert's cut into tiles of its own; all lanes of a warp. */
static __device__ inline bool
find_expert(part *t, const int32_t *offsets, size_t E, unsigned tile, unsigned tile_rows)
{
    unsigned lane = threadIdx.x % WARP;
    for (size_t first = 0; first < E; first += WARP) {
        size_t e = first + lane;
        unsigned begin = e < E ? (unsigned)offsets[e] : 0, end = e < E ? (unsigned)offsets[e + 1] : 0;
        unsigned tiles = (end - begin + tile_rows - 1) / tile_rows, sum = tiles;
        for (unsigned step = 1; step < WARP; step *= 2) {
            unsigned before = __shfl_up_sync(ALL_LANES, sum, step);
            sum += lane >= step ? before : 0;
        }
        unsigned behind = __ballot_sync(ALL_LANES, tile < sum);
        if (behind != 0) {
            int owner = __ffs((int)behind) - 1;
            unsigned at = tile - __shfl_sync(ALL_LANES, sum - tiles, owner);
            t->matrix = first + (unsigned)owner;
            t->n = __shfl_sync(ALL_LANES, begin, owner);
            t->row = (size_t)at * tile_rows;
            t->rows = at_most(__shfl_sync(ALL_LANES, end - begin, owner) - t->row, tile_rows);
            return true;
        }
        tile -= __shfl_sync(ALL_LANES, sum, WARP - 1);
    }
    return false;
}

/* This block's part; false: it has none. */
template <form F, tile T>
static __device__ inline bool
find_part(part *t, const product &p, const int32_t *offsets)
{
    unsigned tiles = p.row_tiles * p.column_tiles, at = blockIdx.x % tiles;
    unsigned first = at / (BAND * p.column_tiles) * BAND;
    unsigned height = p.row_tiles - first < BAND ? p.row_tiles - first : BAND;
    at -= first * p.column_tiles;
    unsigned row_tile = first + at % height;
    *t = {};
    t->column = (size_t)(at / height) * T.columns;
    t->columns = at_most(p.columns - t->column, T.columns);
    if (F != FORM_TN && offsets != NULL) {
        t->depth = p.depth;
        return find_expert(t, offsets, p.E, row_tile, T.rows);
    }
    t->row = (size_t)row_tile * T.rows;
    t->rows = at_most(p.rows - t->row, T.rows);
    t->depth = p.depth;
    if (F == FORM_TN) {
        t->matrix = blockIdx.x / tiles;
        size_t end = offsets != NULL ? (size_t)offsets[t->matrix + 1] : (t->matrix + 1) * p.segment;
        t->n = offsets != NULL ? (size_t)offsets[t->matrix] : t->matrix * p.segment;
        t->depth = (end < p.N ? end : p.N) - t->n;
    }
    return true;
}

/* Where this part's a, b and c begin. Depth runs along the rows of a in NT and NN, of b in NT. */
template <form F>
static __device__ inline size_t
a_begin(const product &, const part &t, size_t ld)
{
    return F == FORM_TN ? t.n * ld + t.row : (t.n + t.row) * ld;
}

template <form F>
static __device__ inline size_t
b_begin(const product &p, const part &t, size_t ld)
{
    return F == FORM_NT ? (t.matrix * p.columns + t.column) * ld
         : F == FORM_NN ? t.matrix * p.depth * ld + t.column : t.n * ld + t.column;
}

template <form F>
static __device__ inline size_t
c_begin(const product &p, const part &t, size_t ld)
{
    return (F == FORM_TN ? t.matrix * p.rows + t.row : t.n + t.row) * ld + t.column;
}

#endif
