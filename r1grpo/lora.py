"""lora.py - low-rank adapters: the options, the start, the files. csrc/model/linear.c has the equation.

    y = x W^T + b + s (x A^T) B^T        s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1; rsLoRA, Kalajdzievski 2023. W and everything else
is frozen; A (r, I) begins uniform in +-1 / sqrt(I), B (O, r) at 0, so a new adapter changes no bit.
Names, defaults and files are PEFT's, so that PEFT loads what is saved here and the other way round:

    adapter_config.json            the options
    adapter_model.safetensors      base_model.model.NAME.lora_A.weight (r, I), ...lora_B.weight (O, r)

Experts have an adapter each. PEFT fuses them as transformers 5 does, and of a model that has dense
FFNs or shared experts besides (DeepSeek-V3) its 0.21 leaves those of such an adapter out: there, adapt
attention alone, or give the merged model. Knows nothing about the core's memory or training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .number_formats import NAMES, widen
from .safe_files import Stream, read_bounded
from .safetensors_file import SafetensorsFile, pack_arrays, parse_json

__all__ = ["ADAPTER_FILES", "Adapter", "LoraConfig", "TARGETS", "is_adapter_folder"]

# bit i of the core's lora_targets stands for the i-th (csrc/model/layout.c, adapters_add)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
           "kv_b_proj", "gate_proj", "up_proj", "down_proj")
ALL = "all-linear"
_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
ADAPTER_FILES = (_CONFIG, _WEIGHTS)
_MAX_CONFIG = 1 << 20  # bytes
_MAX_ROWS = 64  # of a matrix that is merged at a time: in the cache for all ranks
# options of PEFT that would make another function of the same tensors
_OTHER = ("alora_invocation_tokens", "alpha_pattern", "arrow_config", "fan_in_fan_out", "kasa_config",
          "layer_replication", "layers_to_transform", "lora_bias", "modules_to_save",
          "monteclora_config", "rank_pattern", "target_parameters", "trainable_token_indices",
          "use_bdlora", "use_dora", "use_qalora", "velora_config")
_OTHER_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # starts that change W as well


@dataclass(frozen=True)
class LoraConfig:
    """target_modules: names of TARGETS, or "all-linear"; those that a model lacks are an error, of
    "all-linear" those that it has. The last five take PEFT's defaults alone."""

    r: int = 8
    lora_alpha: float = 8.0
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
    have = {_target(name) for name in names if is_adapter(name)}
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
    """W + s B A, float32 (E, O, I); within rounding what the adapter computes beside W. An element of
    B A is a sum over the rank in index order, a product and an addition at a time: its bits are those of
    every machine, which a BLAS with its threads does not promise."""
    out = np.empty_like(weight)
    for target, matrix, a, b in zip(out, weight, down, up, strict=True):
        for first in range(0, len(matrix), _MAX_ROWS):
            rows = slice(first, first + _MAX_ROWS)
            product = b[rows, :1] * a[0]
            for k in range(1, len(a)):
                product += b[rows, k:k + 1] * a[k]
            target[rows] = matrix[rows] + np.float32(scale) * product
    return out


# ---- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """What a folder of adapters says: its options, and the model that it belongs to, a path or an id
    of the hub ("" where it names none)."""

    lora: LoraConfig
    base: str
    revision: str | None


def is_adapter_folder(folder: Path) -> bool:
    """Whether adapters lie there: they are meant then, as in transformers, whatever lies beside them."""
    return (folder / _CONFIG).is_file()


def adapter_files(adapter: Adapter, tensors: Mapping[str, np.ndarray]) -> dict[str, bytes | Stream]:
    """name -> content. tensors: adapter tensors by name, one an expert."""
    names = sorted({_target(name) for name in tensors})
    alpha = adapter.lora.lora_alpha
    config = {**asdict(adapter.lora), "target_modules": names, "peft_type": "LORA",
              "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # PEFT's is an int
              "base_model_name_or_path": adapter.base or None, "revision": adapter.revision,
              "inference_mode": True}
    return {_WEIGHTS: pack_arrays({_PREFIX + name: value for name, value in tensors.items()}),
            _CONFIG: json.dumps(config, indent=2).encode() + b"\n"}


def read_adapter(folder: Path) -> Adapter:
    """What a saved adapter is; ValueError for what LoRA here cannot be. Its targets are those that it
    has tensors of, since its config may name them by a pattern; what only training asks for (dropout,
    how the tensors were drawn) is passed over."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is no adapter")
    path = folder / _CONFIG
    with SafetensorsFile(folder / _WEIGHTS) as file:
        targets = sorted({_target(name) for name in file.tensors})
    try:
        found = parse_json(read_bounded(path, _MAX_CONFIG))
        if not isinstance(found, dict) or found.get("peft_type", "LORA") != "LORA":
            raise ValueError("is no LoRA adapter's")
        if odd := [key for key in _OTHER if found.get(key)]:
            raise ValueError(f"sets {', '.join(odd)}, which is not supported")
        start = found.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(_OTHER_BASE):
            raise ValueError(f"init_lora_weights {start!r} has changed the base; convert the adapter "
                             f"to one of the plain base, as PEFT's documentation shows")
        known = ("r", "lora_alpha", "use_rslora", "bias", "task_type")
        lora = LoraConfig(**{key: found[key] for key in known if key in found}, target_modules=targets)
        base, revision = found.get("base_model_name_or_path"), found.get("revision")
        if not all(one is None or isinstance(one, str) for one in (base, revision)):
            raise ValueError("base_model_name_or_path or revision is no text")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return Adapter(lora, base or "", revision)


def read_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a saved adapter in float32, exactly those of `expected` (name -> shape)."""
    path = folder / _WEIGHTS
    with SafetensorsFile(path) as file:
        found = {name.removeprefix(_PREFIX): (name, tensor) for name, tensor in file.tensors.items()}
        faults = [f"missing {name}" for name in expected.keys() - found.keys()]
        faults += [f"surplus {name}" for name in found.keys() - expected.keys()]
        for name, shape in expected.items():
            _, tensor = found.get(name, ("", None))
            if tensor and (tensor.dtype not in NAMES.values() or tensor.shape != shape):
                faults.append(f"{name} is {tensor.dtype} {tensor.shape}, expected F32 {shape}")
        if faults:
            raise ValueError(f"{path} does not fit the model: {'; '.join(sorted(faults)[:20])}")
        arrays = {}
        for name, shape in expected.items():
            stored, tensor = found[name]
            raw, arrays[name] = np.empty(tensor.size, np.uint8), np.empty(shape, np.float32)
            file.read(stored, 0, raw)
            widen(raw, tensor.dtype, arrays[name].reshape(-1))
    return arrays


def _target(name: str) -> str:
    """...self_attn.q_proj.lora_A.weight -> q_proj."""
    return name.rpartition(".lora_")[0].rpartition(".")[2] or name[:200]
