"""Fixtures of the op tests: a device for every tier, and the same device at several thread counts.

A test that takes `device` runs once per instruction-set tier of this machine; `devices` are devices
of that tier whose results must be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from r1grpo import _core

THREADS = (1, 2, 3, 7)


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
