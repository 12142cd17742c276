"""r1grpo: the DeepSeek-R1 recipe in one engine that samples and trains with the same kernels.

    from r1grpo import Model, ModelConfig, GRPOTrainer, GRPOConfig

Names are imported from their modules when they are first used, so that the plain parts (tasks,
tokenizer, run directories) and `r1grpo doctor` work where the C extension does not load.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import EvalConfig, GRPOConfig, RewardConfig, SFTConfig
    from .contamination import decontaminate
    from .device import set_num_threads
    from .distill import distill
    from .evaluate import evaluate
    from .grpo import GRPOTrainer
    from .hf_tokenizer import Tokenizer
    from .judge import Judge
    from .layouts import as_messages
    from .lora import LoraConfig
    from .model import Loss, Model
    from .model_config import ModelConfig
    from .pipeline import run_pipeline
    from .plan import check_fits, plan_memory, plan_training
    from .preferences import judge_labels, judge_pairs
    from .recipe import Recipe
    from .rejection import rejection_sample
    from .report import write_report
    from .reward_model import ModelReward, RewardTrainer
    from .rows import load_rows
    from .sampling import Rollout
    from .sft import SFTTrainer
    from .tokenizer import WordTokenizer

_HOME = {
    "EvalConfig": "config", "GRPOConfig": "config", "RewardConfig": "config", "SFTConfig": "config",
    "as_messages": "layouts", "decontaminate": "contamination", "load_rows": "rows",
    "set_num_threads": "device", "distill": "distill", "evaluate": "evaluate",
    "GRPOTrainer": "grpo", "LoraConfig": "lora", "Loss": "model", "Model": "model", "ModelConfig": "model_config",
    "run_pipeline": "pipeline", "Recipe": "recipe", "rejection_sample": "rejection",
    "write_report": "report", "ModelReward": "reward_model", "RewardTrainer": "reward_model",
    "Judge": "judge", "judge_labels": "preferences", "judge_pairs": "preferences",
    "check_fits": "plan", "plan_memory": "plan", "plan_training": "plan",
    "Rollout": "sampling", "SFTTrainer": "sft", "Tokenizer": "hf_tokenizer",
    "WordTokenizer": "tokenizer",
}

__all__ = ["__version__", *sorted(_HOME)]


_PREFERENCES = "preferences are learned by RewardTrainer and GRPO on its ModelReward"
_CRITIC = "GRPOTrainer takes its baseline from the group, there is no critic"
_RLOO = "GRPOTrainer with scale_rewards='none' is the same but for the baseline"
_ADAPTERS = "give a LoraConfig to a trainer's peft_config"
_ELSEWHERE = {  # what users of other libraries look for here, and what there is
    "DPOTrainer": _PREFERENCES, "DPOConfig": _PREFERENCES, "KTOTrainer": _PREFERENCES,
    "KTOConfig": _PREFERENCES, "ORPOTrainer": _PREFERENCES, "CPOTrainer": _PREFERENCES,
    "ORPOConfig": _PREFERENCES, "CPOConfig": _PREFERENCES,
    "PPOTrainer": _CRITIC, "PPOConfig": _CRITIC,
    "RLOOTrainer": _RLOO, "RLOOConfig": _RLOO,
    "BitsAndBytesConfig": "weights are float32 or bfloat16; LoraConfig saves memory",
    "PeftModel": _ADAPTERS, "get_peft_model": _ADAPTERS, "get_peft_config": _ADAPTERS,
    "AutoModelForCausalLM": "Model.from_pretrained loads Hugging Face folders",
    "AutoTokenizer": "Tokenizer.from_pretrained loads it; a trainer that is given a model's folder "
                     "finds it there",
    "Accelerator": "one process, one device",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:  # not AttributeError: `from r1grpo import` would drop its words
        raise ImportError(f"r1grpo has no {name}: {_ELSEWHERE[name]}", name=__name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


class _Package(ModuleType):
    """Two functions are called like the modules that they stand in. Importing such a module would
    put it in the function's place: here the function stays, and the module is sys.modules' alone."""

    distill = property(lambda self: __getattr__("distill"), lambda self, module: None)
    evaluate = property(lambda self: __getattr__("evaluate"), lambda self, module: None)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
