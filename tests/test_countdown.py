"""Countdown: the space of problems, the chains, and the verifier's every reason."""

from itertools import permutations, product

import pytest

from r1grpo.tasks import countdown
from r1grpo.verifiers import chain_value, parse_chain, verify, verify_countdown


def test_the_space_has_13215_problems():
    problems = countdown.solvable()
    assert len(problems) == len(set(problems)) == 13_215
    assert len(countdown.solvable(9)) == 1_861


@pytest.mark.parametrize("numbers", [(1, 1, 1), (2, 5, 7), (3, 19, 20), (6, 6, 13)])
def test_larger_first_loses_no_value(numbers):
    """All orders, all operators, by brute force with partial results of any sign."""
    brute = {chain_value(order, operators) for order in permutations(numbers)
             for operators in product("+-*", repeat=2)}
    ours = {chain.value for chain in countdown.chains(numbers)}
    assert {v for v in brute if 1 <= v <= 100} == {v for v in ours if 1 <= v <= 100}


def test_chains_are_right_and_show_their_work():
    for chain in countdown.chains((2, 5, 7)):
        assert verify_countdown(chain.expression, (2, 5, 7), chain.value).correct
        left, equals, last = chain.work.rpartition(" = ")
        assert equals and int(last) == chain.value
    assert "7 * 5 = 35 + 2 = 37" in {chain.work for chain in countdown.chains((2, 5, 7))}


@pytest.mark.parametrize("text, reason", [
    ("7 * 5 + 2", "correct"), ("5*7+2", "correct"), ("2 + 5 * 7", "wrong"), ("7 * 5 - 2", "wrong"),
    ("7 * 5", "numbers"), ("7 * 5 + 2 + 2", "numbers"), ("7 * 5 + 3", "numbers"), ("37", "numbers"),
    ("( 7 * 5 ) + 2", "unparsed"), ("7 * 5 + 2 = 37", "unparsed"), ("", "unparsed"),
    ("7 * * 5 + 2", "unparsed"), ("7 5 2", "unparsed"), ("7 / 5 + 2", "unparsed"),
    ("9 ** 9 ** 9", "unparsed"), ("__import__", "unparsed"), ("- 7 * 5 + 2", "unparsed"),
    ("7 * 5 + 2 +", "unparsed"), ("7 * 5 + " + "2 " * 500, "unparsed"), ("７ * 5 + 2", "unparsed"),
    (None, "missing")])
def test_verdicts(text, reason):
    verdict = verify_countdown(text, (2, 5, 7), 37)
    assert verdict.reason == reason and verdict.correct == (reason == "correct")


def test_chains_are_read_from_left_to_right():
    assert chain_value(*parse_chain("2 + 3 * 4")) == 20
    assert verify_countdown("2 + 3 * 4", (2, 3, 4), 20).correct
    assert not verify_countdown("2 + 3 * 4", (2, 3, 4), 14).correct
    assert verify_countdown("5 - 7 + 20", (5, 7, 20), 18).correct


def test_a_repeated_number_counts_twice():
    assert verify_countdown("6 + 6 * 2", (2, 6, 6), 24).correct
    assert verify_countdown("6 * 2 * 2", (2, 6, 6), 24).reason == "numbers"


def test_verify_by_columns():
    assert verify("7 * 5 + 2", "countdown", (2, 5, 7), 37).correct
    assert verify("hello", "greeting") is None
    with pytest.raises(ValueError, match="numbers and target"):
        verify("7", "countdown")
    with pytest.raises(ValueError, match="answer"):
        verify("7", "arithmetic")
