"""verdict.py - what a check of an answer says: right or not, and why.

    reason      said by
    correct     the verifier: the answer is right
    wrong       the verifier: the answer has another value
    unparsed    the verifier: there is an answer, and it cannot be read; some verifiers say in more
                words what is wrong with it (numbers, missing)
    truncated   the trainer: no answer, and the completion ended at the limit of its length
    timeout     the pool: no verdict before the deadline
    crash       the pool: the process died, or ran out of its CPU time or its words
    error       the pool: the verifier raised an exception

The last three (FAILURES) say nothing about the answer. They are no reward of 0: the completion is left
out of its group's baseline, and the failure is counted. Knows nothing about processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FAILURES = ("timeout", "crash", "error")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why. detail: more about it for people; share: of a program's
    tests that pass, where it was asked for. Two verdicts that differ in these alone are equal."""

    correct: bool
    reason: str
    detail: str = field(default="", compare=False)
    share: float | None = field(default=None, compare=False)

    @property
    def value(self) -> float:
        """The verdict as a reward: 1 or 0, or the share."""
        return float(self.correct) if self.share is None else self.share

    @property
    def failed(self) -> bool:
        """No verdict on the answer: the verifier itself came to no end."""
        return self.reason in FAILURES


CORRECT = Verdict(True, "correct")
WRONG = Verdict(False, "wrong")
UNPARSED = Verdict(False, "unparsed")
NUMBERS = Verdict(False, "numbers")  # not each number once
MISSING = Verdict(False, "missing")  # no answer at all
