"""Rejection sampling: what is kept, what is dropped and why, where a row comes from."""

import pytest
from fakes import FakeModel

from r1grpo.config import EvalConfig
from r1grpo.rejection import rejection_sample, without_thought
from r1grpo.tokenizer import WordTokenizer, split_thinking
from r1grpo.verifiers import Verdict

TOKENIZER = WordTokenizer([*"abcdefgh"])
MODEL = FakeModel(TOKENIZER.vocab_size)
ROWS = [{"prompt": p, "problem_key": f"toy:{p}"} for p in "abcd"]
ARGS = EvalConfig(k=64, max_completion_length=6, batch_prompts=3, seed=4)


def short(prompts, completions, completion_ids, **columns):
    return [float(len(ids) <= 4) for ids in completion_ids]


def sample(**options):
    return rejection_sample(MODEL, ROWS, ARGS, correct=short, processing_class=TOKENIZER,
                            source="r1", **options)


def test_every_sample_is_kept_or_counted():
    done = sample(max_per_problem=5, filters={"no b": lambda row, text: "b" not in text.split()})
    assert done.sampled == 4 * 64 and done.kept == len(done.rows) > 0
    assert done.kept + sum(done.dropped.values()) == done.sampled
    assert {"truncated", "wrong", "no b"} <= set(done.dropped)
    for row in done.rows:
        assert len(row["completion_ids"]) <= 4 and "b" not in row["completion"].split()
        assert row["completion_ids"][-1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(row["completion_ids"][:-1], False) == row["completion"]
    keys = [row["problem_key"] for row in done.rows]
    assert max(map(keys.count, keys)) <= 5
    texts = [(row["problem_key"], row["completion"]) for row in done.rows]
    assert len(set(texts)) == len(texts)


def test_source_leads_back_to_the_sample():
    row = sample(max_per_problem=2).rows[-1]
    source = row["source"]
    assert source["model"] == "r1" and source["seed"] == 4
    prompts = [TOKENIZER.encode(one["prompt"]) for one in ROWS]
    again = MODEL.generate(prompts, 64, 6, seed=4)
    index = source["problem"] * 64 + source["sample"]
    assert again.completion_ids[index].tolist() == row["completion_ids"]
    assert ROWS[source["problem"]]["problem_key"] == row["problem_key"]


def test_rewriting():
    done = sample(rewrite=lambda row, text: "g h" if "a" in text.split() else None,
                  max_per_problem=9)
    assert done.dropped["rewrite"] > 0 and done.dropped["duplicate"] > 0
    assert all(row["completion"] == "g h" for row in done.rows)
    assert done.rows[0]["completion_ids"] == [*TOKENIZER.encode("g h"), TOKENIZER.eos_token_id]
    assert len(done.rows) <= 4


def test_surplus_is_counted_and_the_batch_cannot_matter():
    one = sample(max_per_problem=1)
    assert one.dropped["surplus"] > 0 and one.kept <= 4
    other = rejection_sample(MODEL, ROWS, EvalConfig(k=64, max_completion_length=6, seed=4),
                             correct=short, processing_class=TOKENIZER, source="r1")
    assert other.rows == one.rows
    with pytest.raises(ValueError, match="max_per_problem"):
        sample(max_per_problem=0)
    assert "of 256 samples kept" in str(one)


def test_the_best_by_a_ranking_are_kept_first_and_their_scores_are_told():
    asked = []

    def rank(row, texts):
        asked.append((row["problem_key"], texts))
        return [len(text) + ("e" in text) / 2 for text in texts]

    done = sample(max_per_problem=3, rank=rank)
    everything = {row["problem_key"]: [] for row in ROWS}
    for row in sample(max_per_problem=64).rows:
        everything[row["problem_key"]].append(row["completion"])
    assert dict(asked) == everything  # right ones alone are ranked, each text once
    for key, texts in everything.items():
        best = sorted(texts, key=lambda text: -(len(text) + ("e" in text) / 2))[:3]
        found = [row for row in done.rows if row["problem_key"] == key]
        assert [row["completion"] for row in found] == best
        assert [row["source"]["score"] for row in found] == rank({"problem_key": key}, best)
    assert done.kept + sum(done.dropped.values()) == done.sampled
    for bad in (lambda row, texts: [0.0], lambda row, texts: [float("nan")] * len(texts)):
        with pytest.raises(ValueError, match="finite numbers"):
            sample(rank=bad)


def test_rows_without_a_rule_are_kept_by_the_ranking_alone():
    def some(prompts, completions, completion_ids, **columns):
        return [None if prompt == "a" else float(len(ids) <= 4) for prompt, ids in zip(prompts, completion_ids)]

    def draw(**options):
        return rejection_sample(MODEL, ROWS, ARGS, correct=some, processing_class=TOKENIZER, **options)

    plain = draw()
    assert not [row for row in plain.rows if row["prompt"] == "a"] and plain.dropped["no_verdict"] > 0
    ranked = draw(rank=lambda row, texts: [len(text) for text in texts])
    [general] = [row for row in ranked.rows if row["prompt"] == "a"]
    assert "no_verdict" not in ranked.dropped and len(general["completion_ids"]) > 4


def test_without_a_rule_nothing_is_kept_that_answers_nothing():
    class Thinker(WordTokenizer):
        def decode(self, ids, *more, **options):
            text = super().decode(ids, *more, **options)
            return text if "a" in text.split() else f"<think> {text}"

    done = rejection_sample(MODEL, ROWS, ARGS, correct=lambda completions, **_: [None] * len(completions),
                            processing_class=Thinker([*"abcdefgh"]), max_per_problem=64,
                            rank=lambda row, texts: [len(text) for text in texts])
    assert done.rows and done.dropped["no_answer"] > 0
    assert all(split_thinking(row["completion"])[1] for row in done.rows)


def test_a_failed_verifier_says_nothing_whatever_the_ranking_says():
    def failing(prompts, completions, completion_ids, **columns):
        return [Verdict(False, "timeout", "no result")] * len(completions)

    done = rejection_sample(MODEL, ROWS, ARGS, correct=failing, processing_class=TOKENIZER,
                            rank=lambda row, texts: [1.0] * len(texts))
    assert done.rows == [] and done.dropped["no_verdict"] + done.dropped["truncated"] == done.sampled


def test_trivial_queries_are_learned_without_a_thought():
    rows = [{**row, "thought": row["prompt"] != "a"} for row in ROWS]
    done = rejection_sample(MODEL, rows, ARGS, correct=short, processing_class=TOKENIZER, max_per_problem=9)
    for row in done.rows:
        if row["prompt"] == "a":
            assert row["completion"].startswith("<think>\n\n</think>\n\n")
            assert row["completion_ids"] == [*TOKENIZER.encode(row["completion"]), TOKENIZER.eos_token_id]
        else:
            assert row["completion_ids"][-1] == TOKENIZER.eos_token_id and "\n" not in row["completion"]
    assert {row["prompt"] for row in done.rows} == set("abcd")
    assert without_thought("they greet </think> hello", prefilled=True) == "\n\n</think>\n\nhello"
    assert without_thought("<think> they greet me </think> ") == without_thought("<think> they") == ""
