"""Frozen models: the bits of the trainable one, half its memory or less, and nothing that trains."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from models import batch, configs, make
from r1grpo import LoraConfig, Model, ModelConfig, _core, model_state

PROMPTS, COMPLETIONS = batch()


def bits(model: Model) -> list[bytes]:
    """Log-probs, plain and of a truncated distribution, and samples."""
    rollout = model.generate(PROMPTS, 2, max_new_tokens=9, seed=3, stop_token_ids=())
    return [np.asarray(one).tobytes() for one in (
        *model.logprobs(PROMPTS, COMPLETIONS), *model.logprobs(PROMPTS, COMPLETIONS, top_k=5),
        *rollout.completion_ids, *rollout.logprobs)]


def rounded(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a bfloat16 model sees of it: matrices, but for routers and scalar heads, to the nearest
    bf16, ties to even."""
    def one(name: str, x: np.ndarray) -> np.ndarray:
        if x.ndim < 2 or name.endswith(("mlp.gate.weight", "score.weight")):
            return x
        n = x.view(np.uint32).astype(np.uint64)
        return ((n + 0x7fff + (n >> 16 & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)
    return {name: one(name, x) for name, x in state.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(configs()))
def test_the_bits_of_the_trainable_model(name: str, dtype: str, tier: str,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    device = _core.Device(threads=2, tier=tier)
    monkeypatch.setattr(model_state, "get_device", lambda _: device)
    model = make(name, dtype=dtype)
    frozen = model.freeze()
    assert frozen.frozen and not model.frozen
    assert bits(frozen) == bits(model)
    want = model.state_dict() if dtype == "float32" else rounded(model.state_dict())
    found = frozen.state_dict()
    assert list(found) == list(want)
    for key, array in want.items():
        assert found[key].tobytes() == array.tobytes(), key
    if model.config.num_nextn_predict_layers:
        one, other = (m.generate(PROMPTS, 1, max_new_tokens=9, seed=3, stop_token_ids=(),
                                 speculative=True) for m in (model, frozen))
        assert [x.tobytes() for x in one.logprobs] == [x.tobytes() for x in other.logprobs]
        assert one.drafts == other.drafts
    again = Model(model.config, None, dtype=dtype, frozen=True)
    again.load_state_dict(found)
    assert bits(again) == bits(frozen.clone()) == bits(frozen)


def test_a_reward_model_scores_frozen() -> None:
    model = make("dense").add_score_head(seed=4)
    assert model.freeze().score(PROMPTS).tobytes() == model.score(PROMPTS).tobytes()


def test_adapters_of_a_frozen_model(tmp_path: Path) -> None:
    model = make("moe", dtype="bfloat16").add_adapter(LoraConfig(r=3), seed=5)
    model.load_state_dict({name: array + 0.01 for name, array in model.state_dict().items()})
    frozen = model.freeze()
    assert bits(frozen) == bits(model)
    assert [one.tobytes() for one in frozen.base_logprobs(PROMPTS, COMPLETIONS)] == \
        [one.tobytes() for one in model.base_logprobs(PROMPTS, COMPLETIONS)]
    model.save_adapter(tmp_path / "adapter")
    base = model.merge()  # any model of the shape
    assert bits(base.freeze().load_adapter(tmp_path / "adapter")) == \
        bits(base.load_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_frozen(tmp_path: Path, dtype: str) -> None:
    make("moe_groups").save_pretrained(tmp_path / "model")
    model = Model.from_pretrained(tmp_path / "model", dtype=dtype)
    frozen = Model.from_pretrained(tmp_path / "model", dtype=dtype, frozen=True)
    assert bits(frozen) == bits(model)
    for one, name in ((model, "a"), (frozen, "b")):  # in bfloat16, its own, the same bytes
        one.save_pretrained(tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == \
        (tmp_path / "b/model.safetensors").read_bytes()


def test_what_trains_is_refused_by_name() -> None:
    model = make("moe", dtype="bfloat16").freeze()
    before = bits(model)
    ones = [1.0] * len(COMPLETIONS)
    for what, call in {
            "gradients": lambda: model.sft_gradient(PROMPTS, COMPLETIONS),
            "gradients ": lambda: model.policy_gradient(PROMPTS, COMPLETIONS, advantages=ones,
                                                        weights=ones, old_logprobs=ones),
            "gradients  ": lambda: model.update(1e-3),
            "gradients   ": model.grad_dict,
            "optimiser moments": model.optimizer_state,
            "optimiser moments ": lambda: model.load_optimizer_state({}),
            "optimiser moments  ": model.reset_optimizer,
            "router to move": lambda: model.update_router_bias(1e-3)}.items():
        with pytest.raises(ValueError, match=f"this model is frozen: it has no {what.strip()}"):
            call()
    for index in (0, 1):  # a matrix, a vector
        with pytest.raises(ValueError, match="this model is frozen: it has no"):
            model._core.write(model.device, index, "m", np.zeros(
                model._read(index, "value").size, np.float32))
    with pytest.raises(ValueError, match="a frozen model is not trained"):
        model.add_adapter(LoraConfig())
    with pytest.raises(ValueError, match="alpha is 0.5, but this model is frozen in bfloat16"):
        model.copy_weights_from(make("moe", dtype="bfloat16"), 0.5)
    with pytest.raises(ValueError, match="offload is for frozen models"):
        Model(model.config, offload="nowhere")
    model.zero_grad()  # there are none
    assert bits(model) == before
    head = make("dense").add_score_head().freeze()
    with pytest.raises(ValueError, match="this model is frozen: it has no gradients"):
        head.reward_gradient([[1], [2]])


def test_a_frozen_float32_model_may_be_mixed() -> None:
    """Its panels hold every bit, so a reference that moves a little at a time can be one."""
    policy, frozen = make("dense", seed=1), make("dense", seed=2).freeze()
    master = make("dense", seed=2)
    for one in (frozen, master):
        one.copy_weights_from(policy, 0.1)
    assert bits(frozen) == bits(master)


# ---- memory --------------------------------------------------------------------------------------


def parameters(model: Model) -> int:
    return sum(array.size for array in model.state_dict().values())


WIDE = dict(vocab_size=4000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=768, max_position_embeddings=2048)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_a_parameter_is_held_once(dtype: str, size: int, tied: bool) -> None:
    config = ModelConfig.from_dict({**WIDE, "tie_word_embeddings": tied})
    model = Model(config, dtype=dtype, frozen=True)
    fields = {**config.core()[0], "frozen": True}
    found = _core.plan_model(model.device, fields, dtype)
    assert found["master"] == found["grads"] == found["moments"] == found["update"] == 0
    assert found["packed"] + found["vectors"] == pytest.approx(size * parameters(model), rel=0.01)


# ---- in a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_off_loaded_weights_give_the_same_bits(tmp_path: Path, dtype: str) -> None:
    model = make("moe", dtype=dtype)
    mapped = model.freeze(offload=tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == [], "the file has no name: nothing is left behind"
    assert bits(mapped) == bits(model)
    other = make("moe", seed=3, dtype=dtype)
    mapped.load_state_dict(other.state_dict())
    assert bits(mapped) == bits(other)
    assert mapped.clone()._file is None  # a copy in memory


def test_the_file_is_as_large_as_it_must_be() -> None:
    config = ModelConfig.tiny_dense()
    sizes, *rope = config.core()
    fields, device = {**sizes, "frozen": True}, _core.Device(1)
    need = _core.plan_model(device, fields, "bfloat16")["packed"]
    aligned = np.zeros(need // 4 + 32, np.float32)
    aligned = aligned[-(aligned.ctypes.data // 4) % 16:]
    _core.Model(device, fields, *rope, "bfloat16", aligned[:need // 4])
    with pytest.raises(ValueError, match=f"{need - 4} bytes are given for frozen matrices of {need}"):
        _core.Model(device, fields, *rope, "bfloat16", aligned[:need // 4 - 1])
    with pytest.raises(ValueError, match="not aligned to 64"):
        _core.Model(device, fields, *rope, "bfloat16", aligned[1:])
    with pytest.raises(ValueError, match="a model that is not frozen owns its matrices"):
        _core.Model(device, sizes, *rope, "bfloat16", aligned)


def test_a_full_disk_is_an_error_before_anything_is_made(tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="cannot write .*off-loaded weights: No space left on device"):
        make("dense").freeze(offload=tmp_path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_the_pages_of_the_file_are_clean(tmp_path: Path) -> None:
    """So the system may drop them without writing anything."""
    model = Model(ModelConfig.from_dict(WIDE), frozen=True, offload=tmp_path, dtype="bfloat16")
    start = model._file.array.ctypes.data
    model.logprobs(PROMPTS, COMPLETIONS)
    text = Path("/proc/self/smaps").read_text()
    [entry] = re.findall(rf"^{start:x}-[\s\S]*?^VmFlags", text, re.M)
    figures = {key: int(kb) for key, kb in re.findall(r"^(\w+): +(\d+) kB", entry, re.M)}
    assert figures["Rss"] * 1024 > 2 * parameters(model) * 0.9, "it was read"
    assert figures["Shared_Dirty"] + figures["Private_Dirty"] == 0
