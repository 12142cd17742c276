"""reward.py - RewardConfig: the options of RewardTrainer."""

from __future__ import annotations

from typing import Literal

from .checks import require, run_config
from .training import TrainingConfig


@run_config
class RewardConfig(TrainingConfig):
    """Options of RewardTrainer. The published numbers (Nature, Methods) are the defaults: batch
    256, learning rate 6e-6, one epoch, 8,192 tokens. The helpful model is pairwise and sees the
    summary only, the safety model pointwise and sees all; the loss formulas are ours
    (Bradley-Terry, binary cross-entropy)."""

    kind: Literal["pairwise", "pointwise"] = "pairwise"
    part: Literal["summary", "whole"] | None = None  # None: summary if pairwise, whole if pointwise
    learning_rate: float = 6e-6
    per_device_train_batch_size: int = 256
    max_length: int | None = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {
            "kind must be 'pairwise' or 'pointwise'": self.kind in ("pairwise", "pointwise"),
            "part must be 'summary', 'whole' or None": self.part in ("summary", "whole", None),
            "mtp_coef must be 0 for a reward model": self.mtp_coef == 0,
            "balance_coef must be 0 for a reward model": self.balance_coef == 0,
        })
        if self.part is None:
            self.part = "summary" if self.kind == "pairwise" else "whole"
