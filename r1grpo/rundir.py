"""rundir.py - the directory of a run: its lock, its manifest, its append-only logs.

    DIR/manifest.json       who ran what: every checkpoint with its parent, step and hash
    DIR/metrics.jsonl       one line an update
    DIR/completions.jsonl   one line a stored sample
    DIR/STAGE/              checkpoints (checkpoint.py)
    DIR/.lock               held (flock) while a process works on the run

The logs are synced at commit points; on resume they are cut back to the step of the state that is
resumed, so that every step stands in them once. Knows nothing of stages, recipes or the clock
beyond the names and facts it is given.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from .safe_files import (TEMP_NAME, CheckpointError, CheckpointWarning, naming_errors,
                         remove_stray_temps, write_all, write_atomic)

# ---- append-only logs ---------------------------------------------------------------------------


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file; a torn last line (no newline) is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CheckpointError(f"{path}, line {number}: {error}", path) from error
            if not isinstance(row, dict):
                raise CheckpointError(f"{path}, line {number}: not a JSON object", path)
            yield row


class JsonlLog:
    """A file of one JSON object a line, appended to at commit points.

    append() only collects; commit() writes and syncs. A failed commit takes back what it wrote and
    keeps the rows, so that the file never ends in half a line of ours. After a crash the torn end
    is cut when the log is opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._pending: list[bytes] = []
        with naming_errors(self.path, 0):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._cut(self.path.read_bytes().rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Collect one row; its numbers must be finite, since JSON has no NaN."""
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            bad = [key for key, value in row.items()
                   if isinstance(value, float) and not np.isfinite(value)]
            raise ValueError(f"{self.path.name}: {', '.join(bad) or 'row'}: {error}") from error
        self._pending.append(text.encode() + b"\n")

    def commit(self) -> None:
        """Make every collected row durable."""
        data = b"".join(self._pending)
        if not data:
            return
        with naming_errors(self.path, len(data)):
            try:
                write_all(self._file, data)
                os.fsync(self._file)
            except BaseException:
                os.ftruncate(self._file, self._size)
                raise
        self._size += len(data)
        self._pending.clear()

    def truncate_to(self, step: int, stage: str | None = None) -> None:
        """Forget what was logged after `step` of `stage` (None: of any stage), before a resume.

        The log is in order of time, so everything from the first later row on goes. A row of the
        stage without a step (an evaluation) counts as later than all its steps; step -1 drops the
        stage.
        """
        self._pending.clear()
        size = 0
        for row, line_bytes in self._rows():
            if stage is None or row.get("stage") == stage:
                if row.get("step") is None or row["step"] > step:
                    break
            size += line_bytes
        with naming_errors(self.path, 0):
            self._cut(size)

    def _rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        with open(self.path, "rb") as file:
            for row, line in zip(read_jsonl(self.path), file):
                yield row, len(line)

    def _cut(self, size: int) -> None:
        self._size = size
        if os.fstat(self._file).st_size != size:
            os.ftruncate(self._file, size)
            os.fsync(self._file)

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        os.close(self._file)


# ---- the run ------------------------------------------------------------------------------------


class Manifest:
    """manifest.json: facts of the run, and every checkpoint with its parent.

    {"format", "run": {...}, "checkpoints": [{"name", "parent", "data_from", "step", "sha256",
     "version", "seed", "dtype", "tier", "varies": {"threads", ...}}]}

    `parent` is the checkpoint whose weights training started from, `data_from` those that made its
    data. Two runs of one recipe agree in all but `varies`: threads, and figures of time.
    """

    FACTS = ("version", "seed", "dtype", "tier")

    def __init__(self, path: str | Path, run: Mapping[str, Any]) -> None:
        self.path, self.run, self.checkpoints = Path(path), dict(run), []
        missing = [fact for fact in (*self.FACTS, "threads", "recipe") if fact not in self.run]
        if missing:
            raise ValueError(f"manifest: the run lacks {', '.join(missing)}")

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read manifest.json; CheckpointError when it is missing or damaged."""
        try:
            text = json.loads(Path(path).read_bytes())
            manifest = cls(path, text["run"])
            manifest.checkpoints = [dict(entry) for entry in text["checkpoints"]]
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}", path,
                                  error.errno) from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}", path) from error
        return manifest

    def save(self) -> None:
        """Write manifest.json atomically."""
        text = {"format": FORMAT, "run": self.run, "checkpoints": self.checkpoints}
        write_atomic(self.path, (json.dumps(text, indent=1, allow_nan=False) + "\n").encode())

    def find(self, name: str) -> dict[str, Any] | None:
        """The entry of checkpoint `name`, if there is one."""
        return next((entry for entry in self.checkpoints if entry["name"] == name), None)

    def add(self, name: str, parent: str | None, step: int, sha256: str,
            data_from: Sequence[str] = (), **varies: Any) -> None:
        """Record a checkpoint (again: replaced in place) and save."""
        for source in (parent, *data_from):
            if source is not None and (source == name or self.find(source) is None):
                raise ValueError(f"manifest: {name!r} comes from {source!r}, which is not recorded")
        entry = {"name": name, "parent": parent, "data_from": list(data_from), "step": step,
                 "sha256": sha256, **{fact: self.run[fact] for fact in self.FACTS},
                 "varies": {"threads": self.run["threads"], **varies}}
        known = self.find(name)
        if known is None:
            self.checkpoints.append(entry)
        else:
            known.update(entry)
        self.save()


