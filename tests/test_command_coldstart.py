"""r1grpo coldstart on a tiny model: candidates out, edited, back, learned; its three sources; refusals."""

import dataclasses
import json

import pytest
from command_run import ENDS, SFT_SET, command, grpo, refused, write

from r1grpo import Model, Tokenizer, cli, rejection
from r1grpo.commands.inputs import INSTRUCTIONS, with_prompt_ids
from r1grpo.commands.options import Inputs
from r1grpo.readable import FILTERS
from r1grpo.rundir import read_jsonl
from r1grpo.toml import ConfigError

EVEN = '''
def even(prompts, completions, completion_ids, **columns):
    return [float(len(one) % 2 == 0) for one in completions]
'''
SET = ("k=8", "max_completion_length=8", "batch_prompts=3", "max_per_problem=2", ENDS, "filters=[]")


@pytest.fixture
def rule(here):
    (here / "rule.py").write_text(EVEN)


def coldstart(out, *more, settings=(), model="model"):
    return command("coldstart", out, "--reward", "rule.py:even", *more, model=model, settings=(*SET, *settings))


def back(out, rows, where):
    write(where, rows)
    return ["coldstart", "--out", str(out), "--edited", str(where)]


def test_candidates_go_out_are_edited_and_come_back_as_rows_that_sft_learns(here, rule, tmp_path, capsys):
    out, mine = tmp_path / "run", tmp_path / "mine.jsonl"
    assert cli.main(coldstart(out)) == 0
    said = capsys.readouterr().out
    rows = list(read_jsonl(out / "candidates.jsonl"))
    assert len(rows) > 4 and f"r1grpo coldstart --out {out} --edited COPY" in said and f"{len(rows)} of 64" in said
    for one in rows:
        assert one["prompt"].startswith("what is ") and "prompt_ids" not in one and "completion_ids" not in one
        assert one["source"]["model"] == "model" and one["source"]["seed"] == 0
        assert (one["verdict"], one["kept"]) == ("right", "right by even") and "answer" in one
    first = (out / "candidates.jsonl").read_bytes()
    edited = [dict(one) for one in rows[1:]]
    edited[0]["completion"] = "<think>\ntwice it\n</think>\n\nok, 2"  # even
    edited[2]["completion"] = "odd"
    assert cli.main(back(out, edited, mine)) == 2
    error = capsys.readouterr().err
    assert "1 edited rows cannot be learned: mine.jsonl line 3 " in error and rows[3]["id"] in error
    assert "its answer is wrong by even" in error and not (out / "rows.jsonl").exists()
    edited[2]["completion"] = "even"
    assert cli.main(back(out, edited, mine)) == 0
    assert f"{len(rows) - 1} rows: {len(rows) - 3} as sampled, 2 edited and judged again; 1 candidates dropped" \
        in capsys.readouterr().out
    learned = list(read_jsonl(out / "rows.jsonl"))
    assert [row["completion"] for row in learned] == [row["completion"] for row in edited]
    assert [row["source"]["candidate"] for row in learned] == [row["id"] for row in rows[1:]]
    assert [i for i, row in enumerate(learned) if row["source"]["edited"]] == [0, 2]
    assert json.loads((out / "figures.json").read_text()) == {
        "as_sampled": len(rows) - 3, "edited": 2, "dropped": 1}
    assert cli.main(command("sft", tmp_path / "sft", model="student", data=str(out / "rows.jsonl"),
                            settings=(*SFT_SET, "max_steps=1"))) == 0
    assert cli.main(back(out, rows[:2], mine)) == 0  # again, with fewer
    assert len(list(read_jsonl(out / "rows.jsonl"))) == 2
    write(out / "candidates.jsonl", edited)
    assert cli.main(back(out, edited, mine)) == 2
    assert "edit a copy" in capsys.readouterr().err
    assert cli.main(["coldstart", "--out", str(out), "--resume"]) == 0
    assert (out / "candidates.jsonl").read_bytes() == first


