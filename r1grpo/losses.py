"""losses.py - what a gradient call is asked for and what it answers.

LossSpec in, Loss out, and the figures of `Loss.stats` over unmasked tokens. The losses themselves are
the core's: csrc/cpu/token_loss.c and csrc/cpu/score_loss.c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .batch import PackedBatch

__all__ = ["Loss", "LossSpec", "mtp_stats", "token_stats"]


@dataclass
class Loss:
    """What a gradient call computed. `float(loss)` is the loss whose gradient was added.

    tokens: unmasked tokens; logprobs: one float32 array a completion, of the current weights;
    stats: figures over unmasked tokens (means, extremes, counts)."""

    value: float
    tokens: int
    logprobs: list[np.ndarray]
    stats: dict[str, float] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


class LossSpec(NamedTuple):
    """r1_loss_spec of csrc/ops.h, field by field."""

    form: str = "nll"
    scale: float = 1.0
    eps_low: float = 0.0
    eps_high: float = 0.0
    delta: float = math.inf
    kl: str = "k3"
    kl_ratio: bool = False
    beta: float = 0.0
    entropy_coef: float = 0.0


def token_stats(mask, logp, entropy, kl, clipped, sampled, old, correction=None) -> dict[str, float]:
    """Figures over unmasked tokens; means in float64. The gap is to the sampler's log-probs, the
    ratio to old, which differs from them at the sequence level and where weights of truncated importance
    sampling, `correction`, stand between the two."""
    if not mask.any():
        return {}
    n = int(mask.sum())
    stats = {"entropy": math.fsum(entropy[mask]) / n, "logp_mean": math.fsum(logp[mask]) / n}
    if old is not None:
        difference = logp[mask].astype(np.float64) - sampled[mask]
        ratio = np.exp(logp[mask].astype(np.float64) - old[mask])
        stats |= {
            "logp_gap_max": float(np.abs(difference).max()), "logp_gap_tokens": n,
            "logp_gap_mean": math.fsum(np.abs(difference)) / n,
            "ratio_min": float(ratio.min()), "ratio_max": float(ratio.max()),
            "ratio_mean": math.fsum(ratio) / n, "kl": math.fsum(kl[mask]) / n,
            "clip_low": float((clipped[mask] < 0).mean()),
            "clip_high": float((clipped[mask] > 0).mean()),
        }
    if correction is not None:
        weight = correction[mask]
        stats |= {"importance_weight_min": float(weight.min()), "importance_weight_max": float(weight.max()),
                  "importance_weight_mean": math.fsum(weight) / n}
    return stats


def mtp_stats(batch: PackedBatch, draft, mtp_loss, mask) -> dict[str, float]:
    """mtp_loss: mean -log p of the MTP module; mtp_accept: share of tokens that its most likely guess,
    made one position earlier, hits."""
    rows = np.concatenate([np.arange(f, e - s) + s for f, s, e in
                           zip(batch.first, batch.start, batch.start[1:], strict=False)])
    seen = mask & (draft >= 0)
    if not seen.any():
        return {}
    hit = draft[seen] == batch.ids[rows][seen]
    return {"mtp_loss": math.fsum(mtp_loss[seen]) / int(seen.sum()), "mtp_accept": float(hit.mean())}
