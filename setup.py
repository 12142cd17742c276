"""Build of r1grpo._core; everything that is not C is in pyproject.toml.

One extension from csrc/: the files of csrc/cpu/ (all but isa.c, which chooses) are compiled once
per instruction-set tier, each tier into a folder of its own, the rest once. A tier whose flags the
compiler refuses is left out, and isa.c is told so (R1_NO_AVX2, R1_NO_AVX512, ...).

    pip install .                            a normal build
    python setup.py build_ext --inplace      rebuild only what changed, into the source tree
    R1GRPO_SANITIZE=address,undefined        the same with sanitizers and assertions

Floating point is part of the contract: no fast-math, no contraction, no -march=native.
"""

from __future__ import annotations

import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("csrc")
FLAGS = ["-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden",
         "-pthread", "-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wno-psabi"]
TIERS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    TIERS["avx2"] = ["-mavx2", "-mfma"]
    TIERS["avx512"] = [*TIERS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    TIERS["avx512bf16"] = [*TIERS["avx512"], "-mavx512bf16"]
    TIERS["amx"] = [*TIERS["avx512"], "-mamx-tile", "-mamx-bf16"]
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


@dataclass(frozen=True)
class Unit:
    """Some sources that share a folder of objects, flags and include paths."""

    folder: str
    sources: list[str]
    flags: list[str]
    includes: list[str]


class BuildCore(build_ext):
    """Compiles the units two files at a time and links them into one shared object."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace:  # an editable install would otherwise forget its objects each time
            self.build_temp = "build/inplace"
        if SANITIZE:
            self.build_temp += "-" + SANITIZE.replace(",", "-")

    def build_extension(self, ext: Extension) -> None:
        self.compiler.set_include_dirs([])  # units() says who sees what
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [pool.submit(self.compile_source, unit, source)
                    for unit in self.units() for source in unit.sources]
        objects = [job.result() for job in jobs]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = ["-pthread", "-lm", "-lm", *([f"-fsanitize={SANITIZE}"] if SANITIZE else [])]
        self.compiler.link_shared_object(objects, str(target), extra_postargs=link,
                                         build_temp=self.build_temp)

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
        newest = max(p.stat().st_mtime for p in [Path(source), Path(__file__), *CSRC.rglob("*.h")])
        if self.force or not os.path.exists(built) or os.path.getmtime(built) < newest:
            self.compiler.compile([source], output_dir=str(folder), include_dirs=unit.includes,
                                  extra_postargs=[*FLAGS, *unit.flags])
        return built


setup(ext_modules=[Extension("r1grpo._core", sources=[])], cmdclass={"build_ext": BuildCore})
