"""refusals.py - commands and flags that users of other projects try, and what there is instead.

    r1grpo: there is no command 'serve': there is no server; `r1grpo generate --chat` talks ...

What is not offered is refused by name, in one line, with a pointer to what exists; options of the
trainers are refused the same way in config/checks.py. A trainer's option as a flag is answered with --set.
Knows nothing but these tables and the names of options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .config import EvalConfig, GRPOConfig, JudgeConfig, SFTConfig

__all__ = ["refusal"]

_PREFERENCE = ("preferences are learned by a reward model (RewardTrainer) and GRPO on it "
               "(ModelReward); `r1grpo pipeline` does both")
_SERVER = ("there is no server; `r1grpo generate --chat` talks to a model in the terminal, and "
           "vLLM loads the folder that a command writes to DIR/final")
_COMMANDS = {
    "dpo": _PREFERENCE, "kto": _PREFERENCE, "orpo": _PREFERENCE, "cpo": _PREFERENCE,
    "rlhf": _PREFERENCE,
    "ppo": "there is no critic here; `r1grpo grpo` takes its baseline from the group",
    "rloo": "`r1grpo grpo` is the same but for the baseline: --set scale_rewards=none",
    "reward": "RewardTrainer trains reward models from Python; `r1grpo pipeline` uses it",
    "serve": _SERVER, "vllm-serve": _SERVER,
    "chat": "it is `r1grpo generate --model FOLDER --chat`",
    "merge": "a training merges its adapters with --merge, a folder of adapters from Python: "
             "Model.from_pretrained(FOLDER).save_pretrained(WHOLE); models are not averaged here",
    "train": "a stage has its name: `r1grpo sft` or `r1grpo grpo`",
    "evaluate": "it is `r1grpo eval`",
    "quantize": "weights are float32 or bfloat16; llama.cpp's converter loads DIR/final",
    "env": "it is `r1grpo doctor`",
}
_ONE = "one process, one device; leave it out"
_DTYPE = "weights are float32 or bfloat16 (--dtype); there is no quantised training"
_FLAGS = {
    "--load-in-4bit": _DTYPE, "--load-in-8bit": _DTYPE, "--quantization": _DTYPE,
    "--bf16": "it is --dtype bfloat16", "--fp16": "it is --dtype bfloat16",
    "--deepspeed": _ONE, "--fsdp": _ONE, "--num-gpus": _ONE, "--num-processes": _ONE,
    "--tensor-parallel-size": _ONE, "--nproc-per-node": _ONE, "--accelerate-config": _ONE,
    "--use-vllm": "sampling and training are one engine here; leave it out",
    "--trust-remote-code": "code of a model folder is never run; its architecture must be one of "
                           "those that this engine knows",
    "--model-name-or-path": "it is --model FOLDER",
    "--dataset-name": "it is --data FILE; nothing is downloaded by itself",
    "--output-dir": "it is --out DIR",
    "--reward-funcs": "it is --reward NAME or --reward FILE.py:function",
    "--gradient-checkpointing": "it is --set gradient_checkpointing=true",
    "--use-peft": "it is --lora R", "--lora-r": "it is --lora R",
    "--lora-alpha": "it is --set lora.lora_alpha=...",
    "--lora-target-modules": """it is --set lora.target_modules='["q_proj", ...]'""",
    "--lora-dropout": "adapters have no dropout; leave it out",
    "--batch-size": "it is --set per_device_train_batch_size=...",
}
# options of commands/options.py beside the trainers'
_INPUTS = {"columns", "split", "limit", "system", "instruction", "template", "chat", "eval_data",
           "ngram", "long_prompts", "max_per_problem", "samples", "temperature",
           "max_completion_length", "teacher_revision", "audit", "reward_options", "low", "high", "balance",
           "per_type", "ask", "ranker",
           "filters", "examples", "shots", "samples_of"}
_STAGES = {"sft": SFTConfig, "distill": SFTConfig, "grpo": GRPOConfig, "reject": EvalConfig,
           "coldstart": EvalConfig,
           "curate": EvalConfig, "eval": EvalConfig, "judge": JudgeConfig}


def refusal(arguments: Sequence[str]) -> str | None:
    """Why a command line cannot be, where a table above says so, or where a trainer's option is
    given as a flag (`--learning-rate 1e-6`); else None: the rest is argparse's to refuse."""
    if arguments and arguments[0] in _COMMANDS:
        return f"there is no command {arguments[0]!r}: {_COMMANDS[arguments[0]]}"
    stage = _STAGES.get(arguments[0]) if arguments else None
    options = (_INPUTS | {field.name for field in dataclasses.fields(stage)}) - {"model"} if stage else set()
    for one in arguments:
        flag = one.partition("=")[0].replace("_", "-")
        name = flag.removeprefix("--").replace("-", "_")
        if flag in _FLAGS:
            return f"there is no option {one.partition('=')[0]!r}: {_FLAGS[flag]}"
        if flag.startswith("--") and name in options:
            return f"there is no option {one.partition('=')[0]!r}: it is --set {name}=..."
    return None
