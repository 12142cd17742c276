"""brief.py - any value as an error message can hold it: bounded, whatever a file or a caller gave.

A file may hold a list of a million numbers where a word belongs; the message about it should not.
Knows nothing about what it shows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

_TEXT, _VALUE, _NAMES = 100, 200, 20  # characters of a text and of a value; names of a list


class _Repr(reprlib.Repr):
    """repr that stops early: neither a long value nor a deep one is gone through as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, _TEXT, _TEXT, 40
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 8

    def repr_int(self, value: int, level: int) -> str:
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python writes no number of more than 4,300 digits
            return f"<a number of {value.bit_length():,} bits>"


_REPR = _Repr()


def brief(value: Any) -> str:
    """repr(value), or where that is long its beginning (and end, of a text)."""
    text = _REPR.repr(value)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}..."


def brief_text(text: str) -> str:
    """The text itself, or its beginning: for names that a message quotes without quotes."""
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def brief_names(names: Iterable[str]) -> str:
    """'a, b, c', or the first ones and how many there are besides; 'none' of none."""
    all_names = [brief_text(str(one)) for one in names]
    more = f" and {len(all_names) - _NAMES} more" if len(all_names) > _NAMES else ""
    return ", ".join(all_names[:_NAMES]) + more or "none"
