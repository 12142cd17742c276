"""Decontamination: what is found, what is not, and that a slow plain search finds the same."""

from __future__ import annotations

import numpy as np
import pytest

from r1grpo.contamination import decontaminate, words_of
from r1grpo.rows import load_rows
from real_data import data_file

TEN = "one two three four five six seven eight nine ten"
NINE = TEN.rsplit(" ", 1)[0]


def rows(*prompts):
    return [{"prompt": prompt} for prompt in prompts]


def reasons(train, evaluation, **options):
    kept, report = decontaminate(train, evaluation, **options)
    assert kept == [row for i, row in enumerate(train) if i not in {one.row for one in
                                                                    report.dropped}]
    assert report.rows == len(train) and sum(report.counts.values()) == len(report.dropped)
    return {one.row: (one.reason, one.other) for one in report.dropped}


def test_ten_words_are_found_and_nine_are_not():
    train = rows(f"before {TEN} after", f"before {NINE} after", f"{NINE}x", NINE)
    assert reasons(train, rows("other", f"also {TEN}, and")) == {0: ("overlap", 1)}
    assert reasons(train, rows("other", f"also {TEN}, and"), n=9) \
        == {0: ("overlap", 1), 1: ("overlap", 1), 3: ("overlap", 1)}
    assert reasons(train, rows(NINE)) == {3: ("exact", 0)}


def test_the_spelling_of_words():
    train = rows(TEN.upper(), TEN.replace(" ", ",\n"), f"({TEN.replace('five', 'f_i-v_e')})",
                 TEN.replace("five", "ｆｉｖｅ"), TEN.replace(" five", "five"))
    assert reasons(train, rows(f"x {TEN}")) == {i: ("overlap", 0) for i in range(4)}
    assert words_of("第三行，abc中文1") == ["第", "三", "行", "abc", "中", "文", "1"]
    assert words_of("ひら カタ 한국") == list("ひらカタ한국")
    text = "小明有五个苹果他吃了两个"
    assert reasons(rows(f"问：{text}？"), rows(f"{text}还剩几个")) == {0: ("overlap", 0)}
    assert reasons(rows(text[:9]), rows(f"{text}还剩几个")) == {}


def test_signs_make_another_problem():
    """f > 0 and f < 0 have the same words; they are no duplicates, and too short to overlap."""
    train = rows("solve f > 0", "solve f < 0", "Solve  f > 0")
    assert reasons(train, rows("solve f = 0")) == {2: ("duplicate", 0)}
    assert reasons(train, rows("SOLVE f <\n0")) == {1: ("exact", 0), 2: ("duplicate", 0)}


def test_duplicates_have_all_their_text_in_common():
    train = [{"prompt": "p", "completion": one} for one in "aba"] + [{"prompt": "p"}, {"ids": [1]},
                                                                    {"ids": [1]}]
    assert reasons(train, []) == {2: ("duplicate", 0)}


def test_solutions_and_messages_are_read_but_not_across_their_borders():
    first, last = TEN.split(" five ")
    said = [{"role": "user", "content": first}, {"role": "assistant", "content": f"five {last}"}]
    apart = {"prompt": first, "solution": f"five {last}"}
    evaluation = [{"prompt": "q", "solution": TEN}]
    assert reasons([{"messages": said}, apart], evaluation) == {}
    said[0]["content"] = f"so {TEN}"
    assert reasons([{"messages": said}, {"prompt": "x", "completion": TEN}, {"note": TEN},
                    {"prompt": said}], evaluation) \
        == {0: ("overlap", 0), 1: ("overlap", 0), 3: ("overlap", 0)}
    assert reasons([{"note": TEN}], [{"note": TEN}], columns=["note"]) == {0: ("overlap", 0)}


def test_an_instruction_in_every_question_is_no_evidence():
    train = rows(f"mine. {TEN}", "mine. question 3 of all of these many long questions is hard")
    evaluation = rows(*(f"question {i} of all of these many long questions is hard. {TEN}"
                        for i in range(20)))
    _, report = decontaminate(train, evaluation)
    assert [(one.row, one.other) for one in report.dropped] == [(1, 3)]
    assert TEN in report.instructions and "no evidence" in str(report)
    few = decontaminate(train, evaluation[:9])[1]
    assert len(few.dropped) == 2 and few.instructions == []


def test_blocks_and_a_plain_search_agree(monkeypatch):
    """Words from a small vocabulary, so that many rows share some words by chance."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(0, 14))) for _ in range(500)]
    train, evaluation = rows(*texts[:400]), rows(*texts[400:])

    def grams(text):
        words = text.split()
        return {tuple(words[i:i + 6]) for i in range(len(words) - 5)}
    theirs = [grams(row["prompt"]) for row in evaluation]
    prompts = [row["prompt"] for row in evaluation if row["prompt"]]
    want = {i for i, row in enumerate(train)
            if row["prompt"] in prompts or any(grams(row["prompt"]) & one for one in theirs)}
    for block in (2048, 7):
        monkeypatch.setattr("r1grpo.contamination._BLOCK", block)
        _, report = decontaminate(train, evaluation, n=6)
        found = {one.row for one in report.dropped if one.reason != "duplicate"}
        assert found == want and 20 < len(want) < 200
        for one in report.dropped:
            if one.reason == "overlap":
                assert tuple(one.words.split()) in grams(train[one.row]["prompt"]) \
                    & theirs[one.other]


def test_colliding_hashes_do_not_drop_a_row(monkeypatch):
    monkeypatch.setattr("r1grpo.contamination._FACTOR", np.uint64(0))  # every hash is 0
    train = rows(TEN, f"ten {NINE}", f"{NINE} nine")
    assert reasons(train, rows(f"ten {NINE} nine x", f"x {TEN}")) \
        == {0: ("overlap", 1), 1: ("overlap", 0), 2: ("overlap", 0)}
    assert reasons(rows(" ".join(reversed(TEN.split()))), rows(f"x {TEN}")) == {}


def test_the_report_reads():
    _, report = decontaminate(rows(TEN, "a", "a", "b"), rows(f"x {TEN}", "b"))
    assert str(report).splitlines() == [
        "1 of 4 training rows kept; dropped: 1 exact, 1 overlap, 1 duplicate (10-grams)",
        "  exact: row 3 and evaluation row 1: b",
        f"  overlap: row 0 and evaluation row 0: {TEN}",
        "  duplicate: row 2 and training row 1: a"]


def test_nothing_to_do():
    assert decontaminate([], [])[0] == [] and decontaminate([], rows(TEN))[0] == []
    assert reasons(rows("a", ""), rows("")) == {} == reasons(rows("a"), [])
    with pytest.raises(ValueError, match="n is 0"):
        decontaminate([], [], n=0)


def test_gsm8k_against_part_of_itself():
    train = load_rows(data_file("gsm8k_train.jsonl"))
    kept, report = decontaminate(train, train[100:300])
    assert {100 <= one.row < 300 for one in report.dropped if one.reason == "exact"} == {True}
    assert report.counts["exact"] == 200 and report.counts["overlap"] < 50
    assert decontaminate(kept, train[100:300])[0] == kept
