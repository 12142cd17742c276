"""samples.jsonl and `r1grpo audit`: every sample once, found again, shown without harm."""

import json

import numpy as np
import pytest
from toy_grpo import ROWS, make, wish_share

from r1grpo import cli
from r1grpo.rundir import read_jsonl
from r1grpo.samples import suspicion, weight
from r1grpo.verifiers import Verdict


def has_e(prompts, completions, completion_ids, **columns):
    return [Verdict(True, "correct") if "e" in text else Verdict(False, "wrong", f"no e among {len(text)}")
            for text in completions]


def nothing(prompts, completions, completion_ids, **columns):
    return [0.0] * len(completions)


def trained(path, **options):
    rows = [{**row, "problem_key": f"k{i}"} for i, row in enumerate(ROWS[:3])]
    rows.append({"prompt": "d", "wish": "f", "problem_key": "no way", "canary": True})
    trainer = make(rewards=[has_e, wish_share], rows=rows, audits=[nothing], audit_share=0.5,
                   output_dir=str(path), shuffle_dataset=False, max_steps=4, **options)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    trained(path)
    return path


def test_every_sample_stands_there_once(tmp_path):
    trainer = trained(tmp_path)
    rows = list(read_jsonl(tmp_path / "samples.jsonl"))
    assert len(rows) == trainer.total_steps // 2 * 16
    assert [(row["step"], row["sample"]) for row in rows] == [(s, i) for s in (1, 3) for i in range(16)]
    last = rows[16:]
    done, parts = trainer.batch.completions, trainer.batch.parts
    for i, row in enumerate(last):
        assert row["completion"] == done.texts[i] and row["finish_reason"] == done.finish_reasons[i]
        assert list(row["rewards"]) == ["has_e", "wish_share", "audit_nothing"]
        np.testing.assert_array_equal(np.array(list(row["rewards"].values()), float), parts[i])
        assert row["verdicts"]["has_e"] == ("correct" if "e" in row["completion"] else "wrong")
        assert row.get("details", {}) == ({} if "e" in row["completion"] else
                                          {"has_e": f"no e among {len(row['completion'])}"})
        assert row.get("canary", False) == (row["problem_key"] == "no way")


def test_a_kill_between_the_files_leaves_no_sample_twice(tmp_path):
    """Killed after samples were written and before their verdicts, then resumed."""
    first = make(rewards=[wish_share], output_dir=str(tmp_path / "run"), max_steps=4)
    first.save_checkpoint()
    next(first)
    log = tmp_path / "run" / "verdicts.jsonl"
    kept = (tmp_path / "run" / "samples.jsonl").read_bytes()
    for torn in (b'{"step": 3, "sample": 0}\n{"st', b""):
        (tmp_path / "run" / "samples.jsonl").write_bytes(kept + torn)
        second = make(rewards=[wish_share], output_dir=str(tmp_path / "run"), max_steps=4)
        second.load_checkpoint()
        assert (tmp_path / "run" / "samples.jsonl").read_bytes() == kept
    second.train()
    rows = list(read_jsonl(tmp_path / "run" / "samples.jsonl"))
    assert len(rows) == 32 and len(list(read_jsonl(log))) == 2
    make(rewards=[wish_share], output_dir=str(tmp_path / "run"), max_steps=2).train()  # a new run
    assert len(list(read_jsonl(tmp_path / "run" / "samples.jsonl"))) == 16


def row(verifier=1.0, audit=None, **more):
    return {"rewards": {"accuracy_reward": verifier, "audit_strict": audit}, **more}


def test_what_is_suspicious_and_how_much():
    assert suspicion(row()) == suspicion(row(audit=1.0)) == suspicion({}) == []
    assert suspicion(row(0.0, canary=True, signs=["exit"])) == []  # it was not rewarded
    canary, audit = row(canary=True), row(audit=0.0)
    signs, cut = row(signs=["exit", "files"]), row(finish_reason="length")
    assert suspicion(audit) == ["audit_strict does not pass it"]
    assert suspicion(signs) == ["sign: exit", "sign: files"]
    order = [row(canary=True, signs=["exit"]), canary, row(audit=0.0, signs=["exit"]), audit, signs,
             row(signs=["exit"]), cut, row()]
    assert [weight(one) for one in order] == sorted({weight(one) for one in order}, reverse=True)


def ask(run, capsys, *flags):
    assert cli.main(["audit", str(run), *flags]) == 0
    return capsys.readouterr().out


def found(run, capsys, *flags):
    return [json.loads(line) for line in ask(run, capsys, "--json", "--limit", "99", *flags).splitlines()]


