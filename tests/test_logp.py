"""logp_fwd and logp_bwd: log-probabilities, entropy and their gradient, truncated or not."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import SIZES, assert_same_bits, check, check_threads, ints, nan, normal
from r1grpo import _core

PLAIN = (1.0, 0, 1.0, 0.0)
HOWS = [PLAIN, (0.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.3, 7, 1.0, 0.0), (1.0, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.05), (0.9, 20, 0.9, 0.02), (0.0, 3, 0.5, 0.1), (1.0, 10 ** 6, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0), (1.0, 0, 1e-6, 0.0), (1.0, 0, 1.0, 1.0)]


def forward(device, logits, ids, how=PLAIN):
    M = len(ids)
    logp, entropy, lse = nan(M), nan(M), nan(M)
    _core.logp_fwd(device, logp, entropy, lse, logits, ids, how)
    return logp, entropy, lse


def draw(rng, M, V):
    ids = rng.integers(0, V, M).astype(np.int32)
    ids[-1:] = V - 1
    return 3 * normal(rng, M, V), ids


def check_against_oracle(device, rng, M, V, how):
    logits, ids = draw(rng, M, V)
    logp, entropy, lse = forward(device, logits, ids, how)
    x = Tensor(logits)
    want_logp, want_entropy = ref.token_logprobs(x, ids, *how)
    check(logp, want_logp.data, "row")
    # of a support of one id entropy and gradient are 0, and what is left is rounding
    np.testing.assert_allclose(entropy, want_entropy.data, rtol=1e-5, atol=1e-6)
    dlogp, dentropy = normal(rng, M), normal(rng, M)
    dlogits = logits.copy()
    _core.logp_bwd(device, dlogits, dlogp, dentropy, entropy, lse, ids, how)
    [want] = gradients((want_logp * dlogp + want_entropy * dentropy).sum(), [x])
    np.testing.assert_allclose(dlogits, want, rtol=2e-5, atol=1e-6)
    assert np.all(dlogits[want == 0.0] == 0.0)  # outside the support: exactly 0
    plain = logits.copy()
    _core.logp_bwd(device, plain, dlogp, None, None, lse, ids, how)
    [want] = gradients((want_logp * dlogp).sum(), [x])
    np.testing.assert_allclose(plain, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("V", [33, 2500])
def test_values_and_gradients(device, rng, V, how):
    check_against_oracle(device, rng, 7, V, how)


@pytest.mark.parametrize("M", SIZES)
@pytest.mark.parametrize("how", [PLAIN, (1.0, 5, 0.9, 0.01)])
def test_rows(device, rng, M, how):
    check_against_oracle(device, rng, M, 40, how)


@pytest.mark.parametrize("V", [1, 3, 31, 127, 129, 1023, 1024, 1025, 34_000])
def test_vocabularies(device, rng, V):
    check_against_oracle(device, rng, 5, V, PLAIN)
    check_against_oracle(device, rng, 5, V, (0.9, 5, 0.9, 0.01))


def test_ties_sort_by_id_and_the_target_belongs_to_the_support(device):
    logits = np.zeros((6, 6), np.float32)
    ids = np.arange(6, dtype=np.int32)
    logp, entropy, _ = forward(device, logits, ids, (1.0, 2, 1.0, 0.0))
    size = np.array([2, 2, 3, 3, 3, 3])  # ids 0 and 1, united with the target
    check(logp, -np.log(size), "element")
    check(entropy, np.log(size), "element")
    best = np.array([[0, -1, 0]], np.float32)  # min_p 1 keeps every id that equals the best
    check(forward(device, best, ints(0), (1.0, 0, 1.0, 1.0))[0], [-np.log(2)], "element")
    negative = np.array([[0.0, -0.0, 0.0]], np.float32)  # -0 ties with 0
    check(forward(device, negative, ints(0), (1.0, 2, 1.0, 0.0))[0], [-np.log(2)], "element")


def test_far_logits(device):
    logits = np.array([[1e4, -1e4, 0], [-3e38, 3e38, 0], [-50, -50, -50]], np.float32)
    logp, entropy, lse = forward(device, logits, ints(0, 1, 2))
    np.testing.assert_allclose(logp, [0, 0, -np.log(3)], rtol=1e-5)
    np.testing.assert_allclose(entropy, [0, 0, np.log(3)], rtol=1e-6)
    dlogits = logits.copy()
    _core.logp_bwd(device, dlogits, np.ones(3, np.float32), np.ones(3, np.float32), entropy, lse,
                   ints(0, 1, 2), PLAIN)
    np.testing.assert_allclose(dlogits, [[0] * 3] * 2 + [[-1 / 3, -1 / 3, 2 / 3]], atol=1e-5)


@pytest.mark.parametrize("how", [PLAIN, (0.8, 50, 0.9, 0.01)])
def test_bits(devices, rng, how):
    M, V = 60, 1500
    logits, ids = draw(rng, M, V)
    dlogp, dentropy = normal(rng, M), normal(rng, M)

    def run(device, rows=slice(None)):
        logp, entropy, lse = forward(device, logits[rows], ids[rows], how)
        dlogits = logits[rows].copy()
        _core.logp_bwd(device, dlogits, dlogp[rows], dentropy[rows], entropy, lse, ids[rows], how)
        return logp, entropy, lse, dlogits
    check_threads(devices, run)
    many = run(devices[3])
    for m in (0, 31, 59):
        assert_same_bits(run(devices[0], slice(m, m + 1)), [a[m:m + 1] for a in many])
    logp, lse = nan(M), nan(M)
    _core.logp_fwd(devices[0], logp, None, lse, logits, ids, how)  # entropy is optional
    assert_same_bits((logp, lse), (many[0], many[2]))


@pytest.mark.parametrize("how", [PLAIN, (0.8, 50, 0.9, 0.01)])
def test_where_a_row_lies_changes_no_bit(device, rng, how):
    M, V = 3, 1030
    wide, ids = normal(rng, M, V + 5), rng.integers(0, V, M).astype(np.int32)
    for first in (1, 2, 4):
        there, here = wide[:, first:first + V], wide[:, first:first + V].copy()
        a, b = forward(device, there, ids, how), forward(device, here, ids, how)
        assert_same_bits(a, b)
        for x in (there, here):
            _core.logp_bwd(device, x, a[0], a[1], a[1], a[2], ids, how)
        assert_same_bits([there.copy()], [here])


def test_a_support_of_everything_is_no_truncation(device, rng):
    """top_k >= V and a tiny min_p keep every id: the bits of the plain softmax."""
    logits, ids = draw(rng, 9, 300)
    plain = forward(device, logits, ids)
    assert_same_bits(forward(device, logits, ids, (1.0, 300, 1.0, 0.0)), plain)
    assert_same_bits(forward(device, logits, ids, (1.0, 0, 1.0, 1e-30)), plain)
    assert_same_bits(forward(device, logits, ids, (0.0, 5, 0.5, 0.0)), plain)


def test_bad_arguments(device, rng):
    logits, ids = draw(rng, 2, 5)

    def fails(match, how=PLAIN, ids=ids):
        with pytest.raises(ValueError, match=match):
            _core.logp_fwd(device, nan(2), None, nan(2), logits, ids, how)
    fails(r"'ids': 5 at index 0 is outside \[0, 5\)", ids=ints(5, 0))
    fails("'ids': -1 at index 1", ids=ints(0, -1))
    fails("temperature is -1", (-1.0, 0, 1.0, 0.0))
    fails("temperature is nan", (float("nan"), 0, 1.0, 0.0))
    fails("top_k is -1", (1.0, -1, 1.0, 0.0))
    fails("top_p is 0", (1.0, 0, 0.0, 0.0))
    fails("min_p is 1.5", (1.0, 0, 1.0, 1.5))
    with pytest.raises(ValueError, match="'dentropy' needs 'entropy'"):
        _core.logp_bwd(device, logits, nan(2), nan(2), None, nan(2), ids, PLAIN)
