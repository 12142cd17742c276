"""The device that all models of this process compute on: a thread pool and a tier of kernels.

One for everything, since two pools on the same cores only get into each other's way. The tier is
the best that the processor has, fixed at first use: a model's packed weights belong to it.
"""

from __future__ import annotations

from . import _core
from .batch import as_count

__all__ = ["get_device", "set_num_threads"]

_current: list[_core.Device] = []


def get_device(name: str = "cpu") -> _core.Device:
    """The process's device, opened at first use with all the CPUs that it may use."""
    if name != "cpu":
        raise ValueError(f"device '{name}' is not available in this build; there is 'cpu'")
    if not _current:
        _current.append(_core.Device())
    return _current[0]


def set_num_threads(n: int) -> None:
    """Compute on n threads from now on, more than there are cores if asked. No result depends on it."""
    n = as_count(n, "set_num_threads: n", 1)
    _current[:] = [_core.Device(n, get_device().tier)]
