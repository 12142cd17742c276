"""record.py - a part of the benchmark: pieces that may fail, one JSON, a clock.

    part.piece("copy", measure)     measure(rows) calls rows.add(seconds=1.0)

{"part", "quick", "facts": {...}, "pieces": [{"name", "seconds", "error": null or text, "rows": [...]}],
 "refused": null or text, "finished"}. The file is whole after every row. Knows nothing about GPUs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class OutOfTimeError(Exception):
    """The part's minutes are over."""


class WrongError(Exception):
    """What the piece found must not be."""


class Rows:
    """Those of one piece."""

    def __init__(self, part: Part) -> None:
        self.part, self.found = part, []
        self.wrong: list[str] = []  # what the piece found that must not be: it fails when it ends

    def add(self, **row: Any) -> Row:
        """Keep, print and save a row."""
        self.found.append(row)
        print("  " + "  ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)
        self.part.save()
        return row

    def bar(self, what: str, value: float, unit: str, least: float, aim: float, **more: Any) -> Row:
        """A figure beside what must hold and what is aimed at; more is better."""
        return self.add(what=what, value=value, unit=unit, least=least, aim=aim, holds=value >= least, **more)


class Part:
    """What one run finds out."""

    def __init__(self, name: str, folder: Path, seconds: float, quick: bool = False) -> None:
        self.name, self.quick = name, quick
        self.begin = time.monotonic()
        self.seconds = seconds
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.json"
        self.found: Row = {"part": name, "quick": quick, "facts": {}, "pieces": [], "refused": None,
                           "finished": False}
        self.save()

    @property
    def left(self) -> float:
        """Seconds until the part has to be over."""
        return self.seconds - (time.monotonic() - self.begin)

    def piece(self, name: str, measure: Callable[..., Any], *more: Any) -> Any:
        """What measure(rows, *more) returns; None where it failed, which is written down."""
        rows, begin, result = Rows(self), time.monotonic(), None
        entry: Row = {"name": name, "seconds": 0.0, "error": None, "rows": rows.found}
        self.found["pieces"].append(entry)
        print(name, flush=True)
        try:
            if self.left <= 0:
                raise OutOfTimeError("the part's minutes are over")
            result = measure(rows, *more)
            if rows.wrong:
                raise WrongError(f"{len(rows.wrong)}: {', '.join(rows.wrong)}")
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"[:2000]
            print(f"  failed: {entry['error']}", flush=True)
        entry["seconds"] = time.monotonic() - begin
        self.save()
        return result

    def refuse(self, why: str) -> None:
        """Nothing can be found out here."""
        self.found["refused"] = why
        print(f"{self.name}: {why}", flush=True)
        self.save()

    def finish(self) -> int:
        """The exit code."""
        self.found["finished"] = self.found["refused"] is None
        self.save()
        failed = [piece["name"] for piece in self.found["pieces"] if piece["error"]]
        missed = [row["what"] for piece in self.found["pieces"] for row in piece["rows"]
                  if row.get("holds") is False]
        for title, names in (("failed", failed), ("below the bar", missed)):
            if names:
                print(f"{title}: {', '.join(names)}")
        return int(bool(failed) or self.found["refused"] is not None)

    def save(self) -> None:
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.file)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 100 else text[:100] + ".."
