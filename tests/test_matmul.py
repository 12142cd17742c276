"""matmul_nt, matmul_nn, matmul_tn and bias_bwd in both dtypes: values, groups of experts, order of
sums. What only bf16 has: test_bf16.py."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from conftest import GPU
from op_testing import (assert_same_bits, check, check_threads, ints, matrix_unit, nan, normal, seen,
                        tensor_cores)
from r1grpo import _core

SHAPES = [(0, 5, 7), (1, 1, 1), (1, 128, 33), (3, 31, 129), (31, 33, 32), (33, 127, 3),
          (127, 3, 31), (129, 300, 65), (13, 600, 40)]
# rows of each of some experts: one without rows, one row, ordinary; one expert with all; many experts
GROUPS = [(7, 0, 1, 40, 12), (0, 0, 60, 0, 0), (0, 0, 0, 0, 0), (1, 0, 2) * 14]


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def starts(rows: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)


def coarse(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of 8 bits: their products are exact, and a float64 sum of one with a float32 is too,
    so a float32 chain can be followed exactly, fused or not."""
    return (rng.integers(-127, 128, shape) * 2.0 ** rng.integers(-4, 5, shape)).astype(np.float32)


def chain(start: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """start (n, m) + a (n, K) b (K, m): one rounding to float32 a term, in ascending order."""
    c = np.array(start, np.float32)
    for k in range(a.shape[1]):
        c = (c.astype(np.float64) + a[:, k, None].astype(np.float64) * b[k]).astype(np.float32)
    return c


@pytest.mark.parametrize(("N", "I", "O"), SHAPES)
def test_products(device, rng, dtype, N, I, O):
    x, w, dy = normal(rng, N, I), normal(rng, O, I), normal(rng, N, O)
    bias, old_y, old_dx, old_dw = (normal(rng, *s) for s in ((O,), (N, O), (N, I), (O, I)))
    x64, w64, dy64 = (seen(a, dtype).astype(np.float64) for a in (x, w, dy))
    weight = _core.Weight(device, w, 1, dtype)

    y = nan(N, O)
    _core.matmul_nt(device, y, x, weight, None, None, False)
    check(y, x64 @ w64.T, "sum")
    y = nan(N, O)
    _core.matmul_nt(device, y, x, weight, bias, None, False)
    check(y, x64 @ w64.T + bias, "sum")
    y = old_y.copy()
    _core.matmul_nt(device, y, x, weight, None, None, True)
    check(y, old_y + x64 @ w64.T, "sum")

    dx = nan(N, I)
    _core.matmul_nn(device, dx, dy, weight, None, False)
    check(dx, dy64 @ w64, "sum")
    dx = old_dx.copy()
    _core.matmul_nn(device, dx, dy, weight, None, True)
    check(dx, old_dx + dy64 @ w64, "sum")

    dw = old_dw.copy()
    _core.matmul_tn(device, dw, dy, x, 1, None, dtype, None, None, True)
    check(dw, old_dw + dy64.T @ x64, "sum")
    dbias = bias.copy()
    _core.bias_bwd(device, dbias, dy)
    check(dbias, bias + dy.astype(np.float64).sum(axis=0), "sum")


@pytest.mark.parametrize("rows", GROUPS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_experts(device, rng, dtype, rows, accumulate):
    E, I, O, spare = len(rows), 37, 45, 3  # spare rows belong to no expert
    offsets = starts(rows)
    N = int(offsets[-1]) + spare
    x, dy, w = normal(rng, N, I), normal(rng, N, O), normal(rng, E, O, I)
    weight = _core.Weight(device, w.reshape(E * O, I), E, dtype)
    sx, sdy, sw = (seen(a, dtype).astype(np.float64) for a in (x, dy, w))
    y, dx, dw = normal(rng, N, O), normal(rng, N, I), normal(rng, E * O, I)
    want_y, want_dx, want_dw = (a.astype(np.float64) for a in (y, dx, dw))
    want_dw *= accumulate  # of an expert without rows too
    for e in range(E):
        part = slice(offsets[e], offsets[e + 1])
        want_y[part] = want_y[part] * accumulate + sx[part] @ sw[e].T
        want_dx[part] = want_dx[part] * accumulate + sdy[part] @ sw[e]
        want_dw[e * O:(e + 1) * O] += sdy[part].T @ sx[part]
    before_y, before_dx = y[N - spare:].copy(), dx[N - spare:].copy()
    _core.matmul_nt(device, y, x, weight, None, offsets, accumulate)
    _core.matmul_nn(device, dx, dy, weight, offsets, accumulate)
    for units in (None, np.arange(N, dtype=np.int32) // 5):
        got = dw.copy() if accumulate else nan(E * O, I)
        _core.matmul_tn(device, got, dy, x, E, offsets, dtype, units, None, accumulate)
        check(got, want_dw, "sum")
    check(y, want_y, "sum")
    check(dx, want_dx, "sum")
    assert_same_bits((y[N - spare:], dx[N - spare:]), (before_y, before_dx))


@pytest.mark.parametrize(("N", "I", "O"), [(5, 600, 33), (600, 31, 40), (14, 65, 600)])
def test_an_element_is_one_ascending_chain_from_memory(device, rng, dtype, N, I, O):
    if tensor_cores(device, dtype):
        pytest.skip("inside 16 terms the order is the hardware's")
    x, w, dy = coarse(rng, N, I), coarse(rng, O, I), coarse(rng, N, O)
    weight = _core.Weight(device, w, 1, dtype)
    y, bias = coarse(rng, N, O), coarse(rng, O)
    order = matrix_unit(chain, np.add) if (device.tier, dtype) == ("amx", "bfloat16") else chain
    want = order(y, x, w.T)
    _core.matmul_nt(device, y, x, weight, None, None, True)
    assert_same_bits([y], [want])
    _core.matmul_nt(device, y, x, weight, bias, None, False)
    assert_same_bits([y], [order(np.tile(bias, (N, 1)), x, w.T)])
    dx = nan(N, I)
    _core.matmul_nn(device, dx, dy, weight, None, False)
    assert_same_bits([dx], [order(np.zeros((N, I)), dy, w)])
    dw = coarse(rng, O, I)
    want = chain(dw, dy.T, x)
    _core.matmul_tn(device, dw, dy, x, 1, None, dtype, None, None, True)
    assert_same_bits([dw], [want])
    dbias = bias.copy()
    _core.bias_bwd(device, dbias, dy)
    want = chain(bias[None], np.ones((1, N), np.float32), dy)[0]
    assert_same_bits([dbias], [want])


def test_bits_do_not_depend_on_threads(devices, rng, dtype):
    N, I, O = 150, 130, 97
    x, dy, w = normal(rng, N, I), normal(rng, N, O), normal(rng, 2 * O, I)
    offsets, dw0 = ints(0, 61, 150), normal(rng, 2 * O, I)

    def run(device):
        weight = _core.Weight(device, w, 2, dtype)
        y, dx, dw, dbias = nan(N, O), nan(N, I), dw0.copy(), dw0[0, :O].copy()
        _core.matmul_nt(device, y, x, weight, None, offsets, False)
        _core.matmul_nn(device, dx, dy, weight, offsets, False)
        _core.matmul_tn(device, dw, dy, x, 2, offsets, dtype, None, None, True)
        _core.bias_bwd(device, dbias, dy)
        return y, dx, dw, dbias
    check_threads(devices, run)


def test_a_row_alone_is_the_row_among_many(device, rng, dtype):
    N, I, O = 67, 129, 70
    x, dy = normal(rng, N, I), normal(rng, N, O)
    weight = _core.Weight(device, normal(rng, O, I), 1, dtype)
    y, dx = nan(N, O), nan(N, I)
    _core.matmul_nt(device, y, x, weight, None, None, False)
    _core.matmul_nn(device, dx, dy, weight, None, False)
    for n in (0, 11, 12, 66):
        y1, dx1 = nan(1, O), nan(1, I)
        _core.matmul_nt(device, y1, x[n:n + 1], weight, None, None, False)
        _core.matmul_nn(device, dx1, dy[n:n + 1], weight, None, False)
        assert_same_bits((y1, dx1), (y[n:n + 1], dx[n:n + 1]))


@pytest.mark.parametrize("I", [96, 100])  # rows of W that are aligned to 16 bytes, and that are not
def test_a_row_does_not_depend_on_how_many_there_are(device, rng, dtype, I):
    """Few rows, some and many are tiles of their own on a GPU; an expert's rows are a product by itself."""
    N, O = 257, 530
    x, dy, bias = normal(rng, N, I), normal(rng, N, O), normal(rng, O)
    w = normal(rng, O, I)
    weight = _core.Weight(device, w, 1, dtype)
    y, dx = nan(N, O), nan(N, I)
    _core.matmul_nt(device, y, x, weight, bias, None, False)
    _core.matmul_nn(device, dx, dy, weight, None, False)
    for n in (1, 7, 64):
        y1, dx1 = nan(n, O), nan(n, I)
        _core.matmul_nt(device, y1, x[:n], weight, bias, None, False)
        _core.matmul_nn(device, dx1, dy[:n], weight, None, False)
        assert_same_bits((y1, dx1), (y[:n], dx[:n]))
    experts, offsets = _core.Weight(device, np.tile(w, (3, 1)), 3, dtype), ints(0, 1, 200, 257)
    y1, dx1 = np.tile(bias, (N, 1)), nan(N, I)
    _core.matmul_nt(device, y1, x, experts, None, offsets, True)
    _core.matmul_nn(device, dx1, dy, experts, offsets, False)
    assert_same_bits((y1, dx1), (y, dx))


def chains(start: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """chain, by segments of at most 2,048 terms as a GPU's bf16 has them: the first from start, others from 0."""
    count = -(-a.shape[1] // 2048)
    length = -(-a.shape[1] // count // 64) * 64
    sums = [chain(start if k == 0 else np.zeros_like(start), a[:, k:k + length], b[k:k + length])
            for k in range(0, a.shape[1], length)]
    return np.add.accumulate(np.stack(sums), dtype=np.float32)[-1]


@pytest.mark.parametrize("devices", ["emulated-cuda", *(["cuda"] if GPU else [])], indirect=True)
@pytest.mark.parametrize(("I", "O"), [(70, 4100), (2050, 26), (4144, 21)])
def test_long_sums_are_cut_alike_for_every_number_of_rows(device, rng, I, O):
    N = 400 if O < 100 else 20  # large tiles, medium ones, few rows; narrow and wide blocks of those
    x, w, y0, bias = coarse(rng, N, I), coarse(rng, O, I), coarse(rng, N, O), coarse(rng, O)
    weight = _core.Weight(device, w, 1, "bfloat16")
    y, biased = y0.copy(), nan(N, O)
    _core.matmul_nt(device, y, x, weight, None, None, True)
    _core.matmul_nt(device, biased, x, weight, bias, None, False)
    for n in (1, 5, 16, 17, 130):
        few, more = y0[:n].copy(), nan(min(n, N), O)
        _core.matmul_nt(device, few, x[:n], weight, None, None, True)
        _core.matmul_nt(device, more, x[:n], weight, bias, None, False)
        assert_same_bits((few, more), (y[:n], biased[:n]))
    if device.tier == "emulated":  # a real one has an order of its own inside 16 terms
        assert_same_bits([y[:3], biased[:3]], [chains(y0[:3], x[:3], w.T),
                                               chains(np.tile(bias, (3, 1)), x[:3], w.T)])
    experts, offsets = _core.Weight(device, np.tile(w, (2, 1)), 2, "bfloat16"), ints(0, 3, 18)
    few = y0[:20].copy()
    _core.matmul_nt(device, few, x[:20], experts, None, offsets, True)
    assert_same_bits([few[:18], few[18:]], [y[:18], y0[18:20]])


@pytest.mark.parametrize("devices", ["emulated-cuda"], indirect=True)
@pytest.mark.parametrize(("I", "O"), [(2100, 40), (100, 60), (100, 20)])
def test_the_size_of_a_gpu_changes_no_bit(devices, rng, I, O):
    """The last device has more processors, so narrower tiles, and segments of a sum side by side."""
    x, w, y0, bias = coarse(rng, 70, I), coarse(rng, O, I), coarse(rng, 70, O), coarse(rng, O)

    def run(device):
        weight, found = _core.Weight(device, w, 1, "bfloat16"), []
        for n in (17, 70):
            y, biased = y0[:n].copy(), nan(n, O)
            _core.matmul_nt(device, y, x[:n], weight, None, None, True)
            _core.matmul_nt(device, biased, x[:n], weight, bias, None, False)
            found += [y[:17], biased[:17]]
        return found
    assert len({device.threads for device in devices}) == 2
    check_threads(devices, run)
    few = [y0[:3].copy(), nan(3, O)]
    _core.matmul_nt(devices[3], few[0], x[:3], _core.Weight(devices[3], w, 1, "bfloat16"), None, None, True)
    _core.matmul_nt(devices[3], few[1], x[:3], _core.Weight(devices[3], w, 1, "bfloat16"), bias, None, False)
    for got in (run(devices[3])[:2], run(devices[3])[2:]):
        assert_same_bits(few, [one[:3] for one in got])


def test_a_sum_over_many_rows(devices, rng, dtype):
    """A GPU adds up segments of rows."""
    N, I, O = 3001, 33, 20
    x, dy, dw0 = normal(rng, N, I), normal(rng, N, O), normal(rng, O, I)

    def run(device):
        added, alone = dw0.copy(), nan(O, I)
        _core.matmul_tn(device, added, dy, x, 1, None, dtype, None, None, True)
        _core.matmul_tn(device, alone, dy, x, 1, None, dtype, None, None, False)
        return added, alone
    check_threads(devices, run)
    want = seen(dy, dtype).astype(np.float64).T @ seen(x, dtype)
    for got, start in zip(run(devices[1]), (dw0, 0.0)):
        check(got, start + want, "sum")


def test_large_gradients(device, rng, dtype):
    """Of one matrix and of experts, as large as a GPU's large tiles want them."""
    N, I, O = 40, 520, 256
    x, dy, offsets = normal(rng, N, I), normal(rng, N, O), ints(0, 15, 40)
    sx, sdy = (seen(a, dtype).astype(np.float64) for a in (x, dy))
    one, two = nan(O, I), nan(2 * O, I)
    _core.matmul_tn(device, one, dy, x, 1, None, dtype, None, None, False)
    _core.matmul_tn(device, two, dy, x, 2, offsets, dtype, None, None, False)
    check(one, sdy.T @ sx, "sum")
    check(two, np.vstack([sdy[:15].T @ sx[:15], sdy[15:].T @ sx[15:]]), "sum")


@pytest.mark.parametrize("with_units", [False, True])
@pytest.mark.parametrize("cut", [1, 40, 128])
def test_two_calls_sum_to_one(device, rng, dtype, cut, with_units):
    N, I, O = 129, 70, 33
    units = np.repeat([0, 1, 2, 3], [1, 39, 88, 1]).astype(np.int32) if with_units else None
    x, dy, dw0 = normal(rng, N, I), normal(rng, N, O), normal(rng, O, I)
    one, two = [dw0.copy(), dw0[:, 0].copy()], [dw0.copy(), dw0[:, 0].copy()]
    for grads, parts in ((one, [slice(0, N)]), (two, [slice(0, cut), slice(cut, N)])):
        for part in parts:
            _core.matmul_tn(device, grads[0], dy[part], x[part], 1, None, dtype,
                            None if units is None else units[part], None, True)
            _core.bias_bwd(device, grads[1], dy[part])
    if tensor_cores(device, dtype):
        check(two[0], one[0], "sum")
        one, two = one[1:], two[1:]
    assert_same_bits(one, two)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("offsets", [None, (0, 61, 61, 130)])
def test_units_are_added_up_one_after_another(device, rng, dtype, mapped, offsets):
    """A unit is one block of the sum where a tier adds up blocks; elsewhere it is nothing. Rows of a
    unit beyond 32 begin another."""
    if tensor_cores(device, dtype):
        pytest.skip("inside 16 terms the order is the hardware's")
    N, I, O = 133, 70, 33  # 3 rows belong to no expert
    E = len(offsets) - 1 if offsets else 1
    x, dy, dw = coarse(rng, N, I), coarse(rng, N, O), coarse(rng, E * O, I)
    units = np.repeat([5, 6, 2, 9, 1], [32, 1, 28, 40, 32]).astype(np.int32)
    cuts = [0, 32, 33, 61, 93, 101, 133]
    rows = None
    if mapped:
        order = rng.permutation(N)
        rows, units = np.argsort(order).astype(np.int32), units[order]
    sum_up = matrix_unit(chain, np.add) if (device.tier, dtype) == ("amx", "bfloat16") else chain
    want = dw.reshape(E, O, I).copy()
    for e in range(E):
        begin, end = offsets[e:e + 2] if offsets else (0, N)
        for part in (range(max(a, begin), min(b, end)) for a, b in pairwise(cuts)):
            want[e] = sum_up(want[e], dy[part].T, x[part])
    _core.matmul_tn(device, dw, dy, x, E, None if offsets is None else ints(*offsets), dtype, units,
                    rows, True)
    assert_same_bits([dw], [want.reshape(E * O, I)])


def test_slices_of_columns(device, rng, dtype):
    N, I, O = 20, 33, 47
    x, dy, y, dx = (normal(rng, N, 100)[:, 9:9 + c] for c in (I, O, O, I))
    around = [a.base.copy() for a in (y, dx)]
    weight = _core.Weight(device, normal(rng, O, I), 1, dtype)
    plain = nan(N, O), nan(N, I), np.zeros((O, I), np.float32)
    _core.matmul_nt(device, plain[0], x.copy(), weight, None, None, False)
    _core.matmul_nn(device, plain[1], dy.copy(), weight, None, False)
    _core.matmul_tn(device, plain[2], dy.copy(), x.copy(), 1, None, dtype, None, None, True)
    dw = np.zeros((O, I), np.float32)
    _core.matmul_nt(device, y, x, weight, None, None, False)
    _core.matmul_nn(device, dx, dy, weight, None, False)
    _core.matmul_tn(device, dw, dy, x, 1, None, dtype, None, None, True)
    assert_same_bits((y, dx, dw), plain)
    for a, before in zip((y, dx), around):  # nothing outside the slice was written
        before[:, 9:9 + a.shape[1]] = a
        assert_same_bits([a.base], [before])


def test_bad_arguments(device, rng):
    x, y = normal(rng, 4, 5), nan(4, 6)
    one = _core.Weight(device, normal(rng, 6, 5), 1)
    two = _core.Weight(device, normal(rng, 12, 5), 2)

    def fails(error, match, *args):
        with pytest.raises(error, match=match):
            _core.matmul_nt(device, *args)
    fails(ValueError, "'x': dimension N is 3, expected 4", y, x[:3], one, None, None, False)
    fails(ValueError, "dimension I is 4, expected 5", y, normal(rng, 4, 4), one, None, None, False)
    fails(TypeError, "'x': dtype must be float32", y, x.astype(np.float64), one, None, None, False)
    fails(TypeError, "'w': must be a _core.Weight", y, x, y, None, None, False)
    fails(TypeError, "'offsets': must be a numpy array", y, x, two, None, None, False)
    fails(ValueError, "'offsets': descends", y, x, two, None, ints(0, 3, 2), False)
    fails(ValueError, "'offsets': ends at 5", y, x, two, None, ints(0, 3, 5), False)
    fails(ValueError, "'offsets': starts at 1", y, x, two, None, ints(1, 3, 4), False)
    fails(ValueError, "exclude", y, x, one, normal(rng, 6), None, True)
    fails(TypeError, "'accumulate': must be a bool", y, x, one, None, None, 1)
    other = _core.Device(threads=1, tier=_core.tiers()[0])
    with pytest.raises(ValueError, match="another device"):
        _core.matmul_nt(other, y, x, one, None, None, False)
    with pytest.raises(ValueError, match="12 rows do not make 5 experts"):
        _core.Weight(device, normal(rng, 12, 5), 5)
    assert np.isnan(y).all()
