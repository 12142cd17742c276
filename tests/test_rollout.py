"""Rollouts: groups by index, stop strings by slices, log-probs that stay with their tokens."""

import numpy as np
import pytest
from fakes import FakeModel

from r1grpo import Model, ModelConfig
from r1grpo.config import Sampling
from r1grpo.rollout import Completions, completion_text, find_stop, rollout
from r1grpo.tokenizer import WordTokenizer, extract_answer, is_wellformed

TOKENIZER = WordTokenizer([*"abcdefgh", "Q", "Z"])
MODEL = FakeModel(TOKENIZER.vocab_size)
PROMPTS = [[TOKENIZER.token_id("a")], [TOKENIZER.token_id("b")]]
FREE = Sampling(max_completion_length=40, stop_token_ids=())


def test_flat_groups():
    done = rollout(MODEL, PROMPTS, 3, FREE, tokenizer=TOKENIZER, seed=1)
    assert len(done) == 6 and list(done.group(1)) == [3, 4, 5]
    assert done.finish_reasons == ["length"] * 6
    for i, ids in enumerate(done.completion_ids):
        again = MODEL.logprobs([PROMPTS[i // 3]], [ids])[0]
        assert again.tobytes() == done.logprobs[i].tobytes()
    one = done.select([1])
    assert one.prompt_ids == [PROMPTS[1]] and one.texts == done.texts[3:]
    both = Completions.join([done.select([0]), one])
    assert both.texts == done.texts and both.prompt_ids == done.prompt_ids


def test_equal_prompts_stay_two_groups():
    done = rollout(MODEL, [PROMPTS[0], PROMPTS[0]], 2, FREE, seed=1)
    assert len(done.prompt_ids) == 2 and len(done) == 4
    assert done.completion_ids[0].tolist() != done.completion_ids[2].tolist()


@pytest.mark.parametrize("stop", ["Q", "Q Z"])
def test_stop_string_cuts_a_prefix_of_the_free_run(stop):
    free = rollout(MODEL, PROMPTS, 80, FREE, tokenizer=TOKENIZER, seed=5)
    cut = rollout(MODEL, PROMPTS, 80, FREE, (stop,), TOKENIZER, seed=5)
    stopped = 0
    for i in range(160):
        n = len(cut.completion_ids[i])
        assert cut.completion_ids[i].tolist() == free.completion_ids[i].tolist()[:n]
        assert cut.logprobs[i].tobytes() == free.logprobs[i][:n].tobytes()
        if stop in free.texts[i]:
            stopped += 1
            assert cut.finish_reasons[i] == "stop"
            assert cut.texts[i].endswith(stop) and cut.texts[i].count(stop) == 1
        else:
            assert cut.finish_reasons[i] == "length" and n == 40
    assert 0 < stopped


def test_stop_string_across_slices_is_found():
    words = ["c"] * 15 + ["d", "e", "c"]
    ids = TOKENIZER.encode(" ".join(words))
    assert find_stop(ids, ("d e",), TOKENIZER) == 17
    assert find_stop(ids, ("e d",), TOKENIZER) is None
    assert find_stop(ids[:16], ("d e",), TOKENIZER) is None


def test_text_is_without_the_end_token():
    assert completion_text(TOKENIZER, [*TOKENIZER.encode("a b"), TOKENIZER.eos_token_id]) == "a b"
    assert completion_text(TOKENIZER, []) == ""


def test_other_control_tokens_are_seen_and_break_the_format():
    answer = "<think> a </think> <answer> b </answer>"
    ids = TOKENIZER.encode(answer)
    assert is_wellformed(completion_text(TOKENIZER, ids), "zero")
    for control in (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id):
        for place in (0, 2, 5, len(ids) - (control == TOKENIZER.eos_token_id)):
            text = completion_text(TOKENIZER, [*ids[:place], control, *ids[place:]])
            assert not is_wellformed(text, "zero") and TOKENIZER.words[control] in text
    text = completion_text(TOKENIZER, [*ids[:5], TOKENIZER.pad_token_id, *ids[5:]])
    assert extract_answer(text, "zero") == "b <pad>"
    cut = [*TOKENIZER.encode("Q"), TOKENIZER.pad_token_id, *TOKENIZER.encode("Z")]
    assert find_stop(cut, ("Q Z",), TOKENIZER) is None


def test_sample_ids_name_the_draws():
    whole = rollout(MODEL, PROMPTS, 2, FREE, seed=2, step=3)
    part = rollout(MODEL, PROMPTS[1:], 2, FREE, seed=2, step=3, sample_ids=[1])
    for i in range(2):
        assert np.array_equal(part.completion_ids[i], whole.completion_ids[2 + i])


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        rollout(MODEL, PROMPTS, 1, FREE, ("d",))


@pytest.mark.parametrize("stops", [(), ("d",), ("d Q",)])
@pytest.mark.parametrize("engine", [False, True])
def test_each_completion_is_told_once_as_it_ends(engine, stops):
    """Being told changes nothing, and what is told is what comes at the end."""
    model = Model(ModelConfig(TOKENIZER.vocab_size, eos_token_id=2, hidden_size=16, num_hidden_layers=1,
                              num_attention_heads=2, intermediate_size=16, max_position_embeddings=64,
                              initializer_range=0.3), seed=0) if engine else MODEL
    told, how = [], Sampling(max_completion_length=40)
    want = rollout(model, PROMPTS, 80, how, stops, TOKENIZER, seed=5)
    done = rollout(model, PROMPTS, 80, how, stops, TOKENIZER, seed=5, tell=told.append)
    assert [a.tobytes() for a in done.completion_ids] == [a.tobytes() for a in want.completion_ids]
    assert [a.tobytes() for a in done.logprobs] == [a.tobytes() for a in want.logprobs]
    assert (done.texts, done.finish_reasons) == (want.texts, want.finish_reasons)
    assert sorted(told) == [done.ended(i) for i in range(160)]
    assert [one.index for one in told] != list(range(160)) and {"stop", "length"} >= set(done.finish_reasons)
