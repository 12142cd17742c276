"""router_fwd, router_bwd, router_load and router_bias_update."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import (SIZES, assert_same_bits, check, check_threads, group_seqs, ints, nan, normal,
                        whole_seqs)
from r1grpo import _core

#        E  K groups top_groups
SPECS = [(16, 4, 4, 2), (8, 2, 1, 1), (5, 5, 1, 1), (33, 1, 1, 1), (129, 8, 3, 1), (64, 8, 8, 4)]


def forward(device, logits, bias, spec):
    N, E, K = *logits.shape, spec[1]
    idx, weight, scores = np.full((N, K), -7, np.int32), nan(N, K), nan(N, E)
    _core.router_fwd(device, idx, weight, scores, logits, bias, spec)
    return idx, weight, scores


def oracle(logits, bias, spec):
    E, K, groups, top_groups, softmax, normalize, scale = spec
    x = Tensor(logits.astype(np.float64))
    return x, ref.router(x, K, bias=bias, n_group=groups, topk_group=top_groups,
                         scoring="softmax" if softmax else "sigmoid", normalize=normalize,
                         scaling=scale)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("shape", SPECS)
def test_values_and_gradients(device, rng, shape, softmax, normalize):
    spec = (*shape, softmax, normalize, 2.5)
    E, K = shape[:2]
    logits, bias = normal(rng, 33, E), normal(rng, E) * 0.1
    idx, weight, scores = forward(device, logits, bias, spec)
    x, want = oracle(logits, bias, spec)
    assert want.margin > 1e-7  # float32 decides as float64 does
    np.testing.assert_array_equal(idx, want.experts)
    check(weight, want.gates.data, "row")
    check(scores, want.scores.data, "row")

    dweight, dscores, dlogits = normal(rng, 33, K), normal(rng, 33, E), nan(33, E)
    _core.router_bwd(device, dlogits, dweight, dscores, idx, scores, spec)
    loss = (want.gates * dweight).sum() + (want.scores * dscores).sum()
    check(dlogits, gradients(loss, [x])[0], "row")
    _core.router_bwd(device, dlogits, dweight, None, idx, scores, spec)
    expected = gradients((want.gates * dweight).sum(), [x])[0]
    if normalize and K == 1:  # one normalised weight is a constant: what is left is rounding
        assert np.abs(dlogits).max() < 1e-5
    else:
        check(dlogits, expected, "row")


def test_as_many_experts_as_there_may_be(device, rng):
    """Each a group: the most shared memory that a GPU's block needs."""
    logits, spec = np.linspace(-4, 4, 1024, dtype=np.float32), (1024, 64, 1024, 64, False, True, 1.0)
    rows = np.stack([rng.permutation(logits) for _ in range(5)])
    idx, weight, _ = forward(device, rows, None, spec)
    np.testing.assert_array_equal(idx, np.argsort(-rows, axis=1)[:, :64])
    check(weight.sum(axis=1), np.ones(5), "row")


@pytest.mark.parametrize("N", SIZES)
def test_sizes(device, rng, N):
    spec = (16, 4, 4, 2, False, True, 1.0)
    logits, bias = normal(rng, N, 16), normal(rng, 16)
    idx, weight, scores = forward(device, logits, bias, spec)
    want = oracle(logits, bias, spec)[1]
    np.testing.assert_array_equal(idx, want.experts)
    check(weight, want.gates.data, "row")
    load = np.arange(16, dtype=np.int64)
    _core.router_load(device, load, idx, whole_seqs((N,)), spec)
    np.testing.assert_array_equal(load, np.arange(16) + np.bincount(idx.ravel(), minlength=16))


def test_a_prefix_is_counted_for_each_that_shares_it(device, rng):
    idx, load = rng.integers(0, 8, (19, 2)).astype(np.int32), np.zeros(8, np.int64)
    starts, rows = group_seqs(7, (3, 0, 9))
    _core.router_load(device, load, idx, (*starts, None), (8, 2, 1, 1, False, True, 1.0))
    np.testing.assert_array_equal(load, np.bincount(idx[rows].ravel(), minlength=8))


def test_without_a_bias_a_group_counts_by_its_best_expert(device):
    logits = np.array([[3, -9, -9, -9, 2, 2, 2, 2]], np.float32)  # the second group's sum is larger
    spec = (8, 2, 2, 1, False, True, 1.0)
    assert forward(device, logits, None, spec)[0].tolist() == [[0, 1]]
    assert forward(device, logits, np.zeros(8, np.float32), spec)[0].tolist() == [[4, 5]]


