"""checkpoint.py - run state on disk that a kill at any instant cannot spoil.

    DIR/NAME/                one checkpoint, made by save_checkpoint:
        model.safetensors    the arrays: weights; mid-stage also Adam's m and v, counters
        ...                  further files of the caller (config.json, tokenizer.json)
        checkpoint.json      written last: size and SHA-256 of every file, the caller's meta

A checkpoint is written to a temporary folder beside its place (safe_files.py); every file is synced,
checkpoint.json comes last, one rename makes all of it visible, and the parent folder is synced.
There is no "latest" pointer that could go stale: the newest checkpoint whose hashes hold is the one
to resume.

Saving and loading stream: no memory beside the arrays. Knows nothing of models, trainers or the
clock: what `arrays` and `meta` mean is the caller's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .safe_files import (CheckpointError, CheckpointWarning, Stream, naming_errors, remove_path,
                         require_space, sync_directory, temp_path, write_synced)
from .safetensors_file import pack_arrays, unpack_arrays

FORMAT = 1
ARRAYS, INDEX = "model.safetensors", "checkpoint.json"
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, read back."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    sha256: str


def step_name(step: int) -> str:
    """The folder of a mid-stage state: names sort as steps do."""
    return f"step-{step:08d}"


def _hash_index(index: Mapping[str, Any]) -> str:
    text = json.dumps(index, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(data: bytes | Stream) -> str:
    h = hashlib.sha256()
    for piece in data.pieces() if isinstance(data, Stream) else (data,):
        h.update(piece)
    return h.hexdigest()


def save_checkpoint(directory: str | Path, name: str, arrays: Mapping[str, np.ndarray],
                    meta: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> str:
    """Write DIR/NAME whole or not at all; returns its hash.

    The hash covers arrays, meta and files, so equal states have equal hashes: keep times and
    thread counts out of `meta` (Manifest.add has a place for them). Saving the same state again is
    a no-op; another state under the same name replaces it.
    """
    directory = Path(directory)
    contents: dict[str, bytes | Stream] = {ARRAYS: pack_arrays(arrays), **(files or {})}
    for part in (name, *contents):
        if not _NAME.fullmatch(part) or part == INDEX:
            raise ValueError(f"save_checkpoint: {part!r} is not a usable file name")
    if files and ARRAYS in files:
        raise ValueError(f"save_checkpoint: {ARRAYS!r} is written from `arrays`")
    try:
        index = {"format": FORMAT, "meta": json.loads(json.dumps(dict(meta), allow_nan=False)),
                 "files": {file: {"bytes": len(data), "sha256": _digest(data)}
                           for file, data in contents.items()}}
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_checkpoint: meta of {name!r} is not JSON: {error}") from error
    sha256 = _hash_index(index)
    target = directory / name
    temp, old = temp_path(directory, name), temp_path(directory, name)
    if target.exists() and _holds(target, sha256):
        return sha256
    size = sum(map(len, contents.values()))
    with naming_errors(target, size):
        directory.mkdir(parents=True, exist_ok=True)
        require_space(target, size)
        try:
            os.mkdir(temp)
            for file, data in contents.items():
                write_synced(temp / file, data)
            text = json.dumps({**index, "sha256": sha256}, indent=1, sort_keys=True) + "\n"
            write_synced(temp / INDEX, text.encode())
            sync_directory(temp)
            _swap_in(temp, target, old)
            sync_directory(directory)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
    return sha256


def _swap_in(temp: Path, target: Path, old: Path) -> None:
    """Give a finished folder its name; an older one of that name moves to `old`, and back if that
    fails. A crash between the renames leaves no folder of that name, never half a one."""
    if not target.exists():
        os.replace(temp, target)
        return
    os.replace(target, old)
    try:
        os.replace(temp, target)
    except BaseException:
        os.replace(old, target)
        raise


def _holds(path: Path, sha256: str) -> bool:
    try:
        return _verify(path)[1] == sha256
    except CheckpointError:
        return False


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read DIR/NAME and check every byte of it against its hashes."""
    path = Path(path)
    meta, sha256 = _verify(path)
    try:
        return Checkpoint(path, unpack_arrays(path / ARRAYS), meta, sha256)
    except OSError as error:
        raise CheckpointError(f"cannot read {path / ARRAYS}: {error.strerror}", path / ARRAYS,
                              error.errno) from error


def _verify(path: Path) -> tuple[dict[str, Any], str]:
    """The meta and the hash of a checkpoint all of whose bytes are what they were when it was written;
    takes no memory for its arrays."""

    @contextlib.contextmanager
    def naming(file: str) -> Iterator[Path]:
        try:
            yield path / file
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"cannot read {path / file}: {error.strerror}", path / file,
                                  error.errno) from error

    with naming(INDEX) as file:
        text = file.read_bytes()
    try:
        index = json.loads(text)
        sha256, version = index.pop("sha256"), index["format"]
        listed, meta = dict(index["files"]), dict(index["meta"])
        if version != FORMAT:
            raise CheckpointError(f"{path}: format {version}, this build reads {FORMAT}",
                                  path / INDEX)
        if _hash_index(index) != sha256 or ARRAYS not in listed:
            raise ValueError("its hash does not match its content")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / INDEX} is damaged: {error}", path / INDEX) from error
    for name, facts in listed.items():
        with naming(name) as file, open(file, "rb") as opened:
            size, found = os.fstat(opened.fileno()).st_size, hashlib.file_digest(opened, "sha256")
            if size != facts["bytes"]:
                raise CheckpointError(f"{file} is damaged: {size} bytes, expected {facts['bytes']}",
                                      file)
            if found.hexdigest() != facts["sha256"]:
                raise CheckpointError(f"{file} is damaged: its SHA-256 differs from {INDEX}", file)
    return meta, sha256


def _step_folders(directory: Path) -> list[Path]:
    """The mid-stage states in `directory`, newest first."""
    found = [p for p in directory.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def load_newest(directory: str | Path) -> Checkpoint | None:
    """The newest state (see step_name) in `directory` whose hashes hold; damaged ones are passed
    over with a warning. None when there is none."""
    return _first_whole(_step_folders(Path(directory)), load_checkpoint)


def _first_whole(folders: Sequence[Path], read: Callable[[Path], T]) -> T | None:
    for path in folders:
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", CheckpointWarning, stacklevel=3)
    return None


def prune_checkpoints(directory: str | Path, keep: int = 2, saved: str | None = None) -> None:
    """Delete all but `keep` states of `directory`: the one of the name `saved`, which a run that went on
    from an earlier state has just written beside later ones, then the newest; never the first of
    these that loads. Takes no memory for arrays."""
    if keep < 1:
        raise ValueError(f"prune_checkpoints: keep is {keep}, expected at least 1")
    states = sorted(_step_folders(Path(directory)), key=lambda path: path.name != saved)
    old = states[keep:]
    if old and (whole := _first_whole(states, lambda path: _verify(path) and path)) is not None:
        for path in old:
            if path != whole:
                temp = temp_path(path.parent, path.name)  # out of sight first, then deleted
                os.replace(path, temp)
                remove_path(temp)