def test_filters(run, capsys):
    everything = list(read_jsonl(run / "samples.jsonl"))
    rewarded = [one for one in everything if one["rewards"]["has_e"] > 0]

    def same(rows, *flags):
        key = lambda one: (one["step"], one["sample"])  # noqa: E731
        got = found(run, capsys, *flags)
        assert sorted(map(key, got)) == sorted(map(key, rows)) and rows, flags
    same(everything)
    same(rewarded, "--above", "0")
    same([one for one in everything if one["step"] == 3], "--step", "3")
    same([one for one in everything if one["problem_key"] == "k1"], "--key", "k1")
    same([one for one in everything if one["rewards"]["audit_nothing"] is not None],
         "--reward", "audit_nothing")
    same([one for one in everything if one["rewards"]["wish_share"] < 0.2],
         "--reward", "wish_share", "--below", "0.2")
    same([one for one in everything if one["verdicts"]["has_e"] == "wrong"], "--reason", "wrong")
    same([one for one in everything if one.get("canary")], "--canary")
    same([one for one in everything if "e f" in one["completion"]], "--contains", "e f")
    same([one for one in rewarded if one.get("canary") or one["rewards"]["audit_nothing"] == 0
          or one["finish_reason"] == "length"], "--suspicious")


def test_the_most_suspicious_come_first(run, capsys):
    shown = ask(run, capsys, "--limit", "3")
    assert shown.count("=== step") == 3 and "!!! a canary is rewarded" in shown.split("=== step")[1]
    assert "has_e 1" in shown and "has_e: correct" in shown and "3 of 32 samples that match" in shown


def test_a_verdict_says_why_and_what_no_sample_has_is_refused(run, capsys):
    shown = ask(run, capsys, "--reason", "wrong", "--limit", "1")
    assert "has_e: wrong (no e among " in shown
    for flags, words in ((["--reward", "has_a"], "there are audit_nothing, has_e, wish_share, did you mean 'has_e'?"),
                         (["--reason", "timeout"], "--reason 'timeout': no sample")):
        assert cli.main(["audit", str(run), *flags]) == 2
        assert words in capsys.readouterr().err
    assert "0 of 0" in ask(run, capsys, "--reason", "wrong", "--step", "77")


def test_what_a_model_wrote_only_shows(tmp_path, capsys):
    hostile = "\x1b]0;owned\x07\x1b[2J ok \u202e\r\n" + "long " * 1000 + "end \\boxed{4}"
    (tmp_path / "samples.jsonl").write_text(json.dumps({
        "step": 1, "sample": 0, "prompt": [{"role": "user", "content": "\x9b1mq"}], "completion": hostile,
        "finish_reason": "stop", "rewards": {"a": 1.0, "b": None}}) + "\n")
    shown = ask(tmp_path, capsys)
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert r"\x1b]0;owned\x07" in shown and "characters ..." in shown and "end \\boxed{4}" in shown
    assert "b -" in shown and ask(tmp_path, capsys, "--full").count("long ") == 1000


def test_completions_stand_in_where_there_are_no_samples(tmp_path, capsys):
    (tmp_path / "completions.jsonl").write_text(json.dumps({
        "stage": "r1", "step": 2, "completion": "text", "rewards": {"accuracy_reward": 1.0}}) + "\n")
    assert "step 2" in ask(tmp_path, capsys, "--reward", "accuracy")


def test_a_pipelines_samples_are_kept_when_a_stage_is_done(tmp_path, capsys):
    from types import SimpleNamespace

    from r1grpo.run import Run
    for phase in ("r1_zero/train", "student_rl_only/sweep-0", "student_rl_only/train"):
        folder = tmp_path / "work" / phase
        folder.mkdir(parents=True)
        (folder / "samples.jsonl").write_text(json.dumps({"step": 1, "completion": phase}) + "\n")
        (folder / "state").write_text("large")
    for stage in ("r1_zero", "student_rl_only", "r1_zero"):
        Run.clear_work(SimpleNamespace(path=tmp_path), stage)
    assert sorted(one.name for one in (tmp_path / "samples").iterdir()) == [
        "r1_zero-train.jsonl", "student_rl_only-sweep-0.jsonl", "student_rl_only-train.jsonl"]
    assert list((tmp_path / "work").iterdir()) == []
    shown = ask(tmp_path, capsys)
    assert "=== r1_zero-train, step 1" in shown and shown.count("===") == 3


def test_bad_requests_are_one_line(tmp_path, capsys):
    for flags, words in ((["audit", str(tmp_path / "no")], "no such folder"),
                         (["audit", str(tmp_path)], "holds no samples"),
                         (["audit", str(tmp_path), "--limit", "0"], "--limit is 0")):
        assert cli.main(flags) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
