"""The solutions that come with HumanEval and MBPP pass their own tests, but for those listed here."""

import gzip
import json
import os
from pathlib import Path

import pytest

from r1grpo.layouts import LAYOUTS
from r1grpo.verifiers import verify_code
from r1grpo.verifiers.sandbox import try_level

# task_id -> why a right program cannot be seen to be right
MBPP = {367: "takes trees that the program's own class makes", 927: "takes trees, as 367",
        601: "takes objects of the program's own class", 533: "takes a type as an argument",
        596: "its test uses a module that the program imports", 414: "returns 0 where False is expected"}


def rows(name):
    folder = os.environ.get("R1GRPO_TEST_DATA")
    if not folder or not (path := Path(folder) / name).exists():
        pytest.skip(f"R1GRPO_TEST_DATA names no folder with {name}")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture(scope="module")
def level():
    for one in ("full", "restricted"):
        if try_level(one)[1]:
            return one
    pytest.skip(f"no sandbox: {try_level('full')[0]}; {try_level('restricted')[0]}")


@pytest.mark.parametrize("part", range(4))
def test_humaneval(level, part):
    for row in rows("HumanEval.jsonl.gz")[part::4]:
        task, program = row["task_id"], row["prompt"] + row["canonical_solution"]
        verdict = verify_code(program, LAYOUTS["humaneval"].convert(row)["tests"], level=level)
        assert verdict.correct, (task, verdict)


@pytest.mark.parametrize("part", range(16))
def test_mbpp(level, part):
    for row in rows("mbpp.jsonl")[part::16]:
        task, program = row["task_id"], row["code"]
        verdict = verify_code(program, LAYOUTS["mbpp"].convert(row)["tests"], level=level)
        assert verdict.correct != (task in MBPP), (task, verdict)
