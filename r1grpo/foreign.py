"""foreign.py - somebody else's arrays as ours: NumPy's, and whatever speaks DLPack.

An array of torch or CuPy may be bfloat16, which NumPy lacks, or lie on the model's GPU. Such a one is
described at once and read when its numbers are asked for, so a state dict of them is never in memory
twice. Knows nothing about models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import _core
from .device import get_device, reading_gpu
from .number_formats import ITEM_BYTES, widen

__all__ = ["Foreign", "as_array"]

_HOST = (1, 3)  # DLPack's devices that the CPU reads: memory, and memory that a GPU's driver has pinned
_FORMATS = {(2, 64, 1): "F64", (2, 32, 1): "F32", (2, 16, 1): "F16", (4, 16, 1): "BF16"}


def as_array(value: Any) -> np.ndarray | Foreign:
    """value with .shape and .dtype, its numbers as they are wherever NumPy can have them without a copy."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    found = Foreign(value)
    known = hasattr(value, "__array__") and found.kind in _HOST and found.dtype != "BF16"
    return np.asarray(value) if known else found


class Foreign:
    """An array with __dlpack__. dtype: as number_formats.py names it, or what DLPack says where that is
    no float. np.asarray(it) reads it as float32."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.kind = int(value.__dlpack_device__()[0])
        element, self.shape, _ = _core.dlpack_info(self._capsule())
        self.dtype = _FORMATS.get(element) or "DLPack's type {}, {} bits, {} lanes".format(*element)

    def _capsule(self) -> object:
        stream = {} if self.kind in _HOST else {"stream": reading_gpu().place[2]}
        try:
            return self._value.__dlpack__(max_version=(1, 0), **stream)
        except TypeError:  # of before 2024
            return self._value.__dlpack__(**stream)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("NumPy cannot have this array without a copy")
        raw = np.empty(math.prod(self.shape) * ITEM_BYTES[self.dtype], np.uint8)
        reader = get_device() if self.kind in _HOST else reading_gpu()
        _core.dlpack_read(reader, self._capsule(), raw)
        out = np.empty(math.prod(self.shape), np.float32)
        widen(raw, self.dtype, out)
        return out.reshape(self.shape).astype(dtype or np.float32, copy=False)
