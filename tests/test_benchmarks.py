"""Every benchmark runs, in its smallest form; no time is looked at. Contestants that are not installed are
reported as absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MACHINE = {"processor", "cores", "tier", "threads", "compiler", "numpy", "date"}


def run(name: str, file: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The JSON that a benchmark writes, and what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-m", f"benchmarks.{name}", "--quick",
                           "--json", str(file), *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["quick"] and MACHINE <= found["machine"].keys() and found["rows"]
    assert not file.with_name(file.name + ".part").exists()
    return found, done.stdout


def test_ops(tmp_path: Path) -> None:
    found, text = run("bench_ops", tmp_path / "ops.json", "--only", "matmul", "--only", "moe")
    rows = [row for row in found["rows"] if row["part"] == "matmul"]
    assert {(row["dtype"], row["form"], row["rows"]) for row in rows} == {
        (dtype, form, n) for dtype in ("float32", "bfloat16") for form in ("nt", "nn", "tn")
        for n in (1, 8)}
    assert sum("over_blas" in row for row in rows) == 2
    assert all(row["microseconds"] > 0 and row["share"] > 0 for row in rows)
    assert found["bars"] and "x BLAS" in text and found["blas"]


def test_an_unknown_part_is_answered_with_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.bench_ops", "--only", "heads"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "there is matmul, ops, moe" in done.stderr


def test_a_contestant_that_cannot_take_part_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.harness import Worker

    with Worker("benchmarks.contestants.nobody", 1) as worker:
        assert "nobody" in worker.absent
        assert worker.ask({"rows": 1}) is None
    with Worker("benchmarks.contestants.openblas", 1) as worker:
        assert worker.absent is None and worker.ask({"rows": 1, "O": 4, "I": 4, "repeats": 1})
        assert worker.ask({"rows": 1}) is None and "KeyError" in worker.absent
