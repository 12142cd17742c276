"""The options of trainers and of evaluation, with the papers' presets.

Names are TRL's where the meaning is the same. What TRL has and we have not raises by name and says
what to do instead; a near miss is answered with a suggestion. Values are checked when the object is
made, so a run cannot start with options that cannot be.

Batch sizes, once and for all. One process, one model; a step is one update of the weights.

    completions an update   per_device_train_batch_size
    mini-batches a rollout  steps_per_generation
    updates a rollout       steps_per_generation * num_iterations    (the paper: one inner epoch)
    completions a rollout   generation_batch_size = per_device_train_batch_size * steps_per_generation
    prompts a rollout       generation_batch_size / num_generations

Memory is bounded by micro_batch_tokens and gradient_checkpointing, which cannot change a bit of the
result. "Ours" marks what a preset's source does not say. Knows nothing about models.
"""

from ..toml import ConfigError
from .grpo import GRPOConfig
from .judge import JudgeConfig
from .reward import RewardConfig
from .sampling import EvalConfig, Sampling
from .sft import SFTConfig
from .training import TrainingConfig

__all__ = ["ConfigError", "EvalConfig", "GRPOConfig", "JudgeConfig", "RewardConfig", "Sampling",
           "SFTConfig", "TrainingConfig"]
