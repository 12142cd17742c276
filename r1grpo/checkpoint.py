"""checkpoint.py - run state on disk that a kill at any instant cannot spoil.

    DIR/NAME/                one checkpoint, made by save_checkpoint:
        model.safetensors    the arrays: weights; mid-stage also Adam's m and v, counters
        ...                  further files of the caller (config.json, tokenizer.json)
        checkpoint.json      written last: size and SHA-256 of every file, the caller's meta

A checkpoint is written to a temporary folder beside its place; every file is synced,
checkpoint.json comes last, one rename makes all of it visible, and the parent folder is synced.
Whatever is visible is therefore whole, and what is not whole carries a `.tmp-` name that the next
start removes. There is no "latest" pointer that could go stale: the newest checkpoint whose hashes
hold is the one to resume. A failed fsync means the file is lost; it is never tried again.

Saving and loading stream: no memory beside the arrays. POSIX only (directory fsync). Knows
nothing of models, trainers or the clock: what `arrays` and `meta` mean is the caller's business.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .safetensors_file import SafetensorsFile, header_bytes

FORMAT = 1
ARRAYS, INDEX = "model.safetensors", "checkpoint.json"
TEMP_NAME = re.compile(r"\.tmp-(\d+)-[0-9a-f]+(-.*)?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DTYPES = {"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
           "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
           "float16": "F16", "float32": "F32", "float64": "F64"}  # NumPy's name -> the file's
_NUMPY = {theirs: ours for ours, theirs in _DTYPES.items()}


class CheckpointError(OSError):
    """Reading or writing run state failed: `path` names the file, `missing_bytes` says how many
    bytes the disk was short of (None: unknown, or another failure)."""

    def __init__(self, message: str, path: str | Path, code: int | None = None,
                 missing_bytes: int | None = None) -> None:
        super().__init__(message)
        self.path, self.errno, self.missing_bytes = Path(path), code, missing_bytes


class CheckpointWarning(UserWarning):
    """Something on disk was passed over (a damaged checkpoint, a torn line, another build)."""


# ---- files -------------------------------------------------------------------------------------


def _free_bytes(directory: Path) -> int:
    stat = os.statvfs(directory)
    return stat.f_bavail * stat.f_frsize


@contextlib.contextmanager
def naming_errors(path: Path, size: int) -> Iterator[None]:
    """Turn an OSError met while writing `size` bytes at `path` into one that says what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        missing = None
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                missing = max(size - _free_bytes(path.parent), 0)
            reason += f": {size} bytes wanted" + (f", {missing} missing" if missing else "")
        raise CheckpointError(f"cannot write {path}: {reason}", path, error.errno,
                              missing) from error


def _require_space(path: Path, size: int) -> None:
    """Refuse before the first byte when `size` bytes cannot fit beside `path`."""
    missing = size - _free_bytes(path.parent)
    if missing > 0:
        raise CheckpointError(f"cannot write {path}: disk full: {size} bytes wanted, {missing} "
                              "missing", path, errno.ENOSPC, missing)


@dataclass(frozen=True)
class Stream:
    """The content of a file that is made while it is written: `size` bytes, in pieces."""

    size: int
    pieces: Callable[[], Iterator[bytes | memoryview]]

    def __len__(self) -> int:
        return self.size


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file that somebody else may have written; ValueError where they are too many."""
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path.name} is larger than {most} bytes")
    with path.open("rb") as file:
        return file.read(size)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]


def _write_synced(path: Path, data: bytes | Stream) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for piece in data.pieces() if isinstance(data, Stream) else (data,):
            write_all(descriptor, piece)
        assert os.fstat(descriptor).st_size == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temp_path(directory: Path, name: str) -> Path:
    return directory / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{name}"


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, and a crash at any instant, sees old or new bytes."""
    path = Path(path)
    temp = _temp_path(path.parent, path.name)
    with naming_errors(path, len(data)):
        _require_space(path, len(data))
        try:
            _write_synced(temp, data)
            os.replace(temp, path)
            _sync_directory(path.parent)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise


