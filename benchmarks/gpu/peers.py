"""peers.py - part `peers`: the same work by r1grpo and by transformers with PyTorch, eager and compiled.

As in bench_peers.py every contestant has a process of its own and they are measured in turn; the GPU's
memory is shared, so all of them close when the model changes. Both sides are in bf16 and learn from 8,192 tokens
at a time; PyTorch's AdamW keeps bf16 moments then, ours float32 ones. attn is sdpa, PyTorch's own choice of a
fused kernel. What is not installed is absent.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import Worker
from benchmarks.workloads import Work

from .record import Part, Rows

LIMIT = 240.0  # seconds for one answer: a compilation may take minutes
REPEATS = {"sft": (3, 2), "generate": (2, 1), "grpo": (2, 1)}  # rounds, measurements of each: generate is slow


@dataclass(frozen=True, eq=False)
class Peer:
    """A contestant's module and what its requests say; bars: (least, aim) of its time over ours."""

    name: str
    module: str
    request: dict[str, Any] = field(default_factory=dict)


OURS = Peer("r1grpo", "ours", {"rows": 8192})
EAGER = Peer("transformers", "hf", {"attn": "sdpa", "rows": 16})
COMPILED = Peer("transformers, compiled", "hf", {"attn": "sdpa", "rows": 16, "compiled": True})
Bars = dict[Peer, tuple[float, float] | None]

TRAIN: Bars = {EAGER: (1.6, 2.0), COMPILED: (1.25, 1.5)}
WHOLE: tuple[tuple[Work, Bars], ...] = (
    (Work("sft", "qwen_0.5b", 32, 512), TRAIN),
    (Work("generate", "qwen_0.5b", 256, 384, 256), {EAGER: (10.0, 10.0)}),
    (Work("grpo", "qwen_0.5b", 64, 128, 256, 8), {EAGER: (8.0, 12.0)}),
    (Work("sft", "qwen_1.5b", 32, 512), TRAIN),
    (Work("generate", "qwen_0.5b", 1, 64, 128), {EAGER: None}))
QUICK: tuple[tuple[Work, Bars], ...] = (
    (Work("sft", "small_dense", 1, 8), {EAGER: (1.6, 2.0)}),
    (Work("generate", "small_dense", 2, 4, 2), {EAGER: (10.0, 10.0)}),
    (Work("grpo", "small_dense", 2, 4, 2, 2), {EAGER: (8.0, 12.0)}))


class Field:
    """The workers of one model."""

    def __init__(self, part: Part, device: str) -> None:
        self.part, self.device, self.model = part, device, ""
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}

    def ask(self, peer: Peer, work: Work, times: int, warm: bool) -> list[float] | None:
        """Seconds; None where the peer cannot."""
        if work.model != self.model:
            self.close()
            self.model = work.model
        if peer.name not in self.workers:
            self.workers[peer.name] = Worker(f"benchmarks.contestants.{peer.module}", 4)
        worker = self.workers[peer.name]
        found = worker.ask(work.request(dtype="bfloat16", device=self.device, times=times, warm=warm,
                                        **peer.request), limit=max(min(LIMIT, self.part.left), 1.0))
        if found is None:
            self.absent[peer.name] = worker.absent or "no answer"
            del self.workers[peer.name]  # another work may still go
            return None
        return found["seconds"]

    def close(self) -> None:
        while self.workers:
            self.workers.popitem()[1].close()


def contest(rows: Rows, field: Field, work: Work, bars: Bars, quick: bool) -> None:
    """A few measurements of each in turn, behind one that compiles and warms up, several times over."""
    rounds, times = (1, 1) if quick else REPEATS[work.kind]
    found: dict[Peer, list[float]] = {}
    for i in range(rounds):
        for peer in (OURS, *bars) if i == 0 else list(found):
            seconds = field.ask(peer, work, times, not quick)
            if seconds is not None:
                found.setdefault(peer, []).extend(seconds)
            elif i == 0:
                rows.add(who=peer.name, absent=field.absent[peer.name])
    took = {peer: statistics.median(seconds) for peer, seconds in found.items()}
    for peer, seconds in took.items():
        rows.add(who=peer.name, seconds=seconds, tokens_per_second=work.tokens / seconds, spread=found[peer])
    for peer, bar in bars.items():
        if OURS in took and peer in took:
            ratio = took[peer] / took[OURS]
            if bar is None:
                rows.add(what=f"{work.name}, over {peer.name}", value=ratio, unit="x")
            else:
                rows.bar(f"{work.name}, over {peer.name}", ratio, "x", *bar)
    if OURS not in took:
        raise RuntimeError(f"r1grpo: {field.absent.get(OURS.name)}")


def run(part: Part, device: str = "cuda", **_: str) -> None:
    field = Field(part, device)
    try:
        for work, bars in QUICK if part.quick else WHOLE:
            part.piece(work.name, contest, field, work, bars, part.quick)
    finally:
        field.close()
    part.found["absent"] = field.absent
