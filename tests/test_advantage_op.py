"""The advantage op: group advantages and token weights, host arrays."""

from __future__ import annotations

import numpy as np
import pytest

import reference_rl as rl
from op_testing import check, nan
from r1grpo import _core


def run(device, reward, length=None, keep=None, *, group, scale="group", ddof=1, kind="grpo",
        max_length=100, local_batch=4):
    n = len(reward)
    adv, weight = nan(n), nan(n)
    _core.advantage(device, adv, weight, np.asarray(reward, np.float64),
                    np.ones(n, np.int32) if length is None else np.asarray(length, np.int32),
                    np.ones(n, np.float32) if keep is None else np.asarray(keep, np.float32),
                    (group, scale, ddof, kind, max_length, local_batch))
    return adv, weight


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group", [2, 4, 16])
def test_advantages(device, rng, group, scale, ddof):
    reward = rng.choice([0.0, 0.5, 1.0, 2.0], 48)
    reward[:group] = 0.1  # a group without variance
    reward[group] = np.nan
    adv, _ = run(device, reward, group=group, scale=scale, ddof=ddof)
    groups = np.arange(48) // group
    check(adv, rl.group_advantages(list(reward), groups, scale, ddof), "element")
    assert not adv[:group].any() and adv[group] == 0.0


def test_worked_example(device):
    """Four right of sixteen: (1 - 0.25) / std, up to the 1e-4 beside it."""
    reward = [1.0] * 4 + [0.0] * 12
    for ddof, right, wrong in ((0, 1.7320508, -0.5773503), (1, 1.6770510, -0.5590170)):
        adv, _ = run(device, reward, group=16, ddof=ddof)
        np.testing.assert_allclose(adv, [right] * 4 + [wrong] * 12, rtol=3e-4)


def test_zero_variance_is_equality(device):
    """0.1 three times has a float mean that is not 0.1; equal rewards give exactly 0 all the same,
    and rewards that differ in the last bit do not."""
    assert not run(device, [0.1] * 3, group=3)[0].any()
    assert not run(device, [np.nan, 0.7, np.nan], group=3)[0].any()
    assert not run(device, [np.nan] * 3, group=3)[0].any()
    assert run(device, [0.1, 0.1, np.nextafter(0.1, 1)], group=3, scale="none")[0].any()


@pytest.mark.parametrize("kind", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("local_batch", [4, 8, 12])
def test_token_weights(device, rng, kind, local_batch):
    length = rng.integers(0, 60, 24)
    length[3] = 0
    keep = rng.random(24) < 0.7
    _, weight = run(device, np.zeros(24), length, keep, group=4, kind=kind, max_length=77,
                    local_batch=local_batch)
    want = rl.token_weights(length.tolist(), kind, keep=keep.tolist(), max_completion_length=77,
                            local_batch=local_batch)
    check(weight, want, "element")
    assert not weight[~keep].any()
    if kind == "dapo":
        np.testing.assert_allclose((weight * length).sum(), 1.0, rtol=1e-6)


def test_every_completion_dropped(device):
    for kind in ("grpo", "dapo", "bnpo", "dr_grpo"):
        assert not run(device, [0, 1], [3, 4], [0, 0], group=2, kind=kind)[1].any()
    assert run(device, [], group=4)[0].shape == (0,)


def test_bad_arguments(device):
    def fails(match, reward=(0.0, 1.0), error=ValueError, **options):
        with pytest.raises(error, match=match):
            run(device, reward, **{"group": 2, **options})
    fails("3 rewards do not make groups of 2", (0.0, 0.0, 0.0))
    fails("do not make groups of 0", group=0)
    fails("ddof is 2", ddof=2)
    fails("'spec.scale': must be one of 'none', 'group', 'batch'", scale="std")
    fails("'spec.aggregation': must be one of", kind="ppo")
    fails("needs max_length", kind="dr_grpo", max_length=0)
    fails("needs local_batch", kind="bnpo", local_batch=0)
    fails("'length': -1 at index 1", length=[1, -1])
    fails("reward 1 is infinite", (0.0, np.inf))
    with pytest.raises(TypeError, match="'reward': dtype must be float64, not numpy.float32"):
        _core.advantage(device, nan(2), nan(2), nan(2), np.ones(2, np.int32),
                        np.ones(2, np.float32), (2, "group", 1, "grpo", 1, 1))
