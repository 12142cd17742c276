"""benchmarks.gpu over the emulated GPU and without any: every part runs, in its smallest form, and what goes wrong
is written down. No figure is looked at."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import GPU

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import build, checks, sanitize, speed  # noqa: E402
from benchmarks.gpu.__main__ import MODULES, main  # noqa: E402
from benchmarks.gpu.pytest_run import run_file, run_files  # noqa: E402
from benchmarks.gpu.record import Part, Rows  # noqa: E402

EMULATED = "emulated-cuda,emulated"


def run(part: str, out: Path, **target: str) -> tuple[int, dict[str, Any]]:
    code = main(["--part", part, "--out", str(out), "--quick", "--minutes", "1000"], **target)
    found = json.loads(out.joinpath(f"{part}.json").read_text("utf-8"))
    assert found["part"] == part and found["quick"] and {"date", "commit", "gpu", "nvcc"} <= found["facts"].keys()
    return code, found


def rows(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    [piece] = [piece for piece in found["pieces"] if piece["name"] == name]
    return piece["rows"]


@pytest.mark.skipif(GPU is not None, reason="there is a GPU")
@pytest.mark.parametrize("part", MODULES)
def test_without_a_gpu_every_part_says_so(part: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--part", part, "--out", str(tmp_path), "--quick"],
                          cwd=ROOT, capture_output=True, text=True)
    found = json.loads(tmp_path.joinpath(f"{part}.json").read_text("utf-8"))
    said = found["refused"] if part != "build" else found["pieces"][-1]["error"]
    assert done.returncode == 1 and any(why in said for why in ("no CUDA backend", "no GPU for CUDA")), said
    assert said in done.stdout and "Traceback" not in done.stderr


def test_bench(gpu: Callable[[int], None], tmp_path: Path) -> None:
    code, found = run("bench", tmp_path)
    assert code == 0 and found["finished"] and found["facts"]["device"] and "cuda" in found["facts"]["pins"]
    assert {row["ceiling"] for row in rows(found, "ceilings")} == {"copy", "matmul"}
    bars = [row for piece in found["pieces"] for row in piece["rows"] if "least" in row]
    assert all(row["holds"] is (row["value"] >= row["least"]) and 0 < row["least"] <= row["aim"] for row in bars)
    said = " ".join(row["what"] for row in bars)
    for what in ("training step", "fused head", "memory of the logits", "grouped matmul_nt", "attention_fwd",
                 "attention_bwd", "decode attention", "decode, ", "AdamW", "RMSNorm"):
        assert what in said, what
    prices = rows(found, "price of exact mode")
    assert [row["what"].split(",")[0].split(" 1")[0] for row in prices] == [
        "product", "decode", "GRPO step", "training step", "fused head with GRPO loss"]
    assert all(row["price"] == row["fast"] / row["exact"] > 0 for row in prices)
    assert rows(found, "a GRPO step")[0]["rollout"] > 0


def test_what_fails_is_written_down(gpu: Callable[[int], None], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("this GPU is lost")
    monkeypatch.setattr(speed.Bench, "loop", broken)
    for name in ("training", "head", "grpo"):
        monkeypatch.setattr(speed.Bench, name, lambda *_: None)
    monkeypatch.setattr(speed, "Ceilings", lambda *_: type("Given", (), {"matmul": 1.0, "copy": 1.0}))
    code, found = run("bench", tmp_path)
    errors = {piece["name"]: piece["error"] for piece in found["pieces"] if piece["error"]}
    assert code == 1 and set(errors) == {"products", "grouped products", "attention", "decode attention", "streams"}
    assert set(errors.values()) == {"RuntimeError: this GPU is lost"} and rows(found, "sampling")


def test_a_part_has_so_many_seconds_and_keeps_what_it_has(tmp_path: Path) -> None:
    part = Part("bench", tmp_path, 1e9)

    def measure(rows: Rows) -> str:
        rows.bar("speed", 1.0, "x", 2.0, 3.0)
        assert json.loads(part.file.read_text())["pieces"][0]["rows"][0]["holds"] is False
        return "measured"

    def interrupted(rows: Rows) -> None:
        rows.add(seconds=1.0)
        raise KeyboardInterrupt
    assert part.piece("first", measure) == "measured"
    with pytest.raises(KeyboardInterrupt):
        part.piece("second", interrupted)
    part.seconds = 0.0
    assert part.piece("third", measure) is None and part.finish() == 1
    kept = json.loads(part.file.read_text())["pieces"]
    assert [bool(piece["error"]) for piece in kept] == [False, False, True]
    assert [len(piece["rows"]) for piece in kept] == [1, 1, 0]


def test_checks(gpu: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "NAMES", ("tiny_moe",))
    code, found = run("test", tmp_path, nodes=EMULATED, folder="tests/test_rows.py")
    assert code == 0, found["pieces"]
    file, whole = rows(found, "tests")
    assert file["file"] == "tests/test_rows.py" and file["passed"] == whole["passed"] > 5 and not whole["failed"]
    for dtype in checks.DTYPES:
        assert [row["batch"] for row in rows(found, f"E1, tiny_moe, {dtype}")] == [1, 1, 3]
        assert all(row["gap"] == row["training_gap"] == 0.0 and row["tokens"] == 3 * row["batch"]
                   for row in rows(found, f"E1, tiny_moe, {dtype}"))
        assert rows(found, f"two training runs, tiny_moe, {dtype}")[0]["equal"]


def test_a_gap_fails_its_piece(gpu: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, found = Part("test", tmp_path, 1e9, quick=True), []
    model = checks.model_of("tiny_moe", "float32", "cuda")
    monkeypatch.setattr(model, "logprobs", lambda prompts, ids: [array + 1e-3 for array in type(model).logprobs(
        model, prompts, ids)])

    def measure(rows: Rows) -> None:
        checks.gap(rows, model, [[5]], 2, prompts=[1])
        found.extend(rows.found)
    part.piece("E1", measure)
    assert part.finish() == 1 and found[0]["other_bits"] == 2 and part.found["pieces"][0]["error"]


TESTS = """
import os, pytest
@pytest.mark.parametrize("devices", ["emulated-cuda", "cuda"])
@pytest.mark.parametrize("what", ["passes", "fails", "dies", "never"])
def test_it(devices, what):
    assert what != "fails", "an error of the second test"
    if what == "dies":
        os._exit(7)
