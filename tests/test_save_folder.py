"""What save_pretrained leaves on disk: shards, index, configs, carried files; and what a fault leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r1grpo.safe_files
from models import configs, make
from r1grpo import Model, ModelConfig
from r1grpo.load_folder import CONFIG, INDEX
from safetensors import safe_open
from safetensors.numpy import load_file


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def bits(model: Model) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in model.state_dict().items()}


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(configs()))
@pytest.mark.parametrize("most", ["4KB", "20kib", 9_999, "5GB"])
def test_shards_hold_every_tensor_once(name: str, most: int | str, tmp_path: Path) -> None:
    """As the format's own library reads them."""
    model = make(name)
    model.save_pretrained(tmp_path / "m", max_shard_size=most)
    state = {}
    limit = {"4KB": 4000, "20kib": 20480, "5GB": 5 * 10**9}.get(most, most)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    for path in files:
        with safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        found = load_file(path)
        assert not state.keys() & found.keys()
        assert len(found) == 1 or sum(a.nbytes for a in found.values()) <= limit or \
            path.name == "mtp.safetensors"
        state |= found
    assert {k: v.tobytes() for k, v in state.items()} == bits(model)
    main = [path.name for path in files if path.name != "mtp.safetensors"]
    if most == "5GB":
        assert main == ["model.safetensors"]
        assert (tmp_path / "m" / INDEX).exists() == (len(files) > 1)  # else vLLM reads the MTP module too
        if len(files) == 1:
            return
    else:
        assert main[1:] and main == [f"model-{i + 1:05d}-of-{len(main):05d}.safetensors"
                                     for i in range(len(main))]
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    placed = {k: path.name for path in files for k in load_file(path) if path.name in main}
    assert index["weight_map"] == placed
    assert index["metadata"]["total_size"] == sum(state[k].nbytes for k in placed)


@pytest.mark.parametrize("size", [0, -1, "5 apples", "", "GB", "1e9", None, 0.5, "5IB"])
def test_sizes_that_are_none(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        make("dense").save_pretrained(tmp_path / "m", max_shard_size=size)
    assert not (tmp_path / "m").exists()


def test_narrower_numbers(tmp_path: Path) -> None:
    model = make("moe")
    model.save_pretrained(tmp_path / "h", dtype="float16")
    found = load_file(tmp_path / "h/model.safetensors")
    for name, array in found.items():
        want = np.float32 if name.endswith("e_score_correction_bias") else np.float16
        assert array.dtype == want and (array == model.state_dict()[name].astype(want)).all()
    assert json.loads((tmp_path / "h" / CONFIG).read_text())["dtype"] == "float16"
    with pytest.raises(ValueError, match="dtype 'int8' is none of float32, float16, bfloat16"):
        model.save_pretrained(tmp_path / "i", dtype="int8")
    state = model.state_dict()
    state["model.norm.weight"][3] = 70000.0
    model.load_state_dict(state)
    before = contents(tmp_path / "h")
    for folder in ("h", "new"):
        with pytest.raises(ValueError, match="model.norm.weight: 70000 does not fit into F16; nothing was"):
            model.save_pretrained(tmp_path / folder, dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["h"] and contents(tmp_path / "h") == before


# ---- the other files -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type, name", [
    ("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"),
    ("qwen3_moe", "Qwen3Moe"), ("deepseek_v3", "DeepseekV3")])
def test_architectures(model_type: str, name: str, tmp_path: Path) -> None:
    more = dict(qwen3_moe=dict(n_routed_experts=2, num_experts_per_tok=1, moe_intermediate_size=4),
                deepseek_v3=dict(kv_lora_rank=2, qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=2))
    model = Model(ModelConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                              intermediate_size=4, model_type=model_type, **more.get(model_type, {})))
    model.config.extra["architectures"] = ["SomethingElse"]
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / CONFIG).read_text())["architectures"] == [f"{name}ForCausalLM"]
    model.add_score_head().save_pretrained(tmp_path / "s")
    assert json.loads((tmp_path / "s" / CONFIG).read_text())["architectures"] == [
        f"{name}ForSequenceClassification"]


