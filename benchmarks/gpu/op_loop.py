"""op_loop.py - an op of the GPU's table, timed where its operands lie: op_loop.c from Python.

    with Loop("matmul_nt", bf16=True, N=4096, O=896, I=896) as loop: seconds(loop.run)
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import compiler
from r1grpo.cuda import cuda_ops

OPS = ("copy", "matmul_nt", "matmul_nn", "matmul_tn", "attention_fwd", "attention_bwd", "rmsnorm_fwd",
       "rmsnorm_bwd", "adamw")
FIELDS = ("op", "bf16", "N", "O", "I", "E", "B", "T", "rows", "H", "Hkv", "D", "Dv")
MESSAGE = 512  # more than an r1_status has
CAPSULE = b"r1grpo.ops"


class Spec(ctypes.Structure):
    """loop_spec."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


@functools.cache
def library() -> ctypes.CDLL:
    """op_loop.c and the core's status.c, compiled here. RuntimeError with the compiler's words."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "op_loop.so")
        done = subprocess.run([*compiler(), "-std=c11", "-O2", "-fPIC", "-shared", str(here / "op_loop.c"),
                               str(here.parents[1] / "csrc/base/status.c"), "-o", str(built)],
                              capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"op_loop.c does not compile: {done.stderr}")
        return ctypes.CDLL(str(built))  # stays mapped when the file is gone


def table(fast: bool) -> int:
    """The address of the CUDA backend's op table, or of its fast one."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return get(cuda_ops(fast), CAPSULE)


class Loop:
    """An op with operands on the device."""

    def __init__(self, op: str, ordinal: int = 0, fast: bool = False, **sizes: int) -> None:
        spec = Spec(**{"E": 1, "op": OPS.index(op), **sizes})
        self._library, self._loop = library(), ctypes.c_void_p()
        self._message = ctypes.create_string_buffer(MESSAGE)
        try:
            self._check(self._library.loop_open(ctypes.byref(self._loop), ctypes.c_void_p(table(fast)),
                                                ctypes.c_size_t(ordinal), ctypes.byref(spec), self._message))
        except RuntimeError:
            self.close()
            raise

    def run(self, times: int) -> None:
        """So many calls; returns when the device has done them."""
        self._check(self._library.loop_run(self._loop, ctypes.c_size_t(times), self._message))

    def _check(self, failed: int) -> None:
        if failed:
            raise RuntimeError(self._message.value.decode(errors="replace"))

    def close(self) -> None:
        self._library.loop_close(self._loop)
        self._loop = ctypes.c_void_p()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def seconds(run: Callable[[int], object], at_least: float = 0.05, repeats: int = 7) -> float:
    """Median seconds of one call: `repeats` measurements of so many calls that the end's waiting, some
    microseconds, does not count. run(times) returns when all are done."""
    run(1)
    times, took = 1, 0.0
    while took < at_least / 2 and times < 1 << 16:
        times *= 2
        took = _timed(run, times)
    return statistics.median(_timed(run, times) for _ in range(repeats)) / times


def _timed(run: Callable[[int], object], times: int) -> float:
    begin = time.perf_counter()
    run(times)
    return time.perf_counter() - begin
