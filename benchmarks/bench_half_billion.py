"""A model of Qwen2.5-0.5B's shape: loading, sampling and training, seconds and memory beside the plan.

    python -m benchmarks.bench_half_billion [--folder DIR] [--json FILE]

Random weights, written once to DIR in bfloat16 (1 GB; a temporary folder if none is given). Then, each
in a process of its own and in both dtypes: load the folder (the file is in the page cache), load and
sample, load and take one step of SFT, load and take one step of GRPO. Peak is the process's largest
resident set; plan is r1grpo.plan's total for the same call, without the interpreter and its libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from r1grpo.device import get_device

_WORK = """
import json, sys, time
from r1grpo import (GRPOConfig, GRPOTrainer, Model, SFTConfig, SFTTrainer, plan_memory, plan_training)
folder, dtype, what = sys.argv[1:]
begin = time.perf_counter()
model = Model.from_pretrained(folder, dtype=dtype)
loaded = time.perf_counter()
ids = [(7919 * i) % 150_000 for i in range(512)]
plan, tokens = plan_memory(model.config, dtype=dtype, training=False), 0
if what == "generate":
    options = dict(num_generations=4, max_new_tokens=32)
    plan = plan_memory(model.config, dtype=dtype, training=False, prompts=2, prompt_length=32,
                       **options)
    done = model.generate([ids[:32], ids[32:64]], stop_token_ids=(), **options)
    tokens = sum(map(len, done.completion_ids))
elif what == "SFT step":
    args = SFTConfig(max_steps=1, per_device_train_batch_size=2, micro_batch_tokens=256)
    rows = [{"prompt_ids": ids[:56], "completion_ids": ids[56:256]},
            {"prompt_ids": ids[256:300], "completion_ids": ids[300:512]}]
    plan = plan_training(model.config, args, dtype=dtype, length=256)
    tokens = next(iter(SFTTrainer(model, args, rows)))["processed_tokens"]
elif what == "GRPO step":
    args = GRPOConfig(max_steps=1, num_generations=4, per_device_train_batch_size=8,
                      max_completion_length=24, micro_batch_tokens=256, stop_token_ids=())
    plan = plan_training(model.config, args, dtype=dtype, prompt_length=32)
    trainer = GRPOTrainer(model, lambda prompts, completions, completion_ids, **columns: [
        float(one[0] % 7) for one in completion_ids], args,
        [{"prompt_ids": ids[:32]}, {"prompt_ids": ids[32:64]}])
    tokens = next(iter(trainer))["processed_tokens"]
    assert trainer.max_logprob_gap == 0.0
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(json.dumps({"load seconds": loaded - begin, "seconds": time.perf_counter() - loaded,
                  "tokens": tokens, "peak GiB": int(peak) / 2**20, "plan GiB": plan.total / 2**30}))
"""

SHAPE = {"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
         "max_position_embeddings": 32_768, "rope_theta": 1e6, "tie_word_embeddings": True}


def run(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-c", *arguments], check=True, stdout=subprocess.PIPE,
                          text=True)
    return json.loads(done.stdout) if done.stdout else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(options.folder or Path(temporary) / "model")
        if not Path(folder, "config.json").is_file():
            run("import json, sys; from r1grpo import Model; Model(json.loads(sys.argv[1])"
                ").save_pretrained(sys.argv[2], dtype='bfloat16')", json.dumps(SHAPE), folder)
        found = {"machine": describe(get_device()), "rows": []}
        for dtype in ("float32", "bfloat16"):
            for what in ("load", "generate", "SFT step", "GRPO step"):
                row = {"what": what, "dtype": dtype, **run(_WORK, folder, dtype, what)}
                found["rows"].append(row)
                print(f"{what:10} {dtype:9} load {row['load seconds']:6.2f} s, then "
                      f"{row['seconds']:7.2f} s for {row['tokens']:4} tokens; peak "
                      f"{row['peak GiB']:6.2f} GiB, plan {row['plan GiB']:6.2f} GiB", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
