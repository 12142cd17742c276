"""pytest_run.py - the CUDA tests in processes of their own, a file each: one that dies takes no other along.

    chosen_files(target)         test files that have tests on that device
    run_file(file, target, ..)   what became of them, perhaps under another program (compute-sanitizer)
    run_files(files, ...)        several at a time, in the order in which they end

target: the names of the devices, as on_device.py takes them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .facts import ROOT

Row = dict[str, Any]


def _pytest(target: str, outcomes: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.on_device",
            "--on-device", target, "--outcomes", str(outcomes), *arguments]


def _lines(outcomes: Path) -> list[Row]:
    return [json.loads(line) for line in outcomes.read_text("utf-8").splitlines()] if outcomes.exists() else []


def _run(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: out of time, and all that it has started is ended with it) and output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with subprocess.Popen([*command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, errors="replace", start_new_session=True) as process:
        try:
            text, _ = process.communicate(timeout=max(seconds, 1.0))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # a child alone would keep the pipe, and us, waiting
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, process.communicate()[0]
    return process.returncode, text


def chosen_files(target: str, folder: str = "tests", seconds: float = 120.0) -> list[str]:
    """RuntimeError where there is none."""
    with tempfile.TemporaryDirectory() as temporary:
        outcomes = Path(temporary, "lines")
        code, text = _run(_pytest(target, outcomes, "--collect-only", folder), seconds)
        files = dict.fromkeys(line["chosen"].split("::")[0] for line in _lines(outcomes))
    if not files:
        raise RuntimeError(f"no test runs on {target} (pytest's exit code {code}): {text[-600:]}")
    return list(files)


def run_file(file: str, target: str, seconds: float, before: Sequence[str] = (), keep: bool = False
             ) -> Row:
    """{"file", "passed", "failed", "skipped", "missing", "seconds", "ended", "failures", "output"}: missing tests
    were chosen and have no outcome; failures: the first three; output: its end, where not all is well or it is
    to be kept. before: the program that runs it."""
    with tempfile.TemporaryDirectory() as temporary:
        outcomes = Path(temporary, "lines")
        code, text = _run([*before, *_pytest(target, outcomes, file)], seconds)
        lines = _lines(outcomes)
    ran = [line for line in lines if "test" in line]
    count = {name: sum(line["outcome"] == name for line in ran) for name in ("passed", "failed", "skipped")}
    failures = [{"test": line["test"], "text": line["text"]} for line in ran if line["outcome"] == "failed"]
    known = {line["test"] for line in ran}
    missing = [line["chosen"] for line in lines if "chosen" in line and line["chosen"] not in known]
    ended = "out of time" if code is None else f"exit code {code}"
    whole = code == 0 and not missing and bool(ran)
    return {"file": file, **count, "missing": len(missing), "first_missing": missing[:1],
            "seconds": sum(line["seconds"] for line in ran), "ended": ended, "failures": failures[:3],
            "output": "" if whole and not keep else text[-3000:]}


def run_files(files: Sequence[str], one: Callable[[str, float], Row], seconds: float, at_a_time: int
              ) -> Iterator[Row]:
    """one(file, seconds that are left for all) of each."""
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(max_workers=at_a_time) as pool:
        for job in as_completed([pool.submit(lambda file: one(file, until - time.monotonic()), file)
                                 for file in files]):
            yield job.result()
