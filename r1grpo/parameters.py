"""parameters.py - a model's parameters where they lie, for torch, CuPy and NumPy to look at without a copy.

    weight = model.parameters()["model.norm.weight"]
    torch.from_dlpack(weight)    np.asarray(weight)    cupy.asarray(weight)    weight.load(tensor)

A parameter is the float32 master that an update moves, whatever the model's dtype; of a frozen model's
matrix it is what products see, in the model's dtype, which a GPU has row by row and a CPU packed in
panels, so that there it is a copy, as of an off-loaded layer. NumPy has no bfloat16: np.asarray gives such a one as float32.

What is shared is read-only, since products may read a packed copy of it, and shows every later update.
DLPack says so from version 1 on; who asks for an older capsule gets a copy. torch is told and lets its
user write all the same: what is written counts when `load` is called with it, and not before.
"""

from __future__ import annotations

from operator import index as as_int
from typing import TYPE_CHECKING, Any

import numpy as np

from .foreign import as_array

if TYPE_CHECKING:
    from .model_state import ModelState

__all__ = ["Parameter"]

_FLOATS = ("float64", "float32", "float16", "F64", "F32", "F16", "BF16")
_HOST, _CUDA = 1, 2  # DLPack's kinds of devices
_DEFAULT_STREAM = 1  # what None stands for on a GPU: CUDA's legacy default stream


class Parameter:
    """A tensor of a model, an array to whoever knows DLPack, NumPy's or Numba's interface: `state_dict`'s
    name and shape; dtype "float32", or "bfloat16" of a frozen bfloat16 model's matrix; trained: whether
    updates move it."""

    def __init__(self, model: ModelState, name: str, index: int, matrix: int) -> None:
        _, _, O, I, self.trained = model._params[index]  # noqa: E741 - the core's letters
        self.name, self.shape = name, (O, I) if O else (I,)
        self._model, self._index, self._matrix = model, index, matrix
        address, self.dtype = model._core.view(index)
        size = max(O, 1) * I * (2 if self.dtype == "bfloat16" else 4)
        self._address = address and address + matrix * size

    def __repr__(self) -> str:
        return f"<Parameter {self.name}: {self.dtype} {self.shape}, {self._model.device_name}>"

    # ---- DLPack ---------------------------------------------------------------------------------

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._model.device.place[:2]

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None,
                   dl_device: tuple[int, int] | None = None, copy: bool | None = None) -> object:
        """A capsule, as the array API standard has it. BufferError where copy is False and only a copy
        would do, or for a device that is neither the model's nor the host, (1, 0)."""
        here, host = self.__dlpack_device__(), (_HOST, 0)
        where = here if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        if where not in (here, host):
            raise BufferError(f"{self.name} is on DLPack device {here}: it is exported there or to {host}, "
                              f"not to {where}")
        versioned = max_version is not None and max_version[0] >= 1
        whynot = (f"it is on device {here}, not {where}" if where != here else
                  "this model is frozen, and has it packed or off-loaded alone" if not self._address else
                  "it is read-only, which only DLPack 1.0 can say: pass max_version"
                  if not versioned else "")
        if copy is False and whynot:
            raise BufferError(f"{self.name} needs a copy: {whynot}")
        how = "host" if where != here else "copy" if copy or whynot else "view"
        return self._model._core.export(self._model.device, self._index, self._matrix, how, versioned,
                                        *_order(stream, here[0], how))

    # ---- NumPy, and what reads a GPU's arrays ------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name}: NumPy cannot have it without a copy, from a GPU or packed")
        value = self._model._read(self._index, "value")
        return (value[self._matrix] if value.ndim == 3 else value).astype(dtype or np.float32, copy=False)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._interface(_HOST)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._interface(_CUDA), "stream": self._model.device.place[2]}

    def _interface(self, kind: int) -> dict[str, Any]:
        """Version 3 of either. AttributeError, so that hasattr is False, on another kind of device, without
        a view, or of bfloat16, which it has no name for."""
        if self.__dlpack_device__()[0] != kind or not self._address or self.dtype != "float32":
            raise AttributeError(f"{self.name} is no array of this interface: it is {self!r}")
        return {"shape": self.shape, "typestr": "<f4", "data": (self._address, True), "strides": None,
                "version": 3}

    # ---- the other way ----------------------------------------------------------------------------

    def load(self, values: Any) -> None:
        """Copies in an array of this shape, of anybody's who speaks DLPack or NumPy, on the host or the
        model's GPU, float64 to bfloat16; products see it from now on. ValueError for another shape or
        dtype, before anything is written."""
        array = as_array(values)
        if tuple(array.shape) != self.shape or str(array.dtype) not in _FLOATS:
            raise ValueError(f"{self.name} is {self.shape}, given {array.dtype} {tuple(array.shape)}")
        value = np.asarray(array, np.float32)
        if self._model._params[self._index][1] > 1:  # one expert of many
            value, whole = self._model._read(self._index, "value"), value
            value[self._matrix] = whole
        self._model._write_values([(self._index, value)])


def _order(stream: int | None, kind: int, how: str) -> tuple[bool, int]:
    """Whether the capsule is for a stream of the GPU that must wait for the model's, and which."""
    if kind != _CUDA:
        if stream is not None:
            raise ValueError(f"stream is {stream!r}; the CPU has none: it must be None")
        return False, 0
    number = _DEFAULT_STREAM if stream is None else as_int(stream)
    if number == 0 or number < -1:
        raise ValueError(f"stream is {number}: it must be None, -1 (no waiting), 1 or 2 (CUDA's default "
                         "streams) or a stream's address")
    return (number > 0 and how != "host", max(number, 0))  # the host has waited
