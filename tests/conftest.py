"""Fixtures of the op tests: a device for every backend, and several whose bits must be equal; and the
folder that tests of commands run in.

A test that takes `device` runs once per instruction-set tier of this machine, once on the emulated GPU
(cuda_emulation.py), and on a real one where there is one. `devices` are four of a kind whose results
must be equal bit for bit: threads on the CPU; emulated GPUs that run blocks and threads in another order
each.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import command_run
import cuda_emulation
import numpy as np
import pytest

from r1grpo import _core, doctor, set_num_threads
from r1grpo.cuda import cuda_ops
from r1grpo.verifiers.sandbox import try_level

THREADS = (1, 2, 3, 7)


def pytest_report_header() -> str:
    return f"sandbox for generated programs: {doctor.sandbox()}"


@pytest.fixture(scope="session")
def level() -> str:
    """The best level of the sandbox that this machine has."""
    for one in ("full", "restricted"):
        if try_level(one)[1]:
            return one
    pytest.skip(f"no sandbox: full: {try_level('full')[0]}; restricted: {try_level('restricted')[0]}")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The models' device has two threads, again when the test ends."""
    set_num_threads(2)
    yield
    set_num_threads(2)


@pytest.fixture(scope="session", params=_core.tiers())
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


def open_gpu() -> _core.Device | None:
    """This machine's first GPU."""
    try:
        return _core.Device(ops=cuda_ops())
    except RuntimeError:
        return None


GPU = open_gpu()


def emulated_backend() -> ModuleType:
    try:
        return cuda_emulation.load()
    except FileNotFoundError as error:
        pytest.skip(f"no emulated GPU: {error}")


@pytest.fixture(scope="session", params=[*_core.tiers(), "emulated-cuda", *(["cuda"] if GPU else [])])
def devices(request: pytest.FixtureRequest) -> list[_core.Device]:
    """Devices of one tier with 1, 2, 3 and 7 threads; emulated GPUs; a GPU four times."""
    if request.param == "cuda":
        return [GPU] * len(THREADS)
    if request.param == "emulated-cuda":
        return [_core.Device(ops=emulated_backend().ops, ordinal=i) for i in range(len(THREADS))]
    return [_core.Device(threads=n, tier=request.param) for n in THREADS]


@pytest.fixture
def device(devices: list[_core.Device]) -> _core.Device:
    """Two threads: more than one, and no more than any machine has. An emulated GPU that shuffles."""
    return devices[1]


@pytest.fixture(params=["emulated", *(["real"] if GPU else [])])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """device="cuda" is an emulated GPU, or this machine's. gpu(i): from now on the emulated GPU that
    shuffles like i; the real one stays."""
    if request.param == "emulated":
        monkeypatch.setitem(sys.modules, "r1grpo._cuda", emulated_backend())

    def use(i: int) -> None:
        one = GPU if request.param == "real" else _core.Device(ops=emulated_backend().ops, ordinal=i)
        monkeypatch.setattr("r1grpo.device._gpu", {"cuda": one})
    use(1)
    return use


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250120)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands")
    command_run.fill(path)
    return path


@pytest.fixture
def here(filled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory: models, data and rewards, once per file of tests (command_run.py).
    main() shows warnings as lines; pytest wants its own way back afterwards."""
    monkeypatch.chdir(filled)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield filled
