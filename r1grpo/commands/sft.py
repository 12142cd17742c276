"""sft.py - `r1grpo sft`: supervised fine-tuning of a model folder on a file of completions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..plan import MemoryPlan, plan_training
from ..sft import SFTTrainer, encode_row
from .inputs import Row, Tokenizer, open_config, open_model, open_rows, open_tokenizer, require
from .options import SFT, Options, with_output_dir
from .stage import FINAL, fits, options_of, planned, show_sft, showing, train, working


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options = options_of(SFT, flags, "model", "data", "layout", "dtype", "preset")
    inputs = options.inputs
    require(inputs, "model", "data")
    tokenizer = open_tokenizer(inputs.model)
    rows = as_ids(open_rows(inputs, tokenizer), tokenizer, inputs.data)
    if not fits(flags, sft_plan(options, rows)):
        return 0
    trainer = open_trainer(options, rows, tokenizer, flags.out)
    print(show_sft(trainer))
    with working(options, flags.out, flags.resume) as work, \
            showing(work, {"sft": planned(trainer)}):
        train(work, "sft", trainer, options.args.save_steps)
    print(flags.out / FINAL)
    return 0


def as_ids(rows: Sequence[Row], tokenizer: Tokenizer, name: str) -> list[Row]:
    """The rows as token ids, so that their lengths are known before weights are loaded."""
    examples = [encode_row(row, tokenizer, f"{name} row {i}") for i, row in enumerate(rows)]
    return [{"prompt_ids": one.prompt_ids, "completion_ids": one.completion_ids,
             "weights": one.weights} for one in examples]


def sft_plan(options: Options, rows: Sequence[Row]) -> MemoryPlan:
    """What the training of these rows takes."""
    args, inputs = options.args, options.inputs
    config = open_config(inputs.model)
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
    if args.max_length is not None and (args.packing or longest > args.max_length):
        longest = args.max_length
    return plan_training(config, with_output_dir(args, Path()), inputs.dtype,
                         length=min(longest, config.max_position_embeddings))


def open_trainer(options: Options, rows: Sequence[Row], tokenizer: Tokenizer, out: Path
                 ) -> SFTTrainer:
    """The trainer of the model on these rows."""
    model = open_model(options.inputs.model, options.inputs.dtype, tokenizer)
    return SFTTrainer(model, with_output_dir(options.args, out), rows, processing_class=tokenizer)
