"""config.py - the options of a run: GRPOConfig, SFTConfig, RewardConfig, EvalConfig, and presets.

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
result.

Sources of the presets: DeepSeek-R1 (Nature 645, 2025, Methods; arXiv 2501.12948v2, 3.2),
DeepSeekMath (arXiv 2402.03300, 4.2), DAPO (arXiv 2503.14476, 4.1), Dr. GRPO (arXiv 2503.20783),
TRL's documented defaults. "Ours" marks what the source does not say. Knows nothing about models.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, dataclass_transform

from .toml import ConfigError, suggest
from .trackers import tracker_names

__all__ = ["ConfigError", "EvalConfig", "GRPOConfig", "RewardConfig", "Sampling", "SFTConfig"]

T = TypeVar("T")

_MICRO = "set micro_batch_tokens, which bounds memory and cannot change the result"
_ENGINE = "sampling and training are one engine here, leave it out"
_ONE = "one process, one device; leave it out"
_LORA = "adapters are trained from Python: give peft_config=LoraConfig(...) to the trainer"
_BF16 = "give dtype to Model(...), or --dtype bfloat16 to a command"
_EVERY = "every step is recorded; leave it out"
_DTYPE = "weights are float32 or bfloat16, there is no quantised training; give dtype to Model(...)"
_UNSUPPORTED: dict[str, str] = {
    "gradient_accumulation_steps": _MICRO,
    "auto_find_batch_size": _MICRO,
    "generation_batch_size": "it is per_device_train_batch_size * steps_per_generation, set those",
    "multi_objective_aggregation": "rewards are summed, then normalised; leave it out",
    "repetition_penalty": "not implemented; use a repetition reward",
    "generation_kwargs": "set temperature, top_k, top_p, min_p, stop_strings",
    "chat_template_kwargs": "render the prompt in the dataset",
    "use_peft": _LORA, "lora_r": _LORA, "lora_alpha": _LORA, "lora_target_modules": _LORA,
    "top_entropy_quantile": "not implemented; set entropy_coef",
    "use_adaptive_entropy": "not implemented; set entropy_coef",
    "entropy_coef_min": "not implemented; set entropy_coef",
    "entropy_coef_max": "not implemented; set entropy_coef",
    "entropy_coef_delta": "not implemented; set entropy_coef",
    "entropy_target": "not implemented; set entropy_coef",
    "off_policy_mask_threshold": "not implemented; leave it out",
    "router_aux_loss_coef": "set balance_coef",
    "disable_dropout": "there is no dropout; leave it out",
    "use_vllm": _ENGINE,
    "vllm_mode": _ENGINE,
    "vllm_importance_sampling_correction": _ENGINE + ": the ratio it corrects is exactly 1",
    "use_transformers_continuous_batching": _ENGINE,
    "use_liger_kernel": "no array of tokens x vocabulary exists here; leave it out",
    "ds3_gather_for_generation": _ENGINE,
    "bf16": _BF16, "fp16": _BF16, "tf32": _BF16,
    "load_in_4bit": _DTYPE, "load_in_8bit": _DTYPE, "quantization_config": _DTYPE,
    "cast_lm_head_to_fp32": "logits are float32 whatever the dtype; leave it out",
    "model_init_kwargs": "load the model with Model.from_pretrained(...) and pass it",
    "trust_remote_code": "code of a model folder is never run; leave it out",
    "optim": "the optimiser is AdamW; leave it out",
    "per_device_eval_batch_size": "set num_generations_eval",
    "push_to_hub": "call trainer.save_model(folder) and upload the folder",
    "hub_model_id": "call trainer.save_model(folder) and upload the folder",
    "warmup_ratio": "set warmup_steps",
    "packing": "sequences are always packed without padding; leave it out",
    "pad_to_multiple_of": "sequences are packed without padding; leave it out",
    "remove_unused_columns": "every column reaches the reward functions; leave it out",
    "dataset_text_field": "name the column 'text'",
    "log_completions": "give callbacks= one that reads trainer.completion_rows()",
    "eval_strategy": "call trainer.evaluate() in a callback",
    "eval_steps": "call trainer.evaluate() in a callback",
    "save_strategy": "set save_steps, 0 is never",
    "logging_steps": _EVERY, "logging_strategy": _EVERY, "logging_first_step": _EVERY,
    "logging_dir": _EVERY, "disable_tqdm": "nothing is printed; leave it out",
    "run_name": "not implemented; leave it out",
    "save_total_limit": "every state stays; leave it out and delete what is old",
    "overwrite_output_dir": "nothing is overwritten; choose another output_dir",
    "gradient_checkpointing_kwargs": "set gradient_checkpointing alone",
    "dataset_num_proc": _ONE, "dataloader_num_workers": _ONE,
    "eos_token": "it is the tokenizer's; leave it out", "max_seq_length": "set max_length",
    "neftune_noise_alpha": "not implemented; leave it out",
    "tools": "not implemented",
    "max_tool_calling_iterations": "not implemented",
    # other projects' words for what we have
    "clip_ratio_low": "set epsilon", "clip_ratio_high": "set epsilon_high",
    "eps_clip": "set epsilon", "eps_clip_high": "set epsilon_high",
    "clip_lower": "set epsilon", "clip_higher": "set epsilon_high",
    "clip_ratio_c": "set delta", "eps_clip_c": "set delta", "dual_clip": "set delta",
    "kl_loss_coef": "set beta", "kl_coef": "set beta", "loss_agg_mode": "set loss_type",
    "kl_loss_type": "set kl_estimator; low_var_kl is 'k3'", "ppo_epochs": "set num_iterations",
    "group_size": "set num_generations", "filter_groups": "set filter_zero_std_samples",
}
_UNSUPPORTED_PREFIX = {"vllm_": _ENGINE, "sapo_": "loss_type 'sapo' is not implemented",
                       "vespo_": "loss_type 'vespo' is not implemented",
                       "fsdp": _ONE, "deepspeed": _ONE, "ddp_": _ONE, "accelerator_config": _ONE}
# TRL's options at the values that ask for what is done here anyway: taken, and forgotten
_AS_IT_IS: dict[str, Any] = {
    "use_vllm": False, "use_liger_kernel": False, "use_transformers_continuous_batching": False,
    "gradient_accumulation_steps": 1, "auto_find_batch_size": False, "logging_steps": 1,
    "remove_unused_columns": False, "log_completions": False, "repetition_penalty": 1.0,
    "top_entropy_quantile": 1.0, "use_adaptive_entropy": False, "optim": "adamw_torch",
    "multi_objective_aggregation": "sum_then_normalize", "bf16": False, "fp16": False,
    "push_to_hub": False, "trust_remote_code": False, "eval_strategy": "no",
}


@dataclass_transform()
def run_config(cls: type[T]) -> type[T]:
    """@dataclass whose constructor answers unknown and unsupported options by name."""
    made = dataclass(cls)
    names = [field.name for field in dataclasses.fields(made)]  # type: ignore[arg-type]
    kinds = {field.name: str(field.type) for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    plain = made.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        for name in [name for name in values if name not in names]:
            value = values.pop(name)
            if name not in _AS_IT_IS or (type(value), value) != (type(_AS_IT_IS[name]),
                                                                 _AS_IT_IS[name]):
                raise ConfigError(f"{cls.__name__}: {_refusal(name, names)}")
        for name, value in values.items():  # YAML reads 1e-6 as text
            others = ("str", "Literal", "tuple")  # what may be text, or has a check of its own
            if isinstance(value, str) and not any(one in kinds[name] for one in others):
                raise ConfigError(f"{cls.__name__}: {name} is {value!r}, expected {kinds[name]}")
        plain(self, *args, **values)

    made.__init__ = __init__  # type: ignore[method-assign]
    made.refusal = staticmethod(lambda name: _refusal(name, names))  # type: ignore[attr-defined]
    return made


def _refusal(name: str, names: list[str]) -> str:
    reason = _UNSUPPORTED.get(name)
    for prefix, words in _UNSUPPORTED_PREFIX.items():
        if reason is None and name.startswith(prefix):
            reason = words
    if reason:
        return f"option {name!r} is not supported: {reason}"
    return f"unknown option {name!r}{suggest(name, names)}"


def _require(config: Any, checks: dict[str, bool]) -> None:
    for text, holds in checks.items():
        if not holds:
            name = text.split()[0]
            raise ConfigError(f"{type(config).__name__}: {text}, it is {getattr(config, name)!r}")


def _schedule(value: Any) -> Any:
    """max_completion_length as a number or a tuple of (first step, length) pairs."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problem = ConfigError(
        f"GRPOConfig: max_completion_length must be at least 1, or pairs (first step, length) in "
        f"ascending order from step 0, it is {value!r}")
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


