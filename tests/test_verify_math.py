"""Verdicts on mathematical answers: which text counts, what is equal to what, what is refused.

The cases of Math-Verify's own tests (huggingface/Math-Verify, tests/) that are about a comparison are
restated here in our words; where our verdict differs, DIFFERENT says why. Of its 268 pairs of a gold and a
prediction 219 have its verdict. Three are right here alone: a formula over several lines (2), and an interval
for inequalities whichever of them is the gold. The other 46 are right there alone; their kinds are those below.
"""

from __future__ import annotations

import contextlib
import importlib.util

import pytest

from r1grpo.commands.inputs import check_answers
from r1grpo.rewards import accuracy_reward, math_reward, reference_problem
from r1grpo.verifiers import Verdict, VerifierPool, gold_problem, verify_answer, verify_math
from r1grpo.verifiers.answers import decide
from r1grpo.verifiers.mathematics import math_verify_slow, worth_algebra

# (gold, answers that are right)
RIGHT = {
    # numbers
    "1000": ["1,000", "1000.0", "1{,}000", r"1,\!000", r"1\,000", "1,\\! 000", "+1000", r"\$1000", "1000$", "10^3",
             "1 000", "**1000**", "$1000.$", r"\boxed{1000}", "1000th"],
    "1234567.5": ["1 234 567.5", "1,234,567.5", r"1\,234\,567.50"], "2 100/101": ["302/101"],
    "0.4": [".4", "2/5", r"\frac25", "0.40", "40%", r"40\%", r"\frac{40}{100}"],
    "10/9": [r"\frac{10}{9}", r"\tfrac{10}9", r"1\frac19", "1 1/9", r"1.\overline{1}", r"\frac{-10}{-9}"],
    "-10/9": [r"-\frac{10}{9}", r"\frac{-10}{9}", r"-1\frac{1}{9}", "\u221210/9"],
    r"\frac{1}{12}": [r"\cfrac{1}{12}", r"\dfrac 1{12}", r"\left(\frac{1}{12}\right)", "(1/12)"],
    "28\\%": ["28 percent", "28 pct", "28 %", "28", r"28\text{ percent}", "28 percentage", "0.28"],
    "3 \\cdot 10^5": ["300000", r"3\times 10^{5}", "300,000"],
    "2^{100} - 2": [r"2(2^{99}-1)", "-2+2^{100}"], "5!": ["120"], r"\binom{5}{2}": ["10"],
    # units
    r"15\mbox{ cm}^2": ["15", r"15\text{ cm}^2", "15 cm^2", r"15\text{ square centimeters}", "15 sq cm"],
    "125": ["125 miles", r"125\textnormal{ miles}", r"125 \text{ m}", "125 m", "125 ways"],
    r"\$5.50": ["5.5", "5.50 dollars", r"\$5.5", "$5.50"],
    r"90^\circ": ["90", "90\u00b0", r"90^{\circ}", r"90\text{ degrees}", "90 degrees"],
    r"3\text{ million}": ["3000000", r"3 \cdot 10^6"],
    r"7 \text{ distinct integers}": ["7", "7 integers"],
    # surds, pi, powers, complex numbers
    r"\sqrt{3}": [r"\sqrt3", r"\sqrt 3", r"3^{1/2}", r"\frac{3}{\sqrt{3}}", "sqrt(3)", "\u221a3"],
    r"3\sqrt{13}": [r"\sqrt{117}", r"\sqrt{13}\cdot 3", r"\sqrt{9}\sqrt{13}"],
    r"\sqrt{2}+\sqrt{5}": [r"\sqrt 5 + \sqrt 2", r"\sqrt2+\sqrt5"],
    r"\frac{9}{4}\pi": [r"\frac94\pi", r"2.25\pi", r"\frac{9\pi}{4}", r"9\pi/4", "2.25 pi"],
    r"\frac{\sqrt{3}}{2\sqrt{2}-1}": [r"\frac{2\sqrt6+\sqrt3}{7}"],
    r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{15+2\sqrt{33}}":
        [r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{2\sqrt{33}+15}"],
    r"-1 + 2i": ["2i - 1", r"2\cdot i-1", r"i(2+i)"], r"\sqrt[3]{16}": [r"2\sqrt[3]{2}", r"2\cdot 2^{1/3}"],
    # letters
    "2-2p": ["-2p+2", "2(1-p)", "-2(p-1)"], r"\frac{x+2}{7}": [r"\frac{x}{7}+\frac27", "(x+2)/7"],
    r"\frac{\pi r}{h+r}": [r"\frac{r \pi}{r+h}"], "(x-1)^3(x+1)^3": ["(x^2-1)^3", "x^6-3x^4+3x^2-1"],
    r"2 \sin b \cos a": [r"2\cos a\sin b"], r"\sin^2 y": [r"(\sin y)^2", r"\sin^{2}(y)"],
    "x_1": ["x_{1}"], r"30p\sqrt{p}": [r"30 p^{3/2}"], r"3^x - 2^x": ["-2^x+3^x"],
    r"\text{e}": ["e"], r"\text{E}": ["E", "(E)", r"\text{(E)}", r"\textbf{(E)}"],
    # lists, sets, tuples, intervals
    "-2,1": ["1, -2", r"\{-2,1\}", r"-2 \text{ and } 1", "1 or -2", "-2; 1", "x=-2, x=1", "x = -2 or x = 1"],
    r"1 \pm \sqrt{19}": [r"1+\sqrt{19}, 1-\sqrt{19}", r"1\mp\sqrt{19}"],
    r"\{1\pm\sqrt{5},-2\}": [r"\{-2, 1+\sqrt5, 1-\sqrt5\}"], r"\pm 2021": [r"\{-2021, 2021\}", "{-2021, 2021}"],
    r"\{\pi, 1\}": [r"{1, \pi}", r"\{1, \pi\}"], r"\{\}": [r"\emptyset", r"\varnothing", "\u2205"],
    "19, 46, and 82": [r"19, 46, \text{ and } 82", "82, 46, 19"], r"\{5\}": ["5"], r"6, 8\text{, and }10":
        ["10, 8, 6"],
    r"(6,31,-1)": [r"\left( 6, 31, -1 \right)", "(6;31;-1)", "(p,q,r) = (6,31,-1)", "(12/2,31,-1)"],
    "(2,1),(1,2)": ["(1,2), (2,1)", r"\{(1,2),(2,1)\}", r"(2,1) \text{ or } (1,2)"],
    "(1,\\frac{9}{2})": ["(1,4.5)"], r"[-1, -\frac12) \cup (3, \infty)": [r"(3,+\infty)\cup[-1,-0.5)"],
    r"\{-1\} \cup [0,7)": [r"[0,7) \cup \{-1\}"], r"x \in [-2,7]": ["[-2, 7]", r"-2 \leq x \le 7"],
    "-793 < a < 10": ["(-793, 10)", "10 > a > -793"], r"k \ge 2": [r"[2, \infty)", "k >= 2", r"2 \leq k"],
    "7:32": ["7 : 32", "14:64", r"\frac{7}{32}", "A:B = 7:32", "S_{MBCN}:S = 7:32"], "05:00": ["5:00"],
    "2:3:4": ["4:6:8", "1:1.5:2", "a:b:c = 2:3:4"],
    r"\frac{NO}{BO}=\frac{1}{\sqrt{6}}": [r"\frac{1}{\sqrt{6}}"],
    r"f^{-1}(x) = x-1": ["x-1"], r"\langle 1, 2\rangle": ["(1,2)"], r"m\angle A = 31^\circ": ["31"],
    # slips of writing that leave one reading
    r"\\left(\\frac{1}{5},\\frac{1}{6}\\right)": [r"\left(\frac{1}{5},\frac{1}{6}\right)"],
    r"x_1=3,\quadx_2=4": ["3, 4"], "\uff083\uff0c4\uff09": ["(3,4)"], "3\u00bd": ["7/2"], r"\text{DNE}": ["DNE"],
    r"11:00\text{ p.m.}": ["11:00 pm", "11:00 P.M.", "11:00 p.m."],
    r"-40^\circ C": ["-40", r"-40^\circ", r"-40^{\circ}\text{C}", r"-40\text{ degrees Celsius}"],
    r"(-\infty, \infty)": ["(-inf, +inf)", r"(-\infty,+\infty)"],
    # equations
    "11": ["x=11", "x = 11", "x = 5+5+1 = 11", "11 = x", r"x \approx 11", "sum = 11",
           "The total cost = 11", r"11 \approx 11.0"], "k=1": ["1", "k = 1.0"],
    "1/3": [r"k = \frac13", r"x = 1/3 \approx 0.33", r"\frac13\approx0.333"], r"y = -2x + 3": ["-2x+3", "y+2x-3=0", "2x + y = 3"],
    "34x+45y-20z+100=0": ["-34x-45y+20z-100=0", "100 = -34x - 45y + 20z"],
    "x^2/4 + y^2/3 = 1": ["x^2/16 + y^2/12 = 1/4"], "AB=4,CD=5": ["4, 5", "CD = 5, AB = 4"],
    "x < 3": [r"x \lt 3", "3 > x", r"(-\infty, 3)", "2x - 6 < 0", "-x > -3"], "|AB|=1": ["1"], "x != 3": [r"x \neq 3"], "f(y) = y": ["f(y)=y"],
    # matrices, numerals, words
    r"\begin{pmatrix}1 & 0 \\ 0 & 1\end{pmatrix}":
        [r"\begin{bmatrix} 1&0\\0&1 \end{bmatrix}", r"\left[\begin{array}{cc}1 & 0 \\0 & 1\end{array}\right]",
         r"\begin{pmatrix}1.0 & 0 \\ 0 & \frac22\end{pmatrix}"],
    "204_5": ["204_{5}"], r"\text{Evelyn}": ["Evelyn", r"\textbf{Evelyn}", "evelyn", r"\text{ Evelyn }."],
    r"\text{even}": ["Even", r"\text{Even}"], r"\text{two lines}": ["two lines", r"\text{two\ lines}"],
    r"\text{October 30}": ["October 30"],
}

# (gold, answers that are wrong)
WRONG = {
    "1": ["1 or 2", "1, 2", r"\{1, 2\}", "1 and 2", "[1]2", "-[0,1)", "x=1, y=2", "1 2", "11", "-1", r"\pm 1",
          "1=2", "x = 1 = 2", "1 million", "not 1", "1 or more", "1/0", "10%", "(1,2)",
          r"\frac{1}{1", "1+", "1+x-y", "0x1", "1e0", "0,001", "1^1^1", "{1}{1}", "1 lakh",
          "1 score", "1 gross", "1 false", "one of 1 or 2", "\u0661", "1;1;2", "1+0i+j"],
    "3": ["3 sin x", "3 alpha", "3 eighths", "3 twelfths", "3 infinity", "3 xyz", "3 abc", "log x = 3", r"\log x = 3",
          "x is not = 3", r"x \not\in \{3\}", r"x \notin \{3\}", r"x \approx 3 \approx 4", "x^2 = 3", "-x = 3",
          "xy = 3", "or 3", "3 or", r"\emptyset = 3", r"3 \approx 4", r"\sin x = 3", "3 = 4", "sqrt x = 3", "not x = 3",
          "3 hundredths", "3 million", "3 dozen", r"3 \text{ or so}", r"3 \text{ halves}", "3 mod 5", "3 per cent less"],
    "2": ["AZYUK2A", r"\frac{1+\sqrt5}{2}", "x^2", "2x", "2_3", "a_2", "2 or 3"],
    r"\frac13": ["0.333", "0.333333", "0.3334", "3", "1/3/3", r"\frac{3}{1}", "33%"],
    r"\frac{1}{2^{99}}": [r"\frac{1}{2^{98}}"], "2^{100}": ["2^{101}", "2^{99}"], r"3 \text{ cm}": ["3 inches", "3 cm^2", "30 mm"],
    r"\sqrt{2}": ["1.414", "1.41421356", "2", r"-\sqrt2", r"\sqrt[3]{2}"], r"\pi": ["3.14", r"\frac{22}{7}"],
    "x+2n+1": ["x+1"], "(a+5)(b+2)": ["(+5)(b+2)"], r"d": [r"\text{E}", "D"], "x^2+1": ["x^2-1", "y^2+1"],
    "(1,3)": ["(3,1)", r"\{1,3\}", "[1,3)", "1,3", "(1,3,3)", "(1)(3)"], "[0,9)": ["(0,9)", "[0,1)", "[0,9]"],
    "1,2,3": ["1,2", "1,2,3,4", "1,2,2", "123", "(1,2,3)"], r"-2x \leq 4": ["x \\leq -2", "x > -2"], r"\{1,2\}": [r"\{1\}", "1", r"\{1,2,3\}"],
    "81, 256": ["81256", "81,256", "81 256"], "2^{3^2}": ["2^3^2"], "720": ["3!!", "6^2!"], "12": ["{1}{2}", "1 2", "{3}{4}", "1{2}"],
    "1:2": ["2:1", "1:2:3", "0:0", "1:0"], "6:30": ["4:20", "12:60 pm"], "8 times": ["8 times x", "8 times 4", "4 times"],
    "2000": ["2 00", "2 0000", "20 00", "2 000/7", "2 000 00", "02 000", "2 000,5"],
    "x > 5": ["x < 5", r"x \geq 5", "y > 5", "5"], "x < 1": ["x > -1"],
    "7 = 11a+c": ["11a+c"], "a+3z = 0": ["0"], "2x+z=1": ["1"], "y = 2x": ["2x = z", "x = 2y"],
    "12:00": ["1:00", "12"], "CBAD": ["ABCD"], r"\text{odd}": ["even", "odd or even", "ddo"],
    r"\begin{pmatrix}1 & 2 \\3 & 4\end{pmatrix}":
        [r"\begin{pmatrix}1 & 2 \\3 & 5\end{pmatrix}", "(1,2,3,4)", r"\begin{pmatrix}1 & 2 & 3 & 4\end{pmatrix}"],
    "1010_2": ["1010", "10", "1010_3"], r"x \in [1,2]": ["(1,2)", r"x \in [1,3]"], "5": ["5 or 5.1", "5, 5.0, 6"],
    "0": [r"\infty-\infty", r"0\cdot\infty", "inf - inf", "2:00 pm"], r"30^\circ C": [r"30^\circ F", r"30^\circ\text{F}"],
    r"\infty": [r"-\infty", r"\infty \cdot 0", "8"], "10:00 pm": ["10:00 am", r"10:00\text{ a.m.}", "9:00 pm"],
    r"-\frac{5}{3}": [r"\frac53", r"-\frac{3}{5}"], r"\text{(A)}": ["A, B", "(A)(B)", "B", "AB"],
}

# Math-Verify's verdict on (gold, answer), where ours is another
DIFFERENT = {
    # a decimal is the number it spells: it rounds to six digits (3 of its cases)
    ("1/3", "0.333333"): True, (r"(\frac{3}{5},\frac{8}{3}]", "(0.6,2.6667]"): True,
    # a comma between digits makes a list, or thousands: 1,2 must not be 1.2 (4)
    ("1000.99", "1000,99"): True, ("0.111", "0,111"): True,
    # an answer is what stands in the box: it takes numbers and formulas out of prose (15)
    ("9", r"Answer \( 9 \)"): True, ("19", "Final Answer: The number of points is 19."): True,
    # boxes with words between them, or names, are no list: the last one counts (4)
    ("1, 2", r"1} papers and \boxed{2} bins"): True,
    # brackets count: it takes a pair for a set in order (1)
    ("(1,3)", r"\{1,3\}"): True,
    # a chain of unequal sides is no answer (8)
    ("x = 11", "x = 5+5+1 = 7 =11"): True, ("1/3", r"x=1/3\approx1.3"): True, ("z=1+1=2", "z=3+3=2"): True,
    # lists are counted: a solution given twice is one too many (2)
    ("(1,2),(3,4)", "(1,2),(3,4),(1,2)"): True,
    # names in turn are no tuples: (p, q) or (q, p)? (1)
    ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"): True,
    # takes algebra or solving: undecided here, its own verdict with algebra=True (5)
    (r"\tan^2(y)+1", r"\sec^2(y)"): True, (r"1\leq|z|\leq 2", r"z \in [-2,-1] \cup [1,2]"): True,
    (r"\begin{pmatrix}6\end{pmatrix}", r"\begin{pmatrix}1\end{pmatrix} + \begin{pmatrix}5\end{pmatrix}"): True,
    (r"F=\sum_{k=0}^{n-1} F_k G_k", r"F=\sum_{k=0}^{n-1} G_k F_k"): True,
    # a wrong sign that its tests have as right (1); names that differ (2)
    (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}"): True, ("f(x)", "f(y)"): True,
}


@pytest.mark.parametrize("gold", RIGHT)
def test_right(gold):
    for answer in RIGHT[gold]:
        assert decide(answer, gold) is True, (answer, gold)
        assert decide(gold, answer) is True, (gold, answer)
    assert decide(gold, gold) is True and gold_problem(gold) is None


@pytest.mark.parametrize("gold", WRONG)
def test_wrong(gold):
    for answer in WRONG[gold]:
        assert not decide(answer, gold), (answer, gold)
        assert not decide(gold, answer), (gold, answer)
    assert decide(gold, gold) is True and gold_problem(gold) is None


@pytest.mark.parametrize("gold, answer", DIFFERENT)
def test_where_we_differ_from_math_verify_nothing_is_right(gold, answer):
    assert not decide(answer, gold)


def test_no_gold_is_right_for_another():
    """All pairs of golds of the tables whose values differ."""
    golds = [*RIGHT, *WRONG]
    for i, one in enumerate(golds):
        for other in golds[:i]:
            if decide(one, other):
                assert {one, other} in ALIKE, (one, other)


def test_boxes_side_by_side_are_one_answer():
    for text in (r"\[ \boxed{-2} \quad \text{and} \quad \boxed{1}. \]", r"\(\boxed{1}\) and \(\boxed{-2}\)",
                 r"\boxed{1}\boxed{-2}", "\\boxed{x = 1}\nor\n\\boxed{x = -2}", r"$\boxed{-2}$, $\boxed{1}$"):
        assert verify_math(text, "1, -2").correct, text
        assert not verify_math(text, "1").correct and not verify_math(text, "-2").correct, text
    assert verify_math(r"\boxed{3} \boxed{3}", "3").correct and verify_math("\\boxed{1}\n\n\\boxed{2}", "2").correct
    assert verify_math(r"\boxed{1}. So \boxed{2}", "2").correct and verify_math(r"\boxed{1} = \boxed{2}", "2").correct
    assert verify_math(", ".join(rf"\boxed{{{n}}}" for n in range(50)), "49").reason == "wrong"


def test_a_percentage_is_its_number_and_its_hundredth():
    """What a question in per cent asks for is not in its answer: 50% is right for 50 and for 0.5; a number
    alone is one number."""
    for gold, right, wrong in (("0.5", ["50%", r"50\%", "0.5%"], ["50", "0.005", "5%", "500%"]),
                               ("50", ["50%", "5000%"], ["0.5", "0.5%"]), ("50%", ["50", "0.5"], ["0.5%", "5", "5000"])):
        assert [decide(one, gold) for one in right + wrong] == [True] * len(right) + [False] * len(wrong)


def test_what_is_too_large_to_compare_is_undecided():
    big = r"\frac{(a+b+c)^{15}}{(a+b+d)^{15}}"
    for one, other in ((big, "3"), (big, big.replace("d", "e")), ("2^{16000}", r"\frac{1}{2^{1000}x+1}")):
        assert decide(one, other) is None is decide(other, one)


ALIKE = [{"3", r"3 \text{ cm}"}, {"1", "k=1"}, {"1", "|AB|=1"}, {"k=1", "|AB|=1"}, {"1/3", r"\frac13"}, {"5", r"\{5\}"}]


def test_only_what_follows_the_thinking_counts():
    gold = r"\frac{3}{4}"
    assert verify_math(r"<think> 0.75 </think> \boxed{0.75}", gold) == Verdict(True, "correct")
    assert verify_math(r"<think> \boxed{0.75} </think> \boxed{1}", gold).reason == "wrong"
    assert verify_math(r"<think> \boxed{0.75} </think> none", gold).reason == "missing"
    assert verify_math(r"<think> \boxed{0.75}", gold).reason == "missing"
    assert verify_math(r"so \boxed{0.75}", gold, prefilled=True).reason == "missing"
    assert verify_math(r"so </think> \boxed{0.75}", gold, prefilled=True).correct
    assert verify_math(r"\boxed{0.75} or \boxed{1}", gold).reason == "wrong"
    assert verify_math(r"\boxed{1} or \boxed{0.75}", gold).reason == "wrong"
    assert verify_math(r"\boxed{1}, no, \boxed{0.75}", gold).correct
    assert verify_math(r"\boxed{0.75} % \boxed{1}", gold).reason == "wrong"  # text knows no comments
    assert verify_math(r"\boxed{1} <!-- \boxed{0.75} -->", gold).correct
    assert verify_math(r"\boxed{0.75</think>}", gold).reason == "missing"
    assert verify_math(r"\boxed{1}</think> \boxed{0.75}</think>", gold).reason == "missing"
    assert verify_math("<answer>3/4</answer>", gold).correct
    assert verify_math(r"\boxed{3/4}", 0.75).correct and not verify_math(r"\boxed{3/4}", 1).correct
    assert verify_math(r"\boxed{?!}", gold).reason == "unparsed"
    assert verify_math(r"\fbox{3/4}", gold).correct


def test_the_trainers_column_says_where_the_thought_began():
    call = (["p"], [r"I guess \boxed{4}"], [[1]])
    for more, reason in (({}, "correct"), ({"prefilled": [True]}, "missing"),
                         ({"algebra": ["a column of the data"]}, "correct")):
        [verdict] = accuracy_reward(*call, answer=["4"], **more)
        assert verdict.reason == reason


def test_a_reward_of_0_says_what_was_found_and_what_was_expected():
    texts = [r"\boxed{5}", "five", r"\boxed{4}", r"\boxed{\log_2 8}", r"\boxed{A or B}"]
    found = accuracy_reward(["p"] * 5, texts, [[1]] * 5, answer=["4", "4", "4", 4, "A"], task=[None] * 4 + ["choice"])
    assert [one.detail for one in found] == [
        "'5', expected '4'", "no final answer", "", r"'\\log_2 8', expected 4; not decided by exact rules",
        "'A or B', expected 'A'"]


@pytest.mark.parametrize("gold, why", [
    ("", "empty"), ("  $ $ ", "empty"), (None, "type NoneType"), (r"\frac{1}{0}", "division by zero"),
    ("{1", "brackets"), (r"\left(1, 2)", "brackets"), ("nan", "nan"), ("9" * 3000, "3000 characters"),
    ([1], "type list"), (True, "type bool"), ("it is 4 #### 4", "holds ####")])
def test_a_reference_that_cannot_be_one_is_refused(gold, why):
    assert why in gold_problem(gold)
    with pytest.raises(ValueError, match="reference answer"):
        verify_math(r"\boxed{1}", gold)


def test_the_commands_refuse_data_whose_answers_cannot_be_right():
    rows = [{"answer": "1"}, {"answer": "{2"}, {"answer": None}, {"answer": "{3", "template": "zero"}]
    with pytest.raises(ValueError, match=r"data: 1 of 4 answers .* row 1 \('{2'\): its brackets"):
        check_answers(rows, "data")
    check_answers(rows[:1] + rows[2:], "data")


@pytest.mark.parametrize("row, why", [
    ({"answer": "Paris"}, None), ({"task": "choice", "answer": "b"}, None),
    ({"task": "choice", "answer": "Paris"}, "'Paris' is not a letter from A to J"),
    ({"task": "string", "answer": "{none}"}, None), ({"task": "string", "answer": " ."}, "is not a text"),
    ({"task": "logic", "answer": True}, None), ({"task": "logic", "answer": "perhaps"}, "is not yes, no"),
    ({"task": "equation", "numbers": [1], "target": 1}, None),
    ({"task": "equation", "numbers": "1 2", "target": 1}, "numbers is '1 2', expected a list of whole numbers"),
    ({"task": "equation", "numbers": ["1", "2"], "target": 1}, "expected a list of whole numbers"),
    ({"task": "equation", "numbers": [1, -2], "target": 1}, "0 or more"),
    ({"task": "equation", "numbers": [1], "target": "1"}, "target is '1', expected a number"),
    ({"task": "equation", "answer": "{1", "target": 1}, "an equation row lacks numbers"),
    ({"task": "choice", "answer": None}, None), ({"task": "other", "answer": "{1"}, "its brackets")])
def test_a_reference_is_checked_by_the_rule_of_its_row(row, why):
    """Rules with a form of their own raise at what is refused here, and at nothing else."""
    found = reference_problem(row)
    assert found is None if why is None else why in found
    raises = why is not None and row.get("task") in ("choice", "string", "logic", "equation")
    with pytest.raises(ValueError) if raises else contextlib.nullcontext():
        accuracy_reward([""], [""], [[]], **{name: [value] for name, value in row.items()})


# ---- hostile answers ------------------------------------------------------------------------------

HOSTILE = [
    "9^9^9^9", "9^{9^{9^{9^9}}}", "2^{2^{2^{2^{2^{2^2}}}}}", "(((((9^99)^99)^99)^99)^99)^99", "10^{10^{10}}",
    "1" * 1900, "0." + "0" * 1500 + "1", "1e999999999", "(" * 1000 + "1" + ")" * 900, "[" * 2000, "{" * 1999,
    "(" * 900 + "3" + ")" * 900, r"\{" * 600, r"\frac" * 300, r"\frac{" * 200 + "1" + "}{1}" * 200,
    r"\sqrt{" * 250 + "9" + "}" * 250, "-" * 1999 + "3", "+-" * 900 + "3", "3" + "!" * 500, "99999!",
    "170!!", r"\binom{10^9}{10^8}", "(a+b+c+d+e)^{400}", "(x+1)^{100000}", "*".join(["(a+b+c)"] * 90),
    "__import__('os').system('true')", "exec('3')", "3 if True else 4", "[3 for _ in range(10**9)]", "lambda: 3",
    "nan", "NaN", "inf", "-inf", "3\u200b\u0663", "\u0663", "\uff13", "\u00b3", "3\x00", "\ud800",
    "1,2,3," * 300, "3 or 4 or 5", "3" + " cm" * 400, r"\text{3} or \text{4}", "3:" * 600, "3=" * 600 + "4",
    r"\begin{pmatrix}" + "3&" * 600 + r"\end{pmatrix}", r"\sqrt[99999999]{3}", "3^{-99999999}", "0^{-1}",
    r"\sqrt{" + "9" * 390 + "}", "(1+\\sqrt2)^{199}" * 9, "sin" * 600, "\\" * 1999, "$" * 1999, "%" * 1999,
    "3^{0.333333333333333333333333333333333333333333}", r"\pm" * 300 + "3", "3/" * 900 + "3", "3~" * 900,
    "_" * 1000, "^" * 1000, "a" * 1999, "and " * 400, r"\text{" * 400, "\\boxed3" * 200, "x=" * 900 + "3+1",
    # two answers, or what surrounds one
    r"\text{\text{\text{3 or 4}}}", "3}\\boxed{4", "4}, \\boxed{3", "4} or \\boxed{3", "4}\\boxed{4}, \\boxed{3", "3</think>",
    "</think>3", "<think>3", "<answer>3", "3</answer><answer>4", "3\\\\4", "\\begin{cases}3\\\\4\\end{cases}", "3 % or 4 %",
    # what is not seen, or seen otherwise
    "3\u200b", "\u200b3", "3\u2060", "\ufeff3", "\u202e3", "3\u200f", "\u206731\u2069", "\uff11\uff12", "\U0001d7d1", "\u2462",
    "\u0e53", "\u00b3\u00b3", "3\u0301", "\u2083", "\u216b", "3\u0338", "\u4e09",
    # other people's numbers
    "0x3", "0b11", "3_0", "3e0", "3E0", "3j", "3f", "3L", "1e999999", "3..0", "3.0.0", "0,003", ", 3", "3**1", "3//1",
    # about, between, up to
    "approximately 3", "about 3", "3-ish", "3 +/- 1", r"3 \pm 0.5", "2-4", "2 to 4", "[2,4]", "2 < x < 4", "3 or so", "3?",
    r"\infty", r"3\infty", r"\frac{3\infty}{\infty}", r"3 + \infty - \infty", "3^{\\infty}", "3 quadrillion", "3 score",
    # towers
    "\\sqrt{" * 10_000 + "9" + "}" * 10_000, r"\sqrt{" * 24 + "3" + "}" * 24, r"\frac{3}{" * 220, "\\frac3{" * 20 + "1" + "}" * 20,
    r"\frac{\frac{3}{2}}{" * 20 + "4" + "}" * 20, "(400!)^{400!}", "400!" * 400, r"\binom{400}{200}^{400}", r"\binom{10^9}{5}",
    "399!^{1/2}", r"\sqrt{399!+1}", r"\sqrt[97]{397!}", "3^1^1", "{3}{1}", r"\left(" * 300 + "3", r"\left(3", r"3\right)",
    r"\left(3\right]\right)", r"\frac{(a+b+c)^{15}}{(a+b+d)^{15}}", "(a+b)^{13}" * 20, r"(\sqrt2+\sqrt3+\sqrt5+\sqrt7)^{40}",
    r"(\sqrt{2}+\sqrt{3})^{200}", "(3^{1/7}+5^{1/11})^{150}", "3:" * 300 + "1", "1 000 " * 300, "\\quad" * 300 + "x", "\\\\" * 900]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_not_right_and_cost_little(answer):
    for gold in ("3", r"\frac{1}{3}", "1,2", "x+1", r"[1,3)", r"\text{yes}"):
        assert not verify_answer(answer, gold).correct
        assert not verify_math(f"\\boxed{{{answer}}}", gold).correct


def test_hostile_answers_in_a_worker_with_algebra_are_judged_by_the_deadline():
    """Whatever math-verify makes of them: none is right, and the pool answers after each."""
    with VerifierPool(workers=1, deadline=4.0) as pool:
        for answer in HOSTILE:
            ticket = pool.submit("r1grpo.verifiers:verify_answer", answer, "3", algebra=True)
            again = pool.submit("r1grpo.verifiers:verify_answer", "3.0", "3")
            verdict = pool.result(ticket)
            assert not verdict.correct and pool.result(again).correct, answer[:40]
            assert verdict.reason in ("wrong", "unparsed", "timeout"), (verdict, answer[:40])


@pytest.mark.parametrize("text", [
    "\\boxed{" * 150_000, "{" * 1_000_000, "<answer>" * 120_000, "</think>" * 120_000, "#" * 1_000_000,
    "\\boxed{" + "(" * 1_000_000 + "}", "\\boxed" * 150_000, "<answer>" + "9" * 1_000_000 + "</answer>",
    "\\boxed{" + "\\" * 1_000_000, " " * 1_000_000 + "\\boxed{}", "\\fbox{3" + "}{" * 400_000])
def test_a_megabyte_is_no_answer(text):
    assert verify_math(text, "3").correct is text.startswith("\\fbox{3}")


# ---- math-verify ----------------------------------------------------------------------------------

MATH_VERIFY = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None,
                                 reason="the extra math (math-verify) is not installed")


