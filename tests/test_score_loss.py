"""score_loss: pairwise and pointwise losses of reward models."""

from __future__ import annotations

import numpy as np
import pytest

import reference_rl as rl
from autodiff import Tensor, gradients
from op_testing import check, nan, normal
from r1grpo import _core


@pytest.mark.parametrize("B", [0, 2, 34, 128])
def test_pairwise(device, rng, B):
    score, loss, dscore = 3 * normal(rng, B), nan(B), nan(B)
    _core.score_loss(device, loss, dscore, score, None, "pairwise", 0.25)
    x, want = Tensor(score), np.zeros(B)
    pairs = rl.pairwise_loss(x) * 0.25
    want[::2] = pairs.data
    check(loss, want, "element")
    check(dscore, gradients(pairs.sum(), [x])[0], "element")


@pytest.mark.parametrize("B", [0, 1, 33, 129])
def test_pointwise(device, rng, B):
    score, loss, dscore = 3 * normal(rng, B), nan(B), nan(B)
    label = rng.choice([0.0, 1.0, 0.3], B).astype(np.float32)
    _core.score_loss(device, loss, dscore, score, label, "pointwise", 0.5)
    x = Tensor(score)
    want = rl.pointwise_loss(x, label.astype(np.float64)) * 0.5
    check(loss, want.data, "element")
    check(dscore, gradients(want.sum(), [x])[0], "element")


def test_far_scores(device):
    score, loss, dscore = np.array([-1e4, 1e4, 1e4, -1e4], np.float32), nan(4), nan(4)
    _core.score_loss(device, loss, dscore, score, None, "pairwise", 1.0)
    np.testing.assert_array_equal(loss, [2e4, 0, 0, 0])
    np.testing.assert_array_equal(dscore, [-1, 1, 0, 0])
    label = np.array([1, 1, 0, 0], np.float32)
    _core.score_loss(device, loss, dscore, score, label, "pointwise", 1.0)
    np.testing.assert_array_equal(loss, [1e4, 0, 1e4, 0])
    np.testing.assert_array_equal(dscore, [-1, 0, 1, 0])


def test_bad_arguments(device):
    with pytest.raises(ValueError, match="3 scores do not make pairs"):
        _core.score_loss(device, nan(3), nan(3), nan(3), None, "pairwise", 1.0)
    with pytest.raises(ValueError, match="form 'pointwise' needs 'label'"):
        _core.score_loss(device, nan(3), nan(3), nan(3), None, "pointwise", 1.0)
    with pytest.raises(ValueError, match="'form': must be one of 'pairwise', 'pointwise'"):
        _core.score_loss(device, nan(3), nan(3), nan(3), None, "triple", 1.0)
