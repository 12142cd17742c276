"""Figures of an evaluation, by hand; a stored run verified bit for bit."""

import copy
import json
import time

import pytest
from fakes import FakeModel

from r1grpo.config import EvalConfig
from r1grpo.evaluate import (Graders, check, evaluate, interval, paired_difference,
                             pass_at, recompute, row_answer, row_vote)
from r1grpo.rewards import Pooled
from r1grpo.tokenizer import WordTokenizer
from r1grpo.verifiers import Verdict

TOKENIZER = WordTokenizer([*"abcdefgh"])
MODEL = FakeModel(TOKENIZER.vocab_size)
ROWS = [{"prompt": p, "problem_key": f"toy:{p}", "task": "vowel" if p in "ae" else "other",
         "wish": "h"} for p in "abcde"]
ARGS = EvalConfig(k=8, max_completion_length=6, batch_prompts=2, seed=7)

GRADERS = Graders(
    accuracy=lambda prompts, completions, completion_ids, wish, **columns:
        [float(w in text.split()) for w, text in zip(wish, completions)],
    format=lambda prompts, completions, completion_ids, **columns:
        [float(len(ids) < 6) for ids in completion_ids],
    language=lambda prompts, completions, completion_ids, **columns:
        [None if "a" in text.split() else 0.5 for text in completions],
    answer=lambda row, text: text.split()[0] if text.split() else None,
    reflection=lambda text: text.split().count("b"))


def sample(problem, generation, accuracy, answer, format=1.0, tokens=3, task="t"):
    """A stored sample whose text is 'accuracy answer format'."""
    return {"problem": problem, "generation": generation, "task": task, "prompt_ids": [5],
            "completion": f"{accuracy} {answer} {format}", "completion_ids": [1] * tokens,
            "logprobs": [0.0] * tokens, "finish_reason": "stop"}


def word(k):
    return lambda prompts, completions, completion_ids, **columns: \
        [float(text.split()[k]) for text in completions]


BY_HAND = Graders(word(0), word(2), lambda prompts, completions, completion_ids, **columns:
                  [None] * len(completions), lambda row, text: {"none": None}.get(
                      text.split()[1], text.split()[1]), lambda text: 2)


def test_figures_by_hand():
    figures = recompute([
        sample(0, 0, 1.0, "x"), sample(0, 1, 0.0, "y", 0.0), sample(0, 2, 1.0, "x"),
        sample(0, 3, 0.0, "z"),                                    # 2 of 4, vote x: right
        sample(1, 0, 0.0, "y", 0.0), sample(1, 1, 1.0, "x", 0.0), sample(1, 2, 0.0, "y"),
        sample(1, 3, 1.0, "x", tokens=7),                          # 2 of 4, tie: y came first
        *[sample(2, g, 0.0, "none", task="u") for g in range(4)],  # no vote at all
    ], BY_HAND)
    assert figures["pass@1"] == pytest.approx(1 / 3)
    assert figures["pass@4"] == pytest.approx(2 / 3)
    assert figures["cons@k"] == pytest.approx(1 / 3)
    assert figures["k"] == 4 and figures["n"] == 3
    assert figures["wellformed_accuracy"] == pytest.approx(3 / 9)
    assert figures["format"] == pytest.approx(9 / 12)
    assert figures["mean_tokens"] == pytest.approx((11 * 3 + 7) / 12)
    assert figures["reflection_per_response"] == 2.0 and figures["truncated"] == 0.0
    low, high = figures["pass@1_ci"]  # s over the problems .5 .5 0 is .288675
    assert high - 1 / 3 == pytest.approx(1.96 * 0.288675 / 3 ** 0.5, rel=1e-5)
    assert low == pytest.approx(max(0.0, 1 / 3 - 1.96 * 0.288675 / 3 ** 0.5), abs=1e-6)
    assert figures["tasks"]["t"]["pass@1"] == 0.5 and figures["tasks"]["u"]["pass@1"] == 0.0


def test_pass_at_is_the_unbiased_estimator():
    assert pass_at(4, 2, 1) == 0.5 and pass_at(4, 1, 4) == 1.0 and pass_at(4, 0, 4) == 0.0
    assert pass_at(5, 2, 3) == pytest.approx(1 - 1 / 10)


def test_interval():
    assert interval([0.0, 1.0] * 50) == pytest.approx((0.5 - 0.0985, 0.5 + 0.0985), abs=1e-3)
    assert interval([1.0] * 9) == (1.0, 1.0) and interval([0.5]) == (0.0, 1.0)


