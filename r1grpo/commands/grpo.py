"""grpo.py - `r1grpo grpo`: reinforcement learning of a model folder on a file of problems."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..algebra import grpo_algebra, show
from ..grpo import GRPOTrainer
from ..plan import MICRO_TOKENS, plan_training
from ..scoring import Rewards
from ..toml import ConfigError
from .inputs import (Row, adapters_of, check_columns, open_config, open_model, open_rewards, open_rows,
                     open_tokenizer, require)
from .options import ADAPTERS, GRPO, MODEL, with_output_dir
from .stage import FINAL, fits, note_sandboxes, options_of, planned, showing, train, warn_of_size, working


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    options = options_of(GRPO, flags, "preset", "reward", *MODEL, *ADAPTERS)
    inputs = options.inputs
    require(inputs, "model", "data", "reward")
    args = with_output_dir(options.args, flags.out or Path())
    config, lora = open_config(inputs), adapters_of(inputs)
    limit = args.max_completion_length
    rewards = open_rewards(inputs.reward, inputs.reward_options, limit if isinstance(limit, int) else None)
    audits = open_rewards(inputs.audit)
    Rewards(rewards, args.reward_weights, audits=audits)  # refuses names and weights that cannot be
    tokenizer = open_tokenizer(inputs)
    rows = open_rows(inputs, tokenizer)
    check_columns(inputs, rows)
    if inputs.long_prompts == "drop":
        rows = _without_long(rows, args.max_prompt_length)
    longest = max(len(row["prompt_ids"]) for row in rows)
    if not fits(flags, plan_training(config, args, inputs.dtype, prompt_length=longest, lora=lora,
                                     device=inputs.device)):
        return 0
    model = open_model(inputs, tokenizer, args.seed)
    trainer = GRPOTrainer(model, rewards, args, rows, processing_class=tokenizer, audit_funcs=audits)
    trainer.try_rewards()
    print(show(grpo_algebra(args, len(rows), trainer.total_steps, longest,
                            args.micro_batch_tokens or MICRO_TOKENS)))
    warn_of_size(args.prompts_per_rollout, len(rows), "a rollout of prompts",
                 "steps_per_generation=... and --set per_device_train_batch_size")
    context = config.max_position_embeddings
    if longest + max(args.completion_length(step) for step in range(trainer.total_steps)) > context:
        print(f"the model's context of {context:,} tokens ends longer completions")
    with working(options, flags.out, flags.resume) as work, \
            showing(work, {"grpo": planned(trainer)}, options.args):
        note_sandboxes(work, trainer.rewards)
        train(work, "grpo", trainer, options.args.save_steps, inputs.merge)
    print(f"max_logprob_gap {trainer.max_logprob_gap!r} over {trainer.gap_tokens:,} tokens")
    print(flags.out / FINAL)
    return 0


def _without_long(rows: list[Row], limit: int | None) -> list[Row]:
    if limit is None:
        raise ConfigError("long_prompts is 'drop': max_prompt_length says which those are")
    kept = [row for row in rows if len(row["prompt_ids"]) <= limit]
    print(f"{len(rows) - len(kept):,} of {len(rows):,} prompts are longer than {limit:,} tokens, "
          f"left out")
    if not kept:
        raise ValueError(f"every prompt is longer than max_prompt_length = {limit:,}")
    return kept
