"""Language consistency: share of words in the target language among the words of the chain of
thought (arXiv 2501.12948 v2, eq. 7). What counts as a word is our choice: alphabetic ASCII words
and words with a Chinese character; digits, operators, punctuation and tags are left out. A chain
of thought without a word has no share; as a reward that is 0, so that saying nothing never pays.
Rows of a task whose ideal thought is empty (a greeting) have no language reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.general import THOUGHTLESS
from ..tasks.wording import word_language
from ..tokenizer import split_thinking
from .text import texts


def language_share(text: str, language: str) -> float | None:
    """Share of the words of a text that are in a language; None without words.

    >>> language_share("try 7 + 5 不对", "en")
    0.5
    """
    found = [each for each in map(word_language, text.split()) if each]
    return found.count(language) / len(found) if found else None


def language_shares(prompts: Sequence[str], completions: Sequence[str],
                    completion_ids: Sequence[Sequence[int]], *, language: Sequence[str],
                    prefilled: Sequence[bool] | None = None, **_: Any) -> list[float | None]:
    """The share, 0 to 1, of each completion's chain of thought; None for one without words, which
    is no evidence of either language. Column: language; prefilled as in format_reward."""
    opened = prefilled or [False] * len(completions)
    return [language_share(split_thinking(text, inside)[0], target)
            for text, target, inside in zip(texts(completions), language, opened, strict=True)]


def language_reward(prompts: Sequence[str], completions: Sequence[str],
                    completion_ids: Sequence[Sequence[int]], *, language: Sequence[str],
                    task: Sequence[str | None] | None = None,
                    prefilled: Sequence[bool] | None = None, **_: Any) -> list[float | None]:
    """language_shares with 0 for a chain of thought without words; None for a task that needs no
    thought. Columns: language and, where there is one, task."""
    shares = language_shares(prompts, completions, completion_ids, language=language,
                             prefilled=prefilled)
    tasks = [None] * len(shares) if task is None else task
    return [None if kind in THOUGHTLESS else share or 0.0
            for share, kind in zip(shares, tasks, strict=True)]
