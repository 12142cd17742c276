"""hub.py - the folder of a model: a path as it is, or a Hugging Face hub id, its cache first.

    find_folder("models/mine")                          a folder of this machine
    find_folder("Qwen/Qwen2.5-0.5B", revision="main")   the cache; what it lacks is downloaded

Only what loading needs is fetched: configuration, safetensors, tokenizer; never code, never pickle.
What goes along with the weights (`read_carried`: tokenizer, template, generation settings) is kept as
bytes by whoever loads a model or its tokenizer, and written again when that is saved.
Needs the optional package huggingface_hub (`pip install 'r1grpo[hub]'`), which brings its own
settings (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN). Knows nothing of what is in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from .safe_files import read_bounded

__all__ = ["CARRIED", "find_folder", "read_carried"]

CARRIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "tokenizer.model", "chat_template.jinja", "chat_template.json")
_MAX_CARRIED = 256 << 20  # bytes of one file

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights


def find_folder(name: str | os.PathLike[str], revision: str | None,
                is_whole: Callable[[Path], bool]) -> Path:
    """The local folder of a model; is_whole: does a cached one have all its files?

    A folder that exists is meant even if a hub id would read the same. revision: branch, tag or
    commit of a hub id."""
    path = Path(name)
    if path.exists() or not isinstance(name, str) or not _ID.fullmatch(name):
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for ids of the hub; {name} is a path")
        return path
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise FileNotFoundError(
            f"{name} is no folder here; if it is meant as an id of the Hugging Face hub: "
            "pip install 'r1grpo[hub]'") from None

    def fetch(offline: bool) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED,
                                      ignore_patterns=_UNWANTED, local_files_only=offline))

    try:
        cached = fetch(offline=True)
        if is_whole(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        return fetch(offline=False)
    except Exception as error:  # its own kinds, and those of the network below it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"{name} (revision {revision or 'main'}) is no folder here, not whole "
                                f"in the cache, and not to be had from the hub: {reason}") from error


def read_carried(folder: Path) -> dict[str, bytes]:
    """The bytes, not the paths: the folder may be gone or changed when the model is saved."""
    return {name: read_bounded(folder / name, _MAX_CARRIED)
            for name in CARRIED if (folder / name).is_file()}
