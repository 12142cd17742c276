"""Truncated importance sampling: its weights, what becomes of it where sampling and training are one engine,
and on a GPU in its fast mode, where they are not."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import reference_rl
from conftest import emulated_backend
from models import batch, make
from op_testing import bits, check, normal
from r1grpo import GRPOConfig, GRPOTrainer, Model
from r1grpo.advantage import truncated_weights
from r1grpo.config import ConfigError
from r1grpo.monitor import Monitor
from test_cublaslt import BY_ROWS, Library, library  # noqa: F401 - a fixture

PROMPTS = [{"prompt_ids": ids} for ids in ([3, 9, 4], [5], [7, 7, 2, 8, 1, 30, 11])]
OPTIONS = dict(max_steps=4, per_device_train_batch_size=8, steps_per_generation=2, num_generations=4,
               max_completion_length=6, learning_rate=1e-2, disable_tqdm=True)


def variety(completions: list, completion_ids: list, **_: object) -> list[float]:
    return [float(len(set(ids))) for ids in completion_ids]


def trainer(model: Model, **options: object) -> GRPOTrainer:
    return GRPOTrainer(model, variety, GRPOConfig(**{**OPTIONS, **options}), PROMPTS)


def test_the_weights(rng: np.random.Generator) -> None:
    trained, sampled = -3.0 + normal(rng, 200), -3.0 + normal(rng, 200)
    sampled[:20] = trained[:20]
    trained[20:22], sampled[20:22] = (0.0, -2000.0), (-2000.0, 0.0)
    got = truncated_weights(trained, sampled, 2.0)
    with np.errstate(over="ignore"):
        check(got, reference_rl.truncated_weights(trained.astype(np.float64), sampled, 2.0), "element")
    assert np.all(got[:20] == 1.0) and list(got[20:22]) == [2.0, 0.0]
    assert got.max() == 2.0 and (got == 2.0).sum() > 5


def test_one_engine_needs_none() -> None:
    """Weights are exactly 1, so the gradient has the bits of one without them."""
    rows, completions = batch(prompts=(5, 20))
    grads, model = [], make("moe")
    logp = model.logprobs(rows, completions)
    for sampled in (None, logp):
        model.zero_grad()
        loss = model.policy_gradient(rows, completions, advantages=[1.0, -1.0, 0.3, 0.0], weights=[1.0] * 4,
                                     old_logprobs=logp, sampled_logprobs=sampled)
        grads.append(bits(model.grad_dict().values()))
    assert grads[0] == grads[1]
    stats = loss.stats
    assert stats["importance_weight_min"] == stats["importance_weight_max"] == stats["importance_weight_mean"] == 1.0


def test_a_trainer_that_corrects_where_nothing_is_wrong() -> None:
    """The same weights after training, and after a resume in the middle of a rollout."""
    runs = {}
    for correct in (None, False, True):
        one = trainer(make("dense"), importance_sampling_correction=correct)
        steps = list(one)
        runs[correct] = bits(one.model.state_dict().values())
        names = {"sampling/importance_sampling_weight/" + name for name in ("min", "mean", "max")}
        for step in steps:
            assert names <= step.keys() if correct else not names & step.keys()
            assert all(step[name] == 1.0 for name in names & step.keys())
        assert steps[0]["max_logprob_gap"] == 0.0 and (one.batch.trained is not None) == bool(correct)
        assert (steps[0]["flops"] > flops) if correct else True
        flops = steps[0]["flops"]
    assert runs[None] == runs[False] == runs[True]
    first = trainer(make("dense"), importance_sampling_correction=True)
    next(first)
    second = trainer(make("dense", seed=1), importance_sampling_correction=True)
    second.load_state_dict(first.state_dict())
    list(second)
    assert bits(second.model.state_dict().values()) == runs[True]


@pytest.mark.parametrize("fast", [False, True])
def test_the_fast_mode_brings_it(library: Library, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:  # noqa: F811
    """A library whose bits depend on the number of rows: exact mode refuses it, the fast mode measures the gap
    and corrects for it, without an alarm."""
    name = "cuda/fast" if fast else "cuda"
    monkeypatch.setitem(sys.modules, "r1grpo._cuda", emulated_backend())
    monkeypatch.setattr("r1grpo.device._gpu", {name: library.open(BY_ROWS, fast)})
    model = make("llama_bias", dtype="bfloat16", device=name)
    assert model.exact == (not fast)
    one = trainer(model, max_steps=2, steps_per_generation=1, per_device_train_batch_size=16, beta=0.1)
    rows: list[dict] = []
    monitor = Monitor("rl", rows.append)
    for step in one:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of completions that are cut off
            alarms = monitor.log_step(step["step"], {key: step[key] for key in step if key != "step"})
        assert "logprob_gap" not in {alarm.name for alarm in alarms}
    gap = one.max_logprob_gap
    assert (0.0 < gap < 0.1) if fast else gap == 0.0
    for row in rows:
        weights = [row.get(f"sampling/importance_sampling_weight/{name}") for name in ("min", "mean", "max")]
        assert weights == [None] * 3 if not fast else weights[0] < weights[1] < weights[2]
        assert (row["sampling/sampling_logp_difference/max"] > 0.0) == fast
        assert row["sampling/importance_sampling_ratio/max"] == 1.0  # to the training forward's


def test_devices_without_a_fast_mode() -> None:
    with pytest.raises(ValueError, match="device 'cpu/fast' is unknown"):
        make("dense", device="cpu/fast")


def test_the_cap_must_be_a_bound() -> None:
    with pytest.raises(ConfigError, match="importance_sampling_cap must be above 0"):
        GRPOConfig(importance_sampling_cap=0.0)
    with pytest.raises(ConfigError, match="set importance_sampling_cap"):
        GRPOConfig(vllm_importance_sampling_cap=2.0)
