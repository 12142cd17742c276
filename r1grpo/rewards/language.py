"""Language consistency: share of words in the target language among the words of the chain of
thought (arXiv 2501.12948 v2, eq. 7). What counts as a word is our choice: alphabetic ASCII words
and words with a Chinese character; digits, operators, punctuation and tags are left out. A chain
of thought without a word scores 0, so that saying nothing never pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tasks.wording import word_language
from ..tokenizer import split_thinking


def language_share(text: str, language: str) -> float:
    """Share of the words of a text that are in a language; 0 without words.

    >>> language_share("try 7 + 5 不对", "en")
    0.5
    """
    found = [each for each in map(word_language, text.split()) if each]
    return found.count(language) / len(found) if found else 0.0


def language_reward(prompts: Sequence[str], completions: Sequence[str],
                    completion_ids: Sequence[Sequence[int]], *, language: Sequence[str],
                    **_: Any) -> list[float | None]:
    """The share, 0 to 1, of each completion's chain of thought. Column: language."""
    return [language_share(split_thinking(text)[0], target)
            for text, target in zip(completions, language, strict=True)]
