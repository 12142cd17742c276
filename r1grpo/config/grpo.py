"""grpo.py - GRPOConfig: the options of GRPOTrainer, and the published settings as presets.

Sources of the presets: DeepSeek-R1 (Nature 645, 2025, Methods; arXiv 2501.12948v2, 3.2),
DeepSeekMath (arXiv 2402.03300, 4.2), DAPO (arXiv 2503.14476, 4.1), Dr. GRPO (arXiv 2503.20783),
GSPO (arXiv 2507.18071), TRL's documented defaults. Batch sizes: see the package's docstring.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ..brief import brief
from ..toml import ConfigError
from .checks import require, run_config
from .sampling import Sampling
from .training import TrainingConfig


@run_config
class GRPOConfig(TrainingConfig):
    """Options of GRPOTrainer. The defaults are TRL's names with DeepSeekMath's aggregation; the
    papers' settings are the presets below. difference(other) prints where two configs part."""

    num_generations: int = 8
    steps_per_generation: int = 1
    num_iterations: int = 1  # times that a rollout's mini-batches are gone through
    max_prompt_length: int | None = None  # longer prompts are refused when the run starts
    # a number, or a schedule of (first step, length): a rollout keeps the limit of its first step
    max_completion_length: int | tuple[tuple[int, int], ...] = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None  # None: the model's end of sequence
    speculative: bool = False  # the MTP module guesses a token ahead; changes no sample
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None  # cispo: the bound of the weight itself
    delta: float | None = None  # bound of the ratio outside the clip range; None: none
    # "gspo" is taken for "grpo" with importance_sampling_level "sequence"
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "gspo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    # truncated weights where sampling has other bits than training; None: on device "cuda/fast"
    importance_sampling_correction: bool | None = None
    importance_sampling_cap: float = 2.0  # the most that such a weight may be
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    use_bias_correction_kl: bool = False  # the KL times the ratio (DeepSeek-V3.2); TRL: True
    bnpo_batch_size: int | None = None  # completions in bnpo's local batch; None: the update's
    scale_rewards: Literal["group", "batch", "none"] = "group"
    std_ddof: int = 0  # the papers do not say; ours 0, TRL 1
    reward_weights: tuple[float, ...] | None = None
    # which comes first: the weighted sum of the rewards, or (GDPO) the comparison within the group
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = \
        "sum_then_normalize"
    audit_share: float = 0.05  # of the samples that audit_funcs are asked about (guards.py)
    verifier_workers: int = 2  # processes for Pooled reward functions
    verifier_deadline: float = 5.0  # seconds for a completion
    verifier_memory: int = 2048  # MiB of address space of a process
    verifier_failures: float = 0.05  # of 50 groups: above it the run stops (judging.py)
    mask_truncated_completions: bool = False
    entropy_coef: float = 0.0  # weighted as the token's loss is; TRL: always the mean of tokens
    mtp_detach: bool = True  # MTP in RL leaves the trunk alone
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 1.0  # reference = alpha policy + (1 - alpha) reference
    ref_model_sync_steps: int = 400
    ref_model_offload: bool = False  # its matrices in a file, or a GPU's host; changes no bit
    filter_zero_std_samples: bool = False  # DAPO's dynamic sampling, eq. 11
    max_num_gen_batches: int = 4  # rollouts it may take to fill a batch; ours
    num_generations_eval: int | None = None
    log_completions: bool = False  # train() shows them: see console.py
    num_completions_to_print: int | None = None  # None: all of a rollout

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_completion_length = _schedule(self.max_completion_length)
        if isinstance(self.scale_rewards, bool):  # TRL's other spelling
            self.scale_rewards = "group" if self.scale_rewards else "none"
        if self.loss_type == "gspo":
            self.loss_type, self.importance_sampling_level = "grpo", "sequence"
        cispo = self.loss_type == "cispo"
        require(self, {
            "num_generations must be at least 2, a completion is compared with its group":
                self.num_generations >= 2,
            "steps_per_generation must be at least 1": self.steps_per_generation >= 1,
            "max_prompt_length must be at least 1 or None":
                self.max_prompt_length is None or self.max_prompt_length >= 1,
            "num_iterations must be at least 1": self.num_iterations >= 1,
            "temperature must be above 0, a greedy group has nothing to compare":
                self.temperature > 0,
            "top_k must be at least 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be within 0 and 1": self.min_p is None or 0 <= self.min_p <= 1,
            "stop_strings must not hold an empty string": all(self.stop_strings),
            "beta must be at least 0": self.beta >= 0,
            "epsilon must be at least 0": self.epsilon >= 0,
            "epsilon_high must be at least 0": self.epsilon_high is None or self.epsilon_high >= 0,
            "loss_type must be 'grpo', 'dapo', 'dr_grpo', 'bnpo', 'cispo' or 'gspo'":
                self.loss_type in ("grpo", "dapo", "dr_grpo", "bnpo", "cispo"),
            "epsilon_high must be given for loss_type 'cispo', as the bound of the weight itself "
            "(5.0 is ScaleRL's)": self.epsilon_high is not None or not cispo,
            "delta must be above 0 or None": self.delta is None or self.delta > 0,
            "delta must be None for loss_type 'cispo', which epsilon_high bounds":
                self.delta is None or not cispo,
            "importance_sampling_level must be 'token' or 'sequence'":
                self.importance_sampling_level in ("token", "sequence"),
            "importance_sampling_cap must be above 0": self.importance_sampling_cap > 0,
            "kl_estimator must be 'k1', 'k2' or 'k3'": self.kl_estimator in ("k1", "k2", "k3"),
            "use_bias_correction_kl must be False at the sequence level, where it corrects nothing":
                not self.use_bias_correction_kl or self.importance_sampling_level == "token"
                or self.beta == 0,
            "bnpo_batch_size must be at least 1 or None":
                self.bnpo_batch_size is None or self.bnpo_batch_size >= 1,
            "scale_rewards must be 'group', 'batch' or 'none'":
                self.scale_rewards in ("group", "batch", "none"),
            "multi_objective_aggregation must be 'sum_then_normalize' or 'normalize_then_sum'":
                self.multi_objective_aggregation in ("sum_then_normalize", "normalize_then_sum"),
            "scale_rewards must be 'group' for 'normalize_then_sum', which divides each reward by it":
                self.multi_objective_aggregation == "sum_then_normalize"
                or self.scale_rewards == "group",
            "audit_share must be within 0 and 1": 0 <= self.audit_share <= 1,
            "std_ddof must be 0 or 1": self.std_ddof in (0, 1),
            "ref_model_mixup_alpha must be above 0 and at most 1 (a hard copy)":
                0 < self.ref_model_mixup_alpha <= 1,
            "ref_model_sync_steps must be at least 1": self.ref_model_sync_steps >= 1,
            "sync_ref_model needs beta above 0": self.beta > 0 or not self.sync_ref_model,
            "ref_model_offload needs beta above 0": self.beta > 0 or not self.ref_model_offload,
            "ref_model_offload needs ref_model_mixup_alpha 1 (hard copies) where sync_ref_model moves "
            "the reference": not (self.ref_model_offload and self._mixed),
            "verifier_workers must be at least 1": self.verifier_workers >= 1,
            "verifier_deadline must be above 0": 0 < self.verifier_deadline <= 1e6,
            "verifier_memory must be at least 64": self.verifier_memory >= 64,
            "verifier_failures must be within 0 and 1": 0 <= self.verifier_failures <= 1,
            "max_num_gen_batches must be at least 1": self.max_num_gen_batches >= 1,
            "num_generations_eval must be at least 1 or None":
                self.num_generations_eval is None or self.num_generations_eval >= 1,
            "num_completions_to_print must be at least 1 or None":
                self.num_completions_to_print is None or self.num_completions_to_print >= 1,
        })
        if self.generation_batch_size % self.num_generations:
            raise ConfigError(
                f"GRPOConfig: per_device_train_batch_size * steps_per_generation = "
                f"{self.generation_batch_size} completions a rollout is not a multiple of "
                f"num_generations = {self.num_generations}")

    @property
    def _mixed(self) -> bool:
        return self.sync_ref_model and self.ref_model_mixup_alpha < 1.0

    def reference_kind(self, dtype: str) -> Literal["frozen", "offloaded", "master"]:
        """How the reference policy of a model in this dtype is held: its matrices once as products
        read them, in memory or in a file; with a float32 master where it moves by less than bfloat16
        could tell."""
        if self._mixed and dtype != "float32":
            return "master"
        return "offloaded" if self.ref_model_offload else "frozen"

    @property
    def generation_batch_size(self) -> int:
        """Completions a rollout."""
        return self.per_device_train_batch_size * self.steps_per_generation

    @property
    def prompts_per_rollout(self) -> int:
        """Groups a rollout."""
        return self.generation_batch_size // self.num_generations

    @property
    def updates_per_rollout(self) -> int:
        """Updates that a rollout is used for."""
        return self.steps_per_generation * self.num_iterations

    def completion_length(self, step: int) -> int:
        """The limit of a rollout that is sampled at `step`."""
        if isinstance(self.max_completion_length, int):
            return self.max_completion_length
        return [length for first, length in self.max_completion_length if first <= step][-1]

    def sampling(self, step: int = 0) -> Sampling:
        """What the sampler needs for a rollout at `step`."""
        return Sampling(self.completion_length(step), self.temperature, self.top_k, self.top_p,
                        self.min_p or 0.0, self.stop_token_ids, self.speculative)

    def difference(self, other: GRPOConfig) -> dict[str, tuple[Any, Any]]:
        """{option: (mine, theirs)} of every option in which the two differ."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name))
                 for f in dataclasses.fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    # ---- presets: the published numbers; keywords override ----

    @classmethod
    def r1_zero(cls, **options: Any) -> GRPOConfig:
        """R1-Zero (Nature, Methods). 32 questions x 16 = 512 an update, 8,192 outputs a rollout in
        16 updates, reference refreshed every 400, 10,400 steps. Length 32,768, from step 8,200
        65,536. Not published, so ours: epsilon, loss_type, std_ddof, Adam's numbers, max_grad_norm.
        """
        return cls(**_R1 | {"max_completion_length": ((0, 32768), (8200, 65536))} | options)

    @classmethod
    def r1_stage1(cls, **options: Any) -> GRPOConfig:
        """First RL stage of R1: as R1-Zero with epsilon 10. Its number of steps is unpublished."""
        return cls(**_R1 | {"epsilon": 10.0, "max_steps": None} | options)

    @classmethod
    def r1_stage2(cls, **options: Any) -> GRPOConfig:
        """Second RL stage: temperature 0.7, 1,700 steps; general data and preference rewards only
        in the last 400 (the dataset's business, see GRPOTrainer). The rest "most" as stage 1."""
        published = {**_R1, "epsilon": 10.0, "temperature": 0.7, "max_steps": 1700}
        return cls(**published | options)

    @classmethod
    def deepseekmath(cls, **options: Any) -> GRPOConfig:
        """DeepSeekMath-RL 7B: lr 1e-6, beta 0.04, 64 outputs, length 1,024, batch 1,024, one update
        a rollout. The reference is renewed per outer iteration, whose length is not published, and
        epsilon neither: here no refresh, 0.2 (ours)."""
        return cls(**{"learning_rate": 1e-6, "beta": 0.04, "num_generations": 64,
                      "max_completion_length": 1024, "per_device_train_batch_size": 1024,
                      "loss_type": "grpo"} | options)

    @classmethod
    def dapo(cls, **options: Any) -> GRPOConfig:
        """DAPO 4.1: 512 prompts x 16, 16 updates a rollout, clip 0.2 / 0.28, no KL, token mean,
        dynamic sampling, constant 1e-6 after 20 rollouts (320 updates) of warm-up, length 20,480.
        Its overlong punishment is a reward function and its overlong filtering an option
        (mask_truncated_completions): both are left to the caller."""
        return cls(**{"learning_rate": 1e-6, "warmup_steps": 320, "num_generations": 16,
                      "per_device_train_batch_size": 512, "steps_per_generation": 16,
                      "max_completion_length": 20480, "epsilon": 0.2, "epsilon_high": 0.28,
                      "loss_type": "dapo", "filter_zero_std_samples": True} | options)

    @classmethod
    def dr_grpo(cls, **options: Any) -> GRPOConfig:
        """Dr. GRPO: advantage = reward - mean, constant normaliser, no KL. Batch, length and
        learning rate depend on its runs: here the class defaults (ours)."""
        return cls(**{"loss_type": "dr_grpo", "scale_rewards": "none"} | options)

    @classmethod
    def gspo(cls, **options: Any) -> GRPOConfig:
        """GSPO (arXiv 2507.18071, 5.1): ratios of whole sequences, clip 3e-4 / 4e-4, four mini-batches
        a rollout, no KL. Batch, length and learning rate: the class defaults (ours)."""
        return cls(**{"loss_type": "gspo", "epsilon": 3e-4, "epsilon_high": 4e-4,
                      "steps_per_generation": 4} | options)

    @classmethod
    def trl(cls, **options: Any) -> GRPOConfig:
        """TRL's defaults (1.16): no KL, token mean, sample standard deviation, linear decay, three
        epochs; with beta above 0 a KL times the ratio, and a soft refresh where it is asked for."""
        return cls(**{"loss_type": "dapo", "std_ddof": 1, "lr_scheduler_type": "linear",
                      "adam_beta2": 0.999, "num_train_epochs": 3.0, "ref_model_mixup_alpha": 0.6,
                      "ref_model_sync_steps": 512, "use_bias_correction_kl": True} | options)


_R1: dict[str, Any] = {
    "learning_rate": 3e-6, "beta": 0.001, "temperature": 1.0, "num_generations": 16,
    "per_device_train_batch_size": 512, "steps_per_generation": 16,
    "max_completion_length": 32768, "max_steps": 10400, "sync_ref_model": True,
    "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 400, "loss_type": "grpo",
}


def _schedule(value: Any) -> Any:
    """max_completion_length as a number or a tuple of (first step, length) pairs."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problem = ConfigError(
        f"GRPOConfig: max_completion_length must be at least 1, or pairs (first step, length) in "
        f"ascending order from step 0, it is {brief(value)}")
    if not isinstance(value, (list, tuple)):
        raise problem
    pairs = tuple(tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in value)
    if not pairs or any(len(pair) != 2 or not all(type(one) is int for one in pair) or pair[1] < 1
                        for pair in pairs):
        raise problem
    steps = [first for first, _ in pairs]
    if steps[0] != 0 or steps != sorted(set(steps)):
        raise problem
    return pairs
