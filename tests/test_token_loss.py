"""token_loss: nll, clip and cispo with KL and entropy, on vectors."""

from __future__ import annotations

import numpy as np
import pytest

import reference_rl as rl
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, nan, normal
from r1grpo import _core

OUTPUTS = ("loss", "dlogp", "dentropy", "kl", "clipped")


def spec_of(form="clip", scale=1.0, low=0.2, high=0.2, delta=np.inf, kl="k3", kl_ratio=False,
            beta=0.0, entropy_coef=0.0):
    return (form, scale, low, high, delta, kl, kl_ratio, beta, entropy_coef)


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
    out = run(device, x["logp"], x["weight"], spec_of("nll", 0.125))
    check(out["loss"], -x["weight"].astype(np.float64) * x["logp"] * 0.125, "element")
    check(out["dlogp"], -x["weight"].astype(np.float64) * 0.125, "element")
    for name in ("dentropy", "kl", "clipped"):
        assert_same_bits([out[name]], [np.zeros(M, np.float32)])


def against_the_oracle(device, x, spec):
    """Runs the op and compares all it computes with the oracle; returns its outputs."""
    form, scale, low, high, delta, kl, kl_ratio, beta, coef = spec
    out = run(device, spec=spec, **x)
    logp, entropy, mask = Tensor(x["logp"]), Tensor(x["entropy"]), x["weight"] != 0
    want = rl.policy_loss(logp, x["old"].astype(np.float64), x["adv"].astype(np.float64), form=form,
                          ref_logp=x["ref"].astype(np.float64), epsilon=low, epsilon_high=high,
                          delta=delta, beta=beta, kl=kl, kl_ratio=kl_ratio, mask=mask)
    loss = (want.loss - entropy * coef) * x["weight"] * scale
    dlogp, dentropy = gradients(loss.sum(), [logp, entropy])
    check(out["loss"], loss.data, "row")
    check(out["dlogp"], dlogp, "row")
    check(out["dentropy"], dentropy, "element")
    check(out["kl"], want.kl, "row")
    np.testing.assert_array_equal(out["clipped"], want.clipped)
    return out


@pytest.mark.parametrize("M", [0, 1, 33, 300])
@pytest.mark.parametrize(("low", "high", "beta", "coef"),
                         [(0.2, 0.2, 0.0, 0.0), (0.2, 0.28, 0.04, 0.0), (10.0, 10.0, 0.001, 0.01)])
def test_clip(device, rng, M, low, high, beta, coef):
    spec = spec_of("clip", 0.5, low, high, beta=beta, entropy_coef=coef)
    out = against_the_oracle(device, draw(rng, M), spec)
    if M == 300 and low == 0.2:
        assert set(out["clipped"]) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("M", [1, 300])
@pytest.mark.parametrize("delta", [1.1, 1.28, 1.5, 4.0])
def test_delta_bounds_the_ratio_on_both_sides_of_zero(device, rng, M, delta):
    x = draw(rng, M)
    out = against_the_oracle(device, x, spec_of("clip", 0.5, 0.2, 0.28, delta=delta, beta=0.04))
    if M == 300 and delta < 4.0:
        assert np.any((out["clipped"] == 1) & (x["adv"] < 0))


@pytest.mark.parametrize("M", [0, 1, 33, 300])
@pytest.mark.parametrize(("high", "beta", "coef"), [(1.2, 0.0, 0.0), (5.0, 0.04, 0.01)])
def test_cispo(device, rng, M, high, beta, coef):
    x = draw(rng, M)
    out = against_the_oracle(device, x, spec_of("cispo", 0.5, 0.2, high, beta=beta,
                                                entropy_coef=coef))
    if M == 300 and high == 1.2:  # a token whose weight is cut keeps its gradient
        assert np.all(out["dlogp"][out["clipped"] == 1] != 0)
        assert set(out["clipped"]) == {0.0, 1.0}


@pytest.mark.parametrize("form", ["clip", "cispo"])
@pytest.mark.parametrize("kl_ratio", [False, True])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_kl_estimators(device, rng, form, kl, kl_ratio):
    against_the_oracle(device, draw(rng, 129), spec_of(form, 0.5, 0.2, 1.5, kl=kl,
                                                       kl_ratio=kl_ratio, beta=0.3))


def test_on_policy_the_ratio_is_exactly_one(device, rng):
    x = draw(rng, 129)
    x["weight"][:] = 1
    out = run(device, x["logp"], x["weight"], spec_of(beta=0.04), adv=x["adv"],
              old=x["logp"].copy(), ref=x["logp"].copy())
    assert_same_bits((out["loss"], out["dlogp"]), (-x["adv"], -x["adv"]))
    assert not out["kl"].any() and not out["clipped"].any()


def test_worked_kl(device):
    """recipe: k3 at d = ref - logp of -1, -0.1, 0, 0.1, 1; and close to 0, where it is d^2 / 2."""
    d = np.array([-1, -0.1, 0, 0.1, 1, 1e-4, -1e-6], np.float32)
    one = np.ones(7, np.float32)
    out = run(device, np.zeros(7, np.float32), one, spec_of(beta=1.0), adv=0 * one,
              old=0 * one, ref=d)
    want = [.3678794, .0048374, 0, .0051709, .7182818, 5.00017e-9, 5e-13]
    np.testing.assert_allclose(out["kl"], want, rtol=1e-5)
    np.testing.assert_allclose(out["dlogp"], -np.expm1(d.astype(np.float64)), rtol=1e-5)


def test_the_kl_is_reported_when_it_costs_nothing(device, rng):
    x = draw(rng, 9)
    x["weight"][:] = 1
    with_ref = run(device, spec=spec_of(), **x)
    without = run(device, spec=spec_of(), **{**x, "ref": None})
    assert_same_bits((with_ref["loss"], with_ref["dlogp"]), (without["loss"], without["dlogp"]))
    assert np.all(with_ref["kl"] > 0) and not without["kl"].any()


@pytest.mark.parametrize("form", ["nll", "clip", "cispo"])
def test_masked_rows_are_zero_whatever_they_hold(device, form):
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        bad = np.full(5, junk, np.float32)
        out = run(device, bad, np.zeros(5, np.float32), spec_of(form, beta=0.1, entropy_coef=0.1),
                  entropy=bad, adv=bad, old=-bad, ref=-bad)
        assert_same_bits(list(out.values()), [np.zeros(5, np.float32)] * 5)


def test_optional_outputs_and_bits(devices, rng):
    x, spec = draw(rng, 700), spec_of("clip", 0.5, 0.2, 0.28, beta=0.04, entropy_coef=0.01)
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
    fails("'spec.form': must be one of 'nll', 'clip', 'cispo'", spec_of("ppo"))
    fails("'spec.kl': must be one of 'k1', 'k2', 'k3'", spec_of(kl="k4"))
    fails("delta is 0, must be above 0", spec_of(delta=0.0))
    fails("delta is nan", spec_of(delta=np.nan))
    for form in ("clip", "cispo"):
        fails("forms 'clip' and 'cispo' need 'adv'", spec_of(form), adv=None)
    fails("beta needs 'ref_logp'", spec_of(beta=0.1), ref=None)
    fails("entropy_coef needs 'entropy'", spec_of(entropy_coef=0.1), entropy=None)
    fails("'weight': dimension M is 2, expected 3", spec_of("nll"),
          weight=x["weight"][:2])
