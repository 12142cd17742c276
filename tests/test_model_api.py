"""The engine's public API, sentence by sentence: what scripts outside this repository depend on.

Exactness is test_exactness.py's, values are test_model_oracle.py's, bad input is test_bad_input.py's.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import r1grpo
from models import V, batch, configs, make
from op_testing import bits
from r1grpo import Loss, Model, ModelConfig

PROMPTS = [[3, 4, 5], [6], [7, 8]]


@pytest.fixture(scope="module")
def moe() -> Model:
    return make("moe")


def test_top_level_names() -> None:
    for name in ("Model", "ModelConfig", "set_num_threads"):
        assert name in r1grpo.__all__ and hasattr(r1grpo, name)


# ---- log-probs -----------------------------------------------------------------------------------


def test_logprobs_pair_by_ratio(moe: Model) -> None:
    prompts, completions = batch(prompts=(5, 1, 30), ratio=2)
    out = moe.logprobs(prompts, completions)
    assert len(out) == 6
    for i, (logp, completion) in enumerate(zip(out, completions, strict=True)):
        assert logp.dtype == np.float32 and logp.shape == (len(completion),)
        assert bits(moe.logprobs([prompts[i // 2]], [completion])) == bits([logp])
    assert out[1].shape == (0,)
    assert moe.logprobs([], []) == [] == moe.logprobs(prompts, [])
    assert [a.shape for a in moe.logprobs(prompts, [[]] * 3)] == [(0,)] * 3


# ---- gradients -----------------------------------------------------------------------------------


def gradient(model: Model, call) -> tuple[Loss, dict[str, np.ndarray]]:
    model.zero_grad()
    loss = call()
    return loss, model.grad_dict()


def test_sft_weights_and_totals(moe: Model) -> None:
    prompts, completions = batch(prompts=(5, 9), ratio=2)
    tokens = sum(map(len, completions))
    loss, plain = gradient(moe, lambda: moe.sft_gradient(prompts, completions))
    logp = np.concatenate(moe.logprobs(prompts, completions))
    assert float(loss) == pytest.approx(-logp.astype(float).sum() / tokens, rel=1e-6)
    assert loss.tokens == tokens and bits(loss.logprobs) == bits(moe.logprobs(prompts, completions))

    ones = [np.ones(len(c)) for c in completions]
    for weights in ([1] * 4, ones, [1.0, ones[1], 1, ones[3].tolist()], np.ones(4)):
        same, grads = gradient(moe, lambda w=weights: moe.sft_gradient(prompts, completions, w))
        assert bits(grads.values()) == bits(plain.values()) and float(same) == float(loss)
    _, grads = gradient(moe, lambda: moe.sft_gradient(prompts, completions, total_tokens=tokens))
    assert bits(grads.values()) == bits(plain.values())
    # the default total is the sum of the weights: a common factor cancels (2: exactly)
    _, grads = gradient(moe, lambda: moe.sft_gradient(prompts, completions, [2.0] * 4))
    assert bits(grads.values()) == bits(plain.values())
    half, grads = gradient(
        moe, lambda: moe.sft_gradient(prompts, completions, total_tokens=2 * tokens))
    assert float(half) == pytest.approx(float(loss) / 2, rel=1e-6)
    for name, g in grads.items():
        np.testing.assert_allclose(2 * g, plain[name], rtol=1e-5, atol=1e-7)


def test_masked_tokens_carry_nothing(moe: Model) -> None:
    prompts, completions = [[3, 4]], [[5, 6, 7]]
    masked, grads = gradient(moe, lambda: moe.sft_gradient(prompts, completions, [[1, 1, 0]]))
    cut, want = gradient(moe, lambda: moe.sft_gradient(prompts, [[5, 6]]))
    assert masked.tokens == 2 and float(masked) == float(cut)
    for name, g in grads.items():
        np.testing.assert_array_equal(g, want[name], err_msg=name)
    nothing, grads = gradient(moe, lambda: moe.sft_gradient(prompts, completions, [0]))
    assert (float(nothing), nothing.tokens) == (0.0, 0)
    assert not any(g.any() for g in grads.values())
    nothing, grads = gradient(moe, lambda: moe.sft_gradient(prompts, [[]], total_tokens=3))
    assert float(nothing) == 0.0 and not any(g.any() for g in grads.values())


def test_calls_add_up_and_zero_grad_clears(moe: Model) -> None:
    prompts, completions = batch(prompts=(5, 9), ratio=1)
    _, once = gradient(moe, lambda: moe.sft_gradient(prompts, completions))
    moe.sft_gradient(prompts, completions)
    for name, g in moe.grad_dict().items():
        np.testing.assert_allclose(g, 2 * once[name], rtol=1e-5, atol=1e-6)
    moe.zero_grad()
    assert not any(g.any() for g in moe.grad_dict().values())


def test_a_cleared_gradient_is_that_of_a_new_model(moe: Model) -> None:
    """Whether it was read, stepped with or met by an ordinary pass since zero_grad; without the MTP
    module's pass, whose matrices no product meets then."""
    prompts, completions = batch(prompts=(5, 9), ratio=1)
    _, want = gradient(moe.clone(), lambda: None)
    assert not any(g.any() for g in want.values())
    fresh = moe.clone()
    fresh.sft_gradient(prompts, completions)
    want = fresh.grad_dict()
    for between in (lambda m: None, Model.grad_dict, lambda m: m.update(0.0)):
        model = moe.clone()
        model.sft_gradient(prompts[::-1], completions, mtp_coef=0.3)
        model.zero_grad()
        between(model)
        model.sft_gradient(prompts, completions)
        assert bits(model.grad_dict().values()) == bits(want.values())
        model.zero_grad()
        assert model.update(0.0) == 0.0


