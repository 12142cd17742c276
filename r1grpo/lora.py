"""lora.py - low-rank adapters: the options, the start, the files. csrc/model/linear.c has the equation.

    y = x W^T + b + s (x A^T) B^T        s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1; rsLoRA, Kalajdzievski 2023. W and everything else
is frozen; A (r, I) begins uniform in +-1 / sqrt(I), B (O, r) at 0, so a new adapter changes no bit.
Names, defaults and files are PEFT's, so that PEFT loads what is saved here and the other way round:

    adapter_config.json            the options
    adapter_model.safetensors      base_model.model.NAME.lora_A.weight (r, I), ...lora_B.weight (O, r)

Experts have an adapter each. Knows nothing about the core's memory or training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import read_bounded
from .safetensors_file import SafetensorsFile, parse_json

__all__ = ["LoraConfig", "TARGETS"]

# bit i of the core's lora_targets stands for the i-th (csrc/model/layout.c, adapters_add)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
           "kv_b_proj", "gate_proj", "up_proj", "down_proj")
ALL = "all-linear"
_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_MAX_CONFIG = 1 << 20  # bytes


@dataclass(frozen=True)
class LoraConfig:
    """target_modules: names of TARGETS, or "all-linear"; those that a model lacks are an error, of
    "all-linear" those that it has. The last five take PEFT's defaults alone."""

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ALL
    use_rslora: bool = False
    lora_dropout: float = 0.0
    bias: str = "none"
    task_type: str | None = "CAUSAL_LM"
    init_lora_weights: bool = True
    modules_to_save: None = None

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or not 1 <= self.r < 1 << 20:
            raise ValueError(f"LoraConfig: r is {self.r!r}, must be an integer of at least 1")
        if not isinstance(self.lora_alpha, (int, float)) or not 0 < self.lora_alpha < 1e30:
            raise ValueError(f"LoraConfig: lora_alpha is {self.lora_alpha!r}, must be above 0")
        for name, only in (("lora_dropout", 0.0), ("bias", "none"), ("task_type", "CAUSAL_LM"),
                           ("init_lora_weights", True), ("modules_to_save", None)):
            if getattr(self, name) not in (only, None):
                raise ValueError(f"LoraConfig: {name} is {getattr(self, name)!r}; "
                                 f"only {only!r} is there")
        if self.target_modules == ALL:
            return
        names = [self.target_modules] if isinstance(self.target_modules, str) else \
            list(self.target_modules)
        unknown = [name for name in names if name not in TARGETS]
        if unknown or not names:
            raise ValueError(f"LoraConfig: target_modules has {', '.join(map(repr, unknown)) or 'none'};"
                             f" known are {ALL!r} and {', '.join(TARGETS)}")
        object.__setattr__(self, "target_modules", tuple(names))

    @property
    def scale(self) -> float:
        """s of the equation."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def sizes(self) -> dict[str, int]:
        """The core's fields."""
        names = TARGETS if self.target_modules == ALL else self.target_modules
        return {"lora": self.r, "lora_targets": sum(1 << TARGETS.index(name) for name in set(names))}


def is_adapter(name: str) -> bool:
    """Whether a parameter of the core belongs to an adapter."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def check_targets(lora: LoraConfig, names: Sequence[str]) -> None:
    """ValueError naming the targets that no parameter of `names` has."""
    have = {name.split(".")[-3] for name in names if is_adapter(name)}
    wanted = have if lora.target_modules == ALL else set(lora.target_modules)
    if missing := sorted(wanted - have):
        raise ValueError(f"LoraConfig: target_modules {', '.join(missing)}: this model has none")


def start_adapters(params: Sequence[tuple], seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index, array) of every adapter's start; its numbers depend on its place and the seed."""
    for i, (name, E, O, I, _) in enumerate(params):  # noqa: E741 - the core's letters
        if name.endswith(".lora_A.weight"):
            draw = np.random.Generator(np.random.Philox(key=[seed, i]))
            yield i, draw.uniform(-1.0, 1.0, (E, O, I)).astype(np.float32) / np.float32(np.sqrt(I))
        elif name.endswith(".lora_B.weight"):
            yield i, np.zeros((E, O, I), np.float32)


def merged(weight: np.ndarray, down: np.ndarray, up: np.ndarray, scale: float) -> np.ndarray:
    """W + s B A, float32 (E, O, I); within rounding what the adapter computes beside W."""
    return weight + np.float32(scale) * np.matmul(up, down)


# ---- files --------------------------------------------------------------------------------------


def adapter_files(lora: LoraConfig, tensors: Mapping[str, np.ndarray], base: str
                  ) -> dict[str, bytes]:
    """name -> content. tensors: adapter tensors by name, one an expert; base: what it belongs to."""
    from safetensors.numpy import save

    names = sorted({name.split(".")[-3] for name in tensors})
    config = {**asdict(lora), "target_modules": names, "peft_type": "LORA",
              "base_model_name_or_path": base, "inference_mode": True}
    return {_CONFIG: json.dumps(config, indent=2).encode() + b"\n",
            _WEIGHTS: save({_PREFIX + name: np.ascontiguousarray(value)
                            for name, value in tensors.items()}, metadata={"format": "pt"})}


def read_config(folder: Path) -> LoraConfig:
    """The options of a saved adapter; ValueError for what LoRA here cannot be."""
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {_CONFIG}: it is no adapter")
    try:
        found = parse_json(read_bounded(path, _MAX_CONFIG))
        if not isinstance(found, dict) or found.get("peft_type", "LORA") != "LORA":
            raise ValueError("is no LoRA adapter's")
        odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
                               "layers_to_transform", "fan_in_fan_out") if found.get(key)]
        if odd:
            raise ValueError(f"sets {', '.join(odd)}, which is not supported")
        known = {field.name for field in fields(LoraConfig)}
        return LoraConfig(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a saved adapter, exactly those of `expected` (name -> shape)."""
    path = folder / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {_WEIGHTS}")
    with SafetensorsFile(path) as file:
        found = {name.removeprefix(_PREFIX): tensor for name, tensor in file.tensors.items()}
        faults = [f"missing {name}" for name in expected.keys() - found.keys()]
        faults += [f"surplus {name}" for name in found.keys() - expected.keys()]
        faults += [f"{name} is {found[name].dtype} {found[name].shape}, expected F32 {shape}"
                   for name, shape in expected.items() if name in found
                   and (found[name].dtype, found[name].shape) != ("F32", shape)]
        if faults:
            raise ValueError(f"{path} does not fit the model: {'; '.join(sorted(faults)[:20])}")
        arrays = {name: np.empty(shape, "<f4") for name, shape in expected.items()}
        for name, array in arrays.items():
            stored = _PREFIX + name if _PREFIX + name in file.tensors else name
            file.read(stored, 0, array.reshape(-1))
    return arrays
