"""dispatch_plan, combine_fwd, combine_bwd and dispatch_bwd: rows to experts and back."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, ints, nan, normal
from r1grpo import _core


def choose(rng, N, E, K):
    return np.ascontiguousarray(np.argsort(rng.random((N, E)), axis=1)[:, :K], np.int32)


def plan(device, idx, E):
    N, K = idx.shape
    offsets, source, place = (np.full(s, -7, np.int32) for s in (E + 1, N * K, (N, K)))
    _core.dispatch_plan(device, offsets, source, place, idx, (E, K, 1, 1, False, True, 1.0))
    return offsets, source, place


@pytest.mark.parametrize("N", [*SIZES, 700])
@pytest.mark.parametrize(("E", "K"), [(8, 3), (5, 1), (2, 2), (40, 4)])
def test_plan(device, rng, N, E, K):
    idx = choose(rng, N, E, K)
    if E == 5:
        idx[:] = 3  # one expert has all, the others none
    offsets, source, place = plan(device, idx, E)
    want = ref.dispatch(idx, E)
    np.testing.assert_array_equal(offsets, want.offsets)
    np.testing.assert_array_equal(source, want.rows)
    inverse = np.empty((N, K), np.int32)
    inverse[want.rows, want.slots] = np.arange(N * K)
    np.testing.assert_array_equal(place, inverse)


@pytest.mark.parametrize("C", [1, 33, 128])
@pytest.mark.parametrize("branch", [False, True])
def test_values_and_gradients(device, rng, C, branch):
    N, E, K = 33, 8, 3
    idx = choose(rng, N, E, K)
    _, source, place = plan(device, idx, E)
    ys, weight, dy = normal(rng, N * K, C), normal(rng, N, K), normal(rng, N, C)
    add = normal(rng, N, C) if branch else None
    y, dys, dweight = nan(N, C), nan(N * K, C), nan(N, K)
    _core.combine_fwd(device, y, ys, weight, place, add)
    _core.combine_bwd(device, dys, dweight, dy, ys, weight, place)
    ys64, w64 = Tensor(ys), Tensor(weight)
    want = ref.combine(ys64, w64, ref.dispatch(idx, E))
    grads = gradients((want * dy).sum(), [ys64, w64])
    check(y, want.data + (add if branch else 0.0), "sum")
    check(dys, grads[0], "element")
    check(dweight, grads[1], "sum")
    again = nan(N, K)
    _core.combine_bwd(device, ys, again, dy, ys, weight, place)  # in place
    assert_same_bits((ys, again), (dys, dweight))

    dxs, dx = normal(rng, N * K, C), nan(N, C)
    _core.dispatch_bwd(device, dx, dxs, place, add)
    expected = np.zeros((N, C))
    np.add.at(expected, source, dxs.astype(np.float64))
    check(dx, expected + (add if branch else 0.0), "sum")
    if branch:  # dx may be the addend itself
        _core.dispatch_bwd(device, add, dxs, place, add)
        assert_same_bits([add], [dx])


def test_slots_are_added_in_order(device):
    """(1e8 + 1) - 1e8 is 0 in float32, (1e8 - 1e8) + 1 is 1."""
    ys = np.array([[1e8], [1.0], [-1e8]], np.float32)
    one = np.ones((1, 3), np.float32)
    for place, want in (((0, 1, 2), 0.0), ((0, 2, 1), 1.0)):
        y, dx = nan(1, 1), nan(1, 1)
        _core.combine_fwd(device, y, ys, one, ints(*place)[None], None)
        _core.dispatch_bwd(device, dx, ys, ints(*place)[None], None)
        assert y[0, 0] == dx[0, 0] == want


def test_bits(devices, rng):
    N, E, K, C = 300, 8, 2, 70
    idx = choose(rng, N, E, K)
    ys, weight, dy, add = (normal(rng, *s) for s in ((N * K, C), (N, K), (N, C), (N, C)))

    def run(device):
        offsets, source, place = plan(device, idx, E)
        y, dys, dweight, dx = nan(N, C), nan(N * K, C), nan(N, K), nan(N, C)
        _core.combine_fwd(device, y, ys, weight, place, add)
        _core.combine_bwd(device, dys, dweight, dy, ys, weight, place)
        _core.dispatch_bwd(device, dx, ys, place, add)
        return offsets, source, place, y, dys, dweight, dx
    check_threads(devices, run)

    _, _, place, y, dys, dweight, dx = run(devices[0])
    for n in (0, 299):  # a token alone
        alone = nan(1, C), nan(K, C), nan(1, K), nan(1, C)
        slots, row = np.arange(K, dtype=np.int32)[None], slice(n, n + 1)
        _core.combine_fwd(devices[0], alone[0], ys[place[n]], weight[row], slots, add[row])
        _core.combine_bwd(devices[0], *alone[1:3], dy[row], ys[place[n]], weight[row], slots)
        _core.dispatch_bwd(devices[0], alone[3], ys[place[n]], slots, add[row])
        assert_same_bits(alone, (y[row], dys[place[n]], dweight[row], dx[row]))


def test_bad_arguments(device):
    with pytest.raises(ValueError, match="'place': 2 at index 1 is outside"):
        _core.combine_fwd(device, nan(1, 4), nan(2, 4), nan(1, 2), ints(0, 2)[None], None)
    with pytest.raises(ValueError, match="dimension N.K is 3, expected 2"):
        _core.combine_fwd(device, nan(1, 4), nan(3, 4), nan(1, 2), ints(0, 1)[None], None)
    with pytest.raises(ValueError, match="'idx': -1 at index 0 is outside"):
        plan(device, ints(-1, 0)[None], 2)
    with pytest.raises(ValueError, match="dimension E.1 is 4, expected 3"):
        _core.dispatch_plan(device, np.zeros(4, np.int32), np.zeros(2, np.int32),
                            np.zeros((1, 2), np.int32), ints(0, 1)[None],
                            (2, 2, 1, 1, False, True, 1.0))
