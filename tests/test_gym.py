"""Tasks of reasoning-gym as rows, and its verdicts."""

from __future__ import annotations

import importlib.util

import pytest

from r1grpo.rewards import gym_reward
from r1grpo.rows import load_rows
from r1grpo.tasks.gym import EVALUATING, verify_gym
from r1grpo.verifiers import VerifierPool

GYM = pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None,
                         reason="the extra gym (reasoning-gym) is not installed")
SPEC = "gym:leg_counting?size=50&seed=3"


@GYM
def test_rows_are_entries_of_one_data_set_split_by_index():
    train, test = load_rows(SPEC, split="train"), load_rows(SPEC, split="test")
    every = load_rows(SPEC)
    assert [*train, *test] == every and (len(train), len(test)) == (45, 5)
    assert [row["gym"]["index"] for row in every] == list(range(50))
    assert load_rows(SPEC, limit=3) == every[:3] and "legs" in every[0]["prompt"]
    assert load_rows("gym:leg_counting?size=50&seed=4")[0] != every[0]
    few = load_rows("gym:leg_counting?size=5&seed=3&max_animals=3&min_animals=3")
    assert all(row["prompt"].count(", ") >= 2 for row in few)
    assert every.note.startswith(f"{SPEC}: 50 rows")


def judged(calls):
    """Verdicts of verify_gym(answer, gym), in a worker."""
    with VerifierPool(workers=1, deadline=60.0, memory=8 << 30) as pool:
        tickets = [pool.submit("r1grpo.tasks.gym:verify_gym", *call) for call in calls]
        return [pool.result(ticket) for ticket in tickets]


@GYM
def test_verdicts_are_its_scores_and_partial_credit_is_none():
    rows = load_rows("gym:letter_counting?size=8")
    texts = [f"<think> 3 </think> \\boxed{{{row['answer']}}}" for row in rows]
    found = gym_reward([""] * 8, texts, [[1]] * 8, gym=[row["gym"] for row in rows])
    assert [verdict.reason for verdict in found] == ["correct"] * 8
    padded = gym_reward([""], [texts[0].replace("boxed{", "boxed{about ")], [[1]], gym=[rows[0]["gym"]])
    assert padded[0].reason == "wrong" and padded[0].detail.startswith("score 0.")
    assert gym_reward([""] * 2, ["none"] * 2, [[1]] * 2, gym=[rows[0]["gym"], None])[1] is None
    assert gym_reward([""], [texts[0]], [[1]], gym=[rows[0]["gym"]], prefilled=[True])[0].correct
    assert gym_reward([""], ["\\boxed{1}"], [[1]], gym=[rows[0]["gym"]], prefilled=[True])[0].reason == "missing"


@GYM
def test_every_task_whose_code_evaluates_the_answer_is_guarded():
    """The list is of the package as it is installed: its scorers that call eval or SymPy's parser."""
    import inspect
    import re

    from reasoning_gym.factory import DATASETS

    evaluate = re.compile(r"(?:\beval\(|parse_expr\(|sympify\()[^)]*answer(?!\"\])")
    found = {name for name, (kind, _) in DATASETS.items()
             if name != "composite" and evaluate.search(inspect.getsource(kind.score_answer))}
    assert found <= EVALUATING, found - EVALUATING
    assert len(found) >= 3


@GYM
@pytest.mark.parametrize("answer", [
    "__import__('os').system('true')", "exec(chr(105))", "().__class__", "open('x')", "[].append(1)", "1 .real",
    "lambda: 1", "preview(x)", "test()", "print(1)", "x.diff", "a if b else c", "f'{1}'", "(exec)(1)",
    "[exec][0](1)", "'\\x28'", "[i for i in j]", "x!.real", "9" * 3000])
def test_what_python_could_run_is_never_evaluated(answer, monkeypatch):
    gym = load_rows("gym:countdown?size=1")[0]["gym"]
    monkeypatch.setattr("r1grpo.tasks.gym._data_set", None)  # it would be called
    assert verify_gym(answer, gym).reason == "unparsed"


@GYM
@pytest.mark.parametrize("name", ["countdown", "polynomial_multiplication", "simple_integration",
                                  "spiral_matrix", "puzzle24", "knights_knaves", "chain_sum", "n_queens",
                                  "binary_matrix", "string_insertion", "intermediate_integration"])
def test_right_answers_pass_the_guard_and_in_the_pool(name):
    rows = load_rows(f"gym:{name}?size=4")
    assert [one.reason for one in judged((row["answer"], row["gym"]) for row in rows)] == ["correct"] * 4


@GYM
def test_an_entry_that_is_another_one_is_an_error_and_no_verdict():
    gym = load_rows("gym:gcd?size=1")[0]["gym"]
    with pytest.raises(ValueError, match="another version"):
        verify_gym("1", {**gym, "mark": "0"})
    [verdict] = judged([("1", {**gym, "mark": "0"})])
    assert verdict.reason == "error" and verdict.failed


@GYM
def test_what_is_wrong_with_a_name_or_its_options_is_said():
    with pytest.raises(ValueError, match="no task 'leg_count'.*leg_counting"):
        load_rows("gym:leg_count")
    for size in ("abc", "0", "1.5"):
        with pytest.raises(ValueError, match=f"size is .*{size}"):
            load_rows(f"gym:leg_counting?size={size}")
    with pytest.raises(ValueError, match="refuses the options.*legs"):
        load_rows("gym:leg_counting?legs=3")
    with pytest.raises(ValueError, match="train and test"):
        load_rows(SPEC, split="dev")


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"r1grpo\[gym\]"):
        load_rows("gym:gcd?size=7")
