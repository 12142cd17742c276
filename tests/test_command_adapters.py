"""Adapters from the command line: trained, saved alone or merged, resumed, measured, sampled."""

import json

import numpy as np
import pytest
from command_run import SFT_SET, command, grpo, refused, sft

from r1grpo import LoraConfig, Model, cli
from r1grpo.commands.options import SFT, read_options
from r1grpo.rundir import read_jsonl

LORA = ("lora.lora_alpha=32", 'lora.target_modules=["q_proj", "down_proj"]')


def state(folder):
    return Model.from_pretrained(folder).state_dict()


def test_adapters_are_trained_and_every_command_takes_their_folder(here, tmp_path, capsys):
    out, final = tmp_path / "run", tmp_path / "run" / "final"
    assert cli.main(sft(out, "--lora", "4", settings=LORA)) == 0
    assert {p.name for p in final.iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not (final / "config.json").exists()
    config = json.loads((final / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(here / "model")
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert config["target_modules"] == ["down_proj", "q_proj"]
    base, trained = state("model"), state(final)
    assert all((trained[name] == base[name]).all() for name in base)
    assert any(trained[name].any() for name in trained if name.endswith("lora_B.weight"))
    name = str(final)
    measured = tmp_path / "measured"
    assert cli.main(command("eval", measured, "--reward", "rewards.py:even", model=name,
                            settings=("k=2", "max_completion_length=4"))) == 0
    assert cli.main(["eval", "--out", str(measured), "--check"]) == 0
    assert cli.main(command("reject", tmp_path / "rows", "--reward", "rewards.py:even", model=name,
                            settings=("k=2", "max_completion_length=4"))) == 0
    assert cli.main(["generate", "--model", name, "what is 1 ?", "--max_tokens", "4"]) == 0
    (final / "tokenizer.json").unlink()  # then the base's is meant
    assert cli.main(["generate", "--model", name, "what is 1 ?", "--max-tokens", "4"]) == 0
    capsys.readouterr()
    further = tmp_path / "further"  # the adapters go on, the base stays
    assert cli.main(sft(further, settings=("max_steps=1",))[:2] + [name] + sft(
        further, settings=("max_steps=1",))[3:]) == 0
    again = state(further / "final")
    assert again.keys() == trained.keys() and all((again[k] == base[k]).all() for k in base)
    assert any((again[k] != trained[k]).any() for k in again)


def test_merged_adapters_are_a_whole_model(here, tmp_path):
    for name, more in (("apart", ()), ("whole", ("--merge",))):
        assert cli.main(grpo(tmp_path / name, "--lora", "2", *more)) == 0
    rows = list(read_jsonl(tmp_path / "apart" / "metrics.jsonl"))
    assert {row.get("max_logprob_gap", 0.0) for row in rows} == {0.0} and rows[0]["kl"] == 0.0
    whole = tmp_path / "whole" / "final"
    assert (whole / "model.safetensors").exists() and not (whole / "adapter_config.json").exists()
    merged = Model.from_pretrained(tmp_path / "apart" / "final").merge().state_dict()
    found = state(whole)
    assert found.keys() == merged.keys() and all((found[k] == merged[k]).all() for k in found)


def test_a_resume_keeps_the_adapters(here, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(sft(one, "--lora", "4")) == 0
    assert cli.main(sft(two, "--lora", "4", settings=("max_steps=3",))) == 0
    again = ["sft", "--out", str(two), "--resume"]
    assert "lora.r is 4 there, 2 here" in refused(capsys, [*again, "--lora", "2"], two)
    assert cli.main([*again, "--set", "max_steps=6"]) == 0
    first, second = state(one / "final"), state(two / "final")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_distill_adapts_the_student_alone(here, tmp_path, capsys):
    out = tmp_path / "run"
    code = cli.main(command("distill", out, "--lora", "2", "--teacher", "model", "--reward",
                            "rewards.py:all_right", model="student", data="problems.jsonl", settings=(
                                *SFT_SET, "samples=2", "max_completion_length=8", "save_steps=0",
                                "max_steps=1")))
    if code:  # a random teacher need not end
        assert "no sample of" in capsys.readouterr().err
    else:
        assert (out / "final" / "adapter_config.json").exists()
    assert cli.main(command("distill", tmp_path / "rows", "--lora", "2", settings=SFT_SET)) == 0
    assert (tmp_path / "rows" / "final" / "adapter_config.json").exists()


def test_the_plan_counts_what_is_trained(here, tmp_path, capsys):
    def plan(*more):
        assert cli.main(grpo(tmp_path / "run", "--plan", *more)) == 0
        return capsys.readouterr().out

    assert "reference" in plan() and "reference" not in plan("--lora", "2")


@pytest.mark.parametrize("settings, words", [
    (("lora.r=0",), "lora: LoraConfig: r is 0"), (("lora.alpha=3",), "lora.alpha: unknown key"),
    (("lora.target_modules=q_prj",), "'q_prj'"), (("lora=3",), "lora is 3"),
    (("lora.r=4", "router_bias_rate=0.1"), "router_bias_rate"),
    (("lora_r=4",), "--lora R"), (("lora.target_modules=kv_b_proj",), "this model has none")])
def test_adapters_that_cannot_be(settings, words, here, tmp_path, capsys):
    assert words in refused(capsys, grpo(tmp_path / "run", settings=settings), tmp_path / "run")


def test_options_of_adapters_are_those_of_the_trainers(tmp_path):
    found = read_options(SFT, None, [*LORA, "lora.r=2"], {"lora": {"r": 8}, "model": "m"})
    assert found.inputs.lora == LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "down_proj"])
    file = tmp_path / "config.toml"
    file.write_bytes(found.toml())
    assert read_options(SFT, file, [], {}).inputs == found.inputs
    assert read_options(SFT, file, ["lora=none"], {}).inputs.lora is None


def test_a_revision_is_of_an_id_of_the_hub(here, tmp_path, capsys, monkeypatch):
    """It reaches whoever looks for the folder; a path has none."""
    assert "revision 'v1' is for ids" in refused(
        capsys, grpo(tmp_path / "run", "--revision", "v1"), tmp_path / "run")
    asked = []

    def find(name, revision, is_whole):
        asked.append((name, revision))
        assert is_whole(here / "model")
        return here / "model"

    monkeypatch.setattr("r1grpo.model_source.find_folder", find)
    assert cli.main(command("sft", tmp_path / "run", "--revision", "v1", "--lora", "2",
                            model="org/name", settings=(*SFT_SET, "max_steps=1"))) == 0
    assert cli.main(["generate", "--model", "org/name", "--revision", "v1", "--max-tokens", "1", "a"]) == 0
    assert set(asked) == {("org/name", "v1")}
    config = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v1")


def test_underscores_are_dashes(here, capsys):
    """As other projects write flags; what stands behind = is left alone."""
    words = ["generate", "--model", "model", "--max-tokens", "3", "--top-p", "0.9", "a_b"]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    other = ["generate", "--model=model", "--max_tokens=3", "--top_p", "0.9", "a_b"]
    assert cli.main(other) == 0 and capsys.readouterr().out == first
    assert cli.main(["sft", "--learning_rate", "1"]) == 2
    assert "'--learning_rate'" in capsys.readouterr().err
