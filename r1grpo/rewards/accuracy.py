"""Accuracy: 1 if the final answer is right, 0 if not (arXiv 2501.12948 v2, 2.2), as Verdicts, which say
why; None for rows without a verifiable answer. The answer counts wherever the template says it stands, even where
the rest of the format is broken: format has a reward of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..brief import brief
from ..tokenizer import extract_answer
from ..verifiers import (Verdict, equation_problem, final_answer, gold_problem, verify, verify_answer,
                         verify_choice, verify_equation, verify_logic, verify_string)
from .text import Completion, texts

RULES = {"choice": verify_choice, "string": verify_string, "logic": verify_logic}


def accuracy_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                    completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[Verdict | None]:
    """Verdicts on the final answers; None where there is no rule. Columns: answer, or without one solution,
    whose final answer is the reference; or, in rows of r1grpo.tasks, template, task and what the task
    checks; prefilled, from the trainer."""
    return _verdicts(completions, False, **columns)


def math_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[Verdict | None]:
    """accuracy_reward with math-verify where exact rules cannot decide. That keeps no time limit: for
    worker processes, which do."""
    return _verdicts(completions, True, **columns)


def reference_problem(row: Mapping[str, Any]) -> str | None:
    """Why no completion could be right about a row, by the rule that it takes; None where one could, or
    where there is no rule, and for rows of r1grpo.tasks, whose references are their own."""
    task, answer = row.get("task"), row.get("answer")
    if row.get("template") is not None:
        return None
    if task == "equation":
        lacks = [name for name in ("numbers", "target") if row.get(name) is None]
        return f"an equation row lacks {' and '.join(lacks)}" if lacks else \
            equation_problem(row["numbers"], row["target"])
    if answer is None or task not in RULES:
        return None if answer is None else gold_problem(answer)
    try:
        RULES[task]("", str(answer))  # which reads the reference first
    except ValueError as why:
        return str(why)
    return None


def _verdicts(completions: Sequence[Completion], algebra: bool, /,
              template: Sequence[str | None] | None = None, task: Sequence[str | None] | None = None,
              numbers: Sequence[Sequence[int] | None] | None = None,
              target: Sequence[int | None] | None = None,
              answer: Sequence[str | None] | None = None,
              solution: Sequence[str | None] | None = None,
              prefilled: Sequence[bool] | None = None, **_: Any) -> list[Verdict | None]:
    nothing = [None] * len(completions)
    if answer is None and solution is not None:
        answer = [one and (final_answer(one) or one) for one in solution]
    return [_explained(_verdict(algebra, *row), *row) for row in zip(
        texts(completions), prefilled or [False] * len(completions), template or nothing,
        task or nothing, numbers or nothing, target or nothing, answer or nothing, strict=True)]


def _explained(verdict: Verdict | None, text: str, inside: bool, template: str | None, *row: Any) -> Verdict | None:
    """A verdict that is not right, with the answer that was found and the reference in its words."""
    *_, answer = row
    if verdict is None or verdict.correct or template is not None or answer is None:
        return verdict
    found = final_answer(text, inside)
    words = "no final answer" if found is None else f"{brief(found)}, expected {brief(answer)}"
    return replace(verdict, detail=f"{words}; {verdict.detail}" if verdict.detail else words)


def _verdict(algebra: bool, text: str, inside: bool, template: str | None, task: str | None,
             *reference: Any) -> Verdict | None:
    """Rows of r1grpo.tasks name their template and task; others have an answer, or none, and may say
    by the column task which rule it takes: choice, string, logic, equation (else: mathematics)."""
    if template is not None:
        return verify(extract_answer(text, template), str(task), *reference)
    numbers, target, answer = reference
    if task == "equation":
        if numbers is None or target is None:
            raise ValueError("an equation row needs the columns numbers and target")
        return verify_equation(text, numbers, target, inside)
    if task in RULES:
        return None if answer is None else RULES[task](text, str(answer), inside)
    return None if answer is None else verify_answer(final_answer(text, inside), str(answer), algebra)