def test_paired_difference_by_hand():
    def stage(*rights):
        return [{"problem": p, "problem_key": f"toy:{p}", "rewards": {"accuracy": float(right)}}
                for p, one in enumerate(rights) for right in one]

    hard, better = stage([0, 0], [1, 0], [1, 1]), stage([1, 0], [1, 1], [1, 1])
    found = paired_difference(better, hard)  # by problem .5 .5 0, s = .288675
    assert found["difference"] == pytest.approx(1 / 3) and found["n"] == 3
    half = 1.96 * 0.288675 / 3 ** 0.5
    assert found["interval"] == pytest.approx([1 / 3 - half, 1 / 3 + half], abs=1e-5)
    back = paired_difference(hard, better)
    assert back["interval"] == pytest.approx([-1 / 3 - half, -1 / 3 + half], abs=1e-5)
    assert paired_difference(hard, hard) == {"difference": 0.0, "interval": [0.0, 0.0], "n": 3}
    other = [{**one, "problem_key": f"other:{one['problem']}"} for one in hard]
    for samples in (other, hard[:2], []):
        with pytest.raises(ValueError, match="same problems"):
            paired_difference(hard, samples)


@pytest.mark.parametrize("one, other", [
    ("7 * 5 + 2", "5 * 7 + 2"), ("7 + 5 - 2", "7 - 2 + 5"), ("2 * 3 * 4", "4*3*2"),
    ("3 + 2 * 4", "2 + 3 * 4"), ("007", "7")])
def test_equal_votes(one, other):
    assert row_vote(one) == row_vote(other)


@pytest.mark.parametrize("one, other", [
    ("7 - 5 + 2", "5 - 7 + 2"), ("7 * 5 + 2", "7 * 2 + 5"), ("7 + 5 * 2", "7 * 5 + 2"),
    ("7 5", "7"), ("12", "1 + 2")])
def test_different_votes(one, other):
    assert row_vote(one) != row_vote(other)


def test_no_answer_no_vote():
    assert row_vote(None) is None and row_vote("  ") is None and row_vote(" x  y ") == "x y"


def test_a_stored_run_is_verified():
    done = evaluate(MODEL, ROWS, ARGS, TOKENIZER, GRADERS)
    assert len(done.samples) == 40 and 0 < done.figures["pass@1"] < 1
    assert set(done.figures["tasks"]) == {"vowel", "other"}
    assert done.figures["truncated"] > 0 and done.figures["language_consistency"] == 0.5
    stored = [json.loads(json.dumps(one)) for one in done.samples]
    assert recompute(stored, GRADERS) == done.figures
    assert check(MODEL, stored, ARGS, TOKENIZER) == []
    assert check(MODEL, stored[16:24], ARGS, TOKENIZER) == []  # any part of it
    for key, words in (("completion_ids", "tokens"), ("logprobs", "log-probs"),
                       ("finish_reason", "finish"), ("completion", "text")):
        forged = copy.deepcopy(stored)
        value = forged[11][key]
        forged[11][key] = "x" if isinstance(value, str) else [*value[:-1], value[-1] + 1e-3]
        assert check(MODEL, forged, ARGS, TOKENIZER) == \
            [f"problem 1, sample 3: other {words}" + (" reason" if words == "finish" else "")]
    forged = copy.deepcopy(stored)
    forged[11]["prefilled"] = True
    assert check(MODEL, forged, ARGS, TOKENIZER) == ["problem 1, sample 3: prefilled is False"]
    other = FakeModel(TOKENIZER.vocab_size, seed=1)
    assert len(check(other, stored, ARGS, TOKENIZER)) == 40


def test_the_batch_cannot_matter():
    whole = evaluate(MODEL, ROWS, EvalConfig(k=8, max_completion_length=6, seed=7), TOKENIZER,
                     GRADERS)
    assert whole.samples == evaluate(MODEL, ROWS, ARGS, TOKENIZER, GRADERS).samples


