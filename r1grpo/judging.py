"""judging.py - the scores of a rollout in the making: reward functions are asked, in this process and in
workers, and what they return is checked.

    with rewards.judging(rows, prompt_ids, group_size) as judging:
        scores = judging.finish(rollout(..., tell=judging.begin))

Pooled functions (rewards/pooled.py) are asked in worker processes, about each completion as it ends,
while others are still being sampled; only what is missing at the end is waited for. What they return
depends on the completion alone, so neither time nor order can change a score. Audits (guards.py) are
asked about the completions that were chosen for it, one by one, and nobody else. A function with an
attribute `after`, the name of another, is asked behind it and gets what that said: verdicts={name: [...]}.

In place of a number there may be a Verdict: 1 or 0, or its share, and its reason is kept. Where a
verifier failed (timeout, crash, error) nothing is known about the completion, so that no part of it
counts: its row is NaN, its group is compared without it, and FailureWindow stops a run in which that is
no exception.
Knows nothing about models, weights of rewards or files.
"""

from __future__ import annotations

import math
import numbers
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .brief import brief
from .rewards import Pooled
from .rollout import Completions, Ended
from .verifiers import Verdict
from .verifiers.verdict import FAILURES

if TYPE_CHECKING:
    from .scoring import Rewards

RewardFunction = Callable[..., Sequence[float | None | Verdict]]
ROUTE = "reward_funcs"  # column: names of the functions that judge a row
TAKEN = {"prompts", "completions", "completion_ids", "finish_reasons", "prefilled", "num_generations"}


class RewardError(ValueError):
    """A reward function returned what is no reward; the message names it."""


class VerifierFailure(RewardError):
    """Verifiers failed on too many completions; the message says how, and where to look."""


