"""harness.py - what the benchmarks share: options, repeated timing, workers, results part by part.

    options(doc, parts)      --json FILE, --only PART, --quick, --threads N
    Report(name, ...)        prints rows as they come and rewrites the JSON after each of them
    interleaved(calls)       one measurement of each in turn, several times over: medians
    Worker(module)           a contestant in a process of its own, asked by JSON lines

Interleaving is the point: on a shared machine the speed drifts, so what is compared is measured in
turn, never one after the other. Results are written part by part and whole, so that a run may be
stopped at any time and what it found is kept. Knows nothing about what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1grpo import _core
from r1grpo.device import get_device, set_num_threads

from .machine import Limits, describe

Row = dict[str, Any]
ROOT = Path(__file__).parents[1]


def options(doc: str, parts: Sequence[str], *more: tuple[str, dict[str, Any]],
            arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line that every benchmark has; `only` comes back as the list of chosen parts."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--only", action="append", metavar="PART",
                        help=f"a part, or how its name begins; again for more: {', '.join(parts)}")
    parser.add_argument("--quick", action="store_true",
                        help="the smallest form of everything: does it run? No figure means anything")
    parser.add_argument("--threads", type=int, default=0, help="default: what this process may use")
    for flag, how in more:
        parser.add_argument(flag, **how)
    found = parser.parse_args(arguments)
    chosen = [part for part in parts
              if not found.only or any(part.startswith(one) for one in found.only)]
    if not chosen:
        parser.error(f"--only {' '.join(found.only)}: there is {', '.join(parts)}")
    found.only = chosen
    if found.threads:
        set_num_threads(found.threads)
    return found


class Report:
    """Rows of figures, printed as they come; the JSON file is whole after each."""

    def __init__(self, name: str, file: Path | None, quick: bool = False,
                 device: _core.Device | None = None) -> None:
        self.file, self.quick, self.rows = file, quick, []
        device = device or get_device()
        self.found: Row = {"benchmark": name, "quick": quick, "machine": describe(device),
                           "limits": {}}
        for key, value in self.found["machine"].items():
            print(f"{key + ':':14}{value}")
        self.limit_by(device)

    def limit_by(self, device: _core.Device) -> None:
        """Measure the limits of a device; shares are of them from now on."""
        self.limits = Limits(device, self.quick)
        self.found["limits"] |= self.limits.found
        for key, value in self.limits.found.items():
            unit = "GB/s" if key.startswith("read") else "GFLOP/s"
            print(f"{'limit:':14}{key} {'not here' if value is None else f'{value:.0f} {unit}'}")
        self.save()

    def measure_limits_again(self) -> None:
        """A neighbour may have been busy at the start: limits can only rise, rows to come use them."""
        self.limits.again()
        self.found["limits"] |= self.limits.found

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def add(self, row: Row, line: str) -> Row:
        """Keep a row and print it."""
        self.rows.append(row)
        print(line, flush=True)
        self.save()
        return row

    def save(self, **more: Any) -> None:
        self.found |= more
        if self.file:
            text = json.dumps({**self.found, "rows": self.rows}, indent=1, allow_nan=False)
            part = self.file.with_name(self.file.name + ".part")
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, self.file)


def interleaved(calls: Mapping[str, Callable[[], float | None]], repeats: int
                ) -> dict[str, list[float]]:
    """Seconds of each call, measured in turn `repeats` times; a call times itself and returns its
    seconds, or None where it cannot."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds = call()
            if seconds is not None:
                found[name].append(seconds)
    return found


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_of(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` calls behind one that warms up."""
    call()
    return statistics.median(timed(call) for _ in range(repeats))


class Worker:
    """A module with `answer(request) -> dict` in a process of its own, where its thread pool is alone;
    it idles between requests. `absent`: why it cannot take part, if it cannot."""

    def __init__(self, module: str, threads: int, **environment: str) -> None:
        self.absent: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness", module], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads),
                 "OPENBLAS_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
                 "HF_HUB_OFFLINE": "1", **environment})
        self.ask({})

    def ask(self, request: Row, limit: float | None = None) -> Row | None:
        """The answer; None once the worker is absent. limit: seconds after which it is ended."""
        if self.absent is None:
            watch = threading.Timer(limit or threading.TIMEOUT_MAX, self._process.kill)
            watch.daemon = True
            watch.start()
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
            finally:
                watch.cancel()
            answer = json.loads(line) if line else {"error": "the process died"}
            if "error" in answer:
                self.absent = answer["error"]
                self.close()
                return None
            return answer
        return None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(module: str) -> None:
    """The other side of a Worker: one JSON line a request, one an answer; an empty request asks whether
    the module can be imported. Whatever else writes to the standard output goes nowhere."""
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    contestant = None
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        try:
            contestant = contestant or importlib.import_module(module)
            if request:
                answer = contestant.answer(request)
        except Exception as error:  # told to the driver, which goes on without this one
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
