"""Format: 1 if the completion has its template's shape, else 0 (the paper publishes no value).

The shape is anchored: every tag exactly once, nothing before the first or after the end
(`tokenizer.is_wellformed`). A completion that was cut off at the length limit is malformed, which
only `finish_reasons` can tell in the r1 template, whose end is a token and no string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.problem import VERIFIABLE
from ..tokenizer import is_wellformed
from .text import Completion, texts


def format_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                  completion_ids: Sequence[Sequence[int]], *, template: Sequence[str],
                  task: Sequence[str] | None = None,
                  finish_reasons: Sequence[str] | None = None,
                  prefilled: Sequence[bool] | None = None, **_: Any) -> list[float | None]:
    """1.0 well-formed, 0.0 not. Columns: template, task (a general row boxes no answer), and,
    from the trainer, finish_reasons ("stop" or "length") and prefilled (the prompt opened the
    thought)."""
    tasks = task or [VERIFIABLE[0]] * len(completions)
    reasons = finish_reasons or ["stop"] * len(completions)
    opened = prefilled or [False] * len(completions)
    return [float(reason != "length" and is_wellformed(text, shape, kind in VERIFIABLE, inside))
            for text, shape, kind, reason, inside
            in zip(texts(completions), template, tasks, reasons, opened, strict=True)]


def think_format_reward(completions: Sequence[Completion],
                        prefilled: Sequence[bool] | None = None, **_: Any) -> list[float]:
    """TRL's: 1.0 where a thought in <think> and </think> stands first and no tag opens another."""
    opened = prefilled or [False] * len(completions)
    whole = ["<think>" * inside + text
             for text, inside in zip(texts(completions), opened, strict=True)]
    return [float(text.startswith("<think>") and "<think>" not in text[1:] and "</think>" in text)
            for text in whole]
