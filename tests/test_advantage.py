"""The options of the advantage op, on the worked examples: which number goes where."""

import numpy as np
import pytest

from r1grpo.advantage import group_advantages, token_weights, zero_variance


def test_worked_example_of_sixteen():
    """G = 16, 4 right: mean .25; ddof 0 std .4330127, ddof 1 std .4472136; the op adds 1e-4."""
    rewards = [1.0] * 4 + [0.0] * 12
    a = group_advantages(rewards, 16, "group", 0)
    assert a.dtype == np.float32
    assert a[0] == pytest.approx(0.75 / (0.4330127 + 1e-4), rel=1e-5)
    assert a[15] == pytest.approx(-0.25 / (0.4330127 + 1e-4), rel=1e-5)
    b = group_advantages(rewards, 16, "group", 1)
    assert b[0] == pytest.approx(0.75 / (0.4472136 + 1e-4), rel=1e-5)
    none = group_advantages(rewards, 16, "none")
    assert none[0] == 0.75 and none[15] == -0.25


def test_groups_are_index_ranges():
    a = group_advantages([1, 0, 5, 5], 2, "none")
    assert a.tolist() == [0.5, -0.5, 0.0, 0.0]


def test_equal_rewards_are_exactly_zero_and_none_is_left_out():
    assert group_advantages([0.1] * 3, 3).tolist() == [0.0] * 3  # 0.1 * 3 / 3 is not 0.1
    a = group_advantages([1.0, float("nan"), 0.0], 3, "none")
    assert a.tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize("loss_type, expected", [
    ("grpo", [1 / 4, 1 / 12]), ("dapo", [1 / 8, 1 / 8]), ("dr_grpo", [1 / 20, 1 / 20]),
    ("bnpo", [1 / 8, 1 / 8])])
def test_token_weights(loss_type, expected):
    w = token_weights([2, 6], np.ones(2, np.float32), loss_type, 10)
    assert w == pytest.approx(expected)


def test_bnpo_local_batch_and_masks():
    keep = np.ones(4, np.float32)
    w = token_weights([1, 1, 3, 3], keep, "bnpo", 10, local_batch=2)
    assert w == pytest.approx([1 / 4, 1 / 4, 1 / 12, 1 / 12])
    masked = token_weights([2, 6], np.array([1, 0], np.float32), "dapo", 10)
    assert masked.tolist() == [0.5, 0.0]


def test_zero_variance_by_equality():
    nan = float("nan")
    rewards = np.array([0.1, 0.1, 0.3, 0.1 + 0.2, nan, 1.0, nan, nan, 0.0, 1.0])
    assert zero_variance(rewards, 2).tolist() == [True, False, True, True, False]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="groups of 2"):
        group_advantages([1.0, 0.0, 1.0], 2)
    with pytest.raises(ValueError, match="reward 1 is infinite"):
        group_advantages([1.0, float("inf")], 2)