def test_the_graders_of_the_built_in_tasks():
    row = {"problem": 0, "template": "zero", "task": "countdown", "language": "en",
           "numbers": [2, 3, 4], "target": 20, "answer": None, "prompt": "x", "prompt_ids": [5],
           "completion_ids": [1, 2], "logprobs": [0.0, 0.0], "finish_reason": "stop"}
    texts = ["<think> try 2 + 3 * 4 = 20 </think> <answer> 2 + 3 * 4 </answer>",
             "<think> try 2 + 3 * 4 = 20 </think> <answer> 3 + 2 * 4 </answer>",
             "<think> try 4 , wait , 不对 </think> <answer> 4 </answer>", "2 + 3 * 4"]
    samples = [{**row, "generation": g, "completion": text} for g, text in enumerate(texts)]
    figures = recompute(samples)
    assert figures["pass@1"] == 0.5 and figures["format"] == 0.75 and figures["cons@k"] == 1.0
    assert figures["wellformed_accuracy"] == pytest.approx(2 / 3)
    assert figures["reflection_per_response"] > 0 and 0 < figures["language_consistency"] < 1
    # the text without a chain of thought is no evidence: mean of 1, 1 and 2 / 3
    assert figures["language_consistency"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert figures["no_words"] == 0.25 and samples[3]["rewards"]["language"] is None
    samples[0]["finish_reason"] = "length"
    assert recompute(samples)["format"] == 0.5 and recompute(samples)["truncated"] == 0.25


def test_rows_of_a_data_set_are_judged_by_their_answers_alone():
    row = {"problem": 0, "answer": "4", "prompt": "x", "prompt_ids": [5], "completion_ids": [1],
           "logprobs": [0.0], "finish_reason": "stop"}
    samples = [{**row, "generation": g, "completion": text}
               for g, text in enumerate((r"\boxed{4}", r"\boxed{5}"))]
    figures = recompute(samples)
    assert figures["pass@1"] == 0.5 and samples[0]["rewards"] == {
        "accuracy": 1.0, "format": None, "language": None}
    assert not figures.keys() & {"format", "wellformed_accuracy", "language_consistency", "no_words"}


def test_a_thought_that_the_prompt_opened_holds_no_answer():
    """Neither a right one nor a vote: what is boxed in a thought without an end is no answer."""
    row = {"problem": 0, "answer": "4", "prompt": "x", "prompt_ids": [5], "completion_ids": [1],
           "logprobs": [0.0], "finish_reason": "length"}
    texts = (r"maybe \boxed{4}", r"maybe \boxed{4}", r"maybe \boxed{5} </think> \boxed{6}")
    samples = [{**row, "generation": g, "completion": text} for g, text in enumerate(texts)]
    plain = recompute(samples)
    assert plain["pass@1"] == pytest.approx(2 / 3) and plain["cons@k"] == 1.0
    samples = [{**one, "prefilled": True} for one in samples]
    figures = recompute(samples)
    assert figures["pass@1"] == figures["cons@k"] == 0.0
    assert [row_answer(one, one["completion"]) for one in samples] == [None, None, "6"]


def long_or_right(prompts, completions, completion_ids, *, answer, **columns):
    if completions[0] == "long":
        time.sleep(60.0)
    return [Verdict(text == wanted, "wrong") for text, wanted in zip(completions, answer)]


def test_pooled_verifiers_are_asked_in_workers_and_what_fails_is_counted():
    row = {"problem": 0, "answer": "4", "prompt": "x", "prompt_ids": [5], "completion_ids": [1],
           "logprobs": [0.0], "finish_reason": "stop", "reward_funcs": ["another"]}
    samples = [{**row, "generation": g, "completion": text} for g, text in enumerate(["4", "long", "5", "4"])]
    figures = recompute(samples, Graders(Pooled(long_or_right, deadline=0.5)))
    assert [one["rewards"]["accuracy"] for one in samples] == [1.0, 0.0, 0.0, 1.0]
    assert figures["pass@1"] == 0.5 and figures["verifier_failed"] == 0.25
    assert "verifier_failed" not in recompute([{**row, "generation": 0, "completion": "4"}],
                                              Graders(Pooled(long_or_right)))


def test_samples_say_where_the_prompt_opened_the_thought():
    tokenizer = WordTokenizer([*"abcdefgh"])
    opening = tokenizer.encode("a")
    tokenizer.opens_thought = lambda ids: list(ids) == opening
    done = evaluate(MODEL, ROWS, ARGS, tokenizer, GRADERS)
    assert [one["prefilled"] for one in done.samples[:8]] == [True] * 8
    assert not [one for one in done.samples[8:] if "prefilled" in one]
    assert check(MODEL, done.samples, ARGS, tokenizer) == []


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one problem"):
        evaluate(MODEL, [], ARGS, TOKENIZER, GRADERS)
    with pytest.raises(ValueError, match="problem 0 has no answer"):
        recompute([sample(0, 0, 1.0, "x")], Graders(
            lambda **call: [None], word(2), word(2), lambda row, text: None, lambda text: 0))
    with pytest.raises(ValueError, match="different numbers of samples"):
        recompute([sample(0, 0, 1.0, "x"), sample(0, 1, 1.0, "x"), sample(1, 0, 1.0, "x")], BY_HAND)
