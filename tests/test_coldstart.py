"""Candidates of the cold start: examples before a question, out to be edited, back judged again; what is readable."""

import json
from collections import Counter

import pytest
from fakes import FakeModel

from r1grpo.coldstart import (END_SHOT, TamperedError, candidates_of, choose_examples, match_samples, of_a_run,
                              take_back, with_examples)
from r1grpo.config import EvalConfig
from r1grpo.readable import FILTERS, LONGEST
from r1grpo.rejection import Sieve, rejection_sample
from r1grpo.tokenizer import WordTokenizer
from r1grpo.verifiers import Verdict

TOKENIZER = WordTokenizer([*"abcdefgh"])
ROWS = [{"prompt": p, "wish": w} for p, w in zip("abcd", "efgh")]


def wished(prompts, completions, completion_ids, wish, **columns):
    return [Verdict(w in text.split(), "correct" if w in text.split() else "wrong")
            for text, w in zip(completions, wish, strict=True)]


@pytest.fixture(scope="module")
def out():
    done = rejection_sample(FakeModel(TOKENIZER.vocab_size), ROWS, EvalConfig(k=512, max_completion_length=6, seed=4),
                            correct=wished, processing_class=TOKENIZER, source="zero", max_per_problem=2)
    return json.loads(json.dumps(candidates_of(done.rows, "wished")))


def lines(rows):
    return [(f"mine.jsonl line {i + 1}", row) for i, row in enumerate(rows)]


def test_candidates_say_what_they_are_and_hold_no_ids(out):
    assert len(out) == 8 and len({one["id"] for one in out}) == 8
    for one in out:
        assert set(one) == {"id", "prompt", "wish", "completion", "source", "verdict", "kept"}
        assert one["source"]["model"] == "zero" and one["source"]["seed"] == 4
        assert one["verdict"] == "right" and one["kept"] == "right by wished"


def test_edited_rows_come_back_with_their_provenance(out):
    back = [dict(one) for one in out[1:]]
    back[2] |= {"completion": f"{back[2]['wish']} a a", "note": "shorter"}
    found = take_back(out, lines(reversed(back)), wished, TOKENIZER)
    assert found.counts == {"as_sampled": 6, "edited": 1, "dropped": 1}
    for row, one in zip(reversed(found.rows), out[1:]):
        edited = one["id"] == out[3]["id"]
        assert row == {"prompt": one["prompt"], "wish": one["wish"],
                       "completion": f"{one['wish']} a a" if edited else one["completion"],
                       "source": {**one["source"], "candidate": one["id"], "edited": edited}}


def test_an_edited_row_that_became_wrong_is_refused_by_name(out):
    back = [dict(one) for one in out]
    back[2]["completion"] = back[5]["completion"] = "a a"
    with pytest.raises(ValueError) as caught:
        take_back(out, lines(back), wished, TOKENIZER)
    said = str(caught.value)
    for i in (2, 5):
        assert f"mine.jsonl line {i + 1} ({out[i]['id']}): its answer is wrong by wished" in said
    assert said.startswith("2 edited rows cannot be learned: ") and "line 2 " not in said

    def failing(prompts, completions, completion_ids, **columns):
        return [Verdict(False, "timeout", "no result")] * len(completions)

    with pytest.raises(ValueError, match="line 3 .*could not be judged: timeout"):
        take_back(out, lines(back), failing, TOKENIZER)
    with pytest.raises(ValueError, match="line 3 .*does not pass the filter 'short'"):
        take_back(out, lines(back), lambda completions, **_: [1.0] * len(completions), TOKENIZER,
                  {"short": lambda row, text: False})
    opinion = take_back(out, lines(back), lambda completions, **_: [None] * len(completions), TOKENIZER)
    assert opinion.counts["edited"] == 2  # no rule can check it: it is as its editor says


@pytest.mark.parametrize("change, words", [
    ({"id": "0" * 16}, "line 2: its id is '0000000000000000', which is no candidate's"), ({"id": 7}, "its id is 7"),
    ({"prompt": "b"}, "another 'prompt'"), ({"wish": "a"}, "another 'wish'"), ({"source": {}}, "another 'source'"),
    ({"completion": " "}, "delete its line"), ({"completion": None}, "delete its line")])
def test_nothing_but_completions_may_be_edited(out, change, words):
    with pytest.raises(ValueError, match=words):
        take_back(out, lines([out[0], {**out[1], **change}]), wished, TOKENIZER)


def test_a_row_twice_and_candidates_that_were_edited_themselves(out):
    with pytest.raises(ValueError, match="line 3: .* is there twice, first in mine.jsonl line 1"):
        take_back(out, lines([out[0], out[1], out[0]]), wished, TOKENIZER)
    for change in ({"completion": "e e e"}, {"source": {**out[0]["source"], "seed": 5}}, {"prompt": "c"}):
        with pytest.raises(TamperedError, match="edit a copy"):
            take_back([{**out[0], **change}, *out[1:]], lines(out), wished, TOKENIZER)


def test_a_thought_that_the_prompt_opened_is_whole_again_and_an_answer_ends_where_it_does():
    [one] = candidates_of([{"prompt": "p", "completion": f"so 7\n</think>7.{END_SHOT} next", "prompt_ids": [1],
                            "completion_ids": [2], "tokenizer": "t", "source": {"verdict": "none", "score": 2.0}}],
                          "rule", ["why"], END_SHOT)
    assert one.pop("id") and one == {"prompt": "p", "completion": "<think>\nso 7\n</think>7.", "kept": "why",
                                     "verdict": "none", "source": {"verdict": "none", "score": 2.0}}


# ---- asked --------------------------------------------------------------------------------------


