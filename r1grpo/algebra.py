"""algebra.py - what the batch options of a run mean, in numbers, before its first step.

    a rollout    prompts x generations = completions
    an update    completions (rows), and the micro-batches that it takes
    the run      updates = rollouts = prompts = epochs

Names of options mean different things in different projects, and a run that began with the wrong
ones costs days; so the numbers are shown. A micro-batch bounds memory and changes no bit. Knows
nothing about models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .config import GRPOConfig, SFTConfig

Lines = list[tuple[str, str]]  # (what, numbers)


def grpo_algebra(args: GRPOConfig, rows: int, steps: int, longest_prompt: int,
                 micro_batch_tokens: int) -> Lines:
    """Numbers of a GRPO run over `rows` prompts."""
    batch = args.per_device_train_batch_size
    prompts, completions = args.prompts_per_rollout, args.generation_batch_size
    rollouts = math.ceil(steps / args.updates_per_rollout)
    longest = max(args.completion_length(step) for step in range(steps))
    group = args.num_generations if args.steps_per_generation == 1 else 1  # whole groups: one prompt
    return [
        ("data", f"{rows:,} prompts, the longest of {longest_prompt:,} tokens"),
        ("a rollout", f"{prompts:,} prompts x {args.num_generations} generations = "
                      f"{completions:,} completions of at most {longest:,} tokens"),
        ("an update", f"{batch:,} completions in at most "
                      f"{_micro(batch * (longest_prompt / group + longest), micro_batch_tokens)}"),
        ("updates a rollout", f"{args.updates_per_rollout:,}" + (
            f" = {args.steps_per_generation:,} mini-batches x {args.num_iterations:,}"
            if args.num_iterations > 1 else "")),
        ("the run", f"{steps:,} updates = {rollouts:,} rollouts = {rollouts * prompts:,} prompts "
                    f"= {rollouts * prompts / rows:.3g} epochs"),
    ]


def sft_algebra(args: SFTConfig, lengths: Sequence[int], bins: int, steps: int,
                micro_batch_tokens: int) -> Lines:
    """Numbers of an SFT run over rows of these lengths in tokens, in so many bins (no packing: a
    row is a bin)."""
    rows, tokens, batch = len(lengths), sum(lengths), args.per_device_train_batch_size
    update = batch * tokens / bins
    packed = f" in {bins:,} bins of at most {args.max_length:,}" if args.packing else ""
    return [
        ("data", f"{rows:,} rows, {tokens:,} tokens, the longest row of {max(lengths):,}{packed}"),
        ("an update", f"{batch:,} {'bins' if args.packing else 'rows'}, about {update:,.0f} "
                      f"tokens, in about {_micro(update, micro_batch_tokens)}"),
        ("the run", f"{steps:,} updates = {steps * batch / bins:.3g} epochs"),
    ]


def _micro(tokens: float, micro_batch_tokens: int) -> str:
    count = max(1, math.ceil(tokens / micro_batch_tokens))
    return f"{count:,} micro-batch{'es' if count > 1 else ''} of {micro_batch_tokens:,} tokens"


def show(lines: Lines) -> str:
    """The numbers as a table."""
    width = max(len(what) for what, _ in lines) + 2
    return "\n".join(f"{what:{width}}{numbers}" for what, numbers in lines)
