"""rows.py - files, folders and iterables of dicts -> rows that the trainers take.

    source          what is read
    *.jsonl[.gz]    one JSON object a line; empty lines, CRLF and a byte order mark are harmless
    *.json[.gz]     a list of objects, one object of columns (lists of one length), or lines
    *.parquet       through pyarrow, the extra `parquet`
    gym:NAME        a task of reasoning-gym, the extra `gym` (tasks/gym.py)
    a folder        all such files in it, by name; with split, those whose name begins with it
    an iterable     of dicts: a list, a generator, a Hugging Face dataset; a mapping is columns, or
                    splits of which split takes one

What the columns mean is layouts.py's business; every row passes through one layout.

An error is a ValueError that names the file and the line (in parquet, iterables and columns the
row, from 0). Broken and hostile JSON is json_rows.py's business; a parquet file that declares more
rows or bytes than a file of its size can hold is refused. Nothing is written. Knows nothing about
models or tokenizers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from .brief import brief, brief_names
from .json_rows import check_growth, open_text, read_document, read_lines
from .layouts import Layout, choose_layout
from .tasks.gym import gym_rows

Row = dict[str, Any]
Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Mapping[str, Any]

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
                raise ValueError(f"{where}: there is no column {brief(theirs)} (for {brief(ours)}); it "
                                 f"has {brief_names(row)}")
            value = value[part]
        taken[ours] = value
    gone = set(columns.values())
    return {**{name: value for name, value in row.items() if name not in gone}, **taken}


# --- where rows come from --------------------------------------------------------------------

def _rows_of(source: Source, split: str | None) -> Iterator[tuple[str, Row]]:
    """(place, row) of every row; the place begins every error about the row."""
    if isinstance(source, str) and source.startswith("gym:"):
        for number, row in enumerate(gym_rows(source, split)):
            yield f"{source} row {number}", row
        return
    if isinstance(source, (str, os.PathLike)):
        for path in _files(Path(source), split):
            yield from _rows_of_file(path)
        return
    if isinstance(source, Mapping):
        source, split = _of_mapping(source, split), None
    if split is not None:
        raise ValueError(f"split={brief(split)} was given, but the rows have no splits")
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
        raise ValueError(f"split={brief(split)} is none of {brief_names(source)}")
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
        raise ValueError(f"split={brief(split)} was given, but {path} is one file")
    return [path]


def _in_split(name: str, split: str | None) -> bool:
    """train-00000-of-00002.parquet is in 'train', training.jsonl is not."""
    return split is None or name.startswith(split) and not name[len(split):][:1].isalnum()


def _rows_of_file(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with open_text(path) as stream:
        if ".jsonl" in path.suffixes:
            yield from read_lines(stream, path.name)
        else:
            yield from _unless_columns(read_document(stream, path.name), path.name)


def _unless_columns(rows: Iterator[tuple[str, Row]], name: str) -> Iterator[tuple[str, Row]]:
    """The rows; of a document that is one object of lists, the rows of these columns."""
    head = list(islice(rows, 2))
    if len(head) == 1 and head[0][1] and all(isinstance(x, list) for x in head[0][1].values()):
        for number, row in enumerate(_transposed(head[0][1], name)):
            yield f"{name} row {number}", row
        return
    yield from head
    yield from rows


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
            check_growth(path.name, size, max(bytes_out, meta.num_rows))
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield f"{path.name} row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name}: damaged or no parquet file, after row {number}: {error}"
                         ) from None
