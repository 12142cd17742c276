"""Commands that sample: reject, eval, distill with its teacher."""

import json
import os
import signal

import numpy as np
import pytest
from command_run import ENDS, SFT_SET, command, outcome, refused, sft, write

from models import make
from r1grpo import EvalConfig, Model, Tokenizer, cli
from r1grpo.commands.inputs import sampling_plan
from r1grpo.commands.options import Inputs
from r1grpo.reward_model import scored_ids
from r1grpo.rundir import read_jsonl


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


def test_reject_keeps_the_best_by_a_reward_model(here, tmp_path, capsys):
    Model.from_pretrained("student").add_score_head().save_pretrained("ranker")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (here / "ranker" / name).write_bytes((here / "student" / name).read_bytes())
    settings = ("k=8", "max_completion_length=8", ENDS, "max_per_problem=8")
    reward = ("--reward", "rewards.py:even")
    assert cli.main(command("reject", tmp_path / "all", *reward, settings=settings)) == 0
    assert cli.main(command("reject", tmp_path / "best", *reward, settings=(
        *settings[:3], "ranker=ranker"))) == 0
    judge, tokenizer = Model.from_pretrained("ranker"), Tokenizer.from_pretrained("ranker")
    everything = list(read_jsonl(tmp_path / "all" / "rows.jsonl"))
    best = list(read_jsonl(tmp_path / "best" / "rows.jsonl"))
    assert [row["prompt"] for row in best] == list(dict.fromkeys(row["prompt"] for row in everything))
    for row in best:
        rivals = [one["completion"] for one in everything if one["prompt"] == row["prompt"]]
        scores = judge.score([scored_ids(tokenizer.encode(row["prompt"]), text, "summary", tokenizer)
                              for text in rivals]).tolist()
        assert row["completion"] == rivals[int(np.argmax(scores))] and row["source"]["score"] == max(scores)
    assert best != [row for i, row in enumerate(everything) if i == 0 or everything[i - 1]["prompt"] != row["prompt"]]
    for ranker, words in (("student", "no scalar head"), ("nowhere", "nowhere")):
        line = refused(capsys, command("reject", tmp_path / "run", *reward, settings=(f"ranker={ranker}",)),
                       tmp_path / "run")
        assert words in line
    write(here / "ids.jsonl", [{"prompt_ids": [1, 2], "answer": "1"}])
    assert "row 0 has no column 'prompt'" in refused(capsys, command(
        "reject", tmp_path / "run", *reward, data="ids.jsonl", settings=("ranker=ranker",)), tmp_path / "run")


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


def test_the_plan_counts_guesses(tmp_path):
    make("moe").save_pretrained(tmp_path)
    rows = [{"prompt_ids": [1, 2, 3]}]
    plain, more = (sampling_plan(Inputs(model=str(tmp_path)), EvalConfig(speculative=speculative), rows)
                   for speculative in (False, True))
    assert more.bytes_of("sampling: KV") > plain.bytes_of("sampling: KV")


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


@pytest.mark.parametrize("name", ["curate", "reject", "coldstart", "eval", "distill"])
def test_the_reward_that_judges_samples_takes_options(name, here, tmp_path, capsys):
    more = ("--teacher", "model") if name == "distill" else ()
    for reward, option, words in (("cosine", "margn=1", "did you mean 'margin'"),
                                  ("judge", "url=http://localhost", "needs reward_options.judge.model"),
                                  ("code", "level=none", "accept_no_sandbox=True")):
        line = command(name, tmp_path / "run", *more, "--reward", reward, data="problems.jsonl",
                       settings=(f"reward_options.{reward}.{option}",))
        assert words in refused(capsys, line, tmp_path / "run")


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
    assert "with_teacher      unknown: the rows do not say" in capsys.readouterr().out
    assert json.loads((told / "costs.json").read_text())["with_teacher"] is None
    assert outcome(told)["weights"] == outcome(out)["weights"]
