"""Options of sampling, and one sampling session of a model: decoding in slices.

A session lets Python look between slices of tokens (stop strings, a progress bar, Ctrl-C) while the
core decodes many sequences at once. Nothing that is done between slices changes a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import _core
from .batch import as_count, as_ids, as_number, pack_prompts
from .model_config import ModelConfig

__all__ = ["Rollout", "Filters", "Session"]


@dataclass(frozen=True)
class Filters:
    """temperature 0: greedy; top_k 0, top_p 1, min_p 0 or None: off. Applied in this order."""

    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float | None = 1.0
    min_p: float | None = 0.0

    def __post_init__(self) -> None:
        self.tuple()  # raises on what cannot be

    def tuple(self) -> tuple[float, int, float, float]:
        """(temperature, top_k, top_p, min_p) as the core takes them."""
        top_k = as_count(0 if self.top_k is None else self.top_k, "top_k", 0)
        temperature = as_number(self.temperature, "temperature")
        if 0.0 < temperature < 1e-6:  # its inverse would overflow
            raise ValueError(f"temperature is {temperature}, must be 0 (greedy) or at least 1e-6")
        return (temperature, min(top_k, 2**31 - 1),
                as_number(1.0 if self.top_p is None else self.top_p, "top_p", 2.0**-126, 1.0),
                as_number(0.0 if self.min_p is None else self.min_p, "min_p", 0.0, 1.0))


@dataclass
class Rollout:
    """Flat lists over completions, completion g of prompt p at p * G + g: ids int32, log-probs
    float32 of the same length, "stop" or "length". drafts: (guessed, right) tokens of speculative
    decoding, (0, 0) without."""

    completion_ids: list[np.ndarray]
    logprobs: list[np.ndarray]
    finish_reasons: list[str]
    drafts: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.completion_ids)


def check_speculative(config: ModelConfig, speculative: bool) -> None:
    """ValueError where guesses are asked of a model that makes none."""
    if speculative and not config.num_nextn_predict_layers:
        raise ValueError("speculative=True needs a multi-token-prediction module, and this model has "
                         "none (num_nextn_predict_layers is 0)")


class Session:
    """Sequences being decoded: `run` a slice, look at `ids`, `stop` some, until `done`."""

    def __init__(self, core: _core.Model, device: Callable[[], _core.Device], config: ModelConfig,
                 prompts: Sequence, num_generations: int, max_new_tokens: int, how: Filters,
                 seed: int, step: int, stop_token_ids: list[int],
                 sample_ids: Sequence[int] | None, slots: int, speculative: bool = False):
        num_generations = as_count(num_generations, "num_generations", 1)
        max_new_tokens = as_count(max_new_tokens, "max_new_tokens", 1)
        seed, step = as_count(seed, "seed", 0), as_count(step, "step", 0)
        ids, start = pack_prompts(prompts, config.vocab_size, config.max_position_embeddings)
        P = len(start) - 1
        keys = as_ids(range(P) if sample_ids is None else sample_ids, "sample_ids", 2**31, "range")
        if len(keys) != P:
            raise ValueError(f"sample_ids has {len(keys)} entries for {P} prompts")
        stop = as_ids(stop_token_ids, "stop_token_ids", config.vocab_size)
        check_speculative(config, speculative)
        max_new = min(max_new_tokens, config.max_position_embeddings)
        self._device = device
        self._decode = _core.Decode(device(), core, ids, start, keys, stop, num_generations, max_new,
                                    slots, bool(speculative), seed, step, how.tuple())
        n = P * num_generations
        self._length, self._state = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self._seen, self._told = np.zeros(n, np.int32), np.zeros(n, bool)
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

    def ended(self) -> list[int]:
        """The sequences that have ended since this was asked last."""
        new = np.flatnonzero((self._state != 0) & ~self._told)
        self._told[new] = True
        return new.tolist()

    def finish_reason(self, i: int) -> str:
        """"stop" or "length" of a sequence that has ended."""
        return "stop" if self._state[i] == 1 else "length"

    def rollout(self) -> Rollout:
        """What there is; meant for when the session is done."""
        rows = [self.tokens(i) for i in range(len(self._length))]
        return Rollout([r[0] for r in rows], [r[1] for r in rows],
                       [self.finish_reason(i) for i in range(len(rows))],
                       self._decode.drafts())
