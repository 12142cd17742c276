r"""values.py - an answer, spelled as latex.py spells -> what it says, and whether two say the same.

    answer   ::= item (("," | ";" | "and" | "or") item)*           several: a list, in any order
    item     ::= name ("=" | "\in") item | side ("=" | "<" | "\leq" | ...) side ...
               | group ("\cup" group)+ | group | matrix | item (":" item)+ | numeral "_" base
               | words | scalar                                    \pm in a scalar: a list of two
    group    ::= "(" answer ")" | "[" answer "]" | "(" answer "]" | ... | "\{" answer "\}"
    matrix   ::= \begin{pmatrix} scalar & ... \\ ... \end{pmatrix}      bmatrix, array too

Two answers are the same, different, or None: cannot be told.
- scalars by value (exact.py) and unit (units.py); 50% is 50 with the unit left out, and 1/2
- lists as they are counted, sets whatever the count; a list of one is that one, so is a set
- tuples and intervals in order and by their brackets: (1, 2) is neither 1, 2 nor [1, 2)
- x = 3 is 3, and not y = 3; an equation with letters on both sides is equal to its multiples
- 1 < x \leq 2 is (1, 2];  a numeral of a base is equal to the same digits of that base alone
- words as they are, whatever the case

Nothing is evaluated but by these rules. Knows nothing about completions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from .exact import ONE, Undecided, Value, add, divide, equal, letters, multiply, number, rational, symbol
from .expressions import PLAIN, evaluate
from .latex import spelling
from .units import same_unit, split_unit

MAX_ITEMS = 40
MAX_LENGTH = 1000  # characters
MAX_DEPTH = 24     # of brackets in one another


class Scalar(NamedTuple):
    """A value and the words of its unit."""

    value: Value
    unit: frozenset[str]


class Group(NamedTuple):
    """list, set, union, ratio, matrix with its shape, either (readings of one text), or two brackets."""

    kind: str
    items: tuple


class Named(NamedTuple):
    """name = answer; difference: left minus right, where both are scalars."""

    name: str
    answer: object
    difference: Value | None


class Relation(NamedTuple):
    """difference (left minus right) "=", "<", "<=" or "!=" 0."""

    sign: str
    difference: Value


class Text(NamedTuple):
    """Words, or a numeral with its base; nothing: a contradiction, equal to nothing."""

    kind: str
    text: str


Answer = Scalar | Group | Named | Relation | Text

_RELATION = re.compile(r"\\(?:leq|geq|neq|in|approx)(?![A-Za-z])|[=<>]")
_FLIP = {">": "<", "\\geq": "\\leq"}
_NAME = re.compile(r"\|[A-Z]{2}\||(?:\\(?:angle|overline|overrightarrow|triangle|text|mathcal)\b\{?)?"
                   r"\\?[A-Za-z][A-Za-z ]*\}?(?:_\{?\w{1,9}\}?)?'{0,2}(?:\([A-Za-z0-9,]{1,9}\))?")
_TUPLE_OF_NAMES = re.compile(r"\((?:[A-Za-z](?:_\{?\w{1,3}\}?)?,?){2,9}\)")
_NUMERAL = re.compile(r"(-?)([0-9][0-9A-Z]*|[A-Z]+[0-9][0-9A-Z]*)_(?:\{(\d{1,2})\}|(\d{1,2}))", re.ASCII)
_WORDS = re.compile(r"\\text\{([^{}]*)\}|[A-Za-z]{2,}(?: [A-Za-z0-9]+)*")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}", re.S)
_AND = re.compile(r"\\text\{(?:and|or)\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.?)", re.S)
_ONE_WORD = {"no", "yes"}  # words so short that they could be a product of letters


@lru_cache(maxsize=4096)
def read(text: str) -> Answer:
    """What an answer says. Undecided where these rules do not reach."""
    text = spelling(text)
    if len(text) > MAX_LENGTH or max(_depths(text), default=0) > MAX_DEPTH:
        raise Undecided("too long an answer, or too many brackets in one another")
    return _answer(text)


def _answer(text: str) -> Answer:
    parts = [part for part in _split(text, ",;", _AND) if part.strip()]
    if not parts:
        raise Undecided("nothing but separators")
    if len(parts) > MAX_ITEMS:
        raise Undecided("too many items")
    items: list[Answer] = []
    for part in parts:
        item = _item(part)
        items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    return items[0] if len(items) == 1 else Group("list", tuple(items))


def _item(text: str) -> Answer:
    text = text.strip()
    words = _WORDS.fullmatch(text)
    if words and (len(text) > 2 or text in _ONE_WORD) and text.partition(" ")[0] not in PLAIN:
        if words[1] is not None or not text.isupper() or " " in text:
            return Text("words", (words[1] or text).casefold().strip(" ."))
    if match := _NUMERAL.fullmatch(text):
        return _numeral(*match.groups())
    sides = _split(text, "", _RELATION)
    if len(sides) > 1:
        return _relation([one.strip() for one in sides], _signs(text))
    for sign, kind in (("\\cup", "union"), (":", "ratio")):
        parts = _split(text, "", re.compile(re.escape(sign) + r"(?![A-Za-z])"))
        if len(parts) > 1:
            return Group(kind, tuple(_item(part) for part in parts))
    if (inside := _inside(text)) is not None:
        return _group(text, *inside)
    if match := _MATRIX.fullmatch(text):
        rows = [[_item(one) for one in _split(row, "&")]
                for row in match[2].strip().removesuffix("\\\\").split("\\\\")]
        return Group(f"matrix {[len(row) for row in rows]}", tuple(one for row in rows for one in row))
    return _scalar(text)


def _scalar(text: str) -> Answer:
    body, unit, factor = split_unit(text)
    readings = [_valued(body, unit, factor)]
    if text.endswith((" m", " g", " s", " h", " L", " N")) and text[-3:-2].isdigit():
        readings.append(_valued(text[:-2], frozenset((text[-1].lower(),)), 1))
    return readings[0] if len(readings) == 1 else Group("either", tuple(readings))


def _valued(body: str, unit: frozenset[str], factor: int) -> Answer:
    both = [evaluate(body, sign) for sign in ((1, -1) if "\\pm" in body or "\\mp" in body else (1,))]
    scalars = tuple(Scalar(multiply(number(factor), one) if factor > 1 else one, unit) for one in both)
    return scalars[0] if len(scalars) == 1 else Group("list", scalars)


def _numeral(sign: str, digits: str, *base: str) -> Answer:
    b = int(next(one for one in base if one))
    if not 2 <= b <= 36 or any(int(one, 36) >= b for one in digits):
        raise Undecided("digits that the base has not")
    if b == 10:
        return Scalar(evaluate(sign + digits), frozenset())
    return Text("numeral", f"{sign}{digits.lstrip('0') or '0'}_{b}")


def _group(text: str, left: str, inside: str, right: str) -> Answer:
    if left == "\\{":
        found = _answer(inside) if inside.strip() else Group("list", ())
        items = found.items if isinstance(found, Group) and found.kind == "list" else (found,)
        return items[0] if len(items) == 1 else Group("set", items)
    parts = _split(inside, ",;")
    if len(parts) > MAX_ITEMS:
        raise Undecided("too many items")
    if len(parts) == 1:
        return _item(inside) if left + right in ("()", "[]") else _scalar(text)
    return Group(left + right, tuple(_item(part) for part in parts))


# ---- equations and inequalities -------------------------------------------------------------------


def _relation(sides: list[str], signs: list[str]) -> Answer:
    if "\\approx" in signs:  # what stands before it is exact
        at = signs.index("\\approx")
        exact = sides[at] if sides[at] and not _is_name(sides[at]) else sides[at + 1]
        return _item(exact) if at == 0 else _relation([*sides[:at], exact][:at + 1], signs[:at])
    if "\\in" in signs:
        if signs != ["\\in"]:
            raise Undecided("a chain with \\in")
        return Named(sides[0], _item(sides[1]), None)
    if set(signs) == {"="}:
        return _equation(sides)
    return _inequality(sides, signs)


def _equation(sides: list[str]) -> Answer:
    if _is_name(sides[0]):
        last = _chain(sides[1:])
        difference = None
        if isinstance(last, Scalar) and not last.unit:
            try:
                difference = add(evaluate(sides[0]), last.value, -1)
            except Undecided:
                pass
        return Named(sides[0].replace(" ", ""), last, difference)
    if len(sides) == 2:
        left, right = _item(sides[0]), _item(sides[1])
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            difference = add(left.value, right.value, -1)
            if letters(difference):
                return Relation("=", difference)
    return _chain(sides)


def _chain(sides: list[str]) -> Answer:
    """Sides that are said to be equal, and must be: any of them."""
    answers = [_item(side) for side in sides]
    for one in answers[1:]:
        found = same(answers[0], one)
        if found is None:
            raise Undecided("sides of an equation that may be unequal")
        if not found:
            return Text("nothing", "")
    return answers[-1] if len(answers) == 1 else Group("either", (answers[0], answers[-1]))


def _inequality(sides: list[str], signs: list[str]) -> Answer:
    if set(signs) <= set(_FLIP):
        sides, signs = sides[::-1], [_FLIP[sign] for sign in signs[::-1]]
    if not set(signs) <= {"<", "\\leq", "\\neq"} or "\\neq" in signs and len(signs) > 1:
        raise Undecided("a mixed chain")
    named = [n for n, side in enumerate(sides) if _is_name(side)]
    if len(sides) <= 3 and len(named) == 1 and "\\neq" not in signs:
        at = named[0]
        if len(sides) == 2 or at == 1:
            low = _item(sides[at - 1]) if at else Scalar(_infinity(-1), frozenset())
            high = _item(sides[at + 1]) if at + 1 < len(sides) else Scalar(_infinity(1), frozenset())
            left = "[" if at and signs[at - 1] == "\\leq" else "("
            right = "]" if at + 1 < len(sides) and signs[at] == "\\leq" else ")"
            return Named(sides[at], Group(left + right, (low, high)), None)
    if len(sides) == 2:
        difference = add(evaluate(sides[0]), evaluate(sides[1]), -1)
        return _solved(difference, signs[0]) or Relation(signs[0], difference)
    items = tuple(Scalar(evaluate(side), frozenset()) for side in sides)
    return Group(" ".join(("chain", *signs)), items)


def _solved(difference: Value, sign: str) -> Answer | None:
    """The interval of the one letter of a linear inequality; None where it is none."""
    places = {m: c for m, c in difference.num.items() if letters(Value({m: c}, ONE))}
    [name, *more] = letters(difference) or [""]
    if difference.den != ONE or more or sign == "\\neq" or list(places) != [(((name, ()), 1),)]:
        return None
    [c] = places.values()
    x = symbol(name)
    bound = Scalar(divide(add(multiply(number(c), x), difference, -1), number(c)), frozenset())
    left, right = ("(", ")") if sign == "<" else ("[", "]")
    ends = (Scalar(_infinity(-1), frozenset()), bound, Scalar(_infinity(1), frozenset()))
    return Named(name, Group("(" + right, ends[:2]) if c > 0 else Group(left + ")", ends[1:]), None)


def _infinity(sign: int) -> Value:
    return multiply(number(sign), evaluate("\\infty"))


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text) or _TUPLE_OF_NAMES.fullmatch(text)) and text not in ("\\pi", "i", "e") \
        and not text.startswith(("\\infty", "\\frac", "\\sqrt"))


# ---- whether two say the same ---------------------------------------------------------------------


def same(a: Answer, b: Answer) -> bool | None:
    """Whether two answers are the same; None where it cannot be told."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Group) and one.kind == "either":
            return _any(same(reading, other) for reading in one.items)
    if isinstance(a, Named) and isinstance(b, Named):
        if a.name == b.name:
            return same(a.answer, b.answer)
        return bool(a.difference and b.difference and _proportional(a.difference, b.difference, any_sign=True))
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Named):
            if isinstance(other, Relation):
                return other.sign == "=" and one.difference is not None \
                    and _proportional(one.difference, other.difference, any_sign=True)
            return same(one.answer, other)
    if type(a) is not type(b):
        return False
    if isinstance(a, Scalar):
        return _same_scalar(a, b)
    if isinstance(a, Text):
        return a == b and a.kind != "nothing"
    if isinstance(a, Relation):
        return a.sign == b.sign and _proportional(a.difference, b.difference, a.sign in ("=", "\\neq"))
    if {a.kind, b.kind} <= {"list", "set"}:
        return _same_items(a.items, b.items, counted=a.kind == b.kind == "list")
    if a.kind != b.kind or len(a.items) != len(b.items):
        return False
    if a.kind == "union":
        return _same_items(a.items, b.items, counted=True)
    return _all(same(one, other) for one, other in zip(a.items, b.items))


