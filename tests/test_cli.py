"""The commands: what they print, what they refuse in one line, how they stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest
from tiny_run import outcome, write_recipe

import r1grpo
from r1grpo import cli, doctor
from r1grpo.model import Model
from r1grpo.recipe import Recipe, read_recipe
from r1grpo.report import STAGES as REPORTED
from r1grpo.run import Run
from r1grpo.tokenizer import WordTokenizer, format_prompt
from r1grpo.work import Stopped, StopRequest


@pytest.fixture(autouse=True)
def plain_warnings(monkeypatch):
    """main() shows warnings as lines; pytest wants its own way back afterwards."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A checkpoint as the pipeline saves it, of a model that knows nothing."""
    path = tmp_path_factory.mktemp("run")
    recipe = read_recipe(write_recipe(path / "tiny.toml"))
    with Run.open(recipe, path / "run", resume=False) as rundir:
        run = Run(recipe, rundir, StopRequest(), resumed=False)
        run.save("r1", Model(recipe.model), "r1", None, 0, ())
    return path / "run" / "r1"


def refused(capsys, *arguments: str) -> str:
    """The line on stderr of a command that must exit with 2."""
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("r1grpo: ")
    return error


def test_doctor_names_versions_tier_threads_and_disk(capsys):
    assert cli.main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
                 if not line.startswith(("kernel", "free", "Python's")))
    assert lines["r1grpo"] == r1grpo.__version__ and lines["threads"].isdigit()
    assert lines["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert lines["engine"] == "loads" and "CUDA" in lines
    found = dict(doctor.examine())
    assert not [name for name, what in found.items() if what.startswith("missing")]
    needed = {re.match(r"[\w-]+", one)[0] for one in metadata.requires("r1grpo") if "extra ==" not in one}
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {re.match(r"[\w-]+", one)[0] for extra, several in project["optional-dependencies"].items()
              if extra not in ("test", "cuda") for one in several}  # cuda has lines of its own
    assert needed | extras <= found.keys()
    assert "available" in found["kernel tier"] and found["free disk here"].endswith("GiB")


def test_doctor_says_why_the_engine_does_not_load(capsys, monkeypatch):
    def fail(name, package=None):
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert cli.main(["doctor"]) == 0
    assert "does not load: undefined symbol: x" in capsys.readouterr().out


def test_pipeline_runs_stops_on_sigterm_and_goes_on_to_the_same_bits(recipe_file, tmp_path, capsys):
    assert cli.main(["pipeline", "--recipe", str(recipe_file), "--out",
                     str(tmp_path / "plain")]) == 0
    out = capsys.readouterr()
    assert "NOT A RESULT" in out.out and "report.html" in out.out and "student_rl_only" in out.out
    path = tmp_path / "stopped"
    command = [sys.executable, "-m", "r1grpo.cli", "pipeline", "--out", str(path)]
    process = subprocess.Popen([*command, "--recipe", str(recipe_file)], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    manifest = path / "manifest.json"
    while process.poll() is None and "cold_start" not in (
            manifest.read_text() if manifest.exists() else ""):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == (f"r1grpo: stopped; to go on: r1grpo pipeline --out {path} "
                                      "--resume")
    assert cli.main(["pipeline", "--out", str(path), "--resume"]) == 0  # no recipe: config.toml
    assert outcome(path) == outcome(tmp_path / "plain")
    assert cli.main(["eval", str(path / "r1"), "--check"]) == 0
    assert capsys.readouterr().out.endswith("identical\n")
    summary = json.loads((path / "summary.json").read_text())
    summary["stages"]["base"]["pass@1"] += 0.25
    (path / "summary.json").write_text(json.dumps(summary))
    assert cli.main(["eval", str(path / "base"), "--check"]) == 1
    assert "stages.pass@1: summary.json has" in capsys.readouterr().out
    assert cli.main(["eval", str(path / "base")]) == 0
    assert "pass@1_ci" in capsys.readouterr().out
    assert "reward model" in refused(capsys, "eval", str(path / "helpful"))


@pytest.mark.parametrize("arguments, folder", [
    ([], "r1-seed0"), (["--seed", "3"], "r1-seed3"), (["--quick"], "quick"),
    (["--recipe", "five.toml"], "r1-seed5"), (["--recipe", "five.toml", "--seed", "6"], "r1-seed6"),
    (["--quick", "--out", "here"], None)])
def test_the_default_directory_is_of_the_recipe(arguments, folder, tmp_path, monkeypatch):
    """A quick run, or one of another seed, must not take the directory of a full run."""
    asked = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "five.toml").write_text("seed = 5\n")
    monkeypatch.setattr("r1grpo.pipeline.run_pipeline", lambda out, *_: asked.append(out))
    monkeypatch.setattr(cli, "_summary_table", lambda summary: "")
    assert cli.main(["pipeline", *arguments]) == 0
    assert asked == [Path("runs") / folder if folder else Path("here")]


def test_a_second_signal_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert issubclass(Stopped, KeyboardInterrupt)


def test_generate_streams_a_function_of_its_arguments(stage, capsys):
    arguments = ["generate", str(stage), "use 3 7 12 to make 33", "--max-tokens", "5",
                 "--seed", "4"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert 0 < len(first.out.split()) <= 5
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == first.out
    tokenizer = WordTokenizer.load(stage)
    ids = tokenizer.encode(format_prompt("use 3 7 12 to make 33", "r1"))
    drawn = Model.from_pretrained(stage).generate([ids], max_new_tokens=5, temperature=0.7, seed=4)
    assert first.out.split() == tokenizer.decode(drawn.completion_ids[0]).split()


def test_bad_requests_are_one_line(stage, recipe_file, tmp_path, capsys):
    at = str(stage)
    assert "'zebra' is not in the vocabulary" in refused(capsys, "generate", at, "a zebra")
    assert "empty" in refused(capsys, "generate", at, "  ")
    assert "temperature" in refused(capsys, "generate", at, "3", "--temperature", "-1")
    assert "no checkpoint" in refused(capsys, "generate", str(tmp_path / "none"), "3")
    assert "checkpoint.json" in refused(capsys, "eval", str(stage.parent))
    assert "of a run of `r1grpo pipeline`" in refused(capsys, "report", str(tmp_path))
    assert "no run to resume" in refused(capsys, "pipeline", "--resume", "--out",
                                         str(tmp_path / "none"))
    assert "two recipes" in refused(capsys, "pipeline", "--quick", "--recipe", str(recipe_file))
    assert "seed must be at least 0" in refused(capsys, "pipeline", "--seed", "-1")
    assert "cannot read none.toml" in refused(capsys, "pipeline", "--recipe", "none.toml")
    (tmp_path / "mine").write_text("x")
    assert "not of a run" in refused(capsys, "pipeline", "--out", str(tmp_path))
    assert "an unfinished run; to go on" in refused(
        capsys, "pipeline", "--recipe", str(stage.parent / "config.toml"), "--out",
        str(stage.parent))


def test_a_damaged_checkpoint_is_refused_by_name(stage, tmp_path, capsys):
    copy = tmp_path / "r1"
    copy.mkdir()
    for file in stage.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert "model.safetensors is damaged" in refused(capsys, "generate", str(copy), "3")


@pytest.mark.parametrize("arguments, name, pointer", [
    (["dpo", "--model", "x"], "command 'dpo'", "reward model"),
    (["ppo"], "command 'ppo'", "r1grpo grpo"), (["vllm-serve"], "command 'vllm-serve'", "--chat"),
    (["merge"], "command 'merge'", "--merge"),
    (["sft", "--load-in-4bit"], "option '--load-in-4bit'", "--dtype"),
    (["grpo", "--deepspeed=zero3.json"], "option '--deepspeed'", "one device"),
    (["grpo", "--num_gpus", "8"], "option '--num_gpus'", "one device"),
    (["grpo", "--learning-rate", "1e-6"], "option '--learning-rate'", "--set learning_rate="),
    (["sft", "--max_steps=5"], "option '--max_steps'", "--set max_steps="),
    (["grpo", "--use_peft"], "option '--use_peft'", "--lora R")])
def test_what_others_offer_is_refused_by_name_with_a_pointer(arguments, name, pointer, capsys):
    line = refused(capsys, *arguments)
    assert f"there is no {name}: " in line and pointer in line


def test_every_option_of_a_stage_that_is_no_flag_is_answered_with_set():
    from r1grpo.commands.options import CURATE, DISTILL, EVAL, GRPO, REJECT, SFT
    from r1grpo.refusals import refusal
    flags = {"model", "revision", "data", "layout", "dtype", "device", "reward", "teacher", "lora", "merge",
             "output_dir", "gradient_checkpointing"}
    for one in (GRPO, SFT, DISTILL, EVAL, REJECT, CURATE):
        for name in {f.name for half in (one.inputs, one.trainer) for f in fields(half)} - flags:
            for flag in (f"--{name}", f"--{name.replace('_', '-')}=1"):
                assert f"--set {name}=" in (refusal([one.name, flag]) or ""), flag
    assert refusal(["generate", "--model", "x", "--temperature", "1"]) is None
    assert refusal(["pipeline", "--seed", "1"]) is None


def test_usage_is_argparses(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pipelin"])
    assert stop.value.code == 2 and "pipeline" in capsys.readouterr().err


def test_public_names_exist():
    for name in r1grpo.__all__:
        assert getattr(r1grpo, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        r1grpo.nothing
    assert set(REPORTED) < set(dir(Recipe())) | {"base"}
