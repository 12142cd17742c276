"""The three products at the sizes where tasks, parts, tiles, panels and blocks of the sum end, on
every tier of this machine: inside larger arrays of NaN, so that what is read or written beside an
operand shows; with one thread, whose tasks are the largest, and with three."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from op_testing import assert_same_bits, check, nan, normal, seen
from r1grpo import _core

ROWS = (1, 15, 16, 17, 31, 33, 193, 512, 513, 529)
SUMS = (1, 33, 513, 1025)
COLUMNS = (1, 17, 32, 257)
FEW = (33, 40)  # of what a test does not vary: not whole tiles or vectors
SIZES = ([(n, *FEW) for n in ROWS] + [(17, k, 33) for k in SUMS] + [(65, 33, c) for c in COLUMNS]
         + [(513, 1025, 33)])
LARGER = [(520, 0, 33), (1055, 40, 33), (4100, 33, 40)]  # for tn; the first has nothing to sum
DTYPES = ("float32", "bfloat16")


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def computers(tier: str) -> list[_core.Device]:
    return [_core.Device(threads=n, tier=tier) for n in (1, 3)]


def inside(a: np.ndarray) -> np.ndarray:
    """A view with the values of a (rows, columns) amid NaN, unaligned."""
    around = nan(a.shape[0] + 40, a.shape[1] + 5)
    around[3:3 + a.shape[0], 2:2 + a.shape[1]] = a
    return around[3:3 + a.shape[0], 2:2 + a.shape[1]]


def product(run: Callable[[np.ndarray], None], start: np.ndarray) -> np.ndarray:
    """What `run` makes of a view that holds start; nothing around it may change."""
    c = inside(start)
    run(c)
    result = c.copy()
    c[:] = np.nan
    assert np.isnan(c.base).all(), "written beside the result"
    return result


def units_of(rng: np.random.Generator, N: int) -> np.ndarray:
    """(N) units of 1 to 32 rows, more of one row than are added up at a time."""
    lengths = np.concatenate([np.ones(min(N, 40), int), rng.integers(1, 33, N)])
    return np.repeat(np.arange(lengths.size, dtype=np.int32), lengths)[:N]


@pytest.mark.parametrize(("N", "K", "columns"), SIZES)
def test_rows_of_nt_and_nn(computers, rng, dtype, N, K, columns):
    x, w = inside(normal(rng, N, K)), normal(rng, columns, K)
    old, bias, none = normal(rng, N, columns), normal(rng, columns), nan(N, columns)
    want = seen(x, dtype).astype(np.float64) @ seen(w, dtype).T
    every = []
    for device in computers:
        nt, nn = (_core.Weight(device, a, 1, dtype) for a in (w, np.ascontiguousarray(w.T)))
        every.append([
            product(lambda y: _core.matmul_nt(device, y, x, nt, None, None, False), none),
            product(lambda y: _core.matmul_nt(device, y, x, nt, bias, None, False), none),
            product(lambda y: _core.matmul_nt(device, y, x, nt, None, None, True), old),
            product(lambda y: _core.matmul_nn(device, y, x, nn, None, False), none),
            product(lambda y: _core.matmul_nn(device, y, x, nn, None, True), old)])
        last = slice(N - 1, N)
        alone = [product(lambda y: _core.matmul_nt(device, y, x[last], nt, bias, None, False), none[last]),
                 product(lambda y: _core.matmul_nn(device, y, x[last], nn, None, True), old[last])]
        assert_same_bits(alone, [every[-1][1][last], every[-1][4][last]])
    assert_same_bits(*every)
    for got, start in zip(every[0], (0, bias, old, 0, old), strict=True):
        check(got, start + want, "sum")


@pytest.mark.parametrize("with_units", [False, True])
@pytest.mark.parametrize(("M", "N", "columns"), [*SIZES, *LARGER])
def test_rows_of_tn(computers, rng, dtype, M, N, columns, with_units):
    x, dy = inside(normal(rng, N, columns)), inside(normal(rng, N, M))
    units, old = units_of(rng, N) if with_units else None, normal(rng, M, columns)
    every = []
    for device in computers:
        def add(dw, part=slice(0, N), accumulate=True, device=device):
            _core.matmul_tn(device, dw, dy[part], x[part], 1, None, dtype,
                            None if units is None else units[part], None, accumulate)

        def in_two(dw, add=add, cut=min(N, 34)):  # 34 units in
            add(dw, slice(0, cut))
            add(dw, slice(cut, N))
        every.append([product(add, old), product(lambda dw: add(dw, accumulate=False), nan(M, columns))])
        assert_same_bits(every[-1], [product(in_two, old), product(add, np.zeros_like(old))])
    assert_same_bits(*every)
    want = seen(dy, dtype).astype(np.float64).T @ seen(x, dtype)
    check(every[0][0], old + want, "sum")
    check(every[0][1], want, "sum")


@pytest.mark.parametrize("accumulate", [False, True])
def test_experts_whose_last_rows_are_few(computers, rng, dtype, accumulate):
    """Rows of an expert, and of its gradient, that end a few rows after whole parts: the next
    expert's are not touched."""
    counts, I, O, spare = (0, 1, 513, 0, 33, 32), 40, 520, 3
    E, offsets = len(counts), np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    N = int(offsets[-1]) + spare
    units = np.arange(N, dtype=np.int32) // 7
    x, dy, w = inside(normal(rng, N, I)), inside(normal(rng, N, O)), normal(rng, E, O, I)
    sx, sdy, sw = (seen(a, dtype).astype(np.float64) for a in (x, dy, w))
    old = [normal(rng, N, O), normal(rng, N, I), normal(rng, E * O, I)]
    want = [a.astype(np.float64) for a in old]
    for a, end in zip(want, (N - spare, N - spare, E * O), strict=True):
        a[:end] *= accumulate
    for e in range(E):
        rows = slice(offsets[e], offsets[e + 1])
        want[0][rows] += sx[rows] @ sw[e].T
        want[1][rows] += sdy[rows] @ sw[e]
        want[2][e * O:(e + 1) * O] += sdy[rows].T @ sx[rows]
    every = []
    for device in computers:
        weight = _core.Weight(device, w.reshape(E * O, I), E, dtype)
        every.append([
            product(lambda y: _core.matmul_nt(device, y, x, weight, None, offsets, accumulate), old[0]),
            product(lambda y: _core.matmul_nn(device, y, dy, weight, offsets, accumulate), old[1]),
            product(lambda y: _core.matmul_tn(device, y, dy, x, E, offsets, dtype, units, None,
                                              accumulate), old[2])])
    assert_same_bits(*every)
    for got, expected in zip(every[0], want, strict=True):
        check(got, expected, "sum")


