"""Length: how the number of tokens L of a completion moves its reward. R1 uses none of these.

    cosine       lo + (hi - lo) (1 + cos(pi L / max_len)) / 2            Demystifying Long CoT (arXiv
                 right: lo, hi = min_value_correct, max_value_correct    2502.03373), C.1 and its code
                 wrong: lo, hi = max_value_wrong, min_value_wrong
                 L + margin >= max_len: exceed_value, right or wrong
                 right, clipped: at most clip_correct, so that being     Light-R1 (arXiv 2503.10460), 4,
                 short pays so far and no further                        which prints no value
    scaled       right (k + (1 - k) c)(1 - c), wrong c - 1,  c = L / max_len; the same code
    soft         0 up to max_len - cache, then (max_len - cache - L) / cache, behind max_len -1
    overlong                                                             DAPO (arXiv 2503.14476), eq. 13
    group        right m, wrong min(0, m),  m = 1/2 - (L - shortest) / (longest - shortest) of its
                 group; 0 where all are equally long                     Kimi k1.5 (arXiv 2501.12599), 2.3.3

Lengths are tokens, the end token included; what is longer than max_len counts as max_len, so that no
curve turns back. Right is what `correct` gives 1 or more, or a Verdict that says so; None stays None,
and a failure of the verifier stays one. The first two replace the reward for being right, the others
are added to it. `correct` may also be the name of another reward function of the run, in workers
perhaps: then its verdicts are taken, which the trainer hands on to who has an attribute `after`.
Defaults are the published values; max_len is meant to be the run's max_completion_length. The published code sees the end of the context in L + 16 >= max_len; TRL's port
has no such value (exceed_value None) and smaller ones. Knows nothing about how an answer is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .accuracy import accuracy_reward

Reward = Callable[..., list[Any]]  # of numbers, Verdicts, None


def get_cosine_scaled_reward(max_len: int = 14336, min_value_wrong: float = -10.0,
                             max_value_wrong: float = 0.0, min_value_correct: float = 1.0,
                             max_value_correct: float = 2.0, exceed_value: float | None = -10.0,
                             margin: int = 16, correct: Reward | str = accuracy_reward,
                             clip_correct: float | None = None) -> Reward:
    """Short right answers are worth more than long ones, long wrong ones lose less than short ones.
    clip_correct: what a right one is worth at most, where max_value_correct is only the curve's."""
    _require(max_len >= 1, f"max_len is {max_len}, must be at least 1")
    _require(margin >= 0, f"margin is {margin}, must be at least 0")
    for low, high, kind in ((min_value_wrong, max_value_wrong, "wrong"),
                            (min_value_correct, max_value_correct, "correct")):
        _require(math.isfinite(low) and math.isfinite(high),
                 f"min_value_{kind} and max_value_{kind} must be finite")
    _require(min_value_wrong <= max_value_wrong <= 0.0,
             f"min_value_wrong {min_value_wrong} to max_value_wrong {max_value_wrong} must ascend and "
             f"not go above 0")
    _require(exceed_value is None or math.isfinite(exceed_value), f"exceed_value is {exceed_value}, must be finite")
    _require(clip_correct is None or min_value_correct <= clip_correct <= max_value_correct,
             f"clip_correct is {clip_correct}, must be within min_value_correct {min_value_correct} and "
             f"max_value_correct {max_value_correct}")

    def cosine_scaled_reward(prompts: Sequence[Any], completions: Sequence[Any],
                             completion_ids: Sequence[Sequence[int]], **columns: Any
                             ) -> list[float | None]:
        def value(length: int, right: bool) -> float:
            at_end, at_start = (min_value_correct, max_value_correct) if right else \
                (max_value_wrong, min_value_wrong)
            cosine = math.cos(math.pi * min(length / max_len, 1.0))
            reward = at_end + 0.5 * (at_start - at_end) * (1.0 + cosine)
            return min(reward, clip_correct) if right and clip_correct is not None else reward
        return _judged(value, _verdicts(correct, prompts=prompts, completions=completions,
                                        completion_ids=completion_ids, **columns), completion_ids,
                       max_len - margin, exceed_value)
    return _after(cosine_scaled_reward, correct)


