"""Rule rewards on hand-written completions."""

import numpy as np
import pytest

from r1grpo.rewards import accuracy_reward, format_reward, language_reward, language_share
from r1grpo.rollout import Completions
from r1grpo.scoring import Rewards
from r1grpo.tasks import reflection_count, sample_problems, word_language

ZERO = ["<think> try 7 * 5 = 35 + 2 = 37 yes </think> <answer> 7 * 5 + 2 </answer>",
        "<think> </think> <answer> 7 * 5 - 2 </answer>",
        "7 * 5 + 2",
        "try 7 * 5 <answer> 7 * 5 + 2 </answer>"]
COLUMNS = {"template": ["zero"] * 4, "task": ["countdown"] * 4, "numbers": [[2, 5, 7]] * 4,
           "target": [37] * 4, "answer": [None] * 4, "language": ["en"] * 4}
CALL = (["p"] * 4, ZERO, [[1]] * 4)


def test_accuracy_counts_the_answer_where_it_stands():
    assert [(v.value, v.reason) for v in accuracy_reward(*CALL, **COLUMNS)] == [
        (1.0, "correct"), (0.0, "wrong"), (0.0, "missing"), (1.0, "correct")]


def scored(reward, finish_reasons):
    """What a trainer has of ZERO."""
    row = {name: column[0] for name, column in COLUMNS.items()}
    return Rewards(reward).score([row], Completions([[1]], 4, [np.ones(1, np.int32)] * 4, [], finish_reasons,
                                                    ZERO, [False] * 4))


def test_a_trainer_knows_why_and_its_numbers_are_those_of_plain_rewards():
    """truncated: there is no answer, and the end came by length; a wrong or right answer stays one."""
    def plain(*call, **columns):
        return [float(one.correct) for one in accuracy_reward(*call, **columns)]

    for ends, reasons in ((["stop"] * 4, ["correct", "wrong", "missing", "correct"]),
                          (["length"] * 4, ["correct", "wrong", "truncated", "correct"])):
        found, bare = scored(accuracy_reward, ends), scored(plain, ends)
        assert found.reasons == {"accuracy_reward": reasons} and bare.reasons == {}
        assert found.parts.tobytes() == bare.parts.tobytes() and not found.failed.any()


def test_accuracy_by_task_and_template():
    texts = [r"<think> </think> the answer is \boxed{ 54 } .", r"\boxed{ 54 }", "hello ."]
    columns = {"template": ["r1"] * 3, "task": ["arithmetic", "arithmetic", "greeting"],
               "answer": ["54", "54", None]}
    found = accuracy_reward(["p"] * 3, texts, [[1]] * 3, **columns)
    assert [one and one.value for one in found] == [1.0, 0.0, None]


def test_format_and_truncation():
    assert format_reward(*CALL, **COLUMNS) == [1.0, 1.0, 0.0, 0.0]
    reasons = ["length", "stop", "stop", "stop"]
    assert format_reward(*CALL, **COLUMNS, finish_reasons=reasons) == [0.0, 1.0, 0.0, 0.0]
    texts = [r"<think> </think> the answer is \boxed{ 54 } .", "<think> </think> hello ."]
    shape = {"template": ["r1", "r1"]}
    call = (["p"] * 2, texts, [[1]] * 2)
    assert format_reward(*call, **shape, task=["arithmetic", "greeting"]) == [1.0, 1.0]
    assert format_reward(*call, **shape, task=["greeting", "arithmetic"]) == [0.0, 0.0]


@pytest.mark.parametrize("text, language, share", [
    ("<think> try 7 + 5 = 12 no wait </think> <answer> 7 </answer>", "en", 1.0),
    ("<think> try 7 + 5 = 12 不对 wait 等等 </think> 答案 是", "en", 0.5),
    ("<think> try 7 + 5 = 12 不对 wait 等等 </think> 答案 是", "zh", 0.5),
    ("<think> 7 + 5 = 12 </think> yes", "en", 0.0), ("<think> </think> yes", "en", 0.0),
    ("yes yes", "en", 0.0), ("<think> try", "en", 1.0), ("", "en", 0.0)])
def test_language_is_the_share_in_the_chain_of_thought(text, language, share):
    assert language_reward(["p"], [text], [[1]], language=[language], template=["r1"]) == [share]


def test_a_task_without_a_thought_has_no_language_reward():
    texts = ["<think> </think> hello", "<think> </think> 7", "<think> 试 </think> 7"]
    call, shape = (["p"] * 3, texts, [[1]] * 3), {"template": ["r1"] * 3}
    assert language_reward(*call, **shape, language=["en"] * 3,
                           task=["greeting", "larger", "greeting"]) == [None, 0.0, None]
    assert language_reward(*call, **shape, language=["zh"] * 3) == [0.0, 0.0, 1.0]
    assert language_reward(*call, **shape, language=["zh", None, "zh"]) == [0.0, None, 1.0]


def test_words_of_languages():
    assert [word_language(w) for w in ("try", "试", "7", "+", "</think>", "，", r"\boxed{", "x2")] \
        == ["en", "zh", None, None, None, None, None, None]
    assert language_share("", "en") is None and language_share("7 + 5", "zh") is None


def test_reflection_words_of_both_languages():
    assert reflection_count("try 7 no wait , but Wait") == 3
    assert reflection_count("不对 等等 但是 等等 试") == 3
    assert reflection_count("yes waiting") == 0


def test_columns_of_problems_are_what_rewards_take():
    problems = sample_problems("train", 12, seed=0)
    rows = [problem.row("zero") for problem in problems]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    call = ([row["prompt"] for row in rows], ["<answer> 1 </answer>"] * 12, [[1]] * 12)
    assert {one.reason for one in accuracy_reward(*call, **columns)} == {"numbers", "wrong"}
    assert format_reward(*call, **columns) == [0.0] * 12
    assert language_reward(*call, **columns) == [0.0] * 12


def test_unequal_lengths_raise():
    with pytest.raises(ValueError):
        accuracy_reward(["p"], ["a", "b"], [[1]], template=["zero"], task=["countdown"],
                        numbers=[[1]], target=[1])
