"""bfloat16: rounding, the chain of a product bit for bit on every tier, and whole models.

Values of single ops in bf16 stand beside float32's (test_matmul.py, test_attention.py), the
exactness contract in test_exactness.py.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import r1grpo.device
from models import V, batch, configs, make
from op_testing import assert_same_bits, bf16, matrix_unit, nan, normal
from r1grpo import Model, ModelConfig, _core
from r1grpo.advantage import group_advantages
from r1grpo.config import GRPOConfig
from r1grpo.grpo import GRPOTrainer
from r1grpo.tokenizer import WordTokenizer
from reference import Reference

X86 = platform.machine().lower() in ("x86_64", "amd64")
TINY = np.float32(2.0 ** -126)


@pytest.fixture
def cpu_only(device: _core.Device) -> None:
    if device.tier not in _core.tiers():
        pytest.skip("a GPU takes denormals for what they are, and 16 terms at a time")


def floats(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


# ---- rounding ------------------------------------------------------------------------------------


def test_rounding_is_to_the_nearest_with_ties_to_even(device):
    given = floats(0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7F7FFFFF, 0x7F800000,
                   0x00000001, 0x00008000, 0x80018000, 0x80000000, 0x7F800001, 0xFFFFFFFF)
    want = floats(0x3F800000, 0x3F820000, 0x3F810000, 0x3F800000, 0xBF820000, 0x7F800000, 0x7F800000,
                  0x00000000, 0x00000000, 0x80020000, 0x80000000, 0x7FC00000, 0xFFFF0000)
    x = given.reshape(1, -1).copy()
    _core.round_bf16(device, x)
    assert_same_bits([x[0]], [want])
    assert_same_bits([bf16(given)], [want])


def test_rounding_of_a_slice(device, rng):
    wide = normal(rng, 33, 40)
    want = wide.copy()
    want[:, 3:30] = bf16(want[:, 3:30])
    _core.round_bf16(device, wide[:, 3:30])
    assert_same_bits([wide], [want])


def test_the_embedding_is_what_the_head_sees(device, rng):
    table, ids = normal(rng, 40, 33), np.array([3, -1, 39], np.int32)
    y = nan(3, 33)
    _core.embed_fwd(device, y, _core.Weight(device, table, 1, "bfloat16"), ids)
    assert_same_bits([y], [np.where(ids[:, None] >= 0, bf16(table)[ids], np.float32(0))])


# ---- the chain -----------------------------------------------------------------------------------


def flush(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x).astype(np.float32)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One rounding to 24 bits, operands and results below 2^-126 as 0. The product of two bf16
    numbers is exact in float64, and so is its sum with c where rounding twice could matter."""
    with np.errstate(all="ignore"):
        total = flush(a).astype(np.float64) * flush(b) + flush(c).astype(np.float64)
        scaled = (total * 2.0 ** 64).astype(np.float32)  # with 24 bits where total is tiny
        tiny = (np.abs(total) < 2.0 ** -125) & (np.abs(scaled) < 2.0 ** -62)
        return np.where(tiny, np.copysign(0.0, total), total).astype(np.float32)


