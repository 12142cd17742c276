"""TRL's quick start with its import lines changed: a model's folder, a reward, rows, train()."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import r1grpo
from r1grpo import (GRPOConfig, GRPOTrainer, Model, ModelConfig, RewardTrainer, SFTConfig, SFTTrainer,
                    Tokenizer, WordTokenizer)
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
    with pytest.raises(TypeError, match="'tokenizer' is called processing_class"):
        GRPOTrainer("nowhere", accuracy_reward, tokenizer=object())
    with pytest.raises(TypeError, match="SFTTrainer: argument 'formatting_func' is not supported"):
        SFTTrainer("nowhere", formatting_func=str)


def test_options_of_another_kind_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="GRPOTrainer: args is a r1grpo.config.*SFTConfig, expected"):
        GRPOTrainer("nowhere", accuracy_reward, SFTConfig())
    with pytest.raises(TypeError, match="SFTTrainer: args is a builtins.list.*train_dataset="):
        SFTTrainer("nowhere", [{"prompt": "1", "completion": "2"}])
    with pytest.raises(ValueError, match="learning_rate is '1e-6', expected float"):
        GRPOConfig(learning_rate="1e-6")


def test_functions_are_not_their_modules() -> None:
    import r1grpo.distill  # noqa: F401 - leaves modules of these names in the package
    import r1grpo.evaluate  # noqa: F401
    for _ in range(2):
        assert not isinstance(r1grpo.evaluate, type(sys)) and callable(r1grpo.evaluate)
        assert not isinstance(r1grpo.distill, type(sys)) and callable(r1grpo.distill)
    from r1grpo.evaluate import draw_samples
    assert callable(draw_samples)


def test_what_only_their_tokenizers_do_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["1 + 2"], 280, chat_template="{{ messages[0]['content'] }}")
    assert tokenizer.apply_chat_template(CHAT[0]["prompt"], return_tensors=None)
    with pytest.raises(TypeError, match="has no return_tensors: it gives one list of ids"):
        tokenizer.apply_chat_template(CHAT[0]["prompt"], return_tensors="pt")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder here"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


def test_an_id_of_the_hub_brings_its_tokenizer(folder: Path, monkeypatch) -> None:
    asked = []

    def find(name, revision, is_whole):
        asked.append(name)
        return folder if name == "org/name" else Path(name)
    monkeypatch.setattr("r1grpo.model_source.find_folder", find)
    trainer = GRPOTrainer("org/name", accuracy_reward, train_dataset=CHAT)
    assert set(asked) == {"org/name"} and isinstance(trainer.processing_class, WordTokenizer)


@pytest.mark.parametrize("library", ["transformers.tokenization_utils", "peft", "torch.nn"])
def test_objects_of_other_libraries_are_refused_by_name(folder: Path, library: str) -> None:
    theirs = type("Theirs", (type("Base", (), {"__module__": library}),), {})()
    with pytest.raises(TypeError, match="processing_class is a Theirs of .*r1grpo.Tokenizer"):
        GRPOTrainer(str(folder), accuracy_reward, train_dataset=CHAT, processing_class=theirs)
    with pytest.raises(TypeError, match="model is a Theirs .*r1grpo.Model.from_pretrained"):
        SFTTrainer(theirs, train_dataset=CHAT)
    for name in ("model", folder):
        with pytest.raises(TypeError, match="processing_class is a name; give r1grpo.Tokenizer"):
            GRPOTrainer(str(folder), accuracy_reward, train_dataset=CHAT, processing_class=name)
        for make in (partial(GRPOTrainer, str(folder), accuracy_reward), partial(SFTTrainer, str(folder)),
                     partial(RewardTrainer, str(folder))):
            with pytest.raises(TypeError, match="a dataset is rows, and .* a name; load_rows"):
                make(train_dataset=name)
            with pytest.raises(TypeError, match="a dataset is rows"):
                make(train_dataset=CHAT, eval_dataset=name)
    with pytest.raises(TypeError, match="expected an r1grpo.LoraConfig"):
        GRPOTrainer(str(folder), accuracy_reward, train_dataset=CHAT, peft_config=theirs)
