"""machine.py - the machine a benchmark ran on, and its limits.

    describe(device)   processor, cores, load, tier, threads, compiler, versions
    Limits(device)     .flops(dtype): multiply-add peak in registers, of the instruction that the tier's
                       products use; .read: a sweep over 1 GiB; .stream(bytes): y = a + b
                       .found: all of them, those of instructions that the tier does not use too

The limits come from peak.c, compiled here by the compiler that Python was built with (CC) and the
flags that setup.py gives the device's tier, and peak_x86.c, and are run on as many threads as the
device has. They share no code with what they are held against. Knows nothing about ops.
"""

from __future__ import annotations

import ctypes
import mmap
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
FLAGS = ["-O3", "-ffp-contract=off", "-Wno-psabi", "-Wno-unknown-pragmas", "-fPIC",
         "-shared"]
TIER_FLAGS = {"baseline": [], "avx2": ["-mavx2", "-mfma"],
              "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}


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


def _facts() -> dict[str, str]:
    """What the system says of the last processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return dict(part for part in (tuple(map(str.strip, line.split(":", 1))) for line in lines)
                if len(part) == 2)


def _processor() -> str:
    facts = _facts()
    name = facts.get("model name") or platform.processor() or "unknown"
    if "cpu family" in facts:
        name += f", family {facts['cpu family']} model {facts['model']}"
    return name


def seconds_of(call: Callable[[], object], at_least: float = 0.005, repeats: int = REPEATS
               ) -> tuple[float, float]:
    """Median and least seconds of one call, from `repeats` measurements; each takes at_least seconds,
    in which the call is repeated as often as fits."""
    call()
    started = time.perf_counter()
    call()
    once = max(time.perf_counter() - started, 1e-9)
    times = max(1, round(at_least / once))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(times):
            call()
        seconds.append((time.perf_counter() - started) / times)
    return statistics.median(seconds), min(seconds)


class Limits:
    """What as many threads as the device has can do at all: so each is the best of its measurements,
    and `again` may only raise it. None where the processor or the compiler lacks the instruction."""

    def __init__(self, device: _core.Device, quick: bool = False) -> None:
        self.device, self.threads = device, device.threads
        self._pool = ThreadPoolExecutor(self.threads)
        self._lib = _compile("peak.c", "-std=c11", *TIER_FLAGS[_family(device.tier)])
        if self._lib is None:
            raise RuntimeError(f"{compiler()[0]} does not compile benchmarks/peak.c: no limit to compare with")
        self._x86 = _compile("peak_x86.c", "-std=gnu11") if platform.machine() == "x86_64" else None
        self._streams: dict[int, float] = {}
        self._reps = 1_000 if quick else 100_000
        self._swept = 1 << (24 if quick else 30)
        flags = _facts().get("flags", "").split()
        self._bf16 = {name: flag in flags and self._x86 is not None
                      for name, flag in (("vdpbf16ps", "avx512_bf16"), ("tdpbf16ps", "amx_bf16"))}
        self.found: dict[str, float | None] = {}
        self.again()

    def again(self) -> None:
        """Measure anew."""
        now: dict[str, float | None] = {
            f"float32, {self.device.tier}": self._rate(self._lib.peak_fma),
            "bf16, vdpbf16ps": self._bf16["vdpbf16ps"] and self._rate(self._x86.peak_dot) or None,
            "bf16, tdpbf16ps": self._bf16["tdpbf16ps"] and self._rate(self._x86.peak_amx) or None,
            "read, 1 GiB": self._read() / 1e9}
        self.found |= {name: None if rate is None else max(rate, self.found.get(name) or 0.0)
                       for name, rate in now.items()}

    def flops(self, dtype: str = "float32") -> float:
        """Floating-point operations a second of the instruction that the tier multiplies with."""
        name = f"float32, {self.device.tier}"
        if dtype == "bfloat16":
            name = "bf16, tdpbf16ps" if "amx" in self.device.tier else \
                "bf16, vdpbf16ps" if "bf16" in self.device.tier else name
        return 1e9 * (self.found[name] or 0.0)

    @property
    def read(self) -> float:
        """Bytes a second of reading memory from end to end, beyond the caches."""
        return 1e9 * (self.found["read, 1 GiB"] or 0.0)

    def stream(self, size: int) -> float:
        """Bytes a second of y = a + b where all three arrays together have about `size` bytes,
        rounded up to a power of two."""
        size = 1 << max(size - 1, 1 << 14).bit_length()
        if size not in self._streams:
            n = size // 12 // self.threads // 16 * 16  # floats of an array and thread
            parts = [[np.ones(n, np.float32) for _ in "yab"] for _ in range(self.threads)]
            reps = max(1, (1 << 25) // (12 * n))
            best = seconds_of(lambda: self._each(lambda i: self._lib.peak_stream(
                *(array.ctypes.data for array in parts[i]), n, reps)))[1]
            self._streams[size] = self.threads * 12 * n * reps / best
        return self._streams[size]

    def _rate(self, kernel: Callable[[int], float]) -> float:
        """10^9 operations a second of a kernel that returns how many it did."""
        done = self.threads * kernel(self._reps)
        return done / seconds_of(lambda: self._each(lambda _: kernel(self._reps)))[1] / 1e9

    def _read(self) -> float:
        """Bytes a second; the memory is held only meanwhile."""
        memory = mmap.mmap(-1, self._swept)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        x = np.frombuffer(memory, np.float32)
        x[:] = 1.0
        part = x.nbytes // self.threads // 4096 * 4096
        return part * self.threads / seconds_of(lambda: self._each(
            lambda i: self._lib.peak_read(x.ctypes.data + i * part, part // 4)))[1]

    def _each(self, run: Callable[[int], object]) -> None:
        list(self._pool.map(run, range(self.threads)))


def _family(tier: str) -> str:
    """The tier whose vectors and multiply-adds this one has."""
    return "avx512" if tier.startswith("avx512") or "amx" in tier else tier


def _compile(source: str, *flags: str) -> ctypes.CDLL | None:
    """A library from a source of this folder; None where the compiler does not know its instructions."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "peak.so")
        done = subprocess.run([*compiler(), *FLAGS, *flags, str(Path(__file__).with_name(source)),
                               "-o", str(target)], stderr=subprocess.DEVNULL, check=False)
        if done.returncode:
            return None
        library = ctypes.CDLL(str(target))  # stays mapped when the file is gone
    for name, arguments in (("peak_fma", 1), ("peak_dot", 1), ("peak_amx", 1)):
        if hasattr(library, name):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_size_t] * arguments, ctypes.c_double
    if hasattr(library, "peak_stream"):
        library.peak_stream.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 2
        library.peak_stream.restype = None
        library.peak_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.peak_read.restype = ctypes.c_float
    return library
