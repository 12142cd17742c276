"""evaluate.py - `r1grpo eval --model FOLDER --data FILE`: pass@1, pass@k, cons@k on a data set.

    DIR/samples.jsonl    every sample with its log-probs, bit for bit repeatable
    DIR/figures.json     what follows from them

Without --out nothing is written. --out DIR --check samples all of it again and compares tokens,
log-probs, text, rewards and figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import EvalConfig
from ..evaluate import Graders, check, draw_samples, recompute
from ..measure import compact
from ..model import Model
from ..monitor import Progress
from ..rundir import read_jsonl
from ..safe_files import CheckpointError, write_atomic
from ..scoring import RewardFunction, Rewards
from .inputs import Row, check_columns, open_rows, open_sampler, sampling_plan
from .options import EVAL, Options
from .reject import open_judged
from .stage import fits, in_chunks, note_sandboxes, showing, working, write_rows

SAMPLES, FIGURES = "samples.jsonl", "figures.json"


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options, correct, tokenizer = open_judged(EVAL, flags)
    inputs, args, graders = options.inputs, options.args, _graders(correct)
    if flags.check:
        model = open_sampler(inputs, tokenizer)
        wrong = _check(flags.out, model, args, tokenizer, graders)
        print("\n".join(wrong) if wrong else "identical")
        return 1 if wrong else 0
    rows = open_rows(inputs, tokenizer)
    check_columns(inputs, rows)
    if not fits(flags, sampling_plan(inputs, args, rows)):
        return 0
    model = open_sampler(inputs, tokenizer)
    if flags.out is None:
        with Progress(len(rows), "eval", file=sys.stderr) as bar:
            samples = draw_samples(model, rows, args, tokenizer,
                                   lambda done: bar.update(done - bar.done))
        figures = recompute(samples, graders)
    else:
        figures = _durable(options, flags, model, rows, args, tokenizer, graders)
    print(table(figures))
    return 0


def _graders(correct: RewardFunction) -> Graders:
    """Only accuracy is judged: format and language have no rule for rows of any data set."""
    def nothing(completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None] * len(completions)

    return Graders(accuracy=correct, format=nothing, language=nothing)


def _durable(options: Options, flags: argparse.Namespace, model: Model, rows: Sequence[Row],
             args: EvalConfig, tokenizer: Any, graders: Graders) -> dict[str, Any]:
    def make(first: int, part: Sequence[Row]) -> Row:
        drawn = draw_samples(model, part, args, tokenizer, first=first)
        return {"samples": [compact(one) for one in drawn]}

    with working(options, flags.out, flags.resume) as work:
        note_sandboxes(work, Rewards(graders.accuracy))
        with showing(work, {"eval": len(rows)}):
            parts = in_chunks(work, "eval", rows, args.batch_prompts, make)
        samples = [one for part in parts for one in part["samples"]]
        figures = recompute(samples, graders)
        write_rows(flags.out / SAMPLES, samples)  # first: where the figures are, all samples are
        write_atomic(flags.out / FIGURES, json.dumps(figures, indent=1).encode())
    return figures


def _check(out: Path, model: Model, args: EvalConfig, tokenizer: Any, graders: Graders
           ) -> list[str]:
    """What differs from the stored samples and figures."""
    for name in (SAMPLES, FIGURES):
        if not (out / name).is_file():
            raise CheckpointError(f"{out} holds no finished evaluation: {name} is missing", out)
    samples = list(read_jsonl(out / SAMPLES))
    wrong = check(model, samples, args, tokenizer)
    rewards = [one.pop("rewards", None) for one in samples]
    figures = json.loads(json.dumps(recompute(samples, graders)))
    wrong += [f"problem {one['problem']}, sample {one['generation']}: other rewards"
              for one, stored in zip(samples, rewards) if one["rewards"] != stored]
    stored = json.loads((out / FIGURES).read_bytes())
    return wrong + [f"{name}: {FIGURES} has {stored.get(name)!r}, recomputed {figures.get(name)!r}"
                    for name in sorted(stored.keys() | figures)
                    if stored.get(name) != figures.get(name)]


def table(figures: dict[str, Any]) -> str:
    """The figures of a data set, a line each."""
    low, high = figures["pass@1_ci"]
    k = figures["k"]
    lines = {f"pass@{k}": f"{figures[f'pass@{k}']:.4f}",
             "pass@1": f"{figures['pass@1']:.4f}  (95 % interval {low:.4f} to {high:.4f})",
             "cons@k": f"{figures['cons@k']:.4f}",
             "tokens": f"{figures['mean_tokens']:.1f} a sample",
             "truncated": f"{figures['truncated']:.4f}",
             **({"no verdict": f"{figures['verifier_failed']:.4f}  (a verifier failed; they count as wrong)"}
                if "verifier_failed" in figures else {}),
             "samples": f"{figures['n']:,} problems x {k}"}
    return "\n".join(f"{name:12}{value}" for name, value in lines.items())
