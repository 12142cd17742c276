r"""extract.py - which part of a completion, or of a worked solution, is its final answer.

    answer   of what follows the last </think>: the text of the last <answer>...</answer>, if there is
             one; in it the last \boxed{...} (\fbox too); else what stands behind the last ####

A thought without an end holds no answer, whatever it boxes. One answer only: of several boxes the last
counts, and where that one has no end there is none. What is longer than MAX_ANSWER characters is no
answer. The text is read once, whatever it holds. Knows nothing about what an answer means.
"""

from __future__ import annotations

import re

MAX_ANSWER = 2000

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{")
_BRACE = re.compile(r"\\.|[{}]", re.S)


def last_box(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced; None where there is none or no end.

    >>> last_box(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    place = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    box = _BOX.match(text, place) if place >= 0 else None
    if box is None:
        return None
    start, depth = box.end(), 1
    for match in _BRACE.finditer(text, start, start + MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start:match.start()].strip()
    return None


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
