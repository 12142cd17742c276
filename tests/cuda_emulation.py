"""Builds kernels/ for the host, over tests/emulation/, and loads it: a CUDA backend without a GPU.

The library lies in build/cuda_emulation/ and is built again when a source, a flag or the compiler
changes. CXX chooses the compiler (g++); R1GRPO_SANITIZE as in setup.py, where the process was started
with the sanitizer's library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from r1grpo import _core

ROOT = Path(__file__).resolve().parents[1]
EMULATION = ROOT / "tests" / "emulation"
BUILD = ROOT / "build" / "cuda_emulation"
SANITIZE = os.environ.get("R1GRPO_SANITIZE", "")
COMMON = ["-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra",
          "-Wno-unused-function", "-Wno-unknown-pragmas", "-Werror",
          *(["-mfma"] if "avx2" in _core.tiers() else []),  # fmaf() is slow without
          *([f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else [])]
CXX = [*shlex.split(os.environ.get("CXX", "g++")), *COMMON, "-std=c++20", "-I", str(EMULATION)]
CC = [*shlex.split(os.environ.get("CC", "gcc")), *COMMON, "-std=c11",
      "-I", sysconfig.get_path("include")]


CUDA = [*CXX, "-x", "c++"]
BARE = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a compiler is not sanitised


def backend() -> dict[Path, list[str]]:
    """How each source of r1grpo._cuda is compiled."""
    cuda = {path: CUDA for path in sorted(ROOT.glob("kernels/*.cu"))}
    host = {path: CXX for path in sorted(EMULATION.glob("*.cpp"))}
    core = [ROOT / "csrc/base/arena.c", ROOT / "csrc/base/status.c", ROOT / "csrc/bind/cuda_module.c"]
    advantage = {ROOT / "csrc/cpu/advantage.c": [*CC, "-DR1_TIER=cuda"]}  # an op on host arrays
    return cuda | host | {path: CC for path in core} | advantage


def compile_source(source: Path, command: list[str], headers: bytes) -> Path:
    """The object of one source, named by everything that it depends on."""
    key = hashlib.sha256(headers + repr(command).encode() + source.read_bytes()).hexdigest()[:16]
    built = BUILD / f"{source.stem}-{key}.o"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        done = subprocess.run([*command, "-c", str(source), "-o", str(part)], capture_output=True,
                              text=True, env=BARE)
        if done.returncode:
            raise RuntimeError(f"{source.relative_to(ROOT)} does not compile over the emulation:\n{done.stderr}")
        part.replace(built)
    return built


def build(name: str, sources: dict[Path, list[str]]) -> Path:
    """The library of these sources. FileNotFoundError without a C++ compiler; RuntimeError with the
    compiler's words where a source is wrong."""
    if shutil.which(CXX[0]) is None:
        raise FileNotFoundError(f"{CXX[0]} is not installed")
    BUILD.mkdir(parents=True, exist_ok=True)
    patterns = ("kernels/*.cuh", "csrc/*.h", "csrc/base/*.h", "csrc/bind/*.h", "csrc/cpu/cpu.h",
                "tests/emulation/*.h")
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    headers = b"".join(hashlib.sha256(p.read_bytes()).digest() for p in sorted(paths))
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(lambda job: compile_source(*job, headers), sources.items()))
    key = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*CXX, "-shared", *map(str, objects), "-o", str(part)], check=True, env=BARE)
        part.replace(library)
    return library


@functools.cache
def load() -> ModuleType:
    """The emulated r1grpo._cuda."""
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(build("_cuda", backend())))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_cuda", loader))
    loader.exec_module(module)
    return module


def build_probes() -> Path:
    """The emulator with tests/emulation/probes.cu: for tests of itself."""
    return build("probes", backend() | {EMULATION / "probes.cu": CUDA})
