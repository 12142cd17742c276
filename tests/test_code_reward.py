"""The reward `code` and the problems made for it: functions to be written, tests that are hidden."""

import json

import pytest
from command_run import GRPO_SET, command, write
from toy_grpo import make

from r1grpo import cli
from r1grpo.commands.inputs import check_tests
from r1grpo.config import ConfigError
from r1grpo.rewards import code_reward, get_code_reward
from r1grpo.rewards.named import named_reward
from r1grpo.rundir import read_jsonl
from r1grpo.tasks.functions import FAMILIES, HIDDEN, sample_functions
from r1grpo.tokenizer import WordTokenizer
from r1grpo.verifiers import verify_code
from r1grpo.verifiers.sandbox import try_level


def test_problems_are_a_function_of_their_arguments():
    rows = sample_functions("train", 64, 7)
    assert rows == sample_functions("train", 64, 7) != sample_functions("train", 64, 8)
    assert len({row["problem_key"] for row in rows}) == 64
    held = {row["problem_key"] for row in sample_functions("test", 100, 7)}
    assert not held & {row["problem_key"] for row in sample_functions("train", 600, 1)}
    with pytest.raises(ValueError, match="'ood' is none of train, test"):
        sample_functions("ood", 1, 0)


def test_tests_are_hidden():
    for row in sample_functions("train", 80, 3):
        assert len(row["tests"]) == HIDDEN
        for test in row["tests"]:
            assert f"solve({test['args'][0]!r})" not in row["prompt"]


def test_solutions_pass_and_guesses_do_not(level):
    for row in sample_functions("test", 2 * len(FAMILIES), 5):
        assert verify_code(row["solution"], row["tests"], level=level).correct, row
        assert not verify_code("def solve(x):\n    return x", row["tests"], level=level).correct, row


def test_the_reward(level):
    row, other = sample_functions("train", 2, 0)
    texts = [row["solution"], "def solve(x): return 0", "no program (", "while True: pass"]
    tests = [row["tests"]] * 4
    found = code_reward(["p"] * 4, texts, [[1]] * 4, tests=tests, level=level, seconds=0.3)
    assert [one.reason for one in found] == ["correct", "wrong", "unparsed", "wrong"]
    parts = code_reward(["p"] * 4, texts, [[1]] * 4, tests=tests, level=level, seconds=0.3, partial=True)
    assert parts == found and "test 1 of 6" in parts[1].detail
    assert [one.share for one in parts if one.reason != "wrong"] == [1.0, 0.0] and parts[3].share == 0.0
    assert all(one.share is None for one in found) and 0.0 <= parts[1].share < 1.0
    chat = [[{"role": "assistant", "content": f"</think>\n```python\n{row['solution']}```"}]]
    assert code_reward(["p"], chat, [[1]], tests=[row["tests"]], prefilled=[True], level=level)[0].correct
    assert code_reward(["p"], ["x"], [[1]], tests=[None], level=level) == [None]


def test_shares_are_rewards_and_reasons_are_logged(level):
    row = {"prompt": "a", "tests": [f"assert f({i}) == {i}" for i in range(4)]}
    words = ["def\\x20f(x):return\\x20min(x,2)", "f=abs"]
    tokenizer = WordTokenizer([*(f"exec('{one}');" for one in words), "a", "Q"])
    trainer = make(rewards=get_code_reward(level=level, partial=True), tokenizer=tokenizer, rows=[row] * 2,
                   max_completion_length=1, max_steps=1)
    next(iter(trainer))
    assert (0.75, "wrong") in list(zip(trainer.batch.parts[:, 0], trainer.batch.reasons["code_reward"]))


