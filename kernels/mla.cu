/* mla.cu - multi-head latent attention, expanded form: the keys and values of each head.
 * DeepSeek-V3, eq. 1-11.
 *
 *   k[n,h] = [k_nope[n,h], kr[n]],  v[n,h]          kvb (N, H (Dn + Dv)): per head k_nope, then v
 *                                                   kr (N, Dr): rotated, shared by all heads
 *   dkvb[n,h] = [dk[n,h,:Dn], dv[n,h]],  dkr[n] = sum_h dk[n,h,Dn:]
 *
 * k (N, H (Dn + Dr)), v (N, H Dv). Forward copies; the one sum adds heads in ascending order, from 0. A
 * row has a block. The projections around it are matmuls; the rotation is rope.cu. */
#include "math.cuh"

static __global__ void
mla_expand_fwd_kernel(r1_tensor k, r1_tensor v, r1_tensor kvb, r1_tensor kr, unsigned H, unsigned Dn,
                      unsigned Dv)
{
    size_t n = blockIdx.x;
    unsigned Dr = (unsigned)kr.cols;
    for (unsigned c = threadIdx.x; c < H * (Dn + Dv); c += blockDim.x) {
        unsigned h = c / (Dn + Dv), j = c % (Dn + Dv);
        float *to = j < Dn ? row_f32(k, n) + h * (Dn + Dr) + j : row_f32(v, n) + h * Dv + j - Dn;
        *to = row_f32(kvb, n)[c];
    }
    for (unsigned c = threadIdx.x; c < H * Dr; c += blockDim.x) {
        row_f32(k, n)[c / Dr * (Dn + Dr) + Dn + c % Dr] = row_f32(kr, n)[c % Dr];
    }
}

static __global__ void
mla_expand_bwd_kernel(r1_tensor dkvb, r1_tensor dkr, r1_tensor dk, r1_tensor dv, unsigned H, unsigned Dn,
                      unsigned Dv)
{
    size_t n = blockIdx.x;
    unsigned Dr = (unsigned)dkr.cols;
    for (unsigned c = threadIdx.x; c < H * (Dn + Dv); c += blockDim.x) {
        unsigned h = c / (Dn + Dv), j = c % (Dn + Dv);
        const float *from = j < Dn ? row_f32(dk, n) + h * (Dn + Dr) + j : row_f32(dv, n) + h * Dv + j - Dn;
        row_f32(dkvb, n)[c] = *from;
    }
    for (unsigned d = threadIdx.x; d < Dr; d += blockDim.x) {
        float sum = 0.0f;
        for (unsigned h = 0; h < H; h++) {
            sum += row_f32(dk, n)[h * (Dn + Dr) + Dn + d];
        }
        row_f32(dkr, n)[d] = sum;
    }
}

r1_code
CUDA(mla_expand_fwd)(r1_dev *dev, const r1_tensor *k, const r1_tensor *v, const r1_tensor *kvb,
                     const r1_tensor *kr, size_t H, size_t Dn, size_t Dv, r1_status *st)
{
    assert(kvb->cols == H * (Dn + Dv) && v->cols == H * Dv && k->cols == H * (Dn + kr->cols));
    return LAUNCH(dev, st, mla_expand_fwd_kernel, grid_of(kvb->rows, 1), row_threads(kvb->cols), 0, *k, *v,
                  *kvb, *kr, (unsigned)H, (unsigned)Dn, (unsigned)Dv);
}

r1_code
CUDA(mla_expand_bwd)(r1_dev *dev, const r1_tensor *dkvb, const r1_tensor *dkr, const r1_tensor *dk,
                     const r1_tensor *dv, size_t H, size_t Dn, size_t Dv, r1_status *st)
{
    assert(dkvb->cols == H * (Dn + Dv) && dv->cols == H * Dv && dk->cols == H * (Dn + dkr->cols));
    return LAUNCH(dev, st, mla_expand_bwd_kernel, grid_of(dkvb->rows, 1), row_threads(dkvb->cols), 0, *dkvb,
                  *dkr, *dk, *dv, (unsigned)H, (unsigned)Dn, (unsigned)Dv);
}
