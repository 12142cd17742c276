"""Build of r1grpo._core; everything that is not C is in pyproject.toml.

One extension from csrc/: the files of csrc/cpu/ (all but isa.c, which chooses) are compiled once
per instruction-set tier, each tier into a folder of its own, the rest once. A tier whose flags the
compiler refuses is left out, and isa.c is told so (R1_NO_AVX2, R1_NO_AVX512, ...).

    pip install .                            a normal build
    python setup.py build_ext --inplace      rebuild only what changed, into the source tree
    R1GRPO_SANITIZE=address,undefined        the same with sanitizers and assertions

    R1GRPO_WERROR=1                          a warning of a compiler is an error
    R1GRPO_CUDA=0|1|auto                     without, with, where possible: the CUDA backend (build_cuda.py)

Floating point is part of the contract: no fast-math, no contraction, no -march=native.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

sys.path.insert(0, str(Path(__file__).parent))  # which a build in isolation leaves out
import build_cuda  # noqa: E402

CSRC, KERNELS = Path("csrc"), Path("kernels")
FLAGS = ["-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden",
         "-pthread", "-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wno-psabi"]
TIERS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    TIERS["avx2"] = ["-mavx2", "-mfma"]
    TIERS["avx512"] = [*TIERS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    TIERS["avx512bf16"] = [*TIERS["avx512"], "-mavx512bf16"]
    TIERS["amx"] = [*TIERS["avx512bf16"], "-mamx-tile", "-mamx-bf16"]
# An assembler may be older than its compiler: one instruction of the tier that is hardest to have.
PROBE = """void probe(void);
#if defined(__AMX_BF16__)
#include <immintrin.h>
void probe(void) { _tile_dpbf16ps(0, 1, 2); }
#else
void probe(void) {}
#endif
"""
SANITIZE = os.environ.get("R1GRPO_SANITIZE", "")
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
              "-O1", "-g", "-UNDEBUG"]
if build_cuda.WERROR:
    FLAGS += ["-Werror"]


@dataclass(frozen=True)
class Unit:
    """Some sources that share a folder of objects, flags and include paths."""

    folder: str
    sources: list[str]
    flags: list[str]
    includes: list[str]


class BuildCore(build_ext):
    """Compiles the units of a library two files at a time and links them into one shared object."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace:  # an editable install would otherwise forget its objects each time
            self.build_temp = "build/inplace"
        if SANITIZE:
            self.build_temp += "-" + SANITIZE.replace(",", "-")

    def build_extension(self, ext: Extension) -> None:
        self.compiler.set_include_dirs([])  # units() says who sees what
        if ext.name == "r1grpo._core":
            self.link(ext, self.compile_units(self.units()), ["-pthread", "-lm", "-lm"])
        else:
            self.build_cuda(ext)

    def compile_units(self, units: list[Unit]) -> list[str]:
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [pool.submit(self.compile_source, unit, source)
                    for unit in units for source in unit.sources]
        return [job.result() for job in jobs]

    def link(self, ext: Extension, objects: list[str], options: list[str]) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if SANITIZE:
            options = [*options, f"-fsanitize={SANITIZE}"]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=options,
                                         build_temp=self.build_temp)

    def build_cuda(self, ext: Extension) -> None:
        """r1grpo._cuda, of kernels/ and what it shares with the core. A table of other sources would be
        an old one: what is there of an earlier build goes first."""
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        try:
            toolkit = build_cuda.find_toolkit()
            if toolkit is None:
                raise CompileError("nvcc is not there: not in CUDA_HOME, PATH, /usr/local/cuda, nor a wheel")
            shared = Unit("cuda", [str(CSRC / "base/arena.c"), str(CSRC / "base/status.c"),
                                   str(CSRC / "bind/cuda_module.c")], [], self.include_dirs)
            host = Unit("cuda", [str(CSRC / "cpu/advantage.c")], ["-DR1_TIER=cuda"], [])
            with ThreadPoolExecutor(max_workers=2) as pool:
                objects = list(pool.map(lambda source: self.compile_kernels(toolkit, source),
                                        sorted(KERNELS.glob("*.cu"))))
            # no library's symbols are passed on
            self.link(ext, [*objects, *self.compile_units([shared, host])],
                      [*(f"-L{folder}" for folder in toolkit.libraries), "-lcudart_static",
                       "-pthread", "-ldl", "-lrt", "-Wl,--exclude-libs,ALL"])
        except (CompileError, LinkError, OSError, subprocess.CalledProcessError) as error:
            if build_cuda.wish() == "1":
                raise
            warnings.warn(f"built without CUDA: {error}", stacklevel=1)

    def compile_kernels(self, toolkit: build_cuda.Toolkit, source: Path) -> str:
        built = Path(self.build_temp, "cuda", source.with_suffix(".o").name)
        if self.is_old(built, [source, Path(build_cuda.__file__), *KERNELS.glob("*.cuh")]):
            toolkit.compile(source, built)
        return str(built)

    def units(self) -> list[Unit]:
        """The core sees neither Python nor NumPy; the binding sees both."""
        def sources(folder: str, *but: str) -> list[str]:
            return sorted(str(p) for p in (CSRC / folder).glob("*.c") if p.name not in but)

        tiers = [tier for tier in TIERS if self.accepts(TIERS[tier])]
        missing = [f"-DR1_NO_{tier.upper()}" for tier in TIERS if tier not in tiers]
        return [
            *(Unit(tier, sources("cpu", "isa.c"), [f"-DR1_TIER={tier}", *TIERS[tier]], [])
              for tier in tiers),
            Unit("core", [str(CSRC / "cpu/isa.c"), *sources("base"), *sources("model")], missing,
                 []),
            Unit("bind", sources("bind", "cuda_module.c"), [], [*self.include_dirs, numpy.get_include()]),
        ]

    def accepts(self, flags: list[str]) -> bool:
        """Does the compiler know these flags?"""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE)
            try:
                self.compiler.compile([str(source)], output_dir=folder,
                                      extra_postargs=[*flags, "-Werror"])
            except CompileError:
                return False
        return True

    def compile_source(self, unit: Unit, source: str) -> str:
        """The object of one source, compiled anew if it is older than what it may depend on."""
        folder = Path(self.build_temp, unit.folder)
        [built] = self.compiler.object_filenames([source], output_dir=str(folder))
        if self.is_old(Path(built), [Path(source)]):
            self.compiler.compile([source], output_dir=str(folder), include_dirs=unit.includes,
                                  extra_postargs=[*FLAGS, *unit.flags])
        return built

    def is_old(self, built: Path, sources: list[Path]) -> bool:
        """It is not there, or older than its sources or a header of the core."""
        newest = max(p.stat().st_mtime for p in [*sources, Path(__file__), *CSRC.rglob("*.h")])
        return self.force or not built.exists() or built.stat().st_mtime < newest


def extensions() -> list[str]:
    """The core, and the CUDA backend where it is wanted and can be."""
    wish = build_cuda.wish()
    cuda = not SANITIZE and (wish == "1" or (wish == "auto" and build_cuda.find_toolkit() is not None))
    return ["r1grpo._core", *(["r1grpo._cuda"] if cuda else [])]


setup(ext_modules=[Extension(name, sources=[]) for name in extensions()],
      cmdclass={"build_ext": BuildCore})
