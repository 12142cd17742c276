"""distill.py - `r1grpo distill`: a student learns a teacher's rows; the costs with and without it.

    --data ROWS                          rows that a teacher has written (of `r1grpo reject`)
    --data PROBLEMS --teacher FOLDER     the teacher is asked first; its right answers are the rows
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

from ..config import EvalConfig
from ..safe_files import write_atomic
from ..work import Work
from .inputs import (Row, check_columns, open_model, open_rows, open_sampler, open_tokenizer, require,
                     sampling_plan, with_prompt_ids)
from .options import ADAPTERS, DISTILL, MODEL, Options
from .reject import ROWS, check_ranker, describe, draw_rows, open_correct, open_filters, open_rank
from .sft import sft_plan, without_weights
from .stage import (FINAL, check_fits, fits, options_of, planned, show_sft, showing, train, working,
                    write_rows)

COSTS = "costs.json"


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options = options_of(DISTILL, flags, "teacher", "preset", "reward", *MODEL, *ADAPTERS)
    inputs = options.inputs
    require(inputs, "model", "data")
    tokenizer = open_tokenizer(inputs)
    if inputs.teacher:
        ask = _teacher(options, flags)
        if ask is None:
            return 0
    else:
        student = without_weights(options, open_rows(inputs, tokenizer), tokenizer, flags.out)
        if not fits(flags, sft_plan(options, student)):
            return 0
    with working(options, flags.out, flags.resume) as work:
        if inputs.teacher:
            kept = ask(work)
            write_rows(flags.out / ROWS, kept)
            rows = with_prompt_ids(kept, inputs, tokenizer)
            student = without_weights(options, rows, tokenizer, flags.out)
            check_fits(sft_plan(options, student))
        student.model = open_model(inputs, tokenizer, options.args.seed)
        print(show_sft(student))
        with showing(work, {"distill": planned(student)}, options.args):
            train(work, "distill", student, options.args.save_steps, inputs.merge)
        # the teacher's own training is left out: nobody here knows it
        costs = {"without_teacher": work.ledger.cost("distill"),
                 "with_teacher": work.ledger.cost("distill", "samples") if inputs.teacher else None}
        write_atomic(flags.out / COSTS, json.dumps(costs, indent=1).encode())
    for name, cost in costs.items():
        print(f"{name:18}" + ("unknown: the rows do not say what they cost" if cost is None else
                              f"{cost['processed_tokens']:,} tokens trained on, "
                              f"{cost['sampled_tokens']:,} sampled, {cost['seconds']:,.0f} s"))
    print(flags.out / FINAL)
    return 0


def _teacher(options: Options, flags: argparse.Namespace) -> Callable[[Work], list[Row]] | None:
    """The teacher's request, checked; what comes back asks it, and lets go of it, since two models
    at once would be twice the memory. None where only its memory plan was asked for."""
    inputs = dataclasses.replace(options.inputs, model=options.inputs.teacher, lora=None,
                                 revision=options.inputs.teacher_revision)
    args = EvalConfig(k=inputs.samples, temperature=inputs.temperature,
                      max_completion_length=inputs.max_completion_length, batch_prompts=16,
                      seed=options.args.seed)
    correct = open_correct(inputs, args)
    open_filters(inputs.filters)
    tokenizer = open_tokenizer(inputs)
    problems = open_rows(inputs, tokenizer)
    check_columns(inputs, problems)
    check_ranker(inputs, problems)
    if not fits(flags, sampling_plan(inputs, args, problems)):
        return None

    def ask(work: Work) -> list[Row]:
        rank, model = open_rank(inputs), open_sampler(inputs, tokenizer)
        with showing(work, {"samples": len(problems)}):
            rows, counts = draw_rows(work, model, problems, args, tokenizer, correct, inputs, rank)
        print(describe(counts))
        if not rows:
            raise ValueError(f"no sample of {inputs.model} is right: there is nothing to learn")
        return rows

    return ask