def test_prompts_with_examples_and_with_a_call_for_reflection(here, rule, tmp_path, monkeypatch):
    asked = []

    def listen(model, prompts, *more, rollout=rejection.rollout):
        asked.extend(prompts)
        return rollout(model, prompts, *more)

    monkeypatch.setattr(rejection, "rollout", listen)
    write(here / "worked.jsonl", [{"prompt": f"{i}?", "completion": f"is {i}"} for i in range(3)])
    few = ("examples=worked.jsonl", "shots=1")
    for model, head, tail, settings in (
            ("model", "<|user|>Problem: ", "<|end|><|assistant|>", few), ("base", "Problem: ", "\nSolution:", few),
            ("model", "<|user|>what is ", " sure.<|end|><|assistant|>", ("instruction=Be sure.",))):
        asked.clear()
        out, tokenizer = tmp_path / f"{model}{len(settings)}", Tokenizer.from_pretrained(model)
        assert cli.main(coldstart(out, settings=settings, model=model)) == 0
        shown = [tokenizer.decode(ids, skip_special_tokens=False) for ids in asked]
        assert len(shown) == 8
        rows = list(read_jsonl(out / "candidates.jsonl"))
        assert rows
        for i, text in enumerate(shown):
            assert text.startswith(head) and text.endswith(tail), text
            assert f"what is {i + 1} + {i + 1} ?" in text
        for row in rows:
            assert row["prompt"] == f"what is {row['source']['problem'] + 1} + {row['source']['problem'] + 1} ?"
            if settings is few:
                [k] = row["source"]["examples"]
                assert f"Problem: {k}?\nSolution: is {k}\n\nProblem: what" in shown[row["source"]["problem"]]
            else:
                assert row["source"]["instruction"] == "Be sure."
    for model in ("model", "base"):  # by its name
        tokenizer = Tokenizer.from_pretrained(model)
        [row] = with_prompt_ids([{"prompt": "p"}], Inputs(model=model, instruction="reflect"), tokenizer)
        with pytest.raises(ConfigError, match="did you mean 'reflect'"):
            with_prompt_ids([{"prompt": "p"}], Inputs(model=model, instruction="reflct"), tokenizer)
        assert "p\n\n" + INSTRUCTIONS["reflect"] in tokenizer.decode(row["prompt_ids"])


def test_what_was_judged_is_what_is_kept(here, rule, tmp_path, monkeypatch):
    """A chat model may well write what ends a base model's answer."""
    def add(*more, rollout=rejection.rollout):
        done = rollout(*more)
        return dataclasses.replace(done, texts=[f"{text}\n\nProblem:  {text}" for text in done.texts])

    monkeypatch.setattr(rejection, "rollout", add)
    write(here / "worked.jsonl", [{"prompt": "1?", "completion": "is 1"}])
    for model, whole in (("model", True), ("base", False)):
        assert cli.main(coldstart(tmp_path / model, settings=("examples=worked.jsonl", "shots=1"), model=model)) == 0
        rows = list(read_jsonl(tmp_path / model / "candidates.jsonl"))
        assert rows and all(("\n\nProblem:" in row["completion"]) == whole for row in rows)


