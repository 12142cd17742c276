"""json_rows.py - JSON files to objects: strict, one object at a time, in bounded memory.

    read_lines      *.jsonl    one object a line; empty lines, CRLF, a byte order mark do no harm
    read_document   *.json     a list of objects, or objects one after another
    open_text       the bytes of a file, of a .gz unpacked

JSON is read strictly, because whatever is let through here turns up later as a wrong row: NaN,
Infinity, a number beyond float64, a key twice in one object, half of a surrogate pair are errors,
ValueErrors that name file and line. An object may have MAX_ROW bytes and a .gz may grow MAX_GROWTH-
fold, so that neither a line without an end nor a gzip bomb can fill the memory. Knows nothing about
what the objects mean.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .brief import brief

MAX_ROW = 64 << 20  # bytes of one line, or of one object of a document
MAX_GROWTH = 200  # text grows 3- to 30-fold, deflate's limit is 1,032
_HARMLESS = 4 << 20  # bytes that may come out of any .gz, so that a small file of one word is none

Object = dict[str, Any]


def open_text(path: Path) -> io.BufferedReader:
    """The file's bytes, of a .gz unpacked; the caller closes it."""
    raw = path.open("rb", buffering=0)
    return io.BufferedReader(_Gunzip(raw, path.name) if path.suffix == ".gz" else raw, 1 << 20)


def read_lines(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, Object]]:
    """(place, object) of every line."""
    number = 0
    while line := stream.readline(MAX_ROW + 1):
        number += 1
        where = f"{name} line {number}"
        if len(line) > MAX_ROW:
            raise ValueError(f"{where} is longer than {MAX_ROW >> 20} MiB")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.isspace():
            continue
        text = _decoded(line, where).rstrip()
        try:
            row = _JSON.decode(text)
        except json.JSONDecodeError as error:
            cut = "" if line.endswith(b"\n") else "; the file ends in this line, was it cut off?"
            raise ValueError(f"{where}, column {error.colno}: {error.msg}{cut}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {_reason(error)}") from None
        yield where, _checked(row, text, where)


def read_document(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, Object]]:
    """(place, object) of every object of a document, which need not fit into memory as text."""
    text = _Text(stream, name)
    if text.peek() != "[":
        yield text.object()
        while text.peek():
            yield text.object()
        return
    text.skip()
    first = True
    while text.peek() != "]":
        if not first:
            text.expect(",")
        first = False
        yield text.object()
    text.skip()
    if text.peek():
        raise ValueError(f"{text.where}: there is more behind the list")


# --- strictness ------------------------------------------------------------------------------

def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at position "
                         f"{error.start + 1}") from None


def unique_object(pairs: list[tuple[str, Any]]) -> Object:
    """An object of these keys, as object_pairs_hook; ValueError where one stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {brief(double)} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond float64")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=unique_object, parse_constant=_constant, parse_float=_float)


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _checked(row: Any, text: str, where: str) -> Object:
    """The object that a value is. Half a surrogate pair, which an escape can spell, is no text."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds a {type(row).__name__}, expected an object")
    if "\\u" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: {ascii(error.object[error.start])} is half a character"
                             ) from None
    return row


class _Text:
    """The text of a JSON document, a window at a time; knows the line it stands in."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self._stream, self._name, self._line = stream, name, 1
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    @property
    def where(self) -> str:
        return f"{self._name} line {self._line}"

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at:self._at + 1]
            self._more(1 << 20)

    def skip(self) -> None:
        self._at += 1

    def expect(self, mark: str) -> None:
        found = self.peek()
        if found != mark:
            raise ValueError(f"{self.where}: expected {mark!r}, found "
                             f"{repr(found) if found else 'the end of the file, was it cut off?'}")
        self.skip()

    def object(self) -> tuple[str, Object]:
        """(place, object) of the next object. What fails at the window's end is read again with
        twice the window."""
        self.peek()
        where, window = self.where, 1 << 20
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                if self._ended:
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    end = error.pos >= len(self._text.rstrip()) or "Unterminated" in error.msg
                    cut = "; was the file cut off?" if end else ""
                    raise ValueError(f"{self._name} line {line}: {error.msg}{cut}") from None
                if len(self._text) - self._at > MAX_ROW:
                    raise ValueError(f"{where}: an object is longer than {MAX_ROW >> 20} MiB, or "
                                     f"broken") from None
                self._more(window)
                window *= 2
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: {_reason(error)}") from None
        text = self._text[self._at:end]
        self._line += text.count("\n")
        self._at = end
        return where, _checked(value, text, where)

    def _more(self, size: int) -> None:
        data = self._stream.read(size)
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._name} is not UTF-8 behind line {self._line}: byte "
                             f"0x{error.object[error.start]:02x}") from None
        self._text, self._at = self._text[self._at:] + more, 0


# --- compressed files ------------------------------------------------------------------------

def check_growth(name: str, size: int, grown: int) -> None:
    """ValueError where unpacking has made too many bytes of a file of `size` bytes."""
    if grown > max(_HARMLESS, MAX_GROWTH * size):
        raise ValueError(f"{name} grows more than {MAX_GROWTH}-fold when it is unpacked ({size:,} "
                         f"bytes to {grown:,} or more): no rows look like this; unpack it yourself "
                         f"if it is what you expect")


class _Sips:
    """A file in sips of 4 KiB, so that its position is what the decompressor has used."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, 4096)) or b""


class _Gunzip(io.RawIOBase):
    """The text of a .gz, as long as it does not grow out of proportion."""

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file, self._name, self._grown = file, name, 0
        self._gzip = gzip.GzipFile(fileobj=_Sips(file), mode="rb")  # type: ignore[call-overload]

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._gzip.read(min(len(buffer), 1 << 18))
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{self._name} is damaged: {error}") from None
        self._grown += len(data)
        check_growth(self._name, self._file.tell(), self._grown)
        buffer[:len(data)] = data
        return len(data)
