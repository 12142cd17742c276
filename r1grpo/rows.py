"""rows.py - files, folders and iterables of dicts -> rows that the trainers take.

    source          what is read
    *.jsonl[.gz]    one JSON object a line; empty lines, CRLF and a byte order mark are harmless
    *.json[.gz]     a list of objects, one object of columns (lists of one length), or lines after all
    *.parquet       through pyarrow, the extra `parquet`
    a folder        all such files in it, by name; with split, those whose name begins with it
    an iterable     of dicts: a list, a generator, a Hugging Face dataset; a mapping is columns, or
                    splits of which split takes one

What the columns mean is layouts.py's business; every row passes through one layout.

JSON is read strictly, because whatever is let through here turns up later as a wrong row: NaN,
Infinity, a number beyond float64, a key twice in one object, text that is no Unicode are errors. An
error is a ValueError that names the file and the line (in parquet and iterables the row, from 0). A
row may have MAX_ROW bytes and a .gz may grow MAX_GROWTH-fold, so that neither a line without an end
nor a gzip bomb can fill the memory. Nothing is written. Knows nothing about models or tokenizers.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from .layouts import Layout, choose_layout

Row = dict[str, Any]
Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Mapping[str, Any]

MAX_ROW = 64 << 20  # bytes of one line, or of one object of a .json
MAX_GROWTH = 200  # text grows 3- to 30-fold, deflate's limit is 1,032
_HARMLESS = 4 << 20  # bytes that may come out of any .gz, so that a small file of one word is none
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


class Rows(list[Row]):
    """The rows, the layout they were read by, and a sentence for the user that says so."""

    layout: str
    note: str


def load_rows(source: Source, layout: str | None = None, columns: Mapping[str, str] | None = None,
              split: str | None = None, limit: int | None = None) -> Rows:
    """Rows of a source (see the head of the file), each with a prompt or what a trainer takes
    instead, and the columns that reward functions read.

    layout: a name of layouts.LAYOUTS; None: the one that fits the first row's columns. columns:
    {our name: name in the file}, done first; "a.b" is field b of column a. limit: the first rows.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, must be at least 1 or None")
    rows, chosen = Rows(), None
    for where, row in islice(_rows_of(source, split), limit):
        row = _renamed(row, columns or {}, where)
        if chosen is None:
            chosen = choose_layout(row, layout, where)
        rows.append(chosen.apply(row, where))
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the rows"
    if chosen is None:
        raise ValueError(f"{name}: there is no row")
    rows.layout, rows.note = chosen.name, _note(name, rows, chosen, layout is None)
    return rows


def _note(name: str, rows: Rows, layout: Layout, detected: bool) -> str:
    blank = sum(row.get("answer", "") is None for row in rows)
    return (f"{name}: {len(rows):,} rows, layout {layout.name} ({layout.meaning}"
            f"{', found by its columns' if detected else ''})"
            f"{f'; {blank} of them have no answer to check' if blank else ''}")


def _renamed(row: Row, columns: Mapping[str, str], where: str) -> Row:
    """The row with its columns under our names; the old names are gone."""
    taken = {}
    for ours, theirs in columns.items():
        value: Any = row
        for part in [theirs] if theirs in row else theirs.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ValueError(f"{where}: there is no column {theirs!r} (for {ours!r}); it has "
                                 f"{', '.join(row) or 'none'}")
            value = value[part]
        taken[ours] = value
    gone = set(columns.values())
    return {**{name: value for name, value in row.items() if name not in gone}, **taken}


# --- where rows come from --------------------------------------------------------------------

def _rows_of(source: Source, split: str | None) -> Iterator[tuple[str, Row]]:
    """(place, row) of every row; the place begins every error about the row."""
    if isinstance(source, (str, os.PathLike)):
        for path in _files(Path(source), split):
            yield from _rows_of_file(path)
        return
    if isinstance(source, Mapping):
        source, split = _of_mapping(source, split), None
    if split is not None:
        raise ValueError(f"split={split!r} was given, but the rows have no splits")
    if not isinstance(source, Iterable):
        raise TypeError(f"rows come from a file, a folder or an iterable of dicts, not from "
                        f"{type(source).__name__}")
    for number, row in enumerate(source):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {number} is of type {type(row).__name__}, expected a dict")
        yield f"row {number}", dict(row)


