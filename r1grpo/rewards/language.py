"""Language consistency: share of words in the target language among the words of the chain of
thought (arXiv 2501.12948 v2, eq. 7).

Rows of r1grpo.tasks (they name a template) are written with their words separated: a word is an
alphabetic ASCII word or one with a Chinese character. In all other text words are found by their
script, code, LaTeX, digits and tags left out (script.py). Languages that share a script are told
apart by a detector, where one is asked for: the words of a passage in the target's script count only
if the passage is in it.

A chain of thought without a word has no share; as a reward that is 0, so that saying nothing, or
hiding all in code, never pays. Rows of a task whose ideal thought is empty (a greeting) have no
language reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..tasks.general import THOUGHTLESS
from ..tasks.wording import word_language
from ..tokenizer import split_thinking
from .script import SCRIPTS, prose, script_share, scripts_of, words
from .text import Completion, texts

Detector = Callable[[str], str | None]  # a passage -> its language (ISO 639-1), None: cannot say

_ENDS = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_PASSAGE = 8  # words that a detector is asked about at least (our choice: it guesses at fewer)


def language_share(text: str, language: str) -> float | None:
    """Share of the words of a text with separated words that are in a language; None without words.

    >>> language_share("try 7 + 5 不对", "en")
    0.5
    """
    found = [each for each in map(word_language, text.split()) if each]
    return found.count(language) / len(found) if found else None


def detected_share(text: str, language: str, detect: Detector) -> float | None:
    """script_share that counts a passage's words in the language's script only where detect gives the
    passage to the language, or cannot say."""
    wanted, right, total = scripts_of(language), 0, 0
    for passage in _passages(prose(text)):
        found = [script in wanted for _, script in words(passage)]
        total += len(found)
        if any(found) and detect(passage) in (language, None):
            right += sum(found)
    return right / total if total else None


def _passages(text: str) -> Iterator[str]:
    """Sentences and lines, joined until they have words enough; what is left goes with the last."""
    done, pieces, count = "", [], 0
    for sentence in _ENDS.split(text):
        pieces.append(sentence)
        count += len(words(sentence))
        if count >= _PASSAGE:
            if done:
                yield done
            done, pieces, count = " ".join(pieces), [], 0
    yield " ".join([done, *pieces])


def language_shares(prompts: Sequence[Any], completions: Sequence[Completion],
                    completion_ids: Sequence[Sequence[int]], *, language: Sequence[str | None],
                    template: Sequence[str | None] | None = None,
                    prefilled: Sequence[bool] | None = None, detect: Detector | None = None,
                    **_: Any) -> list[float | None]:
    """The share, 0 to 1, of each completion's chain of thought; None for one without words, which
    is no evidence of any language, and for a row whose language has no script here. Columns: language and, where there is one, template; prefilled as
    in format_reward."""
    def share(thought: str, target: str | None, shape: str | None) -> float | None:
        if shape is not None and target is not None:
            return language_share(thought, target)
        if target not in SCRIPTS:
            return None
        return script_share(thought, target) if detect is None else \
            detected_share(thought, target, detect)
    opened = prefilled or [False] * len(completions)
    shapes = template or [None] * len(completions)
    return [share(split_thinking(text, inside)[0], target, shape) for text, target, inside, shape
            in zip(texts(completions), language, opened, shapes, strict=True)]


def language_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                    completion_ids: Sequence[Sequence[int]], *, language: Sequence[str | None],
                    task: Sequence[str | None] | None = None, **columns: Any) -> list[float | None]:
    """language_shares with 0 for a chain of thought without words; None for a row without a language,
    or of a task that needs no thought. Columns: language and, where there are any, task and template."""
    if columns.get("template") is None:
        for target in {*language} - {None}:
            scripts_of(str(target))  # ValueError for one that is unknown
    shares = language_shares(prompts, completions, completion_ids, language=language, **columns)
    tasks = [None] * len(shares) if task is None else task
    return [None if target is None or kind in THOUGHTLESS else share or 0.0
            for share, target, kind in zip(shares, language, tasks, strict=True)]


def get_language_reward(candidates: Sequence[str] = ()) -> Callable[..., list[float | None]]:
    """language_reward; with candidates (ISO 639-1), the languages that a completion may be in, those
    that share a script are told apart by lingua. Name the languages of the rows and those that the
    model drifts to, no more: each makes it slower and less sure."""
    if not candidates:
        return language_reward
    detect = _lingua(candidates)

    def detected_language_reward(*call: Any, **columns: Any) -> list[float | None]:
        return language_reward(*call, **columns, detect=detect)
    detected_language_reward.__name__ = language_reward.__name__
    return detected_language_reward


def _lingua(candidates: Sequence[str]) -> Detector:
    for name in candidates:
        scripts_of(name)
    if len(set(candidates)) < 2:
        raise ValueError(f"candidates {', '.join(candidates)}: a detector tells at least two languages "
                         f"apart")
    try:
        import lingua
    except ImportError as error:
        raise ImportError("telling languages of one script apart takes lingua: pip install "
                          "'r1grpo[languages]'") from error
    codes = [lingua.IsoCode639_1.from_str(name.upper()) for name in dict.fromkeys(candidates)]
    detector = lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def detect(passage: str) -> str | None:
        found = detector.detect_language_of(passage)
        return found and found.iso_code_639_1.name.lower()
    return detect
