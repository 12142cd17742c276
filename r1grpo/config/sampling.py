"""sampling.py - how completions are drawn: Sampling for one rollout, EvalConfig for an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import require, run_config


@dataclass(frozen=True)
class Sampling:
    """What the sampler needs; 0, 1.0 and 0.0 switch top_k, top_p and min_p off."""

    max_completion_length: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] | None = None
    speculative: bool = False  # the MTP module guesses a token ahead; changes no sample

    def filters(self) -> dict[str, float]:
        """What changes a log-prob, as keywords of Model.logprobs and Model.policy_gradient."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p,
                "min_p": self.min_p}


@run_config
class EvalConfig:
    """Options of evaluate: k samples a problem. Defaults: temperature 1 as in the training curve of
    R1-Zero; R1's own benchmarks use 0.6 and top-p 0.95 (arXiv 2501.12948v2, D.1)."""

    k: int = 16
    max_completion_length: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None
    speculative: bool = False  # the MTP module guesses a token ahead; changes no sample
    batch_prompts: int = 64  # prompts a call of the sampler; cannot change a sample
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, {
            "k must be at least 1": self.k >= 1,
            "max_completion_length must be at least 1": self.max_completion_length >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_k must be at least 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be within 0 and 1": 0 <= self.min_p <= 1,
            "batch_prompts must be at least 1": self.batch_prompts >= 1,
        })

    def sampling(self) -> Sampling:
        """What the sampler needs."""
        return Sampling(self.max_completion_length, self.temperature, self.top_k, self.top_p,
                        self.min_p, self.stop_token_ids, self.speculative)
