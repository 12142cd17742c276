"""Options of sampling, and one sampling session of a model: decoding in slices.

A session lets Python look between slices of tokens (stop strings, a progress bar, Ctrl-C) while the
core decodes many sequences at once. Nothing that is done between slices changes a draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import _core
from .batch import as_ids, pack_prompts
from .model_config import ModelConfig

__all__ = ["Rollout", "Filters", "Session"]


@dataclass(frozen=True)
class Filters:
    """temperature 0: greedy; top_k 0, top_p 1, min_p 0: off. Applied in this order."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}, must be 0 or above")
        if self.top_k is None or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, must be 0 (off) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}, must be in [0, 1]")

    def tuple(self) -> tuple[float, int, float, float]:
        return float(self.temperature), int(self.top_k), float(self.top_p), float(self.min_p)


@dataclass
class Rollout:
    """Flat lists over completions, completion g of prompt p at p * G + g: ids int32, log-probs
    float32 of the same length, "stop" or "length"."""

    completion_ids: list[np.ndarray]
    logprobs: list[np.ndarray]
    finish_reasons: list[str]

    def __len__(self) -> int:
        return len(self.completion_ids)


class Session:
    """Sequences being decoded: `run` a slice, look at `ids`, `stop` some, until `done`."""

    def __init__(self, core: _core.Model, device: Callable[[], _core.Device], config: ModelConfig,
                 prompts: Sequence, num_generations: int, max_new_tokens: int, how: Filters,
                 seed: int, step: int, stop_token_ids: list[int],
                 sample_ids: Sequence[int] | None, slots: int):
        for name, value in (("num_generations", num_generations), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        for name, value in (("seed", seed), ("step", step)):
            if value < 0:
                raise ValueError(f"{name} is {value}, must be 0 or above")
        ids, start = pack_prompts(prompts, config.vocab_size, config.max_position_embeddings)
        P = len(start) - 1
        keys = np.arange(P, dtype=np.int32) if sample_ids is None else np.asarray(sample_ids, np.int32)
        if keys.shape != (P,):
            raise ValueError(f"sample_ids has {keys.size} entries for {P} prompts")
        stop = as_ids(stop_token_ids, "stop_token_ids", config.vocab_size)
        max_new = min(max_new_tokens, config.max_position_embeddings)
        self._device = device
        self._decode = _core.Decode(device(), core, ids, start, keys, stop, num_generations, max_new,
                                    slots, seed, step, how.tuple())
        n = P * num_generations
        self._length, self._state = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._seen = np.zeros(n, np.int32)
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self.done = n == 0

    def run(self, n: int) -> list[int]:
        """Up to n more tokens for every live sequence; the indices of those that got some."""
        live = self._decode.run(self._device(), n)
        self._decode.state(self._length, self._state)
        self.done = live == 0
        grown = np.flatnonzero(self._length > self._seen)
        self._seen[:] = self._length
        return grown.tolist()

    def tokens(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 (n) and log-probs float32 (n) of sequence i so far."""
        n = int(self._length[i])
        ids, logp = np.empty(n, np.int32), np.empty(n, np.float32)
        self._decode.read(i, 0, ids, logp)
        return ids, logp

    def ids(self, i: int) -> list[int]:
        """Token ids of sequence i so far."""
        have, n = self._ids[i], int(self._length[i])
        if n > len(have):
            ids, logp = np.empty(n - len(have), np.int32), np.empty(n - len(have), np.float32)
            self._decode.read(i, len(have), ids, logp)
            have.extend(ids.tolist())
        return have[:n]

    def stop(self, i: int, keep: int) -> None:
        """Cuts sequence i to its first `keep` tokens and ends it as "stop"."""
        self._decode.stop(i, keep)
        self._decode.state(self._length, self._state)
        self._seen[i] = self._length[i]
        self.done = bool((self._state != 0).all())

    def rollout(self) -> Rollout:
        """What there is; meant for when the session is done."""
        rows = [self.tokens(i) for i in range(len(self._length))]
        return Rollout([r[0] for r in rows], [r[1] for r in rows],
                       ["stop" if s == 1 else "length" for s in self._state])
