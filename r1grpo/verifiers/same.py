r"""same.py - whether two answers (values.py) say the same: True, False, or None, which is: cannot be told.

- scalars by value (exact.py) and unit (units.py); 50% is 50 with the unit left out, and 1/2
- lists as they are counted, sets whatever the count; a list of one is that one, so is a set
- 2:4 is 1:2 and 1/2, but 6:30 is not 4:20: two that look like times are equal as they stand
- tuples and intervals in order and by their brackets: (1, 2) is neither 1, 2 nor [1, 2)
- x = 3 is 3, and not y = 3; an equation with letters on both sides is equal to its multiples
- words as they are, whatever the case; a numeral of a base is equal to the same digits of that base alone
"""

from __future__ import annotations

from collections.abc import Iterable

from .exact import ONE, Value, divide, equal, multiply, number, rational
from .kinds import Answer, Group, Named, Relation, Scalar, Text
from .units import same_unit


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
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Group) and isinstance(other, Scalar):
            shares = _shares(one)
            return len(shares) == 2 and not other.unit and equal(shares[0], other.value)
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
    if len(a.items) != len(b.items):
        return False
    if "ratio" in (a.kind, b.kind) and (mine := _shares(a)) and (theirs := _shares(b)):
        return _all(map(equal, mine, theirs))
    if a.kind != b.kind:
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


def _shares(group: Group) -> list[Value]:
    """Of a ratio of bare numbers, none of them 0, each by the last; nothing of anything else. What looks
    like a time may be one."""
    items = group.items if group.kind in ("ratio", "clock") else ()
    if not all(isinstance(one, Scalar) and not one.unit and one.value.num for one in items):
        return []
    return [divide(one.value, items[-1].value) for one in items]


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
