r"""Property of the exact rules: an expression in letters is equal to what identities make of it, and to nothing
that has another value.

Expressions are trees of rational operations over x, y, a, b; the oracle is their value at random rational
points (two such expressions that agree at four of them agree). Each is written in LaTeX from the tree, with
brackets, products and fractions in any of their spellings.
"""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

from r1grpo.verifiers.answers import decide

# ("number", Fraction), ("letter", name), ("-", tree), ("^", tree, whole number), (one of + - * /, tree, tree)
Tree = tuple
LETTERS = "xyab"
COUNT = 400


def some(depth: int, rng: random.Random) -> Tree:
    if depth == 0 or rng.random() < 0.2:
        return ("number", Fraction(rng.randint(0, 9))) if rng.random() < 0.5 else ("letter", rng.choice(LETTERS))
    sign = rng.choice("++--**/^m")
    if sign == "m":
        return ("-", some(depth - 1, rng))
    return (sign, some(depth - 1, rng), rng.randint(-2, 3) if sign == "^" else some(depth - 1, rng))


def value(tree: Tree, at: dict[str, Fraction]) -> Fraction:
    """ZeroDivisionError where it has none; 0^0 is none here."""
    sign, *parts = tree
    if sign in ("number", "letter"):
        return parts[0] if sign == "number" else at[parts[0]]
    one = value(parts[0], at)
    if sign == "^":
        if one == 0 and parts[1] <= 0:
            raise ZeroDivisionError
        return one ** parts[1]
    if len(parts) == 1:
        return -one
    other = value(parts[1], at)
    return one + other if sign == "+" else one - other if sign == "-" else one * other if sign == "*" \
        else one / other


def agree(a: Tree, b: Tree, rng: random.Random) -> bool | None:
    """Whether two trees have one value; None where they have values at too few points."""
    seen = 0
    for _ in range(12):
        at = {name: Fraction(rng.randint(-99, 99), rng.randint(1, 17)) for name in LETTERS}
        try:
            if value(a, at) != value(b, at):
                return False
        except ZeroDivisionError:
            continue
        seen += 1
    return True if seen >= 4 else None


def binds(tree: Tree) -> int:
    sign = tree[0]
    return 4 if sign in ("number", "letter") else {"^": 3, "/": 2, "*": 2}.get(sign, 0 if len(tree) == 2 else 1)


def write(tree: Tree, rng: random.Random) -> str:
    def part(one: Tree, level: int) -> str:
        text = write(one, rng)
        return text if binds(one) >= level and not (level and text[0] == "-") else rng.choice(("({})", r"\left({}\right)", "[{}]")).format(text)
    sign, *parts = tree
    if sign in ("number", "letter"):
        return str(parts[0])
    if len(parts) == 1:
        return "-" + part(parts[0], 2)
    if sign == "^":
        return f"{part(parts[0], 4)}^{{{parts[1]}}}"
    if sign == "/":
        return rf"\{rng.choice(('frac', 'dfrac'))}{{{write(parts[0], rng)}}}{{{write(parts[1], rng)}}}"
    if sign == "*":
        left, right = part(parts[0], 3), part(parts[1], 3)
        beside = left[-1] == ")" and right[0] in "(xyab"  # (x+1)(x-1), (x+1)y
        return left + ("" if beside and rng.random() < 0.5 else rng.choice((r" \cdot ", "*", r" \times "))) + right
    return part(parts[0], 0) + rng.choice((f" {sign} ", sign)) + part(parts[1], 2 if sign == "-" else 1)


def rewritten(tree: Tree, rng: random.Random) -> Tree:
    """The same by identities, at every place or not."""
    sign, roll, three = tree[0], rng.random(), ("number", Fraction(3))
    if sign in ("number", "letter"):
        return ("-", ("-", tree)) if roll < 0.1 else ("/", ("*", tree, three), three) if roll < 0.2 else \
            ("+", tree, ("-", ("letter", "x"), ("letter", "x"))) if roll < 0.25 else tree
    tree = (sign, *(rewritten(one, rng) if isinstance(one, tuple) else one for one in tree[1:]))
    if len(tree) == 2:
        return tree
    _, a, b = tree
    if sign == "*" and b[0] in "+-" and len(b) == 3 and roll < 0.5:
        return (b[0], ("*", a, b[1]), ("*", a, b[2]))
    if sign in "+*" and roll < 0.7:
        return (sign, b, a)
    if sign == "-" and roll < 0.6:
        return ("-", ("-", b, a)) if roll < 0.3 else ("+", a, ("-", b))
    if sign == "/" and roll < 0.5:
        return ("*", a, ("^", b, -1))
    if sign == "^" and roll < 0.6 and (b == 2 or b < 0):
        return ("*", a, a) if b == 2 else ("/", ("number", Fraction(1)), ("^", a, -b))
    return tree


def changed(tree: Tree, rng: random.Random) -> Tree:
    """Another expression, which may still have the same value."""
    places = [n for n, one in enumerate(tree) if isinstance(one, tuple)]
    if not places or rng.random() < 0.25:
        return rng.choice((("+", tree, ("number", Fraction(1))), ("-", tree), ("*", ("number", Fraction(2)), tree),
                           ("-", tree, ("letter", rng.choice(LETTERS)))))
    at = rng.choice(places)
    return (*tree[:at], changed(tree[at], rng), *tree[at + 1:])


def test_an_expression_is_equal_to_what_identities_make_of_it_and_to_no_other():
    rng = random.Random(0)
    found: Counter = Counter()
    for _ in range(COUNT):
        tree = some(rng.randint(1, 3), rng)
        for other in (rewritten(tree, rng), changed(tree, rng), rewritten(changed(tree, rng), rng)):
            equal = agree(tree, other, rng)
            if equal is None:
                continue
            one, two = write(tree, rng), write(other, rng)
            verdict = decide(one, two)
            assert verdict is equal or verdict is None, (one, two)
            found[equal, verdict] += 1
    assert found[True, True] > COUNT * 0.9 and found[False, False] > COUNT
    assert found[True, None] == 0, found
