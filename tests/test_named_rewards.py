"""Rewards by name: what their options reach, what is refused and in which words."""

import numpy as np
import pytest

from r1grpo.commands.inputs import check_columns, open_rewards
from r1grpo.commands.options import GRPO, read_options
from r1grpo.config import ConfigError
from r1grpo.rewards import accuracy_reward, get_cosine_scaled_reward, language_reward
from r1grpo.rollout import Completions
from r1grpo.scoring import RewardError, Rewards
from r1grpo.verifiers import Verdict


def ask(reward, lengths, answers=None):
    n = len(lengths)
    return reward(prompts=["p"] * n, completions=["<answer>4</answer>"] * n, num_generations=n,
                  completion_ids=[[1] * k for k in lengths], answer=answers or ["4"] * n)


def test_names_and_their_options():
    names = ["accuracy", "language", "cosine", "soft_overlong", "repetition", "dense_repetition",
             "group_length", "length_scaled"]
    found = open_rewards(names, {"cosine": {"exceed_value": -3.0}, "soft_overlong": {
        "soft_punish_cache": 20}, "dense_repetition": {"ngram_size": 1, "penalty": -1}}, 100)
    assert found[:2] == [accuracy_reward, language_reward]
    assert len({one.__name__ for one in found}) == 8
    _, _, cosine, soft, repeated, dense, group, scaled = found
    assert ask(cosine, [0, 50, 90]) == pytest.approx([2.0, 1.5, -3.0])  # max_len: the run's 100
    assert ask(soft, [80, 90, 100, 101]) == [0.0, -0.5, -1.0, -1.0]
    assert ask(dense, [3]) == [-2.0] and ask(repeated, [3]) == [0.0]
    assert ask(group, [10, 20]) == [0.5, -0.5] and ask(scaled, [50]) == [0.5]


def test_options_of_a_file_reach_the_reward(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\ndata = "d"\nreward = ["cosine", "repetition"]\n'
                    "[reward_options.cosine]\nmax_len = 200\n")
    options = read_options(GRPO, file, ["reward_options.repetition.unit=tokens",
                                        "reward_options.cosine.margin=0"], {})
    assert options.inputs.reward_options == {"cosine": {"max_len": 200, "margin": 0},
                                             "repetition": {"unit": "tokens"}}
    cosine, repeated = open_rewards(options.inputs.reward, options.inputs.reward_options, 1000)
    assert ask(cosine, [100]) == pytest.approx([1.5]) and ask(repeated, [5]) == pytest.approx([-2 / 3])
    stored = tmp_path / "stored" / "config.toml"
    stored.parent.mkdir()
    stored.write_bytes(options.toml())
    again = read_options(GRPO, None, [], {}, stored)
    assert again.inputs == options.inputs and again.hash() == options.hash()


def test_files_of_functions_are_placed_wherever_they_are_named(tmp_path, monkeypatch):
    """So that a run goes on from any directory, and knows a function for the one it is."""
    monkeypatch.chdir(tmp_path)
    options = read_options(GRPO, None, ["reward=mine.py:a,cosine", "audit=mine.py:b",
                                        "reward_options.cosine.correct=mine.py:a"], {})
    place = f"{tmp_path.resolve()}/mine.py:"
    assert options.inputs.reward == (place + "a", "cosine") and options.inputs.audit == (place + "b",)
    assert options.inputs.reward_options == {"cosine": {"correct": place + "a"}}


def test_what_is_right_may_be_another_rewards_word(tmp_path):
    (tmp_path / "mine.py").write_text("def long(completion_ids, **_):\n"
                                      "    return [float(len(one) > 10) for one in completion_ids]\n")
    [cosine] = open_rewards(["cosine"], {"cosine": {"correct": f"{tmp_path}/mine.py:long"}}, 100)
    assert ask(cosine, [0, 50]) == pytest.approx([-10.0, 1.5])


