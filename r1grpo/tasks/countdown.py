"""Countdown: make the target from the numbers, each used exactly once.

An answer is a chain `a op b op c` of + - *, computed strictly from left to right, the numbers in
any order. Three numbers 1..20 and targets 1..100 give 13,215 solvable problems; `ood` has four
numbers and targets up to 150.

`chains(numbers)` lists the chains whose partial results stay in 0..199 (one token each). Where the
first operation commutes the larger number stands first, which loses no value; the verifier takes
any order. Knows nothing about documents or languages beyond the wording of the question.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, permutations, product

from ..verifiers import apply_operator
from .draw import between, pick
from .problem import Problem, split_of
from .wording import MAX_NUMBER, countdown_questions

MAX_OPERAND, MAX_TARGET = 20, 100
OOD_NUMBERS, OOD_TARGET = 4, 150


@dataclass(frozen=True)
class Chain:
    """One chain: its expression, the worked form with partial results, and its value."""

    expression: str             # "7 * 5 + 2"
    work: str                   # "7 * 5 = 35 + 2 = 37"
    value: int


@cache
def chains(numbers: tuple[int, ...]) -> tuple[Chain, ...]:
    """Every chain over the numbers with all partial results in 0..199, in a fixed order."""
    found: dict[str, Chain] = {}
    for order in sorted(set(permutations(numbers))):
        if order[0] < order[1]:                 # - would be negative, + and * commute
            continue
        for operators in product("+-*", repeat=len(order) - 1):
            value = order[0]
            expression = work = str(value)
            for operator, number in zip(operators, order[1:]):
                value = apply_operator(value, operator, number)
                if not 0 <= value <= MAX_NUMBER:
                    break
                expression += f" {operator} {number}"
                work += f" {operator} {number} = {value}"
            else:
                found[expression] = Chain(expression, work, value)
    return tuple(found.values())


@cache
def solvable(max_operand: int = MAX_OPERAND,
             max_target: int = MAX_TARGET) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Every solvable (numbers, target) with three numbers, sorted."""
    return tuple((numbers, target)
                 for numbers in combinations_with_replacement(range(1, max_operand + 1), 3)
                 for target in sorted({chain.value for chain in chains(numbers)})
                 if 1 <= target <= max_target)


def countdown_key(numbers: tuple[int, ...], target: int) -> str:
    """The key of a problem, which fixes its split: the order of the numbers is not part of it."""
    return f"countdown:{' '.join(map(str, sorted(numbers)))}={target}"


@cache
def split_problems(split: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """The (numbers, target) of a split: train, validation or test."""
    return tuple(item for item in solvable() if split_of(countdown_key(*item)) == split)


def draw_ood(rng: random.Random) -> tuple[tuple[int, ...], int]:
    """One harder problem: four numbers, target 1..150, drawn through a random chain."""
    while True:
        numbers = tuple(sorted(between(rng, 1, MAX_OPERAND) for _ in range(OOD_NUMBERS)))
        targets = sorted({c.value for c in chains(numbers) if 1 <= c.value <= OOD_TARGET})
        if targets:
            return numbers, pick(rng, targets)


def make_countdown(numbers: tuple[int, ...], target: int, language: str,
                   wording: int = 0) -> Problem:
    """The problem of reaching a target from the given numbers."""
    questions = countdown_questions(numbers, target, language)
    return Problem(task="countdown", language=language, key=countdown_key(numbers, target),
                   question=questions[wording % len(questions)], numbers=numbers, target=target)
