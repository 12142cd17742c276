"""readable.py - filters of samples worth learning from: is a completion's thought pleasant to read?

    FILTERS[name](row, completion) -> bool        False drops the sample

    language     nine tenths of the thought's words are in the scripts of the prompt's language
    paragraphs   no paragraph of the thought is longer than LONGEST words
    code         the thought has no block of code
    repetition   at most a tenth of the thought's runs of NGRAM words stood in it before

DeepSeek-R1 drops samples of mixed language, long paragraphs and code blocks (arXiv 2501.12948v2, B.3.3)
and repetition (B.3.2), and prints none of these numbers: they are ours. The language is that of the
column `language`, without one the script that most of the prompt's words are in; code, LaTeX and digits
are no words (rewards/script.py). Knows nothing about what is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from .rewards.script import SCRIPTS, prose, scripts_of, words
from .tokenizer import END_THINK, THINK, split_thinking

Filter = Callable[[Mapping[str, Any], str], bool]

LONGEST = 300  # words of a paragraph
NGRAM = 12
_MIXED, _REPEATED = 0.1, 0.1  # shares that are still readable


def _thought(completion: str) -> str:
    """The chain of thought, whether the completion or its prompt opened it; all of it where no tag is."""
    return split_thinking(completion, THINK not in completion and END_THINK in completion)[0] or \
        ("" if END_THINK in completion else completion)


def one_language(row: Mapping[str, Any], completion: str) -> bool:
    """Whether the thought is in the language of its prompt."""
    found = [script for _, script in words(prose(_thought(completion)))]
    wanted = scripts_of(row["language"]) if row.get("language") in SCRIPTS else _scripts(row.get("prompt"))
    return not wanted or sum(script not in wanted for script in found) <= _MIXED * len(found)


def _scripts(prompt: Any) -> frozenset[str]:
    """The script of most of the prompt's words; none where it has no words."""
    text = prompt if isinstance(prompt, str) else " ".join(one["content"] for one in prompt or ())
    most = Counter(script for _, script in words(prose(text))).most_common(1)
    # Japanese is Han and kana at once
    return frozenset({"HAN", "HIRAGANA", "KATAKANA"} if most and most[0][0] in ("HIRAGANA", "KATAKANA")
                     else {most[0][0]} if most else ())


def short_paragraphs(row: Mapping[str, Any], completion: str) -> bool:
    """Whether the thought is written in paragraphs that one can read."""
    return all(len(_units(one)) <= LONGEST for one in re.split(r"\n\s*\n", _thought(completion)))


def no_code(row: Mapping[str, Any], completion: str) -> bool:
    """Whether the thought has no block of code."""
    return not re.search(r"^[^\S\n]*(```|~~~)", _thought(completion), re.MULTILINE)


def no_repetition(row: Mapping[str, Any], completion: str) -> bool:
    """Whether the thought says things once."""
    said = _units(_thought(completion))
    runs = [tuple(said[i:i + NGRAM]) for i in range(len(said) - NGRAM + 1)]
    return len(runs) - len(set(runs)) <= _REPEATED * len(runs)


def _units(text: str) -> list[str]:
    """What is between spaces; in scripts without spaces every letter."""
    return re.findall("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+",
                      text.lower())


FILTERS: dict[str, Filter] = {
    "language": one_language, "paragraphs": short_paragraphs, "code": no_code, "repetition": no_repetition}
