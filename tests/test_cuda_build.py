"""build_cuda.py: where nvcc is looked for, and what R1GRPO_CUDA may say."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[1] / "build_cuda.py"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, on a machine without any CUDA."""
    spec = importlib.util.spec_from_file_location("build_cuda", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "build_cuda", module)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "R1GRPO_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "PLACES", ())
    monkeypatch.setattr(sys, "path", [])
    return module


def toolkit(home: Path, lib: str = "lib64", runtime: bool = True) -> Path:
    for folder in ("bin", lib):
        home.joinpath(folder).mkdir(parents=True, exist_ok=True)
    home.joinpath("bin", "nvcc").touch()
    if runtime:
        home.joinpath(lib, "libcudart_static.a").touch()
    return home


def test_the_first_nvcc_with_a_runtime(build: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                       tmp_path: Path) -> None:
    assert build.find_toolkit() is None
    wheels = toolkit(tmp_path / "site/nvidia/cu13", "lib")
    wheels.joinpath("include").mkdir()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "site")])
    found = build.find_toolkit()
    assert (found.nvcc, found.includes, found.libraries) == (
        wheels / "bin/nvcc", [wheels / "include"], [wheels / "lib"])
    usual = toolkit(tmp_path / "usual")
    monkeypatch.setattr(build, "PLACES", (usual,))
    assert build.find_toolkit().nvcc == usual / "bin/nvcc"
    wrapper = toolkit(tmp_path / "path", runtime=False)
    monkeypatch.setattr(shutil, "which", lambda name: str(wrapper / "bin" / name))
    assert build.find_toolkit().nvcc == usual / "bin/nvcc", "a script without a toolkit around it"
    home = toolkit(tmp_path / "home")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.find_toolkit() == build.Toolkit(home / "bin/nvcc", [], [home / "lib64"])


def test_the_wish(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.wish() == "auto"
    for said in ("0", "1", "auto"):
        monkeypatch.setenv("R1GRPO_CUDA", said)
        assert build.wish() == said
    monkeypatch.setenv("R1GRPO_CUDA", "yes")
    with pytest.raises(SystemExit, match="R1GRPO_CUDA is 'yes', must be one of 0, 1, auto"):
        build.wish()
