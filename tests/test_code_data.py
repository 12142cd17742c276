"""The solutions that come with HumanEval and MBPP pass their own tests, but for those listed here."""

import pytest
from real_data import data_file

from r1grpo.json_rows import open_text, read_lines
from r1grpo.layouts import LAYOUTS
from r1grpo.verifiers import verify_code

# task_id -> why a right program cannot be seen to be right
MBPP = {367: "takes trees that the program's own class makes", 927: "takes trees, as 367",
        601: "takes objects of the program's own class", 533: "takes a type as an argument",
        596: "its test uses a module that the program imports", 414: "returns 0 where False is expected"}


def rows(name):
    with open_text(data_file(name)) as stream:
        return [row for _, row in read_lines(stream, name)]


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
