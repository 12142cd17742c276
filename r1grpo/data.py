"""Rows of text to rows of ids, and the scan for leaked test problems.

    document_row   a corpus document -> {"prompt_ids", "completion_ids", "weights", "problem_key"}
    scan_leaks     the JSONL files of a run x problems -> every place where one of them stands

The split itself is `tasks.split_of`, a pure function of the problem key. Knows nothing about
models or about how problems are drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .tasks.corpus import Document, loss_weights
from .tasks.problem import Problem, split_of
from .tasks.wording import (ARITHMETIC_QUESTIONS, COUNTDOWN_QUESTIONS, arithmetic_question,
                            countdown_questions)
from .tokenizer import ASSISTANT, USER, WordTokenizer

HELD_OUT = ("test", "ood")


def document_row(document: Document, tokenizer: WordTokenizer) -> dict[str, Any]:
    """A document as a training row: the loss is on the completion, in drills on part of it."""
    return {"prompt_ids": tokenizer.encode(document.prompt),
            "completion_ids": tokenizer.encode(document.completion),
            "weights": loss_weights(document), "kind": document.kind, "problem_key": document.key}


# --- leaks -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Leak:
    """A held-out problem in a training file: where, which, and in which field."""

    file: str
    line: int
    key: str
    field: str


def scan_leaks(files: Iterable[str | os.PathLike[str]],
               problems: Iterable[Problem]) -> list[Leak]:
    """Every row of the JSONL files that names or poses a held-out problem.

    A row leaks if its `problem_key` belongs to one of `problems` or hashes to test or ood, or if
    any string in it, at any depth, poses one of `problems` in any wording of either language.
    """
    problems = list(problems)
    keys = {problem.key for problem in problems}
    posed = {question: problem.key for problem in problems for question in all_questions(problem)}
    leaks = []
    for file in files:
        path = os.fspath(file)
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
                for name, text in _strings(row):
                    if name.endswith("problem_key"):
                        if text in keys or split_of(text) in HELD_OUT:
                            leaks.append(Leak(path, number, text, name))
                    else:
                        leaks += [Leak(path, number, posed[question], name)
                                  for question in questions_in(text) if question in posed]
    return leaks


def all_questions(problem: Problem) -> set[str]:
    """A problem in every wording of both languages (a general prompt: its own wording)."""
    questions = {problem.question}
    for language in COUNTDOWN_QUESTIONS:
        if problem.numbers is not None and problem.target is not None:
            questions.update(countdown_questions(problem.numbers, problem.target, language))
        elif problem.task == "arithmetic":
            chain = problem.key.partition(":")[2]
            wordings = len(ARITHMETIC_QUESTIONS[language]) * 2 ** (len(chain.split()) // 2)
            questions.update(arithmetic_question(chain, language, i) for i in range(wordings))
    return questions


def questions_in(text: str) -> Iterator[str]:
    """The questions that a text poses: what stands between `User:` and `Assistant:`, or, in a
    text without these words, the whole text."""
    if USER not in text:
        yield text.strip()
    for part in text.split(USER)[1:]:
        yield part.partition(ASSISTANT)[0].strip()


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(field name, string) of every string in a JSON value."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, name)
