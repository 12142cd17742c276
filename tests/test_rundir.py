"""The run directory: who may enter it, what its logs and its manifest say after a crash."""

import errno
import json
import os
import resource
import warnings

import numpy as np
import pytest

from r1grpo import checkpoint as ck
from r1grpo.safe_files import CheckpointError, CheckpointWarning
from r1grpo.rundir import JsonlLog, Manifest, RunDir, read_jsonl

RUN = {"version": "1", "seed": 0, "dtype": "float32", "tier": "avx2", "threads": 2}
W = {"w": np.ones(3, np.float32)}


def rows(path):
    return list(read_jsonl(path))


def fork():
    """A child that runs plain Python only; threads of other tests do not matter to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# ---- logs ----


def test_log_appends_at_commit_only(tmp_path):
    log = JsonlLog(tmp_path / "m.jsonl")
    log.append({"step": 1, "text": "等等 <b>"})
    assert (tmp_path / "m.jsonl").read_bytes() == b""
    log.commit()
    log.append({"step": 2})
    log.close()
    assert rows(tmp_path / "m.jsonl") == [{"step": 1, "text": "等等 <b>"}, {"step": 2}]
    assert "等等" in (tmp_path / "m.jsonl").read_text("utf-8")  # readable, not escaped


def test_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "rew')
    assert rows(path) == [{"step": 1}]
    log = JsonlLog(path)
    log.append({"step": 2})
    log.close()
    assert rows(path) == [{"step": 1}, {"step": 2}]


def test_damage_in_the_middle_is_named_by_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="m.jsonl, line 2"):
        rows(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(CheckpointError, match="line 1: not a JSON object"):
        rows(path)


def test_truncate_to_a_step_of_a_stage(tmp_path):
    log = JsonlLog(tmp_path / "m.jsonl")
    written = ([{"stage": "base", "eval": "test"}]
               + [{"stage": "r1_zero", "step": step} for step in (1, 2, 3)]
               + [{"stage": "r1_zero", "eval": "test"}]
               + [{"stage": "r1", "step": step} for step in (0, 1)])
    for row in written:
        log.append(row)
    log.commit()

    def after(step, stage):
        log.truncate_to(step, stage)
        return rows(log.path)

    assert after(1, "r1") == written
    assert after(0, "r1") == written[:6]
    assert after(-1, "r1") == written[:5]
    assert after(3, "r1_zero") == written[:4]  # its evaluation had not been finished
    assert after(1, "r1_zero") == written[:2]
    log.append({"stage": "r1_zero", "step": 2})
    log.commit()
    assert rows(log.path) == written[:3]
    assert after(-1, "base") == []


def test_truncate_forgets_what_was_not_committed(tmp_path):
    log = JsonlLog(tmp_path / "m.jsonl")
    log.append({"step": 1})
    log.commit()
    log.append({"step": 2})
    log.truncate_to(1)
    log.close()
    assert rows(log.path) == [{"step": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_log_refuses_numbers_that_json_lacks(tmp_path, value):
    log = JsonlLog(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="m.jsonl: kl"):
        log.append({"step": 1, "kl": value})
    log.commit()
    assert rows(log.path) == []


def test_failed_commit_takes_back_half_a_line(tmp_path):
    """A real short write: the file size limit of the process cuts the second row in half."""
    log = JsonlLog(tmp_path / "m.jsonl")
    log.append({"step": 1})
    log.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.append({"step": 2, "text": "x" * 1000})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        with pytest.raises(CheckpointError, match="m.jsonl"):
            log.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "m.jsonl").read_bytes() == b'{"step": 1}\n'
    log.commit()  # with room again, the row is still there to be written
    assert [row["step"] for row in rows(log.path)] == [1, 2]


def test_failed_sync_takes_the_rows_back(tmp_path, monkeypatch):
    log = JsonlLog(tmp_path / "m.jsonl")
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        def fail(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        patch.setattr(ck.os, "fsync", fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            log.commit()
    assert rows(log.path) == []


# ---- manifest ----


def test_manifest_records_parents(tmp_path):
    manifest = Manifest(tmp_path / "manifest.json", {**RUN, "recipe": "h"})
    manifest.add("base", None, 10, "a" * 64, seconds=1.5)
    manifest.add("r1_zero", "base", 20, "b" * 64)
    manifest.add("cold_start", "base", 5, "c" * 64, data_from=["r1_zero"])
    manifest.add("r1_zero", "base", 20, "d" * 64)  # again: in place
    back = Manifest.load(manifest.path)
    assert [(c["name"], c["parent"], c["data_from"]) for c in back.checkpoints] == [
        ("base", None, []), ("r1_zero", "base", []), ("cold_start", "base", ["r1_zero"])]
    assert back.find("r1_zero")["sha256"] == "d" * 64
    assert back.find("base")["varies"] == {"threads": 2, "seconds": 1.5}
    assert {back.find("base")[fact] for fact in ("version", "dtype", "tier")} == {
        "1", "float32", "avx2"}
    for parent, data in [("r2", ()), ("base", ("r2",)), ("x", ())]:
        with pytest.raises(ValueError, match="not recorded"):
            manifest.add("x", parent, 1, "e" * 64, data)


def test_manifest_needs_its_facts(tmp_path):
    with pytest.raises(ValueError, match="seed.*recipe"):
        Manifest(tmp_path / "m", {k: v for k, v in RUN.items() if k != "seed"})
    (tmp_path / "m").write_text("{")
    with pytest.raises(CheckpointError, match="m is damaged"):
        Manifest.load(tmp_path / "m")


# ---- run directory ----


def start(path, **kwargs):
    return RunDir(path, kwargs.pop("recipe", "hash"), {**RUN, **kwargs.pop("run", {})}, **kwargs)


def test_a_run_from_start_to_finish(tmp_path):
    with start(tmp_path / "runs" / "r1") as run:
        assert run.load_stage("base") is None
        run.metrics.append({"stage": "base", "step": 1})
        sha = run.save_stage("base", W, {"step": 1}, None, 1, files={"config.json": b"{}"})
        run.write_json("summary.json", {"seed": 0, "语": "中"})
        run.finish()
        assert run.load_stage("base").sha256 == sha
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["run"]["finished"] and manifest["checkpoints"][0]["sha256"] == sha
    assert json.loads((run.path / "summary.json").read_text("utf-8"))["语"] == "中"
    assert rows(run.path / "metrics.jsonl") == [{"stage": "base", "step": 1}]
    with pytest.raises(CheckpointError, match=f"a finished run.*--out {run.path} --resume"):
        start(run.path)
    with start(run.path, resume=True) as again:
        assert again.manifest.run["finished"] and again.load_stage("base").sha256 == sha


def test_unfinished_run_is_refused_with_the_command(tmp_path):
    start(tmp_path / "a", command="r1grpo grpo").close()
    theirs = rf"a run of `r1grpo grpo`; to go on with it: r1grpo grpo --out {tmp_path}/a --resume"
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=theirs):
            start(tmp_path / "a", resume=resume)
    start(tmp_path / "b").close()
    with pytest.raises(CheckpointError, match=rf"r1grpo pipeline --out {tmp_path}/b --resume"):
        start(tmp_path / "b")
    with pytest.raises(CheckpointError, match="another recipe.*--out .* --resume"):
        start(tmp_path / "b", recipe="other", resume=True)
    start(tmp_path / "b", resume=True).close()


def test_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not of a run"):
        start(tmp_path)
    with pytest.raises(CheckpointError, match="no run to resume"):
        start(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="not a directory"):
        start(tmp_path / "thesis.txt")
    with pytest.raises(CheckpointError, match="thesis.txt/sub"):
        start(tmp_path / "thesis.txt" / "sub")
    with pytest.raises(CheckpointError, match="no run to resume"):
        start(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_killed_before_the_manifest_was_written(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".tmp-999999999-ab-manifest.json").write_text("{")
    start(tmp_path).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock", "completions.jsonl", "manifest.json", "metrics.jsonl"]


def test_second_process_is_kept_out(tmp_path):
    run = start(tmp_path / "a")
    child = fork()
    if child == 0:
        try:
            start(tmp_path / "a", resume=True)
        except CheckpointError as error:
            os._exit(7 if "in use" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    run.close()
    start(tmp_path / "a", resume=True).close()


def test_another_build_is_told(tmp_path):
    start(tmp_path / "a").close()
    with pytest.warns(CheckpointWarning, match="tier was 'avx2', is now 'avx512'"):
        start(tmp_path / "a", resume=True, run={"tier": "avx512"}).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(tmp_path / "a", resume=True, run={"tier": "avx512", "threads": 7}).close()


def test_another_library_of_products_is_told(tmp_path):
    with start(tmp_path / "a") as run:
        run.pin("")
        assert "pins" not in run.manifest.run
        run.pin("cuBLASLt: version 1\nW (8, 8), x W^T: 0/1/2\n")
    with start(tmp_path / "a", resume=True) as run:
        run.pin("cuBLASLt: version 1\nW (8, 16), x W^T: our kernel\n")
        with pytest.warns(CheckpointWarning, match="cuBLASLt was 'version 1', is now 'version 2'"):
            run.pin("cuBLASLt: version 2\n")
    assert Manifest.load(tmp_path / "a" / "manifest.json").run["pins"] == {
        "cuBLASLt": "version 2", "W (8, 8), x W^T": "0/1/2", "W (8, 16), x W^T": "our kernel"}


def test_swapped_checkpoint_is_refused(tmp_path):
    with start(tmp_path / "a") as run:
        run.save_stage("base", W, {}, None, 1)
        run.save_stage("r1", {"w": np.zeros(3, np.float32)}, {}, "base", 1)
        os.rename(run.path / "base", run.path / "x")
        os.rename(run.path / "r1", run.path / "base")
        with pytest.raises(CheckpointError, match="hashes differ"):
            run.load_stage("base")
