"""swiglu_fwd and swiglu_bwd."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, nan, normal
from r1grpo import _core


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("F", [1, 33, 64, 129])
def test_values_and_gradients(device, rng, N, F):
    gate, up, dy = 4 * normal(rng, N, F), normal(rng, N, F), normal(rng, N, F)
    y, dgate, dup = nan(N, F), nan(N, F), nan(N, F)
    _core.swiglu_fwd(device, y, gate, up)
    _core.swiglu_bwd(device, dgate, dup, dy, gate, up)
    gate64, up64 = Tensor(gate), Tensor(up)
    want = ref.swiglu(gate64, up64)
    grads = gradients((want * dy).sum(), [gate64, up64])
    check(y, want.data, "element")
    check(dgate, grads[0], "element")
    check(dup, grads[1], "element")
    _core.swiglu_bwd(device, gate, up, dy, gate, up)  # in place
    assert_same_bits((gate, up), (dgate, dup))


def test_far_gates(device):
    gate = np.array([[-1e4, -100, 0, 100, 1e4]], np.float32)
    up = np.ones((1, 5), np.float32)
    y, dgate, dup = nan(1, 5), nan(1, 5), nan(1, 5)
    _core.swiglu_fwd(device, y, gate, up)
    _core.swiglu_bwd(device, dgate, dup, up, gate, up)
    check(y, [[0, 0, 0, 100, 1e4]], "element")
    check(dgate, [[0, 0, 0.5, 1, 1]], "element")


def test_bits(devices, rng):
    wide = normal(rng, 300, 160)
    gate, up, dy = wide[:, :50], wide[:, 51:101], wide[:, 110:]

    def run(device, rows=slice(None)):
        y, dgate, dup = (nan(*gate[rows].shape) for _ in range(3))
        _core.swiglu_fwd(device, y, gate[rows], up[rows])
        _core.swiglu_bwd(device, dgate, dup, dy[rows], gate[rows], up[rows])
        return y, dgate, dup
    check_threads(devices, run)
    assert_same_bits(run(devices[0], slice(5, 6)), [a[5:6] for a in run(devices[3])])