def get_length_scaled_reward(max_len: int = 14336, risk_factor: float = 1.0,
                             exceed_value: float | None = 0.0, margin: int = 16,
                             correct: Reward | str = accuracy_reward) -> Reward:
    """As the cosine by straight lines. risk_factor k: below 1 a short wrong answer loses more than a
    short right one wins. No value of k is published; 1 weighs both alike."""
    _require(max_len >= 1, f"max_len is {max_len}, must be at least 1")
    _require(margin >= 0, f"margin is {margin}, must be at least 0")
    _require(0.0 <= risk_factor <= 1.0, f"risk_factor is {risk_factor}, must be within 0 and 1")
    _require(exceed_value is None or math.isfinite(exceed_value), f"exceed_value is {exceed_value}, must be finite")

    def length_scaled_reward(prompts: Sequence[Any], completions: Sequence[Any],
                             completion_ids: Sequence[Sequence[int]], **columns: Any
                             ) -> list[float | None]:
        def value(length: int, right: bool) -> float:
            c = min(length / max_len, 1.0)
            return (risk_factor + (1.0 - risk_factor) * c) * (1.0 - c) if right else c - 1.0
        return _judged(value, _verdicts(correct, prompts=prompts, completions=completions,
                                        completion_ids=completion_ids, **columns), completion_ids,
                       max_len - margin, exceed_value)
    return _after(length_scaled_reward, correct)


def get_soft_overlong_punishment(max_completion_len: int = 20480, soft_punish_cache: int = 4096
                                 ) -> Callable[..., list[float]]:
    """Nothing up to max_completion_len - soft_punish_cache tokens, from there linearly down to -1."""
    _require(0 <= soft_punish_cache <= max_completion_len,
             f"soft_punish_cache is {soft_punish_cache}, must be within 0 and max_completion_len "
             f"{max_completion_len}")
    free = max_completion_len - soft_punish_cache

    def soft_overlong_punishment_reward(completion_ids: Sequence[Sequence[int]], **_: Any
                                        ) -> list[float]:
        return [0.0 if len(ids) <= free else
                (free - len(ids)) / soft_punish_cache if len(ids) <= max_completion_len else -1.0
                for ids in completion_ids]
    return soft_overlong_punishment_reward


def get_group_length_reward(correct: Reward | str = accuracy_reward) -> Reward:
    """The shortest of a group gains a half, the longest loses one; wrong ones gain nothing. Groups are
    num_generations neighbours, as the trainer passes it. Those without a verdict count in neither
    shortest nor longest."""
    def group_length_reward(prompts: Sequence[Any], completions: Sequence[Any],
                            completion_ids: Sequence[Sequence[int]], *, num_generations: int,
                            **columns: Any) -> list[float | None]:
        verdicts = _verdicts(correct, prompts=prompts, completions=completions, num_generations=num_generations,
                             completion_ids=completion_ids, **columns)
        rewards: list[float | None] = []
        for first in range(0, len(verdicts), num_generations):
            group = verdicts[first:first + num_generations]
            ids = completion_ids[first:first + num_generations]
            judged = [len(one) for one, verdict in zip(ids, group)
                      if verdict is not None and not getattr(verdict, "failed", False)]
            rewards += _judged(_centred(judged), group, ids)
        return rewards
    return _after(group_length_reward, correct)


def _centred(lengths: Sequence[int]) -> Callable[[int, bool], float]:
    """m of the group for a length, at most 0 where it is not right."""
    shortest, longest = min(lengths, default=0), max(lengths, default=0)

    def value(length: int, right: bool) -> float:
        if longest == shortest:
            return 0.0
        middle = 0.5 - (length - shortest) / (longest - shortest)
        return middle if right else min(0.0, middle)
    return value


def _after(reward: Reward, correct: Reward | str) -> Reward:
    """The reward, marked with the name of the one that must have been asked before."""
    if isinstance(correct, str):
        reward.after = correct  # type: ignore[attr-defined]
    return reward


def _verdicts(correct: Reward | str, /, **call: Any) -> Sequence[Any]:
    found = call["verdicts"][correct] if isinstance(correct, str) else correct(**call)
    for i, one in enumerate(found):
        _require(one == one, f"value {i} of what `correct` returned is NaN, neither right nor wrong")
    return found


def _judged(value: Callable[[int, bool], float], verdicts: Sequence[Any],
            completion_ids: Sequence[Sequence[int]], limit: int = 0,
            exceed_value: float | None = None) -> list[Any]:
    """value(tokens, right) of each completion that has a verdict, or, where exceed_value is given, that
    from limit tokens on; where a verifier failed its Verdict stays, so that the completion is left out."""
    return [verdict if verdict is None or getattr(verdict, "failed", False)
            else exceed_value if exceed_value is not None and len(ids) >= limit
            else value(len(ids), float(getattr(verdict, "correct", verdict)) >= 1.0)
            for verdict, ids in zip(verdicts, completion_ids, strict=True)]


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)
