"""What the documents say about the code: commands, tree, examples, links, names of tests.

A document that rots is worse than none. Knows nothing about whether the prose is good.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOPS = ("csrc/", "kernels/", "r1grpo/")  # folders whose files the README's tree has, one a line
RESULTS = re.compile(r"<!-- results:begin -->.*?<!-- results:end -->", re.DOTALL)


def commands() -> list[str]:
    """The command lines of the README's first screen that set everything up."""
    return re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)


def test_the_two_commands() -> None:
    run, tests = commands()
    assert run.endswith(" .venv/bin/r1grpo pipeline") and tests.endswith(" .venv/bin/pytest")


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == commands()[1]


def test_command_line_examples_parse() -> None:
    """Every `r1grpo ...` line of the README is one that the command line knows."""
    from r1grpo.cli import _parser

    lines = re.findall(r"\.venv/bin/r1grpo (.+)$", README, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True))


def tree() -> set[str]:
    """The paths of the README's annotated tree."""
    block = re.search(r"^```\n(csrc/\n.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block
    paths, folder = set(), ""
    for line in block[1].splitlines():
        name, _, words = line.strip().partition(" ")
        if not line.startswith(" "):
            folder = name if name in TOPS else ""
            if folder:
                continue
        assert words.strip(), f"the tree says nothing about {name}"
        paths.add((folder if line.startswith(" ") else "") + name)
    return paths


def test_the_tree_is_the_tree() -> None:
    files = {str(path.relative_to(ROOT)) for top in TOPS for path in (ROOT / top).rglob("*")
             if path.is_file() and path.suffix in (".c", ".h", ".cu", ".cuh", ".py", ".pyi", ".toml", ".typed")}
    stated = {path for path in tree() if path.startswith(TOPS)}
    assert sorted(files - stated) == [], "files that the README's tree misses"
    assert sorted(stated - files) == [], "files of the README's tree that are not there"
    for path in tree() - stated:
        assert (ROOT / path).exists(), path


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_python_examples_run(number: int) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", examples()[number]], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = done.stdout.split("\n")[-2]
    if number == 0:
        assert float(last) > 0.9
    else:
        assert last.startswith("0.0 over ")


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_named_files_exist() -> None:
    """`csrc/...`, `r1grpo/...`, `tests/...` in a document are files of the project."""
    pattern = re.compile(r"`((?:csrc|r1grpo|tests|benchmarks|notebooks|docs)/[\w./-]+\.\w+)")
    for document in DOCUMENTS:
        for path in pattern.findall(document.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


def named_tests() -> list[tuple[str, str]]:
    """(test file, test function) as docs/pitfalls.md and docs/numerics.md name them."""
    pattern = re.compile(r"`(test_\w+)::(test_\w+)`")
    texts = [(ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
             for name in ("pitfalls", "numerics")]
    return [found for text in texts for found in pattern.findall(text)]


def test_named_tests_exist() -> None:
    names = named_tests()
    assert len(names) > 30
    for file, function in names:
        path = ROOT / "tests" / f"{file}.py"
        assert path.exists() and f"def {function}(" in path.read_text(encoding="utf-8"), \
            f"{file}::{function} is named in the documents and is not there"


def test_every_pitfall_names_its_test() -> None:
    text = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\*\*.+?(?=^\*\*|^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(entries) > 20
    for entry in entries:
        assert re.search(r"`test_\w+::test_\w+`", entry), entry


def ops() -> set[str]:
    """The ops of the table, without device, memory, graphs and the handling of weights."""
    header = (ROOT / "csrc" / "ops.h").read_text(encoding="utf-8")
    found = set(re.findall(r"\(\*(\w+)\)\(", header))
    assert len(found) > 40
    return {op for op in found if not op.startswith(("dev_", "mem_", "graph_", "weight_"))} - {"logp_scratch"}


def test_every_op_has_its_equation() -> None:
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    assert [op for op in sorted(ops()) if f"`{op}`" not in text] == []


def test_every_op_has_a_benchmark_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, at the smaller size; no time is looked at."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.op_cases import Bench
    from r1grpo import _core

    bench = Bench(_core.Device(threads=2))
    cases = [*bench.flop_cases(), *bench.byte_cases()]
    cases += [(f"matmul_{kind}", lambda n, kind=kind: bench.matmul(kind, n, 16, 24), (8, 16))
              for kind in ("nt", "nn", "tn")]
    for name, make, sizes in cases:
        call, work, shape = make(sizes[0])
        call()
        assert work > 0 and shape, name
    named = {name.split(",")[0] for name, *_ in cases}
    assert sorted(ops() - named) == []


def test_results_are_from_a_run_that_can_be_named() -> None:
    """The table in the README says which run it is from; until there is one it says nothing."""
    [block] = RESULTS.findall(README)
    lines = block.splitlines()[1:-1]
    assert not lines or (any("seed" in line for line in lines)
                         and any("max_logprob_gap" in line for line in lines))


def test_nothing_of_the_writers_machine() -> None:
    for document in [*DOCUMENTS, ROOT / ".ci" / "run"]:
        text = document.read_text(encoding="utf-8")
        assert not re.search(r"/(work|home|root)/", text), document.name
        assert not re.search(r"\b(TODO|FIXME|TBD)\b", text), document.name