def test_policy_gradient_reports_a_loss(moe: Model) -> None:
    out = moe.generate(PROMPTS, 2, max_new_tokens=15, seed=4)
    options = dict(advantages=[1, -1, 0.5, -0.5, 2, -2], weights=[1.0] * 6)
    loss = moe.policy_gradient(PROMPTS, out.completion_ids, old_logprobs=out.logprobs, **options)
    tokens = sum(map(len, out.completion_ids))
    assert isinstance(loss, Loss) and loss.tokens == tokens
    assert bits(loss.logprobs) == bits(out.logprobs)
    sums = zip(options["advantages"], out.completion_ids, strict=True)
    assert float(loss) == pytest.approx(-sum(a * len(c) for a, c in sums) / tokens, rel=1e-5)
    assert loss.stats["ratio_min"] == loss.stats["ratio_max"] == 1.0
    assert loss.stats["clip_low"] == loss.stats["clip_high"] == 0.0
    assert loss.stats["logp_gap_tokens"] == tokens and loss.stats["entropy"] > 0
    low = [logp - 0.5 for logp in out.logprobs]  # ratio e^0.5: clipped where the advantage is positive
    loss = moe.policy_gradient(PROMPTS, out.completion_ids, old_logprobs=low, **options)
    positive = sum(len(c) for a, c in zip(options["advantages"], out.completion_ids, strict=True)
                   if a > 0)
    assert loss.stats["clip_high"] == pytest.approx(positive / tokens)
    wide = moe.policy_gradient(PROMPTS, out.completion_ids, old_logprobs=low, epsilon_high=1.0,
                               **options)
    assert wide.stats["clip_high"] == 0.0
    assert wide.stats["ratio_max"] == pytest.approx(math.exp(0.5), rel=1e-5)
    kl = moe.policy_gradient(PROMPTS, out.completion_ids, old_logprobs=out.logprobs, beta=0.1,
                             ref_logprobs=low, **options)
    assert kl.stats["kl"] == pytest.approx(math.exp(-0.5) + 0.5 - 1, rel=1e-4)
    moe.zero_grad()


def test_mtp_in_rl_leaves_the_trunk_alone(moe: Model) -> None:
    out = moe.generate(PROMPTS, 2, max_new_tokens=15, seed=4)
    options = dict(advantages=[1, -1, 0.5, -0.5, 2, -2], weights=[1.0] * 6,
                   old_logprobs=out.logprobs)

    def run(**extra) -> tuple[Loss, dict[str, np.ndarray]]:
        return gradient(moe, lambda: moe.policy_gradient(PROMPTS, out.completion_ids, **options,
                                                         **extra))
    _, without = run()
    detached, with_mtp = run(mtp_coef=0.3)
    _, attached = run(mtp_coef=0.3, mtp_detach=False)
    module = {k for k in without if k.startswith("model.layers.3.")}
    assert "model.layers.3.eh_proj.weight" in module
    for name, g in without.items():
        if name in module:
            assert not g.any() and with_mtp[name].any(), name
        else:
            assert with_mtp[name].tobytes() == g.tobytes(), name
    assert any(attached[k].tobytes() != without[k].tobytes() for k in without.keys() - module)
    assert 0.0 <= detached.stats["mtp_accept"] <= 1.0 and detached.stats["mtp_loss"] > 0
    moe.zero_grad()


