"""bench_scale.py - does cost grow as the work does?

    python -m benchmarks.bench_scale [--json FILE] [--only AXIS] [--threads N] [--quick]

    N        tokens of a training step, sequences of 256             T   length, 8,192 tokens a step
    E        experts of a layer, 2 a token                           V   vocabulary
    G        completions of a prompt (sampling)                      batch   prompts (sampling)
    threads  1 to all, the same step                                 busy    with processes that compete

`ratio` is the time over the work (operations, r1grpo/flops.py), relative to the first value of the axis:
1 is linear, below 1 better. For threads and busy it is the time relative to the first. The values of an
axis are measured in turn; medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from r1grpo import Model, ModelConfig
from r1grpo.device import get_device, set_num_threads
from r1grpo.flops import gradient_flops, sampling_flops

from .harness import Report, interleaved, options, timed
from .workloads import MODELS, NONE_ENDS

AXES = ("N", "T", "E", "V", "G", "batch", "threads", "busy")
SPIN = "while True: pass"


@dataclass
class Point:
    """One value of an axis: what to time, and how much work it is (None: the same for all)."""

    value: int
    call: Callable[[], object]
    work: float | None


def config_of(model: str, **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({**MODELS[model], **NONE_ENDS, **changes})


def ids_of(config: ModelConfig, batch: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, length)).tolist()


def training(model: Model, value: int, batch: int, length: int) -> Point:
    """A step of SFT: gradient and update."""
    ids = ids_of(model.config, batch, length)

    def step() -> None:
        model.zero_grad()
        model.sft_gradient([one[:1] for one in ids], [one[1:] for one in ids])
        model.update(0.0)
    return Point(value, step, gradient_flops(model.config, [(0, length)] * batch,
                                             batch * (length - 1)))


def sampling(model: Model, value: int, prompts: int, length: int, new: int, group: int) -> Point:
    ids = ids_of(model.config, prompts, length)
    return Point(value, lambda: model.generate(ids, num_generations=group, max_new_tokens=new,
                                               stop_token_ids=(), seed=0),
                 sampling_flops(model.config, [length] * prompts, [new] * (prompts * group)))


def points(axis: str, quick: bool) -> Iterator[tuple[str, list[Point]]]:
    """(model, values) of an axis, the first one is what the others are compared with."""
    small, tokens = ((32, 64), 256) if quick else ((512, 1024, 2048, 4096, 8192), 8192)
    models = ("tiny_moe",) if quick else ("tiny_moe", "small_dense")
    for name in models:
        model = Model(config_of(name))
        match axis:
            case "N":
                length = 16 if quick else 256
                yield name, [training(model, n, n // length, length) for n in small]
            case "T":
                lengths = (16, 32) if quick else (128, 256, 512, 1024, 2048, 4096, 8192)
                yield name, [training(model, n, tokens // n, n) for n in lengths]
            case "G":
                sizes = (1, 2) if quick else (1, 2, 4, 8, 16, 32, 64)
                yield name, [sampling(model, g, 2, *((8, 2) if quick else (256, 32)), g) for g in sizes]
            case "batch":
                sizes = (1, 2) if quick else (1, 2, 4, 8, 16, 32, 64, 128)
                yield name, [sampling(model, b, b, *((8, 2) if quick else (64, 64)), 1) for b in sizes]
            case "threads" | "busy":
                yield name, [training(model, 1, 2, 16) if quick else training(model, 1, 16, 256)]
    if axis == "E":
        counts = (4, 8) if quick else (4, 8, 16, 32, 64, 128)
        yield "tiny_moe", [training(Model(config_of("tiny_moe", n_routed_experts=e)), e,
                                    *((2, 16) if quick else (16, 256))) for e in counts]
    if axis == "V":
        counts = (64, 128) if quick else (512, 2048, 8192, 32_768, 131_072)
        yield "small_dense", [training(Model(config_of("small_dense", vocab_size=v)), v,
                                       *((2, 16) if quick else (4, 256))) for v in counts]


def with_threads(point: Point, all_threads: int) -> list[Point]:
    """The same step on 1, 2, 4, ... threads."""
    counts = sorted({1 << i for i in range(all_threads.bit_length())} | {all_threads})

    def on(n: int) -> Callable[[], object]:
        def call() -> None:
            set_num_threads(n)
            try:
                point.call()
            finally:
                set_num_threads(all_threads)
        return call
    return [Point(n, on(n), None) for n in counts if n <= all_threads]


def beside_busy(point: Point) -> list[Point]:
    """The same step alone, and beside one busy process."""
    def busy() -> None:
        other = subprocess.Popen([sys.executable, "-c", SPIN])
        try:
            point.call()
        finally:
            other.kill()
            other.wait()
    return [Point(0, point.call, None), Point(1, busy, None)]


def main(arguments: list[str] | None = None) -> None:
    args = options(__doc__, AXES, arguments=arguments)
    report = Report("scale", args.json, args.quick, get_device())
    report.title(f"{'axis':8} {'model':12} {'value':>8} {'seconds':>10} {'ratio':>7}")
    for axis in args.only:
        for name, values in points(axis, args.quick):
            if axis == "threads":
                values = with_threads(values[0], report.limits.threads)
            elif axis == "busy":
                values = beside_busy(values[0])
            for one in values:  # warms up
                one.call()
            found = interleaved({str(i): lambda one=one: timed(one.call)
                                 for i, one in enumerate(values)}, 1 if args.quick else 5)
            first = None
            for one, seconds in zip(values, found.values()):
                median = statistics.median(seconds)
                cost = median / (one.work or 1.0)
                first = first or cost
                report.add({"axis": axis, "model": name, "value": one.value, "seconds": median,
                            "measurements": seconds, "flops": one.work, "ratio": cost / first},
                           f"{axis:8} {name:12} {one.value:8} {median:10.4f} {cost / first:7.2f}")


if __name__ == "__main__":
    main()
