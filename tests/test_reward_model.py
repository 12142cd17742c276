"""RewardTrainer and ModelReward: what the model sees, what it learns, which rows it judges."""

import math

import numpy as np
import pytest
from fakes import FakeModel

from r1grpo.config import ConfigError, RewardConfig
from r1grpo.reward_model import ModelReward, RewardTrainer, scored_ids
from r1grpo.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([*"abcdefgh"])
PAIRS = [{"prompt": p, "chosen": "<think> h </think> b", "rejected": "<think> h </think> c"}
         for p in "adef"]
LABELLED = [{"prompt": p, "completion": r, "label": int(r == "b")} for p in "ad" for r in "bc"]


def make(rows, **options):
    defaults = dict(per_device_train_batch_size=4, learning_rate=0.1, max_steps=20)
    return RewardTrainer(FakeModel(TOKENIZER.vocab_size), RewardConfig(**defaults | options), rows,
                         rows, TOKENIZER)


@pytest.mark.parametrize("text, part, seen", [
    ("<think> a b </think> c d", "summary", "c d"), ("<think> a b", "summary", ""),
    ("c d", "summary", "c d"), ("<think> a </think> c", "whole", "<think> a </think> c")])
def test_what_the_model_sees(text, part, seen):
    assert scored_ids([5], text, part, TOKENIZER) == \
        [5, *TOKENIZER.encode(seen), TOKENIZER.eos_token_id]


@pytest.mark.parametrize("kind, row", [
    ("pairwise", {"chosen": "b", "rejected": "c", "rejected_finish_reason": "length"}),
    ("pointwise", {"completion": "c", "label": 0, "finish_reason": "length"})])
def test_only_a_response_that_ended_is_closed(kind, row):
    assert scored_ids([5], "b", "whole", TOKENIZER, "length") == [5, *TOKENIZER.encode("b")]
    [(ids, _)] = make([{"prompt": "a", **row}], kind=kind).examples
    assert ids[-1] == TOKENIZER.encode("a c")
    assert kind == "pointwise" or ids[0] == [*TOKENIZER.encode("a b"), TOKENIZER.eos_token_id]
    seen = []
    reward = ModelReward(lambda ids: seen.extend(ids) or np.zeros(len(ids)), TOKENIZER, "whole")
    reward(prompts=["a", "a"], completions=["c", "c"], completion_ids=[[], []],
           finish_reasons=["length", "stop"])
    assert seen == [ids[-1], [*ids[-1], TOKENIZER.eos_token_id]]


def test_pairwise_learns_the_order():
    trainer = make(PAIRS)
    assert trainer.evaluate() == {"accuracy": 0.5, "n": 4}  # all scores tie
    history = trainer.train()
    assert history[0]["loss"] == pytest.approx(math.log(2))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert trainer.evaluate()["accuracy"] == 1.0


def test_labels_of_unequal_number_are_judged_beside_their_base_rate():
    rows = [{**LABELLED[0], "label": label} for label in (1, 1, 1, 0)]
    trainer = make(rows, kind="pointwise")
    trainer.model.score = lambda ids: np.ones(len(ids))     # always "safe"
    assert trainer.evaluate() == {"accuracy": 0.75, "n": 4, "base_rate": 0.75,
                                  "balanced_accuracy": 0.5}
    trainer = make(rows[:2], kind="pointwise")
    trainer.model.score = lambda ids: np.ones(len(ids))
    assert trainer.evaluate() == {"accuracy": 1.0, "n": 2, "base_rate": 1.0,
                                  "balanced_accuracy": 1.0}


def test_pointwise_learns_the_label():
    trainer = make(LABELLED, kind="pointwise")
    trainer.train()
    assert trainer.evaluate() == {"accuracy": 1.0, "n": 4, "base_rate": 0.5,
                                  "balanced_accuracy": 1.0}
    b, c = (trainer.model.head[TOKENIZER.token_id(one)] for one in "bc")
    assert b > 0 > c


def test_pairwise_looks_at_the_summary_only():
    rows = [{"prompt": "a", "chosen": f"<think> {t} </think> b", "rejected": "c"} for t in "de"]
    one, two = make(rows[:1]).examples, make(rows[1:]).examples
    assert one == two
    assert make(rows[:1], part="whole").examples != make(rows[1:], part="whole").examples


@pytest.mark.parametrize("rows, options, words", [
    ([{"prompt": "a", "chosen": "b"}], {}, "row 0 has no 'rejected'"),
    ([{"prompt": "a", "completion": "b"}], {"kind": "pointwise"}, "no 'label'"),
    ([{"prompt": "a", "completion": "b", "label": 2}], {"kind": "pointwise"}, "label is 2"),
    ([{"prompt": "a", "completion": "b", "label": "good"}], {"kind": "pointwise"}, "row 0: label is 'good'"),
    ([{"prompt": "a", "chosen": None, "rejected": "b"}], {}, "row 0: chosen is None, expected text"),
    (PAIRS, {"max_length": 2}, "max_length is 2"), ([], {}, "empty")])
def test_bad_rows_are_named(rows, options, words):
    with pytest.raises(ValueError, match=words):
        make(rows, **options)


def test_needs_a_tokenizer():
    with pytest.raises(ConfigError, match="processing_class"):
        RewardTrainer(FakeModel(20), RewardConfig(), PAIRS)


def test_a_dataset_in_the_place_of_options_is_named():
    with pytest.raises(TypeError, match="RewardTrainer: args is a builtins.list.*train_dataset="):
        RewardTrainer(FakeModel(20), PAIRS, processing_class=TOKENIZER)


def test_reward_function_applies_to_its_rows():
    seen = []

    def score(ids):
        seen.extend(ids)
        return np.array([2.0, -1000.0][:len(ids)])
    reward = ModelReward(score, TOKENIZER, "summary", "helpful")
    assert reward.__name__ == "helpful"
    out = reward(prompts=["a", "b", "c"], completions=["<think> d </think> e", "f", "g"],
                 completion_ids=[[], [], []], reward_model=["helpful", "safety", "helpful"])
    assert out == [pytest.approx(1 / (1 + math.exp(-2))), None, 0.0]
    assert seen == [scored_ids(TOKENIZER.encode("a"), "e", "summary", TOKENIZER),
                    scored_ids(TOKENIZER.encode("c"), "g", "summary", TOKENIZER)]
    assert reward(prompts=[[5]], completions=["e"], completion_ids=[[]]) == [pytest.approx(out[0])]


def test_a_score_that_is_not_finite_is_refused():
    reward = ModelReward(lambda ids: np.array([np.nan]), TOKENIZER)
    with pytest.raises(FloatingPointError, match="not finite"):
        reward(prompts=["a"], completions=["b"], completion_ids=[[1]])
    with pytest.raises(ConfigError, match="part is 'all'"):
        ModelReward(lambda ids: ids, TOKENIZER, "all")
