"""r1grpo curate on a tiny model: files, resuming, choosing again, refusals."""

import json
import os
import signal

import pytest
from command_run import ENDS, command, refused, write

from r1grpo import Model, cli
from r1grpo.rundir import JsonlLog, read_jsonl

PRODUCTS = ("rows.jsonl", "dropped.jsonl", "measured.jsonl", "figures.json")


@pytest.fixture
def problems(here):
    rows = [{"prompt": f"what is {i} + {i} ?", "answer": str(2 * i), "task": "even" if i % 3 else "third"}
            for i in range(1, 13)]
    rows.insert(4, {**rows[0], "prompt": "What is  1 + 1 ?"})
    rows.insert(6, {**rows[1], "answer": "7", "reason": "a column of the data"})
    write(here / "curate.jsonl", rows)
    write(here / "held.jsonl", [{"prompt": "what is 3 + 3 ?", "answer": "6"}])
    write(here / "more.jsonl", [{"question": "what is 12 + 12 ?", "answer": "#### 24"}])
    return rows


def curate(out, *more, settings=()):
    return command("curate", out, "--reward", "rewards.py:even", *more, data="curate.jsonl", settings=(
        "k=4", "max_completion_length=8", "batch_prompts=2", ENDS, 'eval_data=["held.jsonl", "more.jsonl"]',
        *settings))


def files(path):
    return {name: (path / name).read_bytes() for name in PRODUCTS}


