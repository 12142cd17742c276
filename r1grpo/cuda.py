"""cuda.py - what of CUDA is on this machine: our backend, cuBLASLt, GPUs.

The backend is a library beside the core, there if the build had nvcc. cuBLASLt is opened here, since it is
found by what Python and the environment know; the backend takes the one that is open. Nothing is
touched before somebody asks. Knows nothing about models.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

__all__ = ["cuda_ops", "describe_gpu", "open_cublaslt"]

_NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")
_open: list[tuple[ctypes.CDLL, str]] = []


def _backend() -> ModuleType:
    try:
        return importlib.import_module("r1grpo._cuda")
    except ModuleNotFoundError:
        raise RuntimeError("device 'cuda': this build of r1grpo has no CUDA backend; build it where nvcc is,"
                           " with R1GRPO_CUDA=1") from None
    except ImportError as error:
        raise RuntimeError(f"device 'cuda': the CUDA backend does not load: {error}") from error


def cuda_ops(fast: bool = False) -> object:
    """The CUDA backend's op table, with cuBLASLt open if there is one; fast: of a device that gives E1
    up. RuntimeError in a build without the backend."""
    backend = _backend()
    open_cublaslt()
    return backend.fast_ops if fast else backend.ops


def describe_gpu(ordinal: int = 0) -> tuple[str, int, int]:
    """(name and versions, bytes free, bytes in all) of a GPU. RuntimeError where there is none, with the
    reason."""
    return _backend().describe(ordinal)


def open_cublaslt() -> str | None:
    """Where cuBLASLt was found, and it stays open: loaded already, the nvidia wheels, CUDA_HOME, the
    toolkit's usual places, the system's. None: nowhere."""
    for path, mode in () if _open else _candidates():
        try:
            _open.append((ctypes.CDLL(path, mode=mode), path))
            break
        except OSError:
            continue
    return _open[0][1] if _open else None


def _candidates() -> Iterator[tuple[str, int]]:
    """Paths to try, with their modes of dlopen."""
    for name in _NAMES:
        yield name, os.RTLD_LAZY | os.RTLD_NOLOAD
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [part / "lib" for place in sys.path for part in sorted(Path(place).glob("nvidia/*"))]
    folders += [Path(home) / lib for home in (*homes, "/usr/local/cuda") for lib in ("lib64", "lib")]
    for name in _NAMES:
        for folder in folders:
            if (folder / name).exists():
                yield str(folder / name), os.RTLD_LAZY
        yield name, os.RTLD_LAZY
