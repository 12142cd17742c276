"""ModelConfig: the architecture, in Hugging Face's field names (DeepSeek-V3, Llama, Qwen2).

`from_dict` keeps keys that it does not know, so that a config.json survives a round trip, and refuses
a key that is almost a known one: a misspelt `num_experts_per_token` would otherwise build another
model in silence. What can be built at all is checked once, in C (csrc/model/config.c). Knows nothing
about weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any

__all__ = ["ModelConfig"]

# Keys of published config.json files that do not change what is computed here.
_HARMLESS = frozenset(
    "architectures auto_map attention_dropout aux_loss_alpha dtype ep_size hidden_act moe_layer_freq "
    "output_router_logits pretraining_tp quantization_config seq_aux sliding_window torch_dtype "
    "transformers_version use_cache use_sliding_window max_window_layers mlp_bias pad_token_id "
    "is_encoder_decoder id2label label2id layer_types rope_parameters rope_scaling "
    "qk_head_dim num_local_experts num_experts model_name".split())


@dataclass
class ModelConfig:
    """Sizes of a model. `kv_lora_rank` > 0 makes attention MLA, `n_routed_experts` > 0 makes the layers
    from `first_k_dense_replace` on DeepSeekMoE; both 0 is a dense Llama or Qwen2."""

    vocab_size: int = 512
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 256
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_interleave: bool | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    model_type: str = "llama"
    # MLA
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    # DeepSeekMoE
    n_routed_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    # multi-token prediction, scalar head of a reward model
    num_nextn_predict_layers: int = 0
    score_head: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads:
            if not self.kv_lora_rank and self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim if that is meant")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_interleave is None:  # DeepSeek rotates neighbours, Llama and Qwen halves
            self.rope_interleave = self.kv_lora_rank > 0
        if self.scoring_func not in ("sigmoid", "softmax"):
            raise ValueError(f"scoring_func '{self.scoring_func}' is neither 'sigmoid' nor 'softmax'")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From the keys of a config.json. Unknown keys are kept; near misses raise ValueError."""
        known = {f.name for f in fields(cls)} - {"extra"}
        given = {k: v for k, v in values.items() if k in known}
        extra = {k: v for k, v in values.items() if k not in known}
        for key in extra.keys() - _HARMLESS:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if close:
                raise ValueError(f"unknown config key '{key}': did you mean '{close[0]}'?")
        scaling = extra.get("rope_scaling") or extra.get("rope_parameters") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope type '{kind}' is not supported yet; only 'default' is")
        given.setdefault("rope_theta", scaling.get("rope_theta", cls.rope_theta))
        for key in ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "kv_lora_rank",
                    "num_nextn_predict_layers"):
            if given.get(key, 0) is None:
                given[key] = 0
        return cls(**given, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """All keys, the unknown ones that came in included."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **own}

    @classmethod
    def tiny_moe(cls, vocab_size: int = 512, eos_token_id: int = 1, **changes: Any) -> ModelConfig:
        """A DeepSeek-V3 in miniature: MLA, MoE, MTP; 1.0 M parameters (0.5 M active) + 0.3 M of MTP."""
        base = cls(
            vocab_size=vocab_size, eos_token_id=eos_token_id, model_type="deepseek_v3",
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192,
            max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05,
            q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=32,
            n_routed_experts=12, num_experts_per_tok=2, moe_intermediate_size=48, n_shared_experts=1,
            first_k_dense_replace=1, num_nextn_predict_layers=1)
        return replace(base, **changes)

    @classmethod
    def tiny_dense(cls, vocab_size: int = 512, eos_token_id: int = 1, **changes: Any) -> ModelConfig:
        """A Qwen2 in miniature: grouped queries, biased q, k, v, tied head; 0.4 M parameters."""
        base = cls(
            vocab_size=vocab_size, eos_token_id=eos_token_id, model_type="qwen2", hidden_size=96,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
            max_position_embeddings=512, tie_word_embeddings=True, attention_bias=True,
            initializer_range=0.05)
        return replace(base, **changes)

    def stop_ids(self) -> list[int]:
        """The end-of-sequence ids, as a list."""
        eos = self.eos_token_id
        return [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]

    def core(self) -> dict[str, Any]:
        """The fields of the C core's r1_config."""
        moe = self.n_routed_experts > 0
        return {
            "V": self.vocab_size, "C": self.hidden_size, "L": self.num_hidden_layers,
            "T": self.max_position_embeddings, "H": self.num_attention_heads,
            "Hkv": self.num_key_value_heads, "D": self.head_dim, "F": self.intermediate_size,
            "q_lora": self.q_lora_rank or 0, "kv_lora": self.kv_lora_rank,
            "Dn": self.qk_nope_head_dim, "Dr": self.qk_rope_head_dim, "Dv": self.v_head_dim,
            "E": self.n_routed_experts, "K": self.num_experts_per_tok if moe else 0,
            "Fe": self.moe_intermediate_size if moe else 0,
            "shared": self.n_shared_experts if moe else 0,
            "first_dense": self.first_k_dense_replace if moe else 0,
            "groups": self.n_group or 1, "top_groups": self.topk_group or 1,
            "mtp": self.num_nextn_predict_layers, "softmax_gate": self.scoring_func == "softmax",
            "normalize": self.norm_topk_prob, "router_bias": moe and self.topk_method == "noaux_tc",
            "tied": self.tie_word_embeddings, "qkv_bias": self.attention_bias,
            "interleaved": self.rope_interleave, "score": self.score_head,
            "routed_scale": self.routed_scaling_factor, "eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
        }
