"""folder.py - what is taken for `model`: a Model, or the folder that it is loaded from.

    GRPOTrainer("Qwen2.5-0.5B-Instruct", ...)         the weights and the tokenizer of that folder
    GRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", ...)    the same of an id of the hub (hub.py)

A tokenizer that the caller gives is used instead of the folder's. Objects of transformers and torch
are refused by name: theirs have the same methods with other meanings (apply_chat_template leaves the
generation prompt out, encode adds tokens), so that training would go wrong in silence. Knows nothing
about training.
"""

from __future__ import annotations

import os
from typing import Any

from .hf_tokenizer import Tokenizer
from .model import Model
from .model_source import find_model
from .rollout import fit_vocabulary
from .tokenizer import WordTokenizer


def model_and_tokenizer(model: Any, processing_class: Any, peft_config: Any = None, seed: int = 0,
                        frozen: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer): both as they are, or out of the folder that `model` names, of a model or of
    adapters; with a peft_config (LoraConfig) with new adapters, drawn from seed: of a Model a copy.
    frozen: what is loaded is only asked, not trained."""
    if _foreign(processing_class):
        raise TypeError(f"processing_class is a {type(processing_class).__name__} of another library; "
                        f"give r1grpo.Tokenizer.from_pretrained(FOLDER), or leave it out where model "
                        f"is a folder")
    if isinstance(processing_class, (str, os.PathLike)):
        raise TypeError("processing_class is a name; give r1grpo.Tokenizer.from_pretrained(FOLDER), or leave "
                        "it out where model is a folder")
    if _foreign(model):
        raise TypeError(f"model is a {type(model).__name__} of another library; give its folder, or "
                        f"r1grpo.Model.from_pretrained(FOLDER)")
    if not isinstance(model, (str, os.PathLike)):
        return model if peft_config is None else model.add_adapter(peft_config, seed), processing_class
    loaded = Model.from_pretrained(model, lora=peft_config, seed=seed, frozen=frozen)
    folder = find_model(model).tokenizer
    if processing_class is None and (folder / "tokenizer.json").is_file():
        processing_class = tokenizer_of(folder)
    return loaded, processing_class


def asked_and_tokenizer(model: Any, processing_class: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a model that is only asked: one out of a folder is frozen, and ids that its
    tokenizer has not are never sampled."""
    asked, processing_class = model_and_tokenizer(model, processing_class, frozen=True)
    if asked is not model:
        fit_vocabulary(asked, processing_class)
    return asked, processing_class


def _foreign(thing: Any) -> bool:
    """Whether a class of the thing is of transformers, PEFT or torch."""
    return any(one.__module__.partition(".")[0] in ("transformers", "peft", "torch")
               for one in type(thing).__mro__)


def tokenizer_of(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer of a model's folder: ours of whole words, or the published one."""
    try:
        return WordTokenizer.load(folder)
    except ValueError:
        return Tokenizer.from_pretrained(folder)
