"""figures.py - graded samples of the test problems -> what an arm is judged by.

    pass@1 and the rest          as in evaluate.py
    repeated                     share of the 8-grams of token ids that stood before in the completion;
                                 8 tokens are about one trial
    words_per_paragraph          words of the chain of thought / its paragraphs. The task's language has
                                 no line breaks: a paragraph ends where the next reflection word stands
    budgets                      pass@1 and cons@k if thinking had been cut after so many tokens: what had
                                 not ended by then has no answer. Draws are one after the other, so the
                                 first tokens of a sample are those of a shorter one
    votes                        cons@j over the first j samples of each problem
    right                        share of right samples of each problem, for paired differences
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from r1grpo.evaluate import recompute
from r1grpo.rewards import get_repetition_penalty_reward
from r1grpo.tasks.wording import reflection_count
from r1grpo.tokenizer import split_thinking

Row = dict[str, Any]

BUDGETS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
VOTES = (1, 2, 4, 8, 16)
SHOWN = ("pass@1", "pass@1_ci", "pass@16", "cons@k", "wellformed_accuracy", "format",
         "language_consistency", "mean_tokens", "truncated", "reflection_per_response")
_repetition = get_repetition_penalty_reward(8, -1.0, unit="tokens")


def arm_figures(samples: Sequence[Row]) -> dict[str, Any]:
    """{"figures", "right"} of an arm's samples; grades them."""
    found = recompute(samples)
    texts, ids = [one["completion"] for one in samples], [one["completion_ids"] for one in samples]
    figures = {name: found[name] for name in SHOWN if name in found}
    figures["repeated"] = -sum(_repetition(completions=texts, completion_ids=ids)) / len(samples)
    figures["words_per_paragraph"] = sum(map(_words_per_paragraph, texts)) / len(samples)
    problems: dict[int, list[bool]] = {}
    for one in samples:
        problems.setdefault(one["problem"], []).append(one["rewards"]["accuracy"] == 1.0)
    return {"figures": figures, "right": [sum(p) / len(p) for _, p in sorted(problems.items())]}


def _words_per_paragraph(text: str) -> float:
    thought = re.sub(r"<[^>]*>", " ", split_thinking(text)[0])
    return len(thought.split()) / (reflection_count(thought) + 1)


def by_budget(samples: Sequence[Row]) -> dict[str, list[list[float]]]:
    """{"pass@1": [[budget, value], ...], "cons@k": ...}."""
    curves: dict[str, list[list[float]]] = {"pass@1": [], "cons@k": []}
    for budget in BUDGETS:
        cut = [one if len(one["completion_ids"]) <= budget else
               {**one, "completion": "", "completion_ids": [], "finish_reason": "length"}
               for one in map(copy.copy, samples)]
        found = recompute(cut)
        for name, curve in curves.items():
            curve.append([budget, found[name]])
    return curves


def by_votes(samples: Sequence[Row]) -> list[list[float]]:
    """[[j, cons@j], ...]."""
    return [[j, recompute([copy.copy(one) for one in samples if one["generation"] < j])["cons@k"]]
            for j in VOTES]