@MATH_VERIFY
def test_what_exact_rules_leave_open_is_shown_to_math_verify():
    pairs = [(r"\log_2 8", "3", True), (r"\log_2 9", "3", False), (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2", True),
             (r"\sec^2(y)", r"\tan^2(y)+1", True), ("3", "3", True), ("4", "3", False)]
    with VerifierPool(workers=1, deadline=60.0) as pool:
        tickets = [pool.submit("r1grpo.verifiers:verify_answer", answer, gold, algebra=True)
                   for answer, gold, _ in pairs]
        found = [pool.result(ticket) for ticket in tickets]
    assert [verdict.correct for verdict in found] == [right for *_, right in pairs]
    assert [verdict.detail for verdict in found] == ["by math-verify"] * 4 + [""] * 2


def test_without_algebra_they_are_not_right_and_say_so():
    verdict = verify_answer(r"\log_2 8", "3")
    assert verdict == Verdict(False, "wrong") and "exact rules" in verdict.detail
    assert not worth_algebra("I say it is 3", "3") and not worth_algebra("1+" * 200, "3")
    for guess in ("2^3^2", "1/2x", r"\infty^0", "3_0", "3E0", r"x \approx 3 \approx 4", "9^9^9", "{3}{1}"):
        assert not worth_algebra(guess, "3"), guess
    assert worth_algebra(r"\log_2 8", "3") and worth_algebra(r"\sum_{k=1}^{\infty} 2^{-k}", "1")


def test_without_the_extra_the_reason_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    verdict = math_verify_slow(r"\log_2 8", "3")
    assert verdict == Verdict(False, "unparsed") and "r1grpo[math]" in verdict.detail
    [verdict] = math_reward(["p"], [r"\boxed{\log_2 8}"], [[1]], answer=["3"])
    assert "r1grpo[math]" in verdict.detail
