"""curate.py - `r1grpo curate`: how often a model solves each problem, and those worth reinforcing.

    DIR/measured.jsonl    a line a prompt, appended as batches are done: --resume goes on behind it
    DIR/rows.jsonl        what is kept: the rows as they were read, with pass_rate and curation
    DIR/dropped.jsonl     the rest, with the reason
    DIR/figures.json      the histogram, all right and all wrong apart, types, what failed

Rows are dropped for what they say before they are sampled. The choice behind the samples (low, high,
balance, per_type) may be another when a run is resumed: then nothing is sampled again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EvalConfig
from ..curation import Measured, Samples, Sampler, choose, describe, figures, measure, types_of, unique
from ..model import Model
from ..rollout import rollout
from ..rundir import JsonlLog, read_jsonl
from ..safe_files import write_atomic
from ..scoring import RewardFunction, Rewards
from ..work import Work
from .inputs import (Row, check_columns, open_sampler, read_rows, sampling_plan, stand_in_eval_data,
                     with_prompt_ids)
from .options import CURATE, CurateInputs
from .reject import open_judged
from .stage import fits, note_sandboxes, showing, working, write_rows

ROWS, DROPPED, MEASURED, FIGURES = "rows.jsonl", "dropped.jsonl", "measured.jsonl", "figures.json"


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options, correct, tokenizer = open_judged(CURATE, flags)
    inputs, args = options.inputs, options.args
    data = read_rows(inputs)
    asked = with_prompt_ids(data, inputs, tokenizer)
    check_columns(inputs, asked)
    reasons = _said_before(asked, inputs)
    numbers = [i for i in range(len(data)) if i not in reasons]
    rows = [asked[i] for i in numbers]
    if not rows:
        raise ValueError(f"{inputs.data}: no row is left: {_counted(reasons)}")
    types = types_of(rows, inputs.balance) if inputs.balance else None
    if not fits(flags, sampling_plan(inputs, args, rows)):
        return 0
    with working(options, flags.out, flags.resume) as work, showing(work, {"curation": len(rows)}):
        note_sandboxes(work, Rewards(correct))
        measured = _measured(work, rows, numbers, inputs, args, tokenizer, correct)
        why = choose(measured, inputs.low, inputs.high, types, inputs.per_type, args.seed)
        found = {"rows": len(data), "left_out": _counted(reasons), "k": args.k, "low": inputs.low,
                 "high": inputs.high, **figures(measured, why, types)}
        judged = {one.row: _judged(one, inputs, args) for one in measured}
        reasons |= {one.row: {"reason": reason} for one, reason in zip(measured, why) if reason}
        write_rows(flags.out / ROWS, [{**data[i], **judged[i]} for i in numbers if i not in reasons])
        write_rows(flags.out / DROPPED, [{**data[i], **judged.get(i, {}), **reasons[i]}
                                         for i in sorted(reasons)])
        write_atomic(flags.out / FIGURES, json.dumps(found, indent=1, ensure_ascii=False).encode())
    print(describe(found))
    print(flags.out / ROWS)
    return 0


def _said_before(rows: Sequence[Row], inputs: CurateInputs) -> dict[int, Row]:
    """{row: its reason, and what it is like} of rows that say nothing of their own or stand in
    eval_data."""
    reasons: dict[int, Row] = {i: {"reason": reason, "like": f"row {other}"}
                               for i, (reason, other) in unique(rows).items()}
    if reasons:
        print(f"{len(reasons):,} rows have another row's prompt: {_counted(reasons)}")
    if inputs.eval_data:
        left = [i for i in range(len(rows)) if i not in reasons]
        for one in stand_in_eval_data([rows[i] for i in left], inputs).dropped:
            reasons[left[one.row]] = {"reason": one.reason, "like": one.words}
    return reasons


def _counted(reasons: dict[int, Row]) -> dict[str, int]:
    return dict(sorted(Counter(one["reason"] for one in reasons.values()).items()))


def _judged(one: Measured, inputs: CurateInputs, args: EvalConfig) -> Row:
    """What a row is given: its pass rate, and where that comes from."""
    return {"pass_rate": one.pass_rate,
            "curation": {"model": Path(inputs.model).name, "seed": args.seed, "row": one.row,
                         "right": one.right, "judged": one.judged, "failed": one.failed}}


def _measured(work: Work, rows: Sequence[Row], numbers: Sequence[int], inputs: CurateInputs,
              args: EvalConfig, tokenizer: Any, correct: RewardFunction) -> list[Measured]:
    """All prompts, those measured by an earlier process from their file; weights are loaded for the
    others alone."""
    with closing(JsonlLog(work.path / MEASURED)) as log, work.ledger.timing("curation") as entry:
        done = [Measured(**{key: value for key, value in one.items() if key != "pass_rate"})
                for one in read_jsonl(log.path)]
        if work.meter:
            work.meter.advance("curation", len(done), skipped=True)
        sample: Sampler | None = None

        def ask(which: Sequence[int], part: Sequence[Row]) -> Samples:
            nonlocal sample
            sample = sample or sampler(open_sampler(inputs, tokenizer), args, tokenizer, correct)
            work.safe_point()
            return sample(which, part)

        for batch in measure(rows, numbers, ask, args.batch_prompts, list(done)):
            for one in batch:
                log.append({**asdict(one), "pass_rate": one.pass_rate})
            log.commit()
            done += batch
            work.advance("curation", len(batch))
        work.safe_point()
        entry["sampled_tokens"] = sum(one.tokens for one in done)
    return done


def sampler(model: Model, args: EvalConfig, tokenizer: Any, correct: RewardFunction) -> Sampler:
    """args.k completions of each prompt, judged while others are sampled where correct is Pooled; the
    draws know a prompt by its number in the data, so what else is in the data changes none."""
    rewards = Rewards(correct)

    def sample(numbers: Sequence[int], rows: Sequence[Row]) -> Samples:
        prompts = [row["prompt_ids"] for row in rows]
        with rewards.judging(rows, prompts, args.k) as judging:
            done = rollout(model, prompts, args.k, args.sampling(), args.stop_strings, tokenizer, args.seed,
                           0, numbers, tell=judging.begin if judging.pooled else None)
            scores = judging.finish(done)
        shape = (len(rows), args.k)
        return Samples(scores.parts[:, 0].reshape(shape), scores.failed.reshape(shape),
                       np.array([one == "length" for one in done.finish_reasons]).reshape(shape),
                       np.array([len(one) for one in done.completion_ids]).reshape(shape))

    return sample
