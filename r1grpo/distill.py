"""distill.py - distillation: the teacher's rows, the student's SFT, and what both cost.

DeepSeek-R1 distils by SFT alone (arXiv 2501.12948v2, B.4.3): the student learns the text of the
teacher's kept samples, cosine to a tenth of the learning rate, two to three epochs. No logits are
matched, no RL follows. The costs are given with and without the teacher's, because the teacher's
training and sampling is what the comparison with RL alone on the student leaves out; where nobody
knows the teacher's, they are None, not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .config import SFTConfig
from .sft import SFTTrainer
from .trainer import Callback


@dataclass(frozen=True)
class Cost:
    """Tokens in the loss, tokens through forward and backward (prompts included), tokens sampled,
    and seconds (the only figure that may differ between runs)."""

    loss_tokens: int = 0
    processed_tokens: int = 0
    sampled_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.loss_tokens + other.loss_tokens,
                    self.processed_tokens + other.processed_tokens,
                    self.sampled_tokens + other.sampled_tokens, self.seconds + other.seconds)


@dataclass
class Distillation:
    """A distilled student: its trainer, and the costs."""

    trainer: SFTTrainer
    student: Cost
    teacher: Cost | None

    def costs(self) -> dict[str, dict[str, float] | None]:
        """{'without_teacher': ..., 'with_teacher': ...}"""
        return {"without_teacher": asdict(self.student),
                "with_teacher": asdict(self.student + self.teacher) if self.teacher else None}


def distill(student: Any, teacher_rows: Sequence[dict[str, Any]], args: SFTConfig | None = None,
            processing_class: Any = None, teacher_cost: Cost | None = None,
            callbacks: Sequence[Callback] | None = None) -> Distillation:
    """SFT of the student on rows of rejection_sample. teacher_cost: what the caller's teacher took
    in training and sampling, where that is known. The default options are SFTConfig.distill()."""
    trainer = SFTTrainer(student, args or SFTConfig.distill(), teacher_rows,
                         processing_class=processing_class, callbacks=callbacks)
    trainer.train()
    seconds = sum(step["step_time"] for step in trainer.log_history)
    cost = Cost(trainer.num_tokens, trainer.processed_tokens, 0, seconds)
    return Distillation(trainer, cost, teacher_cost)
