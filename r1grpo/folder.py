"""folder.py - what a trainer takes for `model`: a Model, or the folder that it is loaded from.

    GRPOTrainer("Qwen2.5-0.5B-Instruct", ...)    the weights and the tokenizer of that folder

A tokenizer that the caller gives is used instead of the folder's. Knows nothing about training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .hf_tokenizer import Tokenizer
from .model import Model
from .tokenizer import WordTokenizer


def model_and_tokenizer(model: Any, processing_class: Any) -> tuple[Any, Any]:
    """(model, tokenizer): both as they are, or out of the folder that `model` names."""
    if not isinstance(model, (str, os.PathLike)):
        return model, processing_class
    loaded = Model.from_pretrained(model)
    if processing_class is None and (Path(model) / "tokenizer.json").is_file():
        processing_class = tokenizer_of(model)
    return loaded, processing_class


def tokenizer_of(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer of a model's folder: ours of whole words, or the published one."""
    try:
        return WordTokenizer.load(folder)
    except ValueError:
        return Tokenizer.from_pretrained(folder)