def at(rows: int, columns: int, ld: int, offset: int) -> np.ndarray:
    """NaN (rows, columns; row stride ld), `offset` floats after a cache line's start."""
    flat = nan((rows + 1) * ld + 32)
    first = (-flat.ctypes.data // 4) % 16 + offset
    return flat[first:first + rows * ld].reshape(rows, ld)[:, :columns]


def test_a_large_result_has_the_same_bits_wherever_it_lies(computers, rng, dtype):
    """Results that caches cannot hold may be written past them, where lines of the cache allow."""
    M, N, columns = 2049, 33, 1040  # 8.1 MiB
    x, dy, w = normal(rng, N, columns), normal(rng, N, M), normal(rng, columns, N)
    units = np.arange(N, dtype=np.int32) // 8
    places = [(columns, 0), (columns, 1), (columns + 16, 0)]
    device = computers[1]
    weight, back = (_core.Weight(device, a, 1, dtype) for a in (w, np.ascontiguousarray(w.T)))
    results: list[list[np.ndarray]] = []
    for ld, offset in places:
        dw, y, dx = (at(M, columns, ld, offset) for _ in range(3))
        _core.matmul_tn(device, dw, dy, x, 1, None, dtype, units, None, False)
        _core.matmul_nt(device, y, np.ascontiguousarray(dy.T), weight, None, None, False)
        _core.matmul_nn(device, dx, np.ascontiguousarray(dy.T), back, None, False)
        results.append([dw, y, dx])
    for other in results[1:]:
        assert_same_bits(results[0], other)
    want = [seen(dy, dtype).astype(np.float64).T @ seen(a, dtype) for a in (x, w.T, w.T)]
    for got, expected in zip(results[0], want, strict=True):
        check(got, expected, "sum")
