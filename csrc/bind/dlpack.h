/* dlpack.h - the structures of DLPack, by which libraries hand arrays to each other without a copy.
 *
 * Their layout is that of the specification (https://dmlc.github.io/dlpack, 1.0), the names are ours.
 * They travel in a capsule "dltensor" or, to who says that it knows version 1, "dltensor_versioned".
 * Who takes one over renames the capsule to "used_..." and calls `deleter` in the end, once; a capsule
 * that nobody took does it itself.
 */
#ifndef R1_DLPACK_H
#define R1_DLPACK_H

#include <stdint.h>

#define DL_OLD "dltensor"
#define DL_NOW "dltensor_versioned"

enum { DL_HOST = 1, DL_CUDA = 2, DL_CUDA_HOST = 3, DL_CUDA_MANAGED = 13 };
enum { DL_FLOAT = 2, DL_BFLOAT = 4 };
enum { DL_READ_ONLY = 1, DL_COPIED = 2, DL_MAJOR = 1 };

typedef struct {
    void *data;
    int32_t kind, number;    /* of the device */
    int32_t dims;
    uint8_t code, bits;      /* of an element */
    uint16_t lanes;
    int64_t *shape, *stride; /* (dims) in elements; stride may be NULL: row-major */
    uint64_t offset;         /* bytes from data to the first element */
} dl_tensor;

typedef struct dl_old {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_old *self);
} dl_old;

typedef struct dl_now {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct dl_now *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_now;

#endif
