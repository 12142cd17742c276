"""R1-Zero's completions made readable: which are kept for the cold start, and their new form.

`rewrite_to_summary` keeps a completion that is right and readable after its connectives are
translated, word by word, into the language of the prompt, and writes it in the R1 format:

    <think> the thought </think> the answer is \\boxed{ 7 * 5 + 2 } .

Readable (arXiv 2501.12948 v2, B.3.2: correct, no repetition, no mixed language; the rest is our
choice): well-formed, one language, every written equation holds, no trial twice.
Knows nothing about how the completion was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ..tokenizer import (BOX, END_BOX, END_THINK, THINK, extract_answer, is_wellformed,
                         split_thinking)
from ..verifiers import apply_operator, verify
from .wording import SUMMARY, translate_connectives, word_language


def equations(thought: str) -> list[list[str]]:
    """The worked chains of a thought, each as its words: "7 * 5 = 35 + 2 = 37"."""
    chains: list[list[str]] = [[]]
    for word in thought.split():
        if word.isdigit() or word in "+-*=":
            chains[-1].append(word)
        elif chains[-1]:
            chains.append([])
    return [chain for chain in chains if chain]


def equations_hold(thought: str) -> bool:
    """Whether every chain alternates number, operator, number, "=", result, ... and is true."""
    for chain in equations(thought):
        if len(chain) < 5 or (len(chain) - 1) % 4:
            return False
        for i in range(0, len(chain) - 1, 4):
            left, operator, right, equals, result = chain[i:i + 5]
            numbers = left.isdigit() and right.isdigit() and result.isdigit()
            if not numbers or operator not in "+-*" or equals != "=":
                return False
            if apply_operator(int(left), operator, int(right)) != int(result):
                return False
    return True


def has_repeats(thought: str) -> bool:
    """Whether a trial is written twice, or a word twice in a row."""
    trials = [" ".join(chain) for chain in equations(thought)]
    words = thought.split()
    return len(set(trials)) < len(trials) or any(
        one == two and not one.isdigit() for one, two in pairwise(words))


def is_readable(text: str, language: str) -> bool:
    """Whether a thought is in one language, true in every equation and free of repetition."""
    words = {found for found in map(word_language, text.split()) if found}
    return words == {language} and equations_hold(text) and not has_repeats(text)


def box_answer(thought: str, answer: str, language: str) -> str:
    """A completion in the R1 format with a summary that boxes the answer."""
    summary = SUMMARY[language].format(box=f"{BOX} {answer} {END_BOX}")
    return f"{THINK} {thought} {END_THINK} {summary}"


def rewrite_to_summary(completion: str, row: Mapping[str, Any]) -> str | None:
    """The completion of the zero template in the R1 format, in the prompt's language; None where
    it is wrong, malformed or unreadable. `row` has the columns of `Problem.row`."""
    answer, language = extract_answer(completion, "zero"), row["language"]
    verdict = verify(answer, row["task"], row["numbers"], row["target"], row["answer"])
    if verdict is None or not verdict.correct or not is_wellformed(completion, "zero"):
        return None
    thought = translate_connectives(split_thinking(completion)[0], language)
    if not equations(thought) or not is_readable(thought, language):
        return None
    return box_answer(thought, answer or "", language)
