"""torch_gpu.py - PyTorch on the GPU: {"what": "copy" of `size` bytes, or "matmul" of two bf16 (n, n)} -> the
median seconds of one. RuntimeError where PyTorch sees no GPU."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

if not torch.cuda.is_available():
    raise RuntimeError("this PyTorch sees no GPU")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["what"] == "copy":
        a = torch.randint(-2**31, 2**31 - 1, (request["size"] // 4,), dtype=torch.int32, device="cuda")
        b = torch.empty_like(a)

        def call() -> None:
            b.copy_(a)
    else:
        a, b = (torch.randn(request["n"], request["n"], dtype=torch.bfloat16, device="cuda") for _ in "ab")
        c = torch.empty_like(a)

        def call() -> None:
            torch.mm(a, b, out=c)
    for _ in range(3):
        call()
    found = []
    for _ in range(7):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - begin) / 20)
    return {"seconds": statistics.median(found), "versions": {"torch": torch.__version__}}
