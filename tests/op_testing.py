"""What every op test needs: arrays that start as NaN, tolerances, bit equality.

`TOLERANCE` is the one table of tolerances, in units of float32's spacing at 1 (2^-23). An element
may differ from the float64 oracle by that many units of its own size plus as many of the array's
root mean square: terms that cancel leave an error of their own size. Beside it, the cosine between
the two arrays must be 1 to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

UNIT = 2.0 ** -23
TOLERANCE = {
    "exact": 0.0,
    "element": 8.0,  # a handful of operations on one element
    "row": 32.0,  # a reduction over a row, a head, a softmax
    "sum": 32.0,  # a float32 chain over tokens or over a matmul's inner dimension
    "soft": 128.0,  # behind the exp of large scores, or a difference of such sums
    "split": 1024.0,  # behind products on tensor cores of numbers with 17 bits
}

SIZES = (0, 1, 3, 31, 33, 127, 129)


def nan(*shape: int) -> F32:
    """An output nobody has written."""
    return np.full(shape, np.nan, np.float32)


def normal(rng: np.random.Generator, *shape: int) -> F32:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def bf16(a: np.ndarray) -> F32:
    """The nearest bf16 numbers, ties to even; a NaN stays one."""
    x = np.ascontiguousarray(a, np.float32).view(np.uint32)
    rounded = np.where(np.isnan(a), x | 0x400000, x + 0x7FFF + (x >> 16 & 1))
    return (rounded & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


def seen(a: np.ndarray, dtype: str) -> F32:
    """What a product in this dtype sees of a."""
    return bf16(a) if dtype == "bfloat16" else a


def check(actual: np.ndarray, expected: np.ndarray, kind: str) -> None:
    """actual, float32, is the oracle's value to TOLERANCE[kind]."""
    got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.where(finite, 0.0, got), np.where(finite, 0.0, want))
    got, want = np.where(finite, got, 0.0), np.where(finite, want, 0.0)
    size = np.sqrt(np.mean(want * want)) if want.size else 0.0
    allowed = TOLERANCE[kind] * UNIT * (np.abs(want) + size)
    worst = np.abs(got - want) - allowed
    assert np.all(worst <= 0.0), (
        f"off by {np.abs(got - want).flat[worst.argmax()]:.3g} where"
        f" {allowed.flat[worst.argmax()]:.3g} is allowed,"
        f" at {np.unravel_index(worst.argmax(), worst.shape)}")
    norms = np.linalg.norm(got) * np.linalg.norm(want)
    if norms > 0.0:
        assert 1.0 - (got * want).sum() / norms < 1e-9


def bits(arrays: Iterable[Any]) -> list[bytes]:
    """What equal arrays have in common, however long each is."""
    return [np.asarray(a).tobytes() for a in arrays]


def assert_same_bits(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
    """Equal bit for bit; the message names the first difference."""
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = np.ascontiguousarray(x), np.ascontiguousarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        if x.tobytes() != y.tobytes():
            raw = [a.view(np.uint8).reshape(*a.shape, -1) for a in (x, y)]
            at = tuple(np.argwhere((raw[0] != raw[1]).any(axis=-1))[0])
            raise AssertionError(f"array {i} differs first at {at}: {x[at]!r} and {y[at]!r}")


def check_threads(devices: Sequence[object], run: Callable[..., Sequence[np.ndarray]]) -> None:
    """run(device) gives the same bits on every device."""
    first, *others = [run(device) for device in devices]
    for other in others:
        assert_same_bits(first, other)


def pack_starts(lengths: Sequence[int]) -> NDArray[np.int32]:
    """(B + 1) where each of the packed sequences starts."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)


def group_seqs(shared: int, own: Sequence[int]) -> tuple[tuple[NDArray[np.int32], ...], NDArray[np.int64]]:
    """Seqs (without blocks) of one group whose sequences share their first rows and have own[b] rows
    each behind them, and the rows (sum of all positions) of the sequences one after another."""
    starts = np.concatenate([[0], shared + np.cumsum(own)]).astype(np.int32)
    pos0 = np.array([0] + [shared] * (len(own) - 1), np.int32)
    begin = np.maximum(starts[:-1], shared)
    rows = np.concatenate([np.r_[:shared, a:b] for a, b in zip(begin, starts[1:])])
    return (starts, pos0), rows


def whole_seqs(lengths: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32], None]:
    """Seqs of whole sequences, as training packs them; no cache."""
    return pack_starts(lengths), np.zeros(len(lengths), np.int32), None


def tensor_cores(device: Any, dtype: str = "bfloat16") -> bool:
    """Products in this dtype are a GPU's, which adds up 16 terms in an order of its own. (The emulated one
    goes by ascending terms.)"""
    return device.tier == "exact" and dtype == "bfloat16"


Product = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def matrix_unit(chain: Product, add: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Product:
    """start (n, m) + a (n, K) b (K, m) in the order of amx_tile.h, out of a product that is one
    chain: in each block of 32 terms, the last filled up with 0 x 0, the even ones and the odd ones
    are chains of their own from 0."""
    def product(start: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        c, fill = np.array(start, np.float32), -a.shape[1] % 32
        a, b = np.pad(a, ((0, 0), (0, fill))), np.pad(b, ((0, fill), (0, 0)))
        for k in range(0, a.shape[1], 32):
            even, odd = (chain(np.zeros_like(c), a[:, i:k + 32:2], b[i:k + 32:2]) for i in (k, k + 1))
            c = add(add(even, odd), c)
        return c
    return product
