"""rejection.py - rejection sampling: many samples in, rows worth learning from out.

    k samples a prompt -> correct -> filters (readable, ...) -> rewritten -> unique -> at most m

DeepSeek-R1 makes its reasoning data so: several samples a prompt, only correct ones kept, those of
mixed language, long paragraphs or code blocks dropped (arXiv 2501.12948v2, B.3.3); the cold-start
data are rewritten besides (B.3.2). How many samples a prompt and how many are kept is not
published: ours. Every kept row says where it comes from, every dropped one is counted by reason.

The row's correct function and filters are given: nothing here knows what an answer is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import EvalConfig
from .folder import asked_and_tokenizer
from .rollout import rollout
from .scoring import RewardFunction, Rewards
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
                     max_per_problem: int = 1, source: str = "", first: int = 0) -> Rejection:
    """Sample args.k completions of each problem (a dataset row) and keep the good ones.

    model: a Model, or the folder of one, whose tokenizer and name are then the defaults of
    processing_class and source.
    correct: a reward function, 1.0 is right. filters: name -> f(row, completion), False drops.
    rewrite: f(row, completion) -> the text to learn, None drops ("rewrite"). The completion_ids of
    a row are the sampled ids, or, rewritten, the encoded text and the end-of-text token.
    source: the name of the checkpoint, kept in each row with seed, problem and sample number.
    first: the number of problems[0], where they are a part of a longer list: a problem's samples
    are those of its number, however the list is cut.
    """
    args = args or EvalConfig()
    if isinstance(model, (str, os.PathLike)):
        source = source or Path(model).name
    model, processing_class = asked_and_tokenizer(model, processing_class)
    require_policy("rejection_sample", model)
    if max_per_problem < 1:
        raise ValueError(f"max_per_problem is {max_per_problem}, expected at least 1")
    judge = Rewards(correct)
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
        verdicts = judge.score(part, done).parts[:, 0]
        sampled += len(done)
        tokens += sum(map(len, done.completion_ids))
        for p, problem in enumerate(part):
            kept: dict[str, Row] = {}
            for i in done.group(p):
                text, reason = done.texts[i], None
                if done.finish_reasons[i] == "length":
                    reason = "truncated"
                elif verdicts[i] != 1.0:
                    reason = "wrong"
                else:
                    reason = next((name for name, keep in (filters or {}).items()
                                   if not keep(problem, text)), None)
                learned = text
                if reason is None and rewrite is not None:
                    rewritten = rewrite(problem, text)
                    reason, learned = ("rewrite", "") if rewritten is None else (None, rewritten)
                if reason is None and learned in kept:
                    reason = "duplicate"
                if reason is None and len(kept) == max_per_problem:
                    reason = "surplus"
                if reason is not None:
                    dropped[reason] += 1
                    continue
                ids = done.completion_ids[i].tolist() if rewrite is None else \
                    completion_ids_of(learned, processing_class)
                kept[learned] = {**problem, "prompt_ids": prompts[p], "completion": learned,
                                 "completion_ids": ids,
                                 "source": {"model": source, "seed": args.seed,
                                            "problem": numbers[p], "sample": i - p * args.k}}
            rows += kept.values()
    return Rejection(rows, len(rows), sampled, tokens, dict(sorted(dropped.items())))
