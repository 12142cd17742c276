r"""Property of the exact rules: one value in any two spellings is equal, and no other value is equal to it.

Values are made here: a number is a sum of q_n sqrt(n), q_n rational, n without a square factor, as a dict
{n: q_n}, in which equality can be seen (such roots are independent); intervals, tuples and sets are made of
numbers. Every spelling is written from the dict, so nothing of ours decides what is equal.
"""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from r1grpo.verifiers.answers import decide

Number = dict[int, Fraction]
SQUAREFREE = (2, 3, 5, 6, 7, 10, 15)
PAIRS = 300  # of each kind


# ---- numbers --------------------------------------------------------------------------------------


def rational(rng: random.Random) -> Number:
    q = Fraction(rng.randint(-40, 40), rng.choice((1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 20, 25)))
    return {1: q * rng.choice((1, 1, 1, 100, 1000))} if q else {}


def surd(rng: random.Random) -> Number:
    """One or two roots, a whole number beside them or not."""
    made = {n: Fraction(rng.choice((-7, -3, -2, -1, 1, 2, 3, 4)), rng.choice((1, 1, 2, 3, 4)))
            for n in rng.sample(SQUAREFREE, rng.choice((1, 1, 2)))}
    whole = rng.randint(-5, 5)
    return {**made, **({1: Fraction(whole)} if whole else {})}


def number(rng: random.Random) -> Number:
    return rational(rng) if rng.random() < 0.6 else surd(rng)


def plus(a: Number, b: Number) -> Number:
    both = {n: a.get(n, Fraction(0)) + b.get(n, Fraction(0)) for n in {*a, *b}}
    return {n: q for n, q in both.items() if q}


def times(a: Number, q: Fraction) -> Number:
    return {n: c * q for n, c in a.items()}


def size(a: Number) -> float:
    return sum(float(q) * n ** 0.5 for n, q in a.items())


def other_number(a: Number, rng: random.Random) -> Number:
    """A number that is not a, near it in one way or another."""
    step = {rng.choice((1, 1, *SQUAREFREE)): Fraction(rng.choice((-1, 1)), rng.choice((1, 2, 10, 97, 10 ** 9)))}
    made = rng.choice((plus(a, step), times(a, Fraction(-1)), times(a, Fraction(10)), times(a, Fraction(1, 2)),
                       {n: q for n, q in a.items() if n == 1}, {n: abs(q) for n, q in a.items()}))
    return made if made != a else plus(a, step)


# ---- their spellings ------------------------------------------------------------------------------


def write_fraction(q: Fraction, rng: random.Random) -> str:
    """A fraction of 0 or more."""
    k = rng.choice((1, 1, 1, 2, 3, 10))
    top, bottom = q.numerator * k, q.denominator * k
    ways = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac {{{top}}} {{{bottom}}}",
            rf"\left(\frac{{{top}}}{{{bottom}}}\right)"]
    if top < 10 and bottom < 10:
        ways.append(rf"\frac{top}{bottom}")
    if q.denominator == 1:
        ways += [str(q), str(q), f"{q}.0", f"{{{q}}}", rf"{q}\,"]
        if q >= 1000:
            ways += [f"{int(q):,}".replace(",", comma) for comma in (r",\!", "{,}", r"\,", " ")]
    elif q > 1:
        whole, rest = divmod(q, 1)
        ways += [rf"{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}",
                 f"{whole} {rest.numerator}/{rest.denominator}",
                 rf"{whole} + \frac{{{rest.numerator}}}{{{rest.denominator}}}"]
    if (q * 10 ** 6).denominator == 1:
        ways.append(f"{int(q)}." + f"{int(q % 1 * 10 ** 6):06}".rstrip("0").ljust(1, "0"))
    elif (q * 9).denominator == 1:
        ways.append(rf"{int(q)}.\overline{{{int(q % 1 * 9)}}}")
    return rng.choice(ways)


def write_root(n: int, q: Fraction, rng: random.Random) -> str:
    """q sqrt(n), q above 0."""
    top, bottom, k = q.numerator, q.denominator, rng.choice((2, 3, 4))
    lead = "" if top == 1 else str(top)
    over = "" if bottom == 1 else f"/{bottom}"
    split = next((rf"\sqrt{{{d}}}\sqrt{{{n // d}}}" for d in (2, 3, 5) if n % d == 0 and n > d),
                 rf"\sqrt{{{n}}}")
    ways = [rf"\frac{{{lead}\sqrt{{{n}}}}}{{{bottom}}}", rf"{lead}\sqrt{{{n}}}{over}",
            rf"\frac{{{top}}}{{{bottom}}}\sqrt{{{n}}}",
            rf"\frac{{\sqrt{{{top * top * n}}}}}{{{bottom}}}", rf"\frac{{{top * n}}}{{{bottom}\sqrt{{{n}}}}}",
            rf"\frac{{{top}{split}}}{{{bottom}}}", rf"\frac{{\sqrt{{{k * k * n}}} \cdot {top}}}{{{k * bottom}}}",
            rf"\sqrt{{\frac{{{top * top * n}}}{{{bottom * bottom}}}}}", rf"\frac{{{top} \cdot {n}^{{1/2}}}}{{{bottom}}}"]
    if bottom == 1:
        ways += [rf"{lead}\sqrt{{{n}}}", f"{lead}sqrt({n})" if lead == "" else rf"{lead} \cdot \sqrt {{{n}}}"]
    if n < 10:
        ways.append(rf"\tfrac{{{lead}\sqrt{n}}}{{{bottom}}}")
    return rng.choice(ways)


