"""The core's parameters <-> Hugging Face's tensors, and the random start.

A core parameter is (name, E, O, I, trained); '*' in a name stands for the expert's number: its array
(E, O, I) is E tensors. Vectors have O = 0. Two forms of experts are read:

    ...experts.3.gate_proj.weight (O, I)    one tensor an expert, as published files have them
    ...experts.gate_up_proj (E, 2 O, I)     fused, as newer transformers can write them: gate's rows,
                                            then up's; experts.down_proj is (E, O, I)

An F8_E4M3 matrix comes with the factors NAME_scale_inv (number_formats.py). Knows nothing of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from .foreign import Foreign, as_array
from .model_config import ModelConfig
from .number_formats import scale_shape

__all__ = ["Source", "find_sources", "from_hf", "init_weights", "tensor_names", "to_hf"]

_FLOATS = frozenset("float64 float32 float16 F64 F32 F16 BF16 F8_E4M3".split())
_MOST_TENSORS = 400_000  # DeepSeek-V3 has 46,000; the names of a config that lies take memory
_LISTED = 50  # lines of each kind of fault in a message; one may stand for many tensors
_FUSED = re.compile(r"(.*\.experts)\.\*\.(gate|up|down)_proj\.weight")


class Source(NamedTuple):
    """Where a parameter comes from: E tensors, one an expert (or the one there is), or, where `first`
    is a number, rows [first, first + O) of every expert in one fused tensor."""

    names: list[str]
    first: int | None = None


def tensor_names(name: str, E: int) -> list[str]:
    """The tensors of a core parameter: one, or one an expert."""
    return [name.replace("*", str(e)) for e in range(E)] if "*" in name else [name]


def to_hf(arrays: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Core arrays -> tensors by Hugging Face name."""
    state = {}
    for name, array in arrays:
        if "*" in name:
            state |= dict(zip(tensor_names(name, len(array)), array, strict=True))
        else:
            state[name] = array[0] if array.ndim == 3 else array
    return state


def from_hf(state: Mapping[str, np.ndarray], params: Sequence, config: ModelConfig
            ) -> Iterator[np.ndarray]:
    """Tensors by name -> core arrays, one after another in the order of params. All faults are in one
    ValueError, raised before the first array."""
    have = {name: as_array(value) for name, value in state.items()}
    found = {n: (a.dtype if isinstance(a, Foreign) else str(a.dtype.newbyteorder("=")), a.shape)
             for n, a in have.items()}
    sources = find_sources(params, found, config)
    return (_stack(source, param, have) for source, param in zip(sources, params, strict=True))


def _stack(source: Source, param: tuple, have: Mapping[str, np.ndarray | Foreign]) -> np.ndarray:
    _, E, O, I, _ = param  # noqa: E741 - the core's letters
    if source.first is not None:
        return np.asarray(have[source.names[0]])[:, source.first:source.first + O].astype(np.float32)
    out = np.empty((E, O, I) if O else (1, I), np.float32)
    for matrix, name in zip(out, source.names, strict=True):
        matrix[...] = np.asarray(have[name])
    return out


def find_sources(params: Sequence, found: Mapping[str, tuple[str, tuple[int, ...]]],
                 config: ModelConfig) -> list[Source]:
    """Where each parameter comes from; found: (dtype, shape) of every tensor there is. Missing,
    surplus and misshapen tensors raise one ValueError that names them all."""
    if (wanted := sum(param[1] for param in params)) > _MOST_TENSORS:
        raise ValueError(f"the config makes {wanted} tensors; at most {_MOST_TENSORS} are read")
    faults: list[tuple[str, str, str]] = []  # what, name, more
    sources, used = [], set()
    for name, E, O, I, _ in params:  # noqa: E741
        source, shape = _source(name, E, O, I, found)
        sources.append(source)
        for one in source.names:
            used.add(one)
            if one not in found:
                faults.append(("missing ", one, f" {shape}"))
                continue
            dtype, actual = found[one]
            if actual != shape or dtype not in _FLOATS or (dtype == "F8_E4M3" and not O):
                faults.append(("", one, f" is {dtype} {actual}, expected float32 {shape}"))
            elif dtype == "F8_E4M3":
                faults += _scale_faults(f"{one}_scale_inv", scale_shape(shape), found)
                used.add(f"{one}_scale_inv")
    faults += [("surplus ", n, "") for n in sorted(found.keys() - used) if not _shared(n, config)]
    if faults:
        raise ValueError("state dict does not fit the model: " + "; ".join(_lines(faults)))
    return sources


