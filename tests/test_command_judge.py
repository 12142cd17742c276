"""r1grpo judge against a server on loopback: files, resuming without asking again, refusals; and GRPO on the
reward `judge` while its endpoint hangs."""

import json
import os
import signal
import threading

import numpy as np
import pytest
from command_run import refused, write
from test_judge import KEY, asked, completion, five_way, prefers_longer, serving
from toy_grpo import brevity, make, weights

from r1grpo import cli
from r1grpo.advantage import group_advantages
from r1grpo.preferences import with_responses
from r1grpo.rewards.judge import get_judge_reward
from r1grpo.rundir import read_jsonl
from r1grpo.tokenizer import split_thinking

ROWS = [{"prompt": f"p{i}", "task": "t", "responses": ["a" * 10, "b" * 12, "c" * 40]} for i in range(6)]


def judge(server, out, *settings, data="responses.jsonl"):
    return ["judge", "--model", "j", "--data", str(data), "--out", str(out), "--set", f"url={server.url}",
            "threads=2", *settings]


@pytest.fixture
def data(tmp_path, monkeypatch):
    write(tmp_path / "responses.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return tmp_path


def test_judge_writes_pairs_and_says_what_became_of_the_others(data, capsys):
    out = data / "run"
    with serving(prefers_longer) as server:
        assert cli.main(judge(server, out, "key_env=JUDGE_KEY", "n=2")) == 0
        assert len(server.requests) == 12  # both orders of one pair a prompt
    rows = list(read_jsonl(out / "rows.jsonl"))
    assert [row["prompt"] for row in rows] == [f"p{i}" for i in range(6)] and rows[0]["task"] == "t"
    assert {(row["chosen"], row["rejected"], row["judge"]["model"]) for row in rows} == {("b" * 12, "a" * 10, "j")}
    assert json.loads((out / "figures.json").read_text()) == {"prompts": 6, "kept": 6, "lengths": 12}
    assert "6 pairs of 6 prompts kept; dropped: 12 lengths" in capsys.readouterr().out
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert not any(KEY.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_margin_and_labels(data):
    with serving(five_way({"a" * 10: "B>A", "b" * 12: "A>B"})) as server:  # a mean of 1
        assert cli.main(judge(server, data / "even")) == 0
        assert cli.main(judge(server, data / "low", "margin=0.9")) == 0
    assert json.loads((data / "even" / "figures.json").read_text())["margin"] == 6
    assert len(list(read_jsonl(data / "low" / "rows.jsonl"))) == 6
    with serving(lambda body, _: completion(json.dumps({"safe": "b" not in asked(body, "ANSWER")}))) as server:
        assert cli.main(judge(server, data / "labels", "ask=labels")) == 0
    assert [row["label"] for row in read_jsonl(data / "labels" / "rows.jsonl")] == [1, 0, 1] * 6


def test_samples_of_a_run_are_put_together_by_their_prompts(data):
    samples = [{"prompt": f"p{i % 2}", "completion": "x" * (10 + i), "finish_reason": "stop", "step": i,
                "problem_key": f"k{i % 2}", "completion_ids": [i]} for i in range(4)]
    assert with_responses(samples) == [
        {"prompt": f"p{k}", "problem_key": f"k{k}", "responses": ["x" * (10 + k), "x" * (12 + k)],
         "finish_reasons": ["stop", "stop"]} for k in range(2)]
    assert with_responses([{"prompt": "p", "completion": "cut off", "finish_reason": "length", "prefilled": True}]) \
        == [{"prompt": "p", "responses": ["<think>\ncut off"], "finish_reasons": ["length"]}]
    write(data / "samples.jsonl", samples)
    with serving(prefers_longer) as server:
        assert cli.main(judge(server, data / "run", data="samples.jsonl")) == 0
    assert [len(row["chosen"]) for row in read_jsonl(data / "run" / "rows.jsonl")] == [12, 13]


def test_a_judge_that_stops_answering_ends_the_run_and_nothing_is_asked_twice(data, capsys):
    out, first = data / "run", [f"p{i}" for i in range(3)]
    with serving(lambda body, i: prefers_longer(body, i) if asked(body, "PROMPT") in first else
                 (400, "no")) as server:
        write(data / "responses.jsonl", [{**ROWS[0], "prompt": f"p{i}"} for i in range(40)])
        settings = ("n=2", "threads=1", f"url={server.url}")
        assert cli.main(judge(server, out, *settings)) == 2
    said = capsys.readouterr().err
    assert "20 times in a row" in said and "r1grpo judge --out" in said and "--resume" in said
    assert not (out / "rows.jsonl").exists()
    with serving(prefers_longer) as server:
        assert cli.main(["judge", "--out", str(out), "--resume", "--set", f"url={server.url}", "threads=3"]) == 0
        assert len(server.requests) == 2 * 37
        assert len(list(read_jsonl(out / "rows.jsonl"))) == 40
        assert cli.main(["judge", "--out", str(out), "--resume", "--set", "margin=0.5"]) == 2
    assert "margin is 1.0 there, 0.5 here" in capsys.readouterr().err


def test_a_judge_that_never_answers_is_said_however_few_the_questions(data, capsys):
    with serving((400, "no")) as server:
        assert cli.main(judge(server, data / "run", "n=2")) == 2  # six pairs, fewer than end a run
    assert "no verdict at all" in (said := capsys.readouterr().err) and "answered 400" in said
    with serving(prefers_longer) as server:
        assert cli.main(["judge", "--out", str(data / "run"), "--resume", "--set", f"url={server.url}"]) == 0


def test_ctrl_c_keeps_what_was_said(data):
    stopped = threading.Event()

    def answer(body, i):
        if i == 3 and not stopped.is_set():
            stopped.set()
            os.kill(os.getpid(), signal.SIGINT)
        return prefers_longer(body, i)

    out = data / "run"
    write(data / "responses.jsonl", [{**ROWS[0], "prompt": f"p{i}"} for i in range(60)])  # no race to the end
    with serving(answer) as server:
        assert cli.main(judge(server, out, "n=2")) == 130
        said = len(server.requests)
        assert said < 120 and not (out / "rows.jsonl").exists()
        assert cli.main(["judge", "--out", str(out), "--resume"]) == 0
        assert len(server.requests) == 120
    assert len(list(read_jsonl(out / "rows.jsonl"))) == 60


def test_a_cache_that_runs_share_is_found_from_another_directory(data, monkeypatch):
    with serving(prefers_longer) as server:
        assert cli.main(judge(server, data / "run", "n=2", "cache=shared.jsonl")) == 0
        (data / "elsewhere").mkdir()
        monkeypatch.chdir(data / "elsewhere")
        assert cli.main(["judge", "--out", str(data / "run"), "--resume"]) == 0
        assert len(server.requests) == 12 and not list((data / "elsewhere").iterdir())


def test_requests_that_cannot_be_are_refused_before_work(data, capsys):
    out = data / "run"
    with serving(prefers_longer) as server:
        def says(*words, settings=(), arguments=None):
            line = refused(capsys, arguments or judge(server, out, *settings), out)
            assert all(word in line for word in words), line

        says("n must be an even number", settings=("n=3",))
        says("margin must be 0 or more and below 2", settings=("margin=2",))
        says("did you mean 'margin'", settings=("margn=1",))
        says("ask is 'pair'", "'pairs'", settings=("ask=pair",))
        says("JUDGE_NONE", "not set", settings=("key_env=JUDGE_NONE",))
        says("http(s)://host/path", settings=("url=host",))
        says("retries", settings=("retries=-1",))
        says("--model is missing", arguments=judge(server, out)[:1] + judge(server, out)[3:])
        says("url is missing: --set url=...", arguments=judge(server, out)[:7])
        says("--set margin=", arguments=["judge", "--margin", "1"])
        write(data / "bare.jsonl", [{"prompt": "p"}])
        says("row 0 needs", arguments=judge(server, out, data="bare.jsonl"))
        write(data / "text.jsonl", [{"prompt": "p", "responses": "text"}])
        says("row 0 needs", arguments=judge(server, out, data="text.jsonl"))
        assert server.requests == []


# ---- the reward `judge` in a run ----------------------------------------------------------------


def test_grpo_learns_what_the_judge_prefers_and_leaves_out_what_it_does_not_answer():
    """Answers that begin with a word for which the endpoint hangs are timeouts: no reward of 0, and no part
    of their group's baseline."""
    tried, over = threading.Event(), threading.Event()

    def answer(body, _):
        text = asked(body, "ANSWER")
        if text.startswith("b") and tried.is_set():
            over.wait(60)
        return completion(json.dumps({"score": min(10, 2 * text.split().count("a"))}))

    with serving(answer) as server:
        reward = get_judge_reward(server.url, "j", timeout=0.3, retries=0, deadline=1.0)
        trainer = make(rewards=[reward, brevity], max_steps=3, num_generations=8, per_device_train_batch_size=16,
                       verifier_failures=1.0, verifier_deadline=10.0, verifier_workers=2)
        trainer.try_rewards()
        tried.set()
        before, hits = weights(trainer), 0
        for step in trainer:
            batch = trainer.batch
            seen = [split_thinking(text)[1] for text in batch.completions.texts]
            hit = np.array([text.startswith("b") for text in seen])
            reasons = np.array([one or "" for one in batch.reasons["judge_reward"]])
            assert ((reasons == "timeout") == hit).all()
            assert step.get("verdicts/judge_reward/timeout", 0) == step["verdicts/failed"] == hit.sum()
            assert np.isnan(batch.parts[hit]).all() and (batch.advantages[hit] == 0.0).all()
            total = trainer.rewards.total(batch.parts)
            scores = [min(10, 2 * text.split().count("a")) / 10 for text in seen]
            np.testing.assert_array_equal(batch.parts[~hit, 0], np.array(scores)[~hit])
            for g in range(len(hit) // 8):  # the others' advantages are those of a smaller group
                group = np.arange(8 * g, 8 * g + 8)
                rest = group[~hit[group]]
                np.testing.assert_array_equal(batch.advantages[rest], group_advantages(total[rest], len(rest)))
            hits += hit.sum()
        over.set()
    assert trainer.step == 3 and hits and weights(trainer) != before
