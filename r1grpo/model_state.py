"""model_state.py - what a model holds, as arrays by name: weights, gradients, Adam's moments.

The names are Hugging Face's, the arrays float32 copies. Knows nothing about files or about what the
weights are used for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _core
from .batch import as_count, as_number
from .brief import brief
from .device import FAST, get_device
from .lora import LoraConfig, check_targets, is_adapter, start_adapters
from .model_config import ModelConfig
from .offload import MappedArray
from .parameters import Parameter
from .toml import suggest
from .weights import from_hf, init_weights, tensor_names, to_hf

DTYPES = ("float32", "bfloat16")
# name and revision of the weights as they are (model_source.py); adapters are saved with them, so that
# they are unknown from the moment that anything but an adapter has changed
NO_BASE: tuple[str, str | None] = ("", None)


class ModelState:
    """The C core's model, its parameters read and written one by one."""

    def __init__(self, config: ModelConfig | dict[str, Any], seed: int | None = 0,
                 device: str = "cpu", dtype: str = "float32", lora: LoraConfig | None = None,
                 frozen: bool = False, offload: str | os.PathLike[str] | None = None):
        if not isinstance(config, ModelConfig):
            config = ModelConfig.from_dict(config)
        if seed is not None:
            seed = as_count(seed, "seed", 0)
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {brief(dtype)}, must be one of {', '.join(DTYPES)}"
                             f"{suggest(str(dtype), DTYPES)}")
        if offload is not None and not frozen:
            raise ValueError("offload is for frozen models: weights that are trained stay in memory")
        self.config = config
        self.device_name = device
        self.dtype = dtype
        self._carried: dict[str, bytes] = {}  # the folder's other files: see load_folder.py
        self._base = NO_BASE
        self.lora = lora
        self.frozen = bool(frozen)
        sizes, *rope = config.core()
        fields = {**sizes, **(lora.sizes() if lora else {}), "frozen": self.frozen,
                  "offload": offload is not None and device != "cpu"}
        self._file: MappedArray | None = None
        if offload is not None and device == "cpu":
            self._file = MappedArray(offload, _core.plan_model(get_device(device), fields,
                                                               dtype)["packed"])
        self._core = _core.Model(get_device(device), fields, *rope, dtype,
                                 self._file.array if self._file else None)
        self._params = self._core.params()
        if lora:
            check_targets(lora, [p[0] for p in self._params])
            self._core.adapter_scale = lora.scale
        if seed is not None:
            self._write_values(init_weights(self._base_params, config, seed))
            self._write_values(start_adapters(self._params, seed))

    @property
    def live_vocab(self) -> int:
        """Ids from here on have no probability and no gradient in the head: they are never sampled,
        and no softmax counts them. vocab_size unless set, to the tokenizer's size as a rule: published
        models pad the rows of their embedding."""
        return self._core.live_vocab

    @live_vocab.setter
    def live_vocab(self, size: int) -> None:
        self._core.live_vocab = as_count(size, "live_vocab", 1)

    @property
    def exact(self) -> bool:
        """What it samples and what it trains have the same bits; not on device "cuda/fast"."""
        return self.device_name != FAST

    @property
    def device(self) -> _core.Device:
        """The core's device of this process (device.py), with the threads it has now."""
        return get_device(self.device_name)

    def _read(self, i: int, what: str) -> np.ndarray:
        _, E, O, I, _ = self._params[i]  # noqa: E741 - the core's letters
        flat = np.empty(E * max(O, 1) * I, np.float32)
        self._core.read(self.device, i, what, flat)
        return flat.reshape((E, O, I) if O else (I,))

    def _write(self, i: int, what: str, array: np.ndarray) -> None:
        self._core.write(self.device, i, what, np.ascontiguousarray(array, np.float32).reshape(-1))

    def _write_values(self, arrays: Iterable[tuple[int, np.ndarray]]) -> None:
        """The values of parameters (index, array), one after another."""
        for i, array in arrays:
            self._write(i, "value", array)
            if not is_adapter(self._params[i][0]):
                self._base = NO_BASE
        if self._file:
            self._file.sync()

    def _trained(self, what: str) -> list[tuple[int, tuple]]:
        """(index, parameter) of all that are trained; ValueError of a frozen model, which has no `what`."""
        if self.frozen:
            raise ValueError(f"this model is frozen: it has no {what}")
        return [(i, p) for i, p in enumerate(self._params) if p[4]]

    @property
    def _base_params(self) -> list[tuple]:
        """Parameters without the adapters', which come last."""
        return [p for p in self._params if not is_adapter(p[0])]

    def __repr__(self) -> str:
        facts = [self.config.model_type, f"{self.num_parameters()['total']:,} parameters", self.dtype,
                 *(["adapters"] if self.lora else []), *(["frozen"] if self.frozen else [])]
        return f"<{type(self).__name__}: {', '.join(facts)}>"

    def num_parameters(self) -> dict[str, int]:
        """{"total", "active", "mtp"}: parameters of the model, those one token uses (its share of the
        routed experts), and those of the MTP module, which the first two leave out."""
        total = active = mtp = 0
        c = self.config
        for name, E, O, I, _ in self._params:  # noqa: E741
            n = E * max(O, 1) * I
            if name.startswith(f"model.layers.{c.num_hidden_layers}."):
                mtp += n
                continue
            total += n
            active += n * c.num_experts_per_tok // E if ".experts.*" in name else n
        return {"total": total, "active": active, "mtp": mtp}

    # ---- weights and gradients --------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Hugging Face tensor names -> float32 arrays (copies); one tensor an expert. Of a frozen
        bfloat16 model the rounded values."""
        return to_hf((p[0], self._read(i, "value")) for i, p in enumerate(self._params))

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse. Missing, surplus and misshapen tensors raise ValueError naming them all, before
        anything is written."""
        if not isinstance(state, Mapping):
            raise TypeError(f"a state dict maps names to arrays, not {type(state).__name__}")
        arrays = from_hf(state, self._params, self.config)
        base = (self._base, self.base_digest()) if self.lora else None
        self._write_values(enumerate(arrays))
        if base and base[1] == self.base_digest():
            self._base = base[0]

    def parameters(self) -> dict[str, Parameter]:
        """The tensors of `state_dict` where they lie, for other libraries to look at: see `Parameter`."""
        return {name: Parameter(self, name, i, e) for i, (core, E, *_) in enumerate(self._params)
                for e, name in enumerate(tensor_names(core, E))}

    # what training changes: the adapters of a model that has them, else everything

    def trained_state(self) -> dict[str, np.ndarray]:
        """The part of `state_dict` that training changes: the adapters where there are any."""
        return to_hf((p[0], self._read(i, "value")) for i, p in self._moving())

    def load_trained_state(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse, checked as in `load_state_dict`."""
        moving = self._moving()
        arrays = from_hf(state, [p for _, p in moving], self.config)
        self._write_values(zip((i for i, _ in moving), arrays, strict=True))

    def base_digest(self) -> str:
        """Hash of the weights that training leaves alone: what the state of adapters belongs to."""
        total = hashlib.blake2b(digest_size=16)
        for i in range(len(self._base_params) if self.lora else 0):
            total.update(self._read(i, "value"))
        return total.hexdigest()

    def _moving(self) -> list[tuple[int, tuple]]:
        return [(i, p) for i, p in enumerate(self._params) if self.lora is None or is_adapter(p[0])]

    def copy_weights_from(self, other: ModelState, alpha: float = 1.0) -> None:
        """Takes the weights of a model of the same shape; with alpha below 1, in float32,
        alpha * theirs + (1 - alpha) * its own."""
        theirs = np.float32(as_number(alpha, "alpha", 0.0, 1.0))
        if [p[:4] for p in self._params] != [p[:4] for p in other._params]:
            raise ValueError("copy_weights_from: the models have different parameters")
        if alpha != 1.0 and self.frozen and self.dtype != "float32":
            raise ValueError(f"copy_weights_from: alpha is {alpha}, but this model is frozen in "
                             f"{self.dtype}, which rounds small moves away; one that is not keeps float32")

        def values() -> Iterator[tuple[int, np.ndarray]]:
            for i in range(len(self._params)):
                value = other._read(i, "value")
                if alpha != 1.0:
                    value = theirs * value + np.float32(1.0 - alpha) * self._read(i, "value")
                yield i, value
        self._write_values(values())
        if alpha == 1.0:
            self._base = other._base

    def grad_dict(self) -> dict[str, np.ndarray]:
        """Gradients accumulated since `zero_grad`, named and shaped as in `state_dict`."""
        return to_hf((p[0], self._read(i, "grad")) for i, p in self._trained("gradients"))

    def zero_grad(self) -> None:
        """Clears the gradients (and the counts of tokens per expert)."""
        self._core.zero_grad(self.device)

    # ---- the optimiser's memory --------------------------------------------------------------

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Adam's moments "m.NAME", "v.NAME" and "step" (uint64): all that `update` remembers."""
        state = {"step": np.array([self._core.step], np.uint64)}
        for i, (name, *_) in self._trained("optimiser moments"):
            state |= {f"m.{name}": self._read(i, "m"), f"v.{name}": self._read(i, "v")}
        return state

    def check_state(self, weights: Mapping[str, np.ndarray],
                    optimizer: Mapping[str, np.ndarray] | None = None) -> None:
        """ValueError where `load_trained_state` or `load_optimizer_state` would refuse; nothing is
        written."""
        from_hf(weights, [p for _, p in self._moving()], self.config)
        if optimizer is not None:
            self._check_optimizer_state(optimizer)

    def _check_optimizer_state(self, state: Mapping[str, np.ndarray]) -> None:
        sizes = {f"{k}.{name}": E * max(O, 1) * I for k in "mv"
                 for _, (name, E, O, I, _) in self._trained("optimiser moments")}  # noqa: E741
        sizes["step"] = 1
        odd = sorted(sizes.keys() ^ state.keys()) or \
            sorted(name for name, size in sizes.items() if state[name].size != size)
        if odd:
            raise ValueError(f"optimizer state differs in {odd[:5]}")

    def load_optimizer_state(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse of `optimizer_state`; what does not fit raises ValueError before anything is
        written."""
        self._check_optimizer_state(state)
        for i, (name, *_) in self._trained("optimiser moments"):
            self._write(i, "m", state[f"m.{name}"])
            self._write(i, "v", state[f"v.{name}"])
        self._core.step = int(state["step"][0])

    def offload_optimizer(self) -> None:
        """A GPU's: Adam's moments will lie in the host's memory, and come to the GPU part by part while an
        update runs; its bits stay. To be called before the first update; on the CPU they are there anyway."""
        if self.device_name == "cpu":
            raise ValueError("offload_optimizer keeps a GPU's moments in the host's memory: on the CPU they are")
        self._core.offload = True

    def reset_optimizer(self) -> None:
        """Moments to zero, step to 0."""
        for i, (_, E, O, I, _) in self._trained("optimiser moments"):  # noqa: E741
            zeros = np.zeros(E * max(O, 1) * I, np.float32)
            self._write(i, "m", zeros)
            self._write(i, "v", zeros)
        self._core.step = 0