def test_the_bias_steers_the_choice_and_nothing_else(device):
    logits, bias = np.array([[2, 1, 0, -1]], np.float32), np.array([0, 0, 0, 5], np.float32)
    spec = (4, 2, 1, 1, False, False, 1.0)
    idx, weight, scores = forward(device, logits, bias, spec)
    assert idx.tolist() == [[3, 0]]
    np.testing.assert_array_equal(weight[0], scores[0, [3, 0]])


@pytest.mark.parametrize("softmax", [False, True])
def test_ties_go_to_the_lowest_index(device, softmax):
    spec = (12, 4, 3, 2, softmax, True, 1.0)
    idx, weight, _ = forward(device, np.zeros((2, 12), np.float32), np.zeros(12, np.float32), spec)
    assert idx.tolist() == [[0, 1, 2, 3]] * 2  # four of the first group, before any of the second
    np.testing.assert_array_equal(weight, np.full((2, 4), 0.25, np.float32))
    logits = np.zeros((1, 12), np.float32)
    logits[0, [5, 9]] = 1.0
    idx = forward(device, logits, None, (12, 3, 1, 1, softmax, True, 1.0))[0]
    assert idx.tolist() == [[5, 9, 0]]


def test_far_logits_stay_finite(device):
    logits = np.array([[-200, 200, 0, -1e30]], np.float32)
    for softmax, second in ((False, 2), (True, 0)):  # the others of the softmax are all 0: a tie
        spec = (4, 2, 1, 1, softmax, True, 1.0)
        idx, weight, scores = forward(device, logits, None, spec)
        dlogits = nan(1, 4)
        _core.router_bwd(device, dlogits, np.ones((1, 2), np.float32), None, idx, scores, spec)
        assert idx.tolist() == [[1, second]]
        assert np.isfinite(dlogits).all() and np.isfinite(weight).all()


def test_a_group_whose_best_two_are_both_infinities_can_be_chosen(device):
    """Their sum is no number; of groups that are all like that the first is taken, as at any tie."""
    bias = np.array([np.inf, -np.inf, np.inf, -np.inf], np.float32)
    idx = forward(device, np.zeros((1, 4), np.float32), bias, (4, 2, 2, 1, False, True, 1.0))[0]
    assert idx.tolist() == [[0, 1]]


def test_bits(devices, rng):
    spec = (64, 8, 8, 4, False, True, 2.5)
    logits, bias, dweight = normal(rng, 300, 64), normal(rng, 64), normal(rng, 300, 8)

    def run(device, rows=slice(None)):
        out = forward(device, logits[rows], bias, spec)
        dlogits = nan(*logits[rows].shape)
        _core.router_bwd(device, dlogits, dweight[rows], None, out[0], out[2], spec)
        return *out, dlogits
    check_threads(devices, run)
    many = run(devices[3])
    for n in (0, 150, 299):
        assert_same_bits(run(devices[0], slice(n, n + 1)), [a[n:n + 1] for a in many])


def test_bias_update(device, rng):
    load = np.array([0, 10, 5, 6, 4], np.int64)  # the mean is 5
    bias = normal(rng, 5)
    want = (bias + np.float32(0.001) * np.array([1, -1, 0, -1, 1], np.float32)).astype(np.float32)
    _core.router_bias_update(device, bias, load, 0.001)
    np.testing.assert_array_equal(bias, want)


def test_bad_arguments(device, rng):
    logits = normal(rng, 3, 8)

    def fails(match, spec, error=ValueError, K=2):
        with pytest.raises(error, match=match):
            _core.router_fwd(device, np.zeros((3, K), np.int32), nan(3, K), nan(3, 8), logits, None,
                             spec)
    fails("K is 9", (8, 9, 1, 1, False, True, 1.0), K=9)
    fails("K is 0", (8, 0, 1, 1, False, True, 1.0), K=0)
    fails("3 groups do not divide E, 8", (8, 2, 3, 1, False, True, 1.0))
    fails("top_groups is 3", (8, 2, 2, 3, False, True, 1.0))
    fails("1 groups hold fewer experts", (8, 3, 4, 1, False, True, 1.0), K=3)
    fails("dimension E is 8, expected 9", (9, 2, 1, 1, False, True, 1.0))
    fails("dimension K is 2, expected 3", (8, 3, 1, 1, False, True, 1.0))
    fails("'spec.softmax': must be a bool", (8, 2, 1, 1, 0, True, 1.0), TypeError)
    fails("'spec': must be a tuple of 7", (8, 2, 1, 1), TypeError)
    with pytest.raises(ValueError, match="'idx': 8 at index 1 is outside"):
        _core.router_load(device, np.zeros(8, np.int64), ints(0, 8)[None], whole_seqs((1,)),
                          (8, 2, 1, 1, False, True, 1.0))
