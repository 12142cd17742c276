"""Every benchmark runs, in its smallest form; no time is looked at. Contestants that are not installed are
reported as absent."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from real_data import data_file

from r1grpo.verifiers.sandbox import try_level

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


def test_step(tmp_path: Path) -> None:
    found, text = run("bench_step", tmp_path / "step.json", "--only", "tiny")
    assert [(row["kind"], row["dtype"]) for row in found["rows"]] == [
        (kind, dtype) for kind in ("sft", "generate", "grpo") for dtype in ("float32", "bfloat16")]
    assert set(found["rows"][-1]["parts"]) == {"rollout", "reward", "update"} and "rollout" in text


def test_scale(tmp_path: Path) -> None:
    found, _ = run("bench_scale", tmp_path / "scale.json")
    axes = {row["axis"]: row for row in found["rows"]}
    assert list(axes) == ["N", "T", "E", "V", "G", "batch", "threads", "busy"]
    assert all(row["ratio"] > 0 for row in found["rows"])


def test_peers(tmp_path: Path) -> None:
    """Those that are not installed are named; r1grpo has none to wait for."""
    found, text = run("bench_peers", tmp_path / "peers.json", "--threads", "1")
    who = {row["who"] for row in found["rows"]}
    for name, module in (("transformers", "torch"), ("trl", "trl")):
        installed = importlib.util.find_spec(module) is not None
        assert (name in who) is installed and (name in found["absent"]) is not installed, text
    assert "r1grpo" in who


def test_flops_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs and issue: parameters of the tiny mixture, operations a token."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.bench_step import flops_of, read_of
    from benchmarks.workloads import Work

    assert flops_of(Work("sft", "tiny_moe", 16, 256)) / 4096 == pytest.approx(6.9e6, rel=0.15)
    assert flops_of(Work("sft", "qwen_0.5b", 2, 512)) / 1024 == pytest.approx(3.03e9, rel=0.02)
    one = Work("generate", "qwen_0.5b", 1, 64, 1)
    assert read_of(one, "bfloat16") == pytest.approx(2 * 494e6, rel=0.01)
    assert read_of(Work("generate", "tiny_moe", 1, 64, 1), "float32") is None


def test_features(tmp_path: Path) -> None:
    found, _ = run("bench_features", tmp_path / "features.json")
    assert {row["part"] for row in found["rows"]} == {"prefix", "speculation"}
    assert all(row["gain"] > 0 for row in found["rows"])


def test_pool(tmp_path: Path) -> None:
    found, _ = run("bench_pool", tmp_path / "pool.json")
    assert {row["part"] for row in found["rows"]} == {"item", "start", "deadline", "hidden"}
    assert all(row["ratio"] > 0 for row in found["rows"] if row["part"] == "hidden")


def test_code(tmp_path: Path) -> None:
    level = next((one for one in ("full", "restricted") if try_level(one)[1]), None)
    if level is None:
        pytest.skip("no sandbox on this machine")
    found, text = run("bench_code", tmp_path / "code.json", "--level", level)
    assert [(row["step"], row["failed"], sum(row["verdicts"].values())) for row in found["rows"]] == [
        (1, 0, 4), (2, 0, 4)]
    assert 0 < found["slowest"] < found["pool_deadline"] and "8 verdicts" in text


ANSWERS = ["17", "-3.5", "1024", r"\frac{3}{8}", r"\frac{3\sqrt{2}}{4}", r"5\sqrt{3}", "(1, 2)", "[0, 3)", "1, -4",
           r"40\%", r"30^\circ", r"\$12", "x^2 + 3", r"\text{(B)}", r"(-1, 0) \cup (2, 3)"]


def test_verdicts(tmp_path: Path) -> None:
    data, file = tmp_path / "problems.jsonl", tmp_path / "verdicts.json"
    data.write_text("".join(json.dumps({"problem": "p", "answer": one}) + "\n" for one in ANSWERS))
    done = subprocess.run([sys.executable, "-W", "error", "-m", "benchmarks.bench_verdicts", str(data),
                           "--pairs", "400", "--json", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["exact"]["pairs"] == 400 and found["exact"]["of_spellings"] == 200
    assert found["exact"]["false_positives"] == found["exact"]["false_negatives"] == 0


def test_verdicts_on_real_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No false positive, under 1 % false negatives, on pairs made from MATH's train answers."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.bench_verdicts import figures, pairs_of
    from r1grpo.rows import load_rows

    golds = [row["answer"] for row in load_rows(data_file("deepscaler_math_train.json")) if row["answer"]]
    rows, _ = figures(pairs_of(golds, 5000), peer=False)
    assert rows["exact"]["false_positives"] == 0
    assert rows["exact"]["false_negatives"] < 0.01 * rows["exact"]["of_spellings"] == 25


def test_the_verdicts_of_a_credulous_judge_are_false_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import bench_verdicts
    from r1grpo.verifiers import Verdict

    pairs = bench_verdicts.pairs_of(ANSWERS, 100)
    for correct in (True, False):
        monkeypatch.setattr(bench_verdicts, "verify_answer", lambda a, g, c=correct: Verdict(c, "said so"))
        rows, of = bench_verdicts.figures(pairs, peer=False)
        assert (rows["exact"]["false_positives"] > 40) is correct
        assert (rows["exact"]["false_negatives"] == 50) is not correct