def write_folder(target: str | Path, files: Mapping[str, bytes | Stream],
                 stale: Iterable[str] = ()) -> None:
    """Write a folder of files: whole or not at all.

    In a folder that exists, these files take the place of those of their names, those of `stale`
    leave, and what else lies there is left alone. The last of `files` is the first to go and the last
    to come: a kill between leaves a folder without it, never a mixture that looks whole, and the old
    files in a `.tmp-` folder beside it."""
    target = Path(target)
    size, temp = sum(map(len, files.values())), _temp_path(target.parent, target.name)
    with naming_errors(target, size):
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_space(target, size)
        try:
            os.mkdir(temp)
            for name, data in files.items():
                _write_synced(temp / name, data)
            _sync_directory(temp)
            if target.is_dir():
                _exchange(temp, target, list(files), stale)
            else:
                os.rename(temp, target)
            _sync_directory(target.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def _exchange(temp: Path, target: Path, names: list[str], stale: Iterable[str]) -> None:
    """The files `names` of temp go into target, those in their way and the stale ones out of it; back
    if a rename fails."""
    old = _temp_path(target.parent, f"{target.name}-old")
    os.mkdir(old)
    moves = [(target / name, old / name) for name in dict.fromkeys([*names[::-1], *stale])
             if (target / name).exists()]
    moves += [(temp / name, target / name) for name in names]
    done = []
    try:
        for source, goal in moves:
            os.replace(source, goal)
            done.append((source, goal))
        _sync_directory(target)
    except BaseException:
        for source, goal in reversed(done):
            os.replace(goal, source)
        os.rmdir(old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_stray_temps(directory: str | Path) -> list[str]:
    """Delete `.tmp-` leftovers of processes that are gone (our own pid too: call it at the start,
    with the run's lock held); returns their names."""
    removed = []
    for entry in sorted(Path(directory).iterdir()):
        match = TEMP_NAME.fullmatch(entry.name)
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            _remove(entry)
            removed.append(entry.name)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# ---- checkpoints -------------------------------------------------------------------------------


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


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> Stream:
    """A safetensors file of these arrays: larger items first, then by name."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.name not in _DTYPES:
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"array {name!r} is {kind}, not a plain NumPy array")
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    head = header_bytes({name: (_DTYPES[arrays[name].dtype.name], arrays[name].shape)
                         for name in order})

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        for name in order:  # raw little-endian bytes in C order; a copy only where they are not
            array = np.require(arrays[name], arrays[name].dtype.newbyteorder("<"), "C")
            yield memoryview(array.reshape(-1).view(np.uint8))
    return Stream(len(head) + sum(one.nbytes for one in arrays.values()), pieces)


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
    temp, old = _temp_path(directory, name), _temp_path(directory, name)
    if target.exists() and _holds(target, sha256):
        return sha256
    size = sum(map(len, contents.values()))
    with naming_errors(target, size):
        directory.mkdir(parents=True, exist_ok=True)
        _require_space(target, size)
        try:
            os.mkdir(temp)
            for file, data in contents.items():
                _write_synced(temp / file, data)
            text = json.dumps({**index, "sha256": sha256}, indent=1, sort_keys=True) + "\n"
            _write_synced(temp / INDEX, text.encode())
            _sync_directory(temp)
            _swap_in(temp, target, old)
            _sync_directory(directory)
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
        return load_checkpoint(path).sha256 == sha256
    except CheckpointError:
        return False


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read DIR/NAME and check every byte of it against its hashes."""
    path = Path(path)

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
    arrays: dict[str, np.ndarray] = {}
    for name, facts in listed.items():
        with naming(name) as file, open(file, "rb") as opened:
            size, found = os.fstat(opened.fileno()).st_size, hashlib.file_digest(opened, "sha256")
            if size != facts["bytes"]:
                raise CheckpointError(f"{file} is damaged: {size} bytes, expected {facts['bytes']}",
                                      file)
            if found.hexdigest() != facts["sha256"]:
                raise CheckpointError(f"{file} is damaged: its SHA-256 differs from {INDEX}", file)
            if name == ARRAYS:
                arrays = _unpack_arrays(file)
    return Checkpoint(path, arrays, meta, sha256)


def _unpack_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with SafetensorsFile(path) as file:
        for name, tensor in file.tensors.items():
            arrays[name] = np.empty(tensor.shape, np.dtype(_NUMPY[tensor.dtype]).newbyteorder("<"))
            file.read(name, 0, arrays[name])
    return arrays


def _step_folders(directory: Path) -> list[Path]:
    """The mid-stage states in `directory`, newest first."""
    found = [p for p in directory.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def load_newest(directory: str | Path) -> Checkpoint | None:
    """The newest state (see step_name) in `directory` whose hashes hold; damaged ones are passed
    over with a warning. None when there is none."""
    for path in _step_folders(Path(directory)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", CheckpointWarning, stacklevel=2)
    return None


def prune_checkpoints(directory: str | Path, keep: int = 2) -> None:
    """Delete all but the `keep` newest states of `directory`; never the newest one that loads."""
    if keep < 1:
        raise ValueError(f"prune_checkpoints: keep is {keep}, expected at least 1")
    old = _step_folders(Path(directory))[keep:]
    if old and (newest := load_newest(directory)) is not None:
        for path in old:
            if path != newest.path:
                temp = _temp_path(path.parent, path.name)  # out of sight first, then deleted
                os.replace(path, temp)
                _remove(temp)
