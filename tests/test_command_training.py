"""Training real models from the command line: a folder and a file in, a folder out; killed and resumed."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from command_run import GRPO_SET, command, grpo, outcome, refused, sft, slow_grpo, write

from r1grpo import Model, cli
from r1grpo.rundir import read_jsonl


def test_grpo_end_to_end(here, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(grpo(out)) == 0
    shown = capsys.readouterr().out
    assert "4 prompts x 4 generations = 16 completions of at most 12 tokens" in shown
    assert "6 updates = 3 rollouts = 12 prompts = 1.5 epochs" in shown
    assert "max_logprob_gap 0.0 over" in shown and shown.endswith(f"{out / 'final'}\n")
    metrics = list(read_jsonl(out / "metrics.jsonl"))
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert {"reward", "rewards/accuracy_reward/mean", "rewards/short/mean", "kl"} <= set(metrics[0])
    rows = list(read_jsonl(out / "completions.jsonl"))
    assert len(rows) == 3 * 16 and {row["step"] for row in rows} == {1, 3, 5}
    assert len(list(read_jsonl(out / "verdicts.jsonl"))) == 3
    assert [p.name for p in (out / "work" / "train").iterdir()] == ["step-00000006"]
    stored = tomllib.loads((out / "config.toml").read_text())
    assert stored["num_generations"] == 4 and Path(stored["model"]).is_absolute()
    first, last = (Model.from_pretrained(one).state_dict() for one in ("model", out / "final"))
    assert first.keys() == last.keys() and any((first[k] != last[k]).any() for k in first)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} \
        <= {p.name for p in (out / "final").iterdir()}
    assert cli.main(["generate", "--model", str(out / "final"), "what", "--max-tokens", "3"]) == 0


def test_sft_learns_what_the_rows_say(here, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = command("sft", out, settings=(
        "per_device_train_batch_size=8", "learning_rate=3e-2", "max_steps=60"))
    assert cli.main(arguments) == 0
    assert "8 rows" in capsys.readouterr().out
    losses = [row["loss"] for row in read_jsonl(out / "metrics.jsonl")]
    assert losses[-1] < 0.2 < 4 < losses[0]
    assert cli.main(["generate", "--model", str(out / "final"), "what is 7 ?", "--temperature",
                     "0"]) == 0
    assert capsys.readouterr().out == "it is 7\n"  # and its end, which is not shown


@pytest.mark.parametrize("make, settings", [(slow_grpo, ()), (sft, ("max_steps=80",))])
def test_a_killed_run_is_resumed_to_the_same_bits(make, settings, here, tmp_path):
    """SIGTERM: a safe point. SIGKILL: the newest state. Then to the end, from another directory."""
    assert cli.main(make(tmp_path / "plain", settings=settings)) == 0
    path = tmp_path / "killed"
    arguments = make(path, settings=settings)
    resume = [arguments[0], "--out", str(path), "--resume"]
    process = start(arguments, here)
    wait_for_step(path, process, 2)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == f"r1grpo: stopped; to go on: r1grpo {' '.join(resume)}"
    process = start(resume, tmp_path)
    wait_for_step(path, process, 4)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    os.chdir(tmp_path)
    try:
        assert cli.main(resume) == 0
    finally:
        os.chdir(here)
    assert outcome(path) == outcome(tmp_path / "plain")


def start(arguments, cwd):
    source = str(Path(cli.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-m", "r1grpo.cli", *arguments], cwd=cwd, text=True,
                            stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": source})


def wait_for_step(path, process, step):
    """Until a state of that step is on disk, or all is over."""
    folder = path / "work" / "train"
    while process.poll() is None:
        if folder.exists() and any(p.name >= f"step-{step:08d}" for p in folder.glob("step-*")):
            return
        time.sleep(0.005)


def test_a_resumed_run_may_change_what_cannot_change_its_bits(here, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(sft(out)) == 0
    longer = ["sft", "--out", str(out), "--resume", "--set", "max_steps=8", "--set",
              "micro_batch_tokens=40"]
    assert cli.main(longer) == 0
    assert cli.main(sft(tmp_path / "whole", settings=("max_steps=8",))) == 0
    assert outcome(out)["weights"] == outcome(tmp_path / "whole")["weights"]
    line = refused(capsys, ["sft", "--out", str(out), "--resume", "--set", "seed=1"], out)
    assert "other options: seed is 0 there, 1 here" in line
    assert cli.main(["sft", "--out", str(out), "--resume"]) == 0  # nothing left to do
    before = outcome(out)
    for state in (out / "work" / "train").iterdir():
        for file in state.iterdir():
            file.unlink()
        state.rmdir()
    assert cli.main(["sft", "--out", str(out), "--resume"]) == 0
    assert outcome(out) == before


def test_rows_of_the_evaluation_set_are_dropped_and_shown(here, tmp_path, capsys):
    write(here / "held.jsonl", [{"question": "what is 3 + 3 ?", "answer": "6 #### 6"}])
    assert cli.main(grpo(tmp_path / "run", settings=("eval_data=held.jsonl",))) == 0
    shown = capsys.readouterr().out
    assert "7 of 8 training rows kept; dropped: 1 exact" in shown and "7 prompts" in shown
    prompts = {row["prompt"] for row in read_jsonl(tmp_path / "run" / "completions.jsonl")}
    assert len(prompts) > 4 and "what is 3 + 3 ?" not in prompts


def test_completions_that_the_context_ends_are_foretold(here, tmp_path, capsys):
    said = "the model's context of 96 tokens ends longer completions"
    for name, length in (("short", 12), ("long", 96)):
        assert cli.main(grpo(tmp_path / name, settings=(
            f"max_completion_length={length}", "max_steps=1"))) == 0
        assert (said in capsys.readouterr().out) == (name == "long")


def test_long_prompts_are_left_out_where_asked(here, tmp_path, capsys):
    write(here / "long.jsonl", [{"prompt": "what " * n, "answer": "1"} for n in (1, 30, 2)])
    arguments = command("grpo", tmp_path / "run", data="long.jsonl", settings=(
        *GRPO_SET, "max_steps=1", "max_prompt_length=20", "long_prompts=drop"))
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "1 of 3 prompts are longer than 20 tokens" in shown and "2 prompts, the longest" in shown


def test_a_reward_that_fails_in_the_run_leaves_a_state_to_go_on_from(here, tmp_path, capsys):
    (here / "late.py").write_text("""
