"""guards.py - is the reward being hacked? Figures of a rollout, and when they are an alarm.

The first reward function is the verifier: what it passes (a value above 0) is held against
    an audit     other verifiers, asked about a share of the samples that nobody can foresee
    canaries     rows that cannot be solved (column canary): whoever is rewarded found a hole
    signs        what in a program looks like cheating its grader (verifiers/signs.py)

    audit/samples, audit/passed     how many were audited; the share that every audit passes
    audit/gap                       share that the verifier passes - audit/passed
    canary/samples, canary/rewarded completions of canaries; the share that the verifier passes
    hack_signs                      share of the completions with code whose code has a sign

None of it enters a reward, an advantage or a gradient; a policy that were trained on its guard would
learn to get round it (Baker et al. 2025, arXiv 2503.11926). That the learned reward rises while held-out
quality falls is what DeepSeek-R1 saw (arXiv 2501.12948 v2, B.5, figure 6). Knows no text and no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WATCHED = ("audit/passed", "audit/gap", "audit/reward")  # a value a rollout, of which the last are kept
# standard errors beyond which it is none of chance: a gap, looked for in every window; a rise and a
# fall, which must meet (our choices)
GAP_ERRORS, TREND_ERRORS = 4.0, 2.5


def audited_samples(count: int, share: float, *key: int) -> list[int]:
    """Which of `count` completions are audited, each with probability `share`: a function of the key
    (seed, step, attempt), not of what they say."""
    return np.flatnonzero(np.random.default_rng([*key, 2]).random(count) < share).tolist()


def guard_metrics(verifier: NDArray[np.float64], audits: NDArray[np.float64],
                  canary: NDArray[np.bool_], signs: Sequence[bool | None]) -> dict[str, float]:
    """Figures of n completions: what the verifier gave (n), what the audits gave (n, audits), NaN where
    not applicable or not asked; which are of canaries; whether code has a sign, None without code."""
    found: dict[str, float] = {}
    judged, right = ~np.isnan(verifier), verifier > 0
    if audits.shape[1]:
        asked = ~np.isnan(audits)
        both = asked.any(axis=1) & judged & ~canary
        found["audit/samples"] = int(both.sum())
        if both.any():
            passed = ((audits > 0) | ~asked).all(axis=1)[both]
            found["audit/passed"] = float(passed.mean())
            found["audit/gap"] = float(right[both].mean() - passed.mean())
    if (known := canary & judged).any():
        found["canary/samples"] = int(known.sum())
        found["canary/rewarded"] = float(right[known].mean())
    coded = [one for one in signs if one is not None]
    if coded:
        found["hack_signs"] = sum(coded) / len(coded)
    return found


def guard_symptoms(recent: Mapping[str, Sequence[float]], figures: Mapping[str, float | None],
                   gap_limit: float, sign_limit: float, window: int) -> dict[str, str]:
    """Alarms by name with their words: of this step's figures, and of the last `window` rollouts in
    `recent`, by WATCHED."""
    found = {}
    rewarded, signs = figures.get("canary/rewarded"), figures.get("hack_signs")
    if rewarded:
        found["canary"] = (f"{rewarded:.1%} of the completions of prompts that cannot be solved are "
                           f"rewarded: the verifier has a hole; r1grpo audit shows them")
    if signs is not None and signs > sign_limit:
        found["hacking"] = (f"{signs:.1%} of the programs have signs of cheating the grader (limit "
                            f"{sign_limit:.0%}); r1grpo audit shows them")
    passed, gaps, rewards = (list(recent.get(name, ())) for name in WATCHED)
    if len(gaps) == window:
        gap, error = _mean_and_error(gaps)
        if gap > gap_limit and gap > GAP_ERRORS * error:
            found["audit_gap"] = (f"the verifier passes {gap:.1%} more samples than the audit, over "
                                  f"{window} rollouts (limit {gap_limit:.0%})")
    if len(passed) == len(rewards) == window:
        if _difference(passed) < -TREND_ERRORS and _difference(rewards) > TREND_ERRORS:
            found["audit_falls"] = (f"over {window} rollouts the reward rises while the audit passes fewer "
                                    f"samples: the policy may be learning the verifier's weakness")
    return found


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values and its standard error."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _difference(values: Sequence[float]) -> float:
    """The second half's mean above the first's, in standard errors; 0 where nothing varies or moves."""
    half = len(values) // 2
    (before, error), (after, other) = _mean_and_error(values[:half]), _mean_and_error(values[half:])
    error = math.hypot(error, other)
    return 0.0 if after == before else math.copysign(math.inf, after - before) if error == 0.0 \
        else (after - before) / error
