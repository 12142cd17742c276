r"""mathematics.py - the verdict on a mathematical answer.

    verify_math(text, gold)      text is a whole completion: its final answer is found (extract.py) ...
    verify_answer(answer, gold)  ... and compared with the reference by exact rules (answers.py):
        correct     they are equal
        wrong       they are not, or (detail says so) are not seen to be
        unparsed    the answer says nothing that the rules can read
        missing     there is no answer

Most pairs are decided so, in some hundred microseconds. The others (values of functions, sums, what only
algebra can tell) may be shown to math-verify, the extra `math`, with algebra=True. It runs SymPy, for
which no size of input is safe and which keeps no time limit here, so that belongs into a worker process
with a deadline (pool.py, rewards.math_reward). Without it such a pair is wrong or unparsed. Its own idea
of an answer is not used: it gets the one expression that was found, never prose from which it would
pick a number.
"""

from __future__ import annotations

import logging
import re

from .answers import decide, gold_problem, hopeless, readable
from .extract import final_answer
from .verdict import CORRECT, MISSING, UNPARSED, WRONG, Verdict

_PROSE = re.compile(r"(?<![A-Za-z\\{])(?:[A-Za-z]{4,}|[A-Za-z]{2,} +[A-Za-z]{2,})")
_MAX_SLOW = 300  # characters
_DIGITS = 12     # to which math-verify's numbers must agree


def verify_math(text: str, gold: str | float, prefilled: bool = False, algebra: bool = False) -> Verdict:
    r"""The verdict on a completion's final answer. prefilled: the prompt opened the thought. algebra:
    math-verify decides what exact rules cannot. ValueError where gold cannot be a reference.

    >>> verify_math(r"<think> \boxed{7} </think> so \boxed{0.75}", r"\frac{3}{4}").reason
    'correct'
    """
    if problem := gold_problem(gold):
        raise ValueError(f"the reference answer {str(gold)[:60]!r}: {problem}")
    return verify_answer(final_answer(text, prefilled), str(gold), algebra)


def verify_answer(answer: str | None, gold: str, algebra: bool = False) -> Verdict:
    """The verdict on an answer that was found; see the head of the file."""
    if answer is None:
        return MISSING
    right = decide(answer, gold)
    if right is not None:
        return CORRECT if right else WRONG
    if algebra and worth_algebra(answer, gold):
        return math_verify_slow(answer, gold)
    return Verdict(False, "wrong" if readable(answer) else "unparsed", "not decided by exact rules")


def worth_algebra(answer: str, gold: str) -> bool:
    """Whether an undecided pair is one that math-verify may see: short, no prose, nothing that was too large
    for exact rules, and nothing that it would have to guess about, as it does."""
    return max(len(answer), len(gold)) <= _MAX_SLOW and not _PROSE.search(answer) \
        and not hopeless(answer, gold)


def math_verify_slow(answer: str, gold: str) -> Verdict:
    """math-verify's verdict on one answer, to be called in a worker: it keeps no time limit."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        return Verdict(False, "unparsed", "math-verify is not installed: pip install 'r1grpo[math]'")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it keeps no time
    how = {"extraction_config": (LatexExtractionConfig(),), "fallback_mode": "no_fallback",
           "parsing_timeout": None}
    reference, found = (parse(f"${_bare(one)}$", **how) for one in (gold, answer))
    if not found or not reference:
        return Verdict(False, UNPARSED.reason, "math-verify reads no value")
    right = verify(reference, found, float_rounding=_DIGITS, timeout_seconds=None)
    return Verdict(right, CORRECT.reason if right else WRONG.reason, "by math-verify")


def _bare(text: str) -> str:
    """A formula without the $ signs around and in it."""
    return re.sub(r"(?<!\\)\$", " ", text).strip()
