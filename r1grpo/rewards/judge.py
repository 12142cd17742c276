"""A generative judge's opinion (judge.py) as a reward, asked in worker processes while others are sampled.

    score   {"score": 0 to 10} / 10, of the text behind </think>; 0 where there is none
    safe    1 or 0, of the whole response

Where there is no verdict, the completion is left out, as with every verifier that failed. An answer that
could end its own quotation is one that cannot be read: 0."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..judge import Judge, JudgeError, Refused, key_in_environment
from ..tokenizer import split_thinking
from ..verifiers import Verdict
from .pooled import Pooled
from .text import Completion, texts


def judge_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                 completion_ids: Sequence[Sequence[int]], *, judge_options: dict[str, Any],
                 prefilled: Sequence[bool] | None = None, **_: Any) -> list[float | Verdict]:
    """The judge's opinions; prompts are text or messages. judge_options: `ask` and Judge's own."""
    judge, ask = _judge(**judge_options)
    opened = prefilled or [False] * len(completions)
    return [_opinion(judge, ask, prompt, text, inside)
            for prompt, text, inside in zip(prompts, texts(completions), opened, strict=True)]


@functools.lru_cache(maxsize=8)  # a worker reads its cache once
def _judge(ask: str, **options: Any) -> tuple[Judge, str]:
    return Judge(**options), ask


def _opinion(judge: Judge, ask: str, prompt: Any, text: str, inside: bool) -> float | Verdict:
    try:
        if ask == "safe":
            return float(judge.is_safe(prompt, text))
        summary = split_thinking(text, inside)[1]
        return judge.score(prompt, summary) / 10 if summary else 0.0
    except Refused as error:
        return Verdict(False, "unparsed", str(error))
    except JudgeError as error:
        return Verdict(False, error.reason, str(error))


def get_judge_reward(url: str, model: str, key_env: str | None = None, ask: str = "score", timeout: float = 30.0,
                     retries: int = 2, deadline: float = 60.0, max_tokens: int = 1024,
                     cache: str | None = None) -> Pooled:
    """key_env: the environment variable that holds the key, so that no file of a run has it. deadline:
    seconds; the pool's own (verifier_deadline, 5) should be above it."""
    if ask not in ("score", "safe"):
        raise ValueError(f"ask is {ask!r}, expected 'score' or 'safe'")
    options = {"url": url, "model": model, "key": key_in_environment(key_env) if key_env else None,
               "timeout": timeout, "retries": retries, "deadline": deadline, "max_tokens": max_tokens,
               "cache": cache}
    Judge(**options)  # what cannot be is said before work starts
    return Pooled(judge_reward, judge_options={"ask": ask, **options})
