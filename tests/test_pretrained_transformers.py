"""Folders between transformers and here, both ways: every family, one file and shards, three dtypes.

transformers' random tiny models are saved by it and loaded here; what is saved here is loaded by it, with
nothing missing, surplus or warned of, and gives the logits that it gave. How close our own numbers are
to its is for the parity tests; here a log-prob within 1e-3 says that no tensor landed in another's place.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from r1grpo import Model  # noqa: E402 - after the skips
from r1grpo.hub import CARRIED  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": dict(head_dim=12),
    "llama3": dict(model_type="llama", tie_word_embeddings=True, rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "mistral": dict(sliding_window=16, head_dim=8),
    "qwen2": dict(tie_word_embeddings=True),
    "qwen3": dict(head_dim=12, tie_word_embeddings=True),
    "qwen3_moe": dict(head_dim=8, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
                      norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1]),
    "deepseek_v3": dict(
        num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=10, qk_rope_head_dim=6,
        v_head_dim=14, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
        n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1),
}
FORMS = {"one float32 file": (torch.float32, "50GB"), "float32 shards": (torch.float32, "30KB"),
         "bfloat16 shards": (torch.bfloat16, "15KB"), "one float16 file": (torch.float16, "50GB")}
IDS = [3, 17, 63, 1, 40, 5, 5, 22, 8, 60]
WEIGHTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def theirs(family: str) -> Any:
    """transformers' random model of a family, norms and routing biases random too."""
    values = {**SIZES, **FAMILIES[family]}
    kind = values.pop("model_type", family)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **values))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
            if name.endswith(("gate_up_proj", "down_proj", "gate.weight")):  # some are not drawn
                tensor.normal_(0.0, 0.3)
    return model.eval()


def load_theirs(folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """transformers' own loading, which must have nothing to say about the weights."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert {key: list(info[key]) for key in WEIGHTS} == dict.fromkeys(WEIGHTS, [])
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    return model.eval()


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def logprobs(model: Any) -> np.ndarray:
    """Of IDS[1:], as Model.logprobs gives them."""
    found = torch.log_softmax(torch.tensor(logits(model)).double(), -1)
    return found[range(len(IDS) - 1), IDS[1:]].numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dtype, size = FORMS[form]
    theirs(family).to(dtype).save_pretrained(tmp_path / "theirs", max_shard_size=size)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == ("shards" in form)
    original = load_theirs(tmp_path / "theirs", caplog)

    model = Model.from_pretrained(tmp_path / "theirs")
    stored = {k: v.float().numpy() for k, v in original.state_dict().items()}
    own = model.state_dict()
    for name in own.keys() & stored.keys():  # experts are fused there: see the log-probs
        assert own[name].tobytes() == stored[name].tobytes(), name
    [ours] = model.logprobs([IDS[:1]], [IDS[1:]])
    assert np.abs(ours - logprobs(original)).max() < 1e-3

    how = {"bfloat16": "bfloat16", "float16": "float16"}.get(form.split()[0 if "shards" in form else 1])
    model.save_pretrained(tmp_path / "ours", max_shard_size=size, dtype=how)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    was = json.loads((tmp_path / "theirs/config.json").read_text())
    assert config["architectures"] == was["architectures"]
    assert config["dtype"] == was["dtype"] == (how or "float32")
    assert (tmp_path / "ours/generation_config.json").read_bytes() == (
        tmp_path / "theirs/generation_config.json").read_bytes()
    again = load_theirs(tmp_path / "ours", caplog)
    assert logits(again).tobytes() == logits(original).tobytes()
    assert again.config.to_dict().items() >= {k: v for k, v in original.config.to_dict().items() if k not in (
        "_name_or_path", "dtype", "num_mtp_layers", "num_nextn_predict_layers", "architectures")}.items()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_fused_experts_as_transformers_writes_them(family: str, tmp_path: Path) -> None:
    original = theirs(family)
    original.save_pretrained(tmp_path / "m", save_original_format=False)
    names = load_file(tmp_path / "m/model.safetensors").keys()
    assert "model.layers.2.mlp.experts.gate_up_proj" in names
    [ours] = Model.from_pretrained(tmp_path / "m").logprobs([IDS[:1]], [IDS[1:]])
    assert np.abs(ours - logprobs(original)).max() < 1e-3


def test_made_here_with_an_mtp_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config without a key of transformers' own; the module is where it does not look."""
    model = Model(dict(
        model_type="deepseek_v3", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, kv_lora_rank=12, q_lora_rank=None, qk_nope_head_dim=10, qk_rope_head_dim=6,
        v_head_dim=14, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20, n_group=1,
        topk_group=1, n_shared_experts=1, first_k_dense_replace=1, num_nextn_predict_layers=1,
        max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=[2, 3]))
    model.save_pretrained(tmp_path / "m")
    found = load_theirs(tmp_path / "m", caplog)
    [ours] = model.logprobs([IDS[:1]], [IDS[1:]])
    assert np.abs(ours - logprobs(found)).max() < 1e-3
    assert found.generation_config.eos_token_id == [2, 3] and found.generation_config.bos_token_id == 1


@pytest.mark.parametrize("base", ["llama", "qwen2", "qwen3"])
def test_made_here(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model({**SIZES, "model_type": base, "num_hidden_layers": 2})
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    found = load_theirs(tmp_path / "m", caplog)
    [ours] = model.logprobs([IDS[:1]], [IDS[1:]])
    assert np.abs(ours - logprobs(found)).max() < 1e-3


def test_a_tokenizer_travels(tmp_path: Path) -> None:
    """The files that transformers writes for a tokenizer are all carried, and load again."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "</s>": 3}, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>",
                                                     chat_template="{{ messages[0]['content'] }}")
    theirs("qwen2").save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    model = Model.from_pretrained(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    model.clone().save_pretrained(tmp_path / "c")
    written = {p.name for p in (tmp_path / "a").iterdir()} - {"config.json", "model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= written <= set(CARRIED)
    for name in written:
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    assert again("a b")["input_ids"] == [1, 2] and again.chat_template == tokenizer.chat_template
