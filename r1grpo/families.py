"""What a `model_type` fixes beyond the sizes in its config.json: the families that the engine knows.

A family is said by three things: the keys of its own (others at another value than their default would
be ignored by everybody who loads the file, so ModelConfig refuses them), what it computes where no key
says so, and what `transformers`' config class takes for a key that is left out. Knows nothing about
weights, files or the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ALIASES", "FAMILIES", "Family"]

# Names that published files have for a field of ModelConfig.
ALIASES = {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts",
           "num_mtp_layers": "num_nextn_predict_layers"}

_EVERY = frozenset(
    "model_type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads "
    "intermediate_size max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters "
    "tie_word_embeddings initializer_range bos_token_id eos_token_id num_nextn_predict_layers "
    "score_head sliding_window use_sliding_window max_window_layers layer_types".split())


@dataclass(frozen=True)
class Family:
    """keys: fields that its config.json may set; decides: their value (and that of fields that it has
    no key for) where none is given; defaults: transformers' for keys that a config.json leaves out;
    names: field -> its key in config.json, where they differ."""

    keys: frozenset[str]
    decides: Mapping[str, Any]
    defaults: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    mla: bool = False
    qk_norm: bool = False
    o_bias: bool = True  # attention_bias puts one on o_proj too


def _family(keys: str, decides: Mapping[str, Any], defaults: Mapping[str, Any],
            **more: Any) -> Family:
    """With what all families share."""
    return Family(
        _EVERY | set(keys.split()),
        {"attention_bias": False, "rope_interleave": False, "scoring_func": "sigmoid",
         "topk_method": "noaux_tc", "norm_topk_prob": True, **decides},
        {"initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
         "rope_theta": 10000.0, **defaults}, **more)


_QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768, "sliding_window": 4096,
         "use_sliding_window": False}
_LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
          "num_attention_heads": 32, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, Family] = {
    "deepseek_v3": _family(
        "attention_bias rope_interleave q_lora_rank kv_lora_rank qk_nope_head_dim "
        "qk_rope_head_dim v_head_dim n_routed_experts num_experts_per_tok moe_intermediate_size "
        "n_shared_experts first_k_dense_replace n_group topk_group scoring_func topk_method "
        "norm_topk_prob routed_scaling_factor",
        {"rope_interleave": True},
        {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
         "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
         "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
         "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
         "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
         "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
         "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1,
         "num_nextn_predict_layers": 1},
        mla=True),
    "llama": _family(
        "head_dim attention_bias mlp_bias", {},
        {**_LLAMA, "intermediate_size": 11008, "max_position_embeddings": 2048}),
    "mistral": _family(
        "head_dim", {},
        {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8,
         "max_position_embeddings": 131072, "sliding_window": 4096}),
    "qwen2": _family(
        "head_dim", {"attention_bias": True},
        {**_QWEN, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32},
        o_bias=False),
    "qwen3": _family(
        "head_dim attention_bias", {},
        {**_QWEN, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128},
        qk_norm=True),
    "qwen3_moe": _family(
        "head_dim attention_bias n_routed_experts num_experts_per_tok moe_intermediate_size "
        "norm_topk_prob decoder_sparse_step mlp_only_layers",
        {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
        {**_QWEN, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
         "num_attention_heads": 32, "num_key_value_heads": 4, "moe_intermediate_size": 768,
         "num_experts_per_tok": 8, "n_routed_experts": 128},
        names={"n_routed_experts": "num_experts"}, qk_norm=True),
}
