"""Model.generate, sentence by sentence: what a rollout holds, how it ends, what a draw depends on.

Exactness is test_exactness.py's, bad input is test_bad_input.py's.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from models import V, make
from op_testing import bits
from r1grpo import Model, Rollout

PROMPTS = [[3, 4, 5], [6], [7, 8]]


@pytest.fixture(scope="module")
def moe() -> Model:
    return make("moe")


def test_rollout_is_flat_lists_of_plain_arrays(moe: Model) -> None:
    out = moe.generate(PROMPTS, 4, max_new_tokens=20, seed=1)
    assert isinstance(out, Rollout) and len(out) == 12
    assert len(out.completion_ids) == len(out.logprobs) == len(out.finish_reasons) == 12
    for ids, logp, reason in zip(out.completion_ids, out.logprobs, out.finish_reasons, strict=True):
        assert ids.dtype == np.int32 and logp.dtype == np.float32
        assert ids.ndim == logp.ndim == 1 and len(ids) == len(logp) >= 1
        assert np.all((ids >= 0) & (ids < V)) and np.all(logp <= 0)
        assert (1 in ids[:-1].tolist()) is False, "tokens after the stop token"
        assert reason == ("stop" if ids[-1] == 1 else "length")
        assert reason == "stop" or len(ids) == 20
    assert set(out.finish_reasons) == {"stop", "length"}


def test_index_is_prompt_times_generations_plus_generation(moe: Model) -> None:
    out = moe.generate(PROMPTS, 3, max_new_tokens=12, seed=2)
    for p, prompt in enumerate(PROMPTS):
        own = moe.generate([prompt], 3, max_new_tokens=12, seed=2, sample_ids=[p])
        assert bits(own.completion_ids) == bits(out.completion_ids[3 * p:3 * p + 3])
    scored = moe.logprobs(PROMPTS, out.completion_ids)
    assert bits(scored) == bits(out.logprobs)


def test_prompts_may_be_any_sequences_and_positional(moe: Model) -> None:
    want = bits(moe.generate(PROMPTS, max_new_tokens=6).completion_ids)
    arrays = [np.array(p, np.int64) for p in PROMPTS]
    for prompts in (arrays, tuple(map(tuple, PROMPTS)), (p for p in PROMPTS)):
        assert bits(moe.generate(prompts, max_new_tokens=6).completion_ids) == want
    assert bits(moe.generate(prompts=PROMPTS, max_new_tokens=6).completion_ids) == want
    matrix = np.array([[3, 4], [5, 6]], np.int32)
    assert len(moe.generate(matrix, max_new_tokens=2)) == 2


def test_no_prompts_give_an_empty_rollout(moe: Model) -> None:
    out = moe.generate([], 4)
    assert (out.completion_ids, out.logprobs, out.finish_reasons) == ([], [], [])


def test_stop_tokens() -> None:
    model = make("dense")
    free = model.generate(PROMPTS, 8, max_new_tokens=30, seed=3, stop_token_ids=())
    assert set(free.finish_reasons) == {"length"}
    assert {len(c) for c in free.completion_ids} == {30}
    for stop in ([7], [7, 11, V - 1], np.array([7])):
        out = model.generate(PROMPTS, 8, max_new_tokens=30, seed=3, stop_token_ids=stop)
        for got, all_ids in zip(out.completion_ids, free.completion_ids, strict=True):
            hits = [i for i, t in enumerate(all_ids) if t in stop]
            assert got.tolist() == all_ids[:hits[0] + 1 if hits else 30].tolist()
        assert "stop" in out.finish_reasons
    default = model.generate(PROMPTS, 8, max_new_tokens=30, seed=3)
    named = model.generate(PROMPTS, 8, max_new_tokens=30, seed=3, stop_token_ids=[1])
    assert bits(default.logprobs) == bits(named.logprobs)

    several = Model({**model.config.to_dict(), "eos_token_id": [7, 11]})
    several.load_state_dict(model.state_dict())
    want = model.generate(PROMPTS, 8, max_new_tokens=30, seed=3, stop_token_ids=[7, 11])
    got = several.generate(PROMPTS, 8, max_new_tokens=30, seed=3)
    assert bits(got.completion_ids) == bits(want.completion_ids)
    none = Model({**model.config.to_dict(), "eos_token_id": None})
    assert none.generate([[2]], max_new_tokens=9).finish_reasons == ["length"]


@pytest.mark.parametrize("length, room", [(1, 159), (150, 10), (158, 2), (159, 1)])
def test_a_full_context_gives_length(moe: Model, length: int, room: int) -> None:
    assert moe.config.max_position_embeddings == 160
    prompt = np.arange(length) % V
    out = moe.generate([prompt], 2, max_new_tokens=10_000, stop_token_ids=())
    assert [len(c) for c in out.completion_ids] == [room, room]
    assert out.finish_reasons == ["length", "length"]
    assert bits(moe.logprobs([prompt], out.completion_ids)) == bits(out.logprobs)


def test_a_prompt_without_room_raises(moe: Model) -> None:
    for length in (160, 161, 500):
        with pytest.raises(ValueError, match=rf"prompts\[1\] has {length} tokens and leaves no room"):
            moe.generate([[1], [2] * length])


def test_a_draw_depends_on_seed_step_and_sample_id(moe: Model) -> None:
    def draw(**options) -> list[bytes]:
        return bits(moe.generate(PROMPTS, 2, max_new_tokens=15, stop_token_ids=(), **options)
                    .completion_ids)
    base = draw(seed=5, step=6)
    assert draw(seed=5, step=6) == base == draw(seed=5, step=6, sample_ids=[0, 1, 2])
    others = [draw(seed=6, step=6), draw(seed=5, step=7), draw(seed=6, step=5),
              draw(seed=5, step=6, sample_ids=[3, 4, 5]), draw(seed=2**63, step=2**40)]
    for i, other in enumerate([base, *others]):
        for second in [base, *others][:i]:
            assert all(a != b for a, b in zip(other, second, strict=True))
    assert draw(seed=5, step=6, sample_ids=[2, 0, 0])[4:] != base[4:]


def test_filters_off_in_every_spelling_are_the_same_bits(moe: Model) -> None:
    def run(**how) -> list[bytes]:
        out = moe.generate(PROMPTS, 2, max_new_tokens=10, **how)
        scored = moe.logprobs(PROMPTS, out.completion_ids, **how)
        assert bits(scored) == bits(out.logprobs)
        return bits(out.logprobs)
    plain = run()
    for how in ({"top_k": 0}, {"top_k": None}, {"top_p": 1.0}, {"top_p": None}, {"min_p": 0.0},
                {"min_p": None}, {"top_k": None, "top_p": None, "min_p": None}, {"top_k": V},
                {"top_k": 10**12}, {"temperature": 1}):
        assert run(**how) == plain, how
    for how in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {"temperature": 0.5}):
        assert run(**how) != plain, how


def test_greedy_takes_the_most_likely_token(moe: Model) -> None:
    out = moe.generate(PROMPTS, 2, max_new_tokens=1, temperature=0.0, seed=9)
    for p, prompt in enumerate(PROMPTS):
        every = np.array(moe.logprobs([prompt], [[t] for t in range(V)])).reshape(-1)
        assert out.completion_ids[2 * p] == out.completion_ids[2 * p + 1] == every.argmax()
        assert out.logprobs[2 * p][0] == every.max()


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Excess of Pearson's statistic over its mean, in standard deviations; rare cells are pooled.
    Infinite when something of probability 0 was counted."""
    n = counts.sum()
    rare = n * p < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = n * np.append(p[~rare], p[rare].sum())
    keep = expected > 0
    if observed[~keep].any():
        return math.inf
    terms = (observed[keep] - expected[keep]) ** 2 / expected[keep]
    df = keep.sum() - 1
    return float((terms.sum() - df) / math.sqrt(2 * df))


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02}])
def test_tokens_are_drawn_with_their_probabilities(moe: Model, how: dict) -> None:
    """Pairs of tokens against the model's own probabilities: 4 standard deviations, seeded."""
    n, prompt = 6000, [3, 4, 5]
    out = moe.generate([prompt], n, max_new_tokens=2, seed=11, stop_token_ids=(), **how)
    pairs = np.stack(out.completion_ids)
    counts = np.zeros((V, V))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    every = [[a, b] for a in range(V) for b in range(V)]

    def probabilities(how: dict) -> np.ndarray:
        logp = np.array(moe.logprobs([prompt], every, **how)).reshape(V, V, 2)
        first, second = logp[:, 0, 0].astype(np.float64), logp[:, :, 1].astype(np.float64)
        return support(first)[:, None] * np.stack([support(row) for row in second])
    p = probabilities(how)
    assert p.sum() == pytest.approx(1, abs=1e-4)
    assert abs(chi_square(counts.reshape(-1), p.reshape(-1))) < 4
    wrong = probabilities({**how, "temperature": 0.9 * how.get("temperature", 1.0)})
    assert chi_square(counts.reshape(-1), wrong.reshape(-1)) > 8, "the test has no power"


def support(logp: np.ndarray) -> np.ndarray:
    """p of the ids that can be drawn: the most likely ones until they add up to 1. (An id outside
    the support has a log-prob too: scoring joins it.)"""
    order = np.argsort(-logp, kind="stable")
    p = np.exp(logp[order])
    count = np.searchsorted(np.cumsum(p), 1 - 1e-5) + 1
    out = np.zeros(len(logp))
    out[order[:count]] = p[:count]
    return out