def late(prompts, completions, completion_ids, **columns):
    if len(completions) == 16 and LIMIT and not LIMIT.pop():
        raise RuntimeError("the sandbox is gone")
    return [float(len(set(one))) for one in completion_ids]
LIMIT = [0, 1]
""")
    out = tmp_path / "run"
    arguments = command("grpo", out, "--reward", "late.py:late", settings=GRPO_SET)
    with pytest.raises(RuntimeError, match="sandbox"):
        cli.main(arguments)
    assert [p.name for p in (out / "work" / "train").glob("step-*")] == ["step-00000002"]
    (here / "late.py").write_text((here / "late.py").read_text().replace("[0, 1]", "[]"))
    assert cli.main(["grpo", "--out", str(out), "--resume"]) == 0
    assert cli.main(command("grpo", tmp_path / "plain", "--reward", "late.py:late",
                            settings=GRPO_SET)) == 0
    assert outcome(out)["weights"] == outcome(tmp_path / "plain")["weights"]


def test_verdicts_are_replayed_where_no_state_was_saved_yet(here, tmp_path):
    """A reward that is never the same twice."""
    (here / "fickle.py").write_text("""
import random
def fickle(prompts, completions, completion_ids, **columns):
    if len(completions) == 16 and LIMIT and not LIMIT.pop():
        raise RuntimeError("the sandbox is gone")
    return [random.SystemRandom().random() for _ in completions]
