"""Decoding with graphs (csrc/model/graphs.c): steps that are replayed have the bits of ops done one by one, in any
company; few graphs are made. On an emulated GPU, which counts them, and on a real one where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

import cuda_emulation
from models import V, make
from op_testing import bits
from r1grpo import Model, ModelConfig

Gpu = Callable[[int], None]
TINY = ModelConfig(vocab_size=60, eos_token_id=0, hidden_size=8, num_attention_heads=1, num_hidden_layers=1,
                   intermediate_size=8, max_position_embeddings=256, model_type="qwen2")


@pytest.fixture
def count(gpu: Gpu, request: pytest.FixtureRequest) -> Callable[[], np.ndarray]:
    """(graphs made, graphs launched) since the last call."""
    if request.node.callspec.params["gpu"] != "emulated":
        pytest.skip("a GPU does not count its graphs")
    before, now = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
    read = ctypes.CDLL(cuda_emulation.load().__file__).emulated_graphs

    def since() -> np.ndarray:
        read(now.ctypes.data_as(ctypes.c_void_p))
        gained = (now - before).astype(int)
        before[:] = now
        return gained
    since()
    return since


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, n).tolist() for n in lengths]


@pytest.mark.parametrize(("name", "dtype"), [("dense", "float32"), ("moe", "bfloat16")])
def test_replayed_steps_have_the_bits_of_ops_one_by_one(gpu: Gpu, name: str, dtype: str) -> None:
    """A session of one token has no step but its prompt, so nothing of it is recorded; greedy draws do not depend
    on positions, so a chain of such sessions is plain decoding."""
    model, rows = make(name, dtype=dtype, device="cuda"), prompts(62, 1, 9)
    out = model.generate(rows, 1, max_new_tokens=4, temperature=0.0, stop_token_ids=())
    for row, ids, logprobs in zip(rows, out.completion_ids, out.logprobs, strict=True):
        for i, token in enumerate(ids[1:], 1):
            one = model.generate([[*row, *ids[:i]]], 1, max_new_tokens=1, temperature=0.0, stop_token_ids=())
            assert list(one.completion_ids[0]) == [token]
            assert bits(one.logprobs) == bits([logprobs[i:i + 1]])


def test_few_graphs_are_made(count: Callable[[], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of all lengths through three slots: steps of 1, 2 and 4 rows, in two parts each."""
    monkeypatch.setattr("r1grpo.model._SLOTS", 3)
    model = Model(TINY, device="cuda")
    out = model.generate([[1], [2, 3], [4]], 2, max_new_tokens=200, seed=2, stop_token_ids=[0])
    steps = max(map(len, out.completion_ids))
    made, launched = count()
    assert steps > 50 and launched >= 2 * (steps - 8) and 2 <= made <= 6
    model.generate([[1]], 1, max_new_tokens=1)
    assert count().tolist() == [0, 0], "what happens once is not worth a graph"


def test_slots_that_change_hands(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences join and leave, and a long prompt comes late, for which the device's scratch memory moves."""
    rows, how = prompts(3, 1, 5, 90, 4), dict(max_new_tokens=6, seed=4, temperature=1.2)
    ends = [*range(8)]
    model = make("dense", dtype="bfloat16", device="cuda")
    alone = [model.generate([row], 2, sample_ids=[i], stop_token_ids=ends, **how) for i, row in enumerate(rows)]
    monkeypatch.setattr("r1grpo.model._SLOTS", 3)
    out = model.generate(rows, 2, sample_ids=range(len(rows)), stop_token_ids=ends, **how)
    assert bits(out.completion_ids) == bits([ids for one in alone for ids in one.completion_ids])
    assert bits(out.logprobs) == bits([logp for one in alone for logp in one.logprobs])
    assert len({len(ids) for ids in out.completion_ids}) > 2
    assert bits(model.logprobs(rows, out.completion_ids, temperature=1.2)) == bits(out.logprobs)


def test_memory_that_moves_between_slices(gpu: Gpu) -> None:
    """Scoring a longer batch makes the workspace and the rotary table grow, whose addresses graphs know."""
    def run(model: Model, between: Callable[[], object]) -> tuple:
        session = model.session(prompts(3, 7), 1, max_new_tokens=12, seed=1)
        for _ in range(3):
            session.run(4)
            between()
        out = session.rollout()
        return bits(out.completion_ids), bits(out.logprobs)
    model, longer = make("dense", device="cuda"), prompts(70, 30)
    undisturbed = run(make("dense", device="cuda"), lambda: None)
    assert run(model, lambda: model.logprobs(longer, longer)) == undisturbed


def test_steps_that_are_padded_but_not_recorded(gpu: Gpu) -> None:
    """Where layers come from the host's memory nothing is recorded; padding keeps to its own block there too."""
    model, row = make("dense", device="cuda"), prompts(66)
    near, away = (one.generate(row, 3, max_new_tokens=6, seed=2, stop_token_ids=())
                  for one in (model, model.freeze(offload="unused")))
    assert bits(near.completion_ids) == bits(away.completion_ids) and bits(near.logprobs) == bits(away.logprobs)


def test_speculation_is_recorded_too(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1grpo.model._SLOTS", 3)
    for name in ("dense_mtp", "moe"):
        model, rows = make(name, device="cuda"), prompts(5, 30)
        plain = model.generate(rows, 2, max_new_tokens=8, seed=9)
        guessed = model.generate(rows, 2, max_new_tokens=8, seed=9, speculative=True)
        assert bits(plain.completion_ids) == bits(guessed.completion_ids)
        assert bits(plain.logprobs) == bits(guessed.logprobs)
        assert guessed.drafts[0] > 8
