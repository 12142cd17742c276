"""gym.py - reasoning-gym's own verdict as a reward: 1 where its score is full, else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..tasks.gym import verify_gym
from ..verifiers import Verdict, final_answer
from .text import Completion, texts


def gym_reward(prompts: Sequence[Any], completions: Sequence[Completion],
               completion_ids: Sequence[Sequence[int]], *, gym: Sequence[Mapping[str, Any] | None],
               prefilled: Sequence[bool] | None = None, **_: Any) -> list[Verdict | None]:
    """Verdicts on the final answers of rows of gym:NAME; None for other rows. Columns: gym, and from the
    trainer prefilled. It runs another package's code: as Pooled(gym_reward), in workers with a deadline."""
    opened = prefilled or [False] * len(completions)
    return [None if row is None else verify_gym(final_answer(text, inside), row)
            for text, row, inside in zip(texts(completions), gym, opened, strict=True)]
