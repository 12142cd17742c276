"""recipe.py - every number of a pipeline run: nested dataclasses <-> TOML. The defaults are the
default recipe; recipes/quick.toml changes it into one that only shows that everything works.

    read_recipe(path)   the defaults, changed by a file of any of their keys
    quick_recipe()      the same with the quick file
    to_toml(recipe)     all of it, as it stands in config.toml of a run

Options of the trainers have the names of r1grpo.config. `seed` and `output_dir` inside them are set
by the pipeline: each random stream of a run has its own seed, derived from Recipe.seed and the name
of what it is for. Numbers are our choices for this scale; the paper's stand in the presets of
config/. Knows nothing about how a stage is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from .config import ConfigError, GRPOConfig, RewardConfig, SFTConfig
from .model_config import ModelConfig
from .tasks import make_tokenizer
from .tasks.corpus import CorpusConfig
from .tokenizer import WordTokenizer
from .toml import from_dict, merge_tables, parse_toml, read_table, to_dict, to_toml

__all__ = ["Recipe", "derive_seed", "quick_recipe", "read_recipe", "recipe_hash"]

_COMPLETION = 256  # tokens of a completion at most: some twenty trials of three numbers fit


def _model(make: Any) -> ModelConfig:
    tokenizer = make_tokenizer()
    return make(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_token_id)


def _require(where: str, checks: Mapping[str, bool]) -> None:
    for text, holds in checks.items():
        if not holds:
            raise ConfigError(f"{where}: {text}")


@dataclass
class Problems:
    """What verifiable problems are drawn like, in training and evaluation."""

    countdown_share: float = 0.75  # the others are arithmetic in words
    chinese_share: float = 0.5

    def __post_init__(self) -> None:
        _require("problems", {
            "countdown_share must be within 0 and 1": 0.0 <= self.countdown_share <= 1.0,
            "chinese_share must be within 0 and 1": 0.0 <= self.chinese_share <= 1.0})


@dataclass
class Corpus:
    """The documents that base and student_base are pre-trained on."""

    documents: int = 165_000  # about 8 M tokens
    style: CorpusConfig = field(default_factory=CorpusConfig)

    def __post_init__(self) -> None:
        _require("corpus", {"documents must be at least 1": self.documents >= 1})


@dataclass
class Evaluation:
    """What is measured after each stage (test, ood, general) and within RL (validation)."""

    problems: int = 200  # test problems, the same for all stages and seeds
    ood_problems: int = 100  # harder ones: one more number, one more step
    general_prompts: int = 120  # held-out general prompts, for stages that chat
    general_samples: int = 2
    k: int = 16  # samples a problem
    temperature: float = 1.0
    max_completion_length: int = _COMPLETION
    validation_problems: int = 64  # an RL stage's checkpoint is chosen on these, never on test
    validation_samples: int = 8

    def __post_init__(self) -> None:
        _require("evaluation", {
            f"{name} must be at least 1": getattr(self, name) >= 1
            for name in ("problems", "ood_problems", "general_prompts", "general_samples", "k",
                         "max_completion_length", "validation_problems", "validation_samples")})
        _require("evaluation", {"temperature must be above 0": self.temperature > 0.0})


@dataclass
class RLStage:
    """Reinforcement learning on reasoning prompts. reward_weights are in the order accuracy,
    format, then, in reasoning_rl and r1, language, then, in r1, helpful and safety."""

    problems: int = 3000  # train problems that prompts are drawn from
    eval_steps: int = 24  # updates between two looks at the validation problems
    grpo: GRPOConfig = field(default_factory=GRPOConfig)

    def __post_init__(self) -> None:
        _require("RL stage", {"problems must be at least 1": self.problems >= 1,
                              "eval_steps must be at least 1": self.eval_steps >= 1,
                              "grpo.max_steps must be set": self.grpo.max_steps is not None})


@dataclass
class GeneralRLStage(RLStage):
    """The last RL stage: general prompts join in at the end."""

    general_prompts: int = 600  # train prompts, drawn from all families
    general_updates: float = 0.24  # share of the updates, the last ones; the paper: 400 of 1,700
    general_rows: float = 0.5  # share of general prompts among the rows of these updates

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("r1", {
            "general_prompts must be at least 1": self.general_prompts >= 1,
            "general_rows must be within 0 and 1": 0.0 < self.general_rows < 1.0,
            "general_updates must be within 0 and 1": 0.0 <= self.general_updates <= 1.0,
            "general_updates leaves no rollout to general prompts":
                self.general_updates == 0.0 or self.first_general_update < self.total})
        realised = (self.total - self.first_general_update) / self.total
        if abs(realised - self.general_updates) > 0.02:  # our choice
            raise ConfigError(f"r1: general_updates is {self.general_updates}, but in whole "
                              f"rollouts it is {realised:.3f} ({self.total} updates, "
                              f"{self.grpo.updates_per_rollout} a rollout)")

    @property
    def total(self) -> int:
        """Updates of the stage."""
        return self.grpo.max_steps or 0

    @property
    def first_general_update(self) -> int:
        """Updates before the general prompts, to the nearest rollout."""
        if self.general_updates == 0.0:
            return self.total
        rollout = self.grpo.updates_per_rollout
        return round((1.0 - self.general_updates) * self.total / rollout) * rollout


@dataclass
class SFTStage:
    """Supervised fine-tuning on samples of another checkpoint."""

    problems: int = 2500  # train problems that it is asked
    samples: int = 4  # of each
    per_problem: int = 1  # kept of each at most
    temperature: float = 1.0  # of the sampling
    general_share: float = 0.0  # general rows among all rows
    written: int = 0  # further rows with a solver's solution; 0: the model's own samples alone
    sft: SFTConfig = field(default_factory=SFTConfig)

    def __post_init__(self) -> None:
        _require("SFT stage", {
            f"{name} must be at least 1": getattr(self, name) >= 1
            for name in ("problems", "samples", "per_problem")})
        _require("SFT stage", {
            "written must be at least 0": self.written >= 0,
            "temperature must be above 0": self.temperature > 0.0,
            "general_share must be at least 0 and below 1": 0.0 <= self.general_share < 1.0})


@dataclass
class RewardModels:
    """The helpful (pairwise) and the safety (pointwise) model and their data."""

    helpful_prompts: int = 800  # train prompts of the helpful set
    safety_prompts: int = 400  # train prompts of the harmless set, half of them benign look-alikes
    test_prompts: int = 150  # held-out prompts of each set
    samples: int = 3  # of each prompt, from each of the two sources
    helpful: RewardConfig = field(default_factory=lambda: RewardConfig(
        kind="pairwise", learning_rate=5e-4, lr_scheduler_type="cosine", min_lr_rate=0.1,
        per_device_train_batch_size=64, num_train_epochs=1.0, weight_decay=0.1))
    safety: RewardConfig = field(default_factory=lambda: RewardConfig(
        kind="pointwise", learning_rate=5e-4, lr_scheduler_type="cosine", min_lr_rate=0.1,
        per_device_train_batch_size=64, num_train_epochs=1.0, weight_decay=0.1))

    def __post_init__(self) -> None:
        _require("reward_models", {
            f"{name} must be at least 1": getattr(self, name) >= 1
            for name in ("helpful_prompts", "safety_prompts", "test_prompts", "samples")})
        _require("reward_models", {
            "helpful.kind must be 'pairwise'": self.helpful.kind == "pairwise",
            "safety.kind must be 'pointwise'": self.safety.kind == "pointwise"})


@dataclass
class StudentRL(RLStage):
    """The student by RL alone: a sweep of short runs, judged on validation, then the full run."""

    sweep_updates: int = 16
    learning_rates: tuple[float, ...] = (2e-4, 6e-4)
    scalings: tuple[Literal["group", "none"], ...] = ("group", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("student_rl_only", {
            "sweep_updates must be at least 1": self.sweep_updates >= 1,
            "learning_rates must not be empty": bool(self.learning_rates),
            "scalings must hold 'group' or 'none'":
                bool(self.scalings) and set(self.scalings) <= {"group", "none"}})


def _grpo(updates: int, **options: Any) -> GRPOConfig:
    """What our RL stages share. As in the paper: 16 samples a prompt, one inner epoch, beta 0.001,
    the reference renewed by hard copy. Ours: 12 prompts an update (paper: 32), 4 updates a rollout
    (16), the clip of DAPO, learning rate, clip of the norm."""
    return GRPOConfig(**{
        "max_steps": updates, "num_generations": 16, "per_device_train_batch_size": 192,
        "steps_per_generation": 4, "learning_rate": 2e-4, "warmup_steps": 4, "epsilon": 0.2,
        "epsilon_high": 0.28, "beta": 0.001, "sync_ref_model": True, "ref_model_sync_steps": 24,
        "loss_type": "grpo", "scale_rewards": "group", "temperature": 1.0,
        "max_completion_length": _COMPLETION, **options})


def _pretraining(**options: Any) -> SFTConfig:
    """One epoch over the corpus, cosine to a tenth; Adam's numbers are DeepSeek-V3's."""
    return SFTConfig(**{
        "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "min_lr_rate": 0.1,
        "warmup_steps": 50, "weight_decay": 0.1, "per_device_train_batch_size": 48, **options})


def _sft(**options: Any) -> SFTConfig:
    """Cosine to a tenth over three epochs, as the paper's SFT stages (two to three)."""
    return SFTConfig(**{
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "min_lr_rate": 0.1,
        "warmup_steps": 4, "weight_decay": 0.1, "per_device_train_batch_size": 64,
        "num_train_epochs": 3.0, **options})


