"""The memory plan: what it counts, and that a process which does the work takes what it says.

Memory is measured in a process of its own, at its peak, over what the bare import takes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import batch, configs, make
from r1grpo import (GRPOConfig, GRPOTrainer, Model, ModelConfig, RewardConfig, SFTConfig, SFTTrainer,
                    _core)
from r1grpo import plan as planning
from r1grpo.lora import LoraConfig
from r1grpo.plan import available_memory, check_fits, plan_memory, plan_training

WORK = '''
import json, sys
import numpy as np
from r1grpo import Model, ModelConfig, set_num_threads

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

set_num_threads(2)
config, options = ModelConfig.from_dict(json.loads(sys.argv[1])), json.loads(sys.argv[2])
work, length, base = options["work"], options["length"], peak()
rng = np.random.default_rng(0)
rows = rng.integers(0, config.vocab_size, (options["sequences"], length)).tolist()
how = dict(dtype=options["dtype"], frozen=options["frozen"])
model = Model.from_pretrained(options["folder"], **how) if work == "load" else Model(config, **how)
reference = model.freeze() if options["reference"] else None
if work == "train":
    how = dict(recompute=options["recompute"], micro_batch_tokens=options["micro_batch_tokens"])
    if config.num_nextn_predict_layers:
        how |= dict(mtp_coef=0.3, balance_coef=0.01)
    prompt, group = options["prompt"], options["group"]
    model.sft_gradient([row[:prompt] for row in rows[::group]], [row[prompt:] for row in rows], **how)
    model.update(1e-3)
if reference:  # a whole micro-batch
    reference.logprobs([row[:1] for row in rows * 5], [row[1:] for row in rows * 5])
if work == "score":
    model.logprobs([row[:1] for row in rows], [row[1:] for row in rows])
if work == "sample":
    model.generate([row[:-56] for row in rows], 1, max_new_tokens=56, stop_token_ids=())
print(json.dumps([base, peak()]))
'''
WIDE = dict(vocab_size=4000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=768, max_position_embeddings=2048)
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("work, changes, options", [
    ("train", {"tie_word_embeddings": True}, {"length": 1024, "micro_batch_tokens": 1024}),
    ("train", {}, {"length": 1024, "recompute": True}),
    ("train", {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
               "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
               "v_head_dim": 32, "num_nextn_predict_layers": 1, "model_type": "deepseek_v3"},
     {"length": 512, "micro_batch_tokens": 512}),
    ("train", {}, {"length": 1024, "dtype": "bfloat16", "reference": "frozen"}),
    ("train", {}, {"length": 500, "sequences": 32, "prompt": 440, "group": 16}),
    ("train", {}, {"length": 150, "sequences": 64, "prompt": 50, "group": 64,
                   "micro_batch_tokens": 100}),
    ("score", {}, {"length": 2048, "sequences": 2}),
    ("sample", {}, {"length": 192, "sequences": 40}),
    ("load", {"vocab_size": 40000}, {"frozen": True, "dtype": "bfloat16", "length": 16}),
    ("score", {"intermediate_size": 2048},
     {"frozen": True, "dtype": "bfloat16", "length": 2048, "sequences": 2}),
    ("sample", {"vocab_size": 16000, "tie_word_embeddings": True, "max_position_embeddings": 131072},
     {"frozen": True, "length": 192, "sequences": 40})])
def test_a_process_takes_what_the_plan_says(work: str, changes: dict, options: dict,
                                            tmp_path: Path) -> None:
    config = ModelConfig.from_dict({**WIDE, **changes})
    options = {"work": work, "sequences": 1, "recompute": False, "micro_batch_tokens": None,
               "prompt": 1, "group": 1, "frozen": False, "dtype": "float32", "reference": None,
               **options}
    if work == "load":
        options["folder"] = str(tmp_path / "model")
        Model(config, frozen=True).save_pretrained(options["folder"])
    done = subprocess.run([sys.executable, "-c", WORK, json.dumps(config.to_dict()),
                           json.dumps(options)], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    base, peak = json.loads(done.stdout)
    want = plan_memory(config, length=options["length"], sequences=options["sequences"],
                       training=work == "train", recompute=options["recompute"],
                       micro_batch_tokens=options["micro_batch_tokens"], scoring=work == "score",
                       prompts=options["sequences"] * (work == "sample"),
                       num_generations=options["group"], max_new_tokens=56,
                       prompt_length=options["length"] - 56 if work == "sample" else options["prompt"],
                       frozen=options["frozen"], dtype=options["dtype"],
                       reference=options["reference"])
    assert want.total > 60 << 20, "too small to say anything"
    assert abs(peak - base - want.total) < 0.1 * want.total, \
        f"{(peak - base) / 2**20:.1f} MiB where the plan says\n{want}"


@pytest.mark.parametrize("name", sorted(configs()))
def test_parameters_gradients_and_moments_are_counted(name: str) -> None:
    model = make(name)
    assert model.plan(length=64).total == plan_memory(model.config, length=64).total
    elements = sum(a.size for a in model.state_dict().values())
    trained = sum(a.size for a in model.grad_dict().values())
    plan = model.plan(length=64)
    slack = 64 * len(model.state_dict()) * 4  # every tensor starts at a multiple of 64 bytes
    rope = 4 * model.config.max_position_embeddings * 64
    assert 0 <= plan.bytes_of("parameters, float32 master") - 4 * elements < slack + rope
    assert 0 <= plan.bytes_of("Adam's moments") - 8 * trained < slack
    uses = 1 + (model.config.tie_word_embeddings or bool(model.config.num_nextn_predict_layers))
    assert plan.bytes_of("gradients") >= 4 * trained
    shared = model.config.vocab_size * model.config.hidden_size * 4
    sums = plan.bytes_of("update") - (shared if uses > 1 else 0)  # a float64 for each parameter
    assert 8 <= sums < 8 * len(model.state_dict()) + 64


def test_what_lowers_what() -> None:
    config = ModelConfig.from_dict({**WIDE, "num_hidden_layers": 12})
    whole = plan_memory(config, length=2048)
    again = plan_memory(config, length=2048, recompute=True)
    assert again.bytes_of("training: activations") < whole.bytes_of("training: activations") / 4
    assert again.bytes_of("training: head") == whole.bytes_of("training: head")
    short = plan_memory(config, length=512, micro_batch_tokens=512)
    assert short.bytes_of("training") < whole.bytes_of("training") / 3
    bare = plan_memory(config, training=False)
    assert {item.name.split(",")[0] for item in bare.items} == {"parameters", "loading: the largest tensor"}
    many = plan_memory(config, training=False, prompts=64, prompt_length=100, max_new_tokens=100)
    assert many.bytes_of("sampling: KV of 64 sequences") > 30 * config.num_hidden_layers * 1024 * 64
    assert plan_memory(config, length=64, sequences=1).total < short.total
    half = plan_memory(config, dtype="bfloat16", length=2048)
    for name in ("parameters, packed", "training: KV"):
        assert half.bytes_of(name) == pytest.approx(whole.bytes_of(name) / 2, rel=0.01)
    assert half.bytes_of("parameters, float32") == whole.bytes_of("parameters, float32")
    frozen = plan_memory(config, dtype="bfloat16", length=2048, frozen=True)
    assert frozen.bytes_of("parameters") < 1.01 * half.bytes_of("parameters, packed")
    assert frozen.bytes_of("gradients") == frozen.bytes_of("Adam") == frozen.bytes_of("training") == 0
    assert Model(config, dtype="bfloat16", frozen=True).plan(length=2048) == frozen
    with pytest.raises(ValueError, match="length is 0"):
        plan_memory(config, length=0)
    with pytest.raises(ValueError, match="leaves no room in a context of 2048"):
        plan_memory(config, prompts=1, prompt_length=2048)


LONG = dict(vocab_size=151936, num_hidden_layers=1, num_attention_heads=2, hidden_size=32,
            intermediate_size=32, max_position_embeddings=32768, tie_word_embeddings=True)


def test_a_prompt_is_planned_once_for_its_completions() -> None:
    """16 completions of 20 tokens to a prompt of 100: 419 rows instead of 1,920, and no fewer where
    mini-batches are drawn at random from the rollout."""
    config = ModelConfig.from_dict(WIDE)

    def acts(**changes) -> int:
        args = GRPOConfig(max_prompt_length=100, max_completion_length=20, num_generations=16,
                          per_device_train_batch_size=16, **changes)
        return plan_training(config, args).bytes_of("training: activations")
    alone = plan_memory(config, length=120, sequences=16).bytes_of("training: activations")
    assert acts() / alone == pytest.approx((99 + 16 * 21) / (16 * 120), rel=0.02)
    assert acts(steps_per_generation=4) == pytest.approx(alone, rel=0.001)
    assert acts(steps_per_generation=4, micro_batch_tokens=120) == acts(micro_batch_tokens=120) == acts()


def test_the_head_of_a_long_sample_adds_little() -> None:
    """32,768 tokens x 151,936 entries, forward and backward: under a GiB at the width of a 0.5B
    model. benchmarks/bench_memory.py measures that a process keeps to it."""
    small = plan_memory(ModelConfig.from_dict(LONG), length=4096).bytes_of("training: head")
    large = plan_memory(ModelConfig.from_dict(LONG), length=32768).bytes_of("training: head")
    chunk = 512 * 151936 * 4
    assert large < 8 * small and small < 3 * chunk, "more than vectors and a chunk grows with tokens"
    wide = ModelConfig.from_dict({**LONG, "hidden_size": 896, "num_hidden_layers": 24,
                                  "num_attention_heads": 14, "intermediate_size": 4864})
    assert plan_memory(wide, length=32768, recompute=True).bytes_of("training: head") < 2**30


def test_a_model_that_only_samples_has_no_gradients() -> None:
    """Made with the first gradient; reading and clearing them before gives zeros and costs nothing."""
    model = Model(ModelConfig.tiny_dense(), seed=1)
    prompts, completions = batch()
    _core.alloc_fail_at(0)
    model.zero_grad()
    assert _core.alloc_fail_at(0) == 0
    model.logprobs(prompts, completions)
    _core.alloc_fail_at(0)
    model.logprobs(prompts, completions)
    forward = _core.alloc_fail_at(0)
    model.sft_gradient(prompts, completions)
    first = _core.alloc_fail_at(0)
    model.sft_gradient(prompts, completions)
    assert first - _core.alloc_fail_at(0) == 3 and forward < first  # gradients, buffers, their list
    fresh = Model(ModelConfig.tiny_dense(), seed=1)
    assert not any(a.any() for a in fresh.grad_dict().values())
    assert fresh.update(1.0) == 0.0


def test_trainers_are_planned() -> None:
    config = ModelConfig.from_dict(WIDE)
    grpo = GRPOConfig(max_prompt_length=100, max_completion_length=200, num_generations=4,
                      per_device_train_batch_size=16)
    names = [item.name for item in plan_training(config, grpo).items]
    assert "sampling: KV of 16 sequences" in names and not any("reference" in n for n in names)
    with_reference = plan_training(config, GRPOConfig(beta=0.1, output_dir="x"))
    held, packed = (with_reference.bytes_of(f"{name}, packed") for name in ("reference", "parameters"))
    assert held == packed and with_reference.bytes_of("checkpoint") > 3 * packed
    longer = plan_training(config, dataclasses.replace(
        grpo, max_completion_length=((0, 200), (5, 900))))
    assert longer.bytes_of("sampling: KV") > 2 * plan_training(config, grpo).bytes_of("sampling: KV")
    gspo = plan_training(config, dataclasses.replace(grpo, importance_sampling_level="sequence"))
    assert gspo.bytes_of("without gradient") > plan_training(config, grpo).bytes_of("without gradient")
    assert plan_training(config, GRPOConfig.r1_zero(loss_type="grpo")).total > 0
    adapted = plan_training(config, GRPOConfig(beta=0.1), lora=LoraConfig(r=4))
    assert adapted.bytes_of("reference") == 0 and adapted.bytes_of("update") < 4096
    assert adapted.bytes_of("gradients") < adapted.bytes_of("parameters") / 20
    scored = [plan_training(config, GRPOConfig(
        beta=0.1, per_device_train_batch_size=batch, steps_per_generation=parts, max_prompt_length=50,
        max_completion_length=50), lora=LoraConfig(r=4)).bytes_of("without gradient")
        for batch, parts in ((8, 8), (64, 1))]
    assert scored[0] > 0.9 * scored[1], "its base scores a whole rollout, however that is split"
    sft = SFTConfig(max_length=512, per_device_train_batch_size=1)
    assert plan_training(config, sft).total < plan_training(config, SFTConfig()).total
    assert plan_training(config, sft, length=64).total < plan_training(config, sft).total
    checkpointed = SFTConfig(max_length=512, gradient_checkpointing=True)
    assert any("recomputed" in item.name for item in plan_training(config, checkpointed).items)
    judged = RewardConfig(max_length=512, per_device_train_batch_size=1, micro_batch_tokens=512)
    single, pair = (plan_training(config, dataclasses.replace(judged, kind=kind)).bytes_of(
        "training: activations") for kind in ("pointwise", "pairwise"))
    assert 1.9 * single < pair < 2.1 * single, "a pair stays in one micro-batch"


def test_what_does_not_fit_is_refused_with_the_table() -> None:
    plan = plan_memory(ModelConfig.from_dict(WIDE), length=2048)
    check_fits(plan, available=plan.total)
    check_fits(plan, available=plan.total - 100, allocated=100)
    with pytest.raises(MemoryError) as caught:
        check_fits(plan, available=plan.total - 1)
    text = str(caught.value)
    assert str(plan) in text and "GiB can be had" in text and "gradient_checkpointing" in text
    huge = plan_memory({**ModelConfig.from_dict(WIDE).to_dict(), "hidden_size": 2**20,
                        "head_dim": 64, "intermediate_size": 2**22})
    with pytest.raises(MemoryError, match="parameters"):
        check_fits(huge)
    most = ModelConfig(vocab_size=2**31 - 1, hidden_size=2**24, num_hidden_layers=4096, head_dim=256,
                       num_attention_heads=2**24, intermediate_size=2**24,
                       max_position_embeddings=2**31 - 64)  # no byte count of it fits 64 bits
    absurd = plan_memory(most, length=2**30, sequences=1, recompute=True, scoring=True,
                         prompts=2**31 - 1, num_generations=2**31 - 1)
    assert all(item.bytes >= 0 for item in absurd.items) and absurd.total > 2**64
    with pytest.raises(MemoryError, match="activations, recomputed"):
        check_fits(absurd)


def test_a_trainer_refuses_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(ModelConfig.tiny_dense(), seed=1)
    rows = [{"prompt_ids": [3] * 40, "completion_ids": [4] * 60, "prompt": "x"}]
    sft = SFTConfig(per_device_train_batch_size=1, max_steps=1)
    grpo = GRPOConfig(max_completion_length=20, beta=0.1)

    def make() -> None:
        SFTTrainer(model, sft, rows)
        GRPOTrainer(model, lambda completions, **_: [0.0] * len(completions), grpo,
                    [{"prompt_ids": [3] * 40}])
    make()
    need = plan_training(model.config, sft, length=100).total
    monkeypatch.setattr(planning, "available_memory", lambda device="cpu": need // 2)
    monkeypatch.setattr("r1grpo.trainer.resident_memory", lambda device="cpu": need)
    SFTTrainer(model, sft, rows)  # what is held already need not be found again
    monkeypatch.setattr("r1grpo.trainer.resident_memory", lambda device="cpu": 0)
    with pytest.raises(MemoryError, match="training: activations"):
        SFTTrainer(model, sft, rows)
    monkeypatch.setattr(planning, "available_memory", lambda device="cpu": 1 << 20)
    with pytest.raises(MemoryError, match="reference"):
        GRPOTrainer(model, lambda completions, **_: [0.0] * len(completions), grpo,
                    [{"prompt_ids": [3] * 40}])


def test_the_limit_is_the_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
             "/proc/self/cgroup": "4:memory:/a\n0::/b/c\n",
             "/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "5\n"}
    monkeypatch.setattr(planning, "_read", lambda path: files.get(str(path), ""))
    assert available_memory() == 8000 * 1024
    files |= {"/sys/fs/cgroup/b/memory.max": "7000000", "/sys/fs/cgroup/b/memory.current": "3000000",
              "/sys/fs/cgroup/b/memory.stat": "anon 1\ninactive_file 500000\n"}
    assert available_memory() == 4_500_000
    files |= {"/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1000",
              "/sys/fs/cgroup/memory/a/memory.usage_in_bytes": "2000"}
    assert available_memory() == 0
    files.clear()
    assert available_memory() == 2**63 - 1


def test_a_packed_update_is_planned_with_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bin holds many rows: they count together, as far as a micro-batch takes them."""
    asked = []
    monkeypatch.setattr("r1grpo.trainer.check_fits", lambda plan, **_: asked.append(plan))
    model = Model(ModelConfig.tiny_dense(), seed=1)
    rows = [{"prompt_ids": [3] * 4, "completion_ids": [4] * 4}] * 64
    for packing in (False, True):
        args = SFTConfig(per_device_train_batch_size=1, max_steps=1, max_length=512, packing=packing)
        SFTTrainer(model, args, rows)
    one, packed = (plan.bytes_of("training: activations") for plan in asked)
    assert packed > 32 * one
    small = dataclasses.replace(args, max_length=64)
    assert plan_training(model.config, args, length=8).bytes_of("training: act") >= packed
    assert plan_training(model.config, small).bytes_of("training: act") > 8 * one
