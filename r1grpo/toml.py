"""toml.py - nested dataclasses <-> TOML text.

Reads with the standard library's tomllib, writes with the few lines below, and checks what it reads
against the fields of a dataclass: an unknown key is an error that suggests the near one, a value of
the wrong type is an error that names the key with its place (`r1_zero.grpo.epsilon`).

A key that is absent takes the dataclass's default. TOML has no null: None is written by leaving
the key out, which is possible only where None is the default (to_toml says so otherwise).

Knows nothing about what the fields mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .brief import brief, brief_text

T = TypeVar("T")


class ConfigError(ValueError):
    """A key or value of a run config that cannot be; the message names it."""


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """', did you mean ...?' for the nearest known name, else the empty string."""
    near = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The table of a TOML text; ConfigError naming it where it is none."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{name}: nested too deep") from None
    except ValueError as error:  # TOMLDecodeError, or a number of more digits than Python reads
        raise ConfigError(f"{name}: {str(error)[:200]}") from error


def read_table(path: str | Path) -> dict[str, Any]:
    """The table of a TOML file; ConfigError naming the file where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {path}: {reason}") from error
    return parse_toml(text, str(path))


def from_dict(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from a (nested) mapping, checking every key and type."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in table.items():
        place = f"{where}.{brief_text(key)}" if where else brief_text(key)
        if key not in names:
            refusal = getattr(cls, "refusal", lambda name: f"unknown key{suggest(name, names)}")
            raise ConfigError(f"{place}: {refusal(key)}")
        values[key] = _convert(hints[key], value, place)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # a missing key, a value that cannot be
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _convert(hint: Any, value: Any, place: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        choices = [one for one in inner if one is not type(None)]
        for one in choices[:-1]:
            with contextlib.suppress(ConfigError):
                return _convert(one, value, place)
        return _convert(choices[-1], value, place)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(hint, value, place)  # type: ignore[arg-type]
    elif origin is typing.Literal:
        if value in inner:
            return value
        raise ConfigError(f"{place} is {brief(value)}, expected one of "
                          f"{', '.join(map(repr, inner))}{suggest(str(value), map(str, inner))}")
    elif origin in (list, tuple, Sequence):
        if isinstance(value, (list, tuple)):
            return (list if origin is list else tuple)(
                _convert(inner[0], one, f"{place}[{i}]") for i, one in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _convert(inner[1], one, f"{place}.{brief_text(str(k))}")
                    for k, one in value.items()}
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{place} is {brief(value)}, expected {expected}")


def merge_tables(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested table with some of its values replaced; keys it lacks join it, for from_dict to refuse
    by name."""
    both = {key: merge_tables(table[key], value) for key, value in changes.items()
            if isinstance(value, Mapping) and isinstance(table.get(key), Mapping)}
    return {**table, **changes, **both}


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of a dataclass; None is left out, see above."""
    table = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            if field.default is not None:
                raise ConfigError(f"{field.name}: TOML cannot write None")
            continue
        table[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return table


def to_toml(config: Any) -> str:
    """TOML text of a dataclass: scalars first, then one [table] for each nested part."""
    return table_to_toml(to_dict(config))


def table_to_toml(table: Mapping[str, Any]) -> str:
    """The same of a nested dict."""
    return "\n".join(_write(table, "")).lstrip("\n") + "\n"


def _write(table: Mapping[str, Any], where: str) -> list[str]:
    lines = [f"{_key(k)} = {_scalar(v)}" for k, v in table.items() if not isinstance(v, Mapping)]
    if where and (lines or not table):
        lines = ["", f"[{where}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _write(value, f"{where}.{_key(key)}" if where else _key(key))
    return lines


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if bare else json.dumps(key)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's; TOML wants DEL escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_scalar(one) for one in value) + "]"
    raise ConfigError(f"TOML cannot write {type(value).__name__} {brief(value)}")