@dataclass
class Scores:
    """Of n completions. parts (n, reward functions): NaN where one does not apply, and everywhere in
    the row of a completion whose verifier failed. reasons: of the functions that gave Verdicts, by
    name (n); words: what these say in detail. waited: seconds in finish for pooled functions, of span
    since the first was asked."""

    parts: NDArray[np.float64]
    reasons: dict[str, list[str | None]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    details: tuple[str, ...] = ()  # of a few failures
    waited: float = 0.0
    span: float = 0.0

    @property
    def failed(self) -> NDArray[np.bool_]:
        """(n) whether a verifier failed."""
        return np.array([any(reasons[i] in FAILURES for reasons in self.reasons.values())
                         for i in range(len(self.parts))], bool)

    @staticmethod
    def join(several: Sequence[Scores]) -> Scores:
        """Scores after each other."""
        names = dict.fromkeys(name for one in several for name in one.reasons)
        return Scores(np.concatenate([one.parts for one in several]),
                      {name: [reason for one in several
                              for reason in one.reasons.get(name, [None] * len(one.parts))]
                       for name in names},
                      {name: [words for one in several for words in one.words.get(name, [""] * len(one.parts))]
                       for name in names},
                      tuple(word for one in several for word in one.details),
                      sum(one.waited for one in several), sum(one.span for one in several))


class Judging:
    """The scores of one rollout in the making. As a context it ends the pool's processes where its
    block is left by an exception: nothing of an interrupted rollout goes on."""

    def __init__(self, rewards: Rewards, rows: Sequence[dict[str, Any]],
                 prompt_ids: Sequence[Sequence[int]], group_size: int,
                 audited: Iterable[int] = ()) -> None:
        keys = {key for row in rows for key in row} - {"prompt", "prompt_ids", ROUTE}
        if taken := keys & TAKEN:
            raise RewardError(f"the dataset has a column {min(taken)!r}, which reward functions "
                              f"receive from the trainer; rename it")
        self.rewards, self.rows, self.group_size = rewards, rows, group_size
        self.prompts = [row.get("prompt", ids) for row, ids in zip(rows, prompt_ids, strict=True)]
        self.keys = sorted(keys)
        self.routes = [rewards.route(row) for row in rows]
        self.audited = set(audited)
        self.pooled = {name: one for name, one in zip(rewards.names, rewards.functions)
                       if isinstance(one, Pooled)}
        self._tickets: dict[int, dict[str, int]] = {}  # completion -> reward function -> ticket
        self._since = 0.0  # when the first was asked

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.rewards.pool.close()

    def begin(self, one: Ended) -> None:
        """Ask the pooled functions about a completion."""
        self._since = self._since or time.perf_counter()
        tickets = self._tickets.setdefault(one.index, {})
        for name, function in self.pooled.items():
            if not self._judges(name, one.index):
                continue
            arguments = self._arguments([one], 1)
            try:
                tickets[name] = self.rewards.pool.submit(function.import_name, **arguments,
                                                         **function.options)
            except (TypeError, ValueError) as error:
                raise RewardError(f"reward function {name!r} is Pooled, so its columns must be plain data "
                                  f"({', '.join(arguments)}): {error}") from error

    def finish(self, completions: Completions) -> Scores:
        """The scores of all of them; asks about those that begin was not called with."""
        everyone = [completions.ended(i) for i in range(len(completions))]
        for one in everyone if self.pooled else ():
            if one.index not in self._tickets:
                self.begin(one)
        values: dict[str, list[Any]] = {}
        for name, function in zip(self.rewards.names, self.rewards.functions):
            mine = [one for one in everyone if self._judges(name, one.index)]
            values[name] = [None] * len(everyone)
            if mine and name not in self.pooled and not hasattr(function, "after"):
                for one, value in zip(mine, self._ask(name, function, mine)):
                    values[name][one.index] = value
        waiting = time.perf_counter()
        for index, tickets in self._tickets.items():
            for name, ticket in tickets.items():
                values[name][index] = _only(self.rewards.pool.result(ticket))
        for name, function in zip(self.rewards.names, self.rewards.functions):
            mine = [one for one in everyone if self._judges(name, one.index)]
            if mine and hasattr(function, "after"):
                verdicts = {function.after: [values[function.after][one.index] for one in mine]}
                for one, value in zip(mine, self._ask(name, function, mine, verdicts=verdicts)):
                    values[name][one.index] = value
        for name in self.rewards.audits:  # that an audit failed is no reason to leave a sample out
            values[name] = [None if getattr(one, "failed", False) else one for one in values[name]]
        now = time.perf_counter()
        parts = np.empty((len(everyone), len(self.rewards.names)))
        scores = Scores(parts)
        if self.pooled:
            scores.waited, scores.span = now - waiting, now - self._since
        for k, name in enumerate(self.rewards.names):
            parts[:, k] = [_number(one) for one in values[name]]
            if any(isinstance(one, Verdict) for one in values[name]):
                scores.reasons[name] = [_reason(one, ended.finish_reason)
                                        for one, ended in zip(values[name], everyone)]
                scores.words[name] = [str(one.detail) if isinstance(one, Verdict) else "" for one in values[name]]
        scores.details = tuple(dict.fromkeys(
            f"{name}: {one.reason}: {one.detail}" for name in scores.reasons for one in values[name]
            if isinstance(one, Verdict) and one.failed))[:3]
        parts[scores.failed] = math.nan
        return scores

    def _judges(self, name: str, index: int) -> bool:
        """Whether a function is asked about a completion."""
        if name in self.rewards.audits:
            return index in self.audited
        return name in self.routes[index // self.group_size]

    def _ask(self, name: str, function: RewardFunction, everyone: Sequence[Ended], **more: Any
             ) -> list[Any]:
        arguments = self._arguments(everyone, 1 if name in self.rewards.audits else self.group_size)
        try:
            values = function(**arguments | more)
        except Exception as error:
            error.add_note(f"raised by reward function {name!r}; it is called as "
                           f"f(prompts, completions, completion_ids, **columns) with columns "
                           f"{', '.join(self.keys) or '(none)'}")
            raise
        if problem := _problem(values, len(everyone)):
            raise RewardError(f"reward function {name!r} {problem}")
        return list(values)

    def _arguments(self, everyone: Sequence[Ended], group_size: int) -> dict[str, Any]:
        """What a reward function is called with about these completions."""
        of = [one.index // self.group_size for one in everyone]
        said = [[{"role": "assistant", "content": one.text}] if is_chat(self.prompts[p]) else one.text
                for p, one in zip(of, everyone)]
        prefilled = {"prefilled": [one.prefilled for one in everyone]}
        return {"prompts": [self.prompts[p] for p in of], "completions": said,
                "completion_ids": [list(one.ids) for one in everyone],
                "finish_reasons": [one.finish_reason for one in everyone],
                "num_generations": group_size,
                **(prefilled if any(one.prefilled for one in everyone) else {}),
                **{key: [self.rows[p].get(key) for p in of] for key in self.keys}}


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of messages, neither text nor token ids."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _problem(values: Any, n: int) -> str | None:
    """What is wrong with the values that a reward function returned for n completions, if anything."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        return f"returned {type(values).__name__}, expected a list of {n} numbers or None"
    if len(values) != n:
        return f"returned {len(values)} values for {n} completions"
    for i, value in enumerate(values):
        if isinstance(value, Verdict):
            value = value.share
        if value is None:
            continue
        if not isinstance(value, (numbers.Real, np.bool_)):
            return f"returned a list whose value {i} is {brief(value)}, expected a number, a Verdict or None"
        if not math.isfinite(value):
            return (f"returned a list whose value {i} is {float(value)}; a reward is a finite number, or "
                    f"None where it does not apply")
    return None


def _only(result: Any) -> Any:
    """The value in what a pooled function returned for one completion."""
    if isinstance(result, Verdict):  # the pool's own
        return result
    problem = _problem(result, 1)
    return Verdict(False, "error", problem) if problem else result[0]


def _number(value: Any) -> float:
    if isinstance(value, Verdict):
        return value.value
    return math.nan if value is None else float(value)


def _reason(value: Any, finish_reason: str) -> str | None:
    if not isinstance(value, Verdict):
        return None
    cut = finish_reason == "length" and value.reason in ("missing", "unparsed")
    return "truncated" if cut else value.reason


class FailureWindow:
    """How many completions of each of the last WINDOW groups a verifier failed on.

    A run stops when they are more than the share `most` of WINDOW groups: then what is left of the
    groups is no sample of what the policy does any more."""

    WINDOW = 50

    def __init__(self, most: float, counts: Sequence[int] = ()) -> None:
        self.most, self.counts = most, list(counts)

    def add(self, scores: Scores, group_size: int) -> FailureWindow:
        """The window behind these groups; VerifierFailure where they fail too often."""
        groups = scores.failed.reshape(-1, group_size).sum(axis=1).tolist()
        found = FailureWindow(self.most, (self.counts + groups)[-self.WINDOW:])
        if sum(found.counts) > self.most * self.WINDOW * group_size:
            reasons = Counter(one for some in scores.reasons.values() for one in some if one in FAILURES)
            raise VerifierFailure(
                f"verifiers failed on {sum(found.counts)} completions of the last {len(found.counts)} groups "
                f"of {group_size}, more than verifier_failures = {self.most:g} of {self.WINDOW} groups; now "
                f"{', '.join(f'{reason} {n}' for reason, n in reasons.items())} "
                f"({'; '.join(scores.details)})")
        return found
