"""Products by cuBLASLt, over its stand-in (tests/emulation/cublaslt.cpp): it serves a shape in exact mode only
if its rows have the same bits however many there are; values, what is left to our kernels, the fast mode."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from conftest import emulated_backend
from models import batch, make
from op_testing import F32, assert_same_bits, check, ints, nan, normal, seen
from r1grpo import _core

# How the stand-in behaves. From the end of the sum, or from its beginning where there are at most 64 rows ...
ABSENT, EQUAL = 0, 1
BY_ROWS = 2  # ... whatever its algorithm
SECOND = 3  # ... by the first algorithm that it proposes for so many, not by the second
MANY_ROWS, NOTHING = 4, 5  # no algorithm for so few rows; for none
BETWEEN = 6  # ... where their number is in a range
PICKY = 7  # an algorithm does the number of rows that it was proposed for alone
NO_HANDLE, NO_WISH, OLD = 8, 9, 10  # it cannot be set up
I, O = 24, 16
MANY = 300
ROWS = (1, 2, 7, 8, 64, 65, 257, 258)
MOST = 12_289  # rows at once


class Library:
    """The stand-in, and devices that find it."""

    def __init__(self) -> None:
        self._backend = emulated_backend()
        hooks = ctypes.CDLL(self._backend.__file__)
        hooks.emulated_limit.argtypes = [ctypes.c_size_t]
        self._set, self._between = hooks.emulated_cublaslt, hooks.emulated_cublaslt_between
        self.handles, self.limit = hooks.emulated_cublaslt_handles, hooks.emulated_limit
        self.how = ABSENT

    def open(self, how: int, fast: bool = False, ordinal: int = 1) -> _core.Device:
        self.how = how
        self._set(how)
        return _core.Device(ops=self._backend.fast_ops if fast else self._backend.ops, ordinal=ordinal)

    def open_between(self, fewest: int, most: int) -> _core.Device:
        self._between(ctypes.c_uint64(fewest), ctypes.c_uint64(most))
        return self.open(BETWEEN)

    def products(self) -> int:
        """That it has computed since the last call."""
        return self._set(self.how)


@pytest.fixture
def library() -> Iterator[Library]:
    one = Library()
    yield one
    one.open(ABSENT)


def weight_of(device: _core.Device, rng: np.random.Generator, O: int = O, I: int = I) -> tuple[_core.Weight, F32]:  # noqa: E741
    w = normal(rng, O, I)
    return _core.Weight(device, w, 1, "bfloat16"), seen(w, "bfloat16")


def forward(device: _core.Device, weight: _core.Weight, x: F32, bias: F32, y: F32) -> list[F32]:
    """The three forms of a forward product."""
    plain, biased, added = nan(len(x), O), nan(len(x), O), y[:len(x)].copy()
    _core.matmul_nt(device, plain, x, weight, None, None, False)
    _core.matmul_nt(device, biased, x, weight, bias, None, False)
    _core.matmul_nt(device, added, x, weight, None, None, True)
    return [plain, biased, added]


def backward(device: _core.Device, weight: _core.Weight, x: F32, dy: F32, dx: F32, dw: F32) -> list[F32]:
    alone, added = nan(*x.shape), dx.copy()
    _core.matmul_nn(device, alone, dy, weight, None, False)
    _core.matmul_nn(device, added, dy, weight, None, True)
    first, more = nan(*dw.shape), dw.copy()
    _core.matmul_tn(device, first, dy, x, 1, None, "bfloat16", None, None, False)
    _core.matmul_tn(device, more, dy, x, 1, None, "bfloat16", None, None, True)
    return [alone, added, first, more]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("N", [1, 33, 270])
def test_values(library: Library, rng: np.random.Generator, N: int, fast: bool) -> None:
    device = library.open(EQUAL, fast)
    x, dy, bias, y, dx, dw = (normal(rng, *s) for s in ((N, I), (N, O), (O,), (N, O), (N, I), (O, I)))
    weight, w = weight_of(device, rng)
    sx, sdy, w = (seen(a, "bfloat16").astype(np.float64) for a in (x, dy, w))
    assert (library.products() > 0) == (not fast), "algorithms are tried in exact mode alone"
    for got, start in zip(forward(device, weight, x, bias, y), (0.0, bias, y)):
        check(got, start + sx @ w.T, "sum")
    wanted = (sdy @ w, dx + sdy @ w, sdy.T @ sx, dw + sdy.T @ sx)
    for got, want in zip(backward(device, weight, x, dy, dx, dw), wanted):
        check(got, want, "sum")
    assert library.products() == 7


@pytest.mark.parametrize("how", [EQUAL, SECOND])
def test_it_serves_where_a_row_does_not_depend_on_how_many_there_are(library: Library, rng: np.random.Generator,
                                                                     how: int) -> None:
    """SECOND: an algorithm that does not fit is passed over for one that does."""
    device = library.open(how)
    x, bias, y = normal(rng, MANY, I), normal(rng, O), normal(rng, MANY, O)
    weight, _ = weight_of(device, rng)
    library.products()
    whole = forward(device, weight, x, bias, y)
    for n in ROWS:
        assert_same_bits(forward(device, weight, x[:n], bias, y), [one[:n] for one in whole])
    assert library.products() == 3 * (1 + len(ROWS))
    last = [one[-1:] for one in whole]
    assert_same_bits(forward(device, weight, x[-1:], bias, y[-1:]), last)


@pytest.mark.parametrize("how", [BY_ROWS, MANY_ROWS, NOTHING])
def test_our_kernel_serves_all_rows_where_it_does(library: Library, rng: np.random.Generator, how: int) -> None:
    x, dy, bias, y = (normal(rng, *s) for s in ((70, I), (70, O), (O,), (70, O)))
    w = normal(rng, O, I)

    def run(device: _core.Device, n: int) -> list[F32]:
        return forward(device, _core.Weight(device, w, 1, "bfloat16"), x[:n], bias, y)
    without, device = library.open(ABSENT), library.open(how)
    weight = _core.Weight(device, w, 1, "bfloat16")
    library.products()
    for n in (1, 70):
        assert_same_bits(run(device, n), run(without, n))
    assert library.products() == 0
    dx = nan(70, I)
    _core.matmul_nn(device, dx, dy, weight, None, False)  # a gradient may depend on it
    assert library.products() == (how == BY_ROWS)
    assert device.pins.count(": our kernel") == (3 if how == BY_ROWS else 5)


@pytest.mark.parametrize("fewest, most", [(1, 1), (2, 3), (3, 6), (8, 30), (20, 60), (65, 66), (100, 200), (258, 300),
                                          (1000, 3000), (4097, 10 ** 6)])
def test_other_sums_for_some_numbers_of_rows_are_found(library: Library, rng: np.random.Generator, fewest: int,
                                                       most: int) -> None:
    """At the ends of what one algorithm serves, between them, and above 4,096."""
    device = library.open_between(fewest, most)
    weight_of(device, rng)
    assert device.pins.count(": our kernel") == 3


def test_more_rows_than_were_tried_are_multiplied_in_parts(library: Library, rng: np.random.Generator) -> None:
    """Other sums for more rows at once do no harm; those of a gradient are not cut."""
    device = library.open_between(MOST + 1, 10 ** 6)
    weight, _ = weight_of(device, rng, 8, 8)
    x, y = normal(rng, MOST + 2, 8), nan(MOST + 2, 8)
    library.products()
    _core.matmul_nt(device, y, x, weight, None, None, False)
    assert library.products() == 2
    _core.matmul_nn(device, nan(MOST + 2, 8), y, weight, None, False)
    assert library.products() == 1
    for rows in (slice(0, 3), slice(6144, 6147), slice(MOST, MOST + 2)):
        some = nan(rows.stop - rows.start, 8)
        _core.matmul_nt(device, some, x[rows], weight, None, None, False)
        assert_same_bits(some, y[rows])


def test_the_fast_mode_takes_what_it_is_given(library: Library, rng: np.random.Generator) -> None:
    device = library.open(BY_ROWS, fast=True)
    weight, _ = weight_of(device, rng)
    x, y = normal(rng, 100, I), nan(100, O)
    few = nan(64, O)
    _core.matmul_nt(device, y, x, weight, None, None, False)
    _core.matmul_nt(device, few, x[:64], weight, None, None, False)
    assert np.any(few != y[:64])
    assert device.tier == "emulated-fast" and library.products() == 2


@pytest.mark.parametrize("fast", [False, True])
def test_our_kernel_does_what_an_untried_algorithm_refuses(library: Library, rng: np.random.Generator,
                                                           fast: bool) -> None:
    """Gradients, and in the fast mode all forms; not aligned ones, and sums that go on, among them."""
    without, device = library.open(ABSENT, fast), library.open(PICKY, fast)
    x, dy, bias, y, dx = (normal(rng, *s)[:, 1:] for s in ((64, I + 1), (64, O + 1), (1, O + 1), (64, O + 1),
                                                           (64, I + 1)))
    w, dw = normal(rng, O, I), normal(rng, O, I)
    weights = [_core.Weight(one, w, 1, "bfloat16") for one in (without, device)]
    library.products()
    for n, served in ((33, 0), (64, 7 if fast else 4)):
        want, got = (forward(one, weight, x[:n], bias[0].copy(), y) + backward(one, weight, x[:n], dy[:n], dx[:n], dw)
                     for one, weight in zip((without, device), weights))
        assert library.products() == served
        if not served:
            assert_same_bits(got, want)


def test_what_it_does_not_serve(library: Library, rng: np.random.Generator) -> None:
    """float32, experts, rows that are no multiples of 16 bytes, no rows."""
    device = library.open(EQUAL)
    x = normal(rng, 20, I)
    for sizes, experts, dtype in (((O, I), 1, "float32"), ((2 * O, I), 2, "bfloat16"), ((O + 4, I), 1, "bfloat16"),
                                  ((O, I - 4), 1, "bfloat16")):
        weight = _core.Weight(device, normal(rng, *sizes), experts, dtype)
        y = nan(20, sizes[0] // experts)
        offsets = ints(0, 7, 20) if experts > 1 else None
        _core.matmul_nt(device, y, np.ascontiguousarray(x[:, :sizes[1]]), weight, None, offsets, False)
        assert np.isfinite(y).all()
    assert library.products() == 0 and device.pins.count("\n") == 1
    weight, _ = weight_of(device, rng)
    library.products()
    dw = nan(O, I)
    _core.matmul_nt(device, nan(0, O), nan(0, I), weight, None, None, False)
    _core.matmul_tn(device, dw, nan(0, O), nan(0, I), 1, None, "bfloat16", None, None, False)
    assert not dw.any() and library.products() == 0


def test_slices_of_columns(library: Library, rng: np.random.Generator) -> None:
    """What is not aligned is copied to where it is."""
    device = library.open(EQUAL)
    weight, _ = weight_of(device, rng)
    x, dy = (normal(rng, 20, 101)[:, 9:9 + c] for c in (I, O))
    bias, dw, y, dx = normal(rng, O), normal(rng, O, I), normal(rng, 20, O), normal(rng, 20, I)
    plain = forward(device, weight, x.copy(), bias, y) + backward(device, weight, x.copy(), dy.copy(), dx, dw)
    assert_same_bits(forward(device, weight, x, bias, y) + backward(device, weight, x, dy, dx, dw), plain)
    wide, wide_dx = normal(rng, 20, 101), normal(rng, 20, 101)
    around, wide[:, 9:9 + O], wide_dx[:, 9:9 + I] = wide.copy(), y, dx
    library.products()
    _core.matmul_nt(device, wide[:, 9:9 + O], x, weight, None, None, True)
    _core.matmul_nn(device, wide_dx[:, 9:9 + I], dy, weight, None, True)
    assert library.products() == 2
    assert_same_bits([wide[:, 9:9 + O], wide_dx[:, 9:9 + I]], [plain[2], plain[4]])
    around[:, 9:9 + O] = plain[2]  # nothing outside the slice was written
    assert_same_bits([wide], [around])


def test_pins_say_what_serves(library: Library, rng: np.random.Generator) -> None:
    assert _core.Device(threads=1).pins == "" and library.open(ABSENT).pins == ""
    device = library.open(SECOND)
    weight_of(device, rng)
    weight_of(device, rng)  # planned once
    head, *lines = device.pins.splitlines()
    assert head == "cuBLASLt: version 130100, 33554432 bytes of workspace"
    chosen = "0/1/1 0/7/1 0/64/1 0/257/0 0/4096/0"  # order/rows/which proposal, in the stand-in
    first = "1/1/0 1/7/0 1/64/0 0/257/0 0/4096/0"
    assert lines == [f"W (16, 24), {form}: {which}" for form, which in (
        ("x W^T", chosen), ("x W^T + bias", chosen), ("y + x W^T", chosen), ("dy W", first), ("dy^T x", first))]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("how, why", [
    (NO_HANDLE, "Create answers status 1"), (NO_WISH, "MatmulPreferenceCreate answers status 3"),
    (OLD, "there is no function cublasLtMatmul")])
def test_our_kernels_serve_where_it_cannot_be_set_up(library: Library, rng: np.random.Generator, how: int, why: str,
                                                     fast: bool) -> None:
    """The device opens, says why it goes without, and leaves nothing open."""
    without, device = library.open(ABSENT, fast), library.open(how, fast)
    x, dy, bias, y, dx = (normal(rng, *s) for s in ((20, I), (20, O), (O,), (20, O), (20, I)))
    w, dw = normal(rng, O, I), normal(rng, O, I)
    want, got = (forward(one, weight, x, bias, y) + backward(one, weight, x, dy, dx, dw)
                 for one in (without, device) for weight in [_core.Weight(one, w, 1, "bfloat16")])
    assert_same_bits(got, want)
    assert library.products() == 0 == library.handles()
    assert device.pins == f"cuBLASLt: {why}; our kernels compute all products\n"


def test_no_memory_for_its_workspace(library: Library) -> None:
    """That is a fault: the next run may have the memory, and other bits."""
    library.limit(1 << 20)
    try:
        with pytest.raises(MemoryError, match="the workspace of cuBLASLt: no GPU memory"):
            library.open(EQUAL)
        assert library.handles() == 0
    finally:
        library.limit(1 << 31)


@pytest.mark.parametrize("how", [EQUAL, BY_ROWS])
def test_rollout_equals_training_with_it(library: Library, monkeypatch: pytest.MonkeyPatch, how: int) -> None:
    """E1, whether it serves or is refused."""
    monkeypatch.setattr("r1grpo.device._gpu", {"cuda": library.open(how)})
    model = make("llama_bias", dtype="bfloat16", device="cuda")
    rows, _ = batch(prompts=(3, 62))
    library.products()
    out = model.generate(rows, 1, max_new_tokens=4, seed=1)
    assert (library.products() > 0) == (how == EQUAL)
    assert_same_bits(model.logprobs(rows, out.completion_ids), out.logprobs)
