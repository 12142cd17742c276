"""A problem: one row of every data set of the pipeline, and the rule that splits problems.

`key` names the canonical problem; every wording and both languages share it:

    countdown:3 7 12=40        sorted numbers = target
    arithmetic:30 + 5 * 3 - 6  the chain
    FAMILY:slot slot ...       a general prompt

The split is a pure function of the key: blake2b(key) mod 10,000 below 1,600 is test, below 1,936
is validation (4 % of what is left, cut from train; not for general prompts), the rest train. An
arithmetic chain hashes by its first two steps only, because a longer chain contains its beginning
as a solved problem. Harmful and benign prompts hash by the act, without the name of who asks: the
answer depends on the act, and an act of the test must not occur in train under another name.
Problems of the harder kind (four numbers, four steps) are `ood` whatever their hash.
Knows nothing about how problems are worded, drawn or solved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from ..tokenizer import check_template, format_prompt

LANGUAGES = ("en", "zh")
VERIFIABLE = ("countdown", "arithmetic")
BY_ACT = ("harmful", "benign")          # keys are FAMILY:name act
SPLITS = ("train", "validation", "test", "ood")
TEST_SHARE, VALIDATION_SHARE = 1600, 336          # of 10,000
EASY_NUMBERS, EASY_STEPS = 3, 3         # above these a problem is out of distribution


def split_of(key: str) -> str:
    """The split that a problem key belongs to.

    >>> split_of("countdown:1 2 3 4=24")
    'ood'
    """
    task, _, body = key.partition(":")
    if not task or not body:
        raise ValueError(f"problem key {key!r} is not of the form task:problem")
    words = body.split()
    if task == "countdown" and len(words) > EASY_NUMBERS:
        return "ood"
    if task == "arithmetic":
        if len(words) > 2 * EASY_STEPS + 1:
            return "ood"
        key = f"{task}:{' '.join(words[:5])}"            # the first two steps
    elif task in BY_ACT:
        key = f"{task}:{' '.join(words[1:])}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") % 10_000
    if place < TEST_SHARE:
        return "test"
    held = task in VERIFIABLE and place < TEST_SHARE + VALIDATION_SHARE
    return "validation" if held else "train"


@dataclass(frozen=True)
class Problem:
    """One problem in one wording. `answer` is the reference answer where the task has one."""

    task: str                                   # "countdown", "arithmetic" or a general family
    language: str                               # "en" or "zh"
    key: str
    question: str
    numbers: tuple[int, ...] | None = None      # countdown: to be used once each
    target: int | None = None                   # countdown
    answer: str | None = None                   # arithmetic
    slots: dict[str, Any] = field(default_factory=dict)      # general: what fills the family

    @property
    def split(self) -> str:
        return split_of(self.key)

    @property
    def verifiable(self) -> bool:
        """Whether a rule can check an answer; the reward models judge the others."""
        return self.task in VERIFIABLE

    def row(self, template: str) -> dict[str, Any]:
        """The data-set row: the prompt and the columns that reward functions receive."""
        check_template(template)
        return {
            "prompt": format_prompt(self.question, template), "template": template,
            "problem_key": self.key, "task": self.task, "language": self.language,
            "numbers": list(self.numbers) if self.numbers else None,
            "target": self.target, "answer": self.answer, "slots": dict(self.slots),
        }
