"""sft.py - SFTConfig: the options of SFTTrainer, and the settings of R1's SFT and distillation."""

from __future__ import annotations

from typing import Any, Literal

from ..brief import brief
from ..toml import ConfigError, suggest
from .checks import require, run_config
from .training import TrainingConfig


@run_config
class SFTConfig(TrainingConfig):
    """Options of SFTTrainer, which also pre-trains. A batch is per_device_train_batch_size rows;
    with packing it is as many bins of at most max_length tokens, which only makes the tokens an
    update even, since sequences are never padded and never see each other."""

    learning_rate: float = 2e-5
    max_length: int | None = None  # tokens of a row, and of a bin; TRL: 1024
    truncation_mode: Literal["refuse", "drop", "keep_start"] = "refuse"  # longer rows; TRL cuts
    packing: bool = False
    packing_strategy: Literal["bfd"] = "bfd"  # best-fit decreasing; the others cut samples
    completion_only_loss: bool | None = None  # False: prompts are learned too; None is True
    assistant_only_loss: bool = True  # False, TRL's default: of messages everything is learned

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, {
            "max_length must be at least 2 or None": self.max_length is None
                or self.max_length >= 2,
            "max_length is the size of a bin, packing needs it":
                not self.packing or self.max_length is not None,
            "truncation_mode must be 'refuse', 'drop' or 'keep_start'":
                self.truncation_mode in ("refuse", "drop", "keep_start"),
            "packing_strategy must be 'bfd', 'bfd_split' and 'wrapped' cut samples":
                self.packing_strategy == "bfd",
        })

    @classmethod
    def r1(cls, **options: Any) -> SFTConfig:
        """Both SFT stages of R1 (arXiv 2501.12948v2, B.4.2): cosine 5e-5 to 5e-6, batch 128,
        context 32,768, two to three epochs (here 2)."""
        return cls(**{"learning_rate": 5e-5, "lr_scheduler_type": "cosine",
                      "min_lr_rate": 0.1, "per_device_train_batch_size": 128,
                      "num_train_epochs": 2.0, "max_length": 32768} | options)

    @classmethod
    def distill(cls, student: str = "qwen_1_5b", **options: Any) -> SFTConfig:
        """Distillation (B.4.3, table 6): cosine to a tenth, batch 64, context 32,768, two to three
        epochs (here 2), and the learning rate of the student: qwen_1_5b, qwen_7b, qwen_14b,
        qwen_32b, llama_8b or llama_70b."""
        if student not in _STUDENTS:
            raise ConfigError(f"SFTConfig.distill: there is no student {brief(student)}, there are "
                              f"{', '.join(_STUDENTS)}{suggest(student, _STUDENTS)}")
        return cls.r1(**{"learning_rate": _STUDENTS[student],
                         "per_device_train_batch_size": 64} | options)


_STUDENTS = {"qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5,
             "llama_8b": 5e-5, "llama_70b": 2e-5}
