"""Multi-step arithmetic in words: "start with 30 , add 5 , times 3 , what is the result ?".

The first number is 21..50, + and - take 1..20, * takes 2..5, every partial result is 0..199; two or
three steps, four in `ood`. First numbers above 20 keep these chains apart from the Countdown
chains of the corpus, so no Countdown trial solves an arithmetic test problem.
Knows nothing about documents.
"""

from __future__ import annotations

import random

from ..verifiers import apply_operator, chain_value, parse_chain
from .draw import between, pick
from .problem import Problem, split_of
from .wording import MAX_NUMBER, arithmetic_question

FIRST_NUMBERS = (21, 50)
OPERANDS = {"+": (1, 20), "-": (1, 20), "*": (2, 5)}
STEPS, OOD_STEPS = (2, 3), 4


def draw_chain(rng: random.Random, steps: int) -> str:
    """A random chain of `steps` operations that stays in 0..199."""
    value = between(rng, *FIRST_NUMBERS)
    words = [str(value)]
    while len(words) < 2 * steps + 1:
        operator = pick(rng, "+-*")
        number = between(rng, *OPERANDS[operator])
        result = apply_operator(value, operator, number)
        if 0 <= result <= MAX_NUMBER:
            words += (operator, str(number))
            value = result
    return " ".join(words)


def draw_split_chain(rng: random.Random, split: str) -> str:
    """A random chain of a split, by rejection."""
    while True:
        steps = OOD_STEPS if split == "ood" else pick(rng, STEPS)
        chain = draw_chain(rng, steps)
        if split_of(arithmetic_key(chain)) == split:
            return chain


def arithmetic_key(chain: str) -> str:
    """The key of a problem, which fixes its split."""
    return f"arithmetic:{chain}"


def work_out(chain: str) -> str:
    """The chain with its partial results.

    >>> work_out("30 + 5 * 3")
    '30 + 5 = 35 * 3 = 105'
    """
    words = chain.split()
    value, text = int(words[0]), words[0]
    for operator, number in zip(words[1::2], words[2::2]):
        value = apply_operator(value, operator, int(number))
        text += f" {operator} {number} = {value}"
    return text


def make_arithmetic(chain: str, language: str, wording: int = 0) -> Problem:
    """The problem that a chain of numbers and operators is, worked from left to right."""
    parsed = parse_chain(chain)
    if parsed is None:
        raise ValueError(f"{chain!r} is not a chain of numbers and operators")
    return Problem(task="arithmetic", language=language, key=arithmetic_key(chain),
                   question=arithmetic_question(chain, language, wording),
                   answer=str(chain_value(*parsed)))
