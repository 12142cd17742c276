"""Verdicts on choices, words, truth values, statements and equations."""

from __future__ import annotations

import pytest

from r1grpo.rewards import accuracy_reward
from r1grpo.verifiers import verify_choice, verify_equation, verify_logic, verify_string


def boxed(answer):
    return f"<think> \\boxed{{A}} </think> so \\boxed{{{answer}}}."


@pytest.mark.parametrize("answer, reason", [
    ("B", "correct"), ("(B)", "correct"), (r"\text{B}", "correct"), (r"\text{(B)}", "correct"), ("b", "correct"),
    ("B.", "correct"), ("B)", "correct"), ("**B**", "correct"), ("$B$", "correct"), ("option B", "correct"),
    ("The answer is B", "correct"), ("B) Paris", "correct"), ("B. the second one", "correct"), ("[B]", "correct"),
    (r"\mathbf{\text{B}}", "correct"), ("C", "wrong"), ("(A)", "wrong"), ("A or B", "unparsed"), ("AB", "unparsed"),
    ("A, B", "unparsed"), ("B) or C)", "unparsed"), ("B, not C", "unparsed"), ("none", "unparsed"),
    ("B C", "unparsed"), ("", "missing"), ("K", "unparsed"), ("Paris", "unparsed"), ("b dog", "unparsed"),
    ("B: C", "unparsed"), ("B) A", "unparsed"), ("A" * 1000, "unparsed")])
def test_choice(answer, reason):
    assert verify_choice(boxed(answer), "B").reason == reason
    assert verify_choice(boxed(answer), r"\text{(B)}").reason == reason


def test_a_choice_in_an_unfinished_thought_is_none():
    assert verify_choice(r"<think> \boxed{B}", "B").reason == "missing"
    assert verify_choice(r"\boxed{B}", "B", prefilled=True).reason == "missing"
    with pytest.raises(ValueError, match="letter from A to J"):
        verify_choice(boxed("B"), "B or C")


@pytest.mark.parametrize("answer, gold, reason", [
    ("New  York", "new york", "correct"), (r"\text{New York}.", "New York", "correct"), ('"Oslo"', "oslo", "correct"),
    ("Oslo or Rome", "Oslo", "wrong"), ("Os lo", "Oslo", "wrong"), ("Rome", "Oslo", "wrong"), ("...", "Oslo", "unparsed")])
def test_string(answer, gold, reason):
    assert verify_string(boxed(answer), gold).reason == reason


@pytest.mark.parametrize("answer, gold, reason", [
    ("Yes", "yes", "correct"), ("TRUE.", "True", "correct"), ("yes", "true", "correct"), (r"\text{No}", "false", "correct"),
    ("no", "yes", "wrong"), ("yes and no", "yes", "unparsed"), ("not no", "yes", "unparsed"), ("maybe", "no", "unparsed"),
    ("Ann is a knight, Bob is a knave", "Bob is a knave and Ann is a knight", "correct"),
    ("Ann is a knight; Bob is the knave.", "Ann is a knight, and Bob is a knave", "correct"),
    ("Ann is a knave, Bob is a knave", "Ann is a knight, Bob is a knave", "wrong"),
    ("Ann is a knight", "Ann is a knight, Bob is a knave", "wrong"),
    ("Ann is a knight, Ann is a knave, Bob is a knave", "Ann is a knight, Bob is a knave", "unparsed"),
    ("Ann is a knight, Bob is a knave, Cid is a knave", "Ann is a knight, Bob is a knave", "wrong")])
def test_logic(answer, gold, reason):
    assert verify_logic(boxed(answer), gold).reason == reason


@pytest.mark.parametrize("answer, reason", [
    ("(7 - 3) * 25", "correct"), (r"25 \times (7 - 3)", "correct"), ("25*(7-3) = 100", "correct"),
    ("25 * 7 - 3", "wrong"), ("25 * (7 - 3) = 99", "wrong"), ("25 * 4", "numbers"), ("100", "numbers"),
    ("25*(7-3)+3-3", "numbers"), ("25*(7-3", "unparsed"), ("25 * (7 - 3) = 100 = 100", "unparsed"), ("seven", "unparsed"),
    ("25/(7-7)*3", "numbers"), ("3-7*25", "wrong"), ("25 7 3", "unparsed"), ("(" * 900, "numbers"),
    ("25*(7-3)**1", "numbers"), ("257-3", "numbers"), ("7/(3-3)25", "numbers")])
def test_equation(answer, reason):
    assert verify_equation(boxed(answer), [3, 7, 25], 100).reason == reason
    assert verify_equation(boxed("3/(2-2)"), [3, 2, 2], 3).reason == "unparsed"
    assert verify_equation(boxed("1/3+2/3"), [1, 3, 2, 3], 1).correct
    assert verify_equation(boxed("2 1/3*3"), [2, 1, 3, 3], 7).reason == "unparsed"  # an addition without +


def test_rows_name_their_rule():
    texts = [boxed("(B)"), boxed("(B)"), boxed("oslo"), boxed("no"), boxed("(7-3)*25"), boxed("3")]
    columns = {"task": ["choice", "choice", "string", "logic", "equation", "math"],
               "answer": ["B", "C", "Oslo", "no", None, "3.0"],
               "numbers": [None] * 4 + [[3, 7, 25], None], "target": [None] * 4 + [100, None]}
    found = accuracy_reward([""] * 6, texts, [[1]] * 6, **columns)
    assert [one.correct for one in found] == [True, False, True, True, True, True]

    def reason(text, **columns):
        [verdict] = accuracy_reward([""], [text], [[1]], **columns)
        return verdict.reason
    assert reason(texts[0], task=["equation"], answer=["x"], numbers=[[1]], target=[2]) == "unparsed"
    assert reason(r"\boxed{B}", task=["choice"], answer=["B"], prefilled=[True]) == "missing"
    with pytest.raises(ValueError, match="numbers and target"):
        reason(texts[0], task=["equation"], answer=["1"])
