"""bench_step.py - whole steps: training, sampling, and both with a reward in between.

    python -m benchmarks.bench_step [--json FILE] [--only PART] [--threads N] [--quick]

The work of workloads.py in float32 and bf16. Tokens a second are those trained on (sft), drawn
(generate) or sampled and trained on, prompts included (grpo); GFLOP/s counts what the work needs
(r1grpo/flops.py), and `peak` is its share of what the tier's instruction reaches in registers.
`read` is, for sampling with a dense model, the share of reading memory that its matrices need, once a
step for the whole batch: at batch 1 that is the limit.
"""

from __future__ import annotations

import statistics
from typing import Any

from r1grpo import ModelConfig
from r1grpo.device import get_device
from r1grpo.flops import forward_flops, gradient_flops, sampling_flops

from .contestants import ours
from .harness import Report, options
from .workloads import MODELS, Work, works

DTYPES = ("float32", "bfloat16")


def flops_of(work: Work) -> float:
    """Operations of one piece of the work."""
    config = ModelConfig.from_dict(MODELS[work.model])
    if work.kind == "sft":
        return gradient_flops(config, [(0, work.length)] * work.batch,
                              work.batch * (work.length - 1))
    n = work.batch * max(work.group, 1)
    found = sampling_flops(config, [work.length] * work.batch, [work.new] * n)
    if work.kind == "grpo":
        group = [(0, work.length + work.new)] + [(work.length, work.new)] * (work.group - 1)
        found += gradient_flops(config, group * work.batch, n * work.new)  # one prompt a group
    return found


def read_of(work: Work, dtype: str) -> float | None:
    """Bytes of matrices that sampling reads, every one of a dense model once a step; else None."""
    config = ModelConfig.from_dict(MODELS[work.model])
    if work.kind != "generate" or config.n_routed_experts:
        return None
    numbers = forward_flops(config, [(0, 1)], 1) / 2  # a multiply-add each
    return work.new * numbers * (2 if dtype == "bfloat16" else 4)


def measure(report: Report, work: Work, dtype: str, times: int) -> None:
    """One row."""
    found = ours.answer(work.request(dtype=dtype, times=times, warm=not report.quick))
    seconds = statistics.median(found["seconds"])
    parts = {name: statistics.median(values) for name, values in found["parts"].items()}
    flops, size = flops_of(work), read_of(work, dtype)
    row: dict[str, Any] = {
        "work": work.name, "kind": work.kind, "model": work.model, "dtype": dtype,
        "seconds": seconds, "spread": found["seconds"], "parts": parts,
        "tokens_per_second": work.tokens / seconds, "gflops": flops / seconds / 1e9,
        "peak": flops / seconds / report.limits.flops(dtype),
        "read": None if size is None else size / seconds / report.limits.read}
    read = "" if row["read"] is None else f"{row['read']:.0%}"
    report.add(row, f"{work.name:42} {dtype:9} {seconds:9.4f} {row['tokens_per_second']:10.0f} "
               f"{row['gflops']:8.1f} {row['peak']:5.0%} {read:>5}  "
               + ", ".join(f"{name} {part:.4f}" for name, part in parts.items()))


def main(arguments: list[str] | None = None) -> None:
    args = options(__doc__, tuple(dict.fromkeys(work.model for work in works())), arguments=arguments)
    report = Report("step", args.json, args.quick, get_device())
    report.title(f"{'work':42} {'dtype':9} {'seconds':>9} {'tokens/s':>10} {'GFLOP/s':>8} {'peak':>5} "
                 f"{'read':>5}  parts")
    for work in works(args.quick):
        if work.model in args.only:
            report.measure_limits_again()
            for dtype in DTYPES:
                large = work.model == "qwen_0.5b"
                measure(report, work, dtype, 1 if args.quick else 5 if large else 7)


if __name__ == "__main__":
    main()