def test_by_name_and_refused_before_a_run(monkeypatch):
    monkeypatch.setattr("r1grpo.verifiers.sandbox.try_level", lambda level: ("no bubblewrap", False))
    for options, match in (({}, "level 'full' here: no bubblewrap"), ({"level": "none"}, "accept_no_sandbox"),
                           ({"code_language": "basic"}, "basic"), ({"seconds": 0}, "seconds"),
                           ({"levle": "full"}, "level")):
        with pytest.raises(ConfigError, match=match):
            named_reward("code", options, 100, lambda name: None)
    monkeypatch.setattr("r1grpo.verifiers.sandbox.try_level", lambda level: ("walls", True))
    reward = named_reward("code", {"total_seconds": 3.0}, 100, lambda name: None)
    assert reward.import_name == "r1grpo.rewards.code:code_reward"
    assert reward.options["deadline"] > reward.options["total_seconds"] == 3.0


def test_a_run_says_what_held_its_programs(level, here, tmp_path, capsys):
    """In the log, in the manifest, with every sample that was judged so, and in what audit shows."""
    rows = sample_functions("train", 3, 0)
    write(here / "functions.jsonl", [{"prompt": f"what is {i} ?", "tests": row["tests"]}
                                     for i, row in enumerate(rows)] + [{"prompt": "what ?", "tests": None}])
    options = ("max_steps=2", "shuffle_dataset=false", f"reward_options.code.level={level}")
    assert cli.main(command("grpo", tmp_path / "run", "--reward", "code", data="functions.jsonl",
                            settings=(*GRPO_SET, *options))) == 0
    words = f"{level} ({try_level(level)[0]})"
    assert f"sandbox of code_reward: {words}\n" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["run"]["sandbox"] == {"code_reward": words}
    samples = list(read_jsonl(tmp_path / "run" / "samples.jsonl"))
    assert len(samples) == 16
    for one in samples:
        judged = one["prompt"] != "what ?"
        assert one.get("sandbox") == ({"code_reward": level} if judged else None)
    assert cli.main(["audit", str(tmp_path / "run"), "--limit", "1"]) == 0
    assert f"sandbox {level})" in capsys.readouterr().out
    assert cli.main(command("reject", tmp_path / "kept", "--reward", "code", data="functions.jsonl",
                            settings=("k=1", "max_completion_length=8", options[-1]))) == 0
    kept = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert kept["run"]["sandbox"] == {"code_reward": words}


def test_tests_that_are_none_are_refused_before_a_run():
    with pytest.raises(ValueError, match=r"data.jsonl: row 1: tests\[0\]: {'in': 'x'} is none of"):
        check_tests([{"tests": ["assert f(1) == 2"]}, {"tests": [{"in": "x"}]}], "data.jsonl", "python")
    check_tests([{"tests": None}, {}], "data.jsonl", "python")


def test_twenty_steps_on_programs(level):
    """Programs of random statements: some hang, some end the process, take memory or the output; each
    gets its verdict from the sandbox within its deadline, and none is the pool's. One statement defines
    the function that is asked for, and in twenty steps the stand-in model finds it."""
    row, = sample_functions("train", 1, 2)
    right = f"exec({row['solution']!r});".replace(" ", r"\x20")
    words = [right, "exec('while(1):0');", "exit();", "x=[0]*10**10;", "solve=abs;", "print('x'*10**6);",
             "y=1;", "("]
    tokenizer = WordTokenizer([*words, "Q"])
    trainer = make(rewards=get_code_reward(level=level, seconds=0.2), tokenizer=tokenizer,
                   rows=[{**row, "prompt": word} for word in words], max_steps=20, max_completion_length=4,
                   per_device_train_batch_size=16, steps_per_generation=1, learning_rate=0.3)
    reasons, rewards = set(), []
    for metrics in trainer:
        reasons |= set(trainer.batch.reasons["code_reward"])
        rewards.append(metrics["reward"])
        assert metrics["verdicts/failed"] == 0
    assert trainer.step == 20
    assert {"correct", "wrong", "unparsed"} <= reasons <= {"correct", "wrong", "unparsed", "truncated"}
    assert sum(rewards[10:]) > sum(rewards[:10])
