"""judge.py - `r1grpo judge`: what a model behind an endpoint says of responses, as rows for RewardTrainer.

    DIR/verdicts.jsonl    every verdict, appended as it comes (the cache): --resume asks for the others alone
    DIR/rows.jsonl        pairs, or labelled responses (preferences.py)
    DIR/figures.json      how many were kept, and why the others were not
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from ..judge import Judge, JudgeError, key_in_environment
from ..preferences import judge_labels, judge_pairs, with_responses
from ..safe_files import write_atomic
from ..work import run_facts
from .inputs import read_rows, require
from .options import JUDGE
from .stage import options_of, showing, working, write_rows

ROWS, VERDICTS, FIGURES = "rows.jsonl", "verdicts.jsonl", "figures.json"


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options = options_of(JUDGE, flags, "model", "data", "layout")
    if cache := options.args.cache:  # the same file for who goes on from another directory
        args = dataclasses.replace(options.args, cache=str(Path(cache).absolute()))
        options = dataclasses.replace(options, args=args)
    inputs, args = options.inputs, options.args
    require(inputs, "data")
    require(args, "model", "url")
    key = key_in_environment(args.key_env) if args.key_env else None
    asked = {name: getattr(args, name) for name in ("timeout", "retries", "deadline", "max_tokens")}
    Judge(args.url, args.model, key, **asked)  # what cannot be is said before anything is written
    rows = with_responses(read_rows(inputs))
    facts = {**run_facts(0, "float32"), "model": args.model}
    with working(options, flags.out, flags.resume, facts) as work, showing(work, {"judge": len(rows)}):
        judge = Judge(args.url, args.model, key, **asked, cache=args.cache or flags.out / VERDICTS)
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            work.safe_point()
            work.advance("judge", done - told)
            told = done

        try:
            found = judge_labels(judge, rows, threads=args.threads, tell=tell) if inputs.ask == "labels" else \
                judge_pairs(judge, rows, n=args.n, margin=args.margin, length_ratio=args.length_ratio,
                            threads=args.threads, tell=tell)
        except JudgeError as error:
            raise ConnectionError(f"{error}; what was said is kept; to go on: {work.command}") from None
        work.finish("judge")
        write_rows(flags.out / ROWS, found.rows)
        write_atomic(flags.out / FIGURES, json.dumps({"prompts": len(rows), **found.counts}, indent=1).encode())
    reasons = ", ".join(f"{count:,} {why}" for why, count in found.counts.items() if why != "kept")
    print(f"{found.counts['kept']:,} {inputs.ask} of {len(rows):,} prompts kept; dropped: {reasons or 'none'}")
    print(flags.out / ROWS)
    return 0