@dataclass
class Recipe:
    """A whole run, in the order of its stages."""

    seed: int = 0
    quick: bool = False  # marked "not a result" wherever its figures are shown
    save_steps: int = 10  # RL updates between two states that a killed run can go on from
    sft_save_steps: int = 100  # the same in pre-training and fine-tuning, whose updates are short
    problems: Problems = field(default_factory=Problems)
    corpus: Corpus = field(default_factory=Corpus)
    model: ModelConfig = field(default_factory=lambda: _model(ModelConfig.tiny_moe))
    student: ModelConfig = field(default_factory=lambda: _model(partial(
        ModelConfig.tiny_dense, hidden_size=64, intermediate_size=160)))
    evaluation: Evaluation = field(default_factory=Evaluation)
    # the loss of the MTP module and of the balance between experts: DeepSeek-V3's 0.3 and, at our
    # size, ten times its 1e-4; the routing bias moves at V3's 1e-3
    base: SFTConfig = field(default_factory=lambda: _pretraining(
        mtp_coef=0.3, balance_coef=1e-3, router_bias_rate=1e-3))
    r1_zero: RLStage = field(default_factory=lambda: RLStage(
        grpo=_grpo(96, reward_weights=(1.0, 0.1))))
    cold_start: SFTStage = field(default_factory=lambda: SFTStage(
        problems=3000, samples=4, per_problem=4, sft=_sft(mtp_coef=0.1)))
    reasoning_rl: RLStage = field(default_factory=lambda: RLStage(
        eval_steps=16, grpo=_grpo(112, loss_type="dapo", reward_weights=(1.0, 0.5, 0.2))))
    rejection_sft: SFTStage = field(default_factory=lambda: SFTStage(
        problems=9000, samples=4, per_problem=4, general_share=0.25, sft=_sft(mtp_coef=0.1)))
    reward_models: RewardModels = field(default_factory=RewardModels)
    # plain sums, so all weights are 1; temperature 0.7 as in the paper
    r1: GeneralRLStage = field(default_factory=lambda: GeneralRLStage(
        eval_steps=16, grpo=_grpo(
            68, temperature=0.7, learning_rate=5e-5, loss_type="dapo",
            reward_weights=(1.0, 1.0, 1.0, 1.0, 1.0))))
    student_base: SFTConfig = field(default_factory=_pretraining)
    distilled: SFTConfig = field(default_factory=_sft)
    student_rl_only: StudentRL = field(default_factory=lambda: StudentRL(
        grpo=_grpo(96, reward_weights=(1.0, 0.1))))

    def __post_init__(self) -> None:
        tokenizer = make_tokenizer()
        _require("recipe", {
            "seed must be at least 0": self.seed >= 0,
            "save_steps must be at least 1": self.save_steps >= 1,
            "sft_save_steps must be at least 1": self.sft_save_steps >= 1,
            "student_rl_only needs at least as many updates as r1_zero":
                (self.student_rl_only.grpo.max_steps or 0) >= (self.r1_zero.grpo.max_steps or 0)})
        for name in ("model", "student"):
            _check_vocabulary(name, getattr(self, name), tokenizer)
        for name, rewards in (("r1_zero", 2), ("reasoning_rl", 3), ("r1", 5),
                              ("student_rl_only", 2)):
            weights = getattr(self, name).grpo.reward_weights
            if weights is not None and len(weights) != rewards:
                raise ConfigError(f"{name}.grpo.reward_weights has {len(weights)} numbers, "
                                  f"expected {rewards}")
        for place, options in _options(self):
            for key, plain in (("seed", 0), ("output_dir", None), ("save_steps", 0)):
                if getattr(options, key) != plain:
                    raise ConfigError(f"{place}.{key} is set by the pipeline; leave it out "
                                      f"(`seed` and `save_steps` of the recipe are for you)")


