"""The oracle's whole model: every gradient by central differences, and what must not matter.

Two small models between them reach every branch: a DeepSeek-V3 one (MLA, dense and MoE layers,
grouped routing with a selection bias, shared experts, MTP, untied head) and a dense one (GQA,
biases, q/k norms, tied head).  Nothing here uses the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reference import SELECTION_BIAS, Reference, Result

MOE: dict[str, Any] = {
    "vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 10, "moe_intermediate_size": 6, "first_k_dense_replace": 1,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
    "n_shared_experts": 1, "routed_scaling_factor": 1.5, "kv_lora_rank": 5, "q_lora_rank": 6,
    "qk_nope_head_dim": 3, "qk_rope_head_dim": 4, "v_head_dim": 5, "rope_theta": 100.0}
DENSE: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 7, "rms_norm_eps": 1e-5}
PROMPTS = [[1, 2, 3], [4]]
COMPLETIONS = [[6, 7, 8, 3], [9], [10, 2], [], [1, 1, 5], [3, 0]]  # three for each prompt
WEIGHTS = [[0.5, 1.0, 0.0, 2.0], [1.0], [0.3, 0.7], [], [1.0, 1.0, 0.1], [0.0, 0.0]]


def ffn_shapes(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.gate_proj.weight": (hidden, width), f"{name}.up_proj.weight": (hidden, width),
            f"{name}.down_proj.weight": (width, hidden)}


def moe_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    wide, heads, rot = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"]
    query, key_value = c["qk_nope_head_dim"] + rot, c["qk_nope_head_dim"] + c["v_head_dim"]
    rank, low = c["kv_lora_rank"], c["q_lora_rank"]
    mtp = c["num_hidden_layers"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], wide), "model.norm.weight": (wide,),
           "lm_head.weight": (c["vocab_size"], wide), "score.weight": (1, wide),
           f"model.layers.{mtp}.enorm.weight": (wide,), f"model.layers.{mtp}.hnorm.weight": (wide,),
           f"model.layers.{mtp}.eh_proj.weight": (wide, 2 * wide),
           f"model.layers.{mtp}.shared_head.norm.weight": (wide,)}
    for layer in range(mtp + 1):
        name = f"model.layers.{layer}"
        attn, mlp = f"{name}.self_attn", f"{name}.mlp"
        out |= {f"{name}.input_layernorm.weight": (wide,),
                f"{name}.post_attention_layernorm.weight": (wide,),
                f"{attn}.kv_a_proj_with_mqa.weight": (rank + rot, wide),
                f"{attn}.kv_a_layernorm.weight": (rank,),
                f"{attn}.kv_b_proj.weight": (heads * key_value, rank),
                f"{attn}.o_proj.weight": (wide, heads * c["v_head_dim"])}
        if low:
            out |= {f"{attn}.q_a_proj.weight": (low, wide), f"{attn}.q_a_layernorm.weight": (low,),
                    f"{attn}.q_b_proj.weight": (heads * query, low)}
        else:
            out[f"{attn}.q_proj.weight"] = (heads * query, wide)
        if layer < c["first_k_dense_replace"]:
            out |= ffn_shapes(mlp, wide, c["intermediate_size"])
            continue
        experts = c["n_routed_experts"]
        out |= {f"{mlp}.gate.weight": (experts, wide), f"{mlp}.gate.{SELECTION_BIAS}": (experts,)}
        for name in [*(f"experts.{e}" for e in range(experts)), "shared_experts"]:
            out |= ffn_shapes(f"{mlp}.{name}", wide, c["moe_intermediate_size"])
    return out


def dense_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    wide, head = c["hidden_size"], c["head_dim"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], wide), "model.norm.weight": (wide,)}
    for layer in range(c["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        attn = f"{name}.self_attn"
        out |= {f"{name}.input_layernorm.weight": (wide,),
                f"{name}.post_attention_layernorm.weight": (wide,),
                f"{attn}.q_norm.weight": (head,), f"{attn}.k_norm.weight": (head,),
                f"{attn}.o_proj.weight": (wide, c["num_attention_heads"] * head)}
        for part, heads in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"]),
                            ("v", c["num_key_value_heads"])):
            out |= {f"{attn}.{part}_proj.weight": (heads * head, wide),
                    f"{attn}.{part}_proj.bias": (heads * head,)}
        out |= ffn_shapes(f"{name}.mlp", wide, c["intermediate_size"])
    return out


def random_model(config: dict[str, Any], seed: int = 3) -> Reference:
    rng = np.random.default_rng(seed)
    shapes = moe_shapes(config) if "kv_lora_rank" in config else dense_shapes(config)
    state = {name: (0.5 if len(shape) == 2 else 0.2) * rng.standard_normal(shape)
             + ("norm" in name) for name, shape in shapes.items()}
    return Reference(config, state)


def check_gradients(model: Reference, loss: Callable[[], Result], unreached: tuple[str, ...] = (),
                    step: float = 1e-5) -> None:
    """The steepest direction and one single element of every parameter that the loss reaches.

    An expert that no token chose must have the gradient 0; two of every six may be idle here.
    """
    result = loss()
    assert model.margin > 1e-4  # no difference quotient crosses a routing choice
    idle = 0
    rng = np.random.default_rng(5)
    for name, grad in result.gradients.items():
        data = model.params[name].data
        if name.startswith(unreached):
            assert not grad.any(), name
            continue
        size = np.linalg.norm(grad)
        if ".experts." in name and size == 0.0:
            idle += 1
        else:
            assert size > 1e-6, f"the loss does not reach {name}"
        directions = [grad / (size or 1.0), *np.zeros((1, *grad.shape))]
        for direction in directions[1:]:
            direction.ravel()[rng.integers(direction.size)] = 1.0
        for direction in directions:
            kept = data.copy()
            data += step * direction
            above = loss().loss
            data[...] = kept - step * direction
            below = loss().loss
            data[...] = kept
            numeric = (above - below) / (2 * step)
            np.testing.assert_allclose((grad * direction).sum(), numeric, rtol=1e-6, atol=1e-8,
                                       err_msg=name)
    assert idle <= sum(".experts." in name for name in result.gradients) / 3


def old_and_reference(model: Reference) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-probs off the model's, so that ratios leave the clip range; NaN where masked."""
    rng = np.random.default_rng(11)
    own = [model.logprobs(PROMPTS[i // 3], c) for i, c in enumerate(COMPLETIONS)]

    def disturb(x: np.ndarray, w: list[float]) -> np.ndarray:
        return np.where(np.array(w) == 0.0, np.nan, x + 0.3 * rng.standard_normal(len(x)))
    return ([disturb(*pair) for pair in zip(own, WEIGHTS)],
            [disturb(*pair) for pair in zip(own, WEIGHTS)])


# ---- gradients

def test_sft_gradients_moe():
    model = random_model(MOE)
    check_gradients(model, lambda: model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS, 9.0, mtp_coef=0.3,
                                                  balance_coef=0.5), ("score.",))


def test_sft_gradients_moe_without_q_lora_or_mtp():
    model = random_model({**MOE, "q_lora_rank": None, "scoring_func": "softmax",
                          "norm_topk_prob": False})
    check_gradients(model, lambda: model.loss_sft(PROMPTS, COMPLETIONS),
                    ("score.", "model.layers.2."))


@pytest.mark.parametrize("rope", [None, {"type": "yarn", "factor": 8.0, "attention_factor": 1.3,
                                         "original_max_position_embeddings": 16}])
def test_sft_gradients_dense(rope):
    model = random_model({**DENSE, "rope_scaling": rope})
    check_gradients(model, lambda: model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 8, "top_p": 0.9}])
