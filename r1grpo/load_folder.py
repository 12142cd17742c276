"""load_folder.py - a Hugging Face folder -> a configuration and, one by one, the core's parameters.

    config.json                          read first; with the layout that the core makes of it
    model.safetensors                    or model.safetensors.index.json and its shards
    mtp.safetensors                      the MTP module, where save_folder.py has put it apart
    generation_config.json, tokenizer... their bytes are kept, for whoever saves the model again

Everything that can be wrong is found in the headers, before a weight is read and before the core
allocates one. Then weights stream: a parameter is assembled in one float32 buffer, by blocks that
stay in the processor's cache, so loading needs the model and its largest parameter (all experts of one
projection are one). No pickle, no code of a folder, ever. Knows nothing of `Model`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .brief import brief, brief_names
from .hub import read_carried
from .model_config import ModelConfig
from .number_formats import BLOCK, ITEM_BYTES, scale_blocks, scale_shape, widen
from .safe_files import read_bounded
from .safetensors_file import SafetensorsFile, parse_json
from .weights import Source, find_sources

__all__ = ["CONFIG", "GENERATION", "INDEX", "MTP", "SINGLE", "ModelFolder", "is_whole"]

CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX, MTP = "model.safetensors", "model.safetensors.index.json", "mtp.safetensors"
_MAX_JSON = 32 << 20  # bytes
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
_BLOCK_ITEMS = 1 << 18  # numbers that are widened at a time
_PICKLED = (".bin", ".pt", ".pth")


class ModelFolder:
    """A folder whose files fit each other and the core; opened as a context manager.

    config: what its config.json says; files: name -> bytes of what is carried along."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = _read_config(folder)
        with ExitStack() as stack:
            self._open_weights(stack)
            self._params = self._layout()
            try:
                self._sources = find_sources(self._params, self._found(), self.config)
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from None
            self._check_tied_head()
            self.files = read_carried(folder)
            self._stack = stack.pop_all()

    def __enter__(self) -> ModelFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def arrays(self) -> Iterator[np.ndarray]:
        """The parameters in the core's order, float32 (E, O, I) or (1, I). An array is overwritten by
        the next one."""
        sizes = [E * max(O, 1) * I for _, E, O, I, _ in self._params]  # noqa: E741
        buffer = np.empty(max(sizes), np.float32)
        for source, (_, E, O, I, _), size in zip(self._sources, self._params, sizes,  # noqa: E741
                                                 strict=True):
            out = buffer[:size].reshape(E, max(O, 1), I)
            for e, matrix in enumerate(out):
                self._read(source, e, matrix)
            yield out

    # ---- what there is -------------------------------------------------------------------------

    def _open_weights(self, stack: ExitStack) -> None:
        """name -> (file, Tensor) of every tensor of the folder."""
        placed = _weight_map(self.folder)
        names = sorted(set(placed.values())) if placed is not None else [SINGLE]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{self.folder} has no {', '.join(missing[:20])}"
                                    f"{', ...' if len(missing) > 20 else ''}, which {INDEX} names")
        if (self.folder / MTP).is_file() and MTP not in names:
            names.append(MTP)
        self._where: dict[str, SafetensorsFile] = {}
        expected: dict[str, set[str]] = {}
        for one, shard in (placed or {}).items():
            expected.setdefault(shard, set()).add(one)
        for name in names:
            file = stack.enter_context(SafetensorsFile(self.folder / name))
            if name in expected:
                _check_shard(file, expected[name])
            for one in file.tensors:
                if one in self._where:
                    raise ValueError(f"{file.path} has the tensor {brief(one)}, which "
                                     f"{self._where[one].path.name} has too")
                self._where[one] = file

    def _found(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: (file.tensors[name].dtype, file.tensors[name].shape)
                for name, file in self._where.items()}

    def _layout(self) -> list[tuple[str, int, int, int, bool]]:
        """The parameters of the config. What transformers leaves out when it saves a model is not
        missed: the MTP module, and beside a scalar head the head of tokens (here the embedding then)."""
        config, last = self.config, f"model.layers.{self.config.num_hidden_layers}."
        if config.num_nextn_predict_layers and not any(n.startswith(last) for n in self._where):
            self.config = config = replace(config, num_nextn_predict_layers=0)
        if config.score_head and "lm_head.weight" not in self._where:
            self.config = config = replace(config, tie_word_embeddings=True)
        try:
            return _core.Model.layout(config.core()[0])
        except ValueError as error:
            raise ValueError(f"{self.folder / CONFIG}: {error}") from None

    def _check_tied_head(self) -> None:
        """A head that is said to be the embedding and is stored as well must be the same."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if not self.config.tie_word_embeddings or head not in self._where:
            return
        O, I = self.config.vocab_size, self.config.hidden_size  # noqa: E741
        same = self._where[head].tensors[head].shape == (O, I)
        a, b = np.empty((BLOCK, I), np.float32), np.empty((BLOCK, I), np.float32)
        for first in range(0, O if same else 0, BLOCK):
            rows = min(BLOCK, O - first)
            self._read_rows(head, 0, first, a[:rows])
            self._read_rows(embedding, 0, first, b[:rows])
            same = same and np.array_equal(a[:rows], b[:rows], equal_nan=True)
        if not same:
            raise ValueError(f"{self.folder}: {head} differs from {embedding}, though {CONFIG} says "
                             "tie_word_embeddings; if the head is its own, say false there")

    # ---- reading -------------------------------------------------------------------------------

    def _read(self, source: Source, e: int, out: np.ndarray) -> None:
        """Matrix e of a parameter (O, I), or a vector (1, I)."""
        if source.first is None:
            self._read_rows(source.names[e], 0, 0, out)
        else:
            self._read_rows(source.names[0], e, source.first, out)

    def _read_rows(self, name: str, e: int, first: int, out: np.ndarray) -> None:
        """Rows [first, first + n) of matrix e of a tensor (..., O, I) -> float32 (n, I)."""
        file = self._where[name]
        tensor = file.tensors[name]
        start = (e * tensor.shape[-2] if e else 0) + first
        if tensor.dtype == "F8_E4M3":
            self._read_scaled(name, e, first, out)
        else:
            _read_flat(file, name, start * tensor.shape[-1], out.reshape(-1))

    def _read_scaled(self, name: str, e: int, first: int, out: np.ndarray) -> None:
        """F8_E4M3 rows, each row of blocks with its factors."""
        shape = self._where[name].tensors[name].shape
        blocks = scale_shape(shape)
        factors = np.empty(blocks[-1], np.float32)
        at = 0
        while at < len(out):
            row = first + at
            part = out[at:at + BLOCK - row % BLOCK]
            _read_flat(self._where[name], name, (e * shape[-2] + row) * shape[-1], part.reshape(-1))
            _read_flat(self._where[f"{name}_scale_inv"], f"{name}_scale_inv",
                       (e * blocks[-2] + row // BLOCK) * blocks[-1], factors)
            scale_blocks(part, factors)
            at += len(part)


def _read_flat(file: SafetensorsFile, name: str, first: int, out: np.ndarray) -> None:
    """Numbers [first, first + n) of a tensor -> float32 (n), by blocks."""
    dtype = file.tensors[name].dtype
    item = ITEM_BYTES[dtype]
    if dtype == "F32" and sys.byteorder == "little":
        return file.read(name, first * item, out)
    raw = np.empty(min(len(out), _BLOCK_ITEMS) * item, np.uint8)
    for at in range(0, len(out), _BLOCK_ITEMS):
        block = out[at:at + _BLOCK_ITEMS]
        part = raw[:len(block) * item]
        file.read(name, (first + at) * item, part)
        widen(part, dtype, block)


# ---- the small files -----------------------------------------------------------------------------


def is_whole(folder: Path) -> bool:
    """Are the configuration and every file of weights there?"""
    try:
        placed = _weight_map(folder)
    except (OSError, ValueError):
        return False
    names = [SINGLE] if placed is None else sorted(set(placed.values()))
    return all((folder / name).is_file() for name in (CONFIG, *names))


def _read_config(folder: Path) -> ModelConfig:
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a model is the folder it is in" + (
            _advice(folder.parent) if folder.suffix in _PICKLED else ""))
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}")
    try:
        values = json.loads(read_bounded(path, _MAX_JSON))
        if isinstance(values, dict):
            _check_quantization(values.get("quantization_config"))
        return ModelConfig.from_dict(values)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _check_quantization(how: Any) -> None:
    """None, or DeepSeek's FP8: anything else stores other numbers than it says."""
    if how is None:
        return
    method = how.get("quant_method") if isinstance(how, dict) else how
    block = how.get("weight_block_size", [BLOCK, BLOCK]) if isinstance(how, dict) else None
    if method != "fp8" or block != [BLOCK, BLOCK]:
        raise ValueError(f"quantization_config: quant_method {brief(method)} with weight_block_size "
                         f"{brief(block)} is not supported; 'fp8' with [{BLOCK}, {BLOCK}] is")


