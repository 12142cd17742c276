"""machine.py - the machine a benchmark ran on, and its limits.

    describe(device)   processor, cores, load, tier, threads, compiler, versions
    Limits(device)     .flops(): multiply-add peak in registers;  .stream(bytes): memory rate

The limits come from peak.c, compiled here by the compiler that Python was built with (CC) and the
flags that setup.py gives the device's tier, and run on as many threads as the device has. Knows
nothing about ops.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import r1grpo
from r1grpo import _core

REPEATS = 15
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-fPIC",
         "-shared"]
TIER_FLAGS = {"baseline": [], "avx2": ["-mavx2", "-mfma"],
              "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}
TIER_FLAGS["avx512bf16"] = TIER_FLAGS["avx512"]


def compiler() -> list[str]:
    """The C compiler and its first options."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def describe(device: _core.Device) -> dict[str, Any]:
    """What a reader needs to know to compare two results."""
    version = subprocess.run([compiler()[0], "--version"], capture_output=True, text=True)
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "tier": device.tier,
        "threads": device.threads,
        "compiler": (version.stdout.splitlines() or ["unknown"])[0],
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "r1grpo": r1grpo.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = dict(part for part in (tuple(map(str.strip, line.split(":", 1))) for line in lines)
                 if len(part) == 2)
    name = facts.get("model name") or platform.processor() or "unknown"
    if "cpu family" in facts:
        name += f", family {facts['cpu family']} model {facts['model']}"
    return name


def seconds_of(call: Callable[[], object], at_least: float = 0.005) -> tuple[float, float]:
    """Median and least seconds of one call, from REPEATS measurements; each takes at_least seconds,
    in which the call is repeated as often as fits."""
    call()
    started = time.perf_counter()
    call()
    once = max(time.perf_counter() - started, 1e-9)
    times = max(1, round(at_least / once))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(times):
            call()
        seconds.append((time.perf_counter() - started) / times)
    return statistics.median(seconds), min(seconds)


class Limits:
    """Peak multiply-adds and memory rate of as many threads as the device has. A limit is what can
    be done at all, so it is the best of its measurements."""

    def __init__(self, device: _core.Device) -> None:
        self.threads = device.threads
        self._pool = ThreadPoolExecutor(self.threads)
        self._lib = _compile(TIER_FLAGS[device.tier])
        self._rates: dict[int, float] = {}

    def flops(self) -> float:
        """Floating-point operations a second."""
        reps = 100_000
        work = self.threads * reps * self._lib.peak_flops_per_rep()
        return work / seconds_of(lambda: self._each(lambda _: self._lib.peak_fma(reps)))[1]

    def stream(self, size: int) -> float:
        """Bytes a second of y = a + b where all three arrays together have about `size` bytes,
        rounded up to a power of two."""
        size = 1 << max(size - 1, 1 << 14).bit_length()
        if size not in self._rates:
            n = size // 12 // self.threads // 16 * 16  # floats of an array and thread
            parts = [[np.ones(n, np.float32) for _ in "yab"] for _ in range(self.threads)]
            reps = max(1, (1 << 25) // (12 * n))
            best = seconds_of(lambda: self._each(lambda i: self._lib.peak_stream(
                *(array.ctypes.data for array in parts[i]), n, reps)))[1]
            self._rates[size] = self.threads * 12 * n * reps / best
        return self._rates[size]

    def _each(self, run: Callable[[int], object]) -> None:
        list(self._pool.map(run, range(self.threads)))


def _compile(flags: list[str]) -> ctypes.CDLL:
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "peak.so")
        subprocess.run([*compiler(), *FLAGS, *flags, str(source), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))  # stays mapped when the file is gone
    library.peak_fma.argtypes, library.peak_fma.restype = [ctypes.c_size_t], ctypes.c_float
    library.peak_stream.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 2
    library.peak_stream.restype = None
    return library
