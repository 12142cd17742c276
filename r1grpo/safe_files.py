"""safe_files.py - files and folders that a kill, a full disk or a power cut leaves whole or not at all.

    write_atomic(path, data)        one file
    write_folder(folder, files)     several that belong together
    read_bounded(path, most)        the other way, where somebody else may have written

Everything is written under a `.tmp-` name beside its place, synced, and renamed; whatever is visible
is therefore whole, and what is not whole carries a name that the next start removes. A failed fsync
means the file is lost; it is never tried again. Errors name the file and, on a full disk, the bytes
that were missing. POSIX only (directory fsync). Knows nothing about what the files mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TEMP_NAME = re.compile(r"\.tmp-(\d+)-[0-9a-f]+(-.*)?")


class CheckpointError(OSError):
    """Reading or writing run state failed: `path` names the file, `missing_bytes` says how many
    bytes the disk was short of (None: unknown, or another failure)."""

    def __init__(self, message: str, path: str | Path, code: int | None = None,
                 missing_bytes: int | None = None) -> None:
        super().__init__(message)
        self.path, self.errno, self.missing_bytes = Path(path), code, missing_bytes


class CheckpointWarning(UserWarning):
    """Something on disk was passed over (a damaged checkpoint, a torn line, another build)."""


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


def require_space(path: Path, size: int) -> None:
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
    """os.write until all of it is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]


def write_synced(path: Path, data: bytes | Stream) -> None:
    """A new file of these bytes, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for piece in data.pieces() if isinstance(data, Stream) else (data,):
            write_all(descriptor, piece)
        assert os.fstat(descriptor).st_size == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """The names in a folder, on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temp_path(directory: Path, name: str) -> Path:
    """A name beside the place of `name` that remove_stray_temps knows."""
    return directory / f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{name}"


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, and a crash at any instant, sees old or new bytes."""
    path = Path(path)
    temp = temp_path(path.parent, path.name)
    with naming_errors(path, len(data)):
        require_space(path, len(data))
        try:
            write_synced(temp, data)
            os.replace(temp, path)
            sync_directory(path.parent)
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
    size, temp = sum(map(len, files.values())), temp_path(target.parent, target.name)
    with naming_errors(target, size):
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target, size)
        try:
            os.mkdir(temp)
            for name, data in files.items():
                write_synced(temp / name, data)
            sync_directory(temp)
            if target.is_dir():
                _exchange(temp, target, list(files), stale)
            else:
                os.rename(temp, target)
            sync_directory(target.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def _exchange(temp: Path, target: Path, names: list[str], stale: Iterable[str]) -> None:
    """The files `names` of temp go into target, those in their way and the stale ones out of it; back
    if a rename fails."""
    old = temp_path(target.parent, f"{target.name}-old")
    os.mkdir(old)
    moves = [(target / name, old / name) for name in dict.fromkeys([*names[::-1], *stale])
             if (target / name).exists()]
    moves += [(temp / name, target / name) for name in names]
    done = []
    try:
        for source, goal in moves:
            os.replace(source, goal)
            done.append((source, goal))
        sync_directory(target)
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
            remove_path(entry)
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


def remove_path(path: Path) -> None:
    """A file, or a folder with all in it; a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
