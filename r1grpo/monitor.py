"""monitor.py - what a step of training looked like: metrics, alarms, a progress bar.

Metrics carry the names that users of TRL know and TRL's meaning of them:
    reward, reward_std               mean over groups of the group's mean, of its deviation
    frac_reward_zero_std             share of groups whose rewards are all equal
    rewards/{fn}/mean|std            one reward function, over the completions it applies to
    completions/{mean,min,max}_length, .../{mean,min,max}_terminated_length
    completions/clipped_ratio        share cut off at the limit
    kl, entropy                      mean over unmasked tokens
    clip_ratio/{low_mean,low_min,high_mean,high_max,region_mean}   share of tokens clipped
    sampling/sampling_logp_difference/{mean,max}
    sampling/importance_sampling_ratio/{min,mean,max}
and one of our own, completions/duplicate_ratio. Standard deviations are of the sample (n - 1), 0
for one value; equality is tested on equality, never on a small deviation. TRL takes clip_ratio's
min and max over processes; here, with one process, they are over completions (our choice).

Sums are math.fsum, so no figure depends on how a batch was cut. Knows nothing of models or files:
numbers come in, rows go to the `write` it is given. A clock is read for the bar alone.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from .charts import Series, line_chart
from .guards import WATCHED, guard_symptoms

Values = Sequence[float | None]
Tokens = Sequence[np.ndarray]  # one float array (T_i) a completion


# ---- metrics ------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    """Exactly rounded mean of at least one value."""
    return math.fsum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """Standard deviation of a sample; exactly 0.0 when all values are equal."""
    if len(values) < 2 or all(value == values[0] for value in values):
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def rollout_metrics(rewards: Values, parts: Mapping[str, Values], group_size: int,
                    lengths: Sequence[int], finish_reasons: Sequence[str],
                    completion_ids: Sequence[Sequence[int]] | None = None) -> dict[str, float]:
    """Figures of one rollout of P prompts x G samples, completion p*G+g; None = not applicable.

    A figure that nothing applies to (no completion terminated) is left out.
    """
    count = len(rewards)
    for name, values in {"lengths": lengths, "finish_reasons": finish_reasons, **parts}.items():
        if len(values) != count:
            raise ValueError(f"rollout_metrics: {name} has {len(values)} values, expected {count}")
    if group_size < 1 or count == 0 or count % group_size:
        raise ValueError(f"rollout_metrics: {count} completions are no groups of {group_size}")
    groups = [[float(r) for r in rewards[at:at + group_size] if r is not None]
              for at in range(0, count, group_size)]
    groups = [group for group in groups if group]
    figures: dict[str, float] = {}
    if groups:
        figures["reward"] = mean([mean(group) for group in groups])
        figures["reward_std"] = mean([std(group) for group in groups])
        figures["frac_reward_zero_std"] = mean([float(all(r == group[0] for r in group))
                                                for group in groups])
    for name, values in parts.items():
        given = [float(value) for value in values if value is not None]
        if given:
            figures[f"rewards/{name}/mean"] = mean(given)
            figures[f"rewards/{name}/std"] = std(given)
    stopped = [n for n, reason in zip(lengths, finish_reasons) if reason != "length"]
    for kind, given_lengths in (("", lengths), ("terminated_", stopped)):
        if given_lengths:
            figures[f"completions/mean_{kind}length"] = mean(given_lengths)
            figures[f"completions/min_{kind}length"] = float(min(given_lengths))
            figures[f"completions/max_{kind}length"] = float(max(given_lengths))
    figures["completions/clipped_ratio"] = 1.0 - len(stopped) / count
    if completion_ids is not None:
        different = sum(len({tuple(ids) for ids in completion_ids[at:at + group_size]})
                        for at in range(0, count, group_size))
        figures["completions/duplicate_ratio"] = 1.0 - different / count
    return figures


def token_metrics(logprobs: Tokens, old_logprobs: Tokens, advantages: Sequence[Any],
                  epsilon: float, epsilon_high: float | None = None,
                  mask: Tokens | None = None) -> dict[str, float]:
    """Figures of the unmasked tokens of one update. ratio = exp(logprobs - old_logprobs); an
    advantage is a number, or one a token (T_i).

    The clip stops a token below 1 - epsilon when A < 0, above 1 + epsilon_high when A > 0
    (DeepSeekMath, eq. 3: where the minimum takes the constant branch).
    """
    keep = [np.ones(len(row), bool) if mask is None else np.asarray(mask[i], bool)
            for i, row in enumerate(logprobs)]
    high = 1.0 + (epsilon if epsilon_high is None else epsilon_high)
    gaps, ratios, low_rows, high_rows = [], [], [], []
    for new, old, advantage, kept in zip(logprobs, old_logprobs, advantages, keep, strict=True):
        gap = (np.asarray(new, np.float64) - np.asarray(old, np.float64))[kept]
        ratio, advantage = np.exp(gap), np.broadcast_to(advantage, kept.shape)[kept]
        gaps.append(np.abs(gap))
        ratios.append(ratio)
        low_rows.append((ratio < 1.0 - epsilon) & (advantage < 0))
        high_rows.append((ratio > high) & (advantage > 0))
    figures: dict[str, float] = {}
    if not sum(map(len, gaps)):
        return figures
    gap, ratio = np.concatenate(gaps), np.concatenate(ratios)
    low, above = np.concatenate(low_rows), np.concatenate(high_rows)
    figures["sampling/sampling_logp_difference/mean"] = mean(gap.tolist())
    figures["sampling/sampling_logp_difference/max"] = float(gap.max())
    figures["sampling/importance_sampling_ratio/min"] = float(ratio.min())
    figures["sampling/importance_sampling_ratio/mean"] = mean(ratio.tolist())
    figures["sampling/importance_sampling_ratio/max"] = float(ratio.max())
    figures["clip_ratio/low_mean"] = float(low.mean())
    figures["clip_ratio/low_min"] = min(float(row.mean()) for row in low_rows if len(row))
    figures["clip_ratio/high_mean"] = float(above.mean())
    figures["clip_ratio/high_max"] = max(float(row.mean()) for row in high_rows if len(row))
    figures["clip_ratio/region_mean"] = float((low | above).mean())
    return figures


# ---- alarms -------------------------------------------------------------------------------------


class MonitorWarning(UserWarning):
    """A training run shows a symptom; the message starts with its name, stage and step."""


@dataclass(frozen=True)
class Alarm:
    """One symptom at its onset."""

    name: str
    stage: str
    step: int
    message: str

    def __str__(self) -> str:
        return f"{self.name} ({self.stage}, step {self.step}): {self.message}"


@dataclass(frozen=True)
class AlarmLimits:
    """When a figure is worth a word. All are our choices; none changes the training."""

    entropy_fraction: float = 0.1  # of the mean entropy of the first `window` steps
    truncated: float = 0.3         # completions/clipped_ratio
    zero_variance: float = 0.8     # frac_reward_zero_std
    duplicates: float = 0.5        # completions/duplicate_ratio
    reward_sigmas: float = 5.0     # jump against the last `window` steps ...
    reward_floor: float = 0.02     # ... whose deviation counts as at least this
    length_factor: float = 2.0     # mean length against the mean of the last `window` steps
    window: int = 10
    audit_gap: float = 0.05        # audit/gap over the last audit_window rollouts
    audit_window: int = 20
    hack_signs: float = 0.02       # hack_signs
    worse: float = 0.2             # what a share has risen by since its alarm, to give another


class Monitor:
    """Turns the figures of a step into one row of metrics.jsonl and into alarms.

    write: where rows go (JsonlLog.append). A figure that is not finite is written as null, and
    named by an alarm. An alarm is given at its onset; it can come again after a step without the
    symptom, that of a share (which may well swing about its limit) only where it is clearly worse
    than when it was last given. state_dict() holds all of its memory, so that a resumed run gives the same rows.
    """

    _WATCHED = ("reward", "entropy", "completions/mean_length")
    _SHARES = {"truncation": "completions/clipped_ratio", "zero_variance": "frac_reward_zero_std",
               "duplicates": "completions/duplicate_ratio", "canary": "canary/rewarded",
               "hacking": "hack_signs"}

    def __init__(self, stage: str, write: Callable[[dict[str, Any]], None],
                 limits: AlarmLimits = AlarmLimits()) -> None:
        self.stage, self.limits, self._write = stage, limits, write
        self._recent: dict[str, list[float]] = {key: [] for key in (*self._WATCHED, *WATCHED)}
        self._first_entropies: list[float] = []
        self._active: set[str] = set()
        self._given: dict[str, float] = {}  # share at its last alarm
        self._tokens = 0

    def log_step(self, step: int, metrics: Mapping[str, float | None]) -> list[Alarm]:
        """Write the row of `step`; returns (and warns of) the alarms that set in with it.

        `num_tokens`, those of the step's loss, is written as the stage's running total; TRL's counts
        prompts too, which here `processed_tokens` does, step by step.
        """
        figures = {key: None if value is None else float(value) for key, value in metrics.items()}
        symptoms = self._symptoms(figures)
        alarms = [Alarm(name, self.stage, step, message) for name, message in symptoms.items()
                  if self._sets_in(name, figures)]
        self._active = set(symptoms)
        self._given |= {alarm.name: figures[self._SHARES[alarm.name]] for alarm in alarms
                        if alarm.name in self._SHARES}
        self._remember(figures)
        row: dict[str, Any] = {"stage": self.stage, "step": step}
        row |= {key: value if value is not None and math.isfinite(value) else None
                for key, value in figures.items()}
        if figures.get("num_tokens") is not None:
            self._tokens += int(figures["num_tokens"])
            row["num_tokens"] = self._tokens
        if alarms:
            row["alarms"] = [alarm.name for alarm in alarms]
        self._write(row)
        for alarm in alarms:
            warnings.warn(str(alarm), MonitorWarning, stacklevel=2)
        return alarms

    def _sets_in(self, name: str, figures: Mapping[str, float | None]) -> bool:
        if name not in self._given:
            return name not in self._active
        return figures[self._SHARES[name]] >= self._given[name] + self.limits.worse

    def _symptoms(self, figures: Mapping[str, float | None]) -> dict[str, str]:
        limits, found = self.limits, {}
        unsound = [key for key, value in figures.items()
                   if value is not None and not math.isfinite(value)]
        if unsound:
            found["not_finite"] = f"{', '.join(unsound)} is not a finite number"

        def finite(key: str) -> float | None:
            return None if key in unsound else figures.get(key)

        for name, limit, words in (
                ("truncation", limits.truncated, "are cut off"),
                ("zero_variance", limits.zero_variance,
                 "of the groups have equal rewards: nothing to learn from"),
                ("duplicates", limits.duplicates, "repeat another completion of their group")):
            value = finite(self._SHARES[name])
            if value is not None and value > limit:
                found[name] = f"{value:.0%} {words} (limit {limit:.0%})"
        gap = figures.get("max_logprob_gap")
        corrected = "sampling/importance_sampling_weight/mean" in figures
        if gap is not None and gap != 0.0 and not corrected:
            found["logprob_gap"] = (f"sampler and trainer differ by {gap:g} at the first update "
                                    "of a rollout; it must be exactly 0")
        entropy, first = finite("entropy"), self._first_entropies
        if entropy is not None and len(first) == limits.window:
            floor = limits.entropy_fraction * mean(first)
            if entropy < floor:
                found["entropy_collapse"] = f"entropy {entropy:.3g}, it began at {mean(first):.3g}"
        reward, past = finite("reward"), self._recent["reward"]
        if reward is not None and len(past) == limits.window:
            sigma = max(std(past), limits.reward_floor)
            if abs(reward - mean(past)) > limits.reward_sigmas * sigma:
                found["reward_jump"] = f"reward {reward:.3g} after a mean of {mean(past):.3g}"
        length, past = finite("completions/mean_length"), self._recent["completions/mean_length"]
        if length is not None and len(past) == limits.window:
            usual = mean(past)
            if not usual / limits.length_factor <= length <= usual * limits.length_factor:
                found["length_drift"] = f"mean length {length:.1f} after a mean of {usual:.1f}"
        sound = {key: finite(key) for key in figures}
        return found | guard_symptoms(self._recent, sound, limits.audit_gap, limits.hack_signs,
                                      limits.audit_window)

    def _remember(self, figures: Mapping[str, float | None]) -> None:
        if figures.get("audit/passed") is not None:  # at the first update of a rollout
            figures = {**figures, "audit/reward": figures.get("reward")}
        for key, past in self._recent.items():
            value = figures.get(key)
            if value is not None and math.isfinite(value):
                past.append(value)
                del past[:-(self.limits.audit_window if key in WATCHED else self.limits.window)]
                if key == "entropy" and len(self._first_entropies) < self.limits.window:
                    self._first_entropies.append(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON."""
        return {"recent": {key: list(past) for key, past in self._recent.items()},
                "first_entropies": list(self._first_entropies), "active": sorted(self._active),
                "given": dict(self._given), "tokens": self._tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from state_dict()."""
        self._recent = {key: list(state["recent"].get(key, ())) for key in self._recent}
        self._first_entropies = list(state["first_entropies"])
        self._active, self._tokens = set(state["active"]), int(state["tokens"])
        self._given = dict(state.get("given", {}))  # older states have none


# ---- progress -----------------------------------------------------------------------------------


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def format_seconds(seconds: float) -> str:
    """75 -> '1m15s', 3675 -> '1h01m'."""
    whole = max(int(round(seconds)), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A progress bar with time left and current figures; plain lines where no terminal is, none where
    it is quiet.

    >>> with Progress(120, "r1_zero") as bar:
    ...     bar.update(reward=0.41)
    Plain lines come once per tenth of the way and where the description changes, so that a log
    file stays short.
    """

    def __init__(self, total: int, description: str, done: int = 0,
                 file: TextIO | None = None, quiet: bool = False) -> None:
        self.total, self.description, self.done = total, description, done
        self._file = file or sys.stderr
        self._start, self._first = time.monotonic(), done
        self._due = False  # a plain line is due whatever the way since the last one
        self._quiet, self._bar = quiet, None
        if quiet:
            return
        if _in_notebook() or self._file.isatty():
            self._bar = tqdm(total=total, initial=done, desc=description, file=self._file,
                             dynamic_ncols=not _in_notebook(), mininterval=0.2)

    def describe(self, description: str) -> None:
        """Say what is going on now."""
        if description != self.description:
            self.description, self._due = description, True
            if self._bar is not None:
                self._bar.set_description(description, refresh=False)

    def skip(self, steps: int) -> None:
        """Move on by `steps` that were done before: they say nothing about the pace."""
        self.done, self._first = self.done + steps, self._first + steps
        if self._bar is not None:
            self._bar.initial += steps
            self._bar.update(steps)

    def update(self, steps: int = 1, peak_share: float | None = None, **figures: float) -> None:
        """Move on by `steps` and show `figures` (reward=0.41), and how much of the processor's peak
        is used."""
        before, self.done = self.done, self.done + steps
        words = {key: f"{value:.3g}" for key, value in figures.items()}
        share = [] if peak_share is None else [f"{100 * peak_share:.0f} % of peak"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([f"{k}={v}" for k, v in words.items()] + share),
                                      refresh=False)
            self._bar.update(steps)
        elif not self._quiet and (self._due or self.done == self.total or
                                  self.done * 10 // self.total > before * 10 // self.total):
            self._due = False
            pace = (time.monotonic() - self._start) / max(self.done - self._first, 1)
            left = format_seconds(pace * (self.total - self.done))
            shown = "".join(f"  {one}" for one in [f"{k} {v}" for k, v in words.items()] + share)
            print(f"{self.description} {self.done}/{self.total} {self.done / self.total:4.0%}  "
                  f"{left} left{shown}", file=self._file, flush=True)

    def write(self, text: str) -> None:
        """Say something above the bar, however quiet it is; nothing for ""."""
        if text and self._bar is not None:
            self._bar.write(text, file=self._file)
        elif text:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Leave the last state of the bar standing."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def live_plot(rows: Sequence[Mapping[str, Any]], key: str = "reward", handle: Any = None) -> Any:
    """Draw `key` over `step` in a notebook cell; pass the returned handle to draw over it again."""
    from IPython.display import HTML, display

    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    picture = HTML(line_chart(key, [Series(key, points)]))
    if handle is None:
        return display(picture, display_id=True)
    handle.update(picture)
    return handle
