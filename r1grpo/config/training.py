"""training.py - what every trainer has: the optimiser, the schedule, where and how often to save."""

from __future__ import annotations

from typing import Literal

from ..trackers import tracker_names
from .checks import require, run_config

# options that a resumed run may give differently: they cannot change the bits of a step that both
# runs take (those of verifiers: of verdicts that were given). The length is one where no learning rate
# depends on it: under the constant schedule
FREE_OPTIONS = {"output_dir", "save_steps", "save_total_limit", "logging_steps",
                "logging_first_step", "log_completions", "num_completions_to_print", "disable_tqdm",
                "report_to", "run_name", "micro_batch_tokens", "gradient_checkpointing",
                "speculative", "ref_model_offload", "offload_optimizer", "verifier_workers", "verifier_deadline",
                "verifier_memory", "verifier_failures"}
LENGTH_OPTIONS = {"max_steps", "num_train_epochs"}


@run_config
class TrainingConfig:
    """Options that GRPOConfig, SFTConfig and RewardConfig share."""

    output_dir: str | None = None
    learning_rate: float = 1e-6
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    min_lr_rate: float = 0.0  # the schedule's floor, as a share of learning_rate
    warmup_steps: int = 0
    max_steps: int | None = None
    num_train_epochs: float = 1.0  # used where max_steps is None
    per_device_train_batch_size: int = 8
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False  # layers computed again in backward: memory, not bits
    offload_optimizer: bool = False  # a GPU's moments in the host's memory; changes no bit
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95  # DeepSeek-V3's pre-training value (TRL: 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mtp_coef: float = 0.0
    balance_coef: float = 0.0
    router_bias_rate: float = 0.0  # 0: the routing bias is frozen
    shuffle_dataset: bool = True
    save_steps: int = 0  # 0: never by itself
    save_total_limit: int | None = None  # states that stay in output_dir; None: all
    logging_steps: int = 0  # train() says the figures of every so many steps; 0: the bar alone
    logging_first_step: bool = False
    disable_tqdm: bool = False  # no bar in train()
    report_to: tuple[str, ...] = ()  # "tensorboard", "wandb", "trackio"; also one as a string
    run_name: str | None = None  # what trackers call the run; None: the last part of output_dir
    seed: int = 0

    def __post_init__(self) -> None:
        self.report_to = tracker_names(self.report_to)
        require(self, {
            "learning_rate must be at least 0": self.learning_rate >= 0,
            "lr_scheduler_type must be 'constant', 'linear' or 'cosine'":
                self.lr_scheduler_type in ("constant", "linear", "cosine"),
            "min_lr_rate must be within 0 and 1": 0 <= self.min_lr_rate <= 1,
            "warmup_steps must be at least 0": self.warmup_steps >= 0,
            "max_steps must be at least 1 or None": self.max_steps is None or self.max_steps >= 1,
            "num_train_epochs must be above 0": self.num_train_epochs > 0,
            "per_device_train_batch_size must be at least 1": self.per_device_train_batch_size >= 1,
            "micro_batch_tokens must be at least 1 or None":
                self.micro_batch_tokens is None or self.micro_batch_tokens >= 1,
            "adam_beta1 must be within 0 and 1": 0 <= self.adam_beta1 < 1,
            "adam_beta2 must be within 0 and 1": 0 <= self.adam_beta2 < 1,
            "adam_epsilon must be above 0": self.adam_epsilon > 0,
            "weight_decay must be at least 0": self.weight_decay >= 0,
            "max_grad_norm must be at least 0 (0 does not clip)": self.max_grad_norm >= 0,
            "mtp_coef must be at least 0": self.mtp_coef >= 0,
            "balance_coef must be at least 0": self.balance_coef >= 0,
            "router_bias_rate must be at least 0": self.router_bias_rate >= 0,
            "save_steps must be at least 0": self.save_steps >= 0,
            "save_total_limit must be at least 1 or None":
                self.save_total_limit is None or self.save_total_limit >= 1,
            "logging_steps must be a whole number, 0 or more":
                isinstance(self.logging_steps, int) and self.logging_steps >= 0,
        })
