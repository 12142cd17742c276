"""Adapters between PEFT and here, both ways: the same files give the same log-probs.

Attention and FFN of dense families; of a mixture all that PEFT takes (lora.py says what it leaves out).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from hf_tiny import make  # noqa: E402 - after the skips
from r1grpo import LoraConfig, Model  # noqa: E402

IDS = [3, 17, 39, 1, 30, 5, 5, 22, 8, 20]
MLA = ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
CASES = [("llama", "all-linear"), ("llama, biases, tied", ["q_proj", "v_proj"]),
         ("mistral", "all-linear"), ("qwen2", ["down_proj", "k_proj"]), ("qwen3", "all-linear"),
         ("qwen3_moe", "all-linear"), ("deepseek_v3", MLA)]


def logprobs_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([IDS[:-1]])).logits[0].double()
    return torch.log_softmax(logits, -1)[range(len(IDS) - 1), IDS[1:]].numpy()


def wide(model: Model) -> Model:
    """Adapters drawn wide: B would be 0."""
    rng, state = np.random.default_rng(5), model.state_dict()
    for name, array in state.items():
        if ".lora_" in name:
            state[name] = (0.2 * rng.standard_normal(array.shape)).astype(np.float32)
    model.load_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def their_warnings():
    """PEFT warns of names that transformers 5 has given away, and of its own patterns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# of experts PEFT fuses gate and up into one adapter of 2 r, with rsLoRA under another scale
@pytest.mark.parametrize("family, targets, root", [(*one, False) for one in CASES] + [
    (*one, True) for one in CASES if one[0] != "qwen3_moe"])
def test_peft_loads_what_is_saved_here(family: str, targets: Any, root: bool, tmp_path: Path) -> None:
    pair = make(family)
    model = wide(pair.ours.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets,
                                                  use_rslora=root)))
    model.save_adapter(tmp_path, base="somewhere/else")
    before = logprobs_of(pair.single)
    theirs = logprobs_of(peft.PeftModel.from_pretrained(pair.single, tmp_path).eval())
    ours = model.logprobs([IDS[:1]], [IDS[1:]])[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.01


@pytest.mark.parametrize("family, targets", [one for one in CASES if one[0] != "qwen3_moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_peft_saved_is_loaded_here(family: str, targets: Any, dtype: str, tmp_path: Path) -> None:
    """Its config with all that it writes (dropout, a pattern of targets); a file in bfloat16 too."""
    pair = make(family)
    pattern = targets if targets == "all-linear" else f".*({'|'.join(targets)})"
    theirs = peft.get_peft_model(pair.single, peft.LoraConfig(
        r=4, lora_alpha=10, lora_dropout=0.05, target_modules=pattern, init_lora_weights=False,
        use_rslora=True)).eval()
    if dtype == "bfloat16":
        for name, tensor in theirs.named_parameters():
            if ".lora_" in name:
                tensor.data = tensor.data.bfloat16()
    theirs.save_pretrained(tmp_path)
    theirs.float()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.05
    model = pair.ours.load_adapter(tmp_path)
    assert model.lora.scale == 10 / 4**0.5
    np.testing.assert_allclose(model.logprobs([IDS[:1]], [IDS[1:]])[0], logprobs_of(theirs), atol=1e-4)
    np.testing.assert_allclose(model.merge().logprobs([IDS[:1]], [IDS[1:]])[0], logprobs_of(theirs),
                               atol=1e-4)
