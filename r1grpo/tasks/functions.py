"""Function-writing problems: "Write a Python function solve(x) that returns ...", with hidden tests.

    sample_functions("train", 64, seed=0)    rows: prompt, tests, solution, key

A row's tests are calls and expected values that its prompt does not show; the prompt shows two others.
They are drawn with the problem, so a seed means the same rows on every machine, and the split of a
problem is fixed by its key (problem.split_of). Expected values come from the reference function here,
which `solution`, as text, agrees with; tests hold this. Knows nothing about how a program is run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .draw import between, pick, pick_distinct
from .problem import split_of

HIDDEN, SHOWN = 6, 2


class _Family(NamedTuple):
    """A kind of problem. statement and solution are filled with the numbers a and b; compute is the
    reference, f(a, b, argument); draw makes an argument."""

    name: str
    statement: str
    solution: str
    compute: Callable[[int, int, Any], Any]
    draw: Callable[[random.Random], Any]


def _number(rng: random.Random) -> int:
    return between(rng, -50, 50)


def _numbers(rng: random.Random) -> list[int]:
    return [_number(rng) for _ in range(between(rng, 0, 8))]


def _word(rng: random.Random) -> str:
    return "".join(pick(rng, "abcde") for _ in range(between(rng, 0, 8)))


FAMILIES = (
    _Family("linear", "{a} times x plus {b}", "return {a} * x + {b}", lambda a, b, x: a * x + b, _number),
    _Family("clamp", "x, but at least -{a} and at most {b}", "return max(-{a}, min({b}, x))",
            lambda a, b, x: max(-a, min(b, x)), _number),
    _Family("digits", "the sum of the decimal digits of x squared, times {a}, plus {b}",
            "return {a} * sum(map(int, str(x * x))) + {b}",
            lambda a, b, x: a * sum(map(int, str(x * x))) + b, _number),
    _Family("multiples", "the list of those numbers in the list x that {a} divides, each plus {b}",
            "return [one + {b} for one in x if one % {a} == 0]",
            lambda a, b, x: [one + b for one in x if one % a == 0], _numbers),
    _Family("count", "how many numbers in the list x are greater than {a} and less than {b} * {a}",
            "return sum({a} < one < {b} * {a} for one in x)",
            lambda a, b, x: sum(a < one < b * a for one in x), _numbers),
    _Family("total", "the sum of the list x, where each number below {a} counts {b} times",
            "return sum(one * {b} if one < {a} else one for one in x)",
            lambda a, b, x: sum(one * b if one < a else one for one in x), _numbers),
    _Family("repeat", "the text x backwards, {a} times, cut after {b} characters",
            "return (x[::-1] * {a})[:{b}]", lambda a, b, x: (x[::-1] * a)[:b], _word),
    _Family("shift", "the text x with its first {a} characters moved to its end, and '{b}' behind it",
            "return x[{a}:] + x[:{a}] + '{b}'", lambda a, b, x: x[a:] + x[:a] + str(b), _word),
)


def sample_functions(split: str, n: int, seed: int) -> list[dict[str, Any]]:
    """n rows of a split, train or test, of all kinds in turn; keys are distinct while it has others."""
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is none of train, test")
    rng = random.Random(seed)
    keys = {family.name: _keys(family, split) for family in FAMILIES}
    left: dict[str, list[tuple[int, int]]] = {}
    rows = []
    for i in range(n):
        family = FAMILIES[i % len(FAMILIES)]
        if not left.get(family.name):
            left[family.name] = pick_distinct(rng, keys[family.name], len(keys[family.name]))
        rows.append(_row(rng, family, *left[family.name].pop()))
    return rows


def _key(family: _Family, a: int, b: int) -> str:
    return f"functions:{family.name} {a} {b}"


def _keys(family: _Family, split: str) -> list[tuple[int, int]]:
    return [(a, b) for a in range(2, 12) for b in range(2, 12) if split_of(_key(family, a, b)) == split]


def _row(rng: random.Random, family: _Family, a: int, b: int) -> dict[str, Any]:
    """The row of a problem: prompt, tests and a right program."""
    arguments: list[Any] = []
    while len(arguments) < SHOWN + HIDDEN:
        if (one := family.draw(rng)) not in arguments:
            arguments.append(one)
    examples = [f"solve({one!r}) == {family.compute(a, b, one)!r}" for one in arguments[:SHOWN]]
    tests = [{"function": "solve", "args": [one], "expected": family.compute(a, b, one)}
             for one in arguments[SHOWN:]]
    prompt = "\n".join([f"Write a Python function solve(x) that returns {family.statement.format(a=a, b=b)}.",
                        "", "Examples:", *examples, ""])
    return {"prompt": prompt, "tests": tests, "problem_key": _key(family, a, b),
            "solution": f"def solve(x):\n    {family.solution.format(a=a, b=b)}\n"}