def test_router_bias_moves_towards_balance_and_rests_in_rl() -> None:
    """Experts 0 and 1 start with a bias that takes every token; scores lie in (0, 1), so once the
    gap of the biases is below 1 the others have tokens too."""
    model = make("moe")
    state = model.state_dict()
    biases = [k for k in state if k.endswith("e_score_correction_bias")]
    assert len(biases) == 3
    for name in biases:
        state[name][:] = [2.5, 2.5, 0, 0, 0, 0]
    model.load_state_dict(state)
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, V, 60).tolist() for _ in range(4)]
    for step in range(30):
        model.zero_grad()
        model.sft_gradient([r[:1] for r in rows], [r[1:] for r in rows], mtp_coef=0.1)
        model.update_router_bias(0.125)
        if step == 0:
            for name in biases:
                assert model.state_dict()[name].tolist() == [2.375, 2.375, *[0.125] * 4]
    for name in biases:
        bias = model.state_dict()[name]
        assert bias[:2].min() - bias[2:].max() < 1, name

    frozen = bits(model.state_dict()[k] for k in biases)
    out = model.generate(PROMPTS, 2, max_new_tokens=15)
    model.policy_gradient(PROMPTS, out.completion_ids, advantages=[1, -1] * 3, weights=[1] * 6,
                          old_logprobs=out.logprobs)
    model.update(0.01, weight_decay=0.1)
    assert bits(model.state_dict()[k] for k in biases) == frozen


# ---- update --------------------------------------------------------------------------------------


def test_update_returns_the_norm_and_leaves_gradients_alone(moe: Model) -> None:
    model = moe.clone()
    prompts, completions = batch(prompts=(5, 9), ratio=1)
    model.sft_gradient(prompts, completions)
    before, weights = model.grad_dict(), bits(model.state_dict().values())
    norm = model.update(1e-3)
    squares = sum(float((g.astype(np.float64) ** 2).sum()) for g in before.values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-6) and isinstance(norm, float)
    assert bits(model.grad_dict().values()) == bits(before.values())
    assert bits(model.state_dict().values()) != weights
    assert model.optimizer_state()["step"] == 1


def test_a_norm_that_is_not_finite_changes_nothing(moe: Model) -> None:
    model = moe.clone()
    prompts, completions = batch(prompts=(5, 9), ratio=1)
    model.sft_gradient(prompts, completions)
    model.update(1e-3)
    weights, memory = bits(model.state_dict().values()), bits(model.optimizer_state().values())
    model.sft_gradient(prompts, completions, weights=[3e38, 3e38], total_tokens=1e-6)
    with pytest.raises(FloatingPointError, match="weights are unchanged"):
        model.update(1e-3)
    assert bits(model.state_dict().values()) == weights
    assert bits(model.optimizer_state().values()) == memory
    model.zero_grad()
    model.sft_gradient(prompts, completions)
    assert math.isfinite(model.update(1e-3))


def test_optimizer_state_round_trip(moe: Model) -> None:
    prompts, completions = batch(prompts=(5, 9), ratio=1)
    results = []
    for resume in (False, True):
        model = moe.clone()
        for i in range(4):
            if resume and i == 2:
                weights, memory = model.state_dict(), model.optimizer_state()
                model = Model(moe.config, seed=99)
                model.load_state_dict(weights)
                model.load_optimizer_state(memory)
            model.zero_grad()
            model.sft_gradient(prompts, completions)
            model.update(0.01)
        results.append(bits(model.state_dict().values()))
    assert results[0] == results[1]
    model.reset_optimizer()
    assert not any(a.any() for a in model.optimizer_state().values())


# ---- weights and files ---------------------------------------------------------------------------


def test_random_start_depends_on_the_seed_alone() -> None:
    config = ModelConfig.tiny_dense(vocab_size=64)
    first = bits(Model(config).state_dict().values())
    assert bits(Model(config, seed=0, device="cpu", dtype="float32").state_dict().values()) == first
    assert bits(Model(config.to_dict(), 0).state_dict().values()) == first
    assert bits(Model(config, seed=1).state_dict().values()) != first