def write(a: Number, rng: random.Random) -> str:
    """A number: its terms in any order, or over one denominator."""
    if not a:
        return rng.choice(("0", "0.0", "-0", r"\frac{0}{3}", "1 - 1", r"\sqrt{2} - \sqrt{2}"))
    if len(a) > 1 and rng.random() < 0.3:
        bottom = rng.choice((2, 3, 12))
        return rf"\frac{{{write(times(a, Fraction(bottom)), rng)}}}{{{bottom}}}"
    text = ""
    for n, q in rng.sample(sorted(a.items()), len(a)):
        term = write_fraction(abs(q), rng) if n == 1 else write_root(n, abs(q), rng)
        if q < 0 and "+" in term:
            term = f"({term})"
        text += (" - " if q < 0 else " + ") + term
    text = text.removeprefix(" + ")
    return text.replace(" - ", "-", 1) if text.startswith(" - ") else text


def dress(text: str, rng: random.Random) -> str:
    return rng.choice((text, text, f"${text}$", f" {text} ", f"{text}.", rf"\( {text} \)"))


@pytest.mark.parametrize("make", [rational, surd])
def test_a_number_is_itself_in_every_spelling_and_no_other(make):
    rng = random.Random(make.__name__)
    for _ in range(PAIRS):
        a = make(rng)
        b = other_number(a, rng)
        one, two, off = (dress(write(each, rng), rng) for each in (a, a, b))
        named = dress(f"x = {write(a, rng)}", rng)
        assert decide(one, two) is decide(named, one) is True, (one, two, named)
        assert not decide(one, off) and not decide(off, one), (one, off)


# ---- what is made of numbers ----------------------------------------------------------------------


def distinct(count: int, rng: random.Random) -> list[Number]:
    """Numbers in rising order, no two as near as a float cannot tell."""
    made: list[Number] = []
    while len(made) < count:
        one = number(rng)
        if all(abs(size(one) - size(other)) > 1e-6 for other in made):
            made.append(one)
    return sorted(made, key=size)


def write_all(numbers: list[Number], rng: random.Random) -> list[str]:
    """In brackets a comma stands between numbers: no number is written with one."""
    return [write(one, rng).replace(r",\!", "").replace("{,}", "") for one in numbers]


def write_interval(ends: list[Number], closed: tuple[bool, bool], rng: random.Random) -> str:
    low, high = write_all(ends, rng)
    up = [rng.choice((r"\leq", "<=")) if one else "<" for one in closed]
    down = [rng.choice((r"\ge", ">=")) if one else ">" for one in closed]
    way = rng.randrange(4)
    if way < 2:
        return f"{low} {up[0]} x {up[1]} {high}" if way else f"{high} {down[1]} x {down[0]} {low}"
    text = rf"\left{'[' if closed[0] else '('} {low}, {high} \right{']' if closed[1] else ')'}"
    return rf"x \in {text}" if way == 2 else text


def test_an_interval_is_itself_in_every_spelling_and_no_other():
    rng = random.Random("intervals")
    for _ in range(PAIRS):
        ends, closed = distinct(2, rng), (rng.random() < 0.5, rng.random() < 0.5)
        one, two = (dress(write_interval(ends, closed, rng), rng) for _ in range(2))
        assert decide(one, two) is True, (one, two)
        side = rng.randrange(2)
        if rng.random() < 0.5:
            off = write_interval(ends, (closed[0] ^ (side == 0), closed[1] ^ (side == 1)), rng)
        else:
            moved = [other_number(end, rng) if n == side else end for n, end in enumerate(ends)]
            off = write_interval(moved, closed, rng)
        assert not decide(one, off) and not decide(off, one), (one, off)


def write_set(numbers: list[Number], rng: random.Random) -> str:
    texts = write_all(rng.sample(numbers, len(numbers)), rng)
    return rng.choice((
        ", ".join(texts), rf"\{{{', '.join(texts)}\}}", rf"\left\{{ {' , '.join(texts)} \right\}}",
        "; ".join(texts), ", ".join(texts[:-1]) + rf" \text{{ and }} {texts[-1]}", " or ".join(texts),
        ", ".join(f"x = {one}" for one in texts), rf"x \in \{{{', '.join(texts)}\}}"))


def test_a_set_is_itself_in_every_spelling_and_order_and_no_other():
    rng = random.Random("sets")
    for _ in range(PAIRS):
        numbers = distinct(rng.choice((2, 2, 3, 4)), rng)
        one, two = (dress(write_set(numbers, rng), rng) for _ in range(2))
        assert decide(one, two) is True, (one, two)
        at = rng.randrange(len(numbers))
        changed = [other_number(each, rng) if n == at else each for n, each in enumerate(numbers)]
        fewer, more = numbers[:at] + numbers[at + 1:], numbers + [{1: Fraction(7919)}]
        wrong = [write_set(more, rng), ", ".join(write_all(fewer, rng))]
        if any(one not in numbers for one in changed):
            wrong.append(write_set(changed, rng))
        for off in wrong:
            assert not decide(one, off) and not decide(off, one), (one, off)


def test_a_tuple_is_itself_in_every_spelling_and_in_no_other_order():
    rng = random.Random("tuples")
    for _ in range(PAIRS):
        numbers = distinct(rng.choice((2, 2, 3)), rng)
        one, two = (rng.choice(("({})", r"\left( {} \right)", "(x, y) = ({})")).format(
            rng.choice((", ", "; ", " , ")).join(write_all(numbers, rng))) for _ in range(2))
        assert decide(one, two) is True, (one, two)
        texts = write_all(numbers, rng)
        for off in ("(" + ", ".join(reversed(texts)) + ")", "[" + ", ".join(texts) + "]", ", ".join(texts),
                    r"\{" + ", ".join(texts) + r"\}", "(" + ", ".join([*texts, "1"]) + ")"):
            assert not decide(one, off) and not decide(off, one), (one, off)
