r"""answers.py - the final answer of free text, and whether it is the reference's.

    final answer   of what follows the last </think>: the text of the last <answer>...</answer>, if
                   there is one; in it the last \boxed{...}; else what stands behind the last ####
    equal          two numbers: as rational numbers, exactly
                   else: as spelled, idle spaces, LaTeX's size commands and $ signs aside

    number ::= [+-] (digits | digits in threes with commas) [. digits]
             | number / number | [+-] \frac{integer}{integer}     (\dfrac, \tfrac, \frac12 too)

A wrong answer never counts as right. A right one in other words or another form (3 cm for 3,
0.5\pi for \frac{\pi}{2}, 1/3 for 0.333) counts as wrong: to see that takes units and algebra, which
are not here. What is longer than MAX_ANSWER characters is no answer, numbers of more than
MAX_NUMBER characters are compared as spelled, so a hostile answer costs nothing. Knows nothing about
tasks.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER = 2000
MAX_NUMBER = 100

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_RATIO = re.compile(rf"([+-]?)({_DECIMAL})(?:/({_DECIMAL}))?", re.ASCII)
_FRAC = re.compile(r"([+-]?)\\frac(?:\{([+-]?\d+)\}|(\d))(?:\{([+-]?\d+)\}|(\d))", re.ASCII)
_NOTHING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\!")  # changes how a formula looks
_SPACE = re.compile(r"(?:\s|\\[,;: ])+")
_IDLE = re.compile(r"(?<!\w) | (?!\w)")  # any space but that between two words or numbers
_SIGNS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def last_box(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces balanced; None where there is none or no end.

    >>> last_box(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:start + MAX_ANSWER], re.S):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start:start + match.start()].strip()
    return None


def final_answer(text: str) -> str | None:
    """The final answer of a completion or of a worked solution; None where there is none, as in a
    completion whose thinking has no end."""
    thought, end, rest = text.rpartition("</think>")
    if not end and "<think>" in rest:
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


def exact_number(text: str) -> Fraction | None:
    r"""The rational number that a text spells, None where it spells none.

    >>> exact_number(r"\frac{3}{4}"), exact_number("1,080.50"), exact_number("12,9")
    (Fraction(3, 4), Fraction(2161, 2), None)
    """
    text = spelling(text)
    if len(text) > MAX_NUMBER:
        return None
    if match := _FRAC.fullmatch(text):
        top, bottom = int(match[2] or match[3]), int(match[4] or match[5])
        value = Fraction(top, bottom) if bottom else None
    elif match := _RATIO.fullmatch(text):
        top, bottom = (Fraction((one or "1").replace(",", "")) for one in match.groups()[1:])
        value = top / bottom if bottom else None
    else:
        return None
    return -value if value is not None and match[1] == "-" else value


def spelling(text: str) -> str:
    r"""A text without what does not change its meaning: formula signs around it, a currency sign
    before it, a final full stop, idle spaces, \left, \right and \!; \dfrac and \tfrac are \frac,
    \% is %. The space in 1 2 stays: it is not 12."""
    text = text.strip().removesuffix(".").strip()
    for left, right in _SIGNS:
        if text.startswith(left) and text.endswith(right) and len(text) > len(left):
            text = text[len(left):-len(right)]
    text = re.sub(r"\\[dt]frac", r"\\frac", text.replace(r"\%", "%"))
    text = _IDLE.sub("", _SPACE.sub(" ", _NOTHING.sub("", text)))
    return text.removeprefix(r"\$").removeprefix("$")


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are equal, see the head of the file."""
    if len(answer) > MAX_ANSWER:
        return False
    number = exact_number(reference)
    if number is not None:
        return exact_number(answer) == number
    return spelling(answer) == spelling(reference) != ""