def test_state_dict_is_a_copy_with_hugging_face_names() -> None:
    """Names and shapes of DeepSeek-V3's and Qwen2's published files."""
    config = ModelConfig.tiny_moe(
        vocab_size=64, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, q_lora_rank=40,
        kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=32, n_routed_experts=12,
        num_experts_per_tok=2, moe_intermediate_size=48, n_shared_experts=1, intermediate_size=192,
        first_k_dense_replace=1, num_nextn_predict_layers=1, tie_word_embeddings=True)
    shapes = {k: v.shape for k, v in Model(config).state_dict().items()}
    attention = {
        "input_layernorm.weight": (128,), "post_attention_layernorm.weight": (128,),
        "self_attn.q_a_proj.weight": (40, 128), "self_attn.q_a_layernorm.weight": (40,),
        "self_attn.q_b_proj.weight": (128, 40), "self_attn.kv_a_proj_with_mqa.weight": (40, 128),
        "self_attn.kv_a_layernorm.weight": (32,), "self_attn.kv_b_proj.weight": (224, 32),
        "self_attn.o_proj.weight": (128, 128)}
    moe = {"mlp.gate.weight": (12, 128), "mlp.gate.e_score_correction_bias": (12,)}
    for part, shape in (("gate", (48, 128)), ("up", (48, 128)), ("down", (128, 48))):
        moe[f"mlp.shared_experts.{part}_proj.weight"] = shape
        moe |= {f"mlp.experts.{e}.{part}_proj.weight": shape for e in range(12)}
    dense = {"mlp.gate_proj.weight": (192, 128), "mlp.up_proj.weight": (192, 128),
             "mlp.down_proj.weight": (128, 192)}
    mtp = {"enorm.weight": (128,), "hnorm.weight": (128,), "eh_proj.weight": (128, 256),
           "shared_head.norm.weight": (128,)}
    want = {"model.embed_tokens.weight": (64, 128), "model.norm.weight": (128,)}
    for i, extra in enumerate((dense, moe, moe | mtp)):
        want |= {f"model.layers.{i}.{k}": s for k, s in (attention | extra).items()}
    assert shapes == want

    model = Model(ModelConfig.tiny_dense(
        vocab_size=64, hidden_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=256, attention_bias=True, tie_word_embeddings=False))
    layer = {f"self_attn.{x}_proj.{y}": (n, 96)[:2 if y == "weight" else 1]
             for x, n in (("q", 96), ("k", 48), ("v", 48)) for y in ("weight", "bias")}
    layer |= {"self_attn.o_proj.weight": (96, 96), "mlp.gate_proj.weight": (256, 96),
              "mlp.up_proj.weight": (256, 96), "mlp.down_proj.weight": (96, 256),
              "input_layernorm.weight": (96,), "post_attention_layernorm.weight": (96,)}
    want = {f"model.layers.0.{k}": s for k, s in layer.items()}
    want |= {"model.embed_tokens.weight": (64, 96), "model.norm.weight": (96,),
             "lm_head.weight": (64, 96)}
    state = model.state_dict()
    assert {k: v.shape for k, v in state.items()} == want
    assert {v.dtype for v in state.values()} == {np.dtype(np.float32)}
    state["lm_head.weight"][:] = 0
    assert model.state_dict()["lm_head.weight"].any()


@pytest.mark.parametrize("name", sorted(configs()))
def test_save_and_load_keep_every_bit(name: str, tmp_path) -> None:
    model = make(name)
    model.config.extra["my_note"] = {"kept": [1, 2]}
    model.save_pretrained(tmp_path / "a")
    files = {"config.json", "generation_config.json", "model.safetensors"}
    if model.config.num_nextn_predict_layers:
        files |= {"mtp.safetensors", "model.safetensors.index.json"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == files
    again = Model.from_pretrained(tmp_path / "a", device="cpu", dtype="float32")
    assert replace(again.config, extra=model.config.extra) == model.config
    assert again.config.extra.keys() - model.config.extra == {"architectures", "dtype"}
    assert again.config.extra["my_note"] == {"kept": [1, 2]}
    assert json.loads((tmp_path / "a/config.json").read_text())["my_note"] == {"kept": [1, 2]}
    state = model.state_dict()
    assert list(again.state_dict()) == list(state)
    assert bits(again.state_dict().values()) == bits(state.values())
    want = model.generate(PROMPTS, 2, max_new_tokens=8)
    assert bits(again.generate(PROMPTS, 2, max_new_tokens=8).logprobs) == bits(want.logprobs)
    again.save_pretrained(tmp_path / "a")  # over itself
    third = Model.from_pretrained(str(tmp_path / "a"))
    assert bits(third.state_dict().values()) == bits(state.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_load_state_dict_takes_float_arrays_and_shared_copies(moe: Model) -> None:
    state = moe.state_dict()
    other = Model(moe.config, seed=5)
    other.load_state_dict({k: v.astype(np.float64)[...] for k, v in state.items()}
                          | {"lm_head.weight": state["model.embed_tokens.weight"]})
    assert bits(other.state_dict().values()) == bits(state.values())
