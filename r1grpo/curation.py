"""curation.py - which problems are worth reinforcing: those that a model solves now and then.

    pass rate = right / judged   of k samples a prompt;   kept where low <= pass rate <= high

    unique    rows -> those that say something of their own
    measure   prompts -> how often each is solved, by an injected sampler, batch after batch
    choose    what was measured -> which to keep, and why not the others

A group whose samples are all right or all wrong has no advantage, so there is nothing to learn from
it. Light-R1 keeps 0.25 to 0.625 (arXiv 2503.10460, section 4), or 0.2 to 0.625 by the name of its
data: the wider is the default here. It found that of what a model never solves over half cannot be
checked or has a wrong answer, so all_wrong (and all_right) is told apart from what is too hard or
too easy. A sample whose verifier failed, or that no rule applies to, is in no pass rate.

Everything is a function of rows, seed and what the sampler says. Knows nothing about models, files
or answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .contamination import spelled

Row = dict[str, Any]

_BAR = 40  # columns of the longest bar


class Samples(NamedTuple):
    """Of k samples of each of P prompts, arrays (P, k)."""

    rewards: NDArray[np.float64]  # 1 is right; NaN: no verdict
    failed: NDArray[np.bool_]  # the verifier came to no end
    truncated: NDArray[np.bool_]  # ended by the limit of its length
    tokens: NDArray[np.int64]


Sampler = Callable[[Sequence[int], Sequence[Row]], Samples]  # numbers of the prompts, and the prompts


@dataclass(frozen=True)
class Measured:
    """How often a prompt was solved. row: its number in the data; mark: of its content."""

    row: int
    mark: str
    right: int
    judged: int
    failed: int
    truncated: int
    tokens: int

    @property
    def pass_rate(self) -> float | None:
        """None where no sample was judged."""
        return self.right / self.judged if self.judged else None

    @property
    def bin(self) -> int | None:
        """Of the histogram: 0 never right, 11 always; between them 1 to 10, tenths, in whole numbers."""
        if not self.judged:
            return None
        always = self.right == self.judged
        return 0 if self.right == 0 else 11 if always else 1 + 10 * self.right // self.judged


def unique(rows: Sequence[Row]) -> dict[int, tuple[str, int]]:
    """{row: (reason, another row of the same prompt)} of the rows to leave out; prompts are the same
    spaces and capitals aside. duplicate: an earlier row has it. conflict: two rows have one prompt and
    different answers, so one of them is false, and nothing says which."""
    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        [text] = spelled(row, ["prompt"])
        groups.setdefault(text or tuple(row.get("prompt_ids", (i,))), []).append(i)
    dropped: dict[int, tuple[str, int]] = {}
    for group in groups.values():
        answered = [i for i in group if rows[i].get("answer") is not None]
        if len({str(rows[i]["answer"]).strip() for i in answered}) > 1:
            dropped |= {i: ("conflict", next(j for j in group if j != i)) for i in group}
        else:
            kept = (answered or group)[0]
            dropped |= {i: ("duplicate", kept) for i in group if i != kept}
    return dropped


# ---- pass rates ---------------------------------------------------------------------------------


def measure(rows: Sequence[Row], numbers: Sequence[int], sample: Sampler, size: int,
            done: Sequence[Measured] = ()) -> Iterator[list[Measured]]:
    """Lists of at most `size` measured prompts: those behind `done`, which were measured before.
    numbers: of the rows in the data, by which the sampler's draws know a prompt. ValueError where done
    is of other rows."""
    for one, row, number in zip(done, rows, numbers):
        if (one.row, one.mark) != (number, _mark(row)):
            raise ValueError(f"row {one.row} was measured with other content: the data, the prompts made of "
                             f"them or eval_data are not what they were")
    if len(done) > len(rows):
        raise ValueError(f"{len(done)} prompts were measured, and the data hold {len(rows)}")
    for start in range(len(done), len(rows), size):
        part, which = rows[start:start + size], numbers[start:start + size]
        found = sample(which, part)
        judged = ~np.isnan(found.rewards) & ~found.failed
        counts = np.stack([(judged & (found.rewards == 1.0)).sum(1), judged.sum(1), found.failed.sum(1),
                           found.truncated.sum(1), found.tokens.sum(1)], axis=1)
        yield [Measured(number, _mark(row), *count)
               for number, row, count in zip(which, part, counts.tolist())]


def _mark(row: Row) -> str:
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


# ---- the choice ---------------------------------------------------------------------------------


def types_of(rows: Sequence[Row], column: str) -> list[str]:
    """The type of each row, "" where it has none; ValueError where no row has the column."""
    if not any(row.get(column) is not None for row in rows):
        found = ", ".join(sorted({name for row in rows for name in row} - {"prompt_ids"}))
        raise ValueError(f"balance: no row has a column {column!r}; there are {found}")
    return ["" if row.get(column) is None else str(row[column]) for row in rows]


def choose(measured: Sequence[Measured], low: float = 0.2, high: float = 0.625,
           types: Sequence[str] | None = None, per_type: int | None = None, seed: int = 0
           ) -> list[str | None]:
    """Of each prompt why it is left out, or None. types: at most per_type of each are kept (None: as
    many as the rarest has), which of them drawn by the seed and their numbers alone."""
    reasons = [_reason(one, low, high) for one in measured]
    if types is None:
        return reasons
    inside: dict[str, list[int]] = {}
    for i, reason in enumerate(reasons):
        if reason is None:
            inside.setdefault(types[i], []).append(i)
    most = per_type or min(map(len, inside.values()), default=0)
    for group in inside.values():
        lot = [np.random.default_rng([seed, measured[i].row]).random() for i in group]
        for k in np.argsort(lot, kind="stable")[most:]:
            reasons[group[k]] = "surplus"
    return reasons


def _reason(one: Measured, low: float, high: float) -> str | None:
    rate = one.pass_rate
    if rate is None:
        return "no_verdict"
    if rate < low:
        return "all_wrong" if one.right == 0 else "too_hard"
    if rate > high:
        return "all_right" if one.right == one.judged else "too_easy"
    return None


# ---- the report ---------------------------------------------------------------------------------


def figures(measured: Sequence[Measured], reasons: Sequence[str | None],
            types: Sequence[str] | None = None) -> dict[str, Any]:
    """What was measured and kept, as JSON."""
    rates = [one.pass_rate for one in measured if one.pass_rate is not None]
    found: dict[str, Any] = {
        "prompts": len(measured), "kept": reasons.count(None),
        "all_right": sum(one.bin == 11 for one in measured),
        "all_wrong": sum(one.bin == 0 for one in measured),
        "dropped": dict(sorted(Counter(filter(None, reasons)).items())),
        "pass_rate": math.fsum(rates) / len(rates) if rates else None,
        "samples": {name: sum(getattr(one, name) for one in measured)
                    for name in ("judged", "failed", "truncated", "tokens")},
        "histogram": [{"from": max(i - 1, 0) / 10, "to": min(i, 10) / 10, "prompts": 0, "kept": 0}
                      for i in range(12)]}
    found["histogram"][0]["to"], found["histogram"][11]["from"] = 0.0, 1.0
    for one, reason in zip(measured, reasons):
        if one.bin is not None:
            found["histogram"][one.bin]["prompts"] += 1
            found["histogram"][one.bin]["kept"] += reason is None
    if types is not None:
        pairs = list(zip(types, measured, reasons))
        found["types"] = {name: {
            "prompts": types.count(name), "kept": sum(t == name and why is None for t, _, why in pairs),
            "in_interval": sum(t == name and why in (None, "surplus") for t, _, why in pairs)}
            for name in sorted(set(types))}
    return found


def describe(found: Mapping[str, Any]) -> str:
    """The figures for people: a histogram (# kept, . not), types, and what became of the rest."""
    most = max(1, *(one["prompts"] for one in found["histogram"]))
    lines = [f"{'pass rate':12}{'prompts':>9}{'kept':>9}"]
    for i, one in enumerate(found["histogram"]):
        name = f"{one['from']:.1f} to {one['to']:.1f}" if 0 < i < 11 else f"{one['from']:.0f}"
        bar, kept = (-(-_BAR * one[key] // most) for key in ("prompts", "kept"))
        lines.append(f"{name:12}{one['prompts']:9,}{one['kept']:9,}  {'#' * kept}{'.' * (bar - kept)}")
    for name, one in found.get("types", {}).items():
        lines.append(f"type {name or '(none)'}: {one['prompts']:,} prompts, {one['in_interval']:,} in the "
                     f"interval, {one['kept']:,} kept")
    samples = found["samples"]
    lines.append(f"{samples['judged']:,} samples judged; verifiers failed on {samples['failed']:,}, which are "
                 f"left out; {samples['truncated']:,} cut off by the limit of their length")
    lines.append(f"all right: {found['all_right']:,} prompts; all wrong: {found['all_wrong']:,}, among which "
                 f"are those whose answer in the data is false")
    reasons = ", ".join(f"{n:,} {why}" for why, n in found["dropped"].items())
    lines.append(f"{found['kept']:,} of {found['prompts']:,} prompts kept; dropped: {reasons or 'none'}")
    return "\n".join(lines)