def _of_mapping(source: Mapping[str, Any], split: str | None) -> Iterable[Mapping[str, Any]]:
    """Rows of a mapping: of one of its splits, or of its columns."""
    splits = bool(source) and all(
        not isinstance(one, (str, Mapping)) and isinstance(one, Iterable)
        and isinstance(next(iter(one), None), Mapping) for one in source.values())
    if split is None and not splits:
        return _transposed(source, "the mapping")
    if split not in source or not splits:
        raise ValueError(f"split={split!r} is none of {', '.join(map(str, source)) or 'nothing'}")
    return source[split]


def _files(path: Path, split: str | None) -> list[Path]:
    if path.is_dir():
        files = sorted(one for one in path.iterdir()
                       if one.name.endswith(_SUFFIXES) and _in_split(one.name, split))
        if not files:
            raise ValueError(f"{path} holds no file {'' if split is None else f'{split}* '}that "
                             f"ends in {', '.join(_SUFFIXES)}")
        return files
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; a dataset of the Hugging Face Hub is "
                                f"loaded with `datasets` and given as it is")
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"{path}: rows are read from files that end in {', '.join(_SUFFIXES)}")
    if split is not None:
        raise ValueError(f"split={split!r} was given, but {path} is one file")
    return [path]


def _in_split(name: str, split: str | None) -> bool:
    """train-00000-of-00002.parquet is in 'train', training.jsonl is not."""
    return split is None or name.startswith(split) and not name[len(split)].isalnum()


def _rows_of_file(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with path.open("rb", buffering=0) as raw:
        file = _Gunzip(raw, path.name) if path.suffix == ".gz" else raw
        with io.BufferedReader(file, 1 << 20) as stream:
            yield from (_lines if ".jsonl" in path.suffixes else _document)(stream, path.name)


def _lines(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, Row]]:
    """Rows of JSON lines."""
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


def _document(stream: io.BufferedReader, name: str) -> Iterator[tuple[str, Row]]:
    """Rows of a JSON document, read object by object: it need not fit into memory as text."""
    text = _Text(stream, name)
    if text.peek() == "[":
        text.skip()
        first = True
        while text.peek() != "]":
            if not first:
                text.expect(",")
            first = False
            where, row, spelled = text.value()
            yield where, _checked(row, spelled, where)
        text.skip()
        if text.peek():
            raise ValueError(f"{text.where}: there is more behind the list")
        return
    where, row, spelled = text.value()
    row = _checked(row, spelled, where)
    if not text.peek() and row and all(isinstance(one, list) for one in row.values()):
        for number, one in enumerate(_transposed(row, name)):
            yield f"{name} row {number}", one
        return
    yield where, row
    while text.peek():
        where, row, spelled = text.value()
        yield where, _checked(row, spelled, where)


def _transposed(columns: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Rows of a mapping from names to lists of one length."""
    lengths = {name: len(one) if isinstance(one, (list, tuple)) else None
               for name, one in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) != 1:
        found = ", ".join(f"{name} {'no list' if n is None else n}" for name, n in lengths.items())
        raise ValueError(f"{where}: columns must be lists of one length; found {found or 'none'}")
    return (dict(zip(columns, values)) for values in zip(*columns.values()))


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"{path}: parquet needs pyarrow: pip install 'r1grpo[parquet]'") from None
    number, size = 0, path.stat().st_size
    try:
        with parquet.ParquetFile(path) as file:
            meta, names = file.metadata, file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"{path.name}: two columns have one name: {', '.join(names)}")
            bytes_out = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            _check_growth(path.name, size, max(bytes_out, meta.num_rows))
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield f"{path.name} row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name}: damaged or no parquet file, after row {number}: {error}"
                         ) from None


# --- strict JSON -----------------------------------------------------------------------------

def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at position "
                         f"{error.start + 1}") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice "
                         f"in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond float64")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _checked(row: Any, text: str, where: str) -> Row:
    """A JSON value as a row. Half a surrogate pair, which an escape can spell, is no text."""
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

    def value(self) -> tuple[str, Any, str]:
        """(place, value, its text) of the next value. What fails at the window's end is read again
        with twice the window."""
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
        return where, value, text

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

def _check_growth(name: str, size: int, grown: int) -> None:
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

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._gzip.read(min(len(buffer), 1 << 18))
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{self._name} is damaged: {error}") from None
        self._grown += len(data)
        _check_growth(self._name, self._file.tell(), self._grown)
        buffer[:len(data)] = data
        return len(data)
