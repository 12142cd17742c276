"""sft.py - `r1grpo sft`: supervised fine-tuning of a model folder on a file of completions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ..plan import MemoryPlan, plan_training
from ..sft import SFTTrainer
from .inputs import (Row, Tokenizer, adapters_of, open_config, open_model, open_rows, open_tokenizer,
                     require)
from .options import ADAPTERS, MODEL, SFT, Options, with_output_dir
from .stage import FINAL, fits, options_of, planned, show_sft, showing, train, working


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options = options_of(SFT, flags, "preset", *MODEL, *ADAPTERS)
    inputs = options.inputs
    require(inputs, "model", "data")
    tokenizer = open_tokenizer(inputs)
    trainer = without_weights(options, open_rows(inputs, tokenizer), tokenizer, flags.out)
    if not fits(flags, sft_plan(options, trainer)):
        return 0
    trainer.model = open_model(inputs, tokenizer, options.args.seed)
    print(show_sft(trainer))
    with working(options, flags.out, flags.resume) as work, \
            showing(work, {"sft": planned(trainer)}, options.args):
        train(work, "sft", trainer, options.args.save_steps, inputs.merge)
    print(flags.out / FINAL)
    return 0


def without_weights(options: Options, rows: Sequence[Row], tokenizer: Tokenizer,
                    out: Path | None) -> SFTTrainer:
    """The trainer with its rows encoded and checked; its model is the architecture alone, and the
    caller puts the weights in when the lengths are known to fit."""
    outline = SimpleNamespace(config=open_config(options.inputs), lora=adapters_of(options.inputs))
    return SFTTrainer(outline, with_output_dir(options.args, out or Path()), rows,
                      processing_class=tokenizer)


def sft_plan(options: Options, trainer: SFTTrainer) -> MemoryPlan:
    """What the training of these rows takes."""
    args = trainer.args
    longest = max(len(one) for one in trainer.examples)
    if args.packing and args.max_length is not None:
        longest = args.max_length
    return plan_training(trainer.model.config, args, options.inputs.dtype, length=longest,
                         lora=trainer.model.lora, device=options.inputs.device)
