/* backend.c - the CPU's op table of one instruction-set tier, its device and its memory.
 *
 * The device is a thread pool; device memory is host memory. Knows nothing about any op. */
#include <string.h>

#include "product.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

r1_code
TIER(dev_open)(r1_dev **out, size_t threads, r1_status *st)
{
    *out = NULL;
    r1_dev *dev = r1_alloc(1, sizeof *dev);
    if (dev == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a device");
    }
    dev->scratch = r1_alloc(threads * PRODUCT_SCRATCH, sizeof *dev->scratch);
    r1_code code = dev->scratch != NULL ? r1_pool_open(&dev->pool, threads, st)
                                        : R1_FAIL(st, R1_ENOMEM, "no memory for a device");
    if (code != R1_OK) {
        r1_free(dev->scratch);
        r1_free(dev);
        return code;
    }
    *out = dev;
    return R1_OK;
}

void
TIER(dev_close)(r1_dev *dev)
{
    if (dev != NULL) {
        r1_pool_close(dev->pool);
        r1_free(dev->scratch);
        r1_free(dev);
    }
}

size_t
TIER(dev_threads)(const r1_dev *dev)
{
    return r1_pool_threads(dev->pool);
}

size_t
TIER(dev_pins)(r1_dev *dev, char *text, size_t bytes)
{
    (void)dev;
    if (bytes > 0) {
        *text = '\0';
    }
    return 0;
}

void *
TIER(mem_alloc)(r1_dev *dev, size_t bytes, r1_status *st)
{
    (void)dev;
    (void)st;
    return r1_alloc(bytes, 1);
}

void
TIER(mem_free)(r1_dev *dev, void *p)
{
    (void)dev;
    r1_free(p);
}

r1_code
TIER(mem_upload)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    (void)dev;
    (void)st;
    memcpy(dst, src, bytes);
    return R1_OK;
}

r1_code
TIER(mem_download)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    (void)dev;
    (void)st;
    memcpy(dst, src, bytes);
    return R1_OK;
}

r1_code
TIER(mem_map)(r1_dev *dev, const r1_span *spans, size_t count, r1_status *st)
{
    (void)dev;
    (void)spans;
    (void)count;
    (void)st;
    return R1_OK;
}

r1_code
TIER(mem_unmap)(r1_dev *dev, r1_status *st)
{
    (void)dev;
    (void)st;
    return R1_OK;
}

void *
TIER(mem_alloc_host)(r1_dev *dev, size_t bytes, r1_status *st)
{
    return TIER(mem_alloc)(dev, bytes, st);
}

void
TIER(mem_free_host)(r1_dev *dev, void *p)
{
    TIER(mem_free)(dev, p);
}

r1_code
TIER(mem_fetch)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    return TIER(mem_upload)(dev, dst, src, bytes, st);
}

r1_code
TIER(mem_store)(r1_dev *dev, void *dst, const void *src, size_t bytes, r1_status *st)
{
    return TIER(mem_download)(dev, dst, src, bytes, st);
}

r1_code
TIER(mem_join)(r1_dev *dev, int host, r1_status *st)
{
    (void)dev;
    (void)host;
    (void)st;
    return R1_OK;
}

r1_place
TIER(mem_place)(const r1_dev *dev)
{
    (void)dev;
    return (r1_place){.kind = 1};
}

r1_code
TIER(mem_share)(r1_dev *dev, uintptr_t stream, r1_status *st)
{
    (void)dev;
    (void)stream;
    (void)st;
    return R1_OK;
}

#define R1_ENTRY(op) .op = TIER(op),
extern const r1_ops TIER(r1_ops);
const r1_ops TIER(r1_ops) = {
    .abi = R1_OPS_ABI,
    .name = "cpu/" TEXT(R1_TIER),
    R1_OPS(R1_ENTRY)
};
