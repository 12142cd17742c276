"""report_to: what each package is told, and that none of them can spoil a run."""

import sys
from types import ModuleType

import numpy as np
import pytest
from fakes import FakeModel

from r1grpo.config import ConfigError, GRPOConfig, SFTConfig
from r1grpo.sft import SFTTrainer
from r1grpo.trackers import TRACKERS, TrackerWarning, open_trackers

ROWS = [{"prompt_ids": [1], "completion_ids": [i, 2]} for i in (3, 4, 5, 6)]


class Package(ModuleType):
    """Stands in for all three packages and notes every call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            self.calls.append((name, args, options))
            return self if name in ("init", "SummaryWriter") else None
        return call

    def named(self, name):
        return [(args, options) for called, args, options in self.calls if called == name]


@pytest.fixture
def packages(monkeypatch):
    made = {}
    for name, tracker in TRACKERS.items():
        made[name] = Package(tracker.package)
        monkeypatch.setitem(sys.modules, tracker.package, made[name])
    return made


def train(report_to, folder, **options):
    args = SFTConfig(report_to=report_to, output_dir=str(folder), max_steps=3,
                     per_device_train_batch_size=2, learning_rate=0.1, **options)
    trainer = SFTTrainer(FakeModel(8), args, ROWS)
    return trainer.train()


def test_every_tracker_gets_the_config_once_and_every_step(packages, tmp_path):
    history = train(("tensorboard", "wandb", "trackio"), tmp_path)
    board, wandb, trackio = packages.values()
    [(args, _)] = board.named("SummaryWriter")
    assert args == (str(tmp_path / "tensorboard"),)
    [(config, _)] = board.named("add_text")
    assert "learning_rate = 0.1" in config[1]
    scalars = [args for args, _ in board.named("add_scalar") if args[0] == "loss"]
    assert scalars == [("loss", one["loss"], one["step"]) for one in history]
    for package in (wandb, trackio):
        [(_, options)] = package.named("init")
        assert options["name"] == tmp_path.name and options["config"]["learning_rate"] == 0.1
        logged = package.named("log")
        assert [options["step"] for _, options in logged] == [1, 2, 3]
        assert [args[0]["loss"] for args, _ in logged] == [one["loss"] for one in history]
        assert len(package.named("finish")) == 1
    assert len(board.named("close")) == 1


def test_a_run_has_the_name_that_it_is_given(packages, tmp_path):
    train(("wandb", "trackio"), tmp_path, run_name="mine")
    for package in list(packages.values())[1:]:
        [(_, options)] = package.named("init")
        assert options["name"] == "mine"


def test_a_run_without_trackers_has_the_same_bits(packages, tmp_path):
    def losses(report_to):
        return [one["loss"] for one in train(report_to, tmp_path)]

    assert losses("wandb") == losses("none") == losses(())
    assert len(packages["wandb"].named("init")) == 1


def test_a_missing_package_is_named_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"report_to 'wandb'.*pip install 'r1grpo\[wandb\]'"):
        train("wandb", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_names_are_refused_with_the_near_one():
    with pytest.raises(ConfigError, match="'wanb'.*did you mean 'wandb'"):
        GRPOConfig(report_to="wanb")
    assert GRPOConfig(report_to="none").report_to == ()
    assert GRPOConfig(report_to=["trackio"]).report_to == ("trackio",)


def test_a_failing_dashboard_ends_no_run(packages, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(packages["wandb"], "log", fail, raising=False)
    with pytest.warns(TrackerWarning, match="WandB failed.*no network"):
        history = train(("wandb", "trackio"), tmp_path)
    assert len(history) == 3 and len(packages["trackio"].named("log")) == 3


def test_only_finite_numbers_are_logged(packages):
    trackers = open_trackers("trackio")
    trackers.log({}, 1, {"a": 1, "b": float("nan"), "c": "text", "d": None, "e": np.float64(2.5)})
    [(args, _)] = packages["trackio"].named("log")
    assert args[0] == {"a": 1.0, "e": 2.5}
