"""advantage.py - options -> the advantage op: rewards and groups in, advantages A, weights w out.

    A_i = (r_i - mean of its group) / (std + 1e-4)    DeepSeek-R1 eq. 3; which std: scale_rewards
    L   = sum_i sum_t w_i L_it                        w_i: the weight of each token of completion i

    loss_type   w_i; B completions in the update, |o_i| tokens, N = sum of |o_i| over the update
    grpo        1 / (B |o_i|)                         DeepSeekMath eq. 3
    dapo        1 / N                                 DAPO eq. 8
    cispo       as dapo                               MiniMax-M1
    bnpo        1 / (N of its local batch), averaged over the local batches
    dr_grpo     1 / (B max_completion_length)         Dr. GRPO; the limit that the samples had

    A_i = S_i / (std of S over the rollout + 1e-4)    several rewards, each compared on its own: GDPO
    S_i = sum_k weight_k (r_ik - mean_k) / (std_k + 1e-4)   (arXiv 2601.05242); mean, std of its group
    A_it = A_i + R_it                                 R_it: what a dense reward pays from token t on

A needs whole groups, so it is made once for a rollout; w needs a whole update and nothing smaller,
so it is made once for each update, before micro-batching: memory cannot change the loss. The op is
in C, one for every backend, on host arrays. The paper prints neither ddof nor the 1e-4 (TRL's).
Knows nothing about text, models or where rewards come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .device import get_device


def group_advantages(rewards: Sequence[float] | NDArray[np.float64], group_size: int,
                     scale: str = "group", ddof: int = 0) -> NDArray[np.float32]:
    """Advantages A (n) of rewards (n), group i // group_size. NaN (no reward applied) is left out
    of mean and std and gets 0; a group of equal rewards gets exactly 0."""
    r = np.ascontiguousarray(rewards, dtype=np.float64)
    if r.ndim != 1 or group_size < 1 or r.size % group_size:
        raise ValueError(f"rewards of shape {r.shape} are not groups of {group_size}")
    if np.isinf(r).any():
        raise ValueError(f"reward {int(np.flatnonzero(np.isinf(r))[0])} is infinite")
    return _op(r, np.ones(r.size, np.int32), np.ones(r.size, np.float32),
               (group_size, scale, ddof, "grpo", 1, 1))[0]


def separate_advantages(parts: NDArray[np.float64], weights: NDArray[np.float64], group_size: int,
                        ddof: int = 0) -> NDArray[np.float32]:
    """Advantages (n) of rewards by part (n, parts) with weights (parts), by GDPO: a reward that hardly
    varies in its group counts as much as one that varies a lot. NaN as in group_advantages. The mean
    of S over the rollout, which GDPO subtracts, is that of its groups: 0."""
    compared = [weight * group_advantages(part, group_size, "group", ddof).astype(np.float64)
                for weight, part in zip(weights, parts.T, strict=True)]
    nothing = np.isnan(parts).all(axis=1)
    return group_advantages(np.where(nothing, np.nan, np.sum(compared, axis=0)), group_size, "batch",
                            ddof)


def token_advantages(advantages: NDArray[np.float32],
                     returns: Sequence[NDArray[np.float64]] | None
                     ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
    """Advantages (n), or with returns, (T) of each completion, (T) of each. Returns are in the unit of
    advantages, whose groups are already scaled: they are neither centred nor divided (ours)."""
    if returns is None:
        return advantages
    return [(float(one) + paid).astype(np.float32)
            for one, paid in zip(advantages, returns, strict=True)]


def token_weights(lengths: Sequence[int] | NDArray[np.int32], keep: NDArray[np.float32],
                  loss_type: str, max_completion_length: int,
                  local_batch: int | None = None) -> NDArray[np.float32]:
    """Token weights w (n) of one update from lengths (n) and keep (n; 0 drops a completion)."""
    n = np.ascontiguousarray(lengths, dtype=np.int32)
    aggregation = "dapo" if loss_type == "cispo" else loss_type
    return _op(np.zeros(n.size), n, np.ascontiguousarray(keep, np.float32),
               (1, "none", 0, aggregation, max_completion_length, local_batch or n.size))[1]


def _op(rewards: NDArray[np.float64], lengths: NDArray[np.int32], keep: NDArray[np.float32],
        spec: tuple[int, Any, int, Any, int, int]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A, w) of spec = (group, scale, ddof, aggregation, max_length, local_batch)."""
    advantages, weights = np.empty((2, rewards.size), np.float32)
    _core.advantage(get_device(), advantages, weights, rewards, lengths, keep, spec)
    return advantages, weights


def sequence_old_logprobs(logprobs: Sequence[NDArray[np.float32]],
                          old_logprobs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """log p - log s for each completion, s = exp(mean of log p - old) its sequence ratio (GSPO, arXiv
    2507.18071, eq. 7). As old log-probs they make s the ratio of every token, and the gradient of
    csrc/cpu/token_loss.c GSPO's. Where log p is old, this is log p, bit for bit."""
    out = []
    for now, old in zip(logprobs, old_logprobs, strict=True):
        difference = now.astype(np.float64) - old
        log_s = math.fsum(difference) / max(len(difference), 1)
        out.append((now - log_s).astype(np.float32))
    return out


def truncated_weights(trained: NDArray[np.float32], sampled: NDArray[np.float32],
                      cap: float) -> NDArray[np.float32]:
    """min(exp(log p - log q), cap) of each token (M), p the policy as a training forward computes it, q
    as it was sampled from: truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training"; TRL's vllm_importance_sampling_cap). Exactly 1 where
    log p is log q."""
    with np.errstate(over="ignore"):  # an infinite ratio is cut too
        ratio = np.exp(trained.astype(np.float64) - sampled)
    return np.minimum(ratio, cap).astype(np.float32)


def zero_variance(rewards: NDArray[np.float64], group_size: int) -> NDArray[np.bool_]:
    """(groups) True where a group has nothing to compare: all its rewards are equal, or NaN.
    Tested on equality, not on a small standard deviation, so rounding cannot decide it."""
    groups = np.asarray(rewards, dtype=np.float64).reshape(-1, group_size)
    low = np.min(np.where(np.isnan(groups), np.inf, groups), axis=1)
    high = np.max(np.where(np.isnan(groups), -np.inf, groups), axis=1)
    return ~(low < high)