def test_curate_keeps_the_rows_of_the_interval_and_says_where_the_others_went(problems, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(curate(out, settings=("low=0.25", "high=0.5"))) == 0
    said = capsys.readouterr().out
    kept, dropped, measured = (list(read_jsonl(out / name)) for name in PRODUCTS[:3])
    assert len(kept) + len(dropped) == len(problems) == 14 and kept
    reasons = {one["prompt"] + one["answer"]: one["reason"] for one in dropped}
    assert reasons["What is  1 + 1 ?2"] == "duplicate"
    assert reasons["what is 2 + 2 ?4"] == reasons["what is 2 + 2 ?7"] == "conflict"
    assert reasons["what is 3 + 3 ?6"] == reasons["what is 12 + 12 ?24"] == "exact"
    assert len(measured) == 9
    for one in kept:
        assert 0.25 <= one["pass_rate"] <= 0.5 and one["curation"]["judged"] == 4
        assert {k: v for k, v in one.items() if k in problems[0]} == problems[one["curation"]["row"]]
        assert one["curation"]["model"] == "model" and "prompt_ids" not in one
    rates = {one["row"]: one["pass_rate"] for one in measured}
    assert [one["curation"]["row"] for one in kept] == [n for n, rate in rates.items() if .25 <= rate <= .5]
    figures = json.loads((out / "figures.json").read_text())
    assert figures["left_out"] == {"conflict": 2, "duplicate": 1, "exact": 2} and figures["rows"] == 14
    assert sum(one["prompts"] for one in figures["histogram"]) == 9 and figures["kept"] == len(kept)
    assert f"{len(kept)} of 9 prompts kept" in said and "pass rate" in said
    samples = [one["prompt_ids"] for one in kept if "prompt_ids" in one]
    assert samples == [] and cli.main(command("eval", None, data=str(out / "rows.jsonl"))[:5] + [
        "--set", "k=1", "max_completion_length=4"]) == 0  # its rows are data like any


def test_a_stopped_run_goes_on_to_the_same_files_and_a_torn_line_is_cut(problems, tmp_path, monkeypatch):
    assert cli.main(curate(tmp_path / "plain")) == 0
    commits = []

    def commit(self, write=JsonlLog.commit):
        write(self)
        if self.path.name == "measured.jsonl":
            commits.append(1)
            if len(commits) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(JsonlLog, "commit", commit)
        assert cli.main(curate(out)) == 130
    assert len(list(read_jsonl(out / "measured.jsonl"))) == 4 and not (out / "rows.jsonl").exists()
    with (out / "measured.jsonl").open("ab") as file:
        file.write(b'{"row": 9, "mar')
    assert cli.main(["curate", "--out", str(out), "--resume", "--set", "batch_prompts=3"]) == 2
    assert cli.main(["curate", "--out", str(out), "--resume"]) == 0
    assert files(out) == files(tmp_path / "plain")


def test_a_choice_made_again_samples_nothing(problems, tmp_path, monkeypatch):
    choice = ("low=0", "high=1", "balance=task", "per_type=2")
    assert cli.main(curate(tmp_path / "plain", settings=choice)) == 0
    out = tmp_path / "again"
    assert cli.main(curate(out)) == 0
    monkeypatch.setattr(Model, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    assert cli.main(["curate", "--out", str(out), "--resume", "--set", *choice]) == 0
    assert files(out) == files(tmp_path / "plain")
    tasks = [one["task"] for one in read_jsonl(out / "rows.jsonl")]
    assert tasks.count("even") == tasks.count("third") == 2


def test_other_rows_and_batches_change_no_pass_rate(problems, here, tmp_path):
    assert cli.main(curate(tmp_path / "few")) == 0
    assert cli.main(curate(tmp_path / "all", settings=("eval_data=none", "batch_prompts=5"))) == 0
    few, more = ({one["row"]: one["right"] for one in read_jsonl(tmp_path / name / "measured.jsonl")}
                 for name in ("few", "all"))
    assert len(more) == 11 and len(set(more.values())) > 1
    assert {n: more[n] for n in few} == few


def test_failed_verdicts_are_left_out_and_counted(problems, here, tmp_path, capsys):
    (here / "breaks.py").write_text(
        "from r1grpo.verifiers import Verdict\n\n\n"
        "def half(prompts, completions, completion_ids, **columns):\n"
        "    return [Verdict(i % 4 == 1, 'timeout' if i % 4 > 1 else 'wrong') for i in range(len(completions))]\n")
    out = tmp_path / "run"
    assert cli.main([one.replace("rewards.py:even", "breaks.py:half") for one in curate(out)]) == 0
    assert {(one["right"], one["judged"], one["failed"], one["pass_rate"])
            for one in read_jsonl(out / "measured.jsonl")} == {(1, 2, 2, 0.5)}
    assert "18 samples judged; verifiers failed on 18" in capsys.readouterr().out


def test_requests_that_cannot_be_are_refused_before_work(problems, here, tmp_path, capsys):
    out = tmp_path / "run"

    def says(*words, settings=(), arguments=None):
        line = refused(capsys, arguments or curate(out, settings=settings), out)
        assert all(word in line for word in words), line

    for bad in ("low=0.7", "low=-0.1", "high=1.5", "low=nan"):
        says("low and high must be within 0 and 1, low not above high", settings=(bad,))
    says("per_type needs balance", settings=("per_type=3",))
    says("per_type must be at least 1", settings=("per_type=0", "balance=task"))
    says("no row has a column 'kind'", "task", settings=("balance=kind",))
    says("k must be at least 1", settings=("k=0",))
    says("no row is left", "'exact': 11", settings=("eval_data=curate.jsonl",))
    says("2 functions", arguments=[one.replace("even", "even,accuracy") for one in curate(out)])
    says("nowhere.jsonl", settings=("eval_data=nowhere.jsonl",))
    says("whole conversation", arguments=command("curate", out, "--reward", "rewards.py:even",
                                                 data="answers.jsonl"))
    says("there is no option '--low'", "--set low=", arguments=["curate", "--low", "0.2"])
    write(here / "curate.jsonl", [*problems, {"prompt": "what is 1 ?", "answer": ""}])
    says("row 14", arguments=[one.replace("rewards.py:even", "accuracy") for one in curate(out)])
    write(here / "curate.jsonl", problems)
    assert cli.main(curate(out)) == 0
    write(here / "curate.jsonl", [{**problems[0], "answer": "3"}, *problems[1:4], *problems[5:]])
    assert cli.main(["curate", "--out", str(out), "--resume"]) == 2
    assert "measured with other content" in capsys.readouterr().err
