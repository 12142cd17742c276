"""The stages on real models from the command line: a folder and a file in, a folder out.

The model is a Llama of one layer and 300 words that knows nothing; what is tested is everything
around it: options, safe points, files, refusals.
"""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_run import without_time

from r1grpo import Model, ModelConfig, cli
from r1grpo.commands.generate import Dimmed
from r1grpo.commands.options import DISTILL, GRPO, SFT, read_options
from r1grpo.config import GRPOConfig, SFTConfig
from r1grpo.hf_tokenizer import Tokenizer
from r1grpo.rundir import read_jsonl

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
# max_completion_length and batches of all tests; few steps, a state after every second one
GRPO_SET = ("num_generations=4", "per_device_train_batch_size=8", "steps_per_generation=2",
            "max_completion_length=12", "learning_rate=1e-3", "max_steps=6", "save_steps=2",
            "beta=0.01")
SFT_SET = ("per_device_train_batch_size=4", "learning_rate=1e-3", "max_steps=6", "save_steps=2")
ENDS = f"stop_token_ids={list(range(60))}"  # so that a random model comes to an end
REWARDS = '''
import math
import time


def short(prompts, completions, completion_ids, **columns):
    return [-float(len(set(one))) for one in completion_ids]


def slow(prompts, completions, completion_ids, **columns):
    time.sleep(0.2)
    return short(prompts, completions, completion_ids)


def all_right(prompts, completions, completion_ids, **columns):
    return [1.0] * len(completions)


def even(prompts, completions, completion_ids, **columns):
    return [float(sum(one) % 2 == 0) for one in completion_ids]


def broken(prompts, completions, completion_ids, **columns):
    return [math.nan] * len(completions)
'''


@pytest.fixture(autouse=True)
def plain_warnings():
    """main() shows warnings as lines; pytest wants its own way back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def make_folder(path: Path, seed: int, chat: bool = True) -> None:
    """A Hugging Face folder of a random model; every seed has a tokenizer of its own."""
    tokenizer = Tokenizer.train(
        [f"what is {seed} + {seed} ? the answer is it"], 275,
        special_tokens=("<|end|>", "<|user|>", "<|assistant|>"), eos_token="<|end|>",
        chat_template=TEMPLATE if chat else None)
    config = ModelConfig(
        vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=96, eos_token_id=0, initializer_range=0.1)
    Model(config, seed=seed).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A model, another one, data and rewards, in a folder that tests run in."""
    path = tmp_path_factory.mktemp("commands")
    make_folder(path / "model", 0)
    make_folder(path / "student", 1)
    make_folder(path / "base", 2, chat=False)
    write(path / "problems.jsonl", [{"question": f"what is {i} + {i} ?",
                                     "answer": f"it is #### {2 * i}"} for i in range(1, 9)])
    write(path / "answers.jsonl", [{"prompt": f"what is {i} ?", "completion": f"it is {i}"}
                                   for i in range(1, 9)])
    (path / "rewards.py").write_text(REWARDS)
    before = Path.cwd()
    os.chdir(path)
    yield path
    os.chdir(before)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(name, out, *more, model="model", data=None, settings=()):
    data = data or ("answers.jsonl" if name in ("sft", "distill") else "problems.jsonl")
    return [name, "--model", model, "--data", data, "--out", str(out), *more,
            *[word for one in settings for word in ("--set", one)]]


def grpo(out, *more, settings=()):
    return command("grpo", out, "--reward", "accuracy,rewards.py:short", *more,
                   settings=(*GRPO_SET, *settings))


def slow_grpo(out, *more, settings=()):
    return [one.replace("short", "slow") for one in grpo(out, *more, settings=settings)]


def sft(out, *more, settings=()):
    return command("sft", out, *more, settings=(*SFT_SET, *settings))


def outcome(path):
    """Everything of a run that must not depend on kills."""
    found = {log: [without_time(row) for row in read_jsonl(path / f"{log}.jsonl")]
             for log in ("metrics", "completions")}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["run"]["finished"]
    return {**found, "config": (path / "config.toml").read_text(),
            "final": {one["name"]: one["sha256"] for one in manifest["checkpoints"]},
            "weights": (path / "final" / "model.safetensors").read_bytes()}


def refused(capsys, arguments, out):
    """The line on stderr of a command that must exit with 2 and leave nothing behind."""
    before = sorted(Path(out).rglob("*")) if Path(out).exists() else None
    capsys.readouterr()
    assert cli.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning:" not in line]
    assert len(lines) == 1 and lines[0].startswith("r1grpo: ")
    assert (sorted(Path(out).rglob("*")) if Path(out).exists() else None) == before
    return lines[0]


# ---- training -----------------------------------------------------------------------------------


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


# ---- sampling -----------------------------------------------------------------------------------


