"""balance_loss: the sequence-wise balance loss, DeepSeek-V3 eq. 17-20."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import (assert_same_bits, check, check_threads, group_seqs, nan, pack_starts,
                        whole_seqs)
from r1grpo import _core

LENGTHS = (3, 0, 1, 129, 33)


def draw(rng, N, E, K):
    scores = rng.uniform(0.01, 1, (N, E)).astype(np.float32)
    idx = np.argsort(rng.random((N, E)), axis=1)[:, :K].astype(np.int32)
    return scores, np.ascontiguousarray(idx)


def run(device, scores, idx, lengths, coef=0.1, seqs=None):
    spec = (scores.shape[1], idx.shape[1], 1, 1, False, True, 1.0)
    loss, dscores = nan(len(lengths)), nan(*scores.shape)
    _core.balance_loss(device, loss, dscores, scores, idx, seqs or whole_seqs(lengths), spec, coef)
    return loss, dscores


@pytest.mark.parametrize(("E", "K"), [(8, 2), (5, 5), (33, 3), (1, 1)])
def test_values_and_gradients(device, rng, E, K):
    scores, idx = draw(rng, sum(LENGTHS), E, K)
    loss, dscores = run(device, scores, idx, LENGTHS)
    starts, total = pack_starts(LENGTHS), 0.0
    x = Tensor(scores.astype(np.float64))
    for b, n in enumerate(LENGTHS):
        rows = slice(starts[b], starts[b + 1])
        one = ref.balance_loss(ref.Routing(idx[rows], x, x[rows], 0.0), [ref.Span(0, n)], 1.0)
        np.testing.assert_allclose(loss[b], 0.1 * float(one), rtol=1e-6)
        total = one + total
    want = 0.1 * gradients(total, [x])[0]
    if K == E:  # every f is 1, and the shares add up to the constant 1
        assert np.abs(dscores).max() < 1e-6
    else:
        check(dscores, want, "row")


def test_one_expert_takes_all(device):
    """f of it is E / K = 4, P is its share: loss = coef T 4 P."""
    scores = np.tile(np.array([0.4, 0.2, 0.2, 0.2], np.float32), (10, 1))
    loss, _ = run(device, scores, np.zeros((10, 1), np.int32), (10,), coef=1.0)
    np.testing.assert_allclose(loss, [10 * 4 * 0.4], rtol=1e-6)


def test_bits(devices, rng):
    scores, idx = draw(rng, sum(LENGTHS), 33, 4)
    check_threads(devices, lambda device: run(device, scores, idx, LENGTHS))
    loss, dscores = run(devices[3], scores, idx, LENGTHS)
    starts = pack_starts(LENGTHS)
    for b, n in enumerate(LENGTHS):  # a sequence alone is the sequence among others
        rows = slice(starts[b], starts[b + 1])
        assert_same_bits(run(devices[0], scores[rows], idx[rows], (n,)),
                         (loss[b:b + 1], dscores[rows]))


@pytest.mark.parametrize(("shared", "own"), [(1, (1, 2)), (40, (0, 3, 31, 0, 9)), (7, (5,))])
def test_a_prefix_counts_for_each_that_shares_it(device, rng, shared, own):
    """The losses have the bits of sequences with a copy each; the prefix's rows take all gradients."""
    scores, idx = draw(rng, shared + sum(own), 12, 3)
    starts, rows = group_seqs(shared, own)
    lengths = tuple(shared + n for n in own)
    loss, dscores = run(device, scores, idx, own, seqs=(*starts, None))
    each_loss, each = run(device, scores[rows], idx[rows], lengths)
    assert_same_bits([loss], [each_loss])
    want = np.zeros(scores.shape)
    np.add.at(want, rows, each.astype(np.float64))
    check(dscores, want, "soft")
