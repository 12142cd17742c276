"""build.py - part `build`: everything compiles here, without warnings, spills or stray symbols, and is loaded.

Needs nothing of r1grpo but its sources, since this makes the rest. The kernels are compiled with setup.py's
flags, to where setup.py looks for them, and ptxas is asked what registers and memory each kernel takes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

from .facts import ROOT, said
from .record import Part, Rows

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def tools() -> ModuleType:
    """build_cuda.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("build_cuda", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def kernels_of(text: str) -> Iterator[dict[str, Any]]:
    """What ptxas -v says of each kernel and target."""
    kernel: dict[str, Any] = {}
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            kernel = {"kernel": entry[1], "target": entry[2], "stack": 0, "spilled": 0}
        elif kernel and (spill := SPILL.search(line)):
            kernel |= {"stack": int(spill[1]), "spilled": int(spill[2]) + int(spill[3])}
        elif kernel and (used := USED.search(line)):
            yield kernel | {"registers": int(used[1]), "static_shared": int(used[2] or 0)}
            kernel = {}


def plain(names: list[str]) -> list[str]:
    """Names as the source has them, where c++filt is installed."""
    text = said(["c++filt", *names]) if names else None
    return text.splitlines() if text else names


def compile_one(nvcc: list[str], source: Path, folder: Path) -> dict[str, Any]:
    begin, built = time.monotonic(), folder / f"{source.stem}.o"
    done = subprocess.run([*nvcc, "-Xptxas", "-v", "-c", str(source), "-o", str(built)], cwd=ROOT,
                          capture_output=True, text=True)
    found = list(kernels_of(done.stderr))
    for kernel, name in zip(found, plain([one["kernel"] for one in found]), strict=True):
        kernel["kernel"] = name
    warnings = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    return {"source": source.name, "seconds": time.monotonic() - begin, "code": done.returncode,
            "kernels": len(found), "registers": max((one["registers"] for one in found), default=0),
            "warnings": warnings[:20], "spills": [one for one in found if one["spilled"]],
            "stacks": [one for one in found if one["stack"] and not one["spilled"]],
            "text": done.stderr[-3000:] if done.returncode else ""}


def compiled(rows: Rows, pattern: str) -> None:
    """All sources at once, as many as there are processors."""
    cuda = tools()
    toolkit = cuda.find_toolkit()
    if toolkit is None:
        raise RuntimeError("nvcc is not there: not in CUDA_HOME, PATH, /usr/local/cuda, nor a wheel")
    nvcc = [str(toolkit.nvcc), *cuda.FLAGS, *(f"-I{folder}" for folder in toolkit.includes)]
    folder = ROOT / "build/inplace/cuda"
    folder.mkdir(parents=True, exist_ok=True)
    rows.add(nvcc=said([str(toolkit.nvcc), "--version"]), flags=" ".join(cuda.FLAGS))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for job in as_completed([pool.submit(compile_one, nvcc, source.relative_to(ROOT), folder)
                                 for source in sorted((ROOT / "kernels").glob(pattern))]):
            row = rows.add(**job.result())
            if row["code"] or row["warnings"] or row["spills"]:
                rows.wrong.append(row["source"])


def linked(rows: Rows, seconds: float) -> None:
    """setup.py's build, which finds the kernels compiled."""
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, text=True,
                          env={**os.environ, "R1GRPO_CUDA": "1"}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=max(seconds, 1.0), errors="replace")
    rows.add(code=done.returncode, text=done.stdout[-2000:] if done.returncode else "")
    if done.returncode:
        rows.wrong.append("setup.py build_ext")


def symbols(rows: Rows) -> None:
    """A library wants nothing of ours that it does not have, and shows its module alone."""
    for library in sorted((ROOT / "r1grpo").glob("_c*.so")):
        wants = said(["nm", "-D", "--undefined-only", str(library)]) or ""
        shows = said(["nm", "-D", "--defined-only", str(library)])
        if shows is None:
            raise RuntimeError(f"nm does not read {library.name}")
        row = rows.add(library=library.name, shows=[line.split()[-1] for line in shows.splitlines()],
                       strays=[line for line in wants.splitlines() if "r1_" in line])
        if row["strays"] or not all(name.startswith("PyInit_") for name in row["shows"]):
            rows.wrong.append(library.name)


def opened(rows: Rows) -> None:
    """In a process of its own: the library is loaded and opens the GPU."""
    script = ("from r1grpo.cuda import describe_gpu; from r1grpo.device import get_device;"
              "print(get_device('cuda').name, describe_gpu())")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    rows.add(device=done.stdout.strip())


def run(part: Part, sources: str = "*.cu", **_: str) -> None:
    part.piece("kernels", compiled, "bias.cu" if part.quick else sources)
    if not part.quick:
        part.piece("library", linked, part.left)
    part.piece("symbols", symbols)
    part.piece("the GPU is opened", opened)
