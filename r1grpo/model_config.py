"""ModelConfig: the architecture, in Hugging Face's field names (DeepSeek-V3's for mixtures).

A config belongs to a family by its `model_type` (families.py), and a config.json that leaves a key out
means the default of `transformers`' class of that family. `from_dict` keeps keys that it does not know,
so that a config.json survives a round trip, and refuses a key that is almost a known one: a misspelt
`num_experts_per_token` would otherwise build another model in silence. Types and signs are checked
here, whether the sizes fit together once, in C (csrc/model/config.c). Knows nothing about weights.
"""

from __future__ import annotations

import difflib
import numbers
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .brief import brief
from .families import ALIASES, FAMILIES, Family
from .rope import Rope, make_rope

__all__ = ["ModelConfig"]

# Keys of published config.json files that do not change what is computed here.
_HARMLESS = frozenset(
    "architectures auto_map attention_dropout aux_loss_alpha dtype ep_size hidden_act moe_layer_freq "
    "output_router_logits pretraining_tp quantization_config seq_aux torch_dtype "
    "transformers_version use_cache pad_token_id "
    "is_encoder_decoder id2label label2id qk_head_dim model_name "
    "original_max_position_embeddings".split())
# Of these, the ones that would change it at any other value.
_PLAIN = {"hidden_act": "silu", "moe_layer_freq": 1, "partial_rotary_factor": 1.0}
# Published files write null where a model has none of these.
_NULL_IS_DEFAULT = (
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts",
    "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace",
    "n_group", "topk_group", "routed_scaling_factor", "num_nextn_predict_layers")
# Null or false there would be an error to transformers, or says nothing.
_WRITTEN_IF_SET = ("rope_parameters", "score_head", "num_nextn_predict_layers", "sliding_window",
                   "use_sliding_window", "max_window_layers", "layer_types")
_MAX_WIDTH = 4096  # of a head's rotary part: the core refuses less, before it looks at frequencies

# Families whose attention may be windowed, and the first such layer where nothing says which.
_WINDOWED, _MAX_WINDOW_LAYERS = ("mistral", "qwen2", "qwen3", "qwen3_moe"), 28
_MAX_LAYERS = 4096  # the core refuses more
_MAX_KEYS = 1000  # of a config, and ids that end a completion; published files have a hundred, and three

_KINDS = {"int": numbers.Integral, "float": numbers.Real, "bool": bool, "str": str, "dict": dict,
          "list": (list, tuple)}


def _checked(name: str, annotation: str, value: Any) -> Any:
    """The value of a field as the core and a JSON file can take it; ValueError naming the field."""
    kinds = [kind.split("[")[0] for kind in annotation.split(" | ")]
    if value is None and "None" in kinds:
        return None
    for kind in kinds:
        if isinstance(value, _KINDS.get(kind, ())) and isinstance(value, bool) == (kind == "bool"):
            if kind == "int" and not 0 <= value < 2**31:
                raise ValueError(f"{name} is {brief(value)}, must be between 0 and 2^31 - 1")
            if kind == "float" and not abs(value) < 3e38:
                raise ValueError(f"{name} is {brief(value)}, must be a finite float32")
            return int(value) if kind == "int" else float(value) if kind == "float" else value
    raise ValueError(f"{name} is {brief(value)}, must be {annotation}")


