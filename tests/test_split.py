"""The split by hash, the problem sampler, and the leak scan."""

import json
from collections import Counter

import pytest

from r1grpo.data import all_questions, scan_leaks
from r1grpo.tasks import sample_general, sample_problems, split_of
from r1grpo.tasks.countdown import countdown_key, make_countdown, solvable, split_problems


def test_sizes_of_the_countdown_split():
    sizes = {split: len(split_problems(split)) for split in ("train", "validation", "test")}
    assert sum(sizes.values()) == 13_215
    assert sizes["test"] >= 2_000 and sizes["validation"] >= 300
    assert sizes["test"] / 13_215 == pytest.approx(0.16, abs=0.01)


def test_the_split_is_pinned():
    """A changed hash would silently move test problems into train."""
    keys = ["countdown:1 1 2=2", "countdown:1 1 2=3", "countdown:2 5 7=37",
            "arithmetic:31 - 1 * 3", "arithmetic:31 - 2 * 3"]
    assert [split_of(key) for key in keys] == [
        "test", "validation", "train", "test", "train"]
    assert split_of("countdown:1 2 3 4=24") == split_of("arithmetic:30 + 5 * 3 - 1 + 2") == "ood"
    for bad in ("countdown", ":x", "x:"):
        with pytest.raises(ValueError, match="task:problem"):
            split_of(bad)


def test_a_longer_chain_follows_its_first_two_steps():
    for first in range(21, 51):
        chain = f"arithmetic:{first} + 5 * 3"
        assert split_of(f"{chain} - 6") == split_of(chain)


def test_every_wording_and_language_shares_the_key():
    problems = [make_countdown((2, 5, 7), 37, language, wording)
                for language in ("en", "zh") for wording in range(3)]
    assert len({p.question for p in problems}) == 6
    assert {p.key for p in problems} == {countdown_key((7, 2, 5), 37)} == {"countdown:2 5 7=37"}
    assert all_questions(problems[0]) == {p.question for p in problems}


@pytest.mark.parametrize("split", ["train", "validation", "test", "ood"])
def test_samples_belong_to_their_split(split):
    problems = sample_problems(split, 200, seed=4)
    assert {problem.split for problem in problems} == {split}
    assert Counter(p.task for p in problems) == {"countdown": 150, "arithmetic": 50}
    assert len({problem.key for problem in problems}) == 200
    assert 60 <= sum(p.language == "zh" for p in problems) <= 140
    assert problems == sample_problems(split, 200, seed=4) != sample_problems(split, 200, seed=5)


def test_ood_is_harder_and_solvable():
    from r1grpo.tasks.countdown import chains
    for problem in sample_problems("ood", 40, seed=0, mix={"countdown": 1.0}):
        assert len(problem.numbers) == 4 and 1 <= problem.target <= 150
        assert problem.target in {chain.value for chain in chains(problem.numbers)}
    assert max(p.target for p in sample_problems("ood", 40, seed=0, mix={"countdown": 1})) > 100


def test_a_small_split_is_gone_through_before_it_repeats():
    size = len(split_problems("validation"))
    problems = sample_problems("validation", size + 5, seed=0, mix={"countdown": 1.0})
    assert len({p.key for p in problems[:]}) == size


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'dev'"):
        sample_problems("dev", 1, seed=0)
    with pytest.raises(ValueError, match="chess"):
        sample_problems("train", 1, seed=0, mix={"chess": 1.0})


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
                    encoding="utf-8")
    return path


def test_the_scan_finds_keys_and_texts(tmp_path):
    test = [make_countdown(*item, "en") for item in split_problems("test")[:50]]
    test += sample_problems("test", 10, seed=0, mix={"arithmetic": 1.0})
    clean = [{"problem_key": p.key, "prompt": p.row("r1")["prompt"]}
             for p in sample_problems("train", 50, seed=0) + sample_general("train", 50, seed=0)]
    assert scan_leaks([write(tmp_path / "clean.jsonl", clean)], test) == []

    chinese = make_countdown(test[7].numbers, test[7].target, "zh", 2)
    other = split_problems("test")[60]                      # not in `test`: found by its hash
    leaky = [*clean, {"problem_key": test[3].key}, {"text": f"first User: {chinese.question} "
             "Assistant: yes"}, {"pair": {"prompt": test[55].question}},
             {"meta": [{"problem_key": countdown_key(*other)}]}]
    found = scan_leaks([write(tmp_path / "leaky.jsonl", leaky)], test)
    assert [(leak.line - len(clean), leak.key, leak.field) for leak in found] == [
        (1, test[3].key, "problem_key"), (2, test[7].key, "text"),
        (3, test[55].key, "pair.prompt"), (4, countdown_key(*other), "meta.problem_key")]


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_text('{"a": 1}\n{"a":', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        scan_leaks([path], [])


def test_no_test_problem_is_in_the_train_space():
    train = {countdown_key(*item) for item in split_problems("train")}
    assert len(train) + len(split_problems("validation")) + len(split_problems("test")) == \
        len({countdown_key(*item) for item in solvable()})
