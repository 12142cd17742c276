"""Padded vocabularies: ids beyond live_vocab are never sampled and count in no softmax."""

from __future__ import annotations

import numpy as np
import pytest

from models import V, batch, make
from r1grpo import set_num_threads
from reference import Reference
from test_model_oracle import assert_gradients

LIVE = 33
SAMPLINGS = [{}, {"temperature": 0.0}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.7},
             {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "min_p": 0.05}]


def padded(name: str, seed: int = 0):
    """A model whose dead rows would win every draw, could they be drawn."""
    model = make(name, seed)
    state = model.state_dict()
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        if key in state:
            state[key][LIVE:] *= 4.0
    model.load_state_dict(state)
    model.live_vocab = LIVE
    return model


def live_batch(seed: int = 0):
    """The prompts keep their dead ids: only what is predicted must live."""
    prompts, completions = batch(seed)
    assert max(max(one) for one in prompts) >= LIVE
    completions = [[t % LIVE for t in one] for one in completions]
    completions[0][-1] = LIVE - 1
    return prompts, completions


def oracle(model) -> Reference:
    reference = Reference(model.config.to_dict(), model.state_dict())
    reference.live = LIVE
    return reference


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", ["moe", "dense_untied"])
def test_sampler_and_training_share_the_live_support(name: str, sampling: dict) -> None:
    model = padded(name)
    prompts, _ = live_batch()
    for threads in (1, 3):
        set_num_threads(threads)
        out = model.generate(prompts, 4, max_new_tokens=40, seed=1, stop_token_ids=(), **sampling)
        ids = np.concatenate(out.completion_ids)
        assert ids.max() < LIVE and len(ids) == 4 * len(prompts) * 40
        again = model.logprobs(prompts, out.completion_ids, **sampling)
        assert [a.tobytes() for a in again] == [a.tobytes() for a in out.logprobs]
    set_num_threads(2)
    model.live_vocab = V
    free = model.generate(prompts, 4, max_new_tokens=40, seed=1, stop_token_ids=(), **sampling)
    assert np.concatenate(free.completion_ids).max() >= LIVE  # the test can fail


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_logprobs_are_the_oracles(sampling: dict) -> None:
    model = padded("dense_untied")
    prompts, completions = live_batch()
    got = model.logprobs(prompts, completions, **sampling)
    for i, completion in enumerate(completions):
        if completion:
            want = oracle(model).logprobs(prompts[i // 2], completion, **sampling)
            np.testing.assert_allclose(got[i], want, atol=5e-5, rtol=2e-5)


def test_probabilities_of_live_ids_sum_to_one() -> None:
    model = padded("dense")
    every = model.logprobs([[3, 4, 5]] * LIVE, [[v] for v in range(LIVE)])
    assert np.exp(np.concatenate(every).astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["moe", "dense_mtp", "dense_untied"])
def test_gradients_are_the_oracles(name: str) -> None:
    model = padded(name)
    prompts, completions = live_batch()
    extra = {"mtp_coef": 0.3} if model.config.num_nextn_predict_layers else {}
    model.zero_grad()
    loss = model.sft_gradient(prompts, completions, **extra)
    want = oracle(model).loss_sft(prompts, completions, **extra)
    assert float(loss) == pytest.approx(want.loss, rel=1e-5)
    assert_gradients(model, want.gradients)
    if not model.config.tie_word_embeddings:
        assert not model.grad_dict()["lm_head.weight"][LIVE:].any()


def test_it_is_off_unless_set_and_copied_by_clone() -> None:
    model = make("dense")
    assert model.live_vocab == V
    prompts, completions = batch()
    before = model.logprobs(prompts, completions)
    model.live_vocab = LIVE
    assert model.clone().live_vocab == LIVE
    model.live_vocab = V
    assert [a.tobytes() for a in model.logprobs(prompts, completions)] \
        == [a.tobytes() for a in before]


@pytest.mark.parametrize("size", [0, V + 1, -1, 2**70])
def test_sizes_that_cannot_be(size: int) -> None:
    model = make("dense")
    with pytest.raises(ValueError, match="live_vocab"):
        model.live_vocab = size
    with pytest.raises(TypeError, match="live_vocab"):
        model.live_vocab = "40"
    assert model.live_vocab == V


def test_dead_targets_are_named_and_open_sessions_end() -> None:
    model = padded("dense")
    with pytest.raises(ValueError, match=rf"completion_ids\[0\] contains id {LIVE}"):
        model.logprobs([[1]], [[LIVE]])
    session = model.session([[1, 2]], max_new_tokens=8, stop_token_ids=())
    session.run(2)
    model.live_vocab = V
    with pytest.raises(ValueError, match="session"):
        session.run(2)