def _same_scalar(a: Scalar, b: Scalar) -> bool | None:
    percent = frozenset(("percent",))
    for one, other in ((a, b), (b, a)):
        if one.unit == percent and not other.unit:
            return _any((equal(one.value, other.value),
                         equal(divide(one.value, number(100)), other.value)))
    if not same_unit(a.unit, b.unit):
        return False
    return equal(a.value, b.value)


def _same_items(a: tuple, b: tuple, counted: bool) -> bool | None:
    """Every item has its like on the other side; counted: each one of its own."""
    if counted and len(a) != len(b):
        return False
    found: list[bool | None] = []
    for one, other in ((a, b), (b, a)):
        free = list(other)
        for item in one:
            verdicts = [same(item, like) for like in free]
            found.append(_any(verdicts))
            if counted and True in verdicts:
                del free[verdicts.index(True)]
        if counted:
            break
    return _all(found)


def _proportional(a: Value, b: Value, any_sign: bool) -> bool:
    """a = c b for a rational c, above 0 or, any_sign, not 0."""
    if a.den != ONE or b.den != ONE or a.num.keys() != b.num.keys() or not a.num:
        return False
    first = next(iter(a.num))
    c = divide(number(a.num[first]), number(b.num[first]))
    return (any_sign or rational(c) > 0) and equal(a, multiply(c, b)) is True


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return True if True in found else None if None in found else False


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True


