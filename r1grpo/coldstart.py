"""coldstart.py - the cold start's rows: candidates go out to be edited by hand and come back judged again.

    asked     with_examples           worked examples with long thoughts before the question
    sampled   rejection_sample, or of_a_run: what a run (R1-Zero's) has sampled already
    out       candidates_of(rows)     id, prompt, completion, source, verdict, kept (why), the problem's columns
    edited    by hand: completions are rewritten, lines are deleted, nothing else
    back      take_back(...)          rows of SFTTrainer; the source says which were edited

DeepSeek-R1's cold start (arXiv 2501.12948v1, 2.3.1; v2, B.3.2) tried just these: few-shot prompts with long
chains of thought, prompts that ask for reflection and verification, readable outputs of R1-Zero, and people
who edit them. A candidate's prompt is the bare question, whatever was asked: examples and instructions are
scaffolding. Its id is a hash of prompt, completion and source, so that it proves what it is of.
Knows nothing about files or what an answer is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .brief import brief
from .rejection import Sieve
from .rollout import Completions
from .scoring import RewardFunction, Rewards
from .tokenizer import END_THINK, THINK
from .trainer import completion_ids_of

Row = dict[str, Any]
END_SHOT = "\n\nProblem:"  # where a base model that has answered goes on to a problem of its own
_OURS = ("id", "verdict", "kept")
IDS = ("prompt_ids", "completion_ids", "tokenizer")  # of the scaffolding; the text is what is learned


# ---- asked --------------------------------------------------------------------------------------


def with_examples(prompt: Any, examples: Sequence[Mapping[str, str]]) -> Any:
    """A prompt (text, or messages: in the last of them) behind worked examples (prompt, completion).

    >>> print(with_examples("2 + 2?", [{"prompt": "1 + 1?", "completion": "<think>two ones</think>2"}]))
    Problem: 1 + 1?
    Solution: <think>two ones</think>2
    <BLANKLINE>
    Problem: 2 + 2?
    """
    if not isinstance(prompt, str):
        last = prompt[-1]
        return [*prompt[:-1], {**last, "content": with_examples(last["content"], examples)}]
    shots = [f"Problem: {one['prompt']}\nSolution: {one['completion']}" for one in examples]
    return "\n\n".join([*shots, f"Problem: {prompt}"])


def choose_examples(examples: Sequence[Row], row: Row, shots: int, seed: int, number: int) -> list[int]:
    """Which examples stand before problem `number`: drawn by the seed and the number, never the problem
    itself."""
    others = [i for i, one in enumerate(examples) if one["prompt"] != row["prompt"]]
    return np.random.default_rng([seed, number]).permutation(others)[:shots].tolist()


# ---- sampled by a run ---------------------------------------------------------------------------


def match_samples(problems: Sequence[Row], samples: Iterable[Row]) -> list[list[Row]]:
    """Of each problem the samples of its prompt, among those of a run (rows of samples.jsonl), newest first."""
    by_prompt: dict[str, list[Row]] = {json.dumps(row["prompt"]): [] for row in problems}
    for one in samples:
        found = by_prompt.get(json.dumps(one.get("prompt")))
        if found is not None and one.get("completion"):
            found.append(one)
    return [by_prompt.pop(json.dumps(row["prompt"]), [])[::-1] for row in problems]


def of_a_run(problems: Sequence[Row], matched: Sequence[Sequence[Row]], correct: RewardFunction, sieve: Sieve,
             processing_class: Any, source: Mapping[str, Any], dropped: Counter[str],
             tell: Callable[[], object] = lambda: None) -> Iterator[Row]:
    """What is kept, as by rejection_sample, of the samples of match_samples, judged anew. source: of the run;
    dropped: counts the others by reason; tell: called after each problem."""
    judge = Rewards(correct)
    for number, (row, mine) in enumerate(zip(problems, matched, strict=True)):
        if mine:
            done = _completions([_whole(one["completion"]) for one in mine], processing_class, len(mine),
                                [one.get("finish_reason", "stop") for one in mine])
            for i, learned, told in sieve.keep(row, done, 0, judge.score([row], done), dropped):
                where = {key: mine[i][key] for key in ("stage", "step", "attempt", "sample") if key in mine[i]}
                yield {**row, "completion": learned, "source": {**source, "problem": number, **where, **told}}
        tell()


def _completions(texts: Sequence[str], processing_class: Any, group_size: int, finish_reasons: Sequence[str]
                 ) -> Completions:
    """Texts as if they had just been sampled."""
    ids = [np.array(completion_ids_of(text, processing_class), np.int32) for text in texts]
    return Completions([[] for _ in range(len(texts) // group_size)], group_size, ids,
                       [np.zeros(len(one), np.float32) for one in ids], list(finish_reasons), list(texts),
                       [False] * len(texts))


def _whole(completion: str) -> str:
    """A completion with the <think> that its prompt may have opened."""
    return f"{THINK}\n{completion}" if END_THINK in completion and THINK not in completion else completion


# ---- out and back -------------------------------------------------------------------------------


def candidates_of(rows: Iterable[Row], rule: str, also: Sequence[str] = (), end: str | None = None) -> list[Row]:
    """Rows of rejection_sample or of_a_run as candidates. rule: the name of who says what is right, also: why
    else they are kept; end: the stop string of the sampling, which is no part of an answer."""
    found = []
    for row in rows:
        text = _whole(row["completion"])
        text = text.partition(end)[0].strip() if end else text
        source = row["source"]
        verdict = source.get("verdict", "right")
        found.append({"id": _mark(row["prompt"], text, source), **_problem_of(row), "completion": text,
                      "source": source, "verdict": verdict,
                      "kept": ", ".join([*([f"right by {rule}"] if verdict == "right" else []), *also])})
    return found


def _mark(prompt: Any, completion: str, source: Mapping[str, Any]) -> str:
    text = json.dumps([prompt, completion, source], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class TamperedError(ValueError):
    """The candidates themselves were edited, so that nothing says any more what was sampled."""


@dataclass(frozen=True)
class Returned:
    """rows: prompt, completion, source and the problem's columns; counts: as_sampled, edited, dropped."""

    rows: list[Row]
    counts: dict[str, int]


