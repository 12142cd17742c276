r"""extract.py - which part of a completion, or of a worked solution, is its final answer.

    answer   of what follows the last </think>: the text of the last <answer>...</answer>, if there is
             one; in it the last \boxed{...} (\fbox too); else what stands behind the last ####

A thought without an end holds no answer, whatever it boxes. One answer only: of several boxes the last
counts, and where that one has no end there is none. Boxes with nothing but a comma, "and", "or" or space
between them are one answer of several values: \boxed{1} or \boxed{2} is 1, 2. What is longer than
MAX_ANSWER characters is no answer. The text is read once, whatever it holds. Knows nothing about what
an answer means.
"""

from __future__ import annotations

import re

MAX_ANSWER = 2000

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_LINK = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_BETWEEN = re.compile(r"(?:[\s$&,;{}]|\\(?:quad|qquad|text|mathrm|mbox)(?![A-Za-z])|\\[^A-Za-z]|and|or)*")
_MAX_BETWEEN = 60  # characters
_MAX_BOXES = 40


def last_box(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced, and those that belong to it, each once; None where
    there is none or no end.

    >>> last_box(r"\boxed{7}. So \boxed{\frac{1}{2}} and \boxed{3}.")
    '\\frac{1}{2}, 3'
    """
    found: list[str] = []
    low, start = 0, len(text)
    for _ in range(_MAX_BOXES):
        place = max(text.rfind("\\boxed", low, start), text.rfind("\\fbox", low, start))
        box = _box(text, place) if place >= 0 else None
        if box is None or found and not _linked(text, box[1], start):
            break
        found.append(box[0])
        low, start = max(0, place - _MAX_BETWEEN - MAX_ANSWER), place
    return ", ".join(dict.fromkeys(reversed(found))) if found else None


def _box(text: str, place: int) -> tuple[str, int] | None:
    r"""(what a \boxed{...} holds, where it ends)."""
    box = _BOX.match(text, place)
    if box is None:
        return None
    start, depth = box.end(), 1
    for match in _BRACE.finditer(text, start, start + MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start:match.start()].strip(), match.end()
    return None


def _linked(text: str, end: int, start: int) -> bool:
    """Whether a box that ends there and one that starts there are one answer; on lines of their own they
    need a word or a comma."""
    between = text[end:start]
    return 0 <= start - end <= _MAX_BETWEEN and _BETWEEN.fullmatch(between) is not None \
        and ("\n" not in between or _LINK.search(between) is not None)


def final_answer(text: str, prefilled: bool = False) -> str | None:
    """The final answer of a completion or of a worked solution; None where there is none, as in a
    completion whose thinking has no end. prefilled: the prompt opened the thought."""
    _, end, rest = text.rpartition("</think>")
    if not end and (prefilled or "<think>" in rest):
        return None
    inside, tag, _ = rest.rpartition("</answer>")
    if tag and "<answer>" in inside:
        rest = inside.rpartition("<answer>")[2]
        found = last_box(rest) or rest.strip()
    else:
        found = last_box(rest)
        if found is None and "####" in rest:
            found = rest.rpartition("####")[2].strip().partition("\n")[0].strip()
    return found if found and len(found) <= MAX_ANSWER else None
