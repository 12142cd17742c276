"""What it costs to hold a program: milliseconds of a run at every level, beside a bare interpreter's.

    python -m benchmarks.bench_sandbox [--runs 40]

    bare         python -sSP -c "..." that prints an answer, as a process without walls
    first        a sandbox, one call of a function, its end
    overhead     first - bare
    next         one more call in the same sandbox
    verify_code  a verdict over three asserts

Medians of the clock, rounds interleaved; and CPU time, user and system, of all processes of a run, which
other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from r1grpo.verifiers import verify_code
from r1grpo.verifiers.sandbox import LEVELS, Sandbox, try_level

PROGRAM = "def f(x):\n    return x + 1\n"
CALL = b"['f', [1], {}]"
TESTS = ["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(used.ru_utime + used.ru_stime for used in
               map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def bare() -> None:
    interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    subprocess.run([interpreter, "-sSP", "-c", PROGRAM + "print(f(1))"], check=True, capture_output=True,
                   env={})


def calls(level: str, count: int) -> None:
    with Sandbox(level, "python", PROGRAM) as sandbox:
        for _ in range(count):
            if sandbox.run(b"f", CALL, 60.0).output != b"=2":
                raise RuntimeError("another answer")


def verdict(level: str) -> None:
    if not verify_code(PROGRAM, TESTS, level=level, accept_no_sandbox=True).correct:
        raise RuntimeError("not correct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    runs = parser.parse_args().runs
    found = {level: try_level(level) for level in LEVELS}
    for level, (what, works) in found.items():
        print(f"{level:11s} {'' if works else 'not here: '}{what}")
    levels = [level for level in LEVELS if found[level][1]]
    work: dict[tuple[str, str], Callable[[], None]] = {("", "bare"): bare}
    for level in levels:
        work |= {(level, "first"): lambda level=level: calls(level, 1),
                 (level, "eleven"): lambda level=level: calls(level, 11),
                 (level, "verify_code"): lambda level=level: verdict(level)}
    clock: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    cpu: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for _ in range(runs):
        for key, run in work.items():
            began, used = time.perf_counter(), cpu_seconds()
            run()
            clock[key].append(1e3 * (time.perf_counter() - began))
            cpu[key].append(1e3 * (cpu_seconds() - used))
    for name, times in (("clock", clock), ("CPU", cpu)):
        middle = {key: statistics.median(values) for key, values in times.items()}
        print(f"\n{name}, ms   first  overhead  next  verify_code   (bare: {middle['', 'bare']:.1f})")
        for level in levels:
            first, eleven = middle[level, "first"], middle[level, "eleven"]
            print(f"{level:11s} {first:6.1f} {first - middle['', 'bare']:9.1f} {(eleven - first) / 10:5.1f} "
                  f"{middle[level, 'verify_code']:12.1f}")


if __name__ == "__main__":
    main()
