"""Ops whose order of sums is the same on the CPU and on a GPU: float32 results have the same bits, on every
tier with a fused multiply-add. One test an op; what a GPU adds up in another order is not here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from conftest import GPU
from op_testing import assert_same_bits, group_seqs, nan, normal
from r1grpo import _core

FUSED = [tier for tier in _core.tiers() if tier != "baseline"]
Run = Callable[[object], list]

pytestmark = [pytest.mark.skipif("not FUSED", reason="no tier of this machine has a fused multiply-add"),
              pytest.mark.parametrize("devices", ["emulated-cuda", *(["cuda"] if GPU else [])], indirect=True)]


@pytest.fixture
def same(device: _core.Device) -> Callable[[Run], None]:
    """same(run): run(device) gives the GPU's bits on every tier."""
    def compare(run: Run) -> None:
        want = run(device)
        for tier in FUSED:
            assert_same_bits(run(_core.Device(threads=2, tier=tier)), want)
    return compare


def test_swiglu(same, rng):
    gate, up, dy = 4 * normal(rng, 9, 70), normal(rng, 9, 70), normal(rng, 9, 70)

    def run(device):
        out = [nan(9, 70) for _ in range(3)]
        _core.swiglu_fwd(device, out[0], gate, up)
        _core.swiglu_bwd(device, out[1], out[2], dy, gate, up)
        return out
    same(run)


def test_embed_bwd(same, rng):
    dw, dy, ids = normal(rng, 5, 33), normal(rng, 200, 33), rng.integers(-1, 5, 200).astype(np.int32)

    def run(device):
        out = dw.copy()
        _core.embed_bwd(device, out, dy, ids)
        return [out]
    same(run)


@pytest.mark.parametrize("normalize", [False, True])
def test_router_with_sigmoid(same, rng, normalize):
    spec = (64, 8, 8, 4, False, normalize, 2.5)
    logits, bias, dweight, dscores = (normal(rng, *s) for s in ((33, 64), (64,), (33, 8), (33, 64)))

    def run(device):
        idx, weight, scores, dlogits = np.zeros((33, 8), np.int32), nan(33, 8), nan(33, 64), nan(33, 64)
        _core.router_fwd(device, idx, weight, scores, logits, bias, spec)
        _core.router_bwd(device, dlogits, dweight, dscores, idx, scores, spec)
        return [idx, weight, scores, dlogits]
    same(run)


def test_rows_of_experts(same, rng):
    N, K, C = 40, 3, 70
    place = rng.permutation(N * K).astype(np.int32).reshape(N, K)
    ys, weight, add = normal(rng, N * K, C), normal(rng, N, K), normal(rng, N, C)

    def run(device):
        y, dx = nan(N, C), nan(N, C)
        _core.combine_fwd(device, y, ys, weight, place, add)
        _core.dispatch_bwd(device, dx, ys, place, None)
        return [y, dx]
    same(run)


def test_token_loss(same, rng):
    logp, old, adv, entropy = (normal(rng, 1500) for _ in range(4))
    ref = logp + 0.2 * normal(rng, 1500)  # k3 by its series and without
    weight = np.where(rng.random(1500) < 0.2, 0, 1).astype(np.float32)

    def run(device):
        out = []
        for form, high in (("nll", 0.2), ("clip", 0.3), ("cispo", 1.5)):
            for kl in ("k1", "k2", "k3"):
                out += [nan(1500) for _ in range(5)]
                _core.token_loss(device, *out[-5:], logp, entropy, weight, adv, old, ref,
                                 (form, 0.1, 0.2, high, 4.0, kl, kl == "k2", 0.1, 0.01))
        return out
    same(run)


def test_score_loss(same, rng):
    score, label = 3 * normal(rng, 130), rng.random(130).astype(np.float32)

    def run(device):
        out = [nan(130) for _ in range(4)]
        _core.score_loss(device, *out[:2], score, None, "pairwise", 0.25)
        _core.score_loss(device, *out[2:], score, label, "pointwise", 0.25)
        return out
    same(run)


@pytest.mark.parametrize("how", [(0.8, 0, 1.0, 0.0), (1.0, 9, 0.8, 0.02)])
def test_logp_bwd(same, rng, how):
    logits, ids = 3 * normal(rng, 5, 1100), rng.integers(0, 1100, 5).astype(np.int32)
    dlogp, dentropy, entropy, lse = normal(rng, 5), normal(rng, 5), normal(rng, 5), normal(rng, 5) + 7

    def run(device):
        out = logits.copy()
        _core.logp_bwd(device, out, dlogp, dentropy, entropy, lse, ids, how)
        return [out]
    same(run)


def test_balance_counts(same, rng):
    """The chosen experts' shares are exact where a row's scores are powers of two that add up to 1: then every
    order of a row's sum is the same, and what is left is the chain over rows."""
    scores = np.tile(np.array([0.5, 0.25, 0.125, 0.125], np.float32), (40, 1))
    starts, _ = group_seqs(9, (12, 0, 19))
    idx = np.argsort(rng.random((40, 4)), axis=1)[:, :2].astype(np.int32)

    def run(device):
        loss, dscores = nan(3), nan(40, 4)
        _core.balance_loss(device, loss, dscores, scores, np.ascontiguousarray(idx), (*starts, None),
                           (4, 2, 1, 1, False, True, 1.0), 0.1)
        return [loss]
    same(run)
