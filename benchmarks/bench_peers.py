"""bench_peers.py - the same work by r1grpo, PyTorch with transformers, TRL's GRPOTrainer and llama.cpp.

    python -m benchmarks.bench_peers [--json FILE] [--only PART] [--rounds N] [--threads N] [--quick]

Every contestant runs in a process of its own, and in turn with the others: one round is a few
measurements of each, medians are over all rounds (at least 5 measurements). A peer stands in its best
configuration: its dtypes, attention and expert implementations are tried first, those within a third of
the fastest of their dtype go on to the rounds. Peers in bf16 run twice: as they come, with whatever the
processor has (AMX), and with oneDNN held to AVX-512 (`no AMX`). A model of half a billion parameters is
trained in one process at a time; its parts take many minutes. What is not installed is reported as absent.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from r1grpo.device import get_device

from .harness import Report, Row, Worker, options
from .workloads import MODELS, Work, works

MODULES = {"r1grpo": "ours", "transformers": "hf", "trl": "trl_grpo", "llama.cpp": "llama"}
ISA = {"": {}, "no AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}}
DTYPES = ("float32", "bfloat16")
LARGE = "qwen_0.5b"

# work -> our dtype, peer, its dtype (best: the faster one), ratio that must hold, aim
BARS: tuple[tuple[str, str, str, str, float, float | None], ...] = (
    ("qwen_0.5b sft 2 x 512", "bfloat16", "transformers", "best", 1.8, 2.1),
    ("qwen_0.5b sft 2 x 512", "float32", "transformers", "float32", 1.4, 1.55),
    ("small_dense sft 16 x 256", "float32", "transformers", "float32", 1.4, 1.6),
    ("small_dense sft 16 x 256", "bfloat16", "transformers", "bfloat16", 1.4, 1.6),
    ("tiny_moe sft 16 x 256", "best", "transformers", "best", 1.8, 3.0),
    *((f"tiny_moe generate batch {n}, 64 + 128", "best", "transformers", "best", least, aim)
      for n, least, aim in ((1, 20.0, 45.0), (32, 12.0, 20.0), (128, 8.0, 15.0))),
    *((f"qwen_0.5b generate batch {n}, 64 + 32", "bfloat16", "transformers", "best", least, aim)
      for n, least, aim in ((1, 3.4, 4.0), (8, 4.0, 4.8), (32, 3.1, 3.6))),
    *((f"qwen_0.5b generate batch {n}, 64 + 32", "bfloat16", "llama.cpp", "bfloat16", least, aim)
      for n, least, aim in ((1, 1.4, 1.7), (8, 1.4, 1.7), (32, 1.3, 1.5))),
    ("tiny_moe grpo 8 x 8, 64 + 128", "best", "trl", "best", 5.0, 10.0),
    ("qwen_0.5b grpo 4 x 8, 64 + 128", "best", "trl", "best", 2.2, 3.0))


@dataclass
class Entry:
    """A contestant in one configuration, and what it took: seconds of every measurement."""

    who: str
    isa: str
    dtype: str
    how: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join([self.who, self.dtype, *map(str, self.how.values()), self.isa]).strip()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def entries(work: Work, quick: bool) -> Iterator[Entry]:
    """Who takes part, in every configuration."""
    for dtype in DTYPES:
        yield Entry("r1grpo", "", dtype)
    peer = "trl" if work.kind == "grpo" else "transformers"
    experts = ("eager", "grouped_mm", "batched_mm") if work.kind == "generate" else \
        ("eager", "grouped_mm")
    for dtype in DTYPES[:1] if quick else DTYPES:
        for isa in ISA if dtype == "bfloat16" else ("",):
            for attn in ("sdpa",) if quick else ("eager", "sdpa"):
                for how in [{"experts": one} for one in experts[:1 if quick else None]] \
                        if "n_routed_experts" in MODELS[work.model] else [{}]:
                    yield Entry(peer, isa, dtype, {"attn": attn, **how})
    if work.kind == "generate" and work.model == LARGE:
        yield Entry("llama.cpp", "", "bfloat16")


class Field:
    """The workers, opened when they are asked: one for each contestant and dtype. Where a large model
    is trained only one lives at a time."""

    def __init__(self, threads: int) -> None:
        self.threads, self.workers = threads, {}
        self.absent: dict[str, str] = {}
        self.model = ""  # whose models the workers have open

    def ask(self, entry: Entry, work: Work, times: int, warm: bool) -> list[float] | None:
        """Seconds of `times` pieces of the work; None where the contestant cannot."""
        key, large = (entry.who, entry.isa, entry.dtype), heavy(work)
        if entry.who in self.absent:
            return None
        if large or work.model != self.model:
            self.close(but=key if work.model == self.model else None)
        self.model = work.model
        if key not in self.workers:
            self.workers[key] = Worker(f"benchmarks.contestants.{MODULES[entry.who]}", self.threads,
                                       **ISA[entry.isa])
            if self.workers[key].absent:
                self.absent[entry.who] = self.workers[key].absent
        found = self.workers[key].ask(work.request(
            dtype=entry.dtype, times=times, warm=warm,
            micro=8 if work.model == LARGE else 0, **entry.how))
        if found is None:
            print(f"  {entry.name}: {self.workers[key].absent}", flush=True)
            del self.workers[key]
            return None
        if large:
            self.close()
        return found["seconds"]

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, but: tuple[str, str, str] | None = None) -> None:
        for key in [key for key in self.workers if key != but]:
            self.workers.pop(key).close()


def heavy(work: Work) -> bool:
    """Does it take most of a machine's memory?"""
    return work.model == LARGE and work.kind != "generate"


