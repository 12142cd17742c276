"""What commands refuse, in one line and with nothing written; and the plan that comes before a run."""

import pytest
from command_run import command, grpo, refused, sft

from r1grpo import Model, cli


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
    says(grpo(out, settings=("logging_dir=x",)), "logging_dir", "trackers write into output_dir")
    says(grpo(out, settings=("output_dir=x",)), "--out")
    says(grpo(out, settings=("nothing",)), "key=value")
    says(grpo(out, "--preset", "r1-zero"), "did you mean 'r1_zero'")
    says(grpo(out, "--layout", "gsm"), "gsm8k")
    says(grpo(out, "--config", "none.toml"), "none.toml")
    says(grpo(out, "--dtype", "float8"), "float8")
    says(grpo(out, "--device", "cuda:0"), "device is 'cuda:0'", "'cpu', 'cuda'")
    says(grpo(out, "--reward", "accurate"), "did you mean 'accuracy'")
    says(grpo(out, "--reward", "rewards.py:shrt"), "no function 'shrt'", "did you mean 'short'")
    says(grpo(out, "--reward", "none.py:short"), "there is no file")
    for more in ((), ("--plan",)):
        says(grpo(out, "--reward", "accuracy,accuracy", *more), "one name: accuracy_reward, accuracy_reward")
        says(grpo(out, *more, settings=("reward_weights=[1.0]",)), "reward_weights needs 2", "short")
        says(grpo(out, *more, settings=("audit=accuracy,accuracy",)), "two audits have one name")
    (here / "bad.py").write_text("import nothing_of_that_name\n")
    says(grpo(out, "--reward", "bad.py:short"), "bad.py raises ModuleNotFoundError")
    says(grpo(out, "--reward", "rewards.py:broken"), "'broken'", "nan")
    says(grpo(out, settings=("max_prompt_length=3",)), "max_prompt_length is 3", "row 0")
    says(grpo(out, settings=("system=Be brief.", "chat=false")), "chat template")
    says(grpo(out, settings=("template=zero",)), "chat template")
    says(grpo(out, "--resume"), "holds no run")
    says(command("grpo", here / "problems.jsonl" / "run"), "problems.jsonl")
    says(["eval", "--out", str(out), "--check"], "holds no run")
    says(command("eval", out, settings=("speculative=true",)), "multi-token-prediction module")
    says(["eval", "model", "--data", "problems.jsonl"], "--model FOLDER; model stands for a stage")
    says(["generate", "--model", "model"], "either a prompt or --chat")
    says(["generate", "--model", "base", "--chat"], "no chat template")
    says(["generate", "--model", "model", "--max-tokens", "0", "hi"], "--max-tokens is 0")
    says(grpo(out, "--merge"), "merge", "--lora R")
    says(grpo(out, "--lr", "1"), "`r1grpo grpo` takes no '--lr'", "--help")
    says(["generate", "model", "hi"], "--model model")
    says(["eval", "model"], "--model model")
    says(command("distill", out, settings=("k=2",)), "'k'", "`r1grpo distill --help` lists them")
    Model.from_pretrained("model").add_score_head().save_pretrained("judge")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "judge" / name).write_bytes((here / "model" / name).read_bytes())
    for name in ("grpo", "sft", "reject", "coldstart", "curate", "eval"):
        says(command(name, out, model="judge"), "judge is a reward model")
    says(["generate", "--model", "judge", "hi"], "judge is a reward model")
    says(command("distill", out, "--teacher", "judge", data="problems.jsonl"), "judge is a reward model")


def test_a_foreign_directory_is_left_alone(here, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not of a run" in refused(capsys, grpo(tmp_path), tmp_path)
    out = tmp_path / "run"
    assert cli.main(sft(out)) == 0
    assert "r1grpo sft --out" in refused(capsys, sft(out), out)
    for other in (grpo(out), ["grpo", "--out", str(out), "--resume"], ["eval", "--out", str(out), "--check"]):
        assert "a run of `r1grpo sft`; to go on with it: r1grpo sft --out" in refused(capsys, other, out)
    assert "another recipe or seed (seed is 0 there, 7 here); to go on" in refused(
        capsys, sft(out, settings=("seed=7",)), out)


@pytest.mark.parametrize("name", ["grpo", "sft", "distill", "reject", "coldstart", "curate", "eval"])
def test_a_plan_is_shown_and_nothing_is_done(name, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Model, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    out = tmp_path / "run"
    assert cli.main(command(name, out, "--plan")) == 0
    shown = capsys.readouterr().out
    trains = name in ("grpo", "sft", "distill")
    assert ("parameters, " + ("float32 master" if trains else "vectors")) in shown and "total" in shown
    assert ("Adam's moments" in shown) == trains
    assert not out.exists()


@pytest.mark.parametrize("name", ["grpo", "sft", "distill", "reject", "coldstart", "curate", "eval"])
def test_what_cannot_fit_is_refused_with_its_table(name, here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("r1grpo.plan.available_memory", lambda device="cpu": 1000)
    out = tmp_path / "run"
    assert cli.main(command(name, out)) == 2
    error = capsys.readouterr().err
    assert error.startswith("r1grpo: this run needs") and "parameters, packed copy" in error
    assert not out.exists()
