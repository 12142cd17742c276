"""Arithmetic in words: ranges, wordings and the verifier."""

import random

import pytest

from r1grpo.tasks import arithmetic, make_tokenizer, split_of
from r1grpo.verifiers import chain_value, parse_chain, verify_arithmetic


def test_chains_stay_in_range():
    rng = random.Random(0)
    for steps in (2, 3, 4):
        for _ in range(200):
            chain = arithmetic.draw_chain(rng, steps)
            integers, operators = parse_chain(chain)
            assert len(operators) == steps and 21 <= integers[0] <= 50
            results = [chain_value(integers[:i + 1], operators[:i]) for i in range(steps + 1)]
            assert 0 <= min(results) and max(results) <= 199


def test_work_and_answer_agree():
    chain = "30 + 5 * 3 - 6"
    assert arithmetic.work_out(chain) == "30 + 5 = 35 * 3 = 105 - 6 = 99"
    assert arithmetic.make_arithmetic(chain, "en").answer == "99"


def test_wordings_differ_and_share_the_key():
    tokenizer = make_tokenizer()
    problems = [arithmetic.make_arithmetic("30 + 5 * 3", language, wording)
                for language in ("en", "zh") for wording in range(8)]
    assert len({problem.question for problem in problems}) == 16
    assert len({problem.key for problem in problems}) == 1
    for problem in problems:
        assert tokenizer.decode(tokenizer.encode(problem.question)) == problem.question
    assert problems[0].question == "start with 30 , add 5 , times 3 , what is the result ?"


def test_drawn_chains_belong_to_their_split():
    rng = random.Random(1)
    for split in ("train", "validation", "test", "ood"):
        chain = arithmetic.draw_split_chain(rng, split)
        assert split_of(arithmetic.arithmetic_key(chain)) == split


@pytest.mark.parametrize("text, reason", [
    ("99", "correct"), (" 99 ", "correct"), ("099", "correct"), ("98", "wrong"), ("-99", "wrong"),
    ("33 * 3", "unparsed"), ("99 .", "unparsed"), ("", "unparsed"), ("9" * 5000, "unparsed"),
    ("９９", "unparsed"), (None, "missing")])
def test_verdicts(text, reason):
    verdict = verify_arithmetic(text, "99")
    assert verdict.reason == reason and verdict.correct == (reason == "correct")
