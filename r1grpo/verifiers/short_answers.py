r"""short_answers.py - verdicts on answers that are no formula: a choice, words, a truth, an equation.

    verify_choice     one letter, with what people write around it: B  (b)  \text{B}  B.  option B  B) Paris
    verify_string     the same words: case, spaces, quotation marks and a final full stop aside
    verify_logic      yes and true, no and false; or statements "X is a Y" in any order, each once
    verify_equation   an expression of + - * / and brackets that uses every number once and is the target

Each takes a whole completion and looks at its final answer alone (extract.py). One answer only: "A or B" is
wrong for A. What is of no such form is unparsed; a reference of no such form is a ValueError. Formulas
are mathematics.py's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from numbers import Integral, Real

from ..brief import brief
from .exact import Undecided, rational
from .expressions import evaluate
from .extract import final_answer
from .latex import spelling
from .verdict import CORRECT, MISSING, NUMBERS, UNPARSED, WRONG, Verdict

CHOICES = "ABCDEFGHIJ"
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed) ?\{([^{}]{0,200})\}")
_CHOICE = re.compile(r"(?:the )?(?:answer|option|choice)?(?: is)?:? ?[(\[]?([A-Ja-j])[)\]]?(?:[.:)]? (.*)|[.:]?)", re.I)
_OTHER = re.compile(r"(?<![A-Za-z'])[A-J](?![A-Za-z'])")
_TRUTH = {**dict.fromkeys(("yes", "true", "t", "correct", "right"), True),
          **dict.fromkeys(("no", "false", "f", "incorrect", "wrong"), False)}
_STATEMENT = re.compile(r"([a-z][a-z0-9_'-]*(?: [a-z0-9_'-]+)?) is (?:an? |the )?([a-z][a-z -]*)")
_BETWEEN = re.compile(r"[,;.\n]| and ")
_EQUATION = re.compile(r"[0-9+\-*/() ]+")
_MIXED = re.compile(r"\d \d", re.ASCII)  # 2 1/3 adds without a sign


def verify_choice(text: str, gold: str, prefilled: bool = False) -> Verdict:
    r"""The verdict on the letter that a completion chooses; gold is one letter, A to J.

    >>> verify_choice(r"so \boxed{\text{(B)}}", "B").reason, verify_choice(r"\boxed{A or B}", "B").reason
    ('correct', 'unparsed')
    """
    return _judge(_choice, "a letter from A to J", text, gold, prefilled)


def verify_string(text: str, gold: str, prefilled: bool = False) -> Verdict:
    """The verdict on an answer in words."""
    return _judge(_words, "a text", text, gold, prefilled)


def verify_logic(text: str, gold: str, prefilled: bool = False) -> Verdict:
    """The verdict on a truth value, or on who is what.

    >>> verify_logic("<answer>Bob is a knave and Ann is a knight.</answer>",
    ...              "Ann is a knight, Bob is a knave").reason
    'correct'
    """
    return _judge(_logic, "yes, no, true, false, or 'X is a Y, ...'", text, gold, prefilled)


def equation_problem(numbers: object, target: object) -> str | None:
    """Why no expression could use these numbers and reach this target; None where one could."""
    if not isinstance(numbers, (list, tuple)) or not all(
            isinstance(one, Integral) and one >= 0 for one in numbers):
        return f"numbers is {brief(numbers)}, expected a list of whole numbers, 0 or more"
    return None if isinstance(target, Real) else f"target is {brief(target)}, expected a number"


def verify_equation(text: str, numbers: Sequence[int], target: int, prefilled: bool = False) -> Verdict:
    """The verdict on an expression that reaches the target, with the usual precedence; "= target" may
    follow it. Reason numbers: not each number exactly once. ValueError as equation_problem says."""
    if problem := equation_problem(numbers, target):
        raise ValueError(problem)
    answer = final_answer(text, prefilled)
    if answer is None:
        return MISSING
    left, *right = spelling(answer).split("=")
    if not _EQUATION.fullmatch(left) or len(right) > 1 or _MIXED.search(left):
        return UNPARSED
    if sorted(map(int, re.findall(r"\d{1,50}", left))) != sorted(numbers):
        return NUMBERS
    try:
        value, said = (rational(evaluate(side)) for side in (left, right[0] if right else str(target)))
    except Undecided:
        return UNPARSED
    return CORRECT if value == said == target else WRONG


def _judge(read: Callable[[str], object], expected: str, text: str, gold: str, prefilled: bool) -> Verdict:
    reference = read(str(gold))
    if reference is None:
        raise ValueError(f"the reference answer {str(gold)[:60]!r} is not {expected}")
    answer = final_answer(text, prefilled)
    if answer is None:
        return MISSING
    found = read(answer)
    return UNPARSED if found is None else CORRECT if found == reference else WRONG


def _plain(text: str) -> str:
    """A text without LaTeX's and Markdown's dress, on one line."""
    text = _WRAPPED.sub(r"\1", _WRAPPED.sub(r"\1", text.replace("$", " ").replace("**", " ")))
    return " ".join(text.replace("\\ ", " ").split())


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(_plain(text))
    if match is None or match[2] and _OTHER.search(match[2]):
        return None
    behind = match.string[match.end(1):match.end(1) + 1]
    if match[2] and behind not in (")", "]", ".", ":"):
        return None  # "a dog" chooses nothing
    return match[1].upper()


def _words(text: str) -> str | None:
    return _plain(text).strip("\"'`.,!? \u201c\u201d\u2018\u2019").casefold() or None


def _logic(text: str) -> bool | frozenset[tuple[str, str]] | None:
    words = _words(text)
    if words is None or words in _TRUTH:
        return None if words is None else _TRUTH[words]
    parts = [part.strip() for part in _BETWEEN.split(words) if part.strip()]
    found = [_STATEMENT.fullmatch(part.removeprefix("and ")) for part in parts]
    if not all(found):
        return None
    said = {match[1]: match[2] for match in found if match}
    return frozenset(said.items()) if len(said) == len(found) else None