def contest(field: Field, work: Work, rounds: int, quick: bool) -> list[Entry]:
    """All entries that can, those worth it measured `rounds` times over."""
    tried = []
    for entry in entries(work, quick):
        entry.seconds = field.ask(entry, work, 1 if quick or heavy(work) else 3, not quick) or []
        if entry.seconds:
            tried.append(entry)
            print(f"  tried {entry.name:44} {min(entry.seconds):9.4f} s", flush=True)
    if quick:
        return tried
    chosen = [one for one in tried if min(one.seconds) <= 4 / 3 * min(
        min(other.seconds) for other in tried
        if (other.who, other.isa, other.dtype) == (one.who, one.isa, one.dtype))]
    for one in chosen:
        one.seconds.clear()  # the rounds alone count
    large = heavy(work)  # opening it takes as long as a measurement: fewer rounds of more
    for _ in range((rounds + 1) // 2 if large else rounds):
        for one in chosen:
            one.seconds += field.ask(one, work, 2 if large else 3, warm=large) or []
    return [one for one in tried if one.seconds]


def best(found: list[Entry], who: str, dtype: str, isa: str = "") -> Entry | None:
    """The fastest configuration of a contestant; `no AMX` bars bf16 with it, float32 has none anyway."""
    mine = [one for one in found if one.who == who and dtype in ("best", one.dtype)
            and (one.isa == isa or one.dtype == "float32" or one.who == "llama.cpp")]
    return min(mine, key=lambda one: one.median, default=None)


def ratios(work: Work, found: list[Entry]) -> Iterator[Row]:
    """What is promised of this work, against the peer as it comes and against it without AMX."""
    for name, dtype, peer, their_dtype, least, aim in BARS:
        ours = best(found, "r1grpo", dtype)
        for isa in ISA:
            theirs = best(found, peer, their_dtype, isa)
            if name == work.name and ours and theirs and (isa == theirs.isa or not isa):
                yield {"bar": name, "ours": ours.name, "theirs": theirs.name, "isa": isa,
                       "ratio": theirs.median / ours.median, "least": least, "aim": aim}


def show(report: Report, work: Work, found: list[Entry]) -> None:
    """The entries of a piece of work, the fastest first, and what they say of the bars."""
    for one in sorted(found, key=lambda one: one.median):
        row = {"work": work.name, "who": one.who, "isa": one.isa, "dtype": one.dtype, **one.how,
               "seconds": one.median, "measurements": one.seconds,
               "tokens_per_second": work.tokens / one.median}
        report.add(row, f"  {one.name:50} {one.median:9.4f} s {row['tokens_per_second']:10.1f} "
                   f"tokens/s   {len(one.seconds)} measurements")
    for row in ratios(work, found):
        print(f"  {row['ours']} is {row['ratio']:.2f} x {row['theirs']}  (bar {row['least']}, "
              f"aim {row['aim']})", flush=True)


def main(arguments: list[str] | None = None) -> None:
    args = options(__doc__, tuple(work.name for work in works()),
                   ("--rounds", {"type": int, "default": 5}), arguments=arguments)
    report = Report("peers", args.json, args.quick, get_device())
    found_ratios: list[Row] = []
    with Field(report.limits.threads) as field:
        for work in works(args.quick):
            if args.quick or work.name in args.only:
                report.title(work.name)
                found = contest(field, work, args.rounds, args.quick)
                show(report, work, found)
                found_ratios += ratios(work, found)
                report.save(ratios=found_ratios, absent=field.absent)
    if found_ratios:
        report.title(f"{'work':42} {'ours':18} {'theirs':40} {'ratio':>6} {'least':>6} {'aim':>5}")
    for row in found_ratios:
        print(f"{row['bar']:42} {row['ours']:18} {row['theirs']:40} {row['ratio']:6.2f} "
              f"{row['least']:6} {row['aim']:>5}")
    for who, why in field.absent.items():
        print(f"absent: {who}: {why}")


if __name__ == "__main__":
    main()
