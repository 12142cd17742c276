"""offload.py - an array of floats that lies in a file instead of memory.

The file has no name (Linux: from the start), so it is gone with the process, however that ends. Once
`sync` has written them, its pages are clean: the system keeps them while memory lasts, drops them when
something else needs it, and reads them again when they are used. Knows nothing about what is stored.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .safe_files import naming_errors


class MappedArray:
    """`array`: float32 numbers, `size` bytes of them, zero, in a file in `folder` or, where it is
    missing, the nearest folder above. OSError where the disk has no room for all of them."""

    def __init__(self, folder: str | os.PathLike[str], size: int) -> None:
        path = Path(folder).absolute()
        while not path.is_dir():
            path = path.parent
        with naming_errors(path / "off-loaded weights", size), \
                tempfile.TemporaryFile(dir=path) as file:
            if hasattr(os, "posix_fallocate"):  # now, because a full disk would be a signal later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, 1 << 24):
                    file.write(bytes(min(1 << 24, size - start)))
                file.flush()
            self._map = mmap.mmap(file.fileno(), size)
        self.array: NDArray[np.float32] = np.frombuffer(self._map, np.float32)

    def sync(self) -> None:
        """Writes what has changed."""
        self._map.flush()
