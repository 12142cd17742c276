"""on_device.py - a plugin of pytest: only the tests that run on one kind of device, and what became of each.

    python -m pytest -p benchmarks.gpu.on_device --on-device cuda,real --outcomes FILE

The two names are parameters of the fixtures `devices` and `gpu` of tests/conftest.py. FILE gets a JSON line for
each chosen test when it is collected and one when it has run, so that a process that dies says where.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on-device", required=True)
    parser.addoption("--outcomes", required=True, type=Path)


class Outcomes:
    """Chooses, and writes the lines."""

    def __init__(self, devices: str, gpu: str, file: Path) -> None:
        self.wanted, self.file = {"devices": devices, "gpu": gpu}, file

    def write(self, **line: object) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def is_wanted(self, item: pytest.Item) -> bool:
        params = getattr(item, "callspec", None) and item.callspec.params or {}
        return any(params.get(fixture) == name for fixture, name in self.wanted.items())

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if self.is_wanted(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
        for item in items:
            self.write(chosen=item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(test=report.nodeid, outcome=report.outcome, seconds=report.duration,
                       text="" if report.outcome == "passed" else str(report.longrepr)[-3000:])


def pytest_configure(config: pytest.Config) -> None:
    devices, gpu = config.getoption("--on-device").split(",")
    config.pluginmanager.register(Outcomes(devices, gpu, config.getoption("--outcomes")))
