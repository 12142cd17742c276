"""learning.py - the stages' training with one thing changed: RL with the pipeline's choice of checkpoint,
supervised fine-tuning, and what RL is compared with.

Options, prompts and random streams are the stage's own unless an arm says otherwise; the checkpoint is
the one with the most rule reward on the validation problems, as in the pipeline, or the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r1grpo.advantage import group_advantages
from r1grpo.config import SFTConfig
from r1grpo.evaluate import draw_samples
from r1grpo.grpo import GRPOTrainer
from r1grpo.measure import held_out_args, held_out_rows
from r1grpo.model import Model
from r1grpo.recipe import with_seed
from r1grpo.scoring import RewardFunction
from r1grpo.sft import SFTTrainer
from r1grpo.stages import RULE_FIGURES
from r1grpo.work import Selection

from .reference import Reference, Row

Curve = dict[str, list[list[float]]]  # figure -> [[update, value], ...]


class Reinforce(GRPOTrainer):
    """REINFORCE without a critic: A_i = r_i - the mean reward of the whole rollout, not divided; a
    completion is not compared with the others of its prompt. Sampling, clip and loss stay as they are."""

    def _compare(self, parts: NDArray[np.float64]) -> NDArray[np.float32]:
        total = self.rewards.total(parts)
        return group_advantages(total, len(total), "none")


def reinforce(ref: Reference, stage: str, template: str, model: Model, rewards: Sequence[RewardFunction],
              weights: tuple[float, ...], rows: Sequence[Row] | None = None, *,
              trainer_class: type[GRPOTrainer] = GRPOTrainer, select: bool = True,
              **changes: Any) -> Curve:
    """The RL of `stage` on `model`, with its options but for `changes`; the curves of training."""
    spec = getattr(ref.recipe, stage)
    worth = dict(zip(RULE_FIGURES, spec.grpo.reward_weights or (1.0,) * len(rewards)))
    options = with_seed(spec.grpo, ref.stream(stage), reward_weights=weights,
                        stop_token_ids=ref.tokenizer.stop_token_ids(template), **changes)
    trainer = trainer_class(model, rewards, options, ref.prompts(stage, template) if rows is None else rows,
                            processing_class=ref.tokenizer)
    selection = Selection(held_out_rows(ref.recipe, "validation", template),
                          held_out_args(ref.recipe, "validation", template, ref.tokenizer), worth,
                          spec.eval_steps, ref.tokenizer)
    curve: Curve = {"reward": [], "validation": [], "tokens": []}
    for step in trainer:
        number = trainer.step
        curve["reward"].append([number, step["reward"]])
        curve["tokens"].append([number, step["completions/mean_length"]])
        if looked := selection.look(model, number, number == trainer.total_steps):
            curve["validation"].append([number, looked["pass@1"]])
            print(f"  update {number}: reward {step['reward']:.3f}, validation {looked['pass@1']:.3f}",
                  flush=True)
    if select:
        model.load_state_dict(selection.weights)
    return curve


def fine_tune(model: Model, options: SFTConfig, seed: int, rows: Sequence[Row]) -> None:
    """Supervised fine-tuning to its end."""
    for _ in SFTTrainer(model, with_seed(options, seed), rows):
        pass


def draw_test(ref: Reference, model: Model, template: str) -> list[Row]:
    """Samples of the test problems, as the pipeline draws them."""
    return draw_samples(model, held_out_rows(ref.recipe, "test", template),
                        held_out_args(ref.recipe, "test", template, ref.tokenizer), ref.tokenizer)
