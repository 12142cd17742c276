"""checks.py - how options are checked: unknown names, TRL's names that are not supported, values.

`run_config` is @dataclass for options, `require` the checks of its values. Every fault is a ConfigError
that names the class, the option and what to do instead.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

from ..brief import brief
from ..toml import ConfigError, suggest

T = TypeVar("T")

_MICRO = "set micro_batch_tokens, which bounds memory and cannot change the result"
_ENGINE = "sampling and training are one engine here, leave it out"
_ONE = "one process, one device; leave it out"
_LORA = "give peft_config=LoraConfig(...) to the trainer, or --lora R to a command"
_BF16 = "give dtype to Model(...), or --dtype bfloat16 to a command"
_TRACKED = "trackers write into output_dir; leave it out"
_GRPO = "completions are GRPO's"
_DTYPE = "weights are float32 or bfloat16, there is no quantised training; give dtype to Model(...)"
_UNSUPPORTED: dict[str, str] = {
    "gradient_accumulation_steps": _MICRO,
    "auto_find_batch_size": _MICRO,
    "generation_batch_size": "it is per_device_train_batch_size * steps_per_generation, set those",
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
    "vllm_importance_sampling_correction": "set importance_sampling_correction; the ratio it corrects is "
                                           "exactly 1 but on device cuda/fast",
    "vllm_importance_sampling_cap": "set importance_sampling_cap",
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
    "log_completions": _GRPO, "num_completions_to_print": _GRPO,
    "eval_strategy": "call trainer.evaluate() in a callback",
    "eval_steps": "call trainer.evaluate() in a callback",
    "save_strategy": "set save_steps, 0 is never",
    "logging_strategy": "set logging_steps, 0 is never", "logging_dir": _TRACKED,
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
    "gradient_accumulation_steps": 1, "auto_find_batch_size": False, "logging_strategy": "steps",
    "remove_unused_columns": False, "log_completions": False, "repetition_penalty": 1.0,
    "top_entropy_quantile": 1.0, "use_adaptive_entropy": False, "optim": "adamw_torch",
    "bf16": False, "fp16": False,
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
                raise ConfigError(f"{cls.__name__}: {name} is {brief(value)}, expected {kinds[name]}")
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
        return f"option {brief(name)} is not supported: {reason}"
    return f"unknown option {brief(name)}{suggest(name, names)}"


def require(config: Any, checks: dict[str, bool]) -> None:
    """Raises ConfigError with the first text that does not hold; a text opens with its option's name."""
    for text, holds in checks.items():
        if not holds:
            name = text.split()[0]
            raise ConfigError(f"{type(config).__name__}: {text}, it is {brief(getattr(config, name))}")
