"""Tiny models of every family, made by transformers, and the same model here.

`make(name)` draws the weights (wide, norms and biases away from 1 and 0), and gives `Pair`: their float32
model, a float64 twin of it, and ours, which got the config as their config.json would have it and the
weights as NumPy arrays. Import it only where torch and transformers are known to be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from r1grpo import Model, ModelConfig

V = 40
_TINY = dict(vocab_size=V, hidden_size=32, intermediate_size=36, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             initializer_range=0.25, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
             pad_token_id=None)
_MLA = dict(kv_lora_rank=12, qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=14, n_routed_experts=6,
            num_experts_per_tok=2, moe_intermediate_size=12, n_shared_experts=1, q_lora_rank=None,
            first_k_dense_replace=1, num_key_value_heads=4, n_group=1, topk_group=1, num_mtp_layers=0)
_MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=12, head_dim=8)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, biases, tied": ("Llama", dict(attention_bias=True, mlp_bias=True, head_dim=12,
                                          tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(sliding_window=None, head_dim=6)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(head_dim=12, tie_word_embeddings=True)),
    "qwen3, biases": ("Qwen3", dict(head_dim=6, attention_bias=True)),
    "qwen3_moe": ("Qwen3Moe", dict(**_MOE, norm_topk_prob=True)),
    "qwen3_moe, some layers": ("Qwen3Moe", dict(**_MOE, decoder_sparse_step=2, mlp_only_layers=[3],
                                                num_hidden_layers=5, attention_bias=True)),
    "deepseek_v3": ("DeepseekV3", dict(**_MLA)),
    "deepseek_v3, groups": ("DeepseekV3", {
        **_MLA, "q_lora_rank": 14, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 0,
        "n_shared_experts": 2, "routed_scaling_factor": 1.7, "norm_topk_prob": False,
        "attention_bias": True, "rms_norm_eps": 1e-2, "rope_interleave": False}),
}
_YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=16)
ROPES: dict[str, dict[str, Any]] = {
    "default": dict(rope_type="default", rope_theta=500.0),
    "linear": dict(rope_type="linear", factor=4.0),
    "dynamic": dict(rope_type="dynamic", factor=4.0),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32, rope_theta=100.0),
    "yarn": dict(_YARN, rope_theta=1000.0),
    "yarn, mscale": dict(_YARN, mscale=0.7, mscale_all_dim=1.3, beta_fast=20, beta_slow=2),
    "yarn, factor given": dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=64,
                               rope_theta=20.0, attention_factor=1.4, truncate=False),
}


class Float64(TorchFunctionMode):
    """Whatever their code asks to be float32 is float64: norms, softmax, routers, rotary angles."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        def wide(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


@dataclass
class Pair:
    single: Any  # their model, float32
    double: Any  # the same in float64; run it inside Float64()
    ours: Model


def make(family: str, rope: dict[str, Any] | None = None) -> Pair:
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{**_TINY, **options}, rope_parameters=None if rope is None else dict(rope))
    config._experts_implementation = "eager"  # the others know no float64
    cls = getattr(transformers, f"{name}ForCausalLM")
    single = cls(config).eval()
    _disturb(single)
    with Float64():
        double = cls(config).double().eval()
    double.load_state_dict(single.state_dict())
    values = json.loads(config.to_json_string(use_diff=True))
    ours = Model(ModelConfig.from_dict(values), seed=None)
    ours.load_state_dict(split_experts(single.state_dict().items()))
    return Pair(single, double, ours)


def mtp_pair(family: str) -> tuple[Pair, Any]:
    """A pair with our MTP module, and theirs in float64 (transformers' MtpModel around `double`)."""
    modeling = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(modeling, "MtpModel"):
        pytest.skip("this transformers has no MtpModel")
    pair = make(family)
    shared = pair.double.state_dict()
    pair.double.config.num_mtp_layers = 1
    with Float64():
        mtp = modeling.MtpModel(pair.double, 1).double().eval()
    pair.double.load_state_dict(shared)  # their constructor may draw what it shares anew
    with torch.no_grad():  # it leaves fused experts undrawn
        for name, tensor in mtp.layers.state_dict().items():
            tensor.normal_(std=0.25) if tensor.ndim > 1 else tensor.fill_("norm" in name)
    _disturb(mtp.layers)
    config = ModelConfig.from_dict({**pair.ours.config.to_dict(), "num_nextn_predict_layers": 1})
    pair.ours, trunk = Model(config, seed=None), pair.ours.state_dict()
    own = {mtp_name(f"layers.{n}", pair.ours): x for n, x in mtp.layers.state_dict().items()}
    pair.ours.load_state_dict({**trunk, **split_experts(own.items())})
    return pair, mtp


def mtp_name(name: str, ours: Model) -> str:
    """layers.0.mtp_block.X -> model.layers.L.X, with DeepSeek's name for the last norm."""
    part = name.removeprefix("layers.0.").removeprefix("mtp_block.")
    part = part.replace("post_norm.", "shared_head.norm.")
    return f"model.layers.{ours.config.num_hidden_layers}.{part}"


def _disturb(module: Any) -> None:
    """Norms and biases away from 1 and 0."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.ndim == 1:
                tensor += 0.2 * torch.randn_like(tensor)


def split_experts(tensors: Iterable[tuple[str, Any]]) -> dict[str, np.ndarray]:
    """Their names and fused experts -> one matrix an expert: gate_up_proj (E, 2 F, C), down_proj
    (E, C, F). A head that is tied is left out."""
    out: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        array = tensor.detach().numpy()
        stem, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for e, (gate, up) in enumerate(zip(*np.split(array, 2, axis=1), strict=True)):
                out |= {f"{stem}.{e}.gate_proj.weight": gate, f"{stem}.{e}.up_proj.weight": up}
        elif kind == "down_proj" and array.ndim == 3:
            out |= {f"{stem}.{e}.down_proj.weight": matrix for e, matrix in enumerate(array)}
        else:
            out[name] = array
    return out
