"""real_data.py - published datasets that some tests read; they are no part of the project.

R1GRPO_TEST_DATA names a folder with gsm8k_train.jsonl, deepscaler_math_train.json, SVAMP.json,
mbpp.jsonl and HumanEval.jsonl.gz. Without it these tests are skipped, and say so.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_file(name: str) -> Path:
    """The file of that name, or the test is skipped."""
    folder = os.environ.get("R1GRPO_TEST_DATA")
    if not folder:
        pytest.skip("R1GRPO_TEST_DATA names no folder with datasets")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
