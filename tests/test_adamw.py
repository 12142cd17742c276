"""sum_squares and adamw."""

from __future__ import annotations

import numpy as np
import pytest

import reference_rl as rl
from op_testing import SIZES, assert_same_bits, check, check_threads, normal
from r1grpo import _core


def norm2(device, g):
    out = np.zeros(1)
    _core.sum_squares(device, out, g)
    return out


def spec(step, lr=0.01, decay=0.1, scale=1.0):
    return (lr, 0.9, 0.95, 1e-8, decay, scale, step)


@pytest.mark.parametrize(("rows", "cols"), [(0, 3), (1, 1), (3, 31), (129, 127), (2, 5000)])
def test_sum_squares(device, rng, rows, cols):
    g = normal(rng, rows, cols)
    flat = g.astype(np.float64).ravel()
    np.testing.assert_allclose(norm2(device, g), [(flat * flat).sum()], rtol=1e-13)


def test_sum_squares_in_blocks_of_4096(devices, rng):
    """The partial sums are of fixed blocks, added in order: threads and shape cannot matter."""
    g = normal(rng, 40, 1000)
    check_threads(devices, lambda device: [norm2(device, g)])
    assert_same_bits([norm2(devices[1], g)], [norm2(devices[1], g.reshape(1000, 40))])
    parts = norm2(devices[1], g.ravel()[:8192].reshape(8, 1024))
    _core.sum_squares(devices[1], parts, g.ravel()[8192:].reshape(1, -1))
    assert_same_bits([norm2(devices[1], g)], [parts])


def test_sum_squares_neither_overflows_nor_hides_nan(device):
    g = np.full((3, 5), 3e38, np.float32)
    assert np.isfinite(norm2(device, g)[0])
    for bad in (np.nan, np.inf):
        g[2, 4] = bad
        assert not np.isfinite(norm2(device, g)[0])


@pytest.mark.parametrize("cols", SIZES)
@pytest.mark.parametrize(("decay", "scale"), [(0.0, 1.0), (0.1, 1.0), (0.1, 0.25)])
def test_ten_steps(device, rng, cols, decay, scale):
    p = normal(rng, 3, cols)
    m, v = np.zeros((2, 3, cols), np.float32)
    want = p.astype(np.float64), m.astype(np.float64), v.astype(np.float64)
    for step in range(1, 11):
        g = normal(rng, 3, cols)
        _core.adamw(device, p, m, v, g, spec(step, decay=decay, scale=scale))
        want = rl.adamw(want[0], g.astype(np.float64) * scale, want[1], want[2], step,
                        learning_rate=0.01, betas=(0.9, 0.95), weight_decay=decay)
    check(p, want[0], "row")
    check(m, want[1], "row")
    check(v, want[2], "row")


def test_the_first_step_is_the_learning_rate(device):
    """m-hat / sqrt(v-hat) is the sign of the gradient."""
    p, m, v = np.zeros((3, 1, 4), np.float32)
    _core.adamw(device, p, m, v, np.array([[1e-3, -5, 0, 1e6]], np.float32), spec(1, decay=0.0))
    np.testing.assert_allclose(p, [[-0.01, 0.01, 0, -0.01]], rtol=1e-4)


def test_late_steps_have_no_bias_correction(device):
    """beta^step is 0 in float32 long before step 2^40; nothing overflows."""
    p, m, v = np.zeros((3, 1, 4), np.float32)
    _core.adamw(device, p, m, v, np.ones((1, 4), np.float32), spec(2 ** 40, decay=0.0))
    np.testing.assert_allclose(p, np.full((1, 4), -0.01 * 0.1 / np.sqrt(0.05)), rtol=1e-5)


