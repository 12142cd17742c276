r"""values.py - an answer, spelled as latex.py spells -> what it says.

    answer   ::= item (("," | ";" | "and" | "or") item)*           several: a list, in any order
    item     ::= name ("=" | "\in") item | side ("=" | "<" | "\leq" | ...) side ...
               | group ("\cup" group)+ | group | matrix | item (":" item)+ | numeral "_" base
               | words | scalar                                    \pm in a scalar: a list of two
    group    ::= "(" answer ")" | "[" answer "]" | "(" answer "]" | ... | "\{" answer "\}"
    matrix   ::= \begin{pmatrix} scalar & ... \\ ... \end{pmatrix}      bmatrix, array too

x = 3 says 3 and its name, 1 < x \leq 2 and other linear inequalities of one letter are intervals, sides
that are said to be equal must be (same.py). What can be read in two ways is both, or Undecided.
Nothing is evaluated but by these rules. Knows nothing about completions.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .exact import (ONE, Ambiguous, TooLarge, Undecided, Value, add, approximate, divide, letters, multiply,
                    number, symbol)
from .expressions import FUNCTIONS, GREEK, PLAIN, evaluate
from .kinds import Answer, Group, Named, Relation, Scalar, Text
from .latex import spelling
from .places import depths_of, inside, matches, split
from .same import same
from .units import split_unit

MAX_ITEMS = 40
MAX_LENGTH = 1000  # characters
MAX_DEPTH = 24     # of brackets in one another

_RELATION = re.compile(r"\\(?:leq|geq|neq|in|approx)(?![A-Za-z])|[=<>]")
_FLIP = {">": "<", "\\geq": "\\leq"}
_SUB = r"(?:_(?:\{[\w ]{1,9}\}|\w))?'{0,2}"
_SEGMENT = r"\{(?:[A-Z]{2}|[A-Z]_(?:\w|\{\w{1,9}\}))\}"
_NAME = re.compile(
    rf"\|[A-Z]{{2}}\||\\frac{_SEGMENT}{_SEGMENT}|[fgh]\^\{{-1\}}\([a-z]\)|"
    rf"(?:m?\\(?:angle|triangle) ?[A-Z]{{1,3}}|\\(?:overline|overrightarrow)\{{[A-Z]{{1,3}}\}}|"
    rf"\\(?P<greek>[A-Za-z]+)|[A-Z]{{2,}}|[A-Za-z]|(?P<words>[A-Za-z]{{3,}}(?: [A-Za-z]+){{0,5}}|"
    rf"\\text\{{[A-Za-z ]+\}})){_SUB}(?:\([A-Za-z0-9,]{{1,9}}\))?")
_NO_NAME = {*FUNCTIONS, "sqrt", "not", "no", "never", "except", "than", "or", "and", "cannot", "without"} \
    - {"max", "min", "gcd", "lcm"}
_TUPLE_OF_NAMES = re.compile(r"\((?:[A-Za-z](?:_\{?\w{1,3}\}?)?,?){2,9}\)")
_NUMERAL = re.compile(r"(-?)([0-9][0-9A-Z]*|[A-Z]+[0-9][0-9A-Z]*)_(?:\{(\d{1,2})\}|(\d{1,2}))", re.ASCII)
_WORDS = re.compile(r"\\text\{([^{}]*)\}|[A-Za-z]{2,}(?: [A-Za-z0-9]+)*")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{\1\}", re.S)
_AND = re.compile(r"\\text\{(?:and|or)\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_NEGATION = re.compile(r"\\(?:not|neg|lnot|notin|nsim|sim)(?![A-Za-z])")
_CLOCK_FACE = re.compile(r"\d{1,2}(?::[0-5]\d){1,2}(?!\d)", re.ASCII)
_CLOCK = re.compile(r"(:\d\d) ?(?:\\text\{)?([ap])\.?m\.?\}?$", re.ASCII | re.I)  # 00 am is no product
_ONE_WORD = {"no", "yes"}  # words so short that they could be a product of letters


@lru_cache(maxsize=4096)
def read(text: str) -> Answer:
    """What an answer says. Undecided where these rules do not reach."""
    text = spelling(text)
    if _NEGATION.search(text):
        raise Ambiguous("a negation")
    if len(text) > MAX_LENGTH or max(depths_of(text), default=0) > MAX_DEPTH:
        raise TooLarge("too long an answer, or too many brackets in one another")
    return _answer(text)


def _answer(text: str) -> Answer:
    parts = split(text, ",;", _AND)
    if not parts[0].strip() or not parts[-1].strip():
        raise Undecided("a list that begins or ends with nothing")
    parts = [part for part in parts if part.strip()]
    if len(parts) > MAX_ITEMS:
        raise TooLarge("too many items")
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
    sides = split(text, "", _RELATION)
    if len(sides) > 1:
        return _relation([one.strip() for one in sides], matches(text, _RELATION))
    text = _CLOCK.sub(r"\1\\text{\2.m}", text)
    for sign, kind in (("\\cup", "union"), (":", "ratio")):
        parts = split(text, "", re.compile(re.escape(sign) + r"(?![A-Za-z])"))
        if len(parts) > 1:
            kind = "clock" if kind == "ratio" and _CLOCK_FACE.match(text) else kind
            return Group(kind, tuple(_item(part) for part in parts))
    if (found := inside(text)) is not None:
        return _group(text, *found)
    if match := _MATRIX.fullmatch(text):
        rows = [[_item(one) for one in split(row, "&")]
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
        raise Ambiguous("digits that the base has not")
    if b == 10:
        return Scalar(evaluate(sign + digits), frozenset())
    return Text("numeral", f"{sign}{digits.lstrip('0') or '0'}_{b}")


def _group(text: str, left: str, within: str, right: str) -> Answer:
    if left == "\\{":
        found = _answer(within) if within.strip() else Group("list", ())
        items = found.items if isinstance(found, Group) and found.kind == "list" else (found,)
        return items[0] if len(items) == 1 else Group("set", items)
    parts = split(within, ",;")
    if len(parts) > MAX_ITEMS:
        raise TooLarge("too many items")
    if len(parts) == 1:
        return _item(within) if left + right in ("()", "[]") else _scalar(text)
    return Group(left + right, tuple(_item(part) for part in parts))


# ---- equations and inequalities -------------------------------------------------------------------


def _relation(sides: list[str], signs: list[str]) -> Answer:
    if "\\approx" in signs:
        return _about(sides, signs)
    if "\\in" in signs:
        if signs != ["\\in"] or not _is_name(sides[0]):
            raise Undecided("what is in a set is no name, or a chain with \\in")
        return Named(sides[0], _item(sides[1]), None)
    if set(signs) == {"="}:
        return _equation(sides)
    return _inequality(sides, signs)


def _about(sides: list[str], signs: list[str]) -> Answer:
    r"""exact \approx decimal, with names before it: the exact side, if the decimal is within 1 % of it."""
    if signs[-1] != "\\approx" or "\\approx" in signs[:-1]:
        raise Ambiguous("more than one \\approx")
    *left, last = sides
    if len(left) == 1:
        if not left[0] or _is_name(left[0]):
            return _item(last)
        exact = _item(left[0])
    else:
        exact = _relation(left, signs[:-1])
    values = [one.answer if isinstance(one, Named) else one for one in (exact, _item(last))]
    numbers = [approximate(one.value) if isinstance(one, Scalar) else None for one in values]
    if None in numbers:
        raise Undecided("\\approx between what are no numbers")
    return exact if abs(numbers[0] - numbers[1]) <= 0.01 * abs(numbers[0]) else Text("nothing", "")


def _equation(sides: list[str]) -> Answer:
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides = sides[::-1]
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
    """Whether a text is what a value is called: a letter, a segment, f(x), (x, y), AB : CD, the quotient of
    two segments or areas, words without a no."""
    if _TUPLE_OF_NAMES.fullmatch(text):
        return True
    if ":" in text:
        return all(_is_name(one.strip()) for one in text.split(":"))
    match = _NAME.fullmatch(text)
    if not match or text in ("i", "e", "\\pi", "\\infty", "\\emptyset"):
        return False
    if match["words"]:
        return not _NO_NAME & set(re.findall(r"[a-z]+", match["words"].lower()))
    return match["greek"] is None or match["greek"] in GREEK
