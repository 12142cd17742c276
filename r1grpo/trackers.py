"""trackers.py - the metrics of a run for other people's dashboards: report_to = "wandb", ...

    tracker = open_trackers(args.report_to, folder)     raises here where a package is missing
    tracker.start(config)                               once, before the first step
    tracker.log(step, metrics)                          after each step
    tracker.finish()                                    after the last one

One small class a package over one protocol: tensorboard (the package tensorboardX), wandb, trackio.
The packages are optional and imported when they are asked for. metrics.jsonl remains the truth: a
tracker is a view, is given no array and decides nothing; one that fails in a run is warned of and
left out from then on. Values that are no finite number are left out. Knows nothing about trainers.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .brief import brief
from .toml import ConfigError, suggest

__all__ = ["TRACKERS", "Tracker", "Trackers", "open_trackers", "tracker_names"]

Config = Mapping[str, Any]
Metrics = Mapping[str, float]


class Tracker(Protocol):
    """What a dashboard must take."""

    def start(self, config: Config) -> None: ...
    def log(self, step: int, metrics: Metrics) -> None: ...
    def finish(self) -> None: ...


class TensorBoard:
    """Event files in FOLDER/tensorboard, for `tensorboard --logdir FOLDER`."""

    package = "tensorboardX"

    def __init__(self, folder: Path | None, name: str | None) -> None:
        self._module = _import(self.package, "tensorboard")
        self._folder = (folder or Path("runs")) / "tensorboard"

    def start(self, config: Config) -> None:
        self._writer = self._module.SummaryWriter(str(self._folder))
        lines = "\n".join(f"    {key} = {value}" for key, value in config.items())
        self._writer.add_text("config", lines)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; a resumed run is a new one in the same group."""

    package = "wandb"

    def __init__(self, folder: Path | None, name: str | None) -> None:
        self._module = _import(self.package, "wandb")
        self._folder, self._name = folder, name

    def start(self, config: Config) -> None:
        folder = self._folder and str(self._folder)
        self._run = self._module.init(project="r1grpo", name=self._name, group=self._name, dir=folder,
                                      config=dict(config))

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, whose calls are those of an older wandb."""

    package = "trackio"

    def __init__(self, folder: Path | None, name: str | None) -> None:
        self._module = _import(self.package, "trackio")
        self._name = name

    def start(self, config: Config) -> None:
        self._module.init(project="r1grpo", name=self._name, config=dict(config))

    def log(self, step: int, metrics: Metrics) -> None:
        self._module.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._module.finish()


class TrackerWarning(UserWarning):
    """A tracker failed; training goes on without it."""


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"report_to {extra!r} needs the package {package}: "
                          f"pip install 'r1grpo[{extra}]' ({error})") from error


def tracker_names(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """report_to as names: one, several, or "none". ConfigError for another name."""
    names = (report_to,) if isinstance(report_to, str) else tuple(report_to)
    names = tuple(name for name in names if name != "none")
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"report_to {brief(name)} is none of {', '.join(TRACKERS)}"
                              f"{suggest(name, TRACKERS)}")
    return names


class Trackers:
    """Several trackers as one; nothing at all where none was asked for."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers, self._started = list(trackers), False

    def log(self, config: Config, step: int, metrics: Mapping[str, Any]) -> None:
        """The numbers of a step; the first call starts the trackers with the config."""
        if not self._started:
            self._each(lambda one: one.start(config))
            self._started = True
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) and math.isfinite(value)}
        self._each(lambda one: one.log(step, numbers))

    def finish(self) -> None:
        """Close what was started."""
        if self._started:
            self._each(lambda one: one.finish())
        self._started = False

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for one in list(self._trackers):
            try:
                call(one)
            except Exception as error:  # a dashboard's fault must not end a run of days
                self._trackers.remove(one)
                warnings.warn(f"report_to: {type(one).__name__} failed and is left out from now "
                              f"on: {error!r}", TrackerWarning, stacklevel=3)


def open_trackers(report_to: str | Sequence[str], folder: str | Path | None = None,
                  name: str | None = None) -> Trackers:
    """The trackers of that name; a missing package raises ImportError that says what to install.
    folder: of the run; name: of the run, else the folder's."""
    path = Path(folder) if folder else None
    name = name or (path.name if path else None)
    return Trackers([TRACKERS[one](path, name) for one in tracker_names(report_to)])
