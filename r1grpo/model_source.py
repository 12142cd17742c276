"""model_source.py - what the name of a model stands for: its folder, that of its weights, its adapters.

    find_model("Qwen2.5-0.5B")      a folder of weights
    find_model("runs/lora/final")   a folder of adapters (lora.py), and that of the base it names

A name is a path or an id of the hub (hub.py); so is the base of adapters, which PEFT writes as its
user gave it: a relative path is looked for from where the process runs. No weight is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .hub import find_folder
from .load_folder import is_whole
from .lora import ADAPTER_FILES, Adapter, is_adapter_folder, read_adapter

__all__ = ["ModelSource", "find_model"]


class ModelSource(NamedTuple):
    """base, revision: the name of the weights, as an adapter of this model would give it."""

    folder: Path
    weights: Path
    adapter: Adapter | None
    base: str
    revision: str | None

    @property
    def tokenizer(self) -> Path:
        """The folder whose tokenizer goes with the model: adapters may bring one of their own."""
        return self.folder if (self.folder / "tokenizer.json").is_file() else self.weights


def find_model(name: str | os.PathLike[str], revision: str | None = None) -> ModelSource:
    """The folders of a model; FileNotFoundError or ValueError where there are none."""
    folder = find_folder(name, revision, _is_there)
    if not is_adapter_folder(folder):
        return ModelSource(folder, folder, None, _as_base(name), revision)
    adapter = read_adapter(folder)
    if not adapter.base:
        raise ValueError(f"{folder} holds adapters and does not name their base; load the base, then "
                         f"its .load_adapter({str(folder)!r})")
    try:
        weights = find_folder(adapter.base, adapter.revision, is_whole)
        if not weights.exists():
            raise FileNotFoundError(f"there is no {weights}")
    except (OSError, ValueError) as error:
        raise type(error)(f"{folder} holds adapters of {adapter.base}: {error}") from None
    return ModelSource(folder, weights, adapter, _as_base(adapter.base), adapter.revision)


def _is_there(folder: Path) -> bool:
    """Whether a folder of the hub's cache has all its files."""
    return is_whole(folder) or all((folder / name).is_file() for name in ADAPTER_FILES)


def _as_base(name: str | os.PathLike[str]) -> str:
    return str(Path(name).absolute()) if Path(name).exists() else str(name)
