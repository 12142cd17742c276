"""ceilings.py - what the GPU can do at all, measured in the run that is held against it.

    Ceilings(rows, quick)    .matmul: bf16 operations a second;  .copy: bytes a second, read and written

A ceiling is the most that anything here reaches: the driver's own copy, PyTorch's copy and product (cuBLAS) in
a process of its own, our copy and our product of two large matrices. So a share is of the best that is
installed, and what is not is reported as None with the reason.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from benchmarks.harness import Worker

from .op_loop import Loop, seconds
from .record import Rows


def driver_copy(size: int) -> float:
    """Bytes a second of cuMemcpyDtoD in the primary context. OSError, RuntimeError where there is none."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, device = ctypes.c_void_p(), ctypes.c_int()
    src, dst = ctypes.c_uint64(), ctypes.c_uint64()
    noise = np.random.default_rng(0).integers(0, 256, min(size, 1 << 26), np.uint8)

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: CUDA driver error {code}")

    def copy(times: int) -> None:
        for _ in range(times):
            call("cuMemcpyDtoDAsync_v2", dst, src, ctypes.c_size_t(size), None)
        call("cuCtxSynchronize")

    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    try:
        call("cuMemAlloc_v2", ctypes.byref(src), ctypes.c_size_t(size))
        call("cuMemAlloc_v2", ctypes.byref(dst), ctypes.c_size_t(size))
        for at in range(0, size, noise.nbytes):
            call("cuMemcpyHtoD_v2", ctypes.c_uint64(src.value + at), noise.ctypes.data_as(ctypes.c_void_p),
                 ctypes.c_size_t(min(noise.nbytes, size - at)))
        return 2.0 * size / seconds(copy)
    finally:
        for memory in (src, dst):
            if memory.value:
                cuda.cuMemFree_v2(memory)
        cuda.cuDevicePrimaryCtxRelease_v2(device)


class Ceilings:
    """The most of everything that could be asked."""

    def __init__(self, rows: Rows, quick: bool) -> None:
        n, size, at_least = (64, 1 << 16, 0.0) if quick else (8192, 1 << 32, 0.05)
        self.matmul = self.copy = 0.0
        with Loop("copy", N=size // 4096, I=1024) as loop:
            self._add(rows, "copy", "ours, y = x / 2", 2.0 * size / seconds(loop.run, at_least))
        try:
            self._add(rows, "copy", "the driver's", driver_copy(size))
        except (OSError, RuntimeError, AttributeError) as error:
            rows.add(ceiling="copy", of="the driver's", value=None, why=str(error))
        for of, fast in (("ours", False), ("ours, fast mode", True)):
            with Loop("matmul_nt", fast=fast, bf16=1, N=n, O=n, I=n) as loop:
                self._add(rows, "matmul", of, 2.0 * n ** 3 / seconds(loop.run, at_least))
        with Worker("benchmarks.contestants.torch_gpu", 1) as torch:
            for what, work in (("copy", 2.0 * size), ("matmul", 2.0 * n ** 3)):
                answer = torch.ask({"what": what, "n": n, "size": size})
                if answer is None:
                    rows.add(ceiling=what, of="PyTorch", value=None, why=torch.absent)
                else:
                    self._add(rows, what, "PyTorch", work / answer["seconds"])

    def _add(self, rows: Rows, what: str, of: str, value: float) -> None:
        rows.add(ceiling=what, of=of, value=value)
        setattr(self, what, max(getattr(self, what), value))
