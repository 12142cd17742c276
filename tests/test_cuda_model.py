"""Whole models with device="cuda", on an emulated GPU and on a real one where there is one: the values of
the CPU to float32 rounding, and the exactness contract bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models import V, batch, configs, make
from op_testing import bits
from r1grpo import GRPOConfig, GRPOTrainer, Model

NAMES = sorted(configs())
DTYPES = ("float32", "bfloat16")
Gpu = Callable[[int], None]


def prompts(lengths: tuple[int, ...] = (1, 5, 63, 64)) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, n).tolist() for n in lengths]


def gradient(model: Model, rows: list, completions: list, old: list | None = None) -> dict[str, np.ndarray]:
    model.zero_grad()
    n = len(completions)
    model.policy_gradient(rows, completions, advantages=np.resize([1.0, -1.0], n), weights=[1.0] * n,
                          old_logprobs=old or [np.zeros(len(ids), np.float32) for ids in completions])
    return model.grad_dict()


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_cpus(gpu: Gpu, name: str) -> None:
    rows, completions = batch(prompts=(5, 1, 20), longest=12)
    cpu, cuda = make(name), make(name, device="cuda")
    for a, b in zip(cpu.logprobs(rows, completions), cuda.logprobs(rows, completions), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5)
    want, got = gradient(cpu, rows, completions), gradient(cuda, rows, completions)
    for key, array in want.items():
        size = np.sqrt(np.mean(array.astype(np.float64) ** 2)) + 1e-6
        np.testing.assert_allclose(got[key], array, rtol=2e-3, atol=2e-3 * size, err_msg=key)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["dense", "moe", "qwen3_moe"])
def test_rollout_equals_training(gpu: Gpu, name: str, dtype: str) -> None:
    """E1: the log-probs of the sampler are those of the training forward, so the first ratio is 1."""
    model, rows = make(name, dtype=dtype, device="cuda"), prompts()
    out = model.generate(rows, 2, max_new_tokens=12, seed=1, temperature=0.8)
    scored = model.logprobs(rows, out.completion_ids, temperature=0.8)
    assert bits(scored) == bits(out.logprobs) and sum(map(len, out.completion_ids)) > 40
    options = dict(advantages=np.resize([1.0, -1.0], len(out)), weights=[1.0] * len(out),
                   old_logprobs=out.logprobs, temperature=0.8)
    loss = model.policy_gradient(rows, out.completion_ids, **options)
    assert loss.stats["logp_gap_max"] == 0.0
    assert loss.stats["ratio_min"] == loss.stats["ratio_max"] == 1.0
    state = model.state_dict()  # and one bit of one weight is seen
    state["model.layers.1.self_attn.o_proj.weight"].reshape(-1).view(np.uint32)[3] ^= 1 << 16
    model.load_state_dict(state)
    assert model.policy_gradient(rows, out.completion_ids, **options).stats["logp_gap_max"] > 0.0


def test_truncated_rollout_equals_training(gpu: Gpu) -> None:
    """E1 under top-k, top-p and min-p: both sides find the same support."""
    model, rows = make("moe", device="cuda"), prompts((1, 5, 20))
    how = dict(temperature=1.1, top_k=20, top_p=0.9, min_p=0.02)
    out = model.generate(rows, 2, max_new_tokens=8, seed=1, **how)
    assert bits(model.logprobs(rows, out.completion_ids, **how)) == bits(out.logprobs)
    assert bits(model.logprobs(rows, out.completion_ids, temperature=1.1)) != bits(out.logprobs)


def test_draws_do_not_depend_on_company(gpu: Gpu) -> None:
    model, rows = make("moe", device="cuda"), prompts()
    whole = model.generate(rows, 2, max_new_tokens=8, seed=3, sample_ids=[1, 2, 3, 4])
    alone = model.generate(rows[2:3], 2, max_new_tokens=8, seed=3, sample_ids=[3])
    assert bits(alone.completion_ids) == bits(whole.completion_ids[4:6])
    assert bits(alone.logprobs) == bits(whole.logprobs[4:6])


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_training_runs_are_the_same_bits(gpu: Gpu, dtype: str) -> None:
    """E2 on the GPU: not on another order of threads does a bit depend."""
    def run(i: int) -> list[bytes]:
        gpu(i)
        model = make("moe", dtype=dtype, device="cuda")
        for step in range(2):
            out = model.generate(prompts((5, 20)), 2, max_new_tokens=6, seed=5, step=step)
            gradient(model, prompts((5, 20)), out.completion_ids, out.logprobs)
            model.update(1e-2, max_grad_norm=1.0)
        return bits(model.state_dict().values())
    assert run(0) == run(1) == run(3)


def test_a_trainer_finds_everything_on_the_gpu(gpu: Gpu) -> None:
    """Policy, reference, sampling and the memory plan; the gap is measured and is 0.0."""
    model = make("dense", device="cuda")
    options = GRPOConfig(max_steps=2, per_device_train_batch_size=8, num_generations=4, beta=0.1,
                         max_completion_length=6, learning_rate=1e-2, disable_tqdm=True)
    trainer = GRPOTrainer(model, lambda completions, completion_ids, **_: [
        float(len(set(ids))) for ids in completion_ids], options, [{"prompt_ids": p} for p in prompts((3, 9))])
    steps = list(trainer)
    assert [step["max_logprob_gap"] for step in steps] == [0.0, 0.0] and steps[1]["kl"] > 0.0
    assert model.plan(length=32).device == "cuda"
    frozen = model.freeze()
    assert bits(frozen.logprobs([[1, 2]], [[3, 4]])) == bits(model.logprobs([[1, 2]], [[3, 4]]))


def test_speculation_draws_the_same_tokens(gpu: Gpu) -> None:
    """E4."""
    model, rows = make("dense_mtp", device="cuda"), prompts((5, 30))
    plain = model.generate(rows, 2, max_new_tokens=10, seed=9)
    guessed = model.generate(rows, 2, max_new_tokens=10, seed=9, speculative=True)
    assert bits(plain.completion_ids) == bits(guessed.completion_ids)
    assert bits(plain.logprobs) == bits(guessed.logprobs)
