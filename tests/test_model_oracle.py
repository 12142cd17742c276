"""The whole model against the float64 oracle: log-probs, losses, and the gradient of every parameter."""

from __future__ import annotations

import numpy as np
import pytest

from models import batch, configs, make
from r1grpo.model import Model
from r1grpo.model_config import ModelConfig
from reference import Reference

NAMES = sorted(configs())


def oracle(model: Model) -> Reference:
    return Reference(model.config.to_dict(), model.state_dict())


def assert_gradients(model: Model, expected: dict[str, np.ndarray], tolerance: float = 2e-4) -> None:
    """Relative error of every tensor, in the norm of that tensor plus a floor from the whole."""
    got = model.grad_dict()
    assert set(got) == set(expected)
    scale = max(np.abs(g).max() for g in expected.values())
    assert scale > 1e-3, "the batch gives no gradient to speak of"
    for name, want in expected.items():
        error = np.abs(got[name] - want).max()
        assert error <= tolerance * (np.abs(want).max() + 1e-3 * scale), (name, error)


def assert_margin(reference: Reference) -> None:
    assert reference.margin > 1e-5, "two experts are too close: choose another seed"


SAMPLINGS = [{"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1},
             {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02}]


@pytest.mark.parametrize("name, sampling", [
    *((name, {}) for name in NAMES), *((name, how) for name in ("moe", "dense") for how in SAMPLINGS)])
def test_logprobs(name: str, sampling: dict) -> None:
    model = make(name)
    reference = oracle(model)
    prompts, completions = batch()
    got = model.logprobs(prompts, completions, **sampling)
    for i, completion in enumerate(completions):
        if completion:
            want = reference.logprobs(prompts[i // 2], completion, **sampling)
            np.testing.assert_allclose(got[i], want, atol=5e-5, rtol=2e-5)
        else:
            assert got[i].shape == (0,)
    assert_margin(reference)


@pytest.mark.parametrize("name", NAMES)
def test_sft_gradient(name: str) -> None:
    model = make(name)
    reference = oracle(model)
    prompts, completions = batch()
    rng = np.random.default_rng(1)
    weights = [rng.integers(0, 3, len(c)).astype(np.float32) / 2 for c in completions]
    extra = {}
    if model.config.num_nextn_predict_layers:
        extra["mtp_coef"] = 0.3
    if model.config.n_routed_experts:
        extra["balance_coef"] = 0.05
    model.zero_grad()
    loss = model.sft_gradient(prompts, completions, weights, **extra)
    want = reference.loss_sft(prompts, completions, weights, **extra)
    assert float(loss) == pytest.approx(want.loss, rel=1e-5)
    assert loss.tokens == sum(int((w != 0).sum()) for w in weights)
    assert_gradients(model, want.gradients)
    assert_margin(reference)


@pytest.mark.parametrize("name, variant", [
    *((name, "plain") for name in NAMES),
    *((name, "everything") for name in ("moe", "dense", "dense_mtp"))])
def test_policy_gradient(name: str, variant: str) -> None:
    model = make(name)
    reference = oracle(model)
    prompts, completions = batch()
    rng = np.random.default_rng(2)
    current = model.logprobs(prompts, completions)
    old = [c + 0.15 * rng.standard_normal(len(c)).astype(np.float32) for c in current]
    options = dict(advantages=[1.0, -0.5, 0.7, -1.2, 0.0, 2.0], old_logprobs=old,
                   weights=[np.full(len(c), 1 / (6 * max(1, len(c))), np.float32)
                            for c in completions], epsilon=0.1, epsilon_high=0.2)
    if variant == "everything":
        options |= dict(ref_logprobs=[c + 0.3 * rng.standard_normal(len(c)).astype(np.float32)
                                      for c in current], beta=0.2, entropy_coef=0.05,
                        temperature=0.8, top_k=20, total_tokens=0.7)
        options["weights"][3][:] = 0.0
        if model.config.num_nextn_predict_layers:
            options |= dict(mtp_coef=0.2, mtp_detach=name == "moe")
    model.zero_grad()
    loss = model.policy_gradient(prompts, completions, **options)
    want = reference.loss_policy(prompts, completions, **options)
    assert float(loss) == pytest.approx(want.loss, rel=2e-4, abs=2e-6)
    assert_gradients(model, want.gradients, 5e-4)
    assert_margin(reference)


@pytest.mark.parametrize("options, theirs", [
    ({"loss": "cispo", "epsilon_high": 1.1}, {"form": "cispo", "epsilon_high": 1.1}),
    ({"delta": 1.15}, {"delta": 1.15}),
    ({"importance_sampling_level": "sequence", "epsilon": 0.01},
     {"level": "sequence", "epsilon": 0.01}),
    ({"beta": 0.3, "kl_estimator": "k2"}, {"beta": 0.3, "kl": "k2"}),
    ({"beta": 0.3, "kl_estimator": "k1", "use_bias_correction_kl": True},
     {"beta": 0.3, "kl": "k1", "kl_ratio": True})])
def test_other_policy_losses(options: dict, theirs: dict) -> None:
    model = make("dense")
    reference = oracle(model)
    prompts, completions = batch()
    rng = np.random.default_rng(6)
    current = model.logprobs(prompts, completions)
    old, ref = ([c + 0.15 * rng.standard_normal(len(c)).astype(np.float32) for c in current]
                for _ in range(2))
    common = dict(advantages=[1.0, -0.5, 0.7, -1.2, 0.0, 2.0], old_logprobs=old, ref_logprobs=ref,
                  weights=[np.full(len(c), 1 / (6 * max(1, len(c))), np.float32)
                           for c in completions], total_tokens=1.0)
    model.zero_grad()
    loss = model.policy_gradient(prompts, completions, **common, **options)
    want = reference.loss_policy(prompts, completions, **common, **theirs)
    assert float(loss) == pytest.approx(want.loss, rel=2e-4, abs=2e-6)
    assert_gradients(model, want.gradients, 5e-4)


@pytest.mark.parametrize("options, theirs", [
    ({}, {}), ({"beta": 0.3}, {"beta": 0.3}),
    ({"loss": "cispo", "epsilon_high": 1.1}, {"form": "cispo", "epsilon_high": 1.1}),
    ({"importance_sampling_level": "sequence"}, {"level": "sequence"})])
def test_truncated_importance_sampling(options: dict, theirs: dict) -> None:
    """The policy term alone gets the weights: old to sampled, cut at 1.5."""
    model = make("dense")
    reference = oracle(model)
    prompts, completions = batch()
    rng = np.random.default_rng(7)
    current = model.logprobs(prompts, completions)
    old, ref, sampled = ([c + size * rng.standard_normal(len(c)).astype(np.float32) for c in current]
                         for size in (0.05, 0.1, 0.5))
    common = dict(advantages=[1.0, -0.5, 0.7, -1.2, 0.0, 2.0], old_logprobs=old, ref_logprobs=ref,
                  sampled_logprobs=sampled, total_tokens=1.0,
                  weights=[np.full(len(c), 1 / (6 * max(1, len(c))), np.float32) for c in completions])
    model.zero_grad()
    loss = model.policy_gradient(prompts, completions, **common, importance_sampling_cap=1.5, **options)
    want = reference.loss_policy(prompts, completions, **common, cap=1.5, **theirs)
    assert float(loss) == pytest.approx(want.loss, rel=2e-4, abs=2e-6)
    assert_gradients(model, want.gradients, 5e-4)
    gaps = np.concatenate(sampled) - np.concatenate(current)
    assert loss.stats["importance_weight_max"] == 1.5 > 1.0 > loss.stats["importance_weight_min"]
    assert loss.stats["logp_gap_max"] == pytest.approx(np.abs(gaps).max(), rel=1e-4)


def test_sequence_ratios_are_one_number_a_completion() -> None:
    model = make("moe")
    prompts, completions = batch()
    logp = model.logprobs(prompts, completions)

    def ratios(shift: float) -> dict[str, float]:
        return model.policy_gradient(
            prompts, completions, advantages=[1.0] * 6, weights=[1.0] * 6,
            old_logprobs=[one - np.float32(shift) * np.arange(len(one), dtype=np.float32)
                          for one in logp],
            importance_sampling_level="sequence", total_tokens=1.0).stats
    assert ratios(0.0)["ratio_min"] == ratios(0.0)["ratio_max"] == 1.0  # exactly, where log p is old
    longest = max(len(one) for one in completions)
    stats = ratios(0.01)
    assert stats["ratio_max"] == pytest.approx(np.exp(0.01 * (longest - 1) / 2), rel=1e-5)
    assert stats["logp_gap_max"] == pytest.approx(0.01 * (longest - 1), rel=1e-4)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
@pytest.mark.parametrize("name", ["moe", "dense"])
def test_reward_gradient(name: str, kind: str) -> None:
    model = make(name).add_score_head(seed=3)
    reference = oracle(model)
    rng = np.random.default_rng(4)
    sequences = [rng.integers(0, 40, n).tolist() for n in (9, 70, 1, 33)]
    labels = [1.0, 0.0, 1.0, 0.0] if kind == "pointwise" else None
    np.testing.assert_allclose(model.score(sequences), reference.score(sequences), atol=2e-5)
    model.zero_grad()
    loss = model.reward_gradient(sequences, kind, labels)
    want = reference.loss_reward(sequences, kind, labels)
    assert float(loss) == pytest.approx(want.loss, rel=1e-5)
    assert_gradients(model, want.gradients)


def test_gradient_by_central_differences() -> None:
    """The float32 engine's own loss along a random direction agrees with its gradient. Dense: a step
    of any size may change a MoE's experts, and its loss jumps there."""
    model = make("dense_mtp", seed=5)
    prompts, completions = batch(seed=5)
    model.zero_grad()
    model.sft_gradient(prompts, completions, mtp_coef=0.3)
    gradients, state = model.grad_dict(), model.state_dict()
    rng = np.random.default_rng(6)
    direction = {k: rng.standard_normal(g.shape) * np.abs(state[k]).mean() for k, g in gradients.items()}
    slope = sum(float((direction[k] * g).sum()) for k, g in gradients.items())
    values = []
    for h in (3e-4, -3e-4):
        moved = {k: (s + h * direction[k]).astype(np.float32) if k in direction else s
                 for k, s in state.items()}
        model.load_state_dict(moved)
        values.append(float(model.sft_gradient(prompts, completions, mtp_coef=0.3)))
    assert (values[0] - values[1]) / 6e-4 == pytest.approx(slope, rel=0.02)


def test_update_is_adamw() -> None:
    """Three steps with clipping and decay against the oracle's AdamW on the engine's own gradients."""
    from reference_rl import adamw, clip_scale, global_norm
    model = make("dense")
    prompts, completions = batch()
    state = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    m = {k: np.zeros_like(v) for k, v in state.items()}
    v = {k: np.zeros_like(x) for k, x in state.items()}
    for step in range(1, 4):
        model.zero_grad()
        model.sft_gradient(prompts, completions)
        grads = {k: g.astype(np.float64) for k, g in model.grad_dict().items()}
        norm = model.update(0.01, betas=(0.9, 0.95), weight_decay=0.1, max_grad_norm=0.5)
        want = global_norm(list(grads.values()))
        assert norm == pytest.approx(want, rel=1e-6)
        assert norm > 0.5, "clipping is not exercised"
        scale = clip_scale(want, 0.5)
        for k in state:
            decay = 0.1 if state[k].ndim == 2 else 0.0
            state[k], m[k], v[k] = adamw(state[k], grads[k] * scale, m[k], v[k], step, learning_rate=0.01,
                                         weight_decay=decay)
        for k, array in model.state_dict().items():
            np.testing.assert_allclose(array, state[k], rtol=2e-4, atol=2e-5, err_msg=k)


def test_a_shared_matrix_is_updated_in_parts() -> None:
    """More rows than update.c adds up at a time; the last part is a short one."""
    from reference_rl import adamw, global_norm
    model = Model(ModelConfig(vocab_size=9001, hidden_size=8, num_attention_heads=2, num_hidden_layers=1,
                              intermediate_size=8, max_position_embeddings=64,
                              tie_word_embeddings=True, initializer_range=0.3), seed=2)
    ids = np.random.default_rng(3).integers(0, 9001, (2, 40)).tolist()
    model.sft_gradient([row[:1] for row in ids], [row[1:] for row in ids])
    before = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    grads = {k: g.astype(np.float64) for k, g in model.grad_dict().items()}
    assert np.abs(grads["model.embed_tokens.weight"][8192:]).max() > 0
    norm = model.update(0.01, max_grad_norm=0.0)
    assert norm == pytest.approx(global_norm(list(grads.values())), rel=1e-6)
    for k, array in model.state_dict().items():
        zero = np.zeros_like(before[k])
        want = adamw(before[k], grads[k], zero, zero, 1, learning_rate=0.01, weight_decay=0.0)[0]
        np.testing.assert_allclose(array, want, rtol=2e-4, atol=2e-5, err_msg=k)
