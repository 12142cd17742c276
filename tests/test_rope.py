"""rope: rotary positions in place, both pairings, forward and inverse."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, normal
from r1grpo import _core
from reference_rope import plain_frequencies

THETA = 10000.0


def make_table(T, Dr):
    """(T, Dr): cos then sin of position * theta^(-2i / Dr)."""
    angles = np.arange(T)[:, None] * THETA ** (-2.0 * np.arange(Dr // 2) / Dr)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize(("H", "D", "first", "Dr"),
                         [(1, 2, 0, 2), (3, 16, 0, 16), (4, 48, 32, 16), (2, 41, 7, 34),
                          (2, 4, 4, 0)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_values_and_gradient(device, rng, N, H, D, first, Dr, interleaved):
    x, dy = normal(rng, N, H * D), normal(rng, N, H * D)
    pos = rng.integers(0, 300, N).astype(np.int32)
    pos[-1:] = 299
    table = make_table(300, Dr)
    x64 = Tensor(x.reshape(N, H, D)[:, :, first:first + Dr])
    turned = ref.rope(x64, pos, plain_frequencies(THETA, Dr), interleaved) if Dr else x64
    want, want_back = (a.astype(np.float64).reshape(N, H, D) for a in (x, dy))
    part = slice(first, first + Dr)
    grad = gradients((turned * want_back[:, :, part]).sum(), [x64])[0]
    want[:, :, part], want_back[:, :, part] = turned.data, grad
    y = x.copy()
    _core.rope(device, y, table, pos, H, first, Dr, interleaved, False)
    check(y, want.reshape(N, H * D), "element")
    kept = np.ones(D, bool)
    kept[part] = False
    assert_same_bits([y.reshape(N, H, D)[:, :, kept]], [x.reshape(N, H, D)[:, :, kept]])
    _core.rope(device, dy, table, pos, H, first, Dr, interleaved, True)
    check(dy, want_back.reshape(N, H * D), "element")
    _core.rope(device, y, table, pos, H, first, Dr, interleaved, True)
    check(y, x, "element")


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_factor_is_part_of_the_table(device, rng, interleaved):
    """cos and sin times 1.3: the inverse is the transpose still, so it is the gradient."""
    x, dy, pos = normal(rng, 9, 48), normal(rng, 9, 48), rng.integers(0, 300, 9).astype(np.int32)
    x64 = Tensor(x.reshape(9, 3, 16))
    turned = ref.rope(x64, pos, plain_frequencies(THETA, 16), interleaved, 1.3)
    grad = gradients((turned * dy.astype(np.float64).reshape(9, 3, 16)).sum(), [x64])[0]
    table = np.float32(1.3) * make_table(300, 16)
    _core.rope(device, x, table, pos, 3, 0, 16, interleaved, False)
    check(x, turned.data.reshape(9, 48), "element")
    _core.rope(device, dy, table, pos, 3, 0, 16, interleaved, True)
    check(dy, grad.reshape(9, 48), "element")


def test_position_zero_changes_nothing(device, rng):
    x = normal(rng, 3, 16)
    y = x.copy()
    _core.rope(device, y, make_table(4, 8), np.zeros(3, np.int32), 2, 0, 8, True, False)
    assert_same_bits([y], [x])


def test_bits(devices, rng):
    wide, pos = normal(rng, 200, 150), rng.integers(0, 64, 200).astype(np.int32)
    table = make_table(64, 30)

    def run(device):
        y = wide.copy()
        _core.rope(device, y[:, 10:106], table, pos, 3, 2, 30, False, False)  # a slice of columns
        return [y]
    check_threads(devices, run)
    [many] = run(devices[3])
    assert_same_bits([many[:, :10], many[:, 106:]], [wide[:, :10], wide[:, 106:]])
    for n in (0, 199):
        alone = wide[n:n + 1, 10:106].copy()
        _core.rope(devices[0], alone, table, pos[n:n + 1], 3, 2, 30, False, False)
        assert_same_bits([alone], [many[n:n + 1, 10:106]])


def test_bad_arguments(device, rng):
    x, table, pos = normal(rng, 2, 24), make_table(5, 4), np.array([0, 4], np.int32)

    def fails(match, pos=pos, H=2, first=0, Dr=4, table=table):
        with pytest.raises(ValueError, match=match):
            _core.rope(device, x, table, pos, H, first, Dr, False, False)
    fails("'pos': 5 at index 0 is outside .0, 5", pos=np.array([5, 0], np.int32))
    fails("24 columns do not make 5 heads", H=5)
    fails("lie outside a head of 12", first=9)
    fails("dimension Dr is 4, expected 6", Dr=6)
    fails("Dr is 3, must be even", Dr=3, table=np.zeros((5, 3), np.float32))
