"""Rejection sampling: what is kept, what is dropped and why, where a row comes from."""

import pytest
from fakes import FakeModel

from r1grpo.config import EvalConfig
from r1grpo.rejection import rejection_sample
from r1grpo.tokenizer import WordTokenizer

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
