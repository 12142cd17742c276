"""safetensors_file.py - one safetensors file: a checked header, and reads of parts of a tensor.

    8 bytes             length of the header, little-endian
    header              JSON: {NAME: {"dtype", "shape", "data_offsets": [begin, end]}, ...,
                        "__metadata__": {text: text}}
    data                the tensors without gap or overlap, little-endian, row-major

(huggingface/safetensors, README.) The library's NumPy face knows neither bfloat16 nor FP8 and reads
whole tensors; this reads any part into memory of the caller, with positioned reads. A memory map would
be as fast, but a file that shrinks under it kills the process: here it is a ValueError.

The file is taken for hostile: every length is checked before it is used, in exact integers, and the
header is bounded in bytes and in items before it is parsed. Knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .brief import brief
from .json_rows import unique_object
from .safe_files import Stream

__all__ = ["SafetensorsFile", "Tensor", "header_bytes", "pack_arrays", "parse_json",
           "unpack_arrays"]

MAX_HEADER = 32 << 20  # bytes; DeepSeek-V3's 91,991 tensors in one file would need 14 MB
_MAX_MARKS = 13 * 200_000  # of { [ and ": a tensor of a header has 13
_MAX_AXES = 8
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
               "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
               "BOOL": 1, "C64": 8}


class Tensor(NamedTuple):
    """dtype: the file's name for it; begin: place of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


class SafetensorsFile:
    """An open file; `tensors` maps names to places. Use as a context manager, or `close` it."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        # not blocking: a pipe of that name must not hang the open
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(self._descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("is no regular file")
            self.tensors = self._read_header(facts.st_size)
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path} is no sound safetensors file: {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        """Bytes [first, first + out.nbytes) of a tensor into a contiguous array of any type."""
        tensor = self.tensors[name]
        assert 0 <= first <= first + out.nbytes <= tensor.size
        try:
            self._read_at(tensor.begin + first, out.reshape(-1).view(np.uint8))
        except ValueError as error:
            raise ValueError(f"{self.path}: tensor {name!r}: {error}") from None

    def _read_at(self, place: int, out: np.ndarray) -> None:
        view = memoryview(out)
        while view:
            count = os.preadv(self._descriptor, [view], place)
            if count == 0:
                raise ValueError(f"the file ends {len(view)} bytes too early")
            view, place = view[count:], place + count

    def _read_header(self, size: int) -> dict[str, Tensor]:
        if size < 8:
            raise ValueError(f"it has {size} bytes, the length of the header alone takes 8")
        start = np.empty(8, np.uint8)
        self._read_at(0, start)
        length = int.from_bytes(start.tobytes(), "little")
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"its header would have {length} bytes; the file has {size}, and at most "
                             f"{MAX_HEADER} are read")
        text = np.empty(length, np.uint8)
        self._read_at(8, text)
        header = parse_json(text.tobytes())
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or \
                not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its __metadata__ does not map text to text")
        tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items()}
        end = 8 + length
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].size)):
            if tensor.begin != end:
                kind = "overlaps the one before" if tensor.begin < end else "leaves a gap before it"
                raise ValueError(f"tensor {brief(name)} {kind}")
            end += tensor.size
        if end != size:
            raise ValueError(f"its tensors end at byte {end}, the file at {size}")
        return tensors


def _tensor(name: str, entry: Any, data: int) -> Tensor:
    """One entry of a header; data: where the tensors begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {brief(name)} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{brief(name)} has dtype {brief(dtype)}, which is not known")
    if not _counts(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"{brief(name)} has shape {brief(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{brief(name)} has data_offsets {brief(offsets)}")
    size = offsets[1] - offsets[0]
    if size != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{brief(name)} has {size} bytes, which are not {dtype} {brief(shape)}")
    return Tensor(dtype, tuple(shape), data + offsets[0], size)


def _counts(values: Any) -> bool:
    """A list of whole numbers that are 0 or more and fit 64 bits?"""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def parse_json(text: bytes) -> Any:
    """JSON whose objects have no name twice, of bounded work; ValueError for all else."""
    if sum(text.count(mark) for mark in (b"{", b"[", b'"')) > _MAX_MARKS:
        raise ValueError("its JSON has too many items")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique_object)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The start of a file of these (dtype, shape), whose data then follows in this order. Items of a
    larger type must come first, so that all are aligned; the metadata is what transformers asks for."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, dtype, shape, begin, end in _places(tensors):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _places(tensors: Mapping[str, tuple[str, tuple[int, ...]]]
            ) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * _ITEM_BYTES[dtype]
        assert begin % _ITEM_BYTES[dtype] == 0
        yield name, dtype, shape, begin, end
        begin = end


# ---- whole files of NumPy arrays ------------------------------------------------------------------

_DTYPES = {"bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
           "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
           "float16": "F16", "float32": "F32", "float64": "F64"}  # NumPy's name -> the file's
_NUMPY = {theirs: ours for ours, theirs in _DTYPES.items()}


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


def unpack_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that pack_arrays made."""
    arrays = {}
    with SafetensorsFile(path) as file:
        for name, tensor in file.tensors.items():
            arrays[name] = np.empty(tensor.shape, np.dtype(_NUMPY[tensor.dtype]).newbyteorder("<"))
            file.read(name, 0, arrays[name])
    return arrays
