/* pretend.cu - a device that does nothing, for plans: how much memory of its own a device comes to need.
 *
 * Ops run their host code, so what they ask dev_scratch for is what they will ask for, and no kernel is started
 * (launch), no memory is there (nowhere), nothing is copied. Two ops ask for more than they would use: where the
 * need depends on how rows are cut into sequences, or on whether cuBLASLt refuses a product, for the most. */
#include "cublaslt.cuh"

r1_code
CUDA(dev_pretend)(r1_dev **out, r1_dev *like, r1_status *st)
{
    *out = NULL;
    R1_TRY(dev_ready(like, st));
    r1_dev *dev = static_cast<r1_dev *>(r1_alloc(1, sizeof *dev));
    if (dev == NULL) {
        return R1_FAIL(st, R1_ENOMEM, "no memory for a plan");
    }
    dev->pretends = 1;
    dev->fast = like->fast;
    dev->processors = like->processors;
    dev->lt = like->lt;
    *out = dev;
    return R1_OK;
}

size_t
CUDA(dev_own)(const r1_dev *dev)
{
    return dev->scratch_bytes + lt_bytes(dev);
}
