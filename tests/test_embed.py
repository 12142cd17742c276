"""embed_fwd and embed_bwd."""

from __future__ import annotations

import numpy as np
import pytest

from op_testing import SIZES, assert_same_bits, check, check_threads, ints, nan, normal
from r1grpo import _core


def backward(device, dw, dy, ids):
    _core.embed_bwd(device, dw, dy, ids)
    return dw


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize(("V", "C"), [(1, 1), (17, 33), (130, 128)])
def test_values_and_gradient(device, rng, N, V, C):
    w, dy, dw0 = normal(rng, V, C), normal(rng, N, C), normal(rng, V, C)
    ids = rng.integers(-1, V, N).astype(np.int32)
    ids[-1:] = V - 1
    y = nan(N, C)
    _core.embed_fwd(device, y, _core.Weight(device, w, 1), ids)
    known = ids >= 0
    assert_same_bits([y], [np.where(known[:, None], w[ids], np.float32(0))])
    want = dw0.astype(np.float64)
    np.add.at(want, ids[known], dy[known].astype(np.float64))
    check(backward(device, dw0.copy(), dy, ids), want, "sum")


def test_repeated_ids_add_in_ascending_order_from_memory(device):
    dw = np.array([[1.0], [0.0]], np.float32)
    backward(device, dw, np.array([[1e8], [5.0], [-1e8]], np.float32), ints(0, 1, 0))
    assert dw.tolist() == [[0.0], [5.0]]  # 1 + 1e8 is 1e8


@pytest.mark.parametrize("V", [1, 9])
def test_bits(devices, rng, V):
    N, C = 300, 70
    dy, dw0 = normal(rng, N, C), normal(rng, V, C)
    ids = rng.integers(-1, V, N).astype(np.int32)
    check_threads(devices, lambda device: [backward(device, dw0.copy(), dy, ids)])
    whole = backward(devices[3], dw0.copy(), dy, ids)
    parts = backward(devices[0], dw0.copy(), dy[:101], ids[:101])
    backward(devices[0], parts, dy[101:], ids[101:])
    assert_same_bits([parts], [whole])


def test_bad_arguments(device, rng):
    weight = _core.Weight(device, normal(rng, 5, 4), 1)
    with pytest.raises(ValueError, match=r"'ids': 5 at index 1 is outside \[-1, 5\)"):
        _core.embed_fwd(device, nan(2, 4), weight, ints(0, 5))
    with pytest.raises(ValueError, match=r"'ids': -2 at index 0"):
        _core.embed_bwd(device, nan(5, 4), nan(1, 4), ints(-2))
    with pytest.raises(ValueError, match="holds 5 matrices, expected 1"):
        _core.embed_fwd(device, nan(2, 4), _core.Weight(device, normal(rng, 5, 4), 5), ints(0, 0))