def test_policy_gradients(sampling):
    model = random_model(DENSE)
    old, ref = old_and_reference(model)
    check_gradients(model, lambda: model.loss_policy(
        PROMPTS, COMPLETIONS, advantages=[1.0, -1.0, 0.5, 2.0, -0.7, 1.0], weights=WEIGHTS,
        total_tokens=1.0, old_logprobs=old, ref_logprobs=ref, epsilon=0.2, epsilon_high=0.28,
        beta=0.1, entropy_coef=0.05, **sampling))


@pytest.mark.parametrize("kind, labels", [("pairwise", None), ("pointwise", [1.0, 0.0, 0.0, 1.0])])
def test_reward_gradients(kind, labels):
    model = random_model(MOE)
    sequences = [[1, 2, 3], [1, 2, 4, 5], [7, 8], [6]]
    check_gradients(model, lambda: model.loss_reward(sequences, kind, labels),
                    ("lm_head.", "model.layers.2."))


# ---- what must hold whatever the numbers

@pytest.mark.parametrize("config", [MOE, DENSE])
def test_packing_changes_nothing(config):
    model = random_model(config)
    extra = {"mtp_coef": 0.3, "balance_coef": 0.1} if config is MOE else {}
    whole = model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS, 9.0, **extra)
    singles = [model.loss_sft([PROMPTS[i // 3]], [c], [WEIGHTS[i]], 9.0, **extra)
               for i, c in enumerate(COMPLETIONS)]
    assert whole.loss == pytest.approx(sum(s.loss for s in singles), rel=1e-12)
    for name, grad in whole.gradients.items():
        parts = sum(s.gradients[name] for s in singles)
        np.testing.assert_allclose(grad, parts, rtol=1e-9, atol=1e-12, err_msg=name)
    nll = [-model.logprobs(PROMPTS[i // 3], c) @ w for i, (c, w) in
           enumerate(zip(COMPLETIONS, map(np.array, WEIGHTS))) if c]
    assert whole.terms["main"] == pytest.approx(sum(nll) / 9.0, rel=1e-12)


@pytest.mark.parametrize("config", [MOE, DENSE])
def test_the_future_is_not_seen(config):
    model = random_model(config)
    tokens = [1, 2, 3, 4, 5, 6]
    logits = model.logits(tokens)
    np.testing.assert_allclose(model.logits(tokens[:4]), logits[:4], rtol=1e-12)
    assert np.abs(model.logits([1, 2, 9, 4, 5, 6]) - logits)[2:].min(axis=1).max() > 1e-3
    logp = logits[2:5] - np.log(np.exp(logits[2:5]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.logprobs([1, 2, 3], [4, 5, 6]), logp[[0, 1, 2], [4, 5, 6]],
                               rtol=1e-12)


def test_defaults_of_weights_and_total():
    model = random_model(DENSE)
    ones = [[1.0] * len(c) for c in COMPLETIONS]
    default = model.loss_sft(PROMPTS, COMPLETIONS)
    assert default.loss == model.loss_sft(PROMPTS, COMPLETIONS, ones, 12.0).loss
    weighted = model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS)
    total = sum(map(sum, WEIGHTS))
    assert weighted.loss == pytest.approx(model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS, total).loss)
    with pytest.raises(ValueError, match="6 completions for 4 prompts"):
        model.loss_sft(PROMPTS * 2, COMPLETIONS)


def test_first_policy_update_is_weighted_sft():
    """At a ratio of 1 the policy gradient is that of -A w log pi: an SFT loss with weights A w."""
    model = random_model(MOE)
    old = [model.logprobs(PROMPTS[i // 3], c) for i, c in enumerate(COMPLETIONS)]
    advantages = [1.0, -1.0, 0.5, 2.0, -0.7, 1.0]
    policy = model.loss_policy(PROMPTS, COMPLETIONS, advantages=advantages, weights=WEIGHTS,
                               old_logprobs=old, total_tokens=1.0)
    scaled = [a * np.array(w) for a, w in zip(advantages, WEIGHTS)]
    sft = model.loss_sft(PROMPTS, COMPLETIONS, scaled, 1.0)
    assert policy.loss == pytest.approx(-sum(w.sum() for w in scaled), rel=1e-12)
    for name, grad in policy.gradients.items():
        np.testing.assert_allclose(grad, sft.gradients[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_tied_head_adds_its_gradient_to_the_embedding():
    tied = random_model(DENSE)
    state = {name: x.data for name, x in tied.params.items()}
    untied = Reference(DENSE, {**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    a = tied.loss_sft(PROMPTS, COMPLETIONS).gradients
    b = untied.loss_sft(PROMPTS, COMPLETIONS).gradients
    np.testing.assert_allclose(a["model.embed_tokens.weight"],
                               b["model.embed_tokens.weight"] + b["lm_head.weight"], rtol=1e-12)


# ---- MTP and MLA against their own equations

def test_mtp_term_and_its_detached_gradient():
    model = random_model(MOE)
    want = 0.0
    for i, (completion, w) in enumerate(zip(COMPLETIONS, WEIGHTS)):
        prompt = PROMPTS[i // 3]
        tokens = prompt + completion
        logits = model.mtp_logits(tokens)
        for t in range(max(2, len(prompt)), len(tokens)):  # token t is told from position t - 2
            row = logits[t - 2]
            want += w[t - len(prompt)] * (np.log(np.exp(row).sum()) - row[tokens[t]])
    joint = model.loss_sft(PROMPTS, COMPLETIONS, WEIGHTS, 9.0, mtp_coef=0.3)
    assert joint.terms["mtp"] == pytest.approx(0.3 / 9.0 * want, rel=1e-12)
    old, _ = old_and_reference(model)

    def policy(**options: Any) -> Result:
        return model.loss_policy(PROMPTS, COMPLETIONS, advantages=[1.0] * 6, weights=WEIGHTS,
                                 old_logprobs=old, total_tokens=9.0, **options)
    alone, free = policy(), policy(mtp_coef=0.3)
    detached = policy(mtp_coef=0.3, mtp_detach=True)
    assert detached.loss == free.loss and free.terms["mtp"] == joint.terms["mtp"]
    for name, grad in detached.gradients.items():
        same = free if name.startswith("model.layers.2.") else alone
        np.testing.assert_allclose(grad, same.gradients[name], rtol=1e-9, atol=1e-12, err_msg=name)
    head = "lm_head.weight"
    assert np.abs(free.gradients[head] - alone.gradients[head]).max() > 1e-4


def test_mtp_input_is_next_embedding_then_hidden():
    """The right half of eh_proj alone sees h_i, hence tokens 0..i; the left alone token i + 1."""
    tokens = np.array([1, 2, 3, 4, 5])
    for hidden_only in (True, False):
        model = random_model({**MOE, "num_hidden_layers": 1})
        weight = model.params["model.layers.1.eh_proj.weight"].data
        weight[:, :8] *= not hidden_only
        weight[:, 8:] *= hidden_only
        model.params["model.layers.1.self_attn.o_proj.weight"].data[:] = 0.0  # rows stay apart
        before = model.mtp_logits(tokens)
        after = model.mtp_logits(np.where(tokens == 3, 7, tokens))
        changed = np.abs(after - before).max(axis=1) > 1e-9
        assert changed.tolist() == [False, not hidden_only, *[hidden_only] * 3]


def test_balance_term_counts_every_token():
    """A MoE layer adds about 1 a sequence, weighted by its share of the tokens, prompt too."""
    model = random_model(MOE)
    result = model.loss_sft([[1, 2, 3, 4]], [[5, 6]], total_tokens=6.0, balance_coef=1.0)
    twice = model.loss_sft([[1, 2, 3, 4]], [[5, 6]], total_tokens=3.0, balance_coef=1.0)
    assert 0.8 < result.terms["balance"] < 1.5
    assert twice.terms["balance"] == pytest.approx(2 * result.terms["balance"], rel=1e-12)
    both = model.loss_sft([[1, 2, 3, 4]], [[5, 6]], total_tokens=6.0, balance_coef=1.0,
                          mtp_coef=0.1)
    assert 1.6 < both.terms["balance"] < 3.0  # the MTP block is a MoE layer too


def test_mla_absorbed_form_agrees():
    """Scores and context in the latent space, W_UK moved to the query and W_UV to the output."""
    config = {**MOE, "num_hidden_layers": 1, "q_lora_rank": None}
    model = random_model(config)
    tokens = np.array([3, 1, 4, 1, 5])
    p = {name.removeprefix("model.layers.0."): x.data for name, x in model.params.items()}

    def norm(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * 100.0 ** (-np.arange(2) / 2))
        return np.stack([z.real, z.imag], axis=1).ravel()
    x = p["model.embed_tokens.weight"][tokens]
    h = norm(x, p["input_layernorm.weight"])
    q = (h @ p["self_attn.q_proj.weight"].T).reshape(5, 2, 7)
    down = h @ p["self_attn.kv_a_proj_with_mqa.weight"].T
    latent = norm(down[:, :5], p["self_attn.kv_a_layernorm.weight"])
    up = p["self_attn.kv_b_proj.weight"].reshape(2, 8, 5)
    keys = np.array([turn(row, j) for j, row in enumerate(down[:, 5:])])
    out = np.zeros((5, 2, 5))
    for i in range(5):
        for head in range(2):
            absorbed = q[i, head, :3] @ up[head, :3]
            scores = latent[:i + 1] @ absorbed + keys[:i + 1] @ turn(q[i, head, 3:], i)
            weight = np.exp(scores / 7 ** 0.5)
            out[i, head] = up[head, 3:] @ (weight / weight.sum() @ latent[:i + 1])
    x = x + out.reshape(5, 10) @ p["self_attn.o_proj.weight"].T
    h = norm(x, p["post_attention_layernorm.weight"])
    gate = h @ p["mlp.gate_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ p["mlp.up_proj.weight"].T)) @ \
        p["mlp.down_proj.weight"].T
    np.testing.assert_allclose(norm(x, p["model.norm.weight"]) @ p["lm_head.weight"].T,
                               model.logits(tokens.tolist()), rtol=1e-9)