def test_filters_hold_for_samples_and_for_what_was_edited(here, rule, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(FILTERS, "code", lambda row, text: len(text) > 9)
    monkeypatch.setitem(FILTERS, "language", lambda row, text: True)
    out, mine = tmp_path / "run", tmp_path / "mine.jsonl"
    assert cli.main(coldstart(out, settings=("filters=code,language",))) == 0
    assert " code" in capsys.readouterr().out.partition("dropped:")[2]
    rows = list(read_jsonl(out / "candidates.jsonl"))
    assert rows and all(len(row["completion"]) > 9 for row in rows)
    assert rows[0]["kept"] == "right by even, passes code, passes language"
    assert cli.main(back(out, [{**rows[0], "completion": "even"}], mine)) == 2
    assert f"mine.jsonl line 1 ({rows[0]['id']}): it does not pass the filter 'code'" in capsys.readouterr().err
    every = tmp_path / "every"
    assert cli.main(["reject", *coldstart(every, settings=("filters=[]",))[1:]]) == 0
    assert cli.main(["reject", *coldstart(tmp_path / "some", settings=("filters=code",))[1:]]) == 0
    some = [row["completion"] for row in read_jsonl(tmp_path / "some" / "rows.jsonl")]
    assert min(map(len, some)) > 9 >= min(len(row["completion"]) for row in read_jsonl(every / "rows.jsonl"))


def test_samples_of_a_run_need_no_weights(here, rule, tmp_path, capsys, monkeypatch):
    assert cli.main(grpo(tmp_path / "zero", settings=(ENDS,))) == 0
    monkeypatch.setattr(Model, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    out = tmp_path / "run"
    assert cli.main(coldstart(out, "--plan", settings=(f"samples_of={tmp_path / 'zero'}",))) == 0 and not out.exists()
    assert cli.main(coldstart(out, settings=(f"samples_of={tmp_path / 'zero'}",))) == 0
    rows = list(read_jsonl(out / "candidates.jsonl"))
    samples = {(one["step"], one["attempt"], one["sample"]): one
               for one in read_jsonl(tmp_path / "zero" / "samples.jsonl")}
    assert rows
    for row in rows:
        source = row["source"]
        one = samples[source["step"], source["attempt"], source["sample"]]
        assert (one["prompt"], one["completion"], one["finish_reason"]) == (row["prompt"], row["completion"], "stop")
        assert (source["run"], source["model"], source["seed"]) == ("zero", "model", 0)
    assert cli.main(back(out, rows, tmp_path / "mine.jsonl")) == 0
    assert "0 edited" in capsys.readouterr().out


def test_requests_that_cannot_be_are_refused_before_work(here, rule, tmp_path, capsys):
    out = tmp_path / "run"

    def says(*words, settings=(), arguments=None):
        line = refused(capsys, arguments or coldstart(out, settings=settings), out)
        assert all(word in line for word in words), line

    says("filters: 'lang' is none of", "did you mean 'language'", settings=("filters=lang",))
    says("shots must be at least 1", settings=("shots=0",))
    says("nowhere.jsonl", settings=("examples=nowhere.jsonl",))
    write(here / "bare.jsonl", [{"prompt": "p"}])
    says("bare.jsonl row 0 needs a 'prompt' and a 'completion'", settings=("examples=bare.jsonl",))
    says("two sources", settings=("samples_of=model", "examples=bare.jsonl"))
    says("manifest.json", settings=("samples_of=model",))
    says("there is no option '--shots'", "--set shots=", arguments=["coldstart", "--shots", "2"])
    says("holds no run", arguments=["coldstart", "--out", str(out), "--edited", "mine.jsonl"])
    says("2 functions", arguments=[one.replace("rule.py:even", "accuracy,format") for one in coldstart(out)])
    assert cli.main(coldstart(out, "--plan")) == 0 and not out.exists()
    assert cli.main(coldstart(out)) == 0
    says("none.jsonl", arguments=["coldstart", "--out", str(out), "--edited", "none.jsonl"])
    (here / "empty.jsonl").write_text("")
    says("there is no row", arguments=["coldstart", "--out", str(out), "--edited", "empty.jsonl"])
    (here / "torn.jsonl").write_text('{"id": "x"\n')
    says("torn.jsonl line 1", arguments=["coldstart", "--out", str(out), "--edited", "torn.jsonl"])
    (out / "candidates.jsonl").unlink()
    says("holds no candidates.jsonl yet", arguments=["coldstart", "--out", str(out), "--edited", "torn.jsonl"])
