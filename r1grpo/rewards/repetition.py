"""Repetition: what saying the same again costs. Demystifying Long CoT (arXiv 2502.03373), C.2 and its
code; R1 uses neither.

    sparse   max_penalty (1 - different n-grams / n-grams), one number a completion; 0 where there are
             fewer than n words. An n-gram is n neighbouring words, lower-cased, split at spaces, or n
             token ids.
    dense    p_t = penalty where token t stands in an n-gram of token ids that stood before, else 0:
             the first occurrence is free, of every later one each token pays, once.
             R_t = p_t + discount R_t+1     what the completion pays from token t on

The dense one says where, so it is no number of a completion that a group could be compared by: R_t,
times its weight, is added to the advantage of token t (advantage.py), which leaves the tokens in front
of a loop their own. The paper trains with n = 40, penalty -0.05, discount 0.99, and a value function
as its baseline; here there is none, 0 is what a completion without repetition pays (ours).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .text import Completion, texts


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0,
                                  unit: Literal["words", "tokens"] = "words"
                                  ) -> Callable[..., list[float]]:
    """The sparse penalty, max_penalty to 0. Defaults: Open-R1's (the paper's code has it off). unit
    "tokens" is TRL's, and for text that is written without spaces."""
    if ngram_size < 1:
        raise ValueError(f"ngram_size is {ngram_size}, must be at least 1")
    if not -math.inf < max_penalty <= 0.0:
        raise ValueError(f"max_penalty is {max_penalty}, must be finite and not above 0")
    if unit not in ("words", "tokens"):
        raise ValueError(f"unit is {unit!r}, must be 'words' or 'tokens'")

    def repetition_penalty_reward(completions: Sequence[Completion],
                                  completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        said = completion_ids if unit == "tokens" else \
            [text.lower().split() for text in texts(completions)]
        return [max_penalty * _repeated(one, ngram_size) for one in said]
    return repetition_penalty_reward


def _ngrams(units: Sequence[Any], n: int) -> Iterator[tuple[Any, ...]]:
    return zip(*(units[i:] for i in range(n)))


def _repeated(units: Sequence[Any], n: int) -> float:
    """Share of the n-grams that are not the first of their kind."""
    total = len(units) - n + 1
    return 1.0 - len(set(_ngrams(units, n))) / total if total > 0 else 0.0


class DenseRepetitionPenalty:
    """The dense penalty: as a reward function the sum of p_t of each completion, which is logged and in
    no total; `returns` is what the trainer adds to the advantages. only_start: an n-gram that begins
    within, or right behind, the repeated one before it pays nothing, as in that code."""

    __name__ = "dense_repetition_penalty"

    def __init__(self, ngram_size: int = 40, penalty: float = -0.05, discount: float = 0.99,
                 only_start: bool = False) -> None:
        if ngram_size < 1:
            raise ValueError(f"ngram_size is {ngram_size}, must be at least 1")
        if not -math.inf < penalty < 0.0:
            raise ValueError(f"penalty is {penalty}, must be finite and below 0")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount is {discount}, must be within 0 and 1")
        self.ngram_size, self.penalty = ngram_size, penalty
        self.discount, self.only_start = discount, only_start

    def __call__(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [math.fsum(self.penalties(ids)) for ids in completion_ids]

    def penalties(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """p (T) of a completion of T token ids."""
        n, seen, end = self.ngram_size, set(), -1
        data, paid = np.asarray(ids, np.int32).tobytes(), np.zeros(len(ids))
        for start in range(len(ids) - n + 1):
            ngram = data[4 * start:4 * (start + n)]  # bytes: 40 numbers are hashed as one string
            if ngram in seen:
                if not self.only_start or start > end:
                    paid[start:start + n] = self.penalty
                end = start + n
            seen.add(ngram)
        return paid

    def returns(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """R (T) of a completion: a function of its ids alone."""
        out, behind = self.penalties(ids), 0.0
        for t in range(len(out) - 1, -1, -1):
            out[t] = behind = float(out[t]) + self.discount * behind
        return out