def test_the_verdicts_of_another_reward_of_the_run_are_taken():
    found = open_rewards(["math", "cosine"], {"cosine": {"correct": "math", "exceed_value": -7.0}}, 100)
    assert found[1].after == found[0].__name__ == "math_reward"
    asked = []

    def judge(prompts, completions, completion_ids, **columns):
        asked.append(len(completions))
        return [Verdict(False, "timeout") if i == 2 else Verdict(i == 0, "x") for i in range(len(completions))]
    shaped = get_cosine_scaled_reward(20, margin=0, correct="judge")
    rewards = Rewards([judge, shaped], [0.0, 1.0])
    done = Completions([[1], [1]], 2, [np.zeros(10, np.int32)] * 4, [np.zeros(10, np.float32)] * 4,
                       ["stop"] * 4, ["x"] * 4, [False] * 4)
    scores = rewards.score([{"prompt": "a"}, {"prompt": "b"}], done)
    assert asked == [4] and scores.failed.tolist() == [False, False, True, False]
    np.testing.assert_allclose(rewards.total(scores.parts), [1.5, -5.0, np.nan, -5.0])
    with pytest.raises(RewardError, match="'judge', which is none of wish"):
        Rewards([lambda_named("wish"), shaped])
    with pytest.raises(RewardError, match="none of \\(none\\)"):
        Rewards([shaped])


def lambda_named(name):
    def function(**columns):
        return []
    function.__name__ = name
    return function


@pytest.mark.parametrize("names, options, longest, words", [
    (["cosine"], {"cosine": {"correct": "math"}}, 9, "must be among the rewards itself"),
    (["cosin"], {}, 9, "did you mean 'cosine'"),
    (["cosine"], {"cosine": {"max_length": 9}}, 9, "cosine takes max_len.*did you mean 'max_len'"),
    (["accuracy"], {"accuracy": {"x": 1}}, 9, "accuracy takes no options"),
    (["accuracy"], {"cosine": {}}, 9, "the rewards are accuracy"),
    (["cosine"], {}, None, "needs reward_options.cosine.max_len"),
    (["soft_overlong"], {}, 512, "soft_punish_cache is 4096, must be within 0 and .* 512"),
    (["cosine"], {"cosine": {"max_len": "many"}}, 9, "cosine.max_len is 'many', expected a number"),
    (["cosine"], {"cosine": {"margin": "x"}}, 9, "reward_options.cosine.margin is 'x', expected a number"),
    (["judge"], {"judge": {"url": "http://x"}}, 9, "reward 'judge' needs reward_options.judge.model"),
    (["code"], {"code": {"level": "none", "accept_no_sandbox": "no"}}, 9,
     "accept_no_sandbox is 'no', expected true or false"),
    (["cosine"], {"cosine": {"correct": "acuracy"}}, 9, "did you mean 'accuracy'"),
    (["language"], {"language": {"candidates": ["en"]}}, 9, "at least two")])
def test_what_cannot_be_is_named(names, options, longest, words):
    with pytest.raises(ConfigError, match=words):
        open_rewards(names, options, longest)


def test_rows_that_a_reward_can_say_nothing_about(tmp_path):
    class Inputs:
        data, reward, reward_options = "d.jsonl", ("cosine",), {}
    with pytest.raises(ValueError, match="reward 'cosine' needs a column 'answer' or 'solution'"):
        check_columns(Inputs, [{"prompt": "p"}])
    check_columns(Inputs, [{"prompt": "p", "task": "equation", "numbers": [1, 2], "target": 3}])
    with pytest.raises(ValueError, match="row 0 .*: an equation row lacks target"):
        check_columns(Inputs, [{"prompt": "p", "task": "equation", "numbers": [1, 2]}])
    Inputs.reward_options = {"cosine": {"correct": "mine.py:right"}}
    check_columns(Inputs, [{"prompt": "p"}])
