"""rejection.py - rejection sampling: many samples in, rows worth learning from out.

    k samples a prompt -> correct -> filters (readable, ...) -> rewritten -> unique -> the best m

DeepSeek-R1 makes its reasoning data so: several samples a prompt, only correct ones kept, those of
mixed language, long paragraphs or code blocks dropped (arXiv 2501.12948v2, B.3.3); the cold-start
data are rewritten besides (B.3.2). How many samples a prompt and how many are kept is not
published: ours. Every kept row says where it comes from, every dropped one is counted by reason.

The best are the first, or those that a ranking puts first. Where there is one, rows that no rule can
check (general prompts) are kept by it alone, if anything follows the thought. A row with the column
thought = False is a trivial query: its answer is learned without a chain of thought, as the paper has it
for a greeting (B.3.3).

The row's correct function, filters and ranking are given: nothing here knows what an answer is.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import EvalConfig
from .folder import asked_and_tokenizer
from .judging import Scores
from .rollout import Completions, rollout
from .scoring import RewardFunction, Rewards
from .tokenizer import END_THINK, THINK, split_thinking
from .trainer import completion_ids_of, prompt_ids_of, require_policy

Row = dict[str, Any]


@dataclass
class Rejection:
    """What rejection sampling kept and dropped."""

    rows: list[Row]  # columns of the problem, prompt_ids, completion, completion_ids, source
    kept: int
    sampled: int
    sampled_tokens: int
    dropped: dict[str, int]  # reason -> samples

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {why}" for why, n in self.dropped.items())
        return f"{self.kept} of {self.sampled} samples kept; dropped: {reasons or 'none'}"


def rejection_sample(model: Any, problems: Sequence[Row], args: EvalConfig | None = None, *,
                     correct: RewardFunction, processing_class: Any = None,
                     filters: Mapping[str, Callable[[Row, str], bool]] | None = None,
                     rewrite: Callable[[Row, str], str | None] | None = None,
                     rank: Callable[[Row, list[str]], Sequence[float]] | None = None,
                     max_per_problem: int = 1, source: str = "", first: int = 0) -> Rejection:
    """Sample args.k completions of each problem (a dataset row) and keep the good ones.

    model: a Model, or the folder of one, whose tokenizer and name are then the defaults of
    processing_class and source.
    correct: a reward function, 1.0 is right. filters: name -> f(row, completion), False drops.
    rewrite: f(row, completion) -> the text to learn, None drops ("rewrite"). The completion_ids of
    a row are the sampled ids, or, rewritten, the encoded text and the end-of-text token.
    rank: f(row, texts to learn) -> a score each; the highest are kept, first, with their score in
    source, and rows that correct says nothing about are too.
    source: the name of the checkpoint, kept in each row with seed, problem and sample number.
    first: the number of problems[0], where they are a part of a longer list: a problem's samples
    are those of its number, however the list is cut.
    """
    args = args or EvalConfig()
    if isinstance(model, (str, os.PathLike)):
        source = source or Path(model).name
    model, processing_class = asked_and_tokenizer(model, processing_class)
    require_policy("rejection_sample", model)
    sieve, judge = Sieve(filters or {}, rewrite, rank, max_per_problem), Rewards(correct)
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    sampled = tokens = 0
    for start in range(0, len(problems), args.batch_prompts):
        part = problems[start:start + args.batch_prompts]
        numbers = list(range(first + start, first + start + len(part)))
        prompts = [prompt_ids_of(row, processing_class, f"problem {number}")
                   for number, row in zip(numbers, part)]
        done = rollout(model, prompts, args.k, args.sampling(), args.stop_strings,
                       processing_class, args.seed, 0, numbers)
        scores = judge.score(part, done)
        sampled += len(done)
        tokens += sum(map(len, done.completion_ids))
        for p, problem in enumerate(part):
            for i, learned, told in sieve.keep(problem, done, p, scores, dropped):
                ids = done.completion_ids[i].tolist() if learned == done.texts[i] else \
                    completion_ids_of(learned, processing_class)
                rows.append({**problem, "prompt_ids": prompts[p], "completion": learned,
                             "completion_ids": ids,
                             "source": {"model": source, "seed": args.seed, "problem": numbers[p],
                                        "sample": i - p * args.k, **told}})
    return Rejection(rows, len(rows), sampled, tokens, dict(sorted(dropped.items())))


@dataclass(frozen=True)
class Sieve:
    """Which of a problem's samples are kept, see rejection_sample."""

    filters: Mapping[str, Callable[[Row, str], bool]]
    rewrite: Callable[[Row, str], str | None] | None = None
    rank: Callable[[Row, list[str]], Sequence[float]] | None = None
    most: int = 1

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"max_per_problem is {self.most}, expected at least 1")

    def keep(self, problem: Row, done: Completions, p: int, scores: Scores, dropped: Counter[str]
             ) -> list[tuple[int, str, Row]]:
        """(sample, what is to be learned, what its source says: score where there is a ranking, verdict
        'none' where no rule applied) of those of prompt p that are kept, the best first; the others are
        counted by reason."""
        passed: dict[str, int] = {}  # what is to be learned -> its sample
        failed = scores.failed
        for i in done.group(p):
            reason = self._refused(done.finish_reasons[i], scores.parts[i, 0], failed[i])
            learned = "" if reason else done.texts[i]
            if reason is None:
                reason = next((name for name, keep in self.filters.items() if not keep(problem, learned)), None)
            if reason is None and math.isnan(scores.parts[i, 0]) \
                    and not split_thinking(learned, done.prefilled[i])[1]:
                reason = "no_answer"  # a rule would have said so
            if reason is None and problem.get("thought") is False:
                learned = without_thought(learned, done.prefilled[i])
                reason = None if learned else "no_answer"
            if reason is None and self.rewrite is not None:
                rewritten = self.rewrite(problem, learned)
                reason, learned = ("rewrite", "") if rewritten is None else (None, rewritten)
            if reason is None and learned in passed:
                reason = "duplicate"
            if reason is None:
                passed[learned] = i
            else:
                dropped[reason] += 1
        ranked = self._ranked(problem, list(passed))
        if surplus := len(ranked[self.most:]):
            dropped["surplus"] += surplus
        return [(passed[text], text, told | ({"verdict": "none"} if math.isnan(scores.parts[passed[text], 0]) else {}))
                for text, told in ranked[:self.most]]

    def _refused(self, finish_reason: str, verdict: float, failed: bool) -> str | None:
        """Why a sample is not kept whatever it says; verdict NaN: there is none."""
        if finish_reason == "length":
            return "truncated"
        if math.isnan(verdict):
            return "no_verdict" if failed or self.rank is None else None
        return None if verdict == 1.0 else "wrong"

    def _ranked(self, problem: Row, texts: list[str]) -> list[tuple[str, Row]]:
        """Texts in the order in which they are kept, each with its score where there are scores."""
        if self.rank is None or not texts:
            return [(text, {}) for text in texts]
        scores = [float(one) for one in self.rank(problem, texts)]
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise ValueError(f"rank gave {scores}, expected {len(texts)} finite numbers")
        order = sorted(range(len(texts)), key=lambda i: -scores[i])  # of equals the first sampled
        return [(texts[i], {"score": scores[i]}) for i in order]


def without_thought(text: str, prefilled: bool = False) -> str:
    """A completion with an empty thought; "" where nothing follows the thought.

    >>> without_thought("<think>they greet me</think>Hello!")
    '<think>\\n\\n</think>\\n\\nHello!'
    """
    answer = split_thinking(text, prefilled)[1]
    return f"{'' if prefilled else THINK}\n\n{END_THINK}\n\n{answer}" if answer else ""