def _check_vocabulary(name: str, config: ModelConfig, tokenizer: WordTokenizer) -> None:
    for key, wanted in (("vocab_size", tokenizer.vocab_size),
                        ("eos_token_id", tokenizer.eos_token_id)):
        if getattr(config, key) != wanted:
            raise ConfigError(f"{name}.{key} is {getattr(config, key)}, the built-in tokenizer "
                              f"has {wanted}")


def _options(recipe: Recipe) -> list[tuple[str, Any]]:
    """Every trainer's options with their place in the recipe."""
    found = [(name, getattr(recipe, name)) for name in ("base", "student_base", "distilled")]
    found += [(f"{name}.grpo", getattr(recipe, name).grpo)
              for name in ("r1_zero", "reasoning_rl", "r1", "student_rl_only")]
    found += [(f"{name}.sft", getattr(recipe, name).sft)
              for name in ("cold_start", "rejection_sft")]
    return found + [(f"reward_models.{name}", getattr(recipe.reward_models, name))
                    for name in ("helpful", "safety")]


# ---- files --------------------------------------------------------------------------------------


def read_recipe(path: str | Path, **changes: Any) -> Recipe:
    """The default recipe, changed by the keys of a TOML file and then by keywords."""
    return _changed(read_table(path), str(path), changes)


def quick_recipe(**changes: Any) -> Recipe:
    """The recipe of --quick, changed by keywords."""
    text = resources.files(__package__).joinpath("recipes/quick.toml").read_text(encoding="utf-8")
    return _changed(parse_toml(text, "recipes/quick.toml"), "recipes/quick.toml", changes)


def _changed(table: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> Recipe:
    try:
        return from_dict(Recipe, {**merge_tables(to_dict(Recipe()), table), **changes})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def recipe_hash(recipe: Recipe) -> str:
    """What tells two recipes (and seeds) apart."""
    return hashlib.blake2b(to_toml(recipe).encode(), digest_size=16).hexdigest()


def derive_seed(seed: int, purpose: str) -> int:
    """The seed, in 31 bits, of one random stream of a run, by the name of what it is for."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def with_seed(options: Any, seed: int, **changes: Any) -> Any:
    """A trainer's options with the seed of its stream, and what else the stage sets."""
    return dataclasses.replace(options, seed=seed, **changes)
