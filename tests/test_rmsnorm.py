"""rmsnorm_fwd and rmsnorm_bwd."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, nan, normal
from r1grpo import _core

EPS = 1e-6


def forward(device, x, w, residual=None):
    N, C = x.shape
    y, r, total = nan(N, C), nan(N), None if residual is None else nan(N, C)
    _core.rmsnorm_fwd(device, y, total, r, x, residual, w, EPS)
    return y, r, x if residual is None else total


def backward(device, dy, s, r, w, dw, add=None):
    ds = nan(*dy.shape)
    _core.rmsnorm_bwd(device, ds, dw, dy, add, s, r, w)
    return ds


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize("C", [1, 3, 33, 128, 129])
@pytest.mark.parametrize("branch", [False, True])
def test_values_and_gradients(device, rng, N, C, branch):
    x, w, dy = normal(rng, N, C), normal(rng, C), normal(rng, N, C)
    residual, add = (normal(rng, N, C), normal(rng, N, C)) if branch else (None, None)
    y, r, s = forward(device, x, w, residual)
    x64, w64 = Tensor(x if residual is None else x.astype(np.float64) + residual), Tensor(w)
    want = ref.rmsnorm(x64, w64, EPS)
    check(y, want.data, "row")
    check(s, x64.data, "element")
    check(r, (np.mean(x64.data ** 2, axis=1) + EPS) ** -0.5, "row")

    dw0 = normal(rng, C)
    dw = dw0.copy()
    ds = backward(device, dy, s, r, w, dw, add)
    dx64, dw64 = gradients((want * dy).sum(), [x64, w64])
    if C == 1:  # y = sign(x) w: two equal terms cancel and leave their rounding
        assert np.all(np.abs(ds - dx64 - (add if branch else 0.0))
                      <= 1e-5 * (1.0 + np.abs(r[:, None] * dy * w)))
    else:
        check(ds, dx64 + (add if branch else 0.0), "row")
    check(dw, dw0 + dw64, "sum")


def test_the_addend_may_be_the_output(device, rng):
    x, w, dy, add = normal(rng, 9, 40), normal(rng, 40), normal(rng, 9, 40), normal(rng, 9, 40)
    _, r, s = forward(device, x, w)
    want = backward(device, dy, s, r, w, np.zeros(40, np.float32), add)
    _core.rmsnorm_bwd(device, add, np.zeros(40, np.float32), dy, add, s, r, w)
    assert_same_bits([add], [want])


def test_zero_and_huge_rows(device):
    x = np.array([[0] * 4, [1e18, -1e18, 0, 0]], np.float32)
    y, r, _ = forward(device, x, np.ones(4, np.float32))
    check(r, [1e3, 1 / (1e18 * np.sqrt(0.5))], "row")
    check(y, [[0] * 4, [2 ** 0.5, -2 ** 0.5, 0, 0]], "row")


def test_bits(devices, rng):
    N, C = 300, 130
    x, residual, w, dy = normal(rng, N, C), normal(rng, N, C), normal(rng, C), normal(rng, N, C)
    dw0 = normal(rng, C)

    def run(device, *parts):
        outs, dw = [], dw0.copy()
        for rows in parts or (slice(0, N),):
            y, r, s = forward(device, x[rows], w, residual[rows])
            outs.append((y, r, s, backward(device, dy[rows], s, r, w, dw, x[rows])))
        return *(np.concatenate(a) for a in zip(*outs)), dw
    check_threads(devices, run)
    whole = run(devices[3])
    for parts in ((slice(0, 1), slice(1, N)), (slice(0, 131), slice(131, 299), slice(299, N))):
        assert_same_bits(run(devices[0], *parts), whole)


def test_slices_of_columns(device, rng):
    wide, w = normal(rng, 20, 90), normal(rng, 33)
    x, dy = wide[:, 3:36], wide[:, 40:73]
    out = nan(20, 90)
    y, ds, r = out[:, 1:34], out[:, 50:83], nan(20)
    dw, dw_plain = np.zeros((2, 33), np.float32)
    _core.rmsnorm_fwd(device, y, None, r, x, None, w, EPS)
    _core.rmsnorm_bwd(device, ds, dw, dy, None, x, r, w)
    plain, r_plain, _ = forward(device, x.copy(), w)
    ds_plain = backward(device, dy.copy(), x.copy(), r_plain, w, dw_plain)
    assert_same_bits((y, r, ds, dw), (plain, r_plain, ds_plain, dw_plain))
    assert np.isnan(out[:, 34:50]).all()


def test_bad_arguments(device):
    a, r, w = np.zeros((3, 7), np.float32), np.zeros(3, np.float32), np.zeros(7, np.float32)

    def fails(error, text, y=a, total=None, r=r, x=a, residual=None, w=w, eps=EPS):
        with pytest.raises(error) as raised:
            _core.rmsnorm_fwd(device, y, total, r, x, residual, w, eps)
        assert str(raised.value) == f"rmsnorm_fwd: {text}"
    fails(ValueError, "argument 'w': dimension C is 3, expected 7", w=w[:3])
    fails(ValueError, "argument 'r': dimension N is 2, expected 3", r=r[:2])
    fails(ValueError, "argument 'x': has 1 dimensions, expected 2", x=w)
    fails(ValueError, "argument 'w': is not C-contiguous", w=np.zeros(14, np.float32)[::2])
    fails(ValueError, "argument 'x': is not C-contiguous", x=np.zeros((7, 3), np.float32).T)
    fails(ValueError, "argument 'x': is not aligned",
          x=np.zeros(85, np.uint8)[1:].view(np.float32).reshape(3, 7))
    fails(TypeError, "argument 'x': dtype must be float32, not numpy.float64", x=a.astype(float))
    fails(TypeError, "argument 'x': dtype must be float32, not numpy.float32 (byte-swapped)",
          x=a.astype(">f4"))
    fails(TypeError, "argument 'x': must be a numpy array of float32, not list", x=[1.0])
    fails(TypeError, "argument 'eps': must be a number, not None", eps=None)
    fails(ValueError, "'sum' and 'residual' come together or not at all", total=a)
    frozen = a.copy()
    frozen.flags.writeable = False
    fails(ValueError, "argument 'y': is read-only", y=frozen)
    with pytest.raises(TypeError, match="'eps': missing"):
        _core.rmsnorm_fwd(device, a, None, r, a, None, w)
    with pytest.raises(TypeError, match="takes 8 arguments, got 9"):
        _core.rmsnorm_fwd(device, a, None, r, a, None, w, EPS, 1)
    with pytest.raises(TypeError, match="device must be a r1grpo._core.Device, not int"):
        _core.rmsnorm_fwd(3, a, None, r, a, None, w, EPS)
