"""Runs the arms on finished runs of the pipeline; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1grpo.safe_files import write_atomic
from r1grpo.stages import STAGES

from .arms import ARMS
from .figures import arm_figures, by_budget, by_votes
from .learning import draw_test
from .reference import Reference


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(found, allow_nan=False) + "\n").encode())


def measure_stages(ref: Reference, out: Path) -> None:
    """The run's own checkpoints with the arms' figures, from their stored samples."""
    for stage in [one.name for one in STAGES if one.is_policy]:
        path = out / f"seed{ref.seed}" / f"{stage}.json"
        if not path.exists():
            samples = ref.samples(stage)
            write(path, {"arm": stage, "seed": ref.seed, **arm_figures(samples),
                         "budgets": by_budget(samples), "votes": by_votes(samples)})


def run_arm(ref: Reference, name: str, path: Path) -> None:
    started = time.monotonic()
    found: dict[str, Any] = {"arm": name, "seed": ref.seed}
    model, template = ARMS[name](ref, found)
    found |= arm_figures(draw_test(ref, model, template))
    found["seconds"] = round(time.monotonic() - started, 1)
    write(path, found)
    figures = found["figures"]
    print(f"  pass@1 {figures['pass@1']:.3f}, {figures['mean_tokens']:.1f} tokens, "
          f"{found['seconds']:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations",
                                     description="the default task again with one thing changed")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs of the pipeline")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), metavar="DIR",
                        help="where DIR/seedN/ARM.json go (runs/ablations)")
    parser.add_argument("--only", action="append", choices=list(ARMS), metavar="ARM",
                        help=f"one arm (may be repeated): {', '.join(ARMS)}")
    options = parser.parse_args(arguments)
    for ref in map(Reference, options.runs):
        measure_stages(ref, options.out)
        for name in options.only or ARMS:
            path = options.out / f"seed{ref.seed}" / f"{name}.json"
            if path.exists():
                continue
            print(f"seed {ref.seed}: {name}", flush=True)
            run_arm(ref, name, path)


if __name__ == "__main__":
    main()
