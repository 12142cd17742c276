"""grpo_metrics.py - what GRPO reports of a rollout and of an update, under TRL's names.

A rollout's figures count all that was sampled; an update's the tokens that it learns from. Knows the
options and the numbers, changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .advantage import sequence_old_logprobs
from .config import GRPOConfig
from .flops import Spans, forward_flops, gradient_flops, whole_sequences
from .guards import guard_metrics
from .losses import Loss
from .monitor import rollout_metrics, token_metrics
from .rollout import Completions
from .judging import Scores
from .scoring import Rewards
from .verifiers.signs import code_blocks, hack_signs

if TYPE_CHECKING:
    from .grpo import Batch

Floats = NDArray[np.float32]


def completion_metrics(rewards: Rewards, completions: Completions, scores: Scores
                       ) -> dict[str, float]:
    """Means of rewards and lengths; how often each reason was given, and how long it took."""
    parts = scores.parts
    by_name = {name: _or_none(parts[:, k]) for k, name in enumerate(rewards.names)}
    found = rollout_metrics(_or_none(rewards.total(parts)), by_name, completions.group_size,
                            [len(one) for one in completions.completion_ids],
                            completions.finish_reasons,
                            [one.tolist() for one in completions.completion_ids])
    for name, reasons in scores.reasons.items():
        found |= {f"verdicts/{name}/{reason}": n for reason, n in sorted(Counter(reasons).items(), key=str)
                  if reason is not None}
    if scores.reasons:
        found["verdicts/failed"] = int(scores.failed.sum())
    if scores.span:
        found["verdicts/wait_time"] = scores.waited
        found["verdicts/hidden_share"] = 1.0 - scores.waited / scores.span
    return found


def canaries(rows: Sequence[dict[str, Any]], group_size: int) -> NDArray[np.bool_]:
    """(n) whether a completion is of a row that cannot be solved."""
    return np.repeat([bool(row.get("canary")) for row in rows], group_size)


def without_canaries(scores: Scores, rows: Sequence[dict[str, Any]]) -> Scores:
    """The scores (n) that are learned from; rows (P)."""
    group_size = len(scores.parts) // len(rows)
    return dataclasses.replace(scores, parts=np.where(
        canaries(rows, group_size)[:, None], np.nan, scores.parts))


def rollout_guards(rewards: Rewards, rows: Sequence[dict[str, Any]], completions: Completions,
                   scores: Scores) -> dict[str, float]:
    """Figures of guards.py for a whole rollout; rows (P)."""
    audits = scores.parts[:, [rewards.names.index(name) for name in rewards.audits]]
    signs = [bool(hack_signs(text)) if code_blocks(text) else None for text in completions.texts]
    return guard_metrics(scores.parts[:, 0], audits, canaries(rows, completions.group_size), signs)


def update_metrics(args: GRPOConfig, model: Any, batch: Batch, prompts: Sequence[Any],
                   ids: Sequence[Any], groups: Sequence[int], old: Sequence[Floats],
                   advantages: Floats | Sequence[Floats], keep: Floats, loss: Loss) -> dict[str, Any]:
    """Of a mini-batch of m completions: their prompts (m), ids (m), groups (m), the sampler's
    log-probs (m), advantages (m; one number or one a token), 1 or, masked, 0 (m), and what the
    gradient call computed."""
    stats = loss.stats
    metrics = {"loss": float(loss), "num_tokens": sum(map(len, ids)),
               "processed_tokens": sum(map(len, prompts)) + sum(map(len, ids)),
               "flops": _operations(args, model, batch, *whole_sequences(prompts, ids, groups)),
               **batch.metrics,
               **token_metrics(loss.logprobs, _ratio_old(args, loss.logprobs, old),
                               advantages, *_clip_range(args),
                               mask=[np.full(len(one), k) for one, k in zip(ids, keep)]),
               **{name: stats[name] for name in ("entropy", "mtp_accept") if name in stats}}
    if args.beta > 0 and "kl" in stats:
        metrics["kl"] = stats["kl"]
    if batch.position == 0:
        metrics |= batch.guards  # below: 0 tokens where every completion of the update is masked
        metrics["max_logprob_gap"] = stats.get("logp_gap_max", 0.0)
        metrics["gap_tokens"] = stats.get("logp_gap_tokens", 0)
    for name in ("min", "mean", "max"):  # of truncated importance sampling
        if f"importance_weight_{name}" in stats:
            metrics[f"sampling/importance_sampling_weight/{name}"] = stats[f"importance_weight_{name}"]
    for name in ("mean", "max"):
        metrics.pop(f"sampling/sampling_logp_difference/{name}", None)
        # later the weights have moved, and the log-probs with them: that is the ratio, no gap
        if batch.position == 0 and f"logp_gap_{name}" in stats:
            metrics[f"sampling/sampling_logp_difference/{name}"] = stats[f"logp_gap_{name}"]
    return metrics


def _operations(args: GRPOConfig, model: Any, batch: Batch, spans: Spans, head_rows: int) -> float:
    """Floating-point operations of an update: the gradient of its sequences; at the first one of a
    rollout, sampling and forwards of the reference and of `trained` too."""
    config, done = model.config, batch.completions
    found = gradient_flops(config, spans, head_rows, args.mtp_coef > 0, model.lora is not None)
    if args.importance_sampling_level == "sequence":
        found += forward_flops(config, spans, head_rows)
    forwards = (args.beta > 0) + (batch.trained is not None)
    if batch.position == 0 and forwards:
        groups = [i // done.group_size for i in range(len(done))]
        prompts = [done.prompt_ids[p] for p in groups]
        found += forwards * forward_flops(config, *whole_sequences(prompts, done.completion_ids, groups))
    return found + (batch.flops if batch.position == 0 else 0.0)


def _ratio_old(args: GRPOConfig, logprobs: Sequence[Floats], old: Sequence[Floats]
               ) -> Sequence[Floats]:
    """The log-probs that the loss took its ratios from."""
    sequence = args.importance_sampling_level == "sequence"
    return sequence_old_logprobs(logprobs, old) if sequence else old


def _clip_range(args: GRPOConfig) -> tuple[float, float | None]:
    """What token_metrics counts by: cispo's weights have an upper bound alone."""
    if args.loss_type == "cispo" and args.epsilon_high is not None:
        return math.inf, args.epsilon_high - 1.0
    return args.epsilon, args.epsilon_high


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    """NaN, which marks 'not applicable' in arrays, as None."""
    return [None if math.isnan(v) else v for v in values.tolist()]
