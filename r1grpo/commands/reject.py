"""reject.py - `r1grpo reject`: k samples a problem, the right ones kept, as rows to learn from."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..brief import brief
from ..config import EvalConfig
from ..folder import tokenizer_of
from ..hf_tokenizer import Tokenizer
from ..load_folder import ModelFolder
from ..model import Model
from ..model_source import find_model
from ..readable import FILTERS, Filter
from ..rejection import Row, rejection_sample
from ..reward_model import score_in_batches, scored_ids
from ..scoring import RewardFunction, Rewards
from ..toml import ConfigError, suggest
from ..trainer import prompt_ids_of
from ..work import Work
from .inputs import (check_columns, open_rewards, open_rows, open_sampler, open_tokenizer, require,
                     sampling_plan, tokenizer_mark)
from .options import MODEL, REJECT, Command, Options, RejectInputs
from .stage import fits, in_chunks, note_sandboxes, options_of, showing, working, write_rows

ROWS = "rows.jsonl"

Rank = Callable[[Row, list[str]], Sequence[float]]


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options, correct, tokenizer = open_judged(REJECT, flags)
    inputs, args = options.inputs, options.args
    open_filters(inputs.filters)
    rows = open_rows(inputs, tokenizer)
    check_columns(inputs, rows)
    check_ranker(inputs, rows)
    if not fits(flags, sampling_plan(inputs, args, rows)):
        return 0
    rank = open_rank(inputs)
    model = open_sampler(inputs, tokenizer)
    with working(options, flags.out, flags.resume) as work, \
            showing(work, {"samples": len(rows)}):
        kept, counts = draw_rows(work, model, rows, args, tokenizer, correct, inputs, rank)
        write_rows(flags.out / ROWS, kept)
    print(describe(counts))
    print(flags.out / ROWS)
    return 0


def open_judged(command: Command, flags: argparse.Namespace) -> tuple[Options, RewardFunction, Tokenizer]:
    """What begins a command that samples a model and judges it: its options, the one function that says
    what is right, the tokenizer."""
    options = options_of(command, flags, "reward", *MODEL)
    require(options.inputs, "model", "data", "reward")
    return options, open_correct(options.inputs, options.args), open_tokenizer(options.inputs)


def open_correct(inputs: Any, args: EvalConfig) -> RewardFunction:
    """The one reward function that says which of the samples that args ask for are right (1.0)."""
    if len(inputs.reward) != 1:
        raise ConfigError(f"reward names {len(inputs.reward)} functions; one says which samples are right")
    return open_rewards(inputs.reward, inputs.reward_options, args.max_completion_length)[0]


def open_filters(names: Sequence[str]) -> dict[str, Filter]:
    """Filters by name."""
    for name in names:
        if name not in FILTERS:
            raise ConfigError(f"filters: {brief(name)} is none of {', '.join(FILTERS)}{suggest(name, FILTERS)}")
    return {name: FILTERS[name] for name in names}


def check_ranker(inputs: RejectInputs, rows: Sequence[Row]) -> None:
    """Refuse a ranker that is no reward model, or could not read the rows, before anything is loaded."""
    if inputs.ranker is None:
        return
    with ModelFolder(find_model(inputs.ranker).weights) as folder:
        if not folder.config.score_head:
            raise ConfigError(f"ranker: {inputs.ranker} has no scalar head, so it is no reward model")
    tokenizer = tokenizer_of(find_model(inputs.ranker).tokenizer)
    for i, row in enumerate(rows):
        where = f"ranker: {inputs.data} row {i}"
        if "prompt" not in row:
            raise ValueError(f"{where} has no column 'prompt', and the ids are another tokenizer's")
        prompt_ids_of({"prompt": row["prompt"]}, tokenizer, where)


def open_rank(inputs: RejectInputs) -> Rank | None:
    """The ranking by a reward model, which sees a row's prompt and what stands behind the thought, as
    RewardTrainer shows it pairs."""
    if inputs.ranker is None:
        return None
    model = Model.from_pretrained(inputs.ranker, inputs.device, inputs.dtype, frozen=True)
    tokenizer = tokenizer_of(find_model(inputs.ranker).tokenizer)

    def rank(row: Row, texts: list[str]) -> list[float]:
        prompt = prompt_ids_of({"prompt": row["prompt"]}, tokenizer, "prompt")
        ids = [scored_ids(prompt, text, "summary", tokenizer) for text in texts]
        return score_in_batches(model.score, ids).tolist()

    return rank


def draw_rows(work: Work, model: Model, problems: Sequence[Row], args: EvalConfig, tokenizer: Any,
              correct: RewardFunction, inputs: RejectInputs, rank: Rank | None = None
              ) -> tuple[list[Row], dict[str, Any]]:
    """The kept rows, and what was sampled and dropped; the model is that of inputs."""
    note_sandboxes(work, Rewards(correct))
    mark = tokenizer_mark(inputs)

    def make(first: int, part: Sequence[Row]) -> Row:
        found = rejection_sample(model, part, args, correct=correct, processing_class=tokenizer,
                                 filters=open_filters(inputs.filters), rank=rank,
                                 max_per_problem=inputs.max_per_problem,
                                 source=Path(inputs.model).name, first=first)
        return {"rows": [{**row, "tokenizer": mark} for row in found.rows],
                "sampled": found.sampled, "sampled_tokens": found.sampled_tokens,
                "dropped": found.dropped}

    parts = in_chunks(work, "samples", problems, args.batch_prompts, make)
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part["dropped"])
    rows = [row for part in parts for row in part["rows"]]
    work.ledger.phases["samples"]["sampled_tokens"] = sum(part["sampled_tokens"] for part in parts)
    work.ledger.save()
    return rows, {"problems": len(problems), "kept": len(rows), "dropped": dict(dropped),
                  **{key: sum(part[key] for part in parts)
                     for key in ("sampled", "sampled_tokens")}}


def describe(counts: dict[str, Any]) -> str:
    """A line for the user: what was kept, and why the rest was not."""
    reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(counts["dropped"].items()))
    return (f"{counts['kept']:,} of {counts['sampled']:,} samples of {counts['problems']:,} "
            f"problems kept; dropped: {reasons or 'none'}")