@dataclass
class ModelConfig:
    """Sizes of a model of the family `model_type`, by default deepseek_v3 where `kv_lora_rank` is set,
    else llama. `n_routed_experts` > 0 makes the layers from `first_k_dense_replace` on mixtures; with
    qwen3_moe every `decoder_sparse_step`-th layer but `mlp_only_layers`. None: the family decides."""

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
    rope_scaling: dict[str, Any] | None = None  # the old form, which wins over the new one
    rope_parameters: dict[str, Any] | None = None  # the new form; its rope_theta wins
    rope_interleave: bool | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    model_type: str | None = None
    # sliding window, see window()
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
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
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str | None = None
    topk_method: str | None = None
    norm_topk_prob: bool | None = None
    routed_scaling_factor: float = 1.0
    # multi-token prediction, scalar head of a reward model
    num_nextn_predict_layers: int = 0
    score_head: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            setattr(self, f.name, _checked(f.name, str(f.type), getattr(self, f.name)))
        if self.model_type is None:
            self.model_type = "deepseek_v3" if self.kv_lora_rank else "llama"
        if self.num_attention_heads < 1:
            raise ValueError("num_attention_heads is 0, must be at least 1")
        if not 1 <= self.num_hidden_layers <= _MAX_LAYERS:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}, must be between 1 and "
                             f"{_MAX_LAYERS}")
        if len(self.stop_ids()) > _MAX_KEYS:
            raise ValueError(f"eos_token_id holds {len(self.stop_ids())} ids, at most {_MAX_KEYS} are read")
        for token in self.stop_ids():
            if _checked("eos_token_id", "int", token) >= self.vocab_size:
                raise ValueError(f"eos_token_id {token} is outside the vocab_size {self.vocab_size}")
        self._settle_family(family_of(self.model_type))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim if that is meant")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.scoring_func not in ("sigmoid", "softmax"):
            raise ValueError(f"scoring_func '{self.scoring_func}' is neither 'sigmoid' nor 'softmax'")
        self._check_windows()
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range is {self.initializer_range}, must be 0 or above")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(f"first_k_dense_replace {self.first_k_dense_replace} exceeds "
                             f"num_hidden_layers {self.num_hidden_layers}")
        if self.decoder_sparse_step < 1:
            raise ValueError("decoder_sparse_step is 0, must be at least 1")
        if len(dense := self.mlp_only_layers or ()) > _MAX_LAYERS:
            raise ValueError(f"mlp_only_layers has {len(dense)} entries, at most {_MAX_LAYERS} layers "
                             "are possible")
        for layer in dense:
            _checked("mlp_only_layers", "int", layer)
        self.rope()
        self.rope_theta = float(self._rope_dict()["rope_theta"])

    def _settle_family(self, family: Family) -> None:
        """What the family decides; ValueError for what it has not."""
        for name, value in family.decides.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if family.mla:
            if not self.kv_lora_rank:
                raise ValueError(f"model_type '{self.model_type}' needs a kv_lora_rank above 0")
            self.head_dim = self.qk_rope_head_dim  # what transformers calls so under MLA
            self.num_key_value_heads = self.num_attention_heads
            if not self.n_routed_experts:  # transformers would look for experts behind it
                self.first_k_dense_replace = self.num_hidden_layers
        for f in fields(self):
            plain, value = family.decides.get(f.name, f.default), getattr(self, f.name)
            if f.name not in {*family.keys, "head_dim", "extra"} and value not in (plain, None):
                raise ValueError(f"model_type '{self.model_type}' has no {f.name}: it is "
                                 f"{brief(value)}, only {plain!r} is supported")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From the keys of a config.json. Unknown keys are kept; near misses raise ValueError."""
        if not isinstance(values, dict):
            raise TypeError(f"a config is a dict of its fields, not {type(values).__name__}")
        if len(values) > _MAX_KEYS:
            raise ValueError(f"the config has {len(values)} keys, at most {_MAX_KEYS} are read")
        family = family_of(values["model_type"]) if values.get("model_type") is not None else None
        known = {f.name: f.default for f in fields(cls) if f.name != "extra"}
        given: dict[str, Any] = {}
        extra = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known or (family and value is None and name not in family.keys):
                extra[key] = value
            elif name in given and given[name] != value:
                raise ValueError(f"{key} is {brief(value)}, but {name} is {brief(given[name])} "
                                 f"by another name")
            else:
                null = value is None and name in _NULL_IS_DEFAULT
                given[name] = known[name] if null else value
        if str(extra.get("architectures")).endswith("ForSequenceClassification']"):
            given.setdefault("score_head", True)
        for key in extra.keys() - _HARMLESS - known.keys():
            close = difflib.get_close_matches(str(key)[:100].lower(), {*known, *ALIASES}, n=1, cutoff=0.85)
            if close:
                raise ValueError(f"unknown config key {brief(key)}: did you mean '{close[0]}'?")
        for key, plain in _PLAIN.items():
            if extra.get(key, plain) != plain:
                raise ValueError(f"{key} is {brief(extra[key])}; only {plain!r} is supported")
        for key, value in (family.defaults if family else {}).items():
            (given if key in known else extra).setdefault(key, value)
        return cls(**given, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The keys of a config.json of this family, and the unknown ones that came in."""
        family = family_of(self.model_type)
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name in family.keys}
        for name in _WRITTEN_IF_SET:
            if not own[name] and name not in family.defaults:
                del own[name]
        return {**self.extra, **{family.names.get(k, k): v for k, v in own.items()}}

    @classmethod
    def tiny_moe(cls, vocab_size: int = 512, eos_token_id: int = 1, **changes: Any) -> ModelConfig:
        """A DeepSeek-V3 in miniature: MLA, MoE, MTP; 0.75 M parameters (0.34 M active) + 0.2 M of MTP."""
        preset = dict(
            vocab_size=vocab_size, eos_token_id=eos_token_id, model_type="deepseek_v3",
            hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192,
            max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05,
            q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24,
            n_routed_experts=12, num_experts_per_tok=2, moe_intermediate_size=48, n_shared_experts=1,
            first_k_dense_replace=1, num_nextn_predict_layers=1)
        return cls(**{**preset, **changes})

    @classmethod
    def tiny_dense(cls, vocab_size: int = 512, eos_token_id: int = 1, **changes: Any) -> ModelConfig:
        """A Qwen2 in miniature: grouped queries, biased q, k, v, tied head; 0.4 M parameters."""
        preset = dict(
            vocab_size=vocab_size, eos_token_id=eos_token_id, model_type="qwen2", hidden_size=96,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
            max_position_embeddings=512, tie_word_embeddings=True, attention_bias=True,
            initializer_range=0.05)
        return cls(**{**preset, **changes})

    def stop_ids(self) -> list[int]:
        """The end-of-sequence ids, as a list."""
        eos = self.eos_token_id
        return [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]

    def window(self, layer: int) -> int:
        """Keys that a query of this layer sees, its own position included; 0: all before it.

        As transformers decides. Mistral: `sliding_window` in every layer. Qwen2 and Qwen3, where
        `use_sliding_window`: in the layers that `layer_types` calls 'sliding_attention' or, without
        it, from `max_window_layers` on; Qwen3-MoE in every layer. Other families have none."""
        on = self.model_type == "mistral" or \
            self.model_type in _WINDOWED and self.use_sliding_window
        if not on or self.sliding_window is None:
            return 0
        if self.model_type in ("mistral", "qwen3_moe"):
            here = True
        elif self.layer_types is not None:
            here = self.layer_types[layer] == "sliding_attention"
        else:
            first = _MAX_WINDOW_LAYERS if self.max_window_layers is None else self.max_window_layers
            here = layer >= first
        return self.sliding_window if here else 0

    def _check_windows(self) -> None:
        """Layers that are named one way and would be computed another raise ValueError."""
        kinds = self.layer_types
        if self.sliding_window == 0:
            raise ValueError("sliding_window is 0, must be at least 1, or null for none")
        if kinds is None:
            return
        if len(kinds) != self.num_hidden_layers or \
                any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
            raise ValueError(f"layer_types must be num_hidden_layers = {self.num_hidden_layers} "
                             f"times 'full_attention' or 'sliding_attention', is {brief(kinds)}")
        for i, kind in enumerate(kinds):
            if (self.window(i) > 0) != (kind == "sliding_attention"):
                raise ValueError(
                    f"layer_types[{i}] is {brief(kind)}, but model_type {brief(self.model_type)} with "
                    f"use_sliding_window {self.use_sliding_window} and sliding_window "
                    f"{self.sliding_window} makes it the other kind")

    def rope(self) -> Rope:
        """Frequencies and factors of the rotary positions."""
        width = self.qk_rope_head_dim if self.kv_lora_rank else self.head_dim
        return make_rope(self._rope_dict(), min(width or 0, _MAX_WIDTH), self.max_position_embeddings,
                         deepseek=self.model_type == "deepseek_v3")

    def _rope_dict(self) -> dict[str, Any]:
        """Both forms in one, with transformers' precedence."""
        original = self.extra.get("original_max_position_embeddings")
        return {"rope_theta": self.rope_theta, **(self.rope_scaling or self.rope_parameters or {}),
                **({} if original is None else {"original_max_position_embeddings": original})}

    def mixture(self, layer: int) -> bool:
        """Is this layer's FFN a mixture of experts? The MTP module's is, if there are any."""
        return (self.n_routed_experts > 0 and layer >= self.first_k_dense_replace
                and (layer + 1) % self.decoder_sparse_step == 0
                and layer not in (self.mlp_only_layers or ()))

    def core(self) -> tuple[dict[str, Any], np.ndarray, float]:
        """What the C core's model is made from: the fields of r1_config, inverse frequencies (rotary
        width / 2), and the factor of cos and sin."""
        rope = self.rope()
        return self._sizes(rope.attn_scale, family_of(self.model_type)), rope.inv_freq, rope.factor

    def _sizes(self, attn_scale: float, family: Family) -> dict[str, Any]:
        moe, layers = self.n_routed_experts > 0, range(self.num_hidden_layers)
        return {
            "V": self.vocab_size, "C": self.hidden_size, "L": self.num_hidden_layers,
            "T": self.max_position_embeddings, "H": self.num_attention_heads,
            "Hkv": self.num_key_value_heads, "D": self.head_dim, "F": self.intermediate_size,
            "q_lora": self.q_lora_rank or 0, "kv_lora": self.kv_lora_rank,
            "Dn": self.qk_nope_head_dim, "Dr": self.qk_rope_head_dim, "Dv": self.v_head_dim,
            "E": self.n_routed_experts, "K": self.num_experts_per_tok if moe else 0,
            "Fe": self.moe_intermediate_size if moe else 0,
            "shared": self.n_shared_experts if moe else 0,
            "groups": self.n_group or 1, "top_groups": self.topk_group or 1,
            "mtp": self.num_nextn_predict_layers, "softmax_gate": self.scoring_func == "softmax",
            "normalize": self.norm_topk_prob, "router_bias": moe and self.topk_method == "noaux_tc",
            "qkv_bias": self.attention_bias, "o_bias": self.attention_bias and family.o_bias,
            "mlp_bias": self.mlp_bias, "qk_norm": family.qk_norm,
            "tied": self.tie_word_embeddings, "interleaved": self.rope_interleave,
            "score": self.score_head, "lora": 0, "lora_targets": 0, "frozen": False, "offload": False,
            "routed_scale": self.routed_scaling_factor, "eps": self.rms_norm_eps, "attn_scale": attn_scale,
            "moe": bytes(self.mixture(i) for i in layers), "window": self.sliding_window or 0,
            "windowed": bytes(self.window(i) > 0 for i in layers),
        }


def family_of(model_type: Any) -> Family:
    """The family of that name; ValueError listing the known ones."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"unknown model_type {brief(model_type)}; known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
