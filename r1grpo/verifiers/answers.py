r"""answers.py - whether a final answer is the reference's: exactly, by rules of our own.

    decide(answer, gold)    True, False, or None: these rules cannot tell
        spelled alike (latex.py)                    True
        gold is read (values.py), the answer too    whether they say the same
        gold is words                               the answer's words, text and letters alike
        else                                        None

A wrong answer never counts as right: rules that guess are not here, and numbers are not rounded (0.333
is not 1/3). What is longer than MAX_ANSWER characters is no answer. Knows nothing about tasks.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from .exact import Ambiguous, TooLarge, Undecided, rational
from .extract import MAX_ANSWER
from .kinds import Answer, Scalar, Text
from .latex import spelling
from .same import same
from .values import read

_WRAPPED = re.compile(r"\\text\{([^{}]*)\}")


def decide(answer: str, gold: str) -> bool | None:
    """Whether the answer is the reference's; None where it takes algebra that is not here."""
    if len(answer) > MAX_ANSWER:
        return False
    if spelling(answer) == spelling(gold) != "":
        return True
    reference = _read(gold)
    if isinstance(reference, Text) and reference.kind == "words":
        return _words(answer) == reference.text
    found = _read(answer)
    if isinstance(found, Text) and found.kind == "words" and isinstance(reference, Scalar):
        return _words(gold) == found.text  # \text{DNE} for DNE
    if found is None or reference is None:
        return None
    try:
        return same(found, reference)
    except Undecided:  # what they are compared by is too large
        return None


def readable(text: str) -> bool:
    """Whether the text says something that these rules can read."""
    return _read(text) is not None


def hopeless(answer: str, gold: str) -> bool:
    """Whether an undecided pair is so for good: the bounds of these rules were reached (powers, terms,
    digits, brackets), or the answer can be read in two ways."""
    try:
        found, reference = read(answer), _read(gold)
        if reference is not None:
            same(found, reference)
    except Undecided as why:
        return isinstance(why, (TooLarge, Ambiguous))
    return False


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are seen to be equal, see the head of the file."""
    return decide(answer, reference) is True


def exact_number(text: str) -> Fraction | None:
    r"""The rational number that a text spells, None where it spells none.

    >>> exact_number(r"\frac{3}{4}"), exact_number("1,080.50"), exact_number("12,9")
    (Fraction(3, 4), Fraction(2161, 2), None)
    """
    found = _read(text) if len(text) <= MAX_ANSWER else None
    value = rational(found.value) if isinstance(found, Scalar) else None
    return None if value is None else Fraction(value)


def gold_problem(gold: object) -> str | None:
    r"""Why a reference answer cannot be one; None where it can.

    >>> gold_problem(r"\frac{1}{0}"), gold_problem("{1"), gold_problem(r"\frac{1}{2}")
    ('division by zero', 'its brackets do not match', None)
    """
    if not isinstance(gold, (str, int, float)) or isinstance(gold, bool):
        return f"it is of type {type(gold).__name__}, expected text or a number"
    text = str(gold)
    if not spelling(text[:MAX_ANSWER]):
        return "it is empty"
    if len(text) > MAX_ANSWER:
        return f"it has {len(text)} characters, more than {MAX_ANSWER}"
    if "####" in text:
        return "it holds ####: the answer is what stands behind it"
    if text.strip().lower() in ("nan", "none", "null"):
        return f"it is {text.strip()}"
    braces = re.sub(r"\\.", "", text)
    if braces.count("{") != braces.count("}") or text.count("\\left") != text.count("\\right"):
        return "its brackets do not match"
    try:
        read(text)
    except Undecided as why:
        return str(why) if str(why) == "division by zero" else None
    return None


@lru_cache(maxsize=4096)
def _read(text: str) -> Answer | None:
    try:
        return read(text)
    except Undecided:
        return None


def _words(text: str) -> str:
    """What a text says in words: nothing but letters, digits and single spaces, whatever the case."""
    text = _WRAPPED.sub(r" \1 ", spelling(text))
    return " ".join(re.sub(r"[^\w\s,:'-]", " ", text).split()).casefold().strip(" .")
