"""GRPO's reference policy: a frozen copy, in memory or in a file, and what it changes: memory alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import make
from r1grpo import GRPOConfig, GRPOTrainer, LoraConfig, Model, ModelConfig, RewardConfig, SFTConfig, SFTTrainer
from r1grpo.config import ConfigError
from r1grpo.plan import plan_training
from r1grpo.reward_model import RewardTrainer

ROWS = [{"prompt_ids": [3, 4, 5]}, {"prompt_ids": [7, 8]}]


def share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(np.mean([i < 20 for i in ids])) for ids in completion_ids]


def trainer_of(model: Model, **options: Any) -> GRPOTrainer:
    """Two rollouts of two updates; the reference moves after the third where it is to move."""
    args = GRPOConfig(**{"num_generations": 4, "per_device_train_batch_size": 8, "beta": 0.1,
                         "max_completion_length": 8, "max_steps": 5, "learning_rate": 1e-2,
                         "steps_per_generation": 2, "ref_model_sync_steps": 3, **options})
    return GRPOTrainer(model, share, args, ROWS)


def bits(trainer: GRPOTrainer) -> list[bytes]:
    return [array.tobytes() for array in trainer.model.state_dict().values()]


SYNC = [{}, {"sync_ref_model": True}, {"sync_ref_model": True, "ref_model_mixup_alpha": 0.4}]


@pytest.mark.parametrize("sync", SYNC, ids=["still", "hard", "soft"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_of_a_whole_second_model(dtype: str, sync: dict[str, Any]) -> None:
    model = make("moe", dtype=dtype)
    whole, held = trainer_of(model.clone(), **sync), trainer_of(model.clone(), **sync)
    whole.reference = model.clone()  # masters and all
    assert held.reference.frozen == (sync is not SYNC[2] or dtype == "float32")
    first, *_ = history = list(held)
    assert first["kl"] == 0.0 and history[-1]["kl"] > 0.0, "log-probs of the unchanged policy"
    list(whole)
    assert bits(held) == bits(whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_off_loaded_and_back_in_a_resume(dtype: str, tmp_path: Path) -> None:
    """Killed and resumed, by one that holds its reference elsewhere: the same bits."""
    sync = {"sync_ref_model": True}
    whole = trainer_of(make("dense", dtype=dtype), **sync)
    list(whole)
    for offload, later in ((True, False), (False, True)):
        out = str(tmp_path / f"out{offload}")
        half = trainer_of(make("dense", dtype=dtype), output_dir=out, ref_model_offload=offload, **sync)
        assert (half.reference._file is not None) == offload
        assert not Path(out).exists(), "a file without a name, in the nearest folder"
        for _ in range(4):  # the reference has moved, its rollout is not done
            next(half)
        half.save_checkpoint()
        del half
        again = trainer_of(make("dense", seed=9, dtype=dtype), output_dir=out,
                           ref_model_offload=later, **sync)
        again.train(resume_from_checkpoint=True)
        assert bits(again) == bits(whole)
        assert sorted(os.listdir(out)) == ["samples.jsonl", "step-00000004", "verdicts.jsonl"]


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ref_model_offload needs beta above 0"):
        GRPOConfig(ref_model_offload=True)
    with pytest.raises(ConfigError, match=r"ref_model_offload needs ref_model_mixup_alpha 1"):
        GRPOConfig(beta=0.1, ref_model_offload=True, **SYNC[2])
    with pytest.raises(ConfigError, match="ref_model_offload: the reference of a model with adapters"):
        trainer_of(make("dense").add_adapter(LoraConfig(r=2)), ref_model_offload=True)
    frozen = make("dense").freeze()
    for name, call in {
            "GRPOTrainer": lambda: trainer_of(frozen),
            "SFTTrainer": lambda: SFTTrainer(frozen, SFTConfig(max_steps=1),
                                             [{"prompt_ids": [3], "completion_ids": [4]}]),
            "RewardTrainer": lambda: RewardTrainer(frozen, RewardConfig(), [])}.items():
        with pytest.raises(ConfigError, match=f"{name}: the model is frozen"):
            call()


def test_what_it_takes_is_planned() -> None:
    config = ModelConfig.tiny_dense()
    base = dict(beta=0.1, output_dir="x", ref_model_sync_steps=3)

    def reference(dtype: str, **options: Any) -> int:
        plan = plan_training(config, GRPOConfig(**base, **options), dtype)
        return plan.bytes_of("reference,")

    whole = {dtype: plan_training(config, GRPOConfig(), dtype).bytes_of("parameters")
             for dtype in ("float32", "bfloat16")}
    assert reference("float32") < 0.6 * whole["float32"]
    assert reference("bfloat16") < 0.5 * whole["bfloat16"]
    assert reference("bfloat16", **SYNC[1]) == reference("bfloat16")
    assert reference("bfloat16", **SYNC[2]) == whole["bfloat16"]
    assert reference("float32", **SYNC[2]) == reference("float32")
    assert 0 < reference("bfloat16", ref_model_offload=True) < 0.1 * reference("bfloat16")
