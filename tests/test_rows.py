"""fill_zero, add, scale, gather_rows, scatter_rows."""

from __future__ import annotations

import numpy as np
import pytest

from op_testing import SIZES, assert_same_bits, check_threads, ints, nan, normal
from r1grpo import _core


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("C", [1, 33, 128])
def test_values(device, rng, N, C):
    a, b, y = normal(rng, N, C), normal(rng, N, C), nan(N, C)
    _core.add(device, y, a, b)
    assert_same_bits([y], [a + b])
    idx = rng.permutation(N)[: (N + 1) // 2].astype(np.int32)
    rows = nan(len(idx), C)
    _core.gather_rows(device, rows, a, idx)
    assert_same_bits([rows], [a[idx]])
    dx, want = nan(N, C), np.zeros((N, C), np.float32)
    want[idx] = rows
    _core.scatter_rows(device, dx, rows, idx)
    assert_same_bits([dx], [want])
    _core.add(device, a, a, b)
    assert_same_bits([a], [y])
    _core.scale(device, a, a, 0.3)
    assert_same_bits([a], [y * np.float32(0.3)])
    _core.fill_zero(device, a)
    assert_same_bits([a], [np.zeros((N, C), np.float32)])


def test_slices_of_columns(devices, rng):
    wide = normal(rng, 70, 100)
    idx = rng.permutation(70).astype(np.int32)[:50]

    def run(device):
        out, picked, spread = nan(70, 100), nan(50, 100), nan(70, 100)
        _core.add(device, out[:, 5:38], wide[:, :33], wide[:, 60:93])
        _core.gather_rows(device, picked[:, 1:34], wide[:, 7:40], idx)
        _core.scatter_rows(device, spread[:, 2:35], wide[:50, 8:41], idx)
        _core.fill_zero(device, out[:, 90:])
        return out, picked, spread
    check_threads(devices, run)
    out, picked, spread = run(devices[0])
    want = nan(70, 100), nan(50, 100), nan(70, 100)
    want[0][:, 5:38], want[0][:, 90:] = wide[:, :33] + wide[:, 60:93], 0
    want[1][:, 1:34] = wide[idx, 7:40]
    want[2][:, 2:35] = 0
    want[2][idx, 2:35] = wide[:50, 8:41]
    assert_same_bits((out, picked, spread), want)


def test_bad_arguments(device):
    with pytest.raises(ValueError, match="'idx': 3 at index 1 is outside .0, 3"):
        _core.gather_rows(device, nan(2, 4), nan(3, 4), ints(0, 3))
    with pytest.raises(ValueError, match="'idx': -1 at index 0"):
        _core.scatter_rows(device, nan(3, 4), nan(2, 4), ints(-1, 2))
    with pytest.raises(TypeError, match="'idx': dtype must be int32, not numpy.int64"):
        _core.gather_rows(device, nan(2, 4), nan(3, 4), np.zeros(2, np.int64))
