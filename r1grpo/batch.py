"""Prompts and completions (lists of token ids) -> the packed arrays that the core takes, and back.

Completion i belongs to prompt i // ratio. Everything is checked here, before work starts, with
messages that name the argument and the index. Knows nothing about text or models but sizes.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .brief import brief

__all__ = ["PackedBatch", "as_count", "as_ids", "as_number", "pack", "pack_prompts", "per_token",
           "split_rows"]


MAX_TOKENS = 2**31 - 1  # of one call: their places are int32


def as_count(value: Any, name: str, lowest: int) -> int:
    """An int of at least `lowest` and of 64 bits: Python's or NumPy's, no bool, no float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, not {brief(value)}")
    if not lowest <= value < 2**64:
        raise ValueError(f"{name} is {value}, must be at least {lowest} and below 2**64")
    return int(value)


def as_number(value: Any, name: str, lowest: float = 0.0, highest: float = 3e38) -> float:
    """A real number in [lowest, highest]; by default a finite one that is not negative."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, not {brief(value)}")
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is {value}, must be between {lowest:.6g} and {highest:.6g}")
    return float(value)


def as_ids(values: Sequence[int] | np.ndarray, name: str, below: int,
           what: str = "vocabulary") -> np.ndarray:
    """One sequence of ids in [0, below) as int32 (n); ValueError or TypeError naming it."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} is not a flat sequence of ids") from None
    if array.ndim != 1:
        raise ValueError(f"{name} must be a sequence of ids, has {array.ndim} dimensions")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= below):
        bad = next(int(t) for t in array if t < 0 or t >= below)
        raise ValueError(f"{name} contains id {bad}, outside the {what} of {below}")
    return array.astype(np.int32)


@dataclass
class PackedBatch:
    """B sequences prompt + completion, packed; tokens first[b].. of each are its M targets.

    ids (N), start (B + 1), first (B) int32; group (B) int32: neighbours of one group have the same
    prompt, which is computed once (csrc/model/micro.c); lengths (B): completion lengths, sum M."""

    ids: np.ndarray
    start: np.ndarray
    first: np.ndarray
    group: np.ndarray
    lengths: np.ndarray

    @property
    def targets(self) -> int:
        """M, the tokens that have a log-prob."""
        return int(self.lengths.sum())


def pack(prompt_ids: Sequence, completion_ids: Sequence, vocab_size: int, context: int,
         live_vocab: int, groups: Sequence[int] | None = None) -> PackedBatch:
    """Packs completion i behind prompt i // ratio; raises on what cannot be. Completions consist of
    ids that have a probability, those below live_vocab. groups: the group of each completion (None:
    its prompt's number); neighbours of one group must have equal prompts."""
    prompts = pack_list(prompt_ids, "prompt_ids", vocab_size)
    completions = pack_list(completion_ids, "completion_ids", live_vocab)
    if not prompts and completions:
        raise ValueError("completion_ids given without prompt_ids")
    ratio, rest = divmod(len(completions), len(prompts)) if prompts else (0, 0)
    if rest:
        raise ValueError(f"{len(completions)} completion_ids are not a multiple of "
                         f"{len(prompts)} prompt_ids")
    group = np.arange(len(completions)) // max(ratio, 1) if groups is None else \
        as_ids(groups, "groups", 2**31, "range")
    if len(group) != len(completions):
        raise ValueError(f"groups has {len(group)} entries for {len(completions)} completions")
    parts, start, first = [], [0], []
    for i, completion in enumerate(completions):
        prompt = prompts[i // ratio]
        if not len(prompt):
            raise ValueError(f"prompt_ids[{i // ratio}] is empty")
        before = prompts[(i - 1) // ratio]
        if i and group[i] == group[i - 1] and not np.array_equal(prompt, before):
            raise ValueError(f"completions {i - 1} and {i} are of group {group[i]}, but their prompts "
                             f"differ")
        total = len(prompt) + len(completion)
        if total > context:
            raise ValueError(f"prompt_ids[{i // ratio}] + completion_ids[{i}] are {total} tokens, "
                             f"beyond the context of {context}")
        parts += [prompt, completion]
        start.append(start[-1] + total)
        first.append(len(prompt))
    if start[-1] > MAX_TOKENS:
        raise ValueError(f"{len(completions)} sequences of {start[-1]} tokens are too many for one call, "
                         f"which takes {MAX_TOKENS}; split them, or make the batch smaller")
    ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return PackedBatch(ids.astype(np.int32), np.array(start, np.int32), np.array(first, np.int32),
                       group.astype(np.int32), np.array([len(c) for c in completions], np.int64))


def pack_list(sequences: Sequence, name: str, vocab_size: int) -> list[np.ndarray]:
    """Every sequence as ids; a flat list of integers is refused with a hint."""
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Iterable):
        raise TypeError(f"{name} must be sequences of token ids, not {type(sequences).__name__}")
    out = []
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, (str, bytes)) or not isinstance(sequence, Iterable):
            raise TypeError(f"{name} must be a sequence of sequences; {name}[{i}] is {brief(sequence)}")
        out.append(as_ids(sequence, f"{name}[{i}]", vocab_size))
    return out


def pack_prompts(prompts: Sequence, vocab_size: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts alone: ids (N), start (P + 1)."""
    rows = pack_list(prompts, "prompts", vocab_size)
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"prompts[{i}] is empty")
        if len(row) >= context:
            raise ValueError(f"prompts[{i}] has {len(row)} tokens and leaves no room in a context of "
                             f"{context}")
    ids = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    start = np.cumsum([0, *(len(r) for r in rows)])
    if start[-1] > MAX_TOKENS:
        raise ValueError(f"{len(rows)} prompts of {start[-1]} tokens are too many for one call, which "
                         f"takes {MAX_TOKENS}")
    return ids.astype(np.int32), start.astype(np.int32)


def per_token(values, lengths: np.ndarray, name: str) -> np.ndarray:
    """One number a completion, or an array a completion, as float32 (M) over all tokens."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must have one number or array a completion, not {brief(values)}")
    values = list(values)
    if len(values) != len(lengths):
        raise ValueError(f"{name} has {len(values)} entries for {len(lengths)} completions")
    rows = []
    for i, (value, n) in enumerate(zip(values, lengths, strict=True)):
        try:
            with np.errstate(over="ignore"):  # too large for float32: refused below as infinite
                row = np.asarray(value, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name}[{i}] must be a number or an array, not {brief(value)}") from None
        if row.ndim == 0:
            row = np.full(n, row, np.float32)
        if row.shape != (n,):
            raise ValueError(f"{name}[{i}] has shape {row.shape}, the completion has {n} tokens")
        if not np.isfinite(row).all():
            raise ValueError(f"{name}[{i}] contains NaN or infinity")
        rows.append(row)
    return np.ascontiguousarray(np.concatenate(rows) if rows else np.zeros(0), np.float32)


def split_rows(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """(M) back into one array a completion."""
    return [a.copy() for a in np.split(flat, np.cumsum(lengths)[:-1])] if len(lengths) else []
