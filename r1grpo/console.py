"""console.py - what a training says beside its bar: a line of figures, and completions.

    step 20: loss 0.0123, reward 0.53, ...          every logging_steps (and step 1: logging_first_step);
                                                    those of _SHOWN that there are
    prompt: what is 3 + 4?                          with log_completions: as many as
        [accuracy 1, format 0, advantage 0.71, stop] 7 .      num_completions_to_print; None: all

TRL's options, in text: trackers and log_history get every step whatever is said here. Where
logging_steps is 0, completions are shown once a rollout. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from .config import GRPOConfig, TrainingConfig

_SHOWN = ("loss", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "grad_norm",
          "learning_rate", "tokens_per_second", "peak_share")


def report(trainer: Any, metrics: Mapping[str, Any]) -> str:
    """What is to be said after a step; "" where nothing is."""
    args, step = trainer.args, metrics["step"]
    lines = [_figures(metrics)] if _due(args, step) else []
    if isinstance(args, GRPOConfig) and args.log_completions and (
            lines or not args.logging_steps and trainer.batch.position == 1):
        lines += _completions(trainer, args.num_completions_to_print)
    return "\n".join(lines)


def _due(args: TrainingConfig, step: int) -> bool:
    return step == 1 and args.logging_first_step or \
        args.logging_steps > 0 and step % args.logging_steps == 0


def _figures(metrics: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{name.rpartition('/')[2]} {metrics[name]:.4g}" for name in _SHOWN
                        if isinstance(metrics.get(name), (int, float)))
    return f"step {metrics['step']}: {numbers}"


def _completions(trainer: Any, most: int | None) -> Iterator[str]:
    shown = None
    for row in islice(trainer.completion_rows(), most):
        prompt = _text(row["prompt"])
        if prompt != shown:
            yield f"prompt: {prompt}"
            shown = prompt
        figures = [f"{name} {'none' if value is None else f'{value:.4g}'}"
                   for name, value in (*row["rewards"].items(), ("advantage", row["advantage"]))]
        said = row["completion"] or " ".join(map(str, row["completion_ids"]))
        yield f"    [{', '.join([*figures, row['finish_reason']])}] {said}"


def _text(prompt: Any) -> str:
    """A prompt in a line: of a chat its last message; nothing where it was ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    return prompt.strip() if isinstance(prompt, str) else ""
