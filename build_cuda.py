"""The CUDA half of setup.py: finds nvcc, compiles kernels/*.cu.

R1GRPO_CUDA=0 leaves r1grpo._cuda out, 1 demands it, auto (the default) builds it where nvcc is found
and takes a failure for a warning. nvcc comes from CUDA_HOME, CUDA_PATH, PATH, the toolkit's usual places, or the
nvidia wheels beside this Python. Machine code for sm_80 and sm_90a, and PTX for what comes after; the
CUDA runtime is linked in, so that nothing of CUDA but the driver is needed to run.

--fmad=false is part of the contract: a multiply-add rounds once only where the source says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TARGETS = ["-gencode", "arch=compute_80,code=[sm_80,compute_80]",
           "-gencode", "arch=compute_90a,code=sm_90a"]
HOST = "-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-threadsafe-statics,-Wall,-Wextra"
FLAGS = ["-std=c++20", "-O3", "--fmad=false", *TARGETS, "-Xcompiler", HOST]
WERROR = os.environ.get("R1GRPO_WERROR") == "1"
if WERROR:
    FLAGS += ["-Werror", "all-warnings", "-Xcompiler", "-Werror"]
PLACES = (Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True))
WISHES = ("0", "1", "auto")


def wish() -> str:
    """What R1GRPO_CUDA says."""
    said = os.environ.get("R1GRPO_CUDA", "auto")
    if said not in WISHES:
        raise SystemExit(f"R1GRPO_CUDA is {said!r}, must be one of {', '.join(WISHES)}")
    return said


@dataclass(frozen=True)
class Toolkit:
    """nvcc, and where its headers and libcudart_static.a are."""

    nvcc: Path
    includes: list[Path]
    libraries: list[Path]

    def compile(self, source: Path, built: Path) -> None:
        """One .cu to an object; CalledProcessError where nvcc refuses."""
        built.parent.mkdir(parents=True, exist_ok=True)
        command = [str(self.nvcc), *FLAGS, *(f"-I{folder}" for folder in self.includes),
                   "-c", str(source), "-o", str(built)]
        print(*command, flush=True)
        subprocess.run(command, check=True)


def find_toolkit() -> Toolkit | None:
    """The first nvcc of: CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda*, the nvidia wheels."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    if on_path:
        homes.append(Path(on_path).resolve().parents[1])
    for home in (*homes, *PLACES):
        libraries = [folder for folder in (home / "lib64", home / "lib") if holds_runtime(folder)]
        if (home / "bin" / "nvcc").exists() and libraries:
            return Toolkit(home / "bin" / "nvcc", [], libraries)
    return find_wheels()


def holds_runtime(folder: Path) -> bool:
    return (folder / "libcudart_static.a").exists()


def find_wheels() -> Toolkit | None:
    """The toolkit as pip installs it: nvidia/<part>/{bin,include,lib}."""
    for folder in sys.path:
        for nvcc in sorted(Path(folder or ".").glob("nvidia/*/bin/nvcc"), reverse=True):
            parts = sorted(nvcc.parents[2].iterdir())
            libraries = [p / "lib" for p in parts if holds_runtime(p / "lib")]
            if libraries:
                return Toolkit(nvcc, [p / "include" for p in parts if (p / "include").is_dir()], libraries)
    return None
