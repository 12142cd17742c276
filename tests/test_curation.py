"""Curation: pass rates and their interval, what is left out and why, by a sampler that is made up."""

import json

import numpy as np
import pytest

from r1grpo.curation import Measured, Samples, choose, describe, figures, measure, types_of, unique

K = 8
NAN = float("nan")


def row(n, right, judged=K, failed=0):
    return Measured(n, "", right, judged, failed, 0, 0)


def sampler(rewards, failed=()):
    """Rewards by number of the prompt; failed: pairs (number, sample). Remembers what it was asked."""
    def sample(numbers, rows):
        assert [one["n"] for one in rows] == list(numbers)
        sample.asked += numbers
        values = np.array([rewards[n] for n in numbers], float)
        broken = np.array([[(n, i) in failed for i in range(values.shape[1])] for n in numbers])
        return Samples(values, broken, values < 0, np.full(values.shape, 3))

    sample.asked = []
    return sample


def test_both_borders_of_the_interval_are_inside():
    measured = [row(i, right) for i, right in enumerate(range(K + 1))]
    assert choose(measured) == ["all_wrong", "too_hard", None, None, None, None, "too_easy", "too_easy",
                                "all_right"]
    assert choose([row(0, 1, 5), row(1, 1, 6), row(2, 5, 8), row(3, 16, 25)]) == [
        None, "too_hard", None, "too_easy"]  # 0.2, 0.167, 0.625, 0.64
    assert choose([row(0, 0), row(1, K)], 0.0, 1.0) == [None, None]
    assert choose([row(0, 1, 10), row(1, 3, 10), row(2, 7, 10)], 0.1, 0.3) == [None, None, "too_easy"]


def test_pass_rates_count_what_was_judged_alone():
    """A failure, no rule, a share of a program's tests: 1 of the 3 judged is right."""
    rewards = {0: [1, 0, 0.5, NAN, 1, 1], 1: [NAN] * 6, 2: [0, 0, -1, 0, 0, 0]}
    found = [one for batch in measure([{"n": n} for n in range(3)], range(3), sampler(
        rewards, {(0, 4), (0, 5)}), 2) for one in batch]
    assert [(one.right, one.judged, one.failed, one.truncated, one.tokens) for one in found] == [
        (1, 3, 2, 0, 18), (0, 0, 0, 0, 18), (0, 6, 0, 1, 18)]
    assert found[0].pass_rate == 1 / 3 and found[1].pass_rate is None
    reasons = choose(found)
    assert reasons == [None, "no_verdict", "all_wrong"]
    report = figures(found, reasons)
    assert report["samples"] == {"judged": 9, "failed": 2, "truncated": 1, "tokens": 54}
    assert report["pass_rate"] == (1 / 3 + 0) / 2
    assert "verifiers failed on 2" in describe(report) and "1 no_verdict" in describe(report)


def test_the_histogram_has_all_right_and_all_wrong_apart():
    measured = [row(0, 0), row(1, 0), row(2, 1, 100), row(3, 1, 10), row(4, 29, 100), row(5, 3, 10),
                row(6, 99, 100), row(7, 8), row(8, 0, 0)]
    report = figures(measured, choose(measured))
    assert [one["prompts"] for one in report["histogram"]] == [2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert [one["kept"] for one in report["histogram"]] == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert (report["all_wrong"], report["all_right"], report["kept"], report["prompts"]) == (2, 1, 2, 9)
    assert sum(report["dropped"].values()) + report["kept"] == 9
    assert json.loads(json.dumps(report)) == report
    lines = describe(report).splitlines()
    assert lines[1].split() == ["0", "2", "0", "." * 40] and lines[4].split()[-1] == "#" * 20
    assert lines[12].split() == ["1", "1", "0", "." * 20]
    assert "all right: 1 prompts; all wrong: 2" in describe(report)
    assert describe(figures([], [])).endswith("0 of 0 prompts kept; dropped: none")


def test_one_row_of_a_prompt_stays_and_none_of_those_that_disagree():
    rows = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": "what is  1 + 1?", "answer": " 2"},
            {"prompt": "Two?", "answer": "2"}, {"prompt": "three?"}, {"prompt": "two?", "answer": "3"},
            {"prompt": [{"role": "user", "content": "Three?"}], "answer": "3"},
            {"prompt_ids": [1, 2]}, {"prompt_ids": [1, 2]}, {"prompt_ids": [1, 3]}]
    assert unique(rows) == {1: ("duplicate", 0), 2: ("conflict", 4), 4: ("conflict", 2),
                            3: ("duplicate", 5), 7: ("duplicate", 6)}


def test_types_are_cut_to_a_number_or_to_the_rarest():
    measured = [row(i, 4) for i in range(20)] + [row(20, 0)]
    types = ["a"] * 12 + ["b"] * 5 + [""] * 3 + ["c"]

    def kept(**options):
        reasons = choose(measured, types=types, **options)
        assert reasons[20] == "all_wrong" and set(reasons[:20]) <= {None, "surplus"}
        return [i for i, reason in enumerate(reasons) if reason is None]

    equal = kept()
    assert [types[i] for i in equal] == ["a"] * 3 + ["b"] * 3 + [""] * 3
    assert kept(per_type=4) == sorted(kept(per_type=4)) and len(kept(per_type=4)) == 4 + 4 + 3
    assert kept() == equal and kept(seed=1) != equal  # drawn, by the seed alone
    assert set(equal) <= set(kept(per_type=4))
    some = [i for i in range(21) if i not in (0, 13)]  # who is drawn does not hang on who else is there
    reasons = choose([measured[i] for i in some], types=[types[i] for i in some], per_type=20)
    assert set(reasons) == {None, "all_wrong"}
    found = figures(measured, choose(measured, types=types), types)["types"]
    assert found["a"] == {"prompts": 12, "kept": 3, "in_interval": 12}
    assert found["c"] == {"prompts": 1, "kept": 0, "in_interval": 0}
    assert choose([row(0, 0)], types=["a"]) == ["all_wrong"]


def test_types_need_their_column():
    assert types_of([{"task": "math"}, {"task": None}, {"task": 3}, {}], "task") == ["math", "", "3", ""]
    with pytest.raises(ValueError, match="no row has a column 'kind'; there are answer, prompt"):
        types_of([{"prompt": "a", "answer": "1", "prompt_ids": [1]}], "kind")


def test_what_was_measured_is_not_measured_again():
    rng = np.random.default_rng(0)
    numbers = [0, 2, 3, 5, 7, 8, 11]
    rewards = {n: rng.integers(0, 2, K) for n in numbers}
    rows = [{"n": n} for n in numbers]
    whole = [one for batch in measure(rows, numbers, sampler(rewards), 3) for one in batch]
    assert [one.row for one in whole] == numbers
    for stop in range(len(numbers) + 1):
        sample = sampler(rewards)
        rest = [one for batch in measure(rows, numbers, sample, 2, whole[:stop]) for one in batch]
        assert whole[:stop] + rest == whole and sample.asked == numbers[stop:]
    other = [rows[0], {**rows[1], "answer": "changed"}, *rows[2:]]
    with pytest.raises(ValueError, match="row 2 was measured with other content"):
        next(measure(other, numbers, sampler(rewards), 3, whole[:3]))
    with pytest.raises(ValueError, match="7 prompts were measured, and the data hold 2"):
        next(measure(rows[:2], numbers[:2], sampler(rewards), 3, whole))
