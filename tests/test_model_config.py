"""ModelConfig: presets, round trips, misspellings, and what cannot be built."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from r1grpo import Model, ModelConfig, _core


def test_presets() -> None:
    moe, dense = ModelConfig.tiny_moe(), ModelConfig.tiny_dense()
    for preset, make in ((moe, ModelConfig.tiny_moe), (dense, ModelConfig.tiny_dense)):
        assert preset.eos_token_id is not None and preset.vocab_size > 0
        changed = make(vocab_size=300, eos_token_id=7)
        assert (changed.vocab_size, changed.eos_token_id) == (300, 7)
        assert make(300, 7) == changed
        assert make(hidden_size=64).hidden_size == 64
    assert moe.kv_lora_rank and moe.n_routed_experts and moe.num_nextn_predict_layers
    assert not (dense.kv_lora_rank or dense.n_routed_experts or dense.num_nextn_predict_layers)
    assert ModelConfig.tiny_dense(hidden_size=64, num_attention_heads=4).head_dim == 16


def test_tiny_moe_has_the_size_that_was_promised() -> None:
    model = Model(ModelConfig.tiny_moe(), seed=None)
    count = model.num_parameters()
    assert repr(model) == f"<Model: deepseek_v3, {count['total']:,} parameters, float32>"
    assert repr(model.freeze()).endswith("float32, frozen>")
    assert 600_000 <= count["total"] <= 1_500_000
    assert count["active"] <= count["total"] / 2
    assert 600_000 <= count["total"] + count["mtp"] <= 1_500_000
    state = Model(ModelConfig.tiny_moe(), seed=None).state_dict()
    assert count["total"] + count["mtp"] == sum(a.size for a in state.values())


UNKNOWN = {"my_key": {"nested": [1, None]}, "architectures": ["X"], "torch_dtype": "bfloat16",
           "transformers_version": "4.1", "rope_scaling": None, "aux_loss_alpha": 0.001}


@pytest.mark.parametrize("preset", [ModelConfig.tiny_moe, ModelConfig.tiny_dense])
def test_unknown_keys_survive_a_round_trip(preset: Any) -> None:
    values = preset().to_dict() | UNKNOWN
    config = ModelConfig.from_dict(values)
    assert config.to_dict() == values
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict({}).to_dict().keys() == ModelConfig().to_dict().keys()
    assert "extra" not in config.to_dict()


@pytest.mark.parametrize("key, meant", [
    ("num_experts_per_token", "num_experts_per_tok"), ("hiden_size", "hidden_size"),
    ("hidden_sizes", "hidden_size"), ("hiddenSize", "hidden_size"), ("Vocab_Size", "vocab_size"),
    ("num_hidden_layer", "num_hidden_layers"), ("n_routed_expert", "n_routed_experts"),
    ("eos_token_ids", "eos_token_id"), ("tie_word_embedding", "tie_word_embeddings"),
    ("qk_rope_head_dims", "qk_rope_head_dim"), ("rope_thetas", "rope_theta"),
    ("num_nextn_predict_layer", "num_nextn_predict_layers"), ("kv_lora_ranks", "kv_lora_rank")])
def test_a_near_miss_raises(key: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown config key '{key}': did you mean '{meant}'"):
        ModelConfig.from_dict({key: 4})


PUBLISHED = {  # keys of published config.json files, values cut down to what could be built here
    "DeepSeek-V3": {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {}, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 64,
        "initializer_range": 0.02, "intermediate_size": 128, "kv_lora_rank": 32,
        "max_position_embeddings": 128, "model_type": "deepseek_v3", "moe_intermediate_size": 16,
        "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 16, "n_shared_experts": 1,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_experts_per_tok": 8,
        "num_hidden_layers": 4, "num_key_value_heads": 4, "num_nextn_predict_layers": 1,
        "pretraining_tp": 1, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "quantization_config": {"fmt": "e4m3"}, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "seq_aux": True, "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True,
        "v_head_dim": 16, "vocab_size": 64},
    "Qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 3,
        "eos_token_id": 3, "hidden_act": "silu", "hidden_size": 56, "initializer_range": 0.02,
        "intermediate_size": 76, "max_position_embeddings": 128, "max_window_layers": 21,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False,
        "use_sliding_window": False, "vocab_size": 64},
    "Llama": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": [2, 3], "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 76,
        "max_position_embeddings": 128, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "n_group": None, "n_routed_experts": None, "q_lora_rank": None, "use_cache": True,
        "vocab_size": 64},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED[name])
    out = config.to_dict()
    for key, value in PUBLISHED[name].items():
        assert out[key] == value or value is None
    assert len(Model(config).generate([[5, 6]], max_new_tokens=3)) == 1
    assert config.stop_ids() == {"DeepSeek-V3": [1], "Qwen2": [3], "Llama": [2, 3]}[name]


@pytest.mark.parametrize("values, message", [
    ({"model_type": "gpt2"}, "unknown model_type 'gpt2'; known are deepseek_v3, llama, mistral, "),
    ({"model_type": 7}, "unknown model_type 7"),
    ({"model_type": "llama", "num_experts": 8}, "'llama' has no n_routed_experts: it is 8"),
    ({"model_type": "llama", "kv_lora_rank": 8}, "'llama' has no kv_lora_rank"),
    ({"model_type": "llama", "rope_interleave": True}, "'llama' has no rope_interleave"),
    ({"model_type": "qwen2", "attention_bias": False}, "'qwen2' has no attention_bias: it is False, only"),
    ({"model_type": "mistral", "attention_bias": True}, "'mistral' has no attention_bias"),
    ({"model_type": "qwen3", "mlp_bias": True}, "'qwen3' has no mlp_bias"),
    ({"model_type": "qwen3_moe", "n_shared_experts": 1}, "'qwen3_moe' has no n_shared_experts"),
    ({"model_type": "qwen3_moe", "scoring_func": "sigmoid"}, "'qwen3_moe' has no scoring_func"),
    ({"model_type": "qwen3_moe", "num_experts": 8, "num_local_experts": 9}, "num_local_experts is 9"),
    ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": ["x"]}, "mlp_only_layers is 'x'"),
    ({"model_type": "deepseek_v3", "kv_lora_rank": None}, "'deepseek_v3' needs a kv_lora_rank"),
    ({"model_type": "llama", "num_expert": 8}, "did you mean 'num_experts'"),
    ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
])
def test_what_a_family_has_not(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_a_family_speaks_for_itself() -> None:
    """What comes from model_type alone, in the constructor too; its own keys are written, no others'."""
    qwen2, qwen3 = ModelConfig(model_type="qwen2"), ModelConfig(model_type="qwen3")
    assert qwen2.attention_bias and not qwen3.attention_bias
    sizes = {c.model_type: c.core()[0] for c in (qwen2, qwen3, ModelConfig(attention_bias=True))}
    for name, wanted in (("qwen2", (True, False, False)), ("qwen3", (False, False, True)),
                         ("llama", (True, True, False))):
        assert tuple(sizes[name][key] for key in ("qkv_bias", "o_bias", "qk_norm")) == wanted
    for config in (qwen2, qwen3):
        assert not config.to_dict().keys() & {"kv_lora_rank", "n_routed_experts", "scoring_func", "mlp_bias"}
    assert "attention_bias" not in qwen2.to_dict() and "attention_bias" in qwen3.to_dict()
    assert ModelConfig(kv_lora_rank=8, qk_rope_head_dim=4).model_type == "deepseek_v3"