def chain(start: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """start (n, m) + a (n, K) b (K, m), ascending."""
    c = start.astype(np.float32)
    for k in range(a.shape[1]):
        c = fma(a[:, k, None], b[None, k], c)
    return c


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return fma(x, np.ones_like(x), y)


def hostile(rng: np.random.Generator, low: int, *shape: int) -> np.ndarray:
    """Numbers of 16 exponents from 2^(low - 127) on, with denormals, zeros of both signs and, where
    they are large anyway, infinities among them."""
    exponent = np.minimum(low + rng.integers(0, 16, shape), 254 + (low > 127))
    exponent[rng.random(shape) < 0.02] = 0
    sign, mantissa = rng.integers(0, 2, shape), rng.integers(0, 1 << 23, shape)
    mantissa[exponent == 255] = 0
    x = (sign << 31 | exponent << 23 | mantissa).astype(np.uint32).view(np.float32)
    x[rng.random(shape) < 0.02] = 0.0
    x[rng.random(shape) < 0.02] = -0.0
    return x


def same_but_nan(got: np.ndarray, want: np.ndarray) -> None:
    """Equal bits, NaN for NaN."""
    assert_same_bits([np.where(np.isnan(got), np.float32(7), got)],
                     [np.where(np.isnan(want), np.float32(7), want)])


# sums that cancel; fall below 2^-126; end near it; overflow
@pytest.mark.usefixtures("cpu_only")
@pytest.mark.skipif(not X86, reason="only x86 flushes denormals at no cost")
@pytest.mark.parametrize(("low", "start"), [(120, 120), (56, 0), (60, 10), (183, 240)])
@pytest.mark.parametrize(("N", "I", "O"), [(33, 2, 64), (40, 7, 90), (7, 261, 33)])
def test_a_product_is_the_flushing_chain_on_every_tier(device, rng, N, I, O, low, start):
    x, w, dy = (hostile(rng, low, *s) for s in ((N, I), (O, I), (N, O)))
    y, dx, dw = (hostile(rng, start, *s) for s in ((N, O), (N, I), (O, I)))
    weight = _core.Weight(device, w, 1, "bfloat16")
    order = matrix_unit(chain, add) if device.tier == "amx" else chain
    want_y = order(y, bf16(x), bf16(w).T)
    want_dx = order(dx, bf16(dy), bf16(w))
    want_dw = chain(dw, bf16(dy).T, bf16(x))
    _core.matmul_nt(device, y, x, weight, None, None, True)
    _core.matmul_nn(device, dx, dy, weight, None, True)
    dw_units, units = dw.copy(), np.arange(N, dtype=np.int32) // 32
    want_units = order(dw, bf16(dy).T, bf16(x))
    _core.matmul_tn(device, dw, dy, x, 1, None, "bfloat16", None, None, True)
    _core.matmul_tn(device, dw_units, dy, x, 1, None, "bfloat16", units, None, True)
    same_but_nan(dw_units, want_units)
    for got, want in ((y, want_y), (dx, want_dx), (dw, want_dw)):
        same_but_nan(got, want)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.skipif(not X86, reason="only x86 flushes denormals at no cost")
def test_padding_of_an_odd_sum_keeps_a_negative_zero(device):
    """The sum of one product -0 onto -0 is -0; a padding of 0 x 0 would make it 0. Chains that start
    from 0, as the matrix unit's do, have no such sum."""
    x, w = np.array([[0.0]], np.float32), np.array([[-1.0]], np.float32)
    minus, weight = np.array([[-0.0]], np.float32), _core.Weight(device, w, 1, "bfloat16")
    y, dw = minus.copy(), minus.copy()
    _core.matmul_nt(device, y, x, weight, None, None, True)
    _core.matmul_tn(device, dw, np.array([[-1.0]], np.float32), x, 1, None, "bfloat16", None, None, True)
    assert_same_bits([dw], [minus])
    if device.tier != "amx":
        assert_same_bits([y], [minus])


def test_a_product_leaves_denormals_to_others(device, rng):
    """The mode that flushes ends with the product: the next op sees a denormal."""
    small = np.full((600, 600), 1e-40, np.float32)
    weight = _core.Weight(device, normal(rng, 600, 600), 1, "bfloat16")
    _core.matmul_nt(device, nan(600, 600), normal(rng, 600, 600), weight, None, None, False)
    out = nan(600, 600)
    _core.add(device, out, small, small)
    assert np.all(out == small + small) and out[0, 0] > 0


# ---- whole models --------------------------------------------------------------------------------


def on_tier(monkeypatch: pytest.MonkeyPatch, tier: str, run: Callable[[], list]) -> list:
    monkeypatch.setattr(r1grpo.device, "_current", [_core.Device(2, tier)])
    return run()


def a_step() -> list[np.ndarray]:
    """Rollout, gradient and update of a model; everything that came out."""
    model = make("moe", dtype="bfloat16")
    rows, completions = batch(prompts=(5, 1, 70))
    out = model.generate(rows, 2, max_new_tokens=20, seed=1)
    model.sft_gradient(rows, completions, mtp_coef=0.3, balance_coef=0.01)
    grads = list(model.grad_dict().values())
    model.update(0.01)
    return [*out.completion_ids, *out.logprobs, *grads, *model.logprobs(rows, completions)]


def test_the_instruction_and_its_emulation_are_one_model(monkeypatch):
    """avx512 and avx512bf16 differ in nothing but who computes the products."""
    if "avx512bf16" not in _core.tiers():
        pytest.skip("this processor has no bf16 products")
    one = on_tier(monkeypatch, "avx512", a_step)
    assert_same_bits(on_tier(monkeypatch, "avx512bf16", a_step), one)


def test_a_processor_that_says_it_can_is_believed_after_a_check():
    flags = Path("/proc/cpuinfo").read_text().split() if platform.system() == "Linux" else []
    if "avx512_bf16" not in flags or "avx512" not in _core.tiers():
        pytest.skip("this processor has no bf16 products")
    assert "avx512bf16" in _core.tiers()


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_near_float32(name):
    """bf16 has 8 bits: log-probs move by some hundredths, gradients by some percent."""
    prompts, completions = batch()
    plain, half = make(name), make(name, dtype="bfloat16")
    one, two = (np.concatenate(m.logprobs(prompts, completions)) for m in (plain, half))
    assert 1e-4 < np.abs(one - two).mean() < 0.1
    for model in (plain, half):
        model.sft_gradient(prompts, completions)
    grads = [np.concatenate([g.ravel() for g in m.grad_dict().values()]) for m in (plain, half)]
    cosine = grads[0] @ grads[1] / np.linalg.norm(grads[0]) / np.linalg.norm(grads[1])
    assert 0.98 < cosine < 1.0


def test_masters_are_float32():
    """Steps below a bf16 number's spacing add up; the state dict has them."""
    model = make("dense", dtype="bfloat16")
    before = model.state_dict()
    prompts, completions = batch()
    for _ in range(3):
        model.zero_grad()
        model.sft_gradient(prompts, completions)
        model.update(1e-6, max_grad_norm=0.0)
    after = model.state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    moved = np.abs(after[name] - before[name])
    assert 0 < moved.max() < 4e-6 and (moved > 0).mean() > 0.9
    assert (bf16(after[name]) == bf16(before[name])).mean() > 0.9


@pytest.mark.parametrize("config", [ModelConfig.tiny_moe(vocab_size=V),
                                    ModelConfig.tiny_dense(vocab_size=V)])
def test_grpo_by_hand_has_no_gap(config):
    model = Model(config, seed=0, dtype="bfloat16")
    prompts = [[3, 4, 5], [6, 7]]
    for step in range(2):
        rollout = model.generate(prompts, 4, max_new_tokens=24, seed=0, step=step)
        rewards = [float(np.mean(ids % 2)) for ids in rollout.completion_ids]
        model.zero_grad()
        loss = model.policy_gradient(
            prompts, rollout.completion_ids, advantages=group_advantages(rewards, group_size=4),
            weights=[1.0] * len(rewards), old_logprobs=rollout.logprobs)
        assert loss.stats["logp_gap_max"] == 0.0
        assert model.update(1e-3) > 0.0


def test_what_makes_a_model_keeps_the_dtype(tmp_path):
    model = make("dense", dtype="bfloat16")
    rows, completions = batch()
    want = model.logprobs(rows, completions)
    assert model.clone().dtype == model.add_score_head().dtype == "bfloat16"
    assert_same_bits(model.clone().logprobs(rows, completions), want)
    model.save_pretrained(tmp_path / "model", dtype="float32")  # its own would round
    again = Model.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert_same_bits(again.logprobs(rows, completions), want)
    plain = Model.from_pretrained(tmp_path / "model")
    assert plain.dtype == "float32"
    assert_same_bits(plain.state_dict().values(), model.state_dict().values())


def test_the_router_and_the_score_head_stay_float32():
    """Weights that differ below bf16's spacing give other scores."""
    model = make("moe", dtype="bfloat16").add_score_head(seed=3)
    state = model.state_dict()
    for name in ("score.weight", "model.layers.1.mlp.gate.weight"):
        before = model.score([[1, 2, 3, 4]])
        model.load_state_dict({**state, name: state[name] * np.float32(1 + 2.0 ** -12)})
        assert model.score([[1, 2, 3, 4]]) != before, name
        model.load_state_dict(state)


@pytest.mark.parametrize("name", sorted(configs()))
def test_beside_the_oracle_that_rounds_too(name):
    """Log-probs and gradients of the float64 oracle with the same operands rounded: off by less than
    a bf16 number's spacing, 2^-7, which the oracle that rounds nothing misses. Equal but for the
    rare number that lies on the border of two."""
    model, (prompts, completions) = make(name, dtype="bfloat16"), batch()
    got = np.concatenate(model.logprobs(prompts, completions))
    model.sft_gradient(prompts, completions)
    grads = model.grad_dict()

    def errors(rounds: bool) -> tuple[float, float]:
        oracle = Reference(model.config.to_dict(), model.state_dict(), bf16=rounds)
        want = [oracle.logprobs(prompts[i // 2], c) for i, c in enumerate(completions) if c]
        expected = oracle.loss_sft(prompts, completions).gradients
        floor = 1e-3 * max(np.linalg.norm(g) for g in expected.values())
        relative = [np.linalg.norm(grads[k] - g) / (np.linalg.norm(g) + floor)
                    for k, g in expected.items() if np.any(g)]
        return float(np.abs(got - np.concatenate(want)).mean()), float(np.median(relative))
    assert max(errors(True)) < 2.0 ** -7 < min(errors(False))


@pytest.mark.parametrize("shape", [ModelConfig.tiny_moe, ModelConfig.tiny_dense])
def test_a_resumed_run_ends_in_the_same_bits(shape, tmp_path):
    """E3, and no gap at any update that is the first of its rollout."""
    tokenizer = WordTokenizer([*"abcdefgh"])
    rows = [{"prompt": p} for p in "abcdef"]

    def share(prompts, completions, completion_ids, **columns) -> list[float]:
        return [text.count("e") / (1 + len(text)) for text in completions]

    def trainer(seed: int, **options) -> GRPOTrainer:
        model = Model(shape(vocab_size=tokenizer.vocab_size), seed=seed, dtype="bfloat16")
        config = GRPOConfig(num_generations=4, per_device_train_batch_size=8, max_steps=3, seed=3,
                            steps_per_generation=2, max_completion_length=8, learning_rate=1e-3,
                            **options)
        return GRPOTrainer(model, share, config, rows, processing_class=tokenizer)
    whole = trainer(0)
    whole.train()
    assert whole.max_logprob_gap == 0.0 and whole.gap_tokens > 0
    first = trainer(0, output_dir=str(tmp_path), save_steps=1)
    next(iter(first))
    second = trainer(9, output_dir=str(tmp_path))
    second.train(resume_from_checkpoint=True)
    assert_same_bits(second.model.state_dict().values(), whole.model.state_dict().values())
