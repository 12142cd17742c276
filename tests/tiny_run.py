"""The smallest recipe that runs every stage, for tests: seconds, and no figure means anything."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TINY = """
quick = true
save_steps = 2
sft_save_steps = 7

[corpus]
documents = 3000

[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
kv_lora_rank = 8
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 16
n_routed_experts = 4
moe_intermediate_size = 16

[student]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
intermediate_size = 32

[evaluation]
problems = 6
ood_problems = 4
general_prompts = 20
general_samples = 1
k = 3
max_completion_length = 20
validation_problems = 4
validation_samples = 2

[base]
learning_rate = 1e-2
per_device_train_batch_size = 64
warmup_steps = 2

[student_base]
learning_rate = 1e-2
per_device_train_batch_size = 64
warmup_steps = 2

[r1_zero]
problems = 16
eval_steps = 3
GRPO

[cold_start]
problems = 12
samples = 2
written = 24
SFT

[reasoning_rl]
problems = 16
eval_steps = 3
GRPO

[rejection_sft]
problems = 12
samples = 2
written = 24
SFT

[reward_models]
helpful_prompts = 20
safety_prompts = 10
test_prompts = 20
samples = 2

[reward_models.helpful]
per_device_train_batch_size = 8
max_steps = 3

[reward_models.safety]
per_device_train_batch_size = 8
max_steps = 3

[r1]
problems = 16
eval_steps = 2
general_prompts = 20
general_updates = 0.2
GRPO

[distilled]
per_device_train_batch_size = 8
num_train_epochs = 1.0

[student_rl_only]
problems = 16
eval_steps = 3
sweep_updates = 2
learning_rates = [1e-3]
GRPO
"""
GRPO = """
[{stage}.grpo]
max_steps = 5
num_generations = 4
per_device_train_batch_size = 8
steps_per_generation = 2
ref_model_sync_steps = 2
max_completion_length = 20
"""
SFT = """
[{stage}.sft]
per_device_train_batch_size = 8
num_train_epochs = 1.0
"""
TIME_FIELDS = {"seconds", "wall_seconds", "step_time", "tokens_per_second",
               "peak_share", "verdicts/wait_time", "verdicts/hidden_share"}


def write_recipe(path: Path, **changes: int) -> Path:
    """The tiny recipe as a file, changed in its top-level keys."""
    lines, stage = [f"{key} = {value}" for key, value in changes.items()], ""
    for line in TINY.strip().splitlines():
        stage = line.strip("[]") if line.startswith("[") else stage
        if line not in ("GRPO", "SFT") and line.split(" =")[0] not in changes:
            lines.append(line)
        elif line in ("GRPO", "SFT"):
            lines.append({"GRPO": GRPO, "SFT": SFT}[line].format(stage=stage))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def without_time(value):
    """A JSON value without its fields of time."""
    if isinstance(value, dict):
        return {key: without_time(item) for key, item in value.items() if key not in TIME_FIELDS}
    return [without_time(item) for item in value] if isinstance(value, list) else value


def outcome(path: Path) -> dict:
    """Everything of a run that must not depend on kills, threads or the clock."""
    manifest = json.loads((path / "manifest.json").read_text())
    found = {"summary": without_time(json.loads((path / "summary.json").read_text())),
             "checkpoints": {one["name"]: one["sha256"] for one in manifest["checkpoints"]},
             "config": (path / "config.toml").read_text()}
    for log in ("metrics", "completions"):
        found[log] = [without_time(json.loads(line))
                      for line in (path / f"{log}.jsonl").read_text("utf-8").splitlines()]
    for folder in ("data", "evals", "samples"):
        for file in sorted((path / folder).glob("*.jsonl")):
            found[f"{folder}/{file.name}"] = file.read_text("utf-8")
    return found


def weights(path: Path, stage: str) -> dict[str, np.ndarray]:
    return load_file(path / stage / "model.safetensors")
