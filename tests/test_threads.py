"""Threads, signals and forks around the engine: what runs, what is refused, what goes on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from models import V, make
from op_testing import bits
from r1grpo import LoraConfig, Model, ModelConfig, set_num_threads

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
PROMPTS = [[3, 4, 5], [6], [7, 8]]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    set_num_threads(2)
    yield
    set_num_threads(2)


# ---- thread counts -------------------------------------------------------------------------------


COUNT = """
import os
from r1grpo import Model, ModelConfig, set_num_threads
model = Model(ModelConfig.tiny_dense(vocab_size=16))
def count(n):
    set_num_threads(n)
    model.generate([[1]], max_new_tokens=2)
    return len(os.listdir("/proc/self/task"))
alone = count(1)
print(*[count(n) - alone for n in (os.cpu_count() + 5, 1, 3, 2, 1)])
"""


@needs_proc
def test_set_num_threads_starts_that_many_and_ends_the_old_ones() -> None:
    shown = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).stdout
    assert shown.split() == [str(os.cpu_count() + 4), "0", "2", "1", "0"]  # the caller is one of them


@needs_proc
def test_all_threads_compute() -> None:
    """Each of the pool's threads has used the processor after some work."""
    set_num_threads(3)
    model = Model(ModelConfig.tiny_dense(vocab_size=64))
    for _ in range(20):
        model.logprobs([[1] * 100] * 8, [[2] * 100] * 8)
        if len(busy_threads()) >= 3:
            break
    assert len(busy_threads()) >= 3


def busy_threads() -> list[str]:
    """Threads of this process with processor time in /proc."""
    busy = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat", encoding="ascii") as file:
            if int(file.read().split()[0]) > 1_000_000:  # nanoseconds
                busy.append(task)
    return busy


# ---- a second thread -----------------------------------------------------------------------------


def test_another_thread_never_sees_what_holds_for_one_pass() -> None:
    """A pass without the adapters sets their factor to 0 for as long as it runs."""
    model = Model(ModelConfig.tiny_moe(vocab_size=64), lora=LoraConfig(r=2, lora_alpha=4))
    worker = threading.Thread(target=lambda: model.base_logprobs([[1]] * 64, [[2] * 100] * 64))
    worker.start()
    seen = set()
    while worker.is_alive():
        try:
            seen.add(model._core.adapter_scale)
        except RuntimeError as error:
            seen.add(str(error))
    worker.join()
    assert seen <= {2.0, "model is busy: another thread is using it"} and seen


def test_a_second_thread_is_told_that_the_model_is_busy() -> None:
    model = Model(ModelConfig.tiny_moe(vocab_size=64))
    rows = [[1, 2, 3]] * 8
    want = model.generate(rows, 8, max_new_tokens=60, seed=1, stop_token_ids=())
    results, said = [], set()
    worker = threading.Thread(target=lambda: results.append(
        model.generate(rows, 8, max_new_tokens=60, seed=1, stop_token_ids=())))
    other = model.session([[1]], max_new_tokens=1)
    worker.start()
    while worker.is_alive():
        for call in (lambda: model.logprobs([[1]], [[2]]), model.state_dict, other.rollout,
                     lambda: other.stop(0, 0), lambda: other.run(0)):
            try:
                call()
            except RuntimeError as error:
                said.add(str(error))
    worker.join()
    assert said <= {"model is busy: another thread is using it",
                    "device is busy: another thread is computing on it"} and said
    if results:  # the worker may have met the main thread's short calls, and lost
        assert bits(results[0].logprobs) == bits(want.logprobs)
    assert bits(model.generate(rows, 8, max_new_tokens=60, seed=1, stop_token_ids=()).logprobs) == \
        bits(want.logprobs)


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.fixture
def alarm() -> Iterator[list[float]]:
    """SIGALRM acts as Ctrl-C; the list gets the times at which the handler ran."""
    seen: list[float] = []

    def handler(number: int, frame: object) -> None:
        seen.append(time.perf_counter())
        raise KeyboardInterrupt
    old = signal.signal(signal.SIGALRM, handler)
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


