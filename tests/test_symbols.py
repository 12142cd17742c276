"""The shared objects' symbols, and the typed face of the extension beside what it really holds."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import r1grpo
from r1grpo import _core

needs_nm = pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux",
                              reason="needs binutils")


def symbols(option: str, library: str = _core.__file__) -> list[str]:
    shown = subprocess.run(["nm", "-D", option, library], check=True, capture_output=True,
                           text=True).stdout
    return [line.split()[-1].split("@")[0] for line in shown.splitlines()]


@pytest.fixture(params=["_core", "_cuda"])
def library(request: pytest.FixtureRequest) -> str:
    found = sorted(Path(_core.__file__).parent.glob(f"{request.param}.*.so"))
    return str(found[0]) if found else pytest.skip(f"this build has no {request.param}")


@needs_nm
def test_only_the_init_function_is_visible(library: str) -> None:
    assert symbols("--defined-only", library) == [f"PyInit_{Path(library).name.split('.')[0]}"]


@needs_nm
def test_nothing_of_ours_is_missing(library: str) -> None:
    """Python's symbols are unresolved until it is loaded, so the linker would not tell."""
    missing = symbols("--undefined-only", library)
    ours = re.compile(r"r1_|cpu_|avx|baseline|.*_cuda$|_Z")  # _Z: C++, whose library is not linked
    assert [name for name in missing if ours.match(name)] == []
    assert any(name.startswith("Py") for name in missing)


@needs_nm
def test_the_cuda_backend_needs_nothing_of_cuda_to_load() -> None:
    """The driver is opened at run time; a machine without one can import, and is told why not."""
    if not list(Path(_core.__file__).parent.glob("_cuda.*.so")):
        pytest.skip("this build has no _cuda")
    script = """
import r1grpo._cuda, r1grpo.device
try:
    print(r1grpo.device.get_device("cuda").name)
except RuntimeError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(("cuda/", "refused: "))


@needs_nm
def test_the_core_neither_prints_nor_exits_nor_reads_the_environment() -> None:
    forbidden = {"printf", "fprintf", "puts", "putchar", "perror", "exit", "_exit", "abort", "getenv",
                 "setenv", "fopen", "open", "system", "popen", "rand", "srand", "time"}
    if any(name.startswith(("__asan", "__tsan", "__ubsan")) for name in symbols("--undefined-only")):
        pytest.skip("a sanitizer's build has symbols of its own")
    assert set(symbols("--undefined-only")) & (forbidden - ALLOWED) == set()


ALLOWED = {"fopen"}  # bind/cpus.c reads the quota of the control group; it is not the core


def stub() -> ast.Module:
    return ast.parse(Path(r1grpo.__file__).with_name("_core.pyi").read_text())


def test_the_stub_names_what_there_is() -> None:
    nodes = [n for n in stub().body if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    real = {name for name in vars(_core) if not name.startswith("__")}
    assert {n.name for n in nodes} == real
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            inside = {n.name for n in node.body if isinstance(n, ast.FunctionDef)} - {"__new__"}
            public = {n for n in vars(getattr(_core, node.name)) if not n.startswith("__")}
            assert inside == public, node.name


def test_the_stub_has_the_parameters_of_the_docstrings() -> None:
    """A function's __text_signature__ lists its parameters in order; so does the stub."""
    checked = 0
    for owner, node in functions():
        if node.decorator_list:  # a property
            continue
        real = getattr(owner, node.name).__text_signature__
        names = [a.arg.rstrip("_") for a in (*node.args.posonlyargs, *node.args.args)]
        shown = re.sub(r"[()/\s]", "", real).replace("$self", "self").strip(",").split(",")
        shown = [n for n in shown if n not in ("self", "")]
        assert shown == [n for n in names if n != "self"], node.name
        checked += 1
    assert checked > 40


def functions() -> list[tuple[object, ast.FunctionDef]]:
    """Functions of the stub with what holds them: the module, or a type."""
    found: list[tuple[object, ast.FunctionDef]] = []
    for node in stub().body:
        if isinstance(node, ast.FunctionDef):
            found.append((_core, node))
        elif isinstance(node, ast.ClassDef):
            found += [(getattr(_core, node.name), n) for n in node.body
                      if isinstance(n, ast.FunctionDef) and n.name != "__new__"]
    return found


def test_functions_named_like_their_modules_stay_functions() -> None:
    """Importing the module `r1grpo.distill` must not hide the function of that name."""
    script = """
import r1grpo
first = r1grpo.distill
import r1grpo.distill, r1grpo.evaluate, r1grpo.pipeline
from r1grpo import distill, evaluate
from r1grpo.evaluate import recompute
assert first is distill is r1grpo.distill and evaluate is r1grpo.evaluate
assert all(callable(one) for one in (distill, evaluate, recompute))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
