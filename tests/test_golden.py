"""Loss curves of the tiny models: against the float64 oracle's own training, and against the numbers
of the day they were written down. On every tier: a curve that bends is a change of the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import r1grpo.device
from models import V, make
from r1grpo import Model, _core
from reference import Reference
from reference_rl import adamw, clip_scale, global_norm


@pytest.fixture(params=_core.tiers())
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Models made inside the test compute on this tier."""
    monkeypatch.setattr(r1grpo.device, "_current", [_core.Device(2, request.param)])
    yield request.param


def corpus(step: int) -> tuple[list[list[int]], list[list[int]]]:
    """Four sequences of a language that can be learnt: each token is the last one plus 3 or plus 7."""
    rng = np.random.default_rng([step, 42])
    rows = [np.cumsum(np.append(rng.integers(0, V), rng.choice([3, 7], 15))) % V for _ in range(4)]
    return [row[:2].tolist() for row in rows], [row[2:].tolist() for row in rows]


def extras(model: Model) -> dict[str, Any]:
    """The losses that the model has beside the main one."""
    return {} if not model.config.n_routed_experts else {"mtp_coef": 0.3, "balance_coef": 0.01}


def train(model: Model, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        model.zero_grad()
        losses.append(float(model.sft_gradient(*corpus(step), **extras(model))))
        model.update(0.01, weight_decay=0.1)
    return losses


def train_oracle(model: Model, steps: int) -> list[float]:
    """The same in float64: gradients and AdamW of the oracle, from the model's first weights."""
    state = {k: v.astype(np.float64) for k, v in model.state_dict().items()}
    m = {k: np.zeros_like(v) for k, v in state.items()}
    v = {k: np.zeros_like(x) for k, x in state.items()}
    losses = []
    for step in range(steps):
        prompts, completions = corpus(step)
        weights = [np.ones(len(c)) for c in completions]
        oracle = Reference(model.config.to_dict(), state)
        want = oracle.loss_sft(prompts, completions, weights, **extras(model))
        losses.append(want.loss)
        scale = clip_scale(global_norm(list(want.gradients.values())), 1.0)
        for k, g in want.gradients.items():
            decay = 0.1 if state[k].ndim == 2 else 0.0
            state[k], m[k], v[k] = adamw(state[k], g * scale, m[k], v[k], step + 1,
                                         learning_rate=0.01, weight_decay=decay)
    return losses


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_five_steps_beside_the_oracle(name: str, tier: str) -> None:
    model = make(name)
    want = train_oracle(model, 5)
    assert train(model, 5) == pytest.approx(want, rel=1e-4)
    assert want[-1] < want[0]


GOLDEN = {  # steps 0, 4, 8, 12, 16 and 19; tiers differ by 1e-5
    "moe": [6.471635, 5.097553, 4.339207, 3.773858, 3.195882, 2.818751],
    "dense": [5.246384, 4.218232, 3.745775, 3.289702, 3.165840, 2.972525],
}


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_twenty_steps(name: str, tier: str) -> None:
    losses = train(make(name), 20)
    assert losses[::4] + losses[-1:] == pytest.approx(GOLDEN[name], rel=2e-4)
    assert losses[-1] < 0.8 * losses[0]
