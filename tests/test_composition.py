"""Several rewards: which judge a row, and whether they are summed or compared first."""

import numpy as np
import pytest
from toy_grpo import make, wish_share

from r1grpo.advantage import separate_advantages
from r1grpo.config import ConfigError, GRPOConfig
from r1grpo.rollout import Completions
from r1grpo.scoring import RewardError, Rewards

NAN = float("nan")


def completions(prompts, group):
    n = prompts * group
    return Completions([[3]] * prompts, group, [np.array([i], np.int32) for i in range(n)],
                       [np.zeros(1, np.float32)] * n, ["stop"] * n, [f"c{i}" for i in range(n)],
                       [False] * n)


class Recorder:
    """A reward that gives everybody one number and remembers whom it was asked about."""

    def __init__(self, name, value):
        self.__name__, self.value, self.asked = name, value, []

    def __call__(self, prompts, completions, completion_ids, finish_reasons, num_generations, **columns):
        self.asked.append((list(completions), num_generations, columns))
        return [self.value] * len(completions)


# ---- routing ------------------------------------------------------------------------------------


def test_a_row_names_its_judges():
    """Reasoning rows are judged by rules, general rows by a model; language by both."""
    rule, model, language = Recorder("accuracy_reward", 1.0), Recorder("helpful", 0.5), \
        Recorder("language_reward", 0.25)
    rewards = Rewards([rule, model, language], [1.0, 2.0, 4.0])
    rows = [{"prompt": "a", "n": 1, "reward_funcs": ["accuracy", "language_reward"]},
            {"prompt": "b", "n": 2, "reward_funcs": ["helpful", "language"]},
            {"prompt": "c", "n": 3}, {"prompt": "d", "n": 4, "reward_funcs": "helpful"},
            {"prompt": "e", "n": 5, "reward_funcs": []}]
    parts = rewards.score(rows, completions(5, 2)).parts
    want = [[1.0, NAN, 0.25], [NAN, 0.5, 0.25], [1.0, 0.5, 0.25], [NAN, 0.5, NAN], [NAN] * 3]
    np.testing.assert_array_equal(parts, np.repeat(want, 2, axis=0))
    np.testing.assert_array_equal(rewards.total(parts), np.repeat([2.0, 2.0, 3.0, 1.0, NAN], 2))
    [(texts, group, columns)] = model.asked  # whole groups, and nobody else
    assert texts == ["c2", "c3", "c4", "c5", "c6", "c7"] and group == 2
    assert columns == {"n": [2, 2, 3, 3, 4, 4]}


def test_who_is_named_by_no_row_is_not_asked():
    idle, busy = Recorder("idle", 1.0), Recorder("busy", 1.0)
    Rewards([idle, busy]).score([{"reward_funcs": ["busy"]}], completions(1, 2))
    assert idle.asked == [] and len(busy.asked) == 1


def test_an_unknown_judge_is_named_before_the_first_update():
    rows = [{"prompt": "a", "wish": "e"}, {"prompt": "b", "wish": "e", "reward_funcs": ["wish"]}]
    trainer = make(rows=rows)
    with pytest.raises(RewardError, match="'wish', which is none of wish_share"):
        next(trainer)
    assert trainer.step == 0 and not trainer.model.calls


# ---- sums first, or comparisons -----------------------------------------------------------------


def gdpo(parts, weights, group, ddof):
    """arXiv 2601.05242 as TRL writes it, in float64, NaN left out."""
    grouped = parts.reshape(-1, group, parts.shape[1])
    mean = np.nanmean(grouped, axis=1, keepdims=True)
    std = np.nanstd(grouped, axis=1, keepdims=True, ddof=ddof)
    summed = np.nansum(((grouped - mean) / (std + 1e-4)).reshape(parts.shape) * weights, axis=1)
    summed[np.isnan(parts).all(axis=1)] = NAN
    found = (summed - np.nanmean(summed)) / (np.nanstd(summed, ddof=ddof) + 1e-4)
    return np.nan_to_num(found)


@pytest.mark.parametrize("ddof", [0, 1])
def test_separate_advantages_against_their_equation(ddof):
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((24, 3)) * [1.0, 0.01, 100.0]
    parts[[1, 6, 7], 1] = NAN
    parts[9] = NAN
    weights = np.array([1.0, 0.5, 2.0])
    found = separate_advantages(parts, weights, 6, ddof)
    np.testing.assert_allclose(found, gdpo(parts, weights, 6, ddof), atol=2e-5)
    assert found[9] == 0.0 and found.dtype == np.float32


def test_a_small_reward_is_not_drowned():
    """Two rewards that disagree, one a hundred times as large: summed, the large one alone decides;
    compared apart, both do."""
    parts = np.array([[100.0, 0.0], [0.0, 1.0], [100.0, 1.0], [0.0, 0.0]])
    found = separate_advantages(parts, np.ones(2), 4)
    assert found[:2] == pytest.approx([0.0, 0.0], abs=1e-3)  # the 1e-4 beside std
    assert found[2] == pytest.approx(-found[3]) and found[2] == pytest.approx(1.414, abs=1e-3)


def test_groups_that_have_nothing_to_compare_get_exactly_nothing():
    parts = np.array([[0.1, 0.3]] * 3 + [[1.0, 0.3], [0.0, 0.3], [0.0, 0.3]])
    found = separate_advantages(parts, np.ones(2), 3)
    assert found[:3].tolist() == [0.0] * 3 and found[3] > 0


def test_the_trainer_compares_as_it_is_told():
    def more(prompts, completions, completion_ids, **columns):
        return [0.01 * len(ids) for ids in completion_ids]
    options = {"rewards": [wish_share, more], "reward_weights": (1.0, 0.5)}
    summed, apart = make(**options), make(**options, multi_objective_aggregation="normalize_then_sum")
    next(summed), next(apart)
    assert np.array_equal(summed.batch.parts, apart.batch.parts)
    want = gdpo(apart.batch.parts, np.array([1.0, 0.5]), 4, 0)
    np.testing.assert_allclose(apart.batch.advantages, want, atol=2e-5)
    assert not np.allclose(summed.batch.advantages, want, atol=1e-2)


def test_equal_sums_of_different_rewards_are_worth_comparing_apart():
    def even(prompts, completions, completion_ids, **columns):
        return [float(i % 2) for i in range(len(completions))]

    def odd(prompts, completions, completion_ids, **columns):
        return [float(1 - i % 2) for i in range(len(completions))]
    options = {"rewards": [even, odd], "filter_zero_std_samples": True, "max_num_gen_batches": 3}
    rollouts = {}
    for how in ("sum_then_normalize", "normalize_then_sum"):
        trainer = make(**options, multi_objective_aggregation=how, reward_weights=(1.0, 1.0))
        next(trainer)
        rollouts[how] = trainer.batch.cursor // trainer.args.prompts_per_rollout
    assert rollouts == {"sum_then_normalize": 3, "normalize_then_sum": 1}


def test_options_that_contradict_are_refused():
    with pytest.raises(ConfigError, match="scale_rewards must be 'group'"):
        GRPOConfig(multi_objective_aggregation="normalize_then_sum", scale_rewards="batch")
    with pytest.raises(ConfigError, match="multi_objective_aggregation must be"):
        GRPOConfig(multi_objective_aggregation="gdpo")
