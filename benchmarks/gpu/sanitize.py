"""sanitize.py - part `sanitize`: the op tests, which are small, under compute-sanitizer's memcheck and racecheck.

memcheck sees accesses out of bounds, racecheck hazards between the threads of a block in shared memory. Only our
kernels are looked at: cuBLAS's are its own affair. Bounds are those of what the backend has allocated; the tests'
arrays, which kernels read through the bus, end with a page (on the emulated GPU ASan knows them to the byte).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .pytest_run import chosen_files, run_file, run_files
from .record import Part, Rows

FILES = ("adamw", "attention", "balance", "dispatch", "embed", "logp", "matmul", "mla", "rmsnorm", "rope", "router",
         "rows", "sample", "score_loss", "swiglu", "token_loss")
# What a call answers is the backend's to look at, and some tests want it to be an error.
OPTIONS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
OURS = ("--kernel-name", "kns=_kernel", "--kernel-name-exclude", "kns=cublas")  # as all in kernels/ end
FOUND = 86  # the exit code that says: something was found
AT_A_TIME = 8
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def program(name: str = "compute-sanitizer") -> str:
    """Its path. FileNotFoundError where it is not installed."""
    usual = Path("/usr/local/cuda/bin") / name
    path = shutil.which(name) or (str(usual) if usual.exists() else None)
    if path is None:
        raise FileNotFoundError(f"{name} is neither in PATH nor in {usual.parent}")
    return path


def chosen(rows: Rows, nodes: str, folder: str) -> list[str]:
    """The op tests' files."""
    wanted = {f"test_{name}.py" for name in FILES}
    files = [file for file in chosen_files(nodes, folder) if Path(file).name in wanted]
    rows.add(files=files)
    return files


def checked(rows: Rows, tool: str, seconds: float, files: list[str], nodes: str, sanitizer: str) -> None:
    """One tool over all files, several at a time."""
    before = [sanitizer, "--tool", tool, "--target-processes", "all", "--error-exitcode", str(FOUND),
              "--print-limit", "20", *OURS, *OPTIONS[tool]]
    for row in run_files(files, lambda file, left: run_file(file, nodes, left, before, keep=True), seconds,
                         AT_A_TIME):
        said = SUMMARY.search(row["output"])
        row["found"] = int(said[1] or said[2]) if said else None
        if row["found"] == 0 and row["ended"] == "exit code 0":
            row["output"] = ""
        else:
            rows.wrong.append(row["file"])
        rows.add(**row)


def run(part: Part, nodes: str = "cuda,real", folder: str = "tests", **_: str) -> None:
    try:
        sanitizer = program()
    except FileNotFoundError as error:
        part.refuse(str(error))
        return
    files = part.piece("files", chosen, nodes, folder) or []
    for i, tool in enumerate(OPTIONS):
        part.piece(tool, checked, tool, part.left / (len(OPTIONS) - i), files, nodes, sanitizer)
