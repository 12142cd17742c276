"""mla_expand_fwd and mla_expand_bwd: per-head keys and values from the expanded latent."""

from __future__ import annotations

import numpy as np
import pytest

from op_testing import SIZES, assert_same_bits, check, check_threads, nan, normal
from r1grpo import _core

SHAPES = [(1, 1, 1, 1), (4, 32, 16, 32), (3, 31, 7, 33)]  # H, Dn, Dr, Dv


@pytest.mark.parametrize("N", SIZES)
@pytest.mark.parametrize(("H", "Dn", "Dr", "Dv"), SHAPES)
def test_values_and_gradients(device, rng, N, H, Dn, Dr, Dv):
    kvb, kr = normal(rng, N, H * (Dn + Dv)), normal(rng, N, Dr)
    k, v = nan(N, H * (Dn + Dr)), nan(N, H * Dv)
    _core.mla_expand_fwd(device, k, v, kvb, kr, H, Dn, Dv)
    split = kvb.reshape(N, H, Dn + Dv)
    shared = np.broadcast_to(kr[:, None], (N, H, Dr))
    want_k = np.concatenate([split[:, :, :Dn], shared], axis=2)
    assert_same_bits((k, v), (want_k.reshape(k.shape), split[:, :, Dn:].reshape(v.shape)))

    dk, dv = normal(rng, *k.shape), normal(rng, *v.shape)
    dkvb, dkr = nan(*kvb.shape), nan(N, Dr)
    _core.mla_expand_bwd(device, dkvb, dkr, dk, dv, H, Dn, Dv)
    heads = dk.reshape(N, H, Dn + Dr)
    want = np.concatenate([heads[:, :, :Dn], dv.reshape(N, H, Dv)], axis=2)
    assert_same_bits([dkvb], [want.reshape(dkvb.shape)])
    check(dkr, heads[:, :, Dn:].astype(np.float64).sum(axis=1), "sum")


def test_heads_are_added_in_ascending_order(device):
    dk = np.array([[1e8, 1.0, -1e8]], np.float32)  # three heads, Dn = 0, Dr = 1
    dkr = nan(1, 1)
    _core.mla_expand_bwd(device, nan(1, 3), dkr, dk, np.zeros((1, 3), np.float32), 3, 0, 1)
    assert dkr[0, 0] == 0.0  # 1e8 + 1 is 1e8


def test_bits(devices, rng):
    N, H, Dn, Dr, Dv = 200, 4, 24, 12, 20
    kvb, wide = normal(rng, N, H * (Dn + Dv)), normal(rng, N, 64 + Dr)
    kr, dk, dv = wide[:, 64:], normal(rng, N, H * (Dn + Dr)), normal(rng, N, H * Dv)

    def run(device, rows=slice(None)):
        n = len(kvb[rows])
        k, v, dkvb, dkr = nan(n, H * (Dn + Dr)), nan(n, H * Dv), nan(n, H * (Dn + Dv)), nan(n, Dr)
        _core.mla_expand_fwd(device, k, v, kvb[rows], kr[rows], H, Dn, Dv)
        _core.mla_expand_bwd(device, dkvb, dkr, dk[rows], dv[rows], H, Dn, Dv)
        return k, v, dkvb, dkr
    check_threads(devices, run)
    assert_same_bits(run(devices[0], slice(7, 8)), [a[7:8] for a in run(devices[3])])


def test_bad_arguments(device):
    with pytest.raises(ValueError, match=r"dimension H\*\(Dn\+Dr\) is 12, expected 14"):
        _core.mla_expand_fwd(device, nan(2, 12), nan(2, 8), nan(2, 16), nan(2, 3), 2, 4, 4)