def _weight_map(folder: Path) -> dict[str, str] | None:
    """tensor -> file, as the index says; None for a folder with one file of weights."""
    if (folder / SINGLE).is_file():
        return None
    path = folder / INDEX
    if not path.is_file():
        pickled = folder.is_dir() and any(p.suffix in _PICKLED for p in folder.iterdir())
        if pickled:
            raise ValueError(f"{folder} has no {SINGLE}" + _advice(folder))
        raise FileNotFoundError(f"{folder} has no {SINGLE} and no {INDEX}")
    try:
        index = parse_json(read_bounded(path, _MAX_JSON))
        placed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(placed, dict) or not placed:
            raise ValueError("it has no weight_map of tensors to files")
        for name in placed.values():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ValueError(f"it names the file {brief(name)}, which is no plain name of a "
                                 "safetensors file beside it")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return placed


def _advice(folder: Path) -> str:
    return (". It has pickled weights (.bin, .pt, .pth), which are never read here: they can run code. "
            "Where you trust them, convert them once: python -c \"from transformers import "
            f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\"")


def _check_shard(file: SafetensorsFile, expected: set[str]) -> None:
    """A shard has the tensors that the index gives it, and no other."""
    for names, words in ((expected - file.tensors.keys(), f"lacks what {INDEX} places there"),
                         (file.tensors.keys() - expected, f"has what {INDEX} does not place there")):
        if names:
            raise ValueError(f"{file.path} {words}: {brief_names(sorted(names))}")
