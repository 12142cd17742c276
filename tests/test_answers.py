"""Final answers of free text: which text it is, and what is equal to what."""

from __future__ import annotations

import pytest

from r1grpo.evaluate import row_answer, row_vote
from r1grpo.layouts import LAYOUTS
from r1grpo.rewards import accuracy_reward
from r1grpo.rows import load_rows
from r1grpo.verifiers import exact_number, final_answer, last_box, same_answer
from real_data import data_file


@pytest.mark.parametrize("text, answer", [
    (r"<think> \boxed{3} </think> so \boxed{4}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{4} so \boxed{3} or $\fbox{\frac{1}{2}}$, \boxed{3}.", r"3, \frac{1}{2}"),
    (r"\boxed{4}", "4"), (r"<think> \boxed{4}", None), (r"\boxed{4} </think> none", None),
    ("a\n#### 72", "72"), ("#### 1\n#### 7 2 \nmore", "7 2"), ("72", None), ("", None), ("####", None),
    ("</think><answer> 5 </answer>", "5"), (r"<answer> so \boxed{5} </answer> \boxed{6}", "5"),
    ("<answer> 1 </answer> <answer> 2 </answer>", "2"), ("<answer> 1", None), (r"\boxed{}", None),
    ("1 </answer>", None), (r"\boxed{1}</answer>", "1"), (r"\boxed{a", None),
    (r"\boxed{1} \boxed{2", None), (r"\boxed{\{1\}}", r"\{1\}"), (r"\boxed{\\{1}}", r"\\{1}"),
    (r"\boxed{" + "1" * 3000 + "}", None), (r"<answer>" + "1" * 3000 + "</answer>", None)])
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_a_hostile_text_is_read_once():
    assert final_answer(r"\boxed{" * 300_000) is None
    assert exact_number("9" * 5000) is None is exact_number("1/" + "9" * 5000)
    assert last_box("{" * 10 + r"\boxed{x" + "{}" * 300_000 + "}") is None


EQUAL = [("72", "72.0"), ("1,080", "1080"), ("11,\\!880", "11880"), ("$5$", "5"), ("\\$5.00", "5"),
         ("$5", "5"), (".5", "\\frac12"), ("\\dfrac{3}{4}", "0.75"), ("-\\frac{3}{4}", "-3/4"),
         ("\\frac{-3}{4}", "\\tfrac{3}{-4}"), ("+3", "3."), ("6/4", "1.5"), ("\\(7\\)", "7"),
         ("0.1", "1/10"), ("\\text{Monday}", "\\text{Monday}."), ("\\left( 1, 2 \\right)", "(1,2)"),
         ("x^2 + 1", "x^2+1"), ("50\\%", "50%"), ("9" * 300, "9" * 300),
         ("3 cm", "3"), ("50%", "50"), ("50%", "0.5")]
UNEQUAL = [("72", "73"), ("1 2", "12"), ("1,2", "12"), ("12,34", "1234"), ("1,0800", "10800"),
           ("5$3", "53"), ("1/3", "0.333"), ("3/0", "0"), ("3/0", "4/0"), ("", ""), ("$$", "$"),
           ("1e2", "100"), ("\u0663", "3"),
           ("\u00b2", "2"), ("(1,2)", "(1,3)"), ("nan", "nan1"), ("-3", "3"), ("--3", "3"),
           ("\\leftarrow", "arrow"), ("9" * 300, "9" * 299 + "8"), ("a" * 3000, "a" * 3000),
           ("1" + "0" * 99 + "1", "1" + "0" * 99), ("2\\,3", "23"), ("1\n2", "12")]


@pytest.mark.parametrize("one, other", EQUAL)
def test_equal_answers(one, other):
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize("one, other", UNEQUAL)
def test_unequal_answers(one, other):
    assert not same_answer(one, other) and not same_answer(other, one)


def test_rows_without_a_template_are_checked_by_their_answer():
    texts = [r"\boxed{1080}", r"\boxed{2}", "none", r"\boxed{3}"]
    call = (["p"] * 4, texts, [[1]] * 4)
    def reasons(**columns):
        return [one and one.reason for one in accuracy_reward(*call, **columns)]

    assert reasons(answer=["1,080", "3", "3", None]) == ["correct", "wrong", "missing", None]
    assert reasons(answer=[1080, 3, 3, 3]) == ["correct", "wrong", "missing", "correct"]
    assert reasons() == [None] * 4
    solutions = ["x #### 1,080", r"$2$", None, r"\boxed{1} so \boxed{3}"]
    assert reasons(solution=solutions) == ["correct", "correct", None, "correct"]
    mixed = {"template": ["r1", None, None, None], "task": ["arithmetic", None, None, None],
             "answer": ["1080", "2", "3", "3"]}
    assert reasons(**mixed) == ["missing", "correct", "missing", "correct"]


def test_votes_of_equal_numbers_are_one():
    assert row_vote("1,080") == row_vote("1080.0") == row_vote("\\frac{2160}{2}")
    assert row_vote("x + 1") == row_vote("x+1") != row_vote("x + 2")
    assert row_answer({"prompt": "p"}, r"so \boxed{4}") == "4"


def test_every_answer_of_gsm8k_is_a_number_and_right():
    rows = load_rows(data_file("gsm8k_train.jsonl"))
    columns = {name: [row[name] for row in rows] for name in ("answer", "solution")}
    verdicts = accuracy_reward([""] * len(rows), columns["solution"], [[1]] * len(rows), **columns)
    assert all(one.correct for one in verdicts)
    shifted = columns["answer"][1:] + columns["answer"][:1]
    verdicts = accuracy_reward([""] * len(rows), columns["solution"], [[1]] * len(rows),
                               answer=shifted)
    assert sum(one.correct for one in verdicts) < 0.05 * len(rows)


@pytest.mark.parametrize("file", ["SVAMP.json", "deepscaler_math_train.json"])
def test_every_answer_is_equal_to_itself_in_a_box(file):
    rows = load_rows(data_file(file))
    answers = [row["answer"] for row in rows if row["answer"] is not None]
    boxed = [f"<think> </think> so \\boxed{{{one}}}." for one in answers]
    verdicts = accuracy_reward([""] * len(boxed), boxed, [[1]] * len(boxed), answer=answers)
    assert all(one.correct for one in verdicts)


def test_layouts_and_verifiers_agree_on_the_box():
    row = LAYOUTS["math"].apply({"problem": "p", "solution": r"a \boxed{\{1, 2\}} b"})
    assert accuracy_reward(["p"], [r"\boxed{\{1,2\}}"], [[1]], answer=[row["answer"]])[0].correct
