r"""places.py - where things stand in an answer: brackets, and what is outside of them.

Brackets are ( [ { \{ and \begin, of any kind: [0, 1) is a pair. Knows nothing about what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.?)", re.S)


def depths_of(text: str) -> list[int]:
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
    depths = depths_of(text)
    for n, one in enumerate(text):
        if one in characters and depths[n] == 0:
            yield n, n + 1
    for match in pattern.finditer(text) if pattern else ():
        if depths[match.start()] == 0:
            yield match.span()


def split(text: str, characters: str, pattern: re.Pattern[str] | None = None) -> list[str]:
    """The text between separators that stand in no bracket."""
    parts, start = [], 0
    for left, right in sorted(_cuts(text, characters, pattern)):
        parts.append(text[start:left])
        start = right
    return [*parts, text[start:]]


def matches(text: str, pattern: re.Pattern[str]) -> list[str]:
    """What a pattern finds in no bracket."""
    depths = depths_of(text)
    return [match[0] for match in pattern.finditer(text) if depths[match.start()] == 0]


def inside(text: str) -> tuple[str, str, str] | None:
    """(left bracket, what it holds, right bracket) where one pair encloses the whole text."""
    if text in ("\\{\\}", "\\emptyset"):
        return "\\{", "", "\\}"
    left = "\\{" if text.startswith("\\{") else text[:1]
    right = "\\}" if text.endswith("\\}") else text[-1:]
    if left + right not in ("()", "[]", "(]", "[)", "\\{\\}", "{}") or len(text) <= len(left + right):
        return None
    if left == "{" and "," not in text:  # it only groups; with a comma it is a set without its backslashes
        return None
    start, end = len(left), len(text) - len(right)
    if min(depth for depth in depths_of(text)[start:end] if depth >= 0) < 1:
        return None
    return ("\\{", text[start:end], "\\}") if left == "{" else (left, text[start:end], right)