def test_bits(devices, rng):
    start = [normal(rng, 65, 129) for _ in range(3)] + [np.abs(normal(rng, 65, 129))]

    def run(device):
        p, m, g, v = (a.copy() for a in start)
        _core.adamw(device, p, m, v, g, spec(3))
        return p, m, v
    check_threads(devices, run)
    p, m, g, v = (a[:, 0:1].copy() for a in start)
    _core.adamw(devices[0], p, m, v, g, spec(3))
    assert_same_bits((p, m, v), [np.ascontiguousarray(a[:, 0:1]) for a in run(devices[3])])


def test_bad_arguments(device, rng):
    a = normal(rng, 2, 3)
    with pytest.raises(ValueError, match="step is 0"):
        _core.adamw(device, a, a, a, a, spec(0))
    with pytest.raises(ValueError, match="dimension cols is 2, expected 3"):
        _core.adamw(device, a, a[:, :2].copy(), a, a, spec(1))
    with pytest.raises(ValueError, match="'g': is not C-contiguous"):
        _core.sum_squares(device, np.zeros(1), a[:, :2])
    with pytest.raises(TypeError, match="'sum': dtype must be float64"):
        _core.sum_squares(device, np.zeros(1, np.float32), a)


# ---- a weight: its rows and its packed copy ------------------------------------------------------


def seen(device, w, experts, O, I):  # noqa: E741
    """What matmul_nt (the packed copy) and matmul_nn (the master) make of unit vectors."""
    nt = np.full((experts * I, O), np.nan, np.float32)
    nn = np.full((experts * O, I), np.nan, np.float32)
    by_input, by_output = (np.arange(experts + 1, dtype=np.int32) * n for n in (I, O))
    _core.matmul_nt(device, nt, np.tile(np.eye(I, dtype=np.float32), (experts, 1)), w, None,
                    by_input, False)
    _core.matmul_nn(device, nn, np.tile(np.eye(O, dtype=np.float32), (experts, 1)), w, by_output,
                    False)
    return [nt, nn]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("experts", "O", "I"), [(1, 1, 1), (1, 33, 31), (1, 96, 40), (3, 33, 17),
                                                 (2, 32, 64)])
def test_a_weight_is_updated_and_packed(devices, rng, experts, O, I, dtype):  # noqa: E741
    p, m, v, g = (normal(rng, experts * O, I) for _ in range(4))
    v = np.abs(v)

    def step(device):
        w, m1, v1 = _core.Weight(device, p, experts, dtype), m.copy(), v.copy()
        _core.weight_adamw(device, w, 0, m1, v1, g, spec(3))
        return [m1, v1, *seen(device, w, experts, O, I)]

    check_threads(devices, step)
    want, m2, v2 = p.copy(), m.copy(), v.copy()
    _core.adamw(devices[0], want, m2, v2, g, spec(3))
    w = _core.Weight(devices[0], want, experts, dtype)
    assert_same_bits(step(devices[0]), [m2, v2, *seen(devices[0], w, experts, O, I)])


def test_a_weight_in_parts(device, rng):
    p, m, v, g = (normal(rng, 75, 9) for _ in range(4))
    v = np.abs(v)
    whole, parts = _core.Weight(device, p, 1), _core.Weight(device, p, 1)
    m1, v1, m2, v2 = m.copy(), v.copy(), m.copy(), v.copy()
    _core.weight_adamw(device, whole, 0, m1, v1, g, spec(3))
    for rows in (slice(64, 75), slice(0, 32), slice(32, 64)):
        _core.weight_adamw(device, parts, rows.start, m2[rows], v2[rows], g[rows], spec(3))
    assert_same_bits([m1, v1, *seen(device, whole, 1, 75, 9)],
                     [m2, v2, *seen(device, parts, 1, 75, 9)])


def test_refused_parts_of_a_weight(device, rng):
    a = normal(rng, 66, 4)
    for experts, row0, rows in ((1, 1, 65), (1, 0, 40), (1, 64, 3), (2, 32, 32), (2, 0, 32)):
        with pytest.raises(ValueError, match="weight_adamw: "):
            _core.weight_adamw(device, _core.Weight(device, a, experts), row0, a[:rows].copy(),
                               a[:rows].copy(), a[:rows], spec(1))