ROWS = [[1, 2, 3]] * 64
LONG: dict[str, Callable[[Model], object]] = {
    "generate": lambda m: m.generate(ROWS, 4, max_new_tokens=500, stop_token_ids=()),
    "logprobs": lambda m: m.logprobs(ROWS, [[4] * 500] * 256),
    "sft_gradient": lambda m: m.sft_gradient(ROWS, [[4] * 500] * 64, mtp_coef=0.3),
    "policy_gradient": lambda m: m.policy_gradient(
        ROWS, [[4] * 500] * 64, advantages=[1] * 64, weights=[1] * 64, old_logprobs=[-4.0] * 64),
    "score": lambda m: m.score([[4] * 500] * 256),
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_stops_a_long_call(alarm: list[float], name: str) -> None:
    """The handler runs soon after the signal (the core polls every 50 ms; a second is allowed here,
    for busy machines), its exception comes out, and the model then gives the same bits as before."""
    model = Model(ModelConfig.tiny_moe(vocab_size=V, eos_token_id=1, score_head=True))
    want = bits([*model.logprobs(PROMPTS, [[4, 5]] * 3), *model.state_dict().values()])
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(KeyboardInterrupt):
        LONG[name](model)
    end = time.perf_counter()
    assert len(alarm) == 1
    assert alarm[0] - (start + 0.05) < 1.0 and end - alarm[0] < 1.0
    assert bits([*model.logprobs(PROMPTS, [[4, 5]] * 3), *model.state_dict().values()]) == want
    model.zero_grad()
    model.sft_gradient(PROMPTS, [[4, 5]] * 3)
    assert model.update(1e-3) > 0


def test_a_session_goes_on_after_ctrl_c(alarm: list[float]) -> None:
    model = Model(ModelConfig.tiny_moe(vocab_size=V, eos_token_id=1))
    options = dict(max_new_tokens=60, seed=2, stop_token_ids=())
    want = model.generate(ROWS, 2, **options)
    session = model.session(ROWS, 2, **options)
    interrupts = 0
    while not session.done:
        try:  # one alarm at a time, set and cleared in here: none may meet pytest
            if interrupts < 3:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
            session.run(20)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts >= 1
    assert bits(session.rollout().logprobs) == bits(want.logprobs)


def test_a_handler_that_returns_stops_nothing() -> None:
    model = Model(ModelConfig.tiny_moe(vocab_size=V, eos_token_id=1))
    want = bits(model.logprobs(ROWS, [[4] * 100] * 64))
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        got = bits(model.logprobs(ROWS, [[4] * 100] * 64))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert got == want


# ---- fork ----------------------------------------------------------------------------------------


def in_child(work: Callable[[], bool]) -> int:
    """Exit code of a forked child: 0 if work is True, 1 if not, 2 for a RuntimeError; a child that
    hangs is ended by its alarm after 20 s."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        code = 3
        try:
            code = 0 if work() else 1
        except RuntimeError:
            code = 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 warns of fork beside threads
def test_a_forked_child_computes() -> None:
    set_num_threads(3)
    model = make("moe")
    want = bits(model.generate(PROMPTS, 2, max_new_tokens=20).logprobs)

    def again() -> bool:
        return bits(model.generate(PROMPTS, 2, max_new_tokens=20).logprobs) == want

    def with_new_threads() -> bool:
        set_num_threads(2)
        other = make("moe")
        return again() and bits(other.generate(PROMPTS, 2, max_new_tokens=20).logprobs) == want
    assert in_child(again) == 0
    assert in_child(with_new_threads) == 0
    assert again()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_call_does_not_hang() -> None:
    set_num_threads(3)
    model = Model(ModelConfig.tiny_moe(vocab_size=64))
    worker = threading.Thread(target=lambda: model.logprobs([[1]] * 64, [[2] * 200] * 64))
    worker.start()
    codes = [in_child(lambda: len(model.generate(PROMPTS, max_new_tokens=2)) == 3) for _ in range(5)]
    worker.join()
    assert set(codes) <= {0, 2}
    assert in_child(lambda: len(model.generate(PROMPTS, max_new_tokens=2)) == 3) == 0
