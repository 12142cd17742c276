"""The exactness contract, bit for bit: E1 (rollout = training) and E2 (one gradient).

Compared bit by bit, never with a tolerance. docs/numerics.md says why each of these holds.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest

from models import V, batch, configs, make
from op_testing import bits
from r1grpo import Model, set_num_threads

NAMES = sorted(configs())
DTYPES = ("float32", "bfloat16")
SAMPLINGS = [{"temperature": 0.6}, {"temperature": 0.0}, {"top_k": 7}, {"top_p": 0.7},
             {"min_p": 0.1}, {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "min_p": 0.05}]


pytestmark = pytest.mark.usefixtures("two_threads")


def prompts(seed: int = 0, lengths: tuple[int, ...] = (1, 5, 63, 64, 100)) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, n).tolist() for n in lengths]


# ---- E1: the sampler's log-prob is the training forward's ----------------------------------------


@pytest.mark.parametrize("name, dtype, sampling", [
    *((name, dtype, {}) for name in NAMES for dtype in DTYPES),
    *((name, "float32", how) for name in ("moe", "dense") for how in SAMPLINGS)])
def test_rollout_equals_training(name: str, dtype: str, sampling: dict) -> None:
    model = make(name, dtype=dtype)
    rows = prompts()
    out = model.generate(rows, 3, max_new_tokens=50, seed=1, **sampling)
    assert bits(model.logprobs(rows, out.completion_ids, **sampling)) == bits(out.logprobs)
    assert sum(map(len, out.completion_ids)) > 100


@pytest.mark.parametrize("dtype, bit", [("float32", 12), ("bfloat16", 16)])
def test_first_ratio_is_one_and_one_bit_is_seen(dtype: str, bit: int) -> None:
    model = make("moe", dtype=dtype)
    rows = prompts()
    out = model.generate(rows, 4, max_new_tokens=40, seed=2)
    options = dict(advantages=np.resize([1.0, -1.0], len(out)), weights=[1.0] * len(out),
                   old_logprobs=out.logprobs)
    loss = model.policy_gradient(rows, out.completion_ids, **options)
    assert loss.stats["logp_gap_max"] == 0.0
    assert loss.stats["ratio_min"] == loss.stats["ratio_max"] == 1.0
    assert loss.stats["logp_gap_tokens"] == sum(map(len, out.completion_ids))

    state = model.state_dict()
    weight = state["model.layers.1.self_attn.o_proj.weight"]
    weight.reshape(-1).view(np.uint32)[3] ^= 1 << bit
    model.load_state_dict(state)
    assert model.policy_gradient(rows, out.completion_ids, **options).stats["logp_gap_max"] > 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sampling_does_not_depend_on_company_slots_threads_or_sharing(dtype: str) -> None:
    model = make("moe", dtype=dtype)
    rows = prompts()
    ids = [11, 12, 13, 14, 15]
    whole = model.generate(rows, 3, max_new_tokens=30, seed=3, sample_ids=ids)
    for threads in (1, 3, 7):
        set_num_threads(threads)
        again = model.generate(rows, 3, max_new_tokens=30, seed=3, sample_ids=ids)
        assert bits(again.completion_ids) == bits(whole.completion_ids)
        assert bits(again.logprobs) == bits(whole.logprobs)
    for p in (4, 0, 2):  # a prompt alone, so in other slots, without the others
        alone = model.generate([rows[p]], 3, max_new_tokens=30, seed=3, sample_ids=[ids[p]])
        assert bits(alone.completion_ids) == bits(whole.completion_ids[3 * p:3 * p + 3])
        assert bits(alone.logprobs) == bits(whole.logprobs[3 * p:3 * p + 3])
    more = model.generate([rows[2]], 40, max_new_tokens=30, seed=3, sample_ids=[ids[2]])
    assert bits(more.logprobs[:3]) == bits(whole.logprobs[6:9])


def test_few_slots_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two slots for fifteen sequences, each finished one gives its place to the next."""
    model = make("dense")
    rows = prompts()
    whole = model.generate(rows, 3, max_new_tokens=25, seed=4)
    monkeypatch.setattr("r1grpo.model._SLOTS", 2)
    few = model.generate(rows, 3, max_new_tokens=25, seed=4)
    assert bits(few.completion_ids) == bits(whole.completion_ids)
    assert bits(few.logprobs) == bits(whole.logprobs)


def test_slices_and_cuts_change_no_draw() -> None:
    model = make("moe")
    rows = prompts()
    whole = model.generate(rows, 2, max_new_tokens=30, seed=5, stop_token_ids=())
    session = model.session(rows, 2, max_new_tokens=30, seed=5, stop_token_ids=())
    cut = False
    while not session.done:
        session.run(7)
        if not cut:
            session.stop(3, 5)
            cut = True
    sliced = session.rollout()
    assert sliced.finish_reasons[3] == "stop" and len(sliced.completion_ids[3]) == 5
    for i in range(len(whole)):
        n = 5 if i == 3 else 30
        assert sliced.completion_ids[i].tolist() == whole.completion_ids[i][:n].tolist()


