"""kinds.py - what an answer can say (values.py reads it, same.py compares it)."""

from __future__ import annotations

from typing import NamedTuple

from .exact import Value


class Scalar(NamedTuple):
    """A value and the words of its unit."""

    value: Value
    unit: frozenset[str]


class Group(NamedTuple):
    """list, set, union, ratio, clock (a ratio that looks like hours : minutes), matrix with its shape, either
    (readings of one text), or two brackets."""

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
