"""token_loss: nll and clip with KL and entropy, on vectors."""

from __future__ import annotations

import numpy as np
import pytest

import reference_rl as rl
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, nan, normal
from r1grpo import _core

OUTPUTS = ("loss", "dlogp", "dentropy", "kl", "clipped")


def run(device, logp, weight, spec, entropy=None, adv=None, old=None, ref=None):
    out = {name: nan(len(logp)) for name in OUTPUTS}
    _core.token_loss(device, *out.values(), logp, entropy, weight, adv, old, ref, spec)
    return out


def draw(rng, M):
    logp = -np.abs(normal(rng, M)) - np.float32(0.01)
    old, ref = logp + normal(rng, M) * np.float32(0.3), logp + normal(rng, M) * np.float32(0.5)
    weight = np.where(rng.random(M) < 0.25, 0.0, rng.random(M)).astype(np.float32)
    return {"logp": logp, "old": old, "ref": ref, "weight": weight, "adv": normal(rng, M),
            "entropy": np.abs(normal(rng, M))}


@pytest.mark.parametrize("M", SIZES)
def test_nll(device, rng, M):
    x = draw(rng, M)
    out = run(device, x["logp"], x["weight"], ("nll", 0.125, 0.0, 0.0, 0.0, 0.0))
    check(out["loss"], -x["weight"].astype(np.float64) * x["logp"] * 0.125, "element")
    check(out["dlogp"], -x["weight"].astype(np.float64) * 0.125, "element")
    for name in ("dentropy", "kl", "clipped"):
        assert_same_bits([out[name]], [np.zeros(M, np.float32)])


@pytest.mark.parametrize("M", [0, 1, 33, 300])
@pytest.mark.parametrize(("low", "high", "beta", "coef"),
                         [(0.2, 0.2, 0.0, 0.0), (0.2, 0.28, 0.04, 0.0), (10.0, 10.0, 0.001, 0.01)])
def test_clip(device, rng, M, low, high, beta, coef):
    x = draw(rng, M)
    out = run(device, spec=("clip", 0.5, low, high, beta, coef), **x)
    logp, entropy, mask = Tensor(x["logp"]), Tensor(x["entropy"]), x["weight"] != 0
    want = rl.clip_loss(logp, x["old"].astype(np.float64), x["adv"].astype(np.float64),
                        ref_logp=x["ref"].astype(np.float64), epsilon=low, epsilon_high=high,
                        beta=beta, mask=mask)
    loss = (want.loss - entropy * coef) * x["weight"] * 0.5
    dlogp, dentropy = gradients(loss.sum(), [logp, entropy])
    check(out["loss"], loss.data, "row")
    check(out["dlogp"], dlogp, "row")
    check(out["dentropy"], dentropy, "element")
    d = (x["ref"].astype(np.float64) - x["logp"]) * mask
    check(out["kl"], np.exp(d) - d - 1, "row")
    np.testing.assert_array_equal(out["clipped"], want.clipped)
    if M == 300 and low == 0.2:
        assert set(out["clipped"]) == {-1.0, 0.0, 1.0}


def test_on_policy_the_ratio_is_exactly_one(device, rng):
    x = draw(rng, 129)
    x["weight"][:] = 1
    out = run(device, x["logp"], x["weight"], ("clip", 1.0, 0.2, 0.2, 0.04, 0.0), adv=x["adv"],
              old=x["logp"].copy(), ref=x["logp"].copy())
    assert_same_bits((out["loss"], out["dlogp"]), (-x["adv"], -x["adv"]))
    assert not out["kl"].any() and not out["clipped"].any()


def test_worked_kl(device):
    """recipe: k3 at d = ref - logp of -1, -0.1, 0, 0.1, 1; and close to 0, where it is d^2 / 2."""
    d = np.array([-1, -0.1, 0, 0.1, 1, 1e-4, -1e-6], np.float32)
    one = np.ones(7, np.float32)
    out = run(device, np.zeros(7, np.float32), one, ("clip", 1.0, 0.2, 0.2, 1.0, 0.0), adv=0 * one,
              old=0 * one, ref=d)
    want = [.3678794, .0048374, 0, .0051709, .7182818, 5.00017e-9, 5e-13]
    np.testing.assert_allclose(out["kl"], want, rtol=1e-5)
    np.testing.assert_allclose(out["dlogp"], -np.expm1(d.astype(np.float64)), rtol=1e-5)


def test_the_kl_is_reported_when_it_costs_nothing(device, rng):
    x = draw(rng, 9)
    x["weight"][:] = 1
    with_ref = run(device, spec=("clip", 1.0, 0.2, 0.2, 0.0, 0.0), **x)
    without = run(device, spec=("clip", 1.0, 0.2, 0.2, 0.0, 0.0), **{**x, "ref": None})
    assert_same_bits((with_ref["loss"], with_ref["dlogp"]), (without["loss"], without["dlogp"]))
    assert np.all(with_ref["kl"] > 0) and not without["kl"].any()


@pytest.mark.parametrize("form", ["nll", "clip"])
def test_masked_rows_are_zero_whatever_they_hold(device, form):
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        bad = np.full(5, junk, np.float32)
        out = run(device, bad, np.zeros(5, np.float32), (form, 1.0, 0.2, 0.2, 0.1, 0.1),
                  entropy=bad, adv=bad, old=-bad, ref=-bad)
        assert_same_bits(list(out.values()), [np.zeros(5, np.float32)] * 5)


def test_optional_outputs_and_bits(devices, rng):
    x, spec = draw(rng, 700), ("clip", 0.5, 0.2, 0.28, 0.04, 0.01)
    check_threads(devices, lambda device: list(run(device, spec=spec, **x).values()))
    many = run(devices[3], spec=spec, **x)
    one = run(devices[0], spec=spec, **{k: v[600:601] for k, v in x.items()})
    assert_same_bits(list(one.values()), [a[600:601] for a in many.values()])
    loss, dlogp = nan(700), nan(700)
    _core.token_loss(devices[0], loss, dlogp, None, None, None, x["logp"], x["entropy"],
                     x["weight"], x["adv"], x["old"], x["ref"], spec)
    assert_same_bits((loss, dlogp), (many["loss"], many["dlogp"]))


def test_bad_arguments(device, rng):
    x = draw(rng, 3)

    def fails(match, spec, **other):
        with pytest.raises(ValueError, match=match):
            run(device, spec=spec, **{**x, **other})
    fails("'spec.form': must be one of 'nll', 'clip'", ("ppo", 1.0, 0.2, 0.2, 0.0, 0.0))
    fails("form 'clip' needs 'adv'", ("clip", 1.0, 0.2, 0.2, 0.0, 0.0), adv=None)
    fails("beta needs 'ref_logp'", ("clip", 1.0, 0.2, 0.2, 0.1, 0.0), ref=None)
    fails("entropy_coef needs 'entropy'", ("clip", 1.0, 0.2, 0.2, 0.0, 0.1), entropy=None)
    fails("'weight': dimension M is 2, expected 3", ("nll", 1.0, 0.2, 0.2, 0.0, 0.0),
          weight=x["weight"][:2])
