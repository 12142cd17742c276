"""doctor.py - what `r1grpo doctor` prints: what is installed, what the engine will use.

Never fails: what is missing is said, with the reason, in the line where it would stand. Knows
nothing about runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from . import __version__
from .verifiers.sandbox import try_level

# module -> (distribution, what it would be used for)
_OPTIONAL = {"pyarrow": ("pyarrow", "data in .parquet"),
             "huggingface_hub": ("huggingface_hub", "models by their id of the hub"),
             "math_verify": ("math-verify", "answers that take algebra to compare"),
             "lingua": ("lingua-language-detector", "languages of one script told apart"),
             "reasoning_gym": ("reasoning-gym", "data gym:NAME"),
             "tensorboardX": ("tensorboardX", "report_to tensorboard"),
             "wandb": ("wandb", "report_to wandb"), "trackio": ("trackio", "report_to trackio"),
             "IPython": ("ipython", "live curves in notebooks")}
_REQUIRED = ("jinja2", "numpy", "tokenizers", "tqdm")


def examine(folder: str | Path = ".") -> list[tuple[str, str]]:
    """(what, finding), one a line."""
    lines = [("r1grpo", __version__),
             ("Python", f"{platform.python_version()} ({platform.python_implementation()}, "
                        f"{sys.platform}, {platform.machine()})"),
             ("Python's compiler", platform.python_compiler())]
    lines += [(name, _version(name) or "missing: pip install r1grpo brings it")
              for name in _REQUIRED]
    lines += _engine()
    lines += [(name, f"{_version(name) or 'found'}" if importlib.util.find_spec(module)
               else f"not found (optional: {purpose})")
              for module, (name, purpose) in _OPTIONAL.items()]
    lines.append(("sandbox", sandbox()))
    free = shutil.disk_usage(folder).free
    return [*lines, ("free disk here", f"{free / 2**30:.1f} GiB")]


def sandbox() -> str:
    """The strongest level for generated programs, and why it is not a stronger one."""
    missing = ""
    for level in ("full", "restricted"):
        found, works = try_level(level)
        if works:
            return f"{level} ({found}){missing}"
        missing += f"; {level}: {found}"
    return f"none: no code rewards{missing}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _engine() -> list[tuple[str, str]]:
    try:
        core = importlib.import_module("._core", __package__)
        devices = importlib.import_module(".device", __package__)
        device = devices.get_device()
    except (ImportError, OSError, RuntimeError) as error:
        return [("engine", f"does not load: {error}")]
    return [("engine", "loads"), ("device", device.name),
            ("kernel tier", f"{device.tier} (available: {', '.join(core.tiers())})"),
            ("threads", str(device.threads)),
            ("peak", ", ".join(f"{devices.peak_flops(dtype) / 1e9:,.0f} GFLOP/s {dtype}"
                               for dtype in ("float32", "bfloat16"))),
            *_gpus()]


def _gpus() -> list[tuple[str, str]]:
    cuda = importlib.import_module(".cuda", __package__)
    found = cuda.open_cublaslt() or "not found: pip install 'r1grpo[cuda]', or set CUDA_HOME"
    try:
        text, free, total = cuda.describe_gpu()
        line = f"{text}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    except RuntimeError as error:
        return [("CUDA", str(error).removeprefix("device 'cuda': "))]
    return [("CUDA", line), ("cuBLASLt", found)]
