"""facts.py - what a reader needs to know about the machine of a result; what cannot be found out is None.

Touches no GPU itself: nvidia-smi, nvcc and cuBLASLt are asked.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_QUERY = ("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem", "clocks.max.sm",
          "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu")


def said(command: Sequence[str]) -> str | None:
    """What a program prints; None where it is not there or fails."""
    try:
        done = subprocess.run([*command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def clocks() -> dict[str, str] | None:
    """Name, memory, clocks and power of the first GPU, as they are now."""
    text = said(["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"])
    return dict(zip(_QUERY, map(str.strip, text.splitlines()[0].split(",")), strict=False)) if text else None


def cublaslt() -> dict[str, Any] | None:
    """Path and version of the library that r1grpo would open."""
    from r1grpo.cuda import open_cublaslt

    path = open_cublaslt()
    if path is None:
        return None
    library = ctypes.CDLL(path)
    library.cublasLtGetVersion.restype = ctypes.c_size_t
    return {"path": path, "version": library.cublasLtGetVersion()}


def pins() -> dict[str, list[str]]:
    """Which products cuBLASLt computes and which are left to our kernels, for each GPU device that this process has
    open: with all that it met, the first thing to look at."""
    from r1grpo.device import _gpu

    return {name: device.pins.splitlines() for name, device in _gpu.items()}


def commit() -> str | None:
    """Of this tree; R1GRPO_COMMIT where the tree came without its history."""
    return os.environ.get("R1GRPO_COMMIT") or said(["git", "describe", "--always", "--dirty", "--abbrev=12"])


def machine() -> dict[str, Any]:
    """Everything that can be known before r1grpo is built."""
    nvcc = said(["nvcc", "--version"]) or said(["/usr/local/cuda/bin/nvcc", "--version"])
    return {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "commit": commit(), "gpu": clocks(),
            "nvcc": nvcc.splitlines()[-1] if nvcc else None, "cpus": os.cpu_count(),
            "python": platform.python_version(), "compute_sanitizer": shutil.which("compute-sanitizer")}