def test_config_keys_and_generation_config(tmp_path: Path) -> None:
    values = {**make("dense").config.to_dict(), "bos_token_id": 3, "eos_token_id": [1, 2],
              "torch_dtype": "bfloat16", "transformers_version": "4.40.0", "my own": {"a": [None, 1.5]}}
    model = Model(values)
    model.save_pretrained(tmp_path / "a")
    saved = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert saved == {**values, "torch_dtype": "float32", "dtype": "float32",
                     "architectures": ["Qwen2ForCausalLM"]}
    assert json.loads((tmp_path / "a/generation_config.json").read_text()) == {
        "bos_token_id": 3, "eos_token_id": [1, 2]}
    given = b'{"temperature": 0.6,\n  "top_p": 0.95, "eos_token_id": [1, 2, 7]}'
    (tmp_path / "a/generation_config.json").write_bytes(given)
    Model.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b/generation_config.json").read_bytes() == given


def test_what_is_carried_survives_the_folder_it_came_from(tmp_path: Path) -> None:
    make("dense").save_pretrained(tmp_path / "a")
    carried = {"tokenizer.json": b"{}", "tokenizer.model": b"\0\xff", "merges.txt": b"a b\n",
               "chat_template.jinja": b"{{ x }}"}
    for name, data in {**carried, "README.md": b"theirs", "modeling.py": b"raise"}.items():
        (tmp_path / "a" / name).write_bytes(data)
    model = Model.from_pretrained(tmp_path / "a").clone().add_score_head()
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    model.save_pretrained(tmp_path / "b")
    found = contents(tmp_path / "b")
    assert {k: found[k] for k in carried} == carried
    assert found.keys() - carried == {CONFIG, "generation_config.json", "model.safetensors"}


# ---- over an older save --------------------------------------------------------------------------


def test_an_older_save_leaves_nothing_that_would_be_read(tmp_path: Path) -> None:
    """Shards over one file, one file over shards, no MTP file over one: and what is not ours stays."""
    folder = tmp_path / "m"
    one, other = make("moe"), make("dense")
    one.save_pretrained(folder, max_shard_size="20KB")
    for name in ("notes.txt", "model-extra.safetensors", "pytorch_model.bin"):
        (folder / name).write_text("mine")
    (folder / "step-00000001").mkdir()
    mine = {"notes.txt", "model-extra.safetensors", "pytorch_model.bin", "step-00000001"}
    other.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == mine | {
        CONFIG, "generation_config.json", "model.safetensors"}
    assert bits(Model.from_pretrained(folder)) == bits(other)
    one.save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert bits(Model.from_pretrained(folder)) == bits(one)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


class Replacing:
    """os.replace that fails from the k-th call on, once or for good (as for a process that is gone)."""

    def __init__(self, fail_at: int, for_good: bool):
        self.calls, self.fail_at, self.for_good, self.real = 0, fail_at, for_good, os.replace

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        if self.calls == self.fail_at or self.for_good and self.calls > self.fail_at:
            raise OSError(5, "input/output error")
        self.real(source, target)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_fault_at_any_rename(for_good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the old folder is back. For good: the folder loads as the old model, as the new one, or
    not at all; never as a mixture, though both have shards of the same names."""
    old, new = make("dense", seed=1), make("dense", seed=2)
    kept: list[str] = []
    for fail_at in range(1, 50):
        parent = tmp_path / str(fail_at)
        parent.mkdir()
        old.save_pretrained(parent / "m", max_shard_size="5KB")
        before = contents(parent / "m")
        replace = Replacing(fail_at, for_good)
        with monkeypatch.context() as patch:
            patch.setattr(r1grpo.safe_files.os, "replace", replace)
            try:
                new.save_pretrained(parent / "m", max_shard_size="5KB")
                break
            except OSError as error:
                assert "input/output error" in str(error)
        if not for_good:
            assert contents(parent / "m") == before and [p.name for p in parent.iterdir()] == ["m"]
            continue
        try:
            kept.append("old" if bits(Model.from_pretrained(parent / "m")) == bits(old) else "mixture")
        except FileNotFoundError:
            kept.append("none")
    assert replace.calls == fail_at - 1 and bits(Model.from_pretrained(parent / "m")) == bits(new)
    assert not for_good or (kept[0] == "old" and set(kept[1:]) == {"none"} and len(kept) > 8)
