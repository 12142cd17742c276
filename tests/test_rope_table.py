"""The rotary table: it reaches as far as calls do, and growing changes no bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models import V, configs
from r1grpo import Model
from reference import Reference

LONG = np.random.default_rng(3).integers(0, V, 700).tolist()


def make(name: str, context: int = 2048) -> Model:
    return Model(dataclasses.replace(configs()[name], max_position_embeddings=context), seed=1)


@pytest.mark.parametrize("name", ["dense_untied", "moe"])
def test_growing_changes_no_bit(name: str) -> None:
    """512 positions at first, 1,024 for the long sequence; a session that was open goes on."""
    whole, grown = make(name), make(name)
    want = whole.logprobs([LONG[:1]], [LONG[1:]])[0]
    sampled = whole.generate([[5, 6]], 2, max_new_tokens=20, seed=2, stop_token_ids=())
    session = grown.session([[5, 6]], 2, max_new_tokens=20, seed=2, stop_token_ids=())
    session.run(7)
    assert grown.logprobs([LONG[:1]], [LONG[1:]])[0].tobytes() == want.tobytes()
    session.run(20)
    for a, b in zip(session.rollout().logprobs, sampled.logprobs, strict=True):
        assert a.tobytes() == b.tobytes()
    short = grown.logprobs([LONG[:1]], [LONG[1:90]])[0]
    assert short.tobytes() == want[:89].tobytes()


def test_positions_beyond_the_first_table() -> None:
    model = make("dense_untied")
    want = Reference(model.config.to_dict(), model.state_dict()).logprobs(LONG[:600], LONG[600:])
    np.testing.assert_allclose(model.logprobs([LONG[:600]], [LONG[600:]])[0], want, atol=2e-4)
    rollout = model.generate([LONG[:600]], 1, max_new_tokens=30, seed=4, stop_token_ids=())
    again = model.logprobs([LONG[:600]], rollout.completion_ids)[0]
    assert again.tobytes() == rollout.logprobs[0].tobytes()


def test_a_declared_context_costs_nothing() -> None:
    near, far = make("dense_untied", 1024), make("dense_untied", 131072)
    for options in ({"scoring": True, "length": 700}, {"length": 700, "recompute": True},
                    {"training": False, "prompts": 3, "prompt_length": 9, "max_new_tokens": 90}):
        assert far.plan(**options) == near.plan(**options)
