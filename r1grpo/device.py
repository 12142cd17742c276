"""The devices that models of this process compute on: a thread pool and a tier of kernels, and a GPU.

One pool for everything, since two pools on the same cores only get into each other's way. The tier is
the best that the processor has, fixed at first use: a model's packed weights belong to it.
"""

from __future__ import annotations

import time

from . import _core
from .batch import as_count
from .cuda import cuda_ops

__all__ = ["FAST", "get_device", "peak_flops", "set_num_threads"]

FAST = "cuda/fast"  # the first GPU without E1: what was sampled has other bits in training

_current: list[_core.Device] = []
_gpu: dict[str, _core.Device] = {}
_peaks: dict[tuple[str, str], float] = {}  # of the current devices, by device and dtype


def get_device(name: str = "cpu") -> _core.Device:
    """The process's device, opened at first use: "cpu" with all the CPUs that it may use, "cuda" the
    first GPU that is visible, FAST the same one in its fast mode. RuntimeError where there is none,
    with the reason."""
    if name in ("cuda", FAST):
        if name not in _gpu:
            _gpu[name] = _core.Device(ops=cuda_ops(fast=name == FAST))
        return _gpu[name]
    if name != "cpu":
        raise ValueError(f"device '{name}' is unknown; there are 'cpu', 'cuda' and '{FAST}'")
    if not _current:
        _current.append(_core.Device())
    return _current[0]


def reading_gpu() -> _core.Device:
    """What reads arrays on this process's GPU: the device that is open there, in whichever mode, else
    "cuda"."""
    return next(iter(_gpu.values()), None) or get_device("cuda")


def set_num_threads(n: int) -> None:
    """Compute on n threads from now on, more than there are cores if asked. No result depends on it."""
    n = as_count(n, "set_num_threads: n", 1)
    _current[:] = [_core.Device(n, get_device().tier)]
    _peaks.clear()


def peak_flops(dtype: str = "float32", name: str = "cpu") -> float:
    """Floating-point operations a second that the device's threads reach on registers alone: the most
    that products in this dtype could. Measured once, in a few milliseconds: the best of nine."""
    if (name, dtype) not in _peaks:
        device, rounds, rates = get_device(name), 1, []
        device.spin(dtype, rounds)  # wakes the threads
        while len(rates) < 9:
            started = time.perf_counter()
            operations = device.spin(dtype, rounds)
            seconds = time.perf_counter() - started
            if seconds < 2e-4 and rounds < 1 << 22:
                rounds *= 2
            else:
                rates.append(operations / seconds)
        _peaks[name, dtype] = max(rates)
    return _peaks[name, dtype]