def check_run_dir(path: str | Path, recipe_hash: str, resume: bool, command: str,
                  changed: str = "") -> None:
    """Refuse a directory that RunDir would refuse, without touching it: before long work. changed: what
    its recipe has otherwise, where that is known."""
    path = Path(path)
    again = f"{command} --out {path} --resume"
    manifest = path / "manifest.json"
    if not manifest.exists():
        if resume:
            raise CheckpointError(f"{path} holds no run to resume: {manifest.name} is missing",
                                  path)
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is not a directory", path, errno.ENOTDIR)
        if path.exists() and any(p.name != ".lock" and not TEMP_NAME.fullmatch(p.name)
                                 for p in path.iterdir()):
            raise CheckpointError(f"{path} holds files that are not of a run of r1grpo; choose "
                                  "another --out", path)
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            reason = "not writable" if nearest.is_dir() else "not a directory"
            raise CheckpointError(f"cannot write {path}: {nearest} is {reason}", path)
        return
    check_command(path, command)
    run = Manifest.load(manifest).run
    if run["recipe"] != recipe_hash:
        raise CheckpointError(f"{path} holds a run of another recipe or seed"
                              f"{changed and f' ({changed})'}; to go on with it: {again}; else "
                              "choose another --out", path)
    if not resume:
        state = "a finished" if run.get("finished") else "an unfinished"
        raise CheckpointError(f"{path} holds {state} run; to go on with it: {again}; else choose "
                              "another --out", path)


def check_command(path: str | Path, command: str) -> None:
    """Refuse the directory of another command's run, by that command's name."""
    manifest = Path(path) / "manifest.json"
    theirs = Manifest.load(manifest).run.get("command", command) if manifest.exists() else command
    if theirs != command:
        raise CheckpointError(f"{path} holds a run of `{theirs}`; to go on with it: {theirs} --out "
                              f"{path} --resume; else choose another --out", path)


class RunDir:
    """A locked run directory: manifest, logs and stage checkpoints.

    RunDir(path, recipe_hash, run) starts a run in an empty or absent directory; with resume=True it
    goes on with an interrupted one of the same recipe. `run` states version, seed, dtype, tier and
    threads. Anything else that lies there is refused, untouched, with the command that resumes.
    """

    def __init__(self, path: str | Path, recipe_hash: str, run: Mapping[str, Any],
                 resume: bool = False, command: str = "r1grpo pipeline") -> None:
        self.path = Path(path)
        facts = {**run, "command": command, "recipe": recipe_hash, "finished": False}
        manifest = self.path / "manifest.json"
        check_run_dir(path, recipe_hash, resume, command)
        with naming_errors(self.path / ".lock", 0):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CheckpointError(f"{self.path} is in use by another process", self.path,
                                      error.errno) from error
            check_run_dir(path, recipe_hash, resume, command)  # again: now nobody else writes
            remove_stray_temps(self.path)
            self.manifest = (Manifest.load(manifest) if manifest.exists()
                             else Manifest(manifest, facts))
            self._take_over(facts)
            self.metrics = JsonlLog(self.path / "metrics.jsonl")
            self.completions = JsonlLog(self.path / "completions.jsonl")
        except BaseException:
            os.close(self._lock)
            raise

    def _take_over(self, facts: Mapping[str, Any]) -> None:
        """Write the first manifest, or note what this process does otherwise than the first one."""
        for fact in Manifest.FACTS:
            if self.manifest.run[fact] != facts[fact]:
                warnings.warn(f"{self.path}: {fact} was {self.manifest.run[fact]!r}, is now "
                              f"{facts[fact]!r}; bits may differ from an uninterrupted run",
                              CheckpointWarning, stacklevel=3)
        finished = self.manifest.run.get("finished", False)
        self.manifest.run.update(facts, finished=finished)
        self.manifest.save()

    def pin(self, pins: str) -> None:
        """Note what the process's bits depend on beside its build: lines 'what: which' of Device.pins."""
        now = dict(line.split(": ", 1) for line in pins.splitlines())
        before = self.manifest.run.get("pins", {})
        for what in sorted(now.keys() & before.keys()):
            if now[what] != before[what]:
                warnings.warn(f"{self.path}: {what} was {before[what]!r}, is now {now[what]!r}; bits may "
                              "differ from an uninterrupted run", CheckpointWarning, stacklevel=2)
        if before | now != before:
            self.manifest.run["pins"] = before | now
            self.manifest.save()

    def save_stage(self, name: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any],
                   parent: str | None, step: int, data_from: Sequence[str] = (),
                   files: Mapping[str, bytes] | None = None, **varies: Any) -> str:
        """Commit the logs, write DIR/NAME and record it; returns its hash."""
        self.commit()
        sha256 = save_checkpoint(self.path, name, arrays, meta, files)
        self.manifest.add(name, parent, step, sha256, data_from, **varies)
        return sha256

    def load_stage(self, name: str) -> Checkpoint | None:
        """The recorded checkpoint of a stage, verified; None when the stage has none yet."""
        entry = self.manifest.find(name)
        if entry is None:
            return None
        checkpoint = load_checkpoint(self.path / name)
        if checkpoint.sha256 != entry["sha256"]:
            raise CheckpointError(f"{checkpoint.path} is not the checkpoint that "
                                  f"{self.manifest.path} records: their hashes differ",
                                  checkpoint.path)
        return checkpoint

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write DIR/NAME (summary.json) atomically."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(self.path / name, text.encode())

    def commit(self) -> None:
        """Make both logs durable."""
        self.metrics.commit()
        self.completions.commit()

    def finish(self) -> None:
        """Mark the run as finished."""
        self.commit()
        self.manifest.run["finished"] = True
        self.manifest.save()

    def close(self) -> None:
        """Commit the logs and let go of the lock."""
        try:
            self.metrics.close()
            self.completions.close()
        finally:
            os.close(self._lock)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