@dataclass(frozen=True)
class Sampling:
    """What the sampler needs; 0, 1.0 and 0.0 switch top_k, top_p and min_p off."""

    max_completion_length: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] | None = None

    def filters(self) -> dict[str, float]:
        """What changes a log-prob, as keywords of Model.logprobs and Model.policy_gradient."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p,
                "min_p": self.min_p}


@run_config
class TrainingConfig:
    """What every trainer has: the optimiser, the schedule, where and how often to save."""

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
    report_to: tuple[str, ...] = ()  # "tensorboard", "wandb", "trackio"; also one as a string
    seed: int = 0

    def __post_init__(self) -> None:
        self.report_to = tracker_names(self.report_to)
        _require(self, {
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
        })


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
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None  # cispo: the bound of the weight itself
    delta: float | None = None  # bound of the ratio outside the clip range; None: none
    # "gspo" is taken for "grpo" with importance_sampling_level "sequence"
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "gspo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    use_bias_correction_kl: bool = False  # the KL times the ratio (DeepSeek-V3.2); TRL: True
    bnpo_batch_size: int | None = None  # completions in bnpo's local batch; None: the update's
    scale_rewards: Literal["group", "batch", "none"] = "group"
    std_ddof: int = 0  # the papers do not say; ours 0, TRL 1
    reward_weights: tuple[float, ...] | None = None
    mask_truncated_completions: bool = False
    entropy_coef: float = 0.0  # weighted as the token's loss is; TRL: always the mean of tokens
    mtp_detach: bool = True  # MTP in RL leaves the trunk alone
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 1.0  # reference = alpha policy + (1 - alpha) reference
    ref_model_sync_steps: int = 400
    filter_zero_std_samples: bool = False  # DAPO's dynamic sampling, eq. 11
    max_num_gen_batches: int = 4  # rollouts it may take to fill a batch; ours
    num_generations_eval: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_completion_length = _schedule(self.max_completion_length)
        if isinstance(self.scale_rewards, bool):  # TRL's other spelling
            self.scale_rewards = "group" if self.scale_rewards else "none"
        if self.loss_type == "gspo":
            self.loss_type, self.importance_sampling_level = "grpo", "sequence"
        cispo = self.loss_type == "cispo"
        _require(self, {
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
            "kl_estimator must be 'k1', 'k2' or 'k3'": self.kl_estimator in ("k1", "k2", "k3"),
            "use_bias_correction_kl must be False at the sequence level, where it corrects nothing":
                not self.use_bias_correction_kl or self.importance_sampling_level == "token"
                or self.beta == 0,
            "bnpo_batch_size must be at least 1 or None":
                self.bnpo_batch_size is None or self.bnpo_batch_size >= 1,
            "scale_rewards must be 'group', 'batch' or 'none'":
                self.scale_rewards in ("group", "batch", "none"),
            "std_ddof must be 0 or 1": self.std_ddof in (0, 1),
            "ref_model_mixup_alpha must be above 0 and at most 1 (a hard copy)":
                0 < self.ref_model_mixup_alpha <= 1,
            "ref_model_sync_steps must be at least 1": self.ref_model_sync_steps >= 1,
            "sync_ref_model needs beta above 0": self.beta > 0 or not self.sync_ref_model,
            "max_num_gen_batches must be at least 1": self.max_num_gen_batches >= 1,
            "num_generations_eval must be at least 1 or None":
                self.num_generations_eval is None or self.num_generations_eval >= 1,
        })
        if self.generation_batch_size % self.num_generations:
            raise ConfigError(
                f"GRPOConfig: per_device_train_batch_size * steps_per_generation = "
                f"{self.generation_batch_size} completions a rollout is not a multiple of "
                f"num_generations = {self.num_generations}")

    @property
    def generation_batch_size(self) -> int:
        """Completions a rollout."""
        return self.per_device_train_batch_size * self.steps_per_generation

    @property
    def prompts_per_rollout(self) -> int:
        return self.generation_batch_size // self.num_generations

    @property
    def updates_per_rollout(self) -> int:
        return self.steps_per_generation * self.num_iterations

    def completion_length(self, step: int) -> int:
        """The limit of a rollout that is sampled at `step`."""
        if isinstance(self.max_completion_length, int):
            return self.max_completion_length
        return [length for first, length in self.max_completion_length if first <= step][-1]

    def sampling(self, step: int = 0) -> Sampling:
        return Sampling(self.completion_length(step), self.temperature, self.top_k, self.top_p,
                        self.min_p or 0.0, self.stop_token_ids)

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
        _require(self, {
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
            raise ConfigError(f"SFTConfig.distill: there is no student {student!r}, there are "
                              f"{', '.join(_STUDENTS)}{suggest(student, _STUDENTS)}")
        return cls.r1(**{"learning_rate": _STUDENTS[student],
                         "per_device_train_batch_size": 64} | options)


_STUDENTS = {"qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5,
             "llama_8b": 5e-5, "llama_70b": 2e-5}


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
        _require(self, {
            "kind must be 'pairwise' or 'pointwise'": self.kind in ("pairwise", "pointwise"),
            "part must be 'summary', 'whole' or None": self.part in ("summary", "whole", None),
            "mtp_coef must be 0 for a reward model": self.mtp_coef == 0,
            "balance_coef must be 0 for a reward model": self.balance_coef == 0,
        })
        if self.part is None:
            self.part = "summary" if self.kind == "pairwise" else "whole"


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
    batch_prompts: int = 64  # prompts a call of the sampler; cannot change a sample
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, {
            "k must be at least 1": self.k >= 1,
            "max_completion_length must be at least 1": self.max_completion_length >= 1,
            "temperature must be at least 0": self.temperature >= 0,
            "top_k must be at least 0": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be within 0 and 1": 0 <= self.min_p <= 1,
            "batch_prompts must be at least 1": self.batch_prompts >= 1,
        })

    def sampling(self) -> Sampling:
        return Sampling(self.max_completion_length, self.temperature, self.top_k, self.top_p,
                        self.min_p, self.stop_token_ids)
