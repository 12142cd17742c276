"""The op tests on the emulated GPU once more, with the kernels under AddressSanitizer: an access beyond an allocation
of the device, or beyond a block's shared memory, ends them. Two processes at a time, which preload the
sanitizer's library; the C core is as it is (.ci/sanitize has that too, models and UBSan)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_emulation

TESTS = Path(__file__).parent
HALVES = (("attention", "mla", "rope", "adamw", "emulation", "balance", "rmsnorm", "embed", "advantage_op"),
          ("matmul", "matmul_sizes", "sample", "logp", "router", "dispatch", "rows", "swiglu", "token_loss",
           "score_loss"))
# Every thread of a GPU is a stack of its own: to poison frames that have returned would take most of the time.
OPTIONS = "detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=0:allocator_may_return_null=1"


def library() -> str:
    """Path of the compiler's libasan; skips where there is none."""
    compiler = cuda_emulation.CXX[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    path = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(path):
        pytest.skip(f"{compiler} has no libasan")
    return path


def fixed_addresses() -> list[str]:
    """A program's prefix, where it may: some compilers' sanitizers do not expect as random a space as some kernels
    make."""
    prefix = ["setarch", "-R"]
    allowed = shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if allowed else []


@pytest.mark.skipif("address" in cuda_emulation.SANITIZE, reason="everything runs under it")
def test_the_op_tests_under_asan() -> None:
    path, environment = library(), {**os.environ, "R1GRPO_SANITIZE": "address", "PYTHONPATH": str(TESTS.parent),
                                    "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ASAN_OPTIONS": OPTIONS}
    build = "import cuda_emulation as e; e.build('_cuda', e.backend()); e.build_probes()"
    subprocess.run([sys.executable, "-c", build], cwd=TESTS, env=environment, check=True)
    environment["LD_PRELOAD"] = path
    runs = [subprocess.Popen([*fixed_addresses(), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                              "-k", "emulat", *(f"tests/test_{name}.py" for name in half)],
                             cwd=TESTS.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace") for half in HALVES]
    for run, text in [(run, run.communicate()[0]) for run in runs]:
        assert run.returncode == 0, text[-6000:]
        assert " passed" in text