def take_back(candidates: Sequence[Row], edited: Iterable[tuple[str, Row]], correct: RewardFunction,
              processing_class: Any = None,
              filters: Mapping[str, Callable[[Row, str], bool]] | None = None) -> Returned:
    """The rows to learn from. edited: (where it stands, such as 'mine.jsonl line 3', row) of what came
    back; what was edited is judged and filtered again. Its source has the candidate's id, which is the
    hash of the original, and whether it was edited. ValueError names every row that cannot be learned:
    wrong now, no candidate's, twice there, or otherwise than its candidate in more than the completion."""
    known = {one["id"]: one for one in candidates}
    for one in candidates:
        if _mark(one["prompt"], one["completion"], one["source"]) != one["id"]:
            raise TamperedError(f"candidate {one['id']} is not what was sampled: edit a copy of the candidates")
    problems: list[str] = []
    back: dict[str, tuple[str, str]] = {}  # id -> where it stands, its completion
    for where, row in edited:
        if problem := _misplaced(row, known, back):
            problems.append(f"{where}: {problem}")
        else:
            back[row["id"]] = where, row["completion"]
    changed = [one for one, (_, text) in back.items() if text != known[one]["completion"]]
    problems += [f"{back[one][0]} ({one}): {problem}" for one, problem in zip(changed, _judged_again(
        [known[one] for one in changed], [back[one][1] for one in changed], correct, processing_class,
        filters or {})) if problem]
    if problems:
        raise ValueError(f"{len(problems)} edited rows cannot be learned: {'; '.join(problems[:10])}"
                         f"{'; ...' if len(problems) > 10 else ''}")
    rows = [{**_problem_of(known[one]), "completion": text,
             "source": {**known[one]["source"], "candidate": one, "edited": text != known[one]["completion"]}}
            for one, (_, text) in back.items()]
    return Returned(rows, {"as_sampled": len(back) - len(changed), "edited": len(changed),
                           "dropped": len(known) - len(back)})


def _problem_of(row: Row) -> Row:
    """The columns of the problem."""
    return {key: value for key, value in row.items() if key not in (*_OURS, *IDS, "completion", "source")}


def _misplaced(row: Row, known: Mapping[str, Row], back: Mapping[str, Any]) -> str | None:
    """Why a row that came back is none, whatever its completion says."""
    one = row.get("id")
    if not isinstance(one, str) or one not in known:
        return f"its id is {brief(one)}, which is no candidate's"
    if one in back:
        return f"{one} is there twice, first in {back[one][0]}"
    for key, value in row.items():
        if key != "completion" and key in known[one] and value != known[one][key]:
            return f"{one} has another {brief(key)} than its candidate; only its completion may be edited"
    if not isinstance(row.get("completion"), str) or not row["completion"].strip():
        return f"{one} has no completion; to drop it, delete its line"
    return None


def _judged_again(candidates: Sequence[Row], texts: Sequence[str], correct: RewardFunction,
                  processing_class: Any, filters: Mapping[str, Callable[[Row, str], bool]]) -> list[str | None]:
    """What is wrong with each edited text, if anything; one that no rule can check is as its editor says."""
    if not candidates:
        return []
    rows = [_problem_of(one) for one in candidates]
    rewards = Rewards(correct)
    scores = rewards.score(rows, _completions(texts, processing_class, 1, ["stop"] * len(texts)))
    told = scores.reasons.get(rewards.names[0], [None] * len(rows))
    found: list[str | None] = []
    for i, (row, text, value, failed) in enumerate(zip(rows, texts, scores.parts[:, 0], scores.failed)):
        if failed:
            found.append(f"it could not be judged: {told[i]}")
        elif value != 1.0 and value == value:
            found.append(f"its answer is {told[i] or 'wrong'} by {rewards.names[0]}")
        else:
            found.append(next((f"it does not pass the filter {name!r}" for name, keep in filters.items()
                               if not keep(row, text)), None))
    return found
