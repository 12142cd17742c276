"""The command line: see the package's own words."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.gpu as package

from .facts import machine, pins
from .record import Part

MODULES = {"build": "build", "test": "checks", "sanitize": "sanitize", "bench": "speed", "peers": "peers"}


def main(arguments: Sequence[str] | None = None, **target: str) -> int:
    """One part; its exit code. target: where the emulated GPU stands in (tests/test_gpu_benchmark.py)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu",
                                     description=package.__doc__.splitlines()[0])
    parser.add_argument("--part", required=True, choices=MODULES)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="PART.json goes there")
    parser.add_argument("--quick", action="store_true", help="does it run? No figure means anything")
    parser.add_argument("--minutes", type=float, default=7.5, help="no piece is begun later (7.5)")
    args = parser.parse_args(arguments)
    part = Part(args.part, args.out, 60 * args.minutes, args.quick)
    part.found["facts"] = machine()
    try:
        if args.part != "build":  # which makes what this needs
            from r1grpo.cuda import describe_gpu
            from r1grpo.device import get_device

            from .facts import cublaslt

            get_device("cuda")
            part.found["facts"] |= {"device": describe_gpu()[0], "cublaslt": cublaslt()}
    except (ImportError, RuntimeError) as error:
        part.refuse(f"{error}; --part build first" if isinstance(error, ImportError) else str(error))
        return part.finish()
    importlib.import_module(f".{MODULES[args.part]}", __package__).run(part, **target)
    part.found["facts"] |= {"gpu_at_the_end": machine()["gpu"], "pins": pins() if args.part != "build" else None}
    return part.finish()


if __name__ == "__main__":
    sys.exit(main())