def test_the_callers_rounding_mode_changes_no_bit() -> None:
    """A library that leaves another rounding mode on this thread must not reach our sums."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    model = make("moe")
    rows, completions = batch(prompts=(5, 1, 70, 12))
    whole = bits(model.logprobs(rows, completions))
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
    if upward is None:
        pytest.skip("FE_UPWARD is not known for this processor")
    assert libm.fesetround(upward) == 0
    try:
        found = [bits(model.logprobs(rows, completions)) for _ in range(4)]
        mode = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert mode == upward, "the caller's mode was not restored"
    assert all(one == whole for one in found)


def test_a_session_refuses_other_weights() -> None:
    model = make("dense")
    session = model.session(prompts(), 2, max_new_tokens=30, seed=5, stop_token_ids=())
    session.run(5)
    model.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="weights have changed"):
        session.run(5)


def test_logprobs_do_not_depend_on_order_or_packing() -> None:
    model = make("moe")
    rows, completions = batch(prompts=(5, 1, 70, 12))
    flat = [rows[i // 2] for i in range(len(completions))]
    whole = model.logprobs(rows, completions)
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    shuffled = model.logprobs([flat[i] for i in order], [completions[i] for i in order])
    assert bits(shuffled) == bits([whole[i] for i in order])
    for i in (0, 3, 6):
        assert bits(model.logprobs([flat[i]], [completions[i]])) == bits([whole[i]])


# ---- E2: one gradient ----------------------------------------------------------------------------


def gradient(model: Model, kind: str, micro: int | None, recompute: bool = False) -> list[bytes]:
    rows, completions = batch(seed=7, prompts=(5, 1, 70, 12, 33))
    extra = {"recompute": recompute}
    if model.config.num_nextn_predict_layers:
        extra["mtp_coef"] = 0.3
    model.zero_grad()
    if kind == "sft":
        if model.config.n_routed_experts:
            extra["balance_coef"] = 0.01
        loss = model.sft_gradient(rows, completions, micro_batch_tokens=micro, **extra)
    else:
        rng = np.random.default_rng(8)
        old = [rng.normal(-3, 0.3, len(c)).astype(np.float32) for c in completions]
        loss = model.policy_gradient(
            rows, completions, advantages=rng.normal(size=len(completions)), weights=[0.01] * 10,
            old_logprobs=old, ref_logprobs=[o + 0.1 for o in old], beta=0.1,
            micro_batch_tokens=micro, mtp_detach=False, **extra)
    return bits([*model.grad_dict().values(), np.float64(float(loss)), *loss.logprobs])


@pytest.mark.parametrize("name, kind, dtype", [
    *((name, kind, "float32") for name in NAMES for kind in ("sft", "policy")),
    *((name, "sft", "bfloat16") for name in NAMES)])
def test_gradient_does_not_depend_on_micro_batches_or_threads(name: str, kind: str,
                                                              dtype: str) -> None:
    model = make(name, dtype=dtype)
    whole = gradient(model, kind, None)
    for micro in (1, 100, 150):
        assert gradient(model, kind, micro) == whole, f"micro_batch_tokens={micro}"
    for threads in (1, 3, 7):
        set_num_threads(threads)
        assert gradient(model, kind, 120) == whole, f"{threads} threads"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["sft", "policy"])
def test_recomputed_layers_have_the_bits_of_kept_ones(name: str, kind: str) -> None:
    model = make(name)
    whole = gradient(model, kind, None)
    for micro in (None, 100):
        assert gradient(model, kind, micro, recompute=True) == whole
        assert gradient(model, kind, micro) == whole, "after a pass that recomputed"


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_a_reward_models_gradient_can_be_recomputed(kind: str) -> None:
    model = make("moe").add_score_head(seed=3)
    rows = prompts(4, (9, 70, 1, 33))
    found = []
    for recompute in (False, True):
        model.zero_grad()
        loss = model.reward_gradient(rows, kind, [1, 0, 1, 0] if kind == "pointwise" else None,
                                     recompute=recompute)
        found.append(bits([float(loss), *model.grad_dict().values()]))
    assert found[0] == found[1]


def test_a_step_split_over_calls_is_the_whole_step() -> None:
    """Who splits a step passes the step's total and gets its gradient, in the order of sequences."""
    model = make("moe")
    rows, completions = batch(seed=9, prompts=(5, 40), ratio=1)
    total = sum(map(len, completions))
    model.zero_grad()
    model.sft_gradient(rows, completions, mtp_coef=0.3)
    whole = bits(model.grad_dict().values())
    model.zero_grad()
    for row, completion in zip(rows, completions, strict=True):
        model.sft_gradient([row], [completion], total_tokens=total, mtp_coef=0.3)
    assert bits(model.grad_dict().values()) == whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_twice_gives_the_same_bits(dtype: str) -> None:
    results = []
    for threads in (1, 3):  # and kept or recomputed: an expert's load is counted once either way
        set_num_threads(threads)
        model = make("moe", dtype=dtype)
        rows, completions = batch(seed=10)
        for _ in range(3):
            model.zero_grad()
            model.sft_gradient(rows, completions, mtp_coef=0.3, balance_coef=0.01,
                               recompute=threads == 3)
            model.update(0.01, weight_decay=0.1)
            model.update_router_bias(0.01)
        results.append(bits(model.state_dict().values()))
    assert results[0] == results[1]
