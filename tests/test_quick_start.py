"""TRL's quick start with its import lines changed: a model's folder, a reward, rows, train()."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1grpo
from r1grpo import (GRPOConfig, GRPOTrainer, Model, ModelConfig, SFTConfig, SFTTrainer,
                    WordTokenizer)
from r1grpo.rewards import accuracy_reward, think_format_reward

CHAT = [{"prompt": [{"role": "user", "content": q}], "solution": a}
        for q, a in (("1 + 2", "3"), ("2 + 2", "4"))]
SCRIPT = """
from datasets import load_dataset
from r1grpo import GRPOTrainer
from r1grpo.rewards import accuracy_reward

dataset = load_dataset("json", data_files="rows.jsonl", split="train")

trainer = GRPOTrainer(
    model="model",
    reward_funcs=accuracy_reward,
    train_dataset=dataset,
)
trainer.train()
print("steps", trainer.step, "gap", trainer.max_logprob_gap)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = WordTokenizer([*"0123456789", "+"])
    Model(ModelConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                      num_attention_heads=2, intermediate_size=16, max_position_embeddings=32,
                      eos_token_id=tokenizer.eos_token_id)).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_script_runs(folder: Path) -> None:
    pytest.importorskip("datasets")
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    here = str(Path(r1grpo.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder.parent, text=True,
                          capture_output=True, timeout=240,
                          env={**os.environ, "HF_HOME": str(folder.parent / "cache"),
                               "HF_HUB_OFFLINE": "1", "PYTHONPATH": here})
    assert done.returncode == 0, done.stderr
    assert "steps 2 gap 0.0" in done.stdout


@pytest.mark.parametrize("chat", [True, False])
def test_completions_are_messages_where_prompts_are(folder: Path, chat: bool) -> None:
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(completions)
        return [float(i % 2) for i in range(len(completions))]
    rows = CHAT if chat else [{"prompt": "1 + 2"}]
    trainer = GRPOTrainer(str(folder), reward, GRPOConfig(max_completion_length=3, max_steps=1),
                          train_dataset=rows)
    trainer.train()
    assert isinstance(trainer.model, Model) and isinstance(trainer.processing_class, WordTokenizer)
    if chat:
        assert all(len(one) == 1 and one[0]["role"] == "assistant" for one in seen)
    else:
        assert all(isinstance(one, str) for one in seen)


def test_sft_takes_a_folder_too(folder: Path) -> None:
    trainer = SFTTrainer(str(folder), SFTConfig(max_steps=1),
                         [{"prompt": "1 + 2", "completion": "3"}])
    assert len(trainer.train()) == 1


def test_rewards_read_messages_as_text() -> None:
    said = ["<think> a </think> 3", "<think> <think> </think> 3", "4"]
    chat = [[{"role": "assistant", "content": text}] for text in said]
    assert think_format_reward(chat) == think_format_reward(said) == [1.0, 0.0, 0.0]
    columns = dict(prompts=[""] * 3, completion_ids=[[]] * 3, solution=["3"] * 3)
    assert accuracy_reward(completions=chat, **columns) == \
        accuracy_reward(completions=said, **columns)


@pytest.mark.parametrize("name, words", [
    ("DPOTrainer", "RewardTrainer"), ("PPOTrainer", "no critic"),
    ("BitsAndBytesConfig", "float32 or bfloat16"), ("Accelerator", "one process, one device")])
def test_what_is_not_here_is_refused_with_a_pointer(name: str, words: str) -> None:
    with pytest.raises(ImportError, match=f"r1grpo has no {name}: .*{words}"):
        exec(f"from r1grpo import {name}")


def test_arguments_of_trls_trainer_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="'quantization_config' is not supported: .*LoraConfig"):
        GRPOTrainer("nowhere", accuracy_reward, quantization_config=object())
    with pytest.raises(TypeError, match="argument 'modle' is unknown"):
        GRPOTrainer("nowhere", accuracy_reward, modle=1)