def _source(name: str, E: int, O: int, I: int,  # noqa: E741
            found: Mapping[str, object]) -> tuple[Source, tuple[int, ...]]:
    """The source of one parameter, and the shape of its tensors."""
    if "*" not in name:
        return Source([name]), (O, I) if O else (I,)
    names, match = tensor_names(name, E), _FUSED.fullmatch(name)
    if match and not any(one in found for one in names):
        together = "gate_up_proj" if match[2] != "down" else "down_proj"
        if (fused := f"{match[1]}.{together}") in found:
            rows = 2 * O if match[2] != "down" else O
            return Source([fused], O if match[2] == "up" else 0), (E, rows, I)
    return Source(names), (O, I)


def _scale_faults(name: str, shape: tuple[int, ...],
                  found: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[tuple[str, str, str]]:
    if name not in found:
        return [("missing ", name, f" {shape}")]
    dtype, actual = found[name]
    if actual != shape or dtype not in _FLOATS - {"F8_E4M3"}:
        return [("", name, f" is {dtype} {actual}, expected float32 {shape}")]
    return []


def _shared(name: str, config: ModelConfig) -> bool:
    """What published files carry besides: a tied head, the MTP module's copies of embedding and head,
    the rotary frequencies of old Llama files."""
    mtp = f"model.layers.{config.num_hidden_layers}."
    return (name == "lm_head.weight" and config.tie_word_embeddings) or name in (
        f"{mtp}embed_tokens.weight", f"{mtp}shared_head.head.weight") or \
        name.endswith(".rotary_emb.inv_freq")


# ---- thousands of names in a few lines -----------------------------------------------------------


def _lines(faults: Iterable[tuple[str, str, str]]) -> list[str]:
    """Faults that differ in numbers between dots only share a line:
    missing model.layers.{1-47}.mlp.experts.{0-127}.up_proj.weight (768, 2048)."""
    groups: dict[tuple[str, tuple[str, ...], str], list[tuple[int, ...]]] = {}
    lines: dict[str, list[str]] = {}
    for what, name, more in faults:
        parts = re.split(r"(?<=\.)(0|[1-9][0-9]{0,5})(?=\.|$)", name) if len(name) <= 200 else \
            [name[:200] + "..."]
        key = (what, tuple(parts[::2]), more)
        groups.setdefault(key, []).append(tuple(int(n) for n in parts[1::2]))
    for (what, texts, more), rows in groups.items():
        lines.setdefault(what, []).extend(
            what + "".join(map("".join, zip(texts, (*numbers, ""), strict=True))) + more
            for numbers in _boxes(rows))
    for kind in lines.values():
        if len(kind) > _LISTED:
            kind[_LISTED:] = [f"and {len(kind) - _LISTED} lines like these"]
    return [line for kind in lines.values() for line in kind]


def _boxes(rows: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Tuples of numbers -> the same in brace notation: one entry where they are a full product of
    their columns, else one for the first numbers that go with the same rest."""
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    if math.prod(map(len, columns)) == len(set(rows)):
        return [tuple(map(_braces, columns))]
    firsts: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for first, group in groupby(sorted(rows), key=itemgetter(0)):
        firsts.setdefault(tuple(_boxes([row[1:] for row in group])), []).append(first)
    return [(_braces(numbers), *rest) for boxes, numbers in firsts.items() for rest in boxes]


def _braces(numbers: list[int]) -> str:
    """[0, 1, 2, 7] -> {0-2,7}; [3] -> 3."""
    if len(numbers) == 1:
        return str(numbers[0])
    ends = [i for i, n in enumerate(numbers) if n + 1 not in numbers[i + 1:i + 2]]
    runs = [numbers[start + 1:end + 1] for start, end in zip([-1, *ends], ends, strict=False)]
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}"
                          for run in runs) + "}"


# ---- the random start ----------------------------------------------------------------------------


def init_weights(params: list, config: ModelConfig, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index, array) of every parameter: matrices normal with initializer_range, those that write to
    the residual stream divided by sqrt(2 L) (Radford et al. 2019, section 2.3), norms 1, biases 0.
    A parameter's numbers depend on its place in the list and the seed."""
    for i, (name, E, O, I, _) in enumerate(params):  # noqa: E741
        if O == 0:
            fill = 0.0 if name.endswith(("bias", "e_score_correction_bias")) else 1.0
            yield i, np.full(I, fill, np.float32)
            continue
        draw = np.random.Generator(np.random.Philox(key=[seed, i]))
        array = draw.standard_normal((E, O, I), np.float32)
        array *= np.float32(config.initializer_range)  # in place: it may be the largest tensor
        if "o_proj" in name or "down_proj" in name:
            array /= np.float32(np.sqrt(2 * config.num_hidden_layers))
        yield i, array
