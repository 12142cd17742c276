"""The notebooks: committed with outputs, and every cell still runs.

grpo_by_hand.ipynb runs as it is; its assert cells compare hand and engine. r1_pipeline.ipynb runs
with the sizes below, put in behind its cell tagged `parameters`, so that it takes seconds instead of
minutes: every line works, its figures mean nothing. Running them needs the `test` extra.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat (the test extra)")

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = ("grpo_by_hand", "r1_pipeline")
SMALL = {"documents": 24_000, "epochs": 1, "prompts": 2, "zero": 4, "edit": 4, "reasoning": 4,
         "final": 4, "problems": 1000, "test": 20}
LARGEST = 300_000  # bytes of a notebook with its outputs


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: Any, folder: Path) -> list[str]:
    """Run all cells in a fresh kernel of this Python; returns what each cell printed."""
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs nbclient")
    pytest.importorskip("ipykernel", reason="running notebooks needs ipykernel")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(folder)}}).execute()
    return [printed(cell) for cell in code_cells(notebook)]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(one.text for one in cell.outputs if one.output_type == "stream")


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", printed(cell)
    source = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(source.encode()) < LARGEST
    assert not re.findall(r"/(?:home|root|tmp|work|usr|Users)/\S*", source)


def test_grpo_by_hand_runs(tmp_path: Path) -> None:
    output = "\n".join(execute(read("grpo_by_hand"), tmp_path))
    assert re.search(r"largest gap over \d+ tokens: 0\.0\n", output)
    assert "weights equal, bit for bit: True" in output


def test_r1_pipeline_runs(tmp_path: Path) -> None:
    notebook = read("r1_pipeline")
    at = [i for i, cell in enumerate(notebook.cells)
          if "parameters" in cell.metadata.get("tags", ())]
    assert len(at) == 1
    sizes = ast.parse(notebook.cells[at[0]].source).body[0].value.keywords  # of dict(...)
    assert {size.arg for size in sizes} == SMALL.keys()
    notebook.cells.insert(at[0] + 1, nbformat.v4.new_code_cell(f"SIZE = {SMALL!r}"))
    output = "\n".join(execute(notebook, tmp_path))
    stages = ("base", "r1_zero", "cold_start", "reasoning_rl", "rejection_sft", "r1")
    assert all(re.search(rf"^{stage} +[01]\.\d\d ", output, re.M) for stage in stages)
    gaps = re.findall(r"gap between sampler and trainer: (\S+) over ([\d,]+) tokens", output)
    assert len(gaps) == 4
    assert all(gap == "0.0" and int(tokens.replace(",", "")) > 0 for gap, tokens in gaps)
