"""model_files.py - where a model comes from and goes to: folders, adapters, other models.

Every way to make a model that is not drawn at random, and every way to write one. A folder is written
whole or not at all; a file that does not fit is refused before a weight is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from . import _core
from .batch import as_count
from .hub import read_carried
from .load_folder import ModelFolder
from .lora import (Adapter, LoraConfig, adapter_files, check_targets, is_adapter, merged, read_adapter,
                   read_tensors, start_adapters)
from .model_config import ModelConfig
from .model_source import find_model
from .model_state import ModelState
from .safe_files import write_folder
from .save_folder import model_files, stale_files
from .weights import to_hf


_NEW_ADAPTERS = "a frozen model is not trained, and new adapters would do nothing: leave frozen out"


class ModelFiles(ModelState):
    """A model that can be loaded, saved, copied, and given adapters or another head."""

    # ---- folders -----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, device: str = "cpu", dtype: str = "float32",
                        revision: str | None = None, trust_remote_code: bool = False,
                        lora: LoraConfig | None = None, seed: int = 0, frozen: bool = False) -> Self:
        """Loads a Hugging Face folder of safetensors: what `save_pretrained` wrote or others published.

        folder: a path, or an id of the hub ("org/name", with `revision`; needs huggingface_hub). Weights
        in float32, float16, bfloat16 or DeepSeek's FP8; shards; experts one by one or fused. A file that
        does not fit raises ValueError or FileNotFoundError before a weight is read. lora, seed: new
        adapters beside the weights (r1grpo/lora.py), which are then frozen. A folder of adapters, of
        save_adapter or PEFT, is the model that it names with them. frozen: see `Model`; at no time does
        it take more than the frozen weights and one tensor in float32."""
        if trust_remote_code:
            raise ValueError("trust_remote_code=True is refused: code of a model folder is never run; its "
                             "architecture must be one of those that this engine knows")
        found, seed = find_model(folder, revision), as_count(seed, "seed", 0)
        if lora is not None:
            _require_options(lora)
            if frozen:
                raise ValueError(_NEW_ADAPTERS)
            if found.adapter:
                raise ValueError(f"{folder} holds adapters already; merge() makes them part of the weights")
        with ModelFolder(found.weights) as source:
            tensors = None
            if found.adapter:
                lora = found.adapter.lora
                tensors = _adapter_tensors(found.folder, lora, source.config)
            model = cls(source.config, seed=None, device=device, dtype=dtype, lora=lora,
                        frozen=frozen)
            model._write_values(enumerate(source.arrays()))
        model._write_adapters(tensors, seed)
        model._carried = {**source.files, **read_carried(found.folder)}
        model._base = found.base, found.revision
        return model

    def save_pretrained(self, folder: str | os.PathLike, max_shard_size: int | str = "5GB",
                        dtype: str | None = None) -> None:
        """Writes a Hugging Face folder, whole or not at all: what transformers, vLLM and llama.cpp's
        converter load. dtype: "float32", "bfloat16" or "float16"; None: the model's own. The tokenizer's
        files and generation_config.json are those of the folder that the model was loaded from. Adapters
        are merged into the weights; save_adapter keeps them apart."""
        folder = Path(folder)
        write_folder(folder, model_files(self.config, self._base_params, self._read_merged,
                                         dtype or self.dtype, max_shard_size, self._carried),
                     stale_files(folder))

    # ---- copies ------------------------------------------------------------------------------

    def clone(self) -> Self:
        """An independent copy of the weights, without gradients or optimiser state."""
        other = self._empty(self.lora, self.frozen)
        other.copy_weights_from(self)
        return other

    def freeze(self, offload: str | os.PathLike[str] | None = None) -> Self:
        """A frozen copy (see `Model`): the same log-probs and samples bit for bit. offload: a folder;
        its matrices then lie in a file there without a name, which goes with the model, and memory
        holds of them what it has room for. Of a model on a GPU the layers' matrices then lie in the
        host's memory, and each layer comes to the GPU ahead of its turn: no folder is touched."""
        other = self._empty(self.lora, True, offload)
        other.copy_weights_from(self)
        return other

    def _empty(self, lora: LoraConfig | None, frozen: bool,
               offload: str | os.PathLike[str] | None = None) -> Self:
        """A model like this one but for what the arguments say, its weights still to be written."""
        other = type(self)(self.config, None, self.device_name, self.dtype, lora, frozen, offload)
        other.live_vocab, other._carried = self.live_vocab, self._carried
        return other

    def add_score_head(self, seed: int = 0) -> Self:
        """A copy of this model with a scalar head (zeros would rank nothing: it is drawn from seed)."""
        if self.lora:
            raise ValueError("this model has adapters; merge() makes them part of its weights first")
        config = ModelConfig.from_dict({**self.config.to_dict(), "score_head": True})
        other = type(self)(config, seed=seed, device=self.device_name, dtype=self.dtype,
                           frozen=self.frozen)
        own = other.state_dict()
        other.load_state_dict({**own, **self.state_dict()})
        other._carried = self._carried
        return other

    # ---- adapters ----------------------------------------------------------------------------

    def add_adapter(self, lora: LoraConfig, seed: int = 0) -> Self:
        """A copy of this model with new low-rank adapters, all else frozen; it samples the same bits
        until its first update. `from_pretrained(lora=...)` needs no second model while it is made."""
        _require_options(lora)
        if self.frozen:
            raise ValueError(_NEW_ADAPTERS)
        return self._with_adapters(lora, None, as_count(seed, "seed", 0))

    def load_adapter(self, folder: str | os.PathLike) -> Self:
        """A copy of this model with the adapters of a folder that save_adapter or PEFT wrote."""
        lora = read_adapter(Path(folder)).lora
        return self._with_adapters(lora, _adapter_tensors(Path(folder), lora, self.config))

    def _with_adapters(self, lora: LoraConfig, tensors: Mapping[str, np.ndarray] | None,
                       seed: int = 0) -> Self:
        if self.lora:
            raise ValueError("this model has adapters already; merge() makes them part of its weights")
        other = self._empty(lora, self.frozen)
        other._write_values((i, self._read(i, "value")) for i in range(len(self._params)))
        other._base = self._base
        other._write_adapters(tensors, seed)
        return other

    def _write_adapters(self, tensors: Mapping[str, np.ndarray] | None, seed: int) -> None:
        """The adapters of a file; None: their start, drawn from seed."""
        if tensors is None:
            self._write_values(start_adapters(self._params, seed))
            return
        self._write_values((i, np.stack([tensors[name.replace("*", str(e))] for e in range(E)]))
                           for i, (name, E, *_) in enumerate(self._params) if is_adapter(name))

    def save_adapter(self, folder: str | os.PathLike, base: str | None = None) -> None:
        """Writes the adapters alone, as PEFT does, and the tokenizer's files. base: name or path of the
        model that they belong to; None: that of the folder it was loaded from, and no name where the
        weights have been trained or merged since: whoever loads the adapters then loads the base first."""
        if not self.lora:
            raise ValueError("this model has no adapter; save_pretrained writes its weights")
        tensors = to_hf((p[0], self._read(i, "value")) for i, p in enumerate(self._params)
                        if is_adapter(p[0]))
        named = self._base if base is None else (base, None)
        write_folder(Path(folder), {**self._carried,
                                    **adapter_files(Adapter(self.lora, *named), tensors)})

    def merge(self) -> Self:
        """A model without adapters whose weights are W + s B A (within rounding the same function)."""
        other = self._empty(None, self.frozen)
        other._write_values((i, self._read_merged(i)) for i in range(len(other._params)))
        return other

    def _read_merged(self, i: int) -> np.ndarray:
        value = self._read(i, "value")
        if self.lora is None:
            return value
        index = {p[0]: j for j, p in enumerate(self._params)}
        stem = self._params[i][0].removesuffix(".weight")
        down, up = index.get(f"{stem}.lora_A.weight"), index.get(f"{stem}.lora_B.weight")
        if down is None or up is None:
            return value
        return merged(value, self._read(down, "value"), self._read(up, "value"), self.lora.scale)


def _require_options(lora: Any) -> None:
    """TypeError for an adapter's options of another library."""
    if not isinstance(lora, LoraConfig):
        raise TypeError(f"the adapter's options are a {type(lora).__module__}.{type(lora).__name__}, "
                        f"expected an r1grpo.LoraConfig")


def _adapter_tensors(folder: Path, lora: LoraConfig, config: ModelConfig) -> dict[str, np.ndarray]:
    """Adapters of a file by name, checked before anything of the sizes that it claims is allocated."""
    params = _core.Model.layout({**config.core()[0], **lora.sizes()})
    check_targets(lora, [p[0] for p in params])
    return read_tensors(folder, {name.replace("*", str(e)): (O, I)
                                 for name, E, O, I, _ in params  # noqa: E741 - the core's letters
                                 if is_adapter(name) for e in range(E)})