def test_examples_before_a_question():
    shots = [{"prompt": "1?", "completion": "<think>t</think>1"}, {"prompt": "2?", "completion": "2"}]
    want = "Problem: 1?\nSolution: <think>t</think>1\n\nProblem: 2?\nSolution: 2\n\nProblem: q"
    assert with_examples("q", shots) == want
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert with_examples(chat, shots) == [chat[0], {"role": "user", "content": want}] and chat[1]["content"] == "q"


def test_examples_are_drawn_by_seed_and_number_and_never_the_question_itself():
    examples = [{"prompt": str(i)} for i in range(6)]
    drawn = [choose_examples(examples, {"prompt": "3"}, 2, 0, i) for i in range(40)]
    assert drawn == [choose_examples(examples, {"prompt": "3"}, 2, 0, i) for i in range(40)]
    assert all(len(set(one)) == 2 and 3 not in one for one in drawn)
    assert {k for one in drawn for k in one} == {0, 1, 2, 4, 5} and len(set(map(tuple, drawn))) > 10
    assert choose_examples(examples[:1], {"prompt": "0"}, 2, 0, 0) == []


# ---- sampled by a run ---------------------------------------------------------------------------


def test_samples_of_a_run_are_judged_anew_and_the_newest_are_first():
    samples = [{"prompt": "a", "completion": "e a", "step": 1, "sample": 0, "rewards": {"r": 0.0}},
               {"prompt": "a", "completion": "a a", "step": 1, "sample": 1, "rewards": {"r": 1.0}},
               {"prompt": "z", "completion": "e", "step": 1}, {"prompt": "a", "completion": "", "step": 2},
               {"prompt": "a", "completion": "e b", "step": 2, "sample": 3, "finish_reason": "length"},
               {"prompt": "a", "completion": "e c", "step": 3, "sample": 4}, {"prompt": "b", "completion": "f"},
               {"prompt": "a", "completion": "e </think> e", "step": 4, "attempt": 1, "stage": "zero"}]
    dropped, told = Counter(), []
    matched = match_samples(ROWS, samples)
    assert [len(one) for one in matched] == [5, 1, 0, 0]
    found = list(of_a_run(ROWS, matched, wished, Sieve({}, None, None, 2), TOKENIZER, {"run": "R"}, dropped,
                          lambda: told.append(1)))
    assert [(row["prompt"], row["completion"]) for row in found] == [
        ("a", "<think>\ne </think> e"), ("a", "e c"), ("b", "f")] and len(told) == 4
    assert found[0]["source"] == {"run": "R", "problem": 0, "stage": "zero", "step": 4, "attempt": 1}
    assert found[1]["source"] == {"run": "R", "problem": 0, "step": 3, "sample": 4}
    assert dropped == {"truncated": 1, "wrong": 1, "surplus": 1}


# ---- readable -----------------------------------------------------------------------------------

ENGLISH = {"prompt": "How many apples are there?"}


@pytest.mark.parametrize("name, row, text, keeps", [
    ("language", ENGLISH, "<think>so we count the apples, $x=7$ \u82f9\u679c</think>7", False),
    ("language", ENGLISH, "<think>we count all apples one by one and the number is seven \u82f9</think>", True),
    ("language", ENGLISH, "<think>we count</think>\u4e03\u4e2a\u82f9\u679c", True),  # the thought alone is looked at
    ("language", ENGLISH, "we count \u82f9\u679c</think>7", False),  # its prompt opened it
    ("language", {"prompt": "\u6709\u51e0\u4e2a\u82f9\u679c\uff1f"}, "<think>\u5171\u6709\u4e03\u4e2a x = 7</think>7", True),
    ("language", {"prompt": "\u6709\u51e0\u4e2a\u82f9\u679c\uff1f"}, "<think>let us count</think>7", False),
    ("language", {**ENGLISH, "language": "zh"}, "<think>let us count</think>7", False),
    ("language", {"prompt": [{"role": "user", "content": "How many?"}]}, "<think>let us count</think>7", True),
    ("language", {"prompt": "1 + 1 = ?"}, "<think>let us count</think>2", True),  # the prompt has no language
    ("paragraphs", {}, "<think>" + "word " * LONGEST + "\n\n" + "word " * LONGEST + "</think>", True),
    ("paragraphs", {}, "<think>" + "word " * LONGEST + "\nword</think>", False),
    ("paragraphs", {}, "<think>ok</think>" + "word " * 999, True),
    ("paragraphs", {}, "<think>" + "\u6570" * (LONGEST + 1) + "</think>", False),
    ("code", {}, "<think>so\n```python\nprint(1)\n```\n</think>", False),
    ("code", {}, "<think>so</think>\n```python\nprint(1)\n```\n", True),
    ("code", {}, "<think>the mark ``` in a line</think>", True),
    ("code", {}, "<think>indented\n \n\t ~~~\nx\n</think>", False),
    ("code", {}, "<think>a" + "\n \n" * 150_000 + "b</think>", True),  # minutes, were it by the square
    ("repetition", {}, "<think>" + "is it so or is it not so, let me see that again. " * 9 + "</think>", False),
    ("repetition", {}, "<think>" + "wait " * 40 + "</think>", False),
    ("repetition", {}, "<think>" + " ".join(map(str, range(99))) + "</think>", True),
    ("repetition", {}, "<think>wait, wait</think>" + "so " * 99, True),
    ("repetition", {}, "<think>" + "\u6211\u4eec\u518d\u6765\u7b97\u4e00\u6b21" * 9 + "</think>", False)])
def test_what_is_readable(name, row, text, keeps):
    assert FILTERS[name](row, text) is keeps