def test_reject_keeps_right_samples_and_sft_learns_their_ids(here, tmp_path, capsys):
    out = tmp_path / "rows"
    settings = ("k=4", "max_completion_length=8", "batch_prompts=3", ENDS,
                "max_per_problem=2")
    assert cli.main(command("reject", out, "--reward", "rewards.py:even", settings=settings)) == 0
    assert "of 32 samples of 8 problems kept; dropped:" in capsys.readouterr().out
    rows = list(read_jsonl(out / "rows.jsonl"))
    assert rows and all(sum(row["completion_ids"]) % 2 == 0 for row in rows)
    assert all(row["prompt"].startswith("what is") and row["source"]["model"] == "model"
               for row in rows)
    assert cli.main(command("sft", tmp_path / "run", data=str(out / "rows.jsonl"),
                            settings=SFT_SET)) == 0
    lengths = sum(len(row["completion_ids"]) for row in rows)
    assert f"{len(rows):,} rows, {lengths + sum(len(r['prompt_ids']) for r in rows):,} tokens" \
        in capsys.readouterr().out


@pytest.mark.parametrize("name, products", [("reject", ["rows.jsonl"]),
                                            ("eval", ["samples.jsonl", "figures.json"])])
def test_sampling_stops_and_goes_on_to_the_same_files(name, products, here, tmp_path, monkeypatch):
    def make(out, *more):
        return command(name, out, "--reward", "rewards.py:even", *more, settings=(
            "k=2", "max_completion_length=8", "batch_prompts=2", ENDS))

    assert cli.main(make(tmp_path / "plain")) == 0
    from r1grpo.commands import stage
    seen = []

    def once(path, data, write=stage.write_atomic):
        write(path, data)
        if path.suffix == ".json" and path.parent.parent.name == "work":
            seen.append(path)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_atomic", once)
        assert cli.main(make(tmp_path / "stopped")) == 130
    assert not (tmp_path / "stopped" / products[0]).exists() and len(seen) == 2
    assert cli.main([name, "--out", str(tmp_path / "stopped"), "--resume"]) == 0
    for product in products:
        assert (tmp_path / "stopped" / product).read_bytes() == \
            (tmp_path / "plain" / product).read_bytes()


def test_eval_measures_stores_and_checks(here, tmp_path, capsys):
    settings = ("k=4", "max_completion_length=8")
    reward = ("--reward", "rewards.py:even")
    out = tmp_path / "measured"
    assert cli.main(command("eval", out, *reward, settings=settings)) == 0
    table = capsys.readouterr().out
    assert "pass@1" in table and "95 % interval" in table and "cons@k" in table
    assert "8 problems x 4" in table
    figures = json.loads((out / "figures.json").read_text())
    samples = list(read_jsonl(out / "samples.jsonl"))
    assert len(samples) == 32 and figures["n"] == 8
    assert figures["pass@1"] == np.mean([one["rewards"]["accuracy"] for one in samples])
    assert cli.main([*command("eval", out, *reward, settings=settings)[:5], *reward, *[
        word for one in settings for word in ("--set", one)]]) == 0  # without --out: the figures
    assert capsys.readouterr().out == table
    check = ["eval", "--out", str(out), "--check"]
    assert cli.main(check) == 0 and capsys.readouterr().out == "identical\n"
    samples[3]["logprobs"][0] += 1e-6
    write(out / "samples.jsonl", samples)
    figures["pass@1"] += 0.5
    (out / "figures.json").write_text(json.dumps(figures))
    assert cli.main(check) == 1
    assert capsys.readouterr().out.splitlines()[0] == "problem 0, sample 3: other log-probs"
    assert cli.main(check) == 1 and "pass@1: figures.json has" in capsys.readouterr().out


def test_distill_with_and_without_a_teacher(here, tmp_path, capsys):
    settings = (*SFT_SET, "samples=2", "temperature=1.2", "max_completion_length=8")
    out = tmp_path / "asked"
    assert cli.main(command("distill", out, "--teacher", "model", "--reward",
                            "rewards.py:all_right", model="student", data="problems.jsonl",
                            settings=settings)) == 2  # a random model never stops by itself
    assert "no sample of" in capsys.readouterr().err
    assert cli.main(sft(tmp_path / "teacher", settings=("learning_rate=3e-2", "max_steps=60"))) == 0
    out = tmp_path / "again"
    teacher = str(tmp_path / "teacher" / "final")
    assert cli.main(command("distill", out, "--teacher", teacher, "--reward",
                            "rewards.py:all_right", model="student", data="problems.jsonl",
                            settings=settings)) == 0
    costs = json.loads((out / "costs.json").read_text())
    sampled = costs["with_teacher"]["sampled_tokens"]
    assert sampled > costs["without_teacher"]["sampled_tokens"] == 0
    rows = list(read_jsonl(out / "rows.jsonl"))
    assert 0 < len(rows) <= 8 and rows[0]["source"]["model"] == "final"
    capsys.readouterr()
    told = tmp_path / "told"  # the same rows from their file: the same student
    assert cli.main(command("distill", told, model="student", data=str(out / "rows.jsonl"),
                            settings=settings)) == 0
    assert "without_teacher" in capsys.readouterr().out
    assert outcome(told)["weights"] == outcome(out)["weights"]


