"""Published rows through the trainers and the real engine, with a tokenizer of bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from r1grpo import (GRPOConfig, GRPOTrainer, Model, ModelConfig, SFTConfig, SFTTrainer,
                    decontaminate, load_rows)
from r1grpo.rewards import accuracy_reward
from real_data import data_file


class Bytes:
    """Text as its UTF-8 bytes; id 256 ends a text."""

    vocab_size, eos_token_id = 257, 256

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids, skip_special_tokens=True):
        return bytes(i for i in map(int, ids) if i < 256).decode("utf-8", "replace")


def model(**options):
    return Model(ModelConfig(vocab_size=257, eos_token_id=256, hidden_size=16, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
                             max_position_embeddings=1024, initializer_range=0.2), seed=0)


def digit_reward(prompts, completions, completion_ids, answer, solution, **_):
    """A reward that a random model can move: does the answer's first digit occur?"""
    assert all("####" in one for one in solution)
    return [float(one[0] in text) for one, text in zip(answer, completions)]


def test_gsm8k_through_grpo(tmp_path):
    rows = load_rows(data_file("gsm8k_train.jsonl"))
    rows, report = decontaminate(rows, rows[-20:])
    assert report.counts["exact"] == 20
    args = GRPOConfig(output_dir=str(tmp_path), num_generations=8, per_device_train_batch_size=16,
                      max_completion_length=24, learning_rate=1e-3, max_steps=3, save_steps=3)
    trainer = GRPOTrainer(model(), [accuracy_reward, digit_reward], args, rows,
                          processing_class=Bytes())
    with (tmp_path / "completions.jsonl").open("w") as log:
        for step in trainer:
            assert {"reward", "rewards/accuracy_reward/mean", "rewards/digit_reward/mean"} \
                <= step.keys()
            log.writelines(json.dumps(one) + "\n" for one in trainer.completion_rows())
    assert trainer.step == 3 and trainer.max_logprob_gap == 0.0 and trainer.gap_tokens > 48
    logged = list(map(json.loads, (tmp_path / "completions.jsonl").read_text().splitlines()))
    assert len(logged) == 48 and {one["prompt"] for one in logged} <= {r["prompt"] for r in rows}
    assert len({one["prompt"] for one in logged}) == 6
    assert all(one["rewards"].keys() == {"accuracy_reward", "digit_reward"} for one in logged)
    assert {one["rewards"]["accuracy_reward"] for one in logged} == {0.0}
    assert {one["rewards"]["digit_reward"] for one in logged} == {0.0, 1.0}
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("packing", [False, True])
def test_worked_solutions_through_sft(packing):
    """The same bits from any micro-batch, packed or not."""
    rows = [{"prompt": row["prompt"], "completion": row["solution"]}
            for row in load_rows(data_file("gsm8k_train.jsonl"), limit=60)]
    found = []
    for micro in (None, 900, 1):
        args = SFTConfig(max_length=800, truncation_mode="drop", packing=packing, max_steps=2,
                         per_device_train_batch_size=3, learning_rate=1e-2,
                         micro_batch_tokens=micro)
        trainer = SFTTrainer(model(), args, rows, processing_class=Bytes())
        steps = trainer.train()
        assert 0 < trainer.dropped < 20 and steps[1]["loss"] < steps[0]["loss"]
        assert (steps[0]["processed_tokens"] > 1800) is packing
        found.append(np.concatenate([one.ravel() for one in trainer.model.state_dict().values()]))
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