# ---- places in a text -----------------------------------------------------------------------------


def _depths(text: str) -> list[int]:
    """How many brackets, of any kind, are open before each character; -1 inside a command."""
    depths, depth, at = [], 0, 0
    while at < len(text):
        step = 1
        if text[at] == "\\":
            command = _COMMAND.match(text, at)[0]
            step = len(command)
            depths += [depth] + [-1] * (step - 1)
            depth += (command in ("\\begin", "\\{")) - (command in ("\\end", "\\}"))
        else:
            depths.append(depth)
            depth += (text[at] in "([{") - (text[at] in ")]}")
        at += step
    return depths


def _cuts(text: str, characters: str, pattern: re.Pattern[str] | None) -> Iterator[tuple[int, int]]:
    depths = _depths(text)
    for n, one in enumerate(text):
        if one in characters and depths[n] == 0:
            yield n, n + 1
    for match in pattern.finditer(text) if pattern else ():
        if depths[match.start()] == 0:
            yield match.span()


def _split(text: str, characters: str, pattern: re.Pattern[str] | None = None) -> list[str]:
    """The text between separators that stand in no bracket."""
    parts, start = [], 0
    for left, right in sorted(_cuts(text, characters, pattern)):
        parts.append(text[start:left])
        start = right
    return [*parts, text[start:]]


def _signs(text: str) -> list[str]:
    depths = _depths(text)
    return [match[0] for match in _RELATION.finditer(text) if depths[match.start()] == 0]


def _inside(text: str) -> tuple[str, str, str] | None:
    """(left bracket, what it holds, right bracket) where one pair encloses the whole text."""
    left = "\\{" if text.startswith("\\{") else text[:1]
    right = "\\}" if text.endswith("\\}") else text[-1:]
    if left == "{" and right == "}" and "," in text:  # a set without its backslashes
        return ("\\{", text[1:-1], "\\}") if min(_depths(text)[1:-1]) >= 1 else None
    if left not in ("(", "[", "\\{") or right not in (")", "]", "\\}") or len(text) <= len(left + right):
        return ("\\{", "", "\\}") if text in ("\\{\\}", "\\emptyset") else None
    if (left == "\\{") != (right == "\\}"):
        return None
    depths = _depths(text)
    inner = [depth for depth in depths[len(left):len(text) - len(right)] if depth >= 0]
    return (left, text[len(left):len(text) - len(right)], right) if min(inner) >= 1 else None
