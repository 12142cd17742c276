"""How an answer is checked: text in, Verdict out. Exact, by a parser of our own.

    chain    ::= integer (("+" | "-" | "*") integer)*        spaces are free
    value    =   the chain computed strictly from left to right: 2 + 3 * 4 = 20

Reading an expression from left to right, without precedence, is a rule of these tasks (our
choice: a partial result is then one number). Integers are exact and bounded in size, so a hostile
answer costs nothing. Knows nothing about templates: it is handed the answer alone. Answers of
published datasets, in free text, are found by extract.py and judged by mathematics.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .answers import exact_number, gold_problem, same_answer
from .code import verify_code
from .extract import final_answer, last_box
from .latex import spelling
from .mathematics import math_verify_slow, verify_answer, verify_math
from .pool import VerifierPool
from .short_answers import equation_problem, verify_choice, verify_equation, verify_logic, verify_string
from .verdict import CORRECT, MISSING, NUMBERS, UNPARSED, WRONG, Verdict

__all__ = ["Verdict", "VerifierPool", "apply_operator", "chain_value", "equation_problem", "exact_number",
           "final_answer", "gold_problem", "last_box", "math_verify_slow", "parse_chain",
           "same_answer", "spelling", "verify", "verify_answer", "verify_arithmetic",
           "verify_choice", "verify_code", "verify_countdown", "verify_equation", "verify_logic",
           "verify_math", "verify_string"]

MAX_ANSWER_CHARACTERS = 200
_TOKEN = re.compile(r"\s*(?:([0-9]{1,9})|([-+*]))\s*")


def parse_chain(text: str) -> tuple[list[int], list[str]] | None:
    """(integers, operators) of a chain; None where the text is anything else.

    >>> parse_chain("7 * 5 + 2")
    ([7, 5, 2], ['*', '+'])
    """
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    integers: list[int] = []
    operators: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        if match[1] and len(integers) == len(operators):
            integers.append(int(match[1]))
        elif match[2] and len(integers) == len(operators) + 1:
            operators.append(match[2])
        else:
            return None
        position = match.end()
    return (integers, operators) if len(integers) == len(operators) + 1 else None


def apply_operator(left: int, operator: str, right: int) -> int:
    """left (+, - or *) right."""
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def chain_value(integers: Sequence[int], operators: Sequence[str]) -> int:
    """The chain computed from left to right."""
    value = integers[0]
    for operator, integer in zip(operators, integers[1:], strict=True):
        value = apply_operator(value, operator, integer)
    return value


def verify_countdown(expression: str | None, numbers: Sequence[int], target: int) -> Verdict:
    """Right if the chain uses every number exactly once and its value is the target."""
    if expression is None:
        return MISSING
    chain = parse_chain(expression)
    if chain is None:
        return UNPARSED
    if sorted(chain[0]) != sorted(numbers):
        return NUMBERS
    return CORRECT if chain_value(*chain) == target else WRONG


def verify_arithmetic(text: str | None, answer: str | int) -> Verdict:
    """Right if the text is the integer `answer` and nothing else."""
    if text is None:
        return MISSING
    text = text.strip()
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        return UNPARSED
    return CORRECT if int(text) == int(answer) else WRONG


def verify(answer: str | None, task: str, numbers: Sequence[int] | None = None,
           target: int | None = None, reference: str | None = None) -> Verdict | None:
    """The verdict on an extracted answer by the columns of its row; None where the task has no
    rule to check it."""
    if task == "countdown":
        if numbers is None or target is None:
            raise ValueError("a countdown row needs the columns numbers and target")
        return verify_countdown(answer, numbers, target)
    if task == "arithmetic":
        if reference is None:
            raise ValueError("an arithmetic row needs the column answer")
        return verify_arithmetic(answer, reference)
    return None
