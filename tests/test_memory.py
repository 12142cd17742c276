"""Memory: every allocation of the core made to fail, one by one; nothing that repeats may grow."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import pytest

from models import batch, make
from op_testing import bits
from r1grpo import Model, _core

PROMPTS, COMPLETIONS = batch(prompts=(5, 1, 70), ratio=2, longest=12)


def generate(model: Model) -> list[bytes]:
    return bits(model.generate(PROMPTS, 2, max_new_tokens=6, seed=1).logprobs)


def sft(model: Model) -> list[bytes]:
    model.zero_grad()
    loss = model.sft_gradient(PROMPTS, COMPLETIONS, mtp_coef=0.3, balance_coef=0.01,
                              micro_batch_tokens=60)
    return bits([float(loss), *loss.logprobs, *model.grad_dict().values()])


def policy(model: Model) -> list[bytes]:
    model.zero_grad()
    loss = model.policy_gradient(PROMPTS, COMPLETIONS, advantages=[1, -1, 1, -1, 1, -1],
                                 weights=[0.1] * 6, old_logprobs=[-2.0] * 6, mtp_coef=0.3,
                                 entropy_coef=0.01, top_k=9)
    return bits([float(loss), *loss.logprobs, *model.grad_dict().values()])


def logprobs(model: Model) -> list[bytes]:
    return bits(model.logprobs(PROMPTS, COMPLETIONS, top_p=0.9))


def score(model: Model) -> list[bytes]:
    return bits([model.score(PROMPTS)])


def reward(model: Model) -> list[bytes]:
    model.zero_grad()
    loss = model.reward_gradient(PROMPTS[:2])
    return bits([float(loss), *loss.logprobs, *model.grad_dict().values()])


def update(model: Model) -> list[bytes]:
    """From the model's first weights: an update that half happened would show."""
    sft(model)
    state = model.state_dict()
    model.reset_optimizer()
    norm = model.update(0.01, weight_decay=0.1)
    after = bits([norm, *model.state_dict().values(), *model.optimizer_state().values()])
    model.load_state_dict(state)
    return after


def grad_dict(model: Model) -> list[bytes]:
    return bits(model.grad_dict().values())


CALLS = [generate, logprobs, sft, policy, score, reward, update, grad_dict]


def create() -> Model:
    return make("moe").add_score_head()


@pytest.mark.parametrize("frozen", [False, True])
def test_out_of_memory_while_a_model_is_made(frozen: bool) -> None:
    config, n = make("moe").config, 0
    while True:
        n += 1
        _core.alloc_fail_at(n)
        try:
            model = Model(config, frozen=frozen)
        except MemoryError as error:
            assert str(error)
            continue
        finally:
            _core.alloc_fail_at(0)
        break
    assert n > 30, "a model has more tensors than that"
    assert bits(model.state_dict().values()) == bits(Model(config).state_dict().values())


@pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)
def test_out_of_memory_in_a_call(call: Callable[[Model], list[bytes]]) -> None:
    """The n-th allocation fails, for every n: MemoryError, and the same call on the same model then
    gives the bits that it always gives."""
    want = call(create())
    model, weights = create(), bits(create().state_dict().values())
    n = failures = 0
    while True:
        n += 1
        fresh = model if n % 2 else create()  # with the buffers of earlier calls, and without any
        _core.alloc_fail_at(n)
        try:
            call(fresh)
        except MemoryError as error:
            failures += 1
            assert str(error)
        finally:
            made = _core.alloc_fail_at(0)
        assert bits(fresh.state_dict().values()) == weights
        assert call(fresh) == want, f"after allocation {n} failed"
        if made < n and fresh is not model:
            break
    assert failures >= (1 if call is grad_dict else 2)


def test_out_of_memory_between_slices_of_a_session() -> None:
    """A session that met a failure goes on where it was, to the same tokens."""
    model = make("moe")
    whole = model.generate(PROMPTS, 2, max_new_tokens=12, seed=3, stop_token_ids=())
    session = model.session(PROMPTS, 2, max_new_tokens=12, seed=3, stop_token_ids=())
    failures = 0
    for n in range(1, 100):
        _core.alloc_fail_at(n)
        try:
            session.run(1)
        except MemoryError:
            failures += 1
        finally:
            _core.alloc_fail_at(0)
        if session.done:
            break
    while not session.done:
        session.run(5)
    assert failures >= 3
    assert bits(session.rollout().logprobs) == bits(whole.logprobs)


# ---- leaks ---------------------------------------------------------------------------------------


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")]


def in_use() -> int:
    """Bytes that malloc has handed out; 0 where glibc's own count is missing or replaced."""
    try:
        count = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    count.restype = _Mallinfo
    info = count()
    return info.uordblks + info.hblkhd


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wrong_calls(model: Model) -> list[bytes]:
    """The error paths."""
    for call in (lambda: model.generate([[99]]), lambda: model.logprobs([[1]] * 2, [[1]]),
                 lambda: model.sft_gradient([[1]], [[2]], [np.nan]), lambda: model.update(-1.0),
                 lambda: model.generate([[1]], stop_token_ids=[99]), lambda: model.load_state_dict({}),
                 lambda: model._core.run(model.device, 1), lambda: model._core.score(model.device),
                 lambda: model._core.read(model.device, 10**6, "value", np.zeros(1, np.float32)),
                 lambda: _core.Decode(model.device, model), lambda: _core.Model(model.device, {}),
                 lambda: Model({**model.config.to_dict(), "num_experts_per_tok": 60})):
        with pytest.raises((ValueError, TypeError, KeyError)):
            call()
    for n in (3, 9):
        _core.alloc_fail_at(n)
        with pytest.raises(MemoryError):
            Model(model.config)
        _core.alloc_fail_at(n)
        with pytest.raises(MemoryError):
            model.generate(PROMPTS, 2, max_new_tokens=6)
        _core.alloc_fail_at(0)
    return []


def abandoned(model: Model) -> list[bytes]:
    """Sessions and models that are dropped in the middle."""
    session = model.session(PROMPTS, 3, max_new_tokens=30)
    session.run(2)
    Model(model.config, seed=None).session(PROMPTS)
    return []


def freeze(model: Model) -> list[bytes]:
    """Copies in memory and in a file, with the file."""
    return [bits(one.logprobs(PROMPTS, COMPLETIONS))[0]
            for one in (model.freeze(), model.freeze(offload=tempfile.gettempdir()))]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("call", [*CALLS, wrong_calls, abandoned, freeze], ids=lambda f: f.__name__)
def test_fifty_times_costs_what_once_does(call: Callable[[Model], list[bytes]]) -> None:
    """The least growth of three rounds: a leak is in each of them, what the interpreter keeps for
    itself is not."""
    model = create()

    def figures() -> tuple[int, ...]:
        gc.collect()
        return (sys.getallocatedblocks(), in_use(), resident(), len(os.listdir("/proc/self/fd")),
                len(os.listdir("/proc/self/task")))
    for _ in range(10):
        call(model)
    grown = []
    for _ in range(3):
        before = figures()
        for _ in range(50):
            call(model)
        grown.append([b - a for a, b in zip(before, figures(), strict=True)])
    blocks, heap, rss, fds, threads = map(min, zip(*grown, strict=True))
    assert blocks < 50, f"{blocks} more Python blocks after 50 calls"
    assert heap < 50 * 16, f"{heap} more bytes after 50 calls"
    assert rss < 4 << 20, f"{rss} more bytes of memory after 50 calls"
    assert (fds, threads) == (0, 0)