def test_names_of_qwen3_moe() -> None:
    """Published as num_experts, written by transformers 5 as num_local_experts."""
    values = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "decoder_sparse_step": 2,
              "mlp_only_layers": [3]}
    for key in ("num_experts", "num_local_experts"):
        config = ModelConfig.from_dict({**values, key: 16})
        assert config.n_routed_experts == 16 and config.to_dict()["num_experts"] == 16
        assert not config.to_dict().keys() & {"n_routed_experts", "num_local_experts", "topk_method"}
        assert ModelConfig.from_dict(config.to_dict()) == config
        assert [config.mixture(i) for i in range(6)] == [False, True, False, False, False, True]
        assert config.core()[0]["moe"] == bytes([0, 1, 0, 0, 0, 1])


def test_names_of_deepseek_v3() -> None:
    """Its head_dim is the rotary width, to those who read the file; MLA has as many KV heads as heads."""
    moe = ModelConfig.tiny_moe(head_dim=24, num_key_value_heads=2)
    assert (moe.head_dim, moe.num_key_value_heads) == (moe.qk_rope_head_dim, 4)
    assert "head_dim" not in moe.to_dict()
    assert ModelConfig.from_dict({**moe.to_dict(), "head_dim": 8}) == moe
    dense = ModelConfig.tiny_moe(n_routed_experts=0)
    assert dense.first_k_dense_replace == dense.num_hidden_layers
    assert ModelConfig.from_dict({"model_type": "deepseek_v3", "num_mtp_layers": 0}
                                 ).num_nextn_predict_layers == 0


