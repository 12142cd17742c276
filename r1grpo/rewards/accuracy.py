"""Accuracy: 1 if the final answer is right, 0 if not (arXiv 2501.12948 v2, 2.2); None for rows
without a verifiable answer. The answer counts wherever the template says it stands, even where
the rest of the format is broken: format has a reward of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tokenizer import extract_answer
from ..verifiers import Verdict, verify


def verdicts(completions: Sequence[str], template: Sequence[str], task: Sequence[str],
             numbers: Sequence[Sequence[int] | None] | None = None,
             target: Sequence[int | None] | None = None,
             answer: Sequence[str | None] | None = None, **_: Any) -> list[Verdict | None]:
    """The verdict on every completion with its reason; None for rows without a rule."""
    nothing = [None] * len(completions)
    return [verify(extract_answer(text, shape), kind, *reference) for text, shape, kind, *reference
            in zip(completions, template, task, numbers or nothing, target or nothing,
                   answer or nothing, strict=True)]


def accuracy_reward(prompts: Sequence[str], completions: Sequence[str],
                    completion_ids: Sequence[Sequence[int]], **columns: Any
                    ) -> list[float | None]:
    """1.0 right, 0.0 wrong, None not verifiable. Columns: template, task, and what it checks."""
    return [None if verdict is None else float(verdict.correct)
            for verdict in verdicts(completions, **columns)]
