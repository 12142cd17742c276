"""save_folder.py - a model -> the files of a Hugging Face folder, for checkpoint.write_folder.

    model.safetensors           or, over a size, model-00001-of-00003.safetensors ... and the index
    mtp.safetensors             the MTP module, unless transformers skips it in the main files; there is
                                an index then, which leaves it out
    generation_config.json      as it was loaded, else the ids of begin and end
    tokenizer.json ...          as they were loaded
    config.json                 last, so that it marks a whole folder

DeepSeek's own files have the MTP module as layer `num_hidden_layers`, which is 61; transformers skips
that name and no other (DeepseekV3PreTrainedModel._keys_to_ignore_on_load_unexpected), and would warn
of any other size's. load_folder.py reads both. Experts are one tensor each: every reader knows that
form. Tensors are narrowed block by block as they are written. Knows nothing of `Model`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .brief import brief
from .load_folder import CONFIG, GENERATION, INDEX, MTP, SINGLE
from .lora import ADAPTER_FILES
from .model_config import ModelConfig
from .number_formats import ITEM_BYTES, NAMES, narrow
from .safe_files import Stream
from .safetensors_file import header_bytes

__all__ = ["model_files", "stale_files"]

# model_type -> prefix of its classes in transformers and vLLM
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
            "qwen3_moe": "Qwen3Moe", "deepseek_v3": "DeepseekV3"}
_SKIPPED_LAYER = 61
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_OURS = re.compile(r"(model(-\d{5}-of-\d{5})?|mtp)\.safetensors|model\.safetensors\.index\.json")
_BLOCK_ITEMS = 1 << 16  # numbers that are narrowed at a time: 256 KiB, a few times over

Read = Callable[[int], np.ndarray]  # index of a parameter -> its array, float32 (E, O, I) or (I)


def model_files(config: ModelConfig, params: Sequence[tuple], read: Read, dtype: str,
                max_shard_size: int | str, carried: Mapping[str, bytes]
                ) -> dict[str, bytes | Stream]:
    """name -> content. dtype: 'float32', 'float16' or 'bfloat16'; sizes in bytes or as '5GB'."""
    if dtype not in NAMES:
        raise ValueError(f"dtype {brief(dtype)} is none of {', '.join(NAMES)}")
    most = _byte_count(max_shard_size)
    main, apart = _tensors(config, params, NAMES[dtype])
    shards = _shards(main, most)
    count = len(shards)
    names = [SINGLE] if count == 1 else \
        [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files: dict[str, bytes | Stream] = {name: _weights(shard, read)
                                        for name, shard in zip(names, shards, strict=True)}
    if count > 1 or apart:  # vLLM reads every safetensors file of a folder, or those of its index
        placed = {one: name for name, shard in zip(names, shards, strict=True) for one in shard}
        total = sum(tensor.nbytes for tensor in main.values())
        files[INDEX] = _json({"metadata": {"total_size": total}, "weight_map": placed})
    if apart:
        files[MTP] = _weights(apart, read)
    files[GENERATION] = _json({key: value for key in ("bos_token_id", "eos_token_id")
                               if (value := config.to_dict().get(key)) is not None})
    return {**files, **carried, CONFIG: _json(_published(config, dtype))}


def stale_files(folder: Path) -> list[str]:
    """Files of an earlier save that would be read along with, or instead of, those of a new one: a
    folder that names a base is read as adapters, here and in transformers."""
    return [p.name for p in folder.iterdir() if _OURS.fullmatch(p.name) or p.name in ADAPTER_FILES
            ] if folder.is_dir() else []


# ---- weights -------------------------------------------------------------------------------------


class _Tensor:
    """One tensor of a file: expert e of parameter `index`, or all of it."""

    def __init__(self, index: int, e: int, shape: tuple[int, ...], dtype: str):
        self.index, self.e, self.shape, self.dtype = index, e, shape, dtype
        self.nbytes = math.prod(shape) * ITEM_BYTES[dtype]


def _tensors(config: ModelConfig, params: Sequence[tuple], dtype: str
             ) -> tuple[dict[str, _Tensor], dict[str, _Tensor]]:
    """The tensors of the main files and those of mtp.safetensors."""
    main: dict[str, _Tensor] = {}
    apart: dict[str, _Tensor] = {}
    skipped = config.model_type == "deepseek_v3" and config.num_hidden_layers == _SKIPPED_LAYER
    for i, (name, E, O, I, _) in enumerate(params):  # noqa: E741 - the core's letters
        mtp = name.startswith(f"model.layers.{config.num_hidden_layers}.")
        into = apart if mtp and not skipped else main
        # transformers and DeepSeek keep the routers' selection biases in float32
        kind = "F32" if name.endswith("e_score_correction_bias") else dtype
        for e in range(E):
            into[name.replace("*", str(e))] = _Tensor(i, e, (O, I) if O else (I,), kind)
    return main, apart


def _shards(tensors: Mapping[str, _Tensor], most: int) -> list[dict[str, _Tensor]]:
    """In the model's order; a new one where a tensor would not fit."""
    shards: list[dict[str, _Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _weights(tensors: Mapping[str, _Tensor], read: Read) -> Stream:
    """A safetensors file; larger numbers first, so that all are aligned."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -ITEM_BYTES[item[1].dtype]))
    head = header_bytes({name: (one.dtype, one.shape) for name, one in ordered.items()})

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        held, array = -1, None
        for name, one in ordered.items():
            if one.index != held:  # experts of a parameter follow each other
                array = flat = None  # not two at a time
                held, array = one.index, read(one.index)
            flat = (array[one.e] if array.ndim == 3 else array).reshape(-1)
            for at in range(0, flat.size, _BLOCK_ITEMS):
                try:
                    block = narrow(flat[at:at + _BLOCK_ITEMS], one.dtype)
                except OverflowError as error:
                    raise ValueError(f"{name}: {error}; nothing was saved") from None
                yield memoryview(block).cast("B")

    return Stream(len(head) + sum(one.nbytes for one in ordered.values()), pieces)


def _byte_count(size: int | str) -> int:
    """'5GB' -> 5,000,000,000; '1.5 GiB' -> 1,610,612,736."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", str(size).upper())
    if not match or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise ValueError(f"max_shard_size is {brief(size)}; a size is a number of bytes, or '5GB'")
    return int(float(match[1]) * _UNITS[match[2]])


# ---- configuration -------------------------------------------------------------------------------


def _published(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json: all keys, unknown ones too, but for those that would be untrue of these files: they
    are not quantised, and there is no code beside them."""
    values = {key: value for key, value in config.to_dict().items()
              if key not in ("quantization_config", "auto_map")}
    if prefix := _CLASSES.get(config.model_type):
        values["architectures"] = [
            prefix + ("ForSequenceClassification" if config.score_head else "ForCausalLM")]
    if "torch_dtype" in values:  # as older transformers call it
        values["torch_dtype"] = dtype
    return {**values, "dtype": dtype}


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode() + b"\n"