@pytest.mark.parametrize("values, windows", [
    ({"model_type": "llama", "sliding_window": 5}, [0, 0, 0]),
    ({"model_type": "mistral"}, [4096] * 3), ({"model_type": "mistral", "sliding_window": None}, [0] * 3),
    ({"model_type": "mistral", "sliding_window": 5}, [5] * 3),
    ({"model_type": "qwen2", "sliding_window": 5}, [0] * 3),
    ({"model_type": "qwen2", "sliding_window": 5, "use_sliding_window": True}, [0] * 3),
    ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, [0, 4096, 4096]),
    ({"model_type": "qwen3", "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 9,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, [5, 0, 5]),
    ({"model_type": "qwen3_moe", "sliding_window": 5, "use_sliding_window": True}, [5] * 3),
    ({"model_type": "qwen3", "sliding_window": None, "use_sliding_window": True}, [0] * 3)])
def test_windows(values: dict, windows: list[int]) -> None:
    """As transformers' configurations decide; tests/test_window_parity.py compares results."""
    config = ModelConfig.from_dict({**values, "num_hidden_layers": 3})
    assert [config.window(i) for i in range(3)] == windows
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert [again.window(i) for i in range(3)] == windows


MOE = ModelConfig.tiny_moe(  # the presets may change, these numbers may not
    n_routed_experts=12, num_experts_per_tok=2, moe_intermediate_size=16, num_hidden_layers=4,
    first_k_dense_replace=1).to_dict()
DENSE = ModelConfig.tiny_dense(
    hidden_size=96, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2).to_dict()
IMPOSSIBLE = [
    # heads
    (DENSE, {"num_attention_heads": 5, "head_dim": None},
     "hidden_size 96 is not a multiple of num_attention_heads"),
    (DENSE, {"num_key_value_heads": 3},
     "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    (DENSE, {"num_key_value_heads": 8}, "num_key_value_heads"),
    (DENSE, {"num_key_value_heads": 0}, "num_key_value_heads"),
    (DENSE, {"num_attention_heads": 0}, "num_attention_heads"),
    (DENSE, {"head_dim": 7}, "head_dim 7 is odd"), (DENSE, {"head_dim": 258}, "head_dim"),
    (DENSE, {"head_dim": 0}, "head_dim"),
    (MOE, {"qk_rope_head_dim": 3}, "qk_rope_head_dim 3 is odd"),
    (MOE, {"qk_rope_head_dim": 0}, "qk_rope_head_dim"), (MOE, {"v_head_dim": 0}, "v_head_dim"),
    (MOE, {"qk_nope_head_dim": 0}, "qk_nope_head_dim"),
    (MOE, {"qk_nope_head_dim": 250, "qk_rope_head_dim": 10}, "qk_nope_head_dim"),
    # experts
    (MOE, {"num_experts_per_tok": 13}, "num_experts_per_tok 13 exceeds n_routed_experts 12"),
    (MOE, {"num_experts_per_tok": 0}, "num_experts_per_tok"),
    (MOE, {"n_group": 5}, "n_routed_experts 12 is not a multiple of n_group 5"),
    (MOE, {"n_group": 4, "topk_group": 5}, "topk_group 5"),
    (MOE, {"n_group": 6, "topk_group": 1, "num_experts_per_tok": 3}, "num_experts_per_tok 3 exceeds"),
    (MOE, {"moe_intermediate_size": 0}, "moe_intermediate_size"),
    (MOE, {"n_routed_experts": 2000}, "n_routed_experts"),
    (MOE, {"n_shared_experts": 2**30}, "n_shared_experts"),
    (MOE, {"first_k_dense_replace": 5}, "first_k_dense_replace 5 exceeds num_hidden_layers 4"),
    (MOE, {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
    (MOE, {"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
    (MOE, {"scoring_func": "tanh"}, "scoring_func"),
    # sizes
    *((DENSE, {key: 0}, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers",
                                         "intermediate_size", "max_position_embeddings")),
    *((DENSE, {"num_hidden_layers": bad}, "num_hidden_layers")
      for bad in (-1, 2**31, 2**40, 10**30, 1.5, "4", None, True, [4])),
    (DENSE, {"hidden_size": 2**30, "head_dim": 2}, "hidden_size"),
    (DENSE, {"intermediate_size": 2**31 - 1}, "intermediate_size"),
    (MOE, {"kv_lora_rank": 2**30}, "kv_lora_rank"), (MOE, {"q_lora_rank": 2**30}, "q_lora_rank"),
    # numbers
    *((DENSE, {"rms_norm_eps": bad}, "rms_norm_eps") for bad in (0, -1e-6, float("inf"), 1e-60, "x")),
    *((DENSE, {"rope_theta": bad}, "rope_theta") for bad in (0, float("nan"), 1e300, 10**400, None)),
    (DENSE, {"initializer_range": -0.1}, "initializer_range"),
    (DENSE, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (DENSE, {"eos_token_id": 512}, "eos_token_id 512"),
    (DENSE, {"eos_token_id": [1, 600]}, "eos_token_id"),
    (DENSE, {"eos_token_id": "</s>"}, "eos_token_id"),
    (DENSE, {"eos_token_id": -1}, "eos_token_id"),
    # what would silently be another model
    (DENSE, {"hidden_act": "gelu"}, "hidden_act"), (DENSE, {"mlp_bias": True}, "mlp_bias"),
    (DENSE, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types\\[1\\]"),
    (DENSE, {"layer_types": ["full_attention"]}, "num_hidden_layers = 2"),
    (DENSE, {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    (DENSE, {"model_type": "mistral", "layer_types": ["full_attention"] * 2, "sliding_window": 8},
     "layer_types\\[0\\]"),
    (DENSE, {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
    (MOE, {"moe_layer_freq": 2}, "moe_layer_freq"),
    (DENSE, {"rope_scaling": {"type": "longrope"}},
     "rope type 'longrope' is not known; known are default, linear, dynamic, llama3, yarn"),
    (DENSE, {"rope_scaling": "yarn"}, "rope_scaling"),
    (MOE, {"rope_scaling": {"mscale_all_dim": 1e300, "type": "yarn", "factor": 4.0}}, "mscale_all_dim"),
]


@pytest.mark.parametrize("base, change, message", IMPOSSIBLE,
                         ids=["{}={}".format(*next(iter(c.items()))) for _, c, _ in IMPOSSIBLE])
def test_what_cannot_be_raises_before_anything_is_allocated(
        base: dict, change: dict, message: str) -> None:
    _core.alloc_fail_at(0)
    with pytest.raises(ValueError, match=message):
        Model({**base, **change}, seed=None)
    assert _core.alloc_fail_at(0) == 0, "memory was asked for"


def test_a_list_of_layers_has_no_more_than_there_can_be() -> None:
    with pytest.raises(ValueError, match="mlp_only_layers has 5000 entries"):
        ModelConfig(model_type="qwen3_moe", mlp_only_layers=[0] * 5000)


def test_the_core_checks_again() -> None:
    """A config that was changed after its checks meets the core's."""
    device = _core.Device(1)
    good, *arrays = *ModelConfig.tiny_dense().core(), "float32"
    for key, bad in (("V", -1), ("H", 2**70), ("C", "x"), ("L", None), ("eps", "x"),
                     ("windowed", 3), ("windowed", bytes(5000)), ("moe", bytes(5000))):
        with pytest.raises(ValueError, match=f"config '{key}'"):
            _core.Model(device, {**good, key: bad}, *arrays)
    inv_freq, factor, dtype = arrays
    for bad, message in (
            (({**good, "moe": b"\1"}, *arrays), "a layer is a mixture, but n_routed_experts is 0"),
            ((good, inv_freq[1:], factor, dtype), "11 inverse frequencies for a rotary width of 24"),
            ((good, inv_freq * np.nan, factor, dtype), "inverse frequency 0 is -?nan"),
            ((good, inv_freq, 0.0, dtype), "the attention factor is 0"),
            ((good, inv_freq, factor, "float16"), "'dtype': must be one of 'float32', 'bfloat16'")):
        with pytest.raises(ValueError, match=message):
            _core.Model(device, *bad)
    with pytest.raises(KeyError, match="lacks 'V'"):
        _core.Model(device, {})
    with pytest.raises(TypeError, match="must be a dict"):
        _core.Model(device, [])
