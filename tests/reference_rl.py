"""What follows the log-probs, as float64 equations: advantages, weights, losses, AdamW, Philox.

    rewards, groups -> advantages (one a completion) -> token weights (one a token, once a step)
    log-probs, old, reference -> loss per token -> sum(w * loss) / total
    rewards of a scalar head -> pairwise and pointwise losses
    gradients -> global norm, clip -> AdamW
    key, counter -> 128 random bits

Imports nothing of the package.  Knows nothing about networks, tokens or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autodiff import Tensor, clip, exp, minimum, softplus, where


# ---- advantages and token weights: once per optimiser step

def group_advantages(rewards: Sequence[float | None], groups: Sequence[int], scale: str = "group",
                     ddof: int = 1, eps: float = 1e-4) -> np.ndarray:
    """A_i = (r_i - mean of its group) / (std + eps).  DeepSeekMath section 4.1.2; R1 eq. 3.

    scale: "group" divides by the group's std, "batch" by that of all rewards (both as TRL does),
    "none" does not divide (Dr. GRPO).  The papers print neither eps nor ddof; ours are TRL's.
    A reward that is None or NaN is left out of every mean and std, its advantage is 0.  A group
    whose rewards are all equal gets exactly 0 (tested on equality, not on a small std).
    """
    r = np.array([np.nan if x is None else x for x in rewards], dtype=np.float64)
    known = ~np.isnan(r)
    group = np.asarray(groups)
    out = np.zeros(len(r))
    for g in np.unique(group):
        members = known & (group == g)
        if not members.any() or np.all(r[members] == r[members][0]):
            continue
        spread = {"group": members, "batch": known}.get(scale)
        out[members] = r[members] - r[members].mean()
        if spread is not None:
            out[members] /= r[spread].std(ddof=ddof) + eps
    return out


def token_weights(lengths: Sequence[int], kind: str, *, keep: Sequence[bool] | None = None,
                  max_completion_length: int | None = None,
                  local_batch: int | None = None) -> np.ndarray:
    """The weight of every token of completion i, such that loss = sum of w * L.  Returns (B).

        grpo     1 / (B len_i)                  mean over sequences of token means, DeepSeekMath
        dapo     1 / tokens of the whole step   DAPO eq. 8
        bnpo     token mean inside each run of local_batch completions, then the mean of the runs
        dr_grpo  1 / (B max_completion_length)  Dr. GRPO

    keep[i] False (a masked truncated completion) gives weight 0: its tokens are not counted,
    while B still counts the completion.
    """
    n = len(lengths)
    active = np.asarray(lengths, dtype=np.float64)
    kept = np.ones(n, dtype=bool) if keep is None else np.asarray(keep, dtype=bool)
    active = np.where(kept, active, 0.0)
    if kind == "grpo":
        denominator = n * active
    elif kind == "dapo":
        denominator = np.full(n, active.sum())
    elif kind == "dr_grpo":
        denominator = np.full(n, float(n * max_completion_length))
    elif kind == "bnpo":
        batch = np.arange(n) // local_batch
        denominator = np.bincount(batch, weights=active)[batch] * (batch[-1] + 1)
    else:
        raise ValueError(f"unknown kind of token weights: {kind!r}")
    return np.divide(1.0, denominator, out=np.zeros(n), where=active > 0)


# ---- losses per token

def kl_estimate(logp: Tensor, ref_logp: np.ndarray, kind: str = "k3") -> Tensor:
    """k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1, with d = log pi_ref - log pi.  Schulman 2020; k3 is
    DeepSeekMath's eq. 4.  Differentiated as they stand."""
    d = ref_logp - logp
    if kind == "k1":
        return -d
    return d * d * 0.5 if kind == "k2" else exp(d) - d - 1.0


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor  # (N) per token, unweighted, 0 where masked
    ratio: np.ndarray  # (N) pi / pi_old, 1 where masked
    kl: np.ndarray  # (N) the estimate, 0 where masked or without a reference
    clipped: np.ndarray  # (N) -1 cut below, +1 cut above, 0 not clipped or masked


