/* cublaslt.cuh - products of one bf16 matrix by cuBLASLt, where it is installed and allowed to: cublaslt.cu has
 * the rule, matmul.cu calls.
 *
 *   LT_NT        y (N, O) = x (N, I) W^T          LT_NN   dx (N, I) [+]= dy (N, O) W
 *   LT_NT_BIAS   y = x W^T + bias                 LT_TN   dW (O, I) [+]= dy^T (O, N) x (N, I)
 *   LT_NT_ADD    y += x W^T
 *
 * A device looks for the library when it is opened and plans when a weight is, so that an op only finds its plan
 * and queues its product: it allocates nothing and can be captured in a graph. */
#ifndef R1_CUBLASLT_CUH
#define R1_CUBLASLT_CUH

#include "cuda.cuh"

enum lt_form { LT_NT, LT_NT_BIAS, LT_NT_ADD, LT_NN, LT_TN, LT_FORMS };

/* dev->lt: the library, workspace and plans; stays NULL where r1grpo/cuda.py has opened no cuBLASLt, and, with
 * the reason in dev->no_lt, where the one that is open cannot be used: our kernels need none. */
r1_code lt_open(r1_dev *dev, r1_status *st);
void lt_close(r1_dev *dev);

/* Plans all forms for weights (O, I), once: the only place that waits, and tries algorithms. w (O, I): the first
 * such weight, zero before and after. */
r1_code lt_plan(r1_dev *dev, size_t O, size_t I, uint16_t *w, r1_status *st);
/* Bytes that it holds. */
size_t lt_bytes(const r1_dev *dev);
/* May cuBLASLt compute this form? One answer for every number of rows. */
bool lt_serves(const r1_dev *dev, lt_form form, size_t O, size_t I);
/* c [+]= a b as the form has them; a (y's x, dx's dy, dW's dy) and b in bf16, c in float32, each aligned to 16
 * bytes with its rows; no size 0. *refused: c is as it was, and our kernel may compute this one. */
r1_code lt_multiply(r1_dev *dev, lt_form form, size_t O, size_t I, const r1_tensor &c, const r1_tensor &a,
                    const r1_tensor &b, const float *bias, int accumulate, bool *refused, r1_status *st);

#endif