"""


def test_a_process_of_tests_that_dies(tmp_path: Path) -> None:
    tmp_path.joinpath("test_it.py").write_text(TESTS)
    found = run_file(str(tmp_path / "test_it.py"), EMULATED, 60.0)
    assert (found["passed"], found["failed"], found["missing"], found["ended"]) == (1, 1, 2, "exit code 7")
    assert "an error of the second test" in found["failures"][0]["text"] and found["output"]
    assert "dies" in found["first_missing"][0]


def test_who_is_out_of_time_ends_with_its_children(tmp_path: Path) -> None:
    """A program around pytest that is ended alone would leave it, and the pipe that is read, behind."""
    around = tmp_path / "around"
    around.write_text("#!/bin/sh\nsleep 100 & wait\n")
    around.chmod(0o755)
    begin = time.monotonic()
    [found] = run_files(["test_it.py"], lambda file, seconds: run_file(file, EMULATED, seconds, [str(around)]), 0.5, 1)
    assert found["ended"] == "out of time" and time.monotonic() - begin < 60


SANITIZER = """#!/bin/sh
while [ "$1" != "{python}" ]; do [ "$1" = --tool ] && tool=$2; shift; done
"$@"; code=$?
[ $tool = memcheck ] && echo "========= ERROR SUMMARY: 0 errors"
[ $tool = racecheck ] && echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)" && code=86
exit $code
"""


def test_sanitize(gpu: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.setattr(sanitize, "program", lambda: str(tool))
    code, found = run("sanitize", tmp_path, nodes=EMULATED, folder="tests/test_rows.py")
    [clean], [racy] = rows(found, "memcheck"), rows(found, "racecheck")
    assert code == 1 and clean["found"] == 0 and clean["passed"] > 5 and not clean["output"]
    assert racy["found"] == 2 and racy["ended"] == "exit code 86" and racy["output"]
    assert [bool(piece["error"]) for piece in found["pieces"]] == [False, False, True]


def test_the_sanitizer_looks_at_all_of_our_kernels() -> None:
    text = "".join(path.read_text("utf-8") for path in sorted(ROOT.glob("kernels/*.cu*")))
    names = re.findall(r"__global__ void[^\n]*\n(\w+)\(", text)
    assert sanitize.OURS[1] == "kns=_kernel" and len(names) == text.count("__global__ void") > 60
    assert [name for name in names if not name.endswith("_kernel") or "cublas" in name] == []


def test_without_compute_sanitizer(gpu: Callable[[int], None], tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-tool is neither in PATH nor in"):
        sanitize.program("no-such-tool")
    monkeypatch.setattr(sanitize, "program", lambda: (_ for _ in ()).throw(FileNotFoundError("not here")))
    code, found = run("sanitize", tmp_path)
    assert code == 1 and found["refused"] == "not here"


def test_peers(gpu: Callable[[int], None], tmp_path: Path) -> None:
    """On the CPU: the contestants are other processes, which the emulated GPU does not reach."""
    code, found = run("peers", tmp_path, device="cpu")
    assert code == 0, found["pieces"]
    installed = importlib.util.find_spec("transformers") is not None
    assert ("transformers" in found["absent"]) is not installed
    for piece in found["pieces"]:
        assert piece["rows"][0]["who"] == "r1grpo" and any("least" in row for row in piece["rows"]) is installed


PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1af' for 'sm_80'
ptxas info    : Function properties for _Z1af
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1088 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1af' for 'sm_90a'
ptxas info    : Function properties for _Z1af
    64 bytes stack frame, 60 bytes spill stores, 56 bytes spill loads
ptxas info    : Used 255 registers, 380 bytes cmem[0]
"""


def test_what_ptxas_says() -> None:
    first, second = build.kernels_of(PTXAS)
    assert first == {"kernel": "_Z1af", "target": "sm_80", "stack": 0, "spilled": 0, "registers": 40,
                     "static_shared": 1088}
    assert second == {"kernel": "_Z1af", "target": "sm_90a", "stack": 64, "spilled": 116, "registers": 255,
                      "static_shared": 0}
