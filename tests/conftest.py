"""Fixtures of the op tests: a device for every tier, and the same device at several thread counts;
and the folder that tests of commands run in.

A test that takes `device` runs once per instruction-set tier of this machine; `devices` are devices
of that tier whose results must be equal bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import command_run
import numpy as np
import pytest

from r1grpo import _core, set_num_threads

THREADS = (1, 2, 3, 7)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The models' device has two threads, again when the test ends."""
    set_num_threads(2)
    yield
    set_num_threads(2)


@pytest.fixture(scope="session", params=_core.tiers())
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def devices(tier: str) -> Iterator[list[_core.Device]]:
    """Devices of one tier with 1, 2, 3 and 7 threads."""
    yield [_core.Device(threads=n, tier=tier) for n in THREADS]


@pytest.fixture
def device(devices: list[_core.Device]) -> _core.Device:
    """Two threads: more than one, and no more than any machine has."""
    return devices[1]


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