def test_generate_streams_what_the_model_draws(here, capsys):
    arguments = ["generate", "--model", "model", "what is 1 ?", "--max-tokens", "9", "--seed", "3"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert first.err == "(cut off after 9 tokens)\n" and "\x1b" not in first.out
    assert cli.main(arguments) == 0 and capsys.readouterr().out == first.out
    assert cli.main([*arguments, "--raw"]) == 0 and capsys.readouterr().out != first.out


def test_chat_keeps_the_history_and_resets(here, capsys, monkeypatch):
    asked = []
    from r1grpo.commands import generate

    def answer(model, tokenizer, prompt, flags, seed, out):
        asked.append(tokenizer.decode(prompt, skip_special_tokens=False))
        return f"answer {len(asked)}"

    lines = iter(["one", "two", "", "/reset", "three"])
    monkeypatch.setattr(generate, "answer", answer)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or _end(lines))
    assert cli.main(["generate", "--model", "model", "--chat"]) == 0
    assert asked == ["<|user|>one<|end|><|assistant|>", "<|user|>one<|end|><|assistant|>answer 1"
                     "<|end|><|user|>two<|end|><|assistant|>",
                     "<|user|>three<|end|><|assistant|>"]


def _end(lines):
    """The empty line of the conversation, then the end of input."""
    if lines.__length_hint__():
        return ""
    raise EOFError


class Screen:
    def __init__(self, terminal):
        self.text, self.terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_thinking_is_dim_on_a_terminal_alone(terminal):
    """Tags may come in pieces; the answer is never dim."""
    screen = Screen(terminal)
    stream = Dimmed(screen, thinking=False)
    for piece in ("<thi", "nk>", "a", "</thin", "k>", "b"):
        stream.write(piece)
    stream.close()
    assert screen.text == ("<think>\x1b[2ma</think>\x1b[0mb\n" if terminal
                           else "<think>a</think>b\n")


def test_a_prefilled_thought_is_dim_from_the_start():
    screen = Screen(True)
    Dimmed(screen, thinking=True).write("a</think>b")
    assert screen.text.startswith("\x1b[2ma")


# ---- refusals -----------------------------------------------------------------------------------


def test_bad_requests_are_one_line_and_leave_nothing(here, tmp_path, capsys):
    out = tmp_path / "run"

    def says(arguments, *words):
        line = refused(capsys, arguments, out)
        for word in words:
            assert word in line, line

    says(grpo(out)[:1] + ["--out", str(out)], "--model is missing")
    says(["grpo", "--model", "model"], "--out is missing")
    says(command("grpo", out, model="nowhere"), "nowhere")
    says(command("grpo", out, data="nothing.jsonl"), "nothing.jsonl")
    (here / "mute").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (here / "mute" / name).write_bytes((here / "model" / name).read_bytes())
    says(command("grpo", out, model="mute"), "mute has no tokenizer.json")
    (here / "empty.jsonl").write_text("")
    says(command("grpo", out, data="empty.jsonl"), "there is no row")
    says(command("sft", out, data="problems.jsonl"), "completion")
    says(grpo(out, settings=("num_generation=4",)), "'num_generation'", "'num_generations'")
    says(grpo(out, settings=("layot=gsm8k",)), "did you mean 'layout'")
    says(grpo(out, settings=("num_generations=four",)), "num_generations is 'four', expected int")
    says(grpo(out, settings=("use_vllm=true",)), "use_vllm", "one engine")
    says(grpo(out, settings=("logging_steps=1",)), "logging_steps", "every step is recorded")
    says(grpo(out, settings=("output_dir=x",)), "--out")
    says(grpo(out, settings=("nothing",)), "key=value")
    says(grpo(out, "--preset", "r1-zero"), "did you mean 'r1_zero'")
    says(grpo(out, "--layout", "gsm"), "gsm8k")
    says(grpo(out, "--config", "none.toml"), "none.toml")
    says(grpo(out, "--dtype", "float8"), "float8")
    says(grpo(out, "--reward", "accurate"), "did you mean 'accuracy'")
    says(grpo(out, "--reward", "rewards.py:shrt"), "no function 'shrt'", "did you mean 'short'")
    says(grpo(out, "--reward", "none.py:short"), "there is no file")
    (here / "bad.py").write_text("import nothing_of_that_name\n")
    says(grpo(out, "--reward", "bad.py:short"), "bad.py raises ModuleNotFoundError")
    says(grpo(out, "--reward", "rewards.py:broken"), "'broken'", "nan")
    says(grpo(out, settings=("max_prompt_length=3",)), "max_prompt_length is 3", "row 0")
    says(grpo(out, settings=("system=Be brief.", "chat=false")), "chat template")
    says(grpo(out, settings=("template=zero",)), "chat template")
    says(grpo(out, "--resume"), "holds no run")
    says(command("grpo", here / "problems.jsonl" / "run"), "problems.jsonl")
    says(["eval", "--out", str(out), "--check"], "holds no run")
    says(["generate", "--model", "model"], "either a prompt or --chat")
    says(["generate", "--model", "base", "--chat"], "no chat template")