LIMIT = [0, 1]
""")
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="sandbox"):
        cli.main(command("grpo", out, "--reward", "fickle.py:fickle",
                         settings=(*GRPO_SET, "save_steps=10")))
    assert not list((out / "work").rglob("step-*"))
    [before] = read_jsonl(out / "verdicts.jsonl")
    (here / "fickle.py").write_text((here / "fickle.py").read_text().replace("[0, 1]", "[]"))
    assert cli.main(["grpo", "--out", str(out), "--resume"]) == 0
    after = list(read_jsonl(out / "verdicts.jsonl"))
    assert after[0] == before and [one["step"] for one in after] == [0, 2, 4]


def test_a_batch_larger_than_the_data_is_warned_of(here, tmp_path, capsys):
    """The paper's presets on a handful of rows: 128 rows an update, of which there are 8."""
    assert cli.main(command("sft", tmp_path / "sft", "--preset", "sft.r1", settings=(
        "max_steps=1", "max_length=90"))) == 0
    assert "warning: an update of rows takes 128 and there are 8: each is in it 16 times" in \
        capsys.readouterr().err
    assert cli.main(grpo(tmp_path / "grpo", settings=("per_device_train_batch_size=32", "max_steps=1"))) == 0
    assert "warning: a rollout of prompts takes 16 and there are 8" in capsys.readouterr().err
    assert cli.main(grpo(tmp_path / "fits", settings=("max_steps=1",))) == 0
    assert " takes " not in capsys.readouterr().err


def test_a_command_says_what_its_options_ask_for(here, tmp_path, capsys):
    assert cli.main(grpo(tmp_path / "run", settings=(
        "logging_steps=4", "log_completions=true", "num_completions_to_print=2",
        "disable_tqdm=true"))) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert lines[0].startswith("step 4: loss ") and len(lines) == 4
    assert lines[1].startswith("prompt: what is ") and "[accuracy_reward " in lines[2]


def test_shaped_rewards_and_audits_end_to_end(here, tmp_path, capsys):
    """Length, repetition at its tokens, an audit: on the real engine, twice to the same bits."""
    settings = (*GRPO_SET, "max_steps=4", "reward_options.cosine.correct=rewards.py:even",
                "reward_options.cosine.exceed_value=-1", "reward_options.dense_repetition.ngram_size=1",
                "reward_options.dense_repetition.penalty=-0.5", "audit=rewards.py:all_right",
                "audit_share=0.5", "reward_weights=[1.0, 0.3]")
    rewards = ("--reward", "cosine,dense_repetition")
    out, again = tmp_path / "run", tmp_path / "again"
    assert cli.main(command("grpo", out, *rewards, settings=settings)) == 0
    assert "max_logprob_gap 0.0 over" in capsys.readouterr().out
    metrics = list(read_jsonl(out / "metrics.jsonl"))
    assert [("audit/passed" in row) for row in metrics] == [True, False, True, False]
    assert all(row["audit/passed"] == 1.0 for row in metrics[::2])
    assert min(row["rewards/dense_repetition_penalty/mean"] for row in metrics) < 0.0
    samples = list(read_jsonl(out / "samples.jsonl"))
    assert len(samples) == 32 and {row["rewards"]["audit_all_right"] for row in samples} == {1.0, None}
    assert cli.main(["audit", str(out), "--above", "0", "--limit", "99", "--json"]) == 0
    found = capsys.readouterr().out.splitlines()
    assert len(found) == sum(row["rewards"]["cosine_scaled_reward"] > 0 for row in samples)

    assert cli.main(command("grpo", again, *rewards, settings=settings)) == 0
    assert outcome(again)["weights"] == outcome(out)["weights"]
    assert (again / "samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()
    plain = tmp_path / "plain"  # without the penalty at its tokens the weights are others
    assert cli.main(command("grpo", plain, *rewards, settings=(*settings, "reward_weights=[1.0, 0.0]"))) == 0
    assert outcome(plain)["weights"] != outcome(out)["weights"]
    assert [row["reward"] for row in read_jsonl(plain / "metrics.jsonl")][0] == metrics[0]["reward"]
