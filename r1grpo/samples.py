"""samples.py - every judged sample of a run as a row of samples.jsonl, and what is suspicious about it.

    {"step", "attempt", "sample", "problem_key", "prompt", "completion", "finish_reason",
     "rewards": {name: number or null}, "verdicts": {name: reason}, "details": {name: why, in words},
     "sandbox": {name: level}, "signs": [...], "canary": true}

step is the first update that learns from the sample's rollout; with dynamic sampling a rollout has several
attempts, and not all of their samples are learned from. A row is complete in itself: `r1grpo audit` reads
nothing else. The first reward is the verifier (guards.py). Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .judging import Scores
from .rollout import Completions
from .scoring import Rewards
from .verifiers.signs import hack_signs

Row = dict[str, Any]
_DETAIL = 500  # characters of what a verdict says in words


def sample_rows(step: int, attempt: int, rewards: Rewards, rows: Sequence[Row],
                completions: Completions, scores: Scores) -> Iterator[Row]:
    """The rows of a rollout that was sampled at `step`; rewards: who judged it, rows (P): the problems."""
    for i, (text, values) in enumerate(zip(completions.texts, scores.parts.tolist(), strict=True)):
        problem = rows[i // completions.group_size]
        row = {"step": step + 1, "attempt": attempt, "sample": i,
               "problem_key": problem.get("problem_key"), "prompt": problem.get("prompt"),
               "completion": text, "finish_reason": completions.finish_reasons[i],
               "rewards": {name: None if math.isnan(value) else value
                           for name, value in zip(rewards.names, values, strict=True)}}
        if not text:
            row["completion_ids"] = completions.completion_ids[i].tolist()
        if reasons := {name: told[i] for name, told in scores.reasons.items() if told[i] is not None}:
            row["verdicts"] = reasons
        if words := {name: told[i][:_DETAIL] for name, told in scores.words.items() if told[i]}:
            row["details"] = words
        if held := {name: level for name, level in rewards.sandboxes.items()
                    if name in reasons or row["rewards"][name] is not None}:
            row["sandbox"] = held
        if signs := hack_signs(text):
            row["signs"] = signs
        if problem.get("canary"):
            row["canary"] = True
        yield row


def suspicion(row: Mapping[str, Any]) -> list[str]:
    """What speaks against a sample that the verifier passes, the strongest first; [] for the others."""
    rewards = row.get("rewards") or {}
    verifier = next(iter(rewards.values()), None)
    if verifier is None or verifier <= 0:
        return []
    found = ["a canary is rewarded"] if row.get("canary") else []
    found += [f"{name} does not pass it" for name, value in rewards.items()
              if name.startswith("audit_") and value is not None and value <= 0]
    found += [f"sign: {sign}" for sign in row.get("signs", ())]
    return found + (["rewarded though cut off"] if row.get("finish_reason") == "length" else [])


def weight(row: Mapping[str, Any]) -> int:
    """How suspicious a sample is: any canary before any audit before any sign, then their number."""
    found = suspicion(row)
    rank = 0 if not found else 1000 if row.get("canary") else \
        100 if found[0].endswith("does not pass it") else 10 if row.get("signs") else 1
    return rank + len(found)