def test_a_foreign_directory_is_left_alone(here, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not of a run" in refused(capsys, grpo(tmp_path), tmp_path)
    out = tmp_path / "run"
    assert cli.main(sft(out)) == 0
    assert "r1grpo sft --out" in refused(capsys, sft(out), out)
    assert "another recipe" in refused(capsys, grpo(out), out)


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


@pytest.mark.parametrize("name", ["grpo", "sft", "distill", "reject", "eval"])
def test_a_plan_is_shown_and_nothing_is_done(name, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Model, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    out = tmp_path / "run"
    assert cli.main(command(name, out, "--plan")) == 0
    shown = capsys.readouterr().out
    assert "parameters, float32 master" in shown and "total" in shown
    assert ("Adam's moments" in shown) == (name in ("grpo", "sft", "distill"))
    assert not out.exists()


@pytest.mark.parametrize("name", ["grpo", "sft", "distill", "reject", "eval"])
def test_what_cannot_fit_is_refused_with_its_table(name, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("r1grpo.plan.available_memory", lambda: 1000)
    out = tmp_path / "run"
    assert cli.main(command(name, out)) == 2
    error = capsys.readouterr().err
    assert error.startswith("r1grpo: this run needs") and "parameters, packed copy" in error
    assert not out.exists()


# ---- options ------------------------------------------------------------------------------------


def test_options_come_from_preset_file_settings_and_flags_in_that_order(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('preset = "r1_zero"\nbeta = 0.5\nseed = 1\nlayout = "gsm8k"\n'
                    'reward = "format"\n[columns]\nquestion = "Q"\n')
    found = read_options(GRPO, file, ["seed=2", "max_steps=none", "columns.answer=A",
                                      "report_to=none", "stop_token_ids=7", "min_p=0.1"],
                         {"layout": "math", "model": None})
    args, inputs = found.args, found.inputs
    assert (args.beta, args.seed, args.max_steps, args.min_p) == (0.5, 2, None, 0.1)
    assert args.num_generations == 16 and args.stop_token_ids == (7,) and args.report_to == ()
    assert (inputs.layout, inputs.reward) == ("math", ("format",))
    assert inputs.columns == {"question": "Q", "answer": "A"}
    assert args.save_steps == 10 and GRPOConfig().save_steps == 0  # a command saves by itself


def test_every_command_option_is_one_of_the_two_halves():
    """A name in both would be read twice, and one of them in vain."""
    from dataclasses import fields

    from r1grpo.commands.options import EVAL, REJECT
    for one in (GRPO, SFT, DISTILL, EVAL, REJECT):
        assert not {f.name for f in fields(one.inputs)} & {f.name for f in fields(one.trainer)}
        for name, preset in one.presets.items():
            assert isinstance(preset(), one.trainer), name


def test_presets_of_the_paper_are_there_by_name():
    found = read_options(DISTILL, None, [], {"preset": "distill.qwen_7b"}).args
    assert (found.learning_rate, found.per_device_train_batch_size) == (8e-5, 64)
    zero = read_options(GRPO, None, [], {"preset": "grpo.r1_zero"})
    assert zero.args.completion_length(8200) == 65536
    flat = read_options(GRPO, None, ["max_completion_length=[[0, 8], [2, 9]]"], {}).args
    assert (flat.completion_length(1), flat.completion_length(2)) == (8, 9)


def test_config_toml_of_a_run_gives_the_same_options(tmp_path):
    found = read_options(SFT, None, ["learning_rate=3e-5", "columns.prompt=Q"],
                         {"preset": "sft.r1", "model": str(tmp_path)})
    assert found.args.num_train_epochs == SFTConfig.r1().num_train_epochs
    file = tmp_path / "config.toml"
    file.write_bytes(found.toml())
    again = read_options(SFT, file, [], {})
    assert (again.inputs, again.args) == (found.inputs, found.args)
    assert again.hash() == found.hash()
