"""General prompts: families, splits, responses, the rubric and its preference pairs."""

import random
from collections import Counter

import pytest

from r1grpo.rewards import accuracy_reward, format_reward
from r1grpo.tasks import FAMILIES, LANGUAGES, draw_general, make_tokenizer, sample_general
from r1grpo.tasks.general import (comply_response, ideal_response, is_refusal, response_variants,
                                  sft_completion)
from r1grpo.tasks.rubric import compare, is_safe, preference_pairs, rubric_score

PROBLEMS = sample_general("train", 400, seed=3)


def test_every_family_in_both_languages_and_splits():
    assert len(FAMILIES) >= 8
    assert set(Counter((p.task, p.language) for p in PROBLEMS)) == {
        (family, language) for family in FAMILIES for language in LANGUAGES}
    for split in ("train", "test"):
        for family in FAMILIES:
            problem = draw_general(random.Random(0), split, "en", family)
            assert problem.task == family and problem.split == split
    train = {p.key for p in PROBLEMS}
    assert not train & {p.key for p in sample_general("test", 400, seed=3)}


def test_languages_share_keys_and_wording_does_not_change_them():
    keys = {language: {p.key for p in PROBLEMS if p.language == language} for language in LANGUAGES}
    assert len(keys["en"] & keys["zh"]) > 20
    assert all(key.isascii() for key in keys["zh"])


def test_every_word_is_in_the_vocabulary():
    tokenizer = make_tokenizer()
    for problem in PROBLEMS + sample_general("test", 200, seed=4):
        for text in (problem.question, sft_completion(problem), comply_response(problem),
                     *response_variants(problem)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_ideal_response_scores_ten_and_beats_its_variants():
    for problem in PROBLEMS:
        row = problem.row("r1")
        ideal, *others = response_variants(problem)
        assert rubric_score(row, ideal) == pytest.approx(10.0)
        assert rubric_score(row, sft_completion(problem)) == pytest.approx(10.0)
        assert max(rubric_score(row, other) for other in others) < 10.0


def test_the_rubric_reads_the_summary_only():
    row = next(p for p in PROBLEMS if p.task == "larger" and p.language == "en").row("r1")
    best = max(row["slots"]["a"], row["slots"]["b"])
    assert rubric_score(row, f"<think> </think> {best} is larger .") == pytest.approx(10.0)
    assert rubric_score(row, f"<think> {best} is larger . </think>") < 2.5


@pytest.mark.parametrize("family, response, points", [
    ("count", "", 0.0), ("count", "no . go away .", 5.0),
    ("benign", "sorry , i can not help with that .", 6.0)])
def test_bad_responses_lose_points(family, response, points):
    row = draw_general(random.Random(2), "train", "en", family).row("r1")
    assert rubric_score(row, response) == pytest.approx(points)


def test_the_rubric_judges_general_prompts_only():
    with pytest.raises(ValueError, match="countdown"):
        rubric_score({"task": "countdown", "language": "en", "slots": {}}, "hello")


def test_pairs_are_judged_in_both_orders():
    problem = draw_general(random.Random(5), "train", "en", "polite")
    row, ideal = problem.row("r1"), ideal_response(problem)
    nearly = ideal.removesuffix(" .")
    assert compare(row, ideal, nearly) == 1
    assert compare(row, nearly, ideal) == 0                 # the favour for the first hides it
    assert preference_pairs(row, [ideal, nearly]) == []     # so the margin drops the pair
    rude = "no . go away ."
    (pair,) = preference_pairs(row, [rude, ideal, rude])
    assert (pair.chosen, pair.rejected) == (ideal, rude)
    assert (pair.prompt, pair.problem_key) == (row["prompt"], problem.key)


def test_refusals_and_safety():
    harmful = draw_general(random.Random(0), "train", "en", "harmful")
    benign = draw_general(random.Random(0), "train", "zh", "benign")
    assert is_refusal(ideal_response(harmful), "en")
    assert not is_refusal(ideal_response(benign), "zh")
    assert is_safe(harmful.row("r1"), ideal_response(harmful))
    assert not is_safe(harmful.row("r1"), comply_response(harmful))
    assert is_safe(benign.row("r1"), ideal_response(benign))


def test_no_rule_answers_general_prompts():
    rows = [problem.row("r1") for problem in PROBLEMS[:20]]
    completions = [sft_completion(problem) for problem in PROBLEMS[:20]]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    prompts = [row["prompt"] for row in rows]
    assert accuracy_reward(prompts, completions, [[]] * 20, **columns) == [None] * 20
    assert format_reward(prompts, completions, [[]] * 20, **columns) == [1.0] * 20
    greeting = next(p for p in PROBLEMS if p.task == "greeting")
    assert sft_completion(greeting).startswith("<think> </think> ")


def test_generation_is_a_function_of_the_seed():
    assert sample_general("train", 50, seed=9) == sample_general("train", 50, seed=9)
    assert sample_general("train", 50, seed=9) != sample_general("train", 50, seed=10)
    with pytest.raises(ValueError, match="ood"):
        sample_general("ood", 1, seed=0)
