"""contamination.py - training rows without what stands in the evaluation set, and a report.

    kept, report = decontaminate(train, evaluation, n=10)

A training row is dropped, for the first reason that holds,

    exact      its prompt is an evaluation row's prompt, spaces and capitals aside
    overlap    it shares n words in a row with an evaluation row (question or reference solution)
    duplicate  all its text is that of an earlier row, spaces and capitals aside

n = 10 is DeepSeek-R1's (arXiv 2501.12948v2, D.1). Words of n-grams: NFKC, lower case, split at
spaces, and of each piece only letters and digits ("x^2 + 3," is x2 3); Chinese characters, kana and
hangul are a word each. Text is compared column by column (TEXT_COLUMNS; of messages, all that is
said).

An n-gram that more than COMMON of the evaluation rows share, and at least COMMON_ROWS of them, is
an instruction ("reason step by step, and put ..."), no problem: it is no evidence, and the report
shows it. Exact: hashes only find the places, the words themselves decide. Cost: linear in the words
of both, in blocks of training rows. Knows nothing about splits or tokenizers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]

TEXT_COLUMNS = ("prompt", "messages", "completion", "solution", "text", "chosen", "rejected")
COMMON, COMMON_ROWS = 0.1, 10
_BLOCK = 2048  # training rows at a time
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_MARKS = re.compile(r"[^\w\s]|_")
_WORD = re.compile(rf"[{_SINGLE}]|[^\s{_SINGLE}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Found:
    """A dropped row: its index, the reason, the evaluation row (of a duplicate: the training row)
    that it matches, and the words that both have."""

    row: int
    reason: str
    other: int
    words: str


@dataclass
class Decontamination:
    """What decontaminate found."""

    n: int
    rows: int
    dropped: list[Found] = field(repr=False)
    instructions: list[str]  # n-grams of so many evaluation rows that they are no evidence

    @property
    def counts(self) -> dict[str, int]:
        """Rows dropped by reason."""
        return {reason: sum(one.reason == reason for one in self.dropped)
                for reason in ("exact", "overlap", "duplicate")}

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        lines = [f"{self.rows - len(self.dropped):,} of {self.rows:,} training rows kept; "
                 f"dropped: {counts} ({self.n}-grams)"]
        for reason, count in self.counts.items():
            for one in [one for one in self.dropped if one.reason == reason][:3]:
                beside = "training" if reason == "duplicate" else "evaluation"
                lines.append(f"  {reason}: row {one.row} and {beside} row {one.other}: "
                             f"{one.words[:100]}")
        lines += [f"  no evidence, because many evaluation rows have it: {one}"
                  for one in self.instructions[:3]]
        return "\n".join(lines)


def words_of(text: str) -> list[str]:
    """The words of a text, see the head of the file.

    >>> words_of("Don't add 3*x to 第三行!")
    ['dont', 'add', '3x', 'to', '第', '三', '行']
    """
    text = _MARKS.sub("", unicodedata.normalize("NFKC", text).lower())
    return text.split() if text.isascii() else _WORD.findall(text)


def decontaminate(train: Sequence[Row], evaluation: Sequence[Row], n: int = 10,
                  columns: Sequence[str] = TEXT_COLUMNS) -> tuple[list[Row], Decontamination]:
    """(the rows of train to keep, in order; the report)."""
    if n < 1:
        raise ValueError(f"n is {n}, must be at least 1")
    grams = _Grams([_words(row, columns) for row in evaluation], n)
    prompts = {spelled(row, ["prompt"]): i for i, row in reversed([*enumerate(evaluation)])}
    prompts.pop(("",), None)
    seen: dict[tuple[str, ...], int] = {}
    dropped = []
    for start in range(0, len(train), _BLOCK):
        block = train[start:start + _BLOCK]
        shared = grams.shared([_words(row, columns) for row in block])
        for i, row in enumerate(block, start):
            prompt, text = spelled(row, ["prompt"]), spelled(row, columns)
            if prompt in prompts:
                dropped.append(Found(i, "exact", prompts[prompt], prompt[0]))
            elif i - start in shared:
                dropped.append(Found(i, "overlap", *shared[i - start]))
            elif text in seen and any(text):
                dropped.append(Found(i, "duplicate", seen[text],
                                     " ".join(filter(None, text))))
            else:
                seen[text] = i
    gone = {one.row for one in dropped}
    report = Decontamination(n, len(train), dropped, grams.instructions)
    return [row for i, row in enumerate(train) if i not in gone], report


def _said(value: Any) -> list[str]:
    """A text, or what messages say."""
    if isinstance(value, str):
        return [value]
    return [one["content"] for one in value if isinstance(one.get("content"), str)] \
        if isinstance(value, list) else []


def _words(row: Row, columns: Sequence[str]) -> list[list[str]]:
    """Words of every text of a row, apart from each other."""
    return [words_of(text) for name in columns for text in _said(row.get(name))]


def spelled(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """The text of each column, spaces and capitals aside; of messages, all that is said."""
    return tuple(" ".join("\n".join(_said(row.get(name))).lower().split()) for name in columns)


class _Grams:
    """The n-grams of the evaluation rows, found again in other rows."""

    def __init__(self, rows: Sequence[list[list[str]]], n: int) -> None:
        self._n = n
        self._numbers: dict[str, int] = {}  # word -> number; 0 is any word that is not here
        for word in chain(*chain(*rows)):
            self._numbers.setdefault(word, len(self._numbers) + 1)
        self._words = ["", *self._numbers]
        self._ids, self._row = self._flat(rows)
        places, hashes = self._windows(self._ids)
        order = np.argsort(hashes, kind="stable")
        self._places, self._hashes = places[order], hashes[order]
        self.instructions = self._drop_common(len(rows))

    def _drop_common(self, rows: int) -> list[str]:
        """Leave out n-grams of many rows; returns them."""
        row = self._row[self._places]  # ascending where hashes are equal: the sort was stable
        new = np.append(True, (np.diff(self._hashes) != 0) | (np.diff(row) != 0))[:len(row)]
        hashes, count = np.unique(self._hashes[new], return_counts=True)
        common = hashes[count > max(COMMON * rows, COMMON_ROWS - 1)]
        drop = np.isin(self._hashes, common)
        texts = [self._text(place) for place in self._places[drop]]
        self._places, self._hashes = self._places[~drop], self._hashes[~drop]
        return list(dict.fromkeys(texts))

    def shared(self, rows: Sequence[list[list[str]]]) -> dict[int, tuple[int, str]]:
        """{row: (evaluation row, the words)} of the first n-gram that a row shares."""
        ids, row = self._flat(rows)
        places, hashes = self._windows(ids)
        first = np.searchsorted(self._hashes, hashes)
        end = np.searchsorted(self._hashes, hashes, side="right")
        hits = np.flatnonzero(first < end)
        rows_hit, starts = np.unique(row[places[hits]], return_index=True)
        found: dict[int, tuple[int, str]] = {}
        for number, mine in zip(rows_hit.tolist(), np.split(hits, starts[1:])):
            pairs = ((places[i], place) for i in mine for place in self._places[first[i]:end[i]])
            for at, place in pairs:  # the first pair is equal, unless two hashes collide
                if np.array_equal(ids[at:at + self._n], self._ids[place:place + self._n]):
                    found[number] = (int(self._row[place]), self._text(place))
                    break
        return found

    def _flat(self, rows: Sequence[list[list[str]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the words (N) and their rows (N); a 0 behind every text parts it from the
        next."""
        get = self._numbers.get
        ids: list[int] = []
        row: list[int] = []
        for i, texts in enumerate(rows):
            for words in texts:
                ids += [get(word, 0) for word in words]
                ids.append(0)
            row += [i] * (len(ids) - len(row))
        return np.array(ids, np.int64), np.array(row, np.int64)

    def _windows(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Places (M) of windows of n known words, and their hashes (M)."""
        count = max(0, len(ids) - self._n + 1)
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        places = np.flatnonzero(unknown[self._n:self._n + count] == unknown[:count])
        hashes = np.zeros(len(places), np.uint64)
        for j in range(self._n):
            hashes = (hashes ^ ids[places + j].astype(np.uint64)) * _FACTOR
            hashes ^= hashes >> np.uint64(29)
        return places, hashes

    def _text(self, place: int) -> str:
        return " ".join(self._words[i] for i in self._ids[place:place + self._n])
