"""Ids of the hub: the cache first, the net for what it lacks, a clear error without either."""

import sys
import types
from pathlib import Path

import pytest

from models import make
from r1grpo import Model
from r1grpo.folder import model_and_tokenizer
from r1grpo.hub import find_folder


class Missing(Exception):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """A stand-in for huggingface_hub; tmp_path/cache and tmp_path/net are what it has."""
    asked = []

    def snapshot_download(name, revision, allow_patterns, ignore_patterns, local_files_only):
        asked.append((name, revision, local_files_only))
        folder = tmp_path / ("cache" if local_files_only else "net")
        if not folder.exists():
            raise Missing("nothing there") if local_files_only else OSError("no route")
        return str(folder)

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.snapshot_download, errors.LocalEntryNotFoundError = snapshot_download, Missing
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


def test_the_cache_then_the_net(calls: list, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="org/name .revision main.*no route"):
        Model.from_pretrained("org/name")
    make("dense").save_pretrained(tmp_path / "net")
    Model.from_pretrained("org/name", revision="v1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/config.json").write_text("{}")  # half a model, as other programs leave it
    Model.from_pretrained("org/name")
    assert [one[1:] for one in calls] == [(None, True), (None, False), ("v1", True), ("v1", False),
                                          (None, True), (None, False)]
    make("dense").save_pretrained(tmp_path / "cache")
    calls.clear()
    Model.from_pretrained("org/name")
    assert calls == [("org/name", None, True)]


def test_paths_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make("dense").save_pretrained("org/name")
    assert find_folder("org/name", None, lambda folder: False) == Path("org/name")
    with pytest.raises(ValueError, match="revision 'v1' is for ids of the hub"):
        Model.from_pretrained("org/name", revision="v1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"other/name is no folder here.*r1grpo\[hub\]"):
        Model.from_pretrained("other/name")


def test_a_trainer_takes_the_tokenizer_of_a_hub_id_too(calls: list, tmp_path: Path) -> None:
    make("dense").save_pretrained(tmp_path / "cache")
    (tmp_path / "cache/tokenizer.json").write_text("no tokenizer")
    with pytest.raises(ValueError, match="tokenizer.json"):
        model_and_tokenizer("org/name", None)
    mine = object()
    model, given = model_and_tokenizer("org/name", mine)
    assert isinstance(model, Model) and given is mine