def policy_loss(logp: Tensor, old_logp: np.ndarray, advantages: np.ndarray, *, form: str = "clip",
                ref_logp: np.ndarray | None = None, epsilon: float = 0.2,
                epsilon_high: float | None = None, delta: float = np.inf, beta: float = 0.0,
                kl: str = "k3", kl_ratio: bool = False, entropy: Tensor | None = None,
                entropy_coef: float = 0.0, mask: np.ndarray | None = None) -> PolicyLoss:
    """The policy's loss per token; all (N).

        clip   -min(min(rho, delta) A, clip(rho, 1 - eps, 1 + eps_high) A)   DeepSeekMath eq. 3
        cispo  -min(rho, eps_high) A log pi, the first factor a constant     MiniMax-M1, TRL
        both   + beta k [times rho where kl_ratio: DeepSeek-V3.2] - entropy_coef entropy (ours)

    delta: TRL, INTELLECT-2.  Clipped: where the term does not grow with rho any more; bounds are
    strict.  Masked tokens never reach an exp: whatever their inputs hold, their loss and its
    derivatives are 0.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    mask = np.ones(logp.shape, dtype=bool) if mask is None else mask
    logp, old_logp = where(mask, logp, 0.0), np.where(mask, old_logp, 0.0)
    advantages = np.where(mask, advantages, 0.0)
    ratio = exp(logp - old_logp)
    if form == "cispo":
        loss = -(np.minimum(ratio.data, high) * advantages * logp)
        clipped = (ratio.data > high).astype(int)
    else:
        bounded = clip(ratio, -np.inf, delta)
        inside = clip(ratio, 1.0 - epsilon, 1.0 + high)
        loss = -minimum(bounded * advantages, inside * advantages)
        most = np.where(advantages > 0, np.minimum(1.0 + high, delta), np.maximum(1.0 + high, delta))
        above = (advantages != 0) & (ratio.data > most)
        clipped = above.astype(int) - ((advantages < 0) & (ratio.data < 1.0 - epsilon))
    estimate = np.zeros(logp.shape)
    if ref_logp is not None:
        penalty = kl_estimate(logp, np.where(mask, ref_logp, 0.0), kl)
        estimate = penalty.data
        loss = loss + beta * (penalty * ratio if kl_ratio else penalty)
    if entropy is not None:
        loss = loss - entropy_coef * where(mask, entropy, 0.0)
    return PolicyLoss(where(mask, loss, 0.0), ratio.data, np.where(mask, estimate, 0.0),
                      np.where(mask, clipped, 0))


def truncated_weights(old_logp: np.ndarray, sampled_logp: np.ndarray, cap: float) -> np.ndarray:
    """(N) min(pi_old / pi_sampled, C): the weight of a token's policy term where the policy was sampled
    from by other means than it is trained by.  Yao et al. 2025, truncated importance sampling."""
    return np.minimum(np.exp(old_logp - sampled_logp), cap)


def sequence_old_logp(logp: np.ndarray, old_logp: np.ndarray) -> np.ndarray:
    """(T) of one sequence: log pi - log s, s = exp(mean of log pi - log pi_old): GSPO's ratio (its
    eq. 7) for every token.  log pi is a constant here: GSPO-token, eq. 13-14."""
    return logp - np.sum(logp - old_logp) / max(len(logp), 1)


# ---- reward models: the papers print no formula, these are the usual ones (our choice)

def pairwise_loss(scores: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), Bradley-Terry; scores (2B) alternate, loss (B)."""
    return softplus(scores[1::2] - scores[0::2])


def pointwise_loss(scores: Tensor, labels: np.ndarray) -> Tensor:
    """Binary cross-entropy of sigmoid(score) against labels in [0, 1].  All (B)."""
    return softplus(scores) - scores * labels


# ---- the update

def global_norm(grads: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(float((g * g).sum()) for g in grads)))


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor for every gradient; no epsilon beside the norm (our choice)."""
    return max_norm / norm if norm > max_norm else 1.0


def adamw(param: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, *,
          learning_rate: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
          weight_decay: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step, counted from 1; returns (param, m, v).  Loshchilov & Hutter 2019, algorithm 2.

    The decay is decoupled and scaled by the learning rate; eps stands outside the root.
    """
    m = betas[0] * m + (1.0 - betas[0]) * grad
    v = betas[1] * v + (1.0 - betas[1]) * grad * grad
    direction = (m / (1.0 - betas[0] ** step)) / (np.sqrt(v / (1.0 - betas[1] ** step)) + eps)
    return param - learning_rate * (direction + weight_decay * param), m, v


# ---- random numbers

def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32.  Salmon et al. 2011, section 3.3.  All words have 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        even, odd = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # 64-bit products, high and low halves used
        c0, c1, c2, c3 = ((odd >> 32) ^ c1 ^ k0, odd & 0xFFFFFFFF,
                          (even >> 32) ^ c3 ^ k1, even & 0xFFFFFFFF)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
