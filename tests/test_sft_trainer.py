"""SFTTrainer: rows to ids, one epoch sees each row once, exact resume; distil's costs."""

import numpy as np
import pytest
from fakes import FakeModel

from r1grpo.config import ConfigError, SFTConfig
from r1grpo.distill import Cost, distill
from r1grpo.sft import SFTTrainer, encode_row
from r1grpo.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([*"abcdefgh"])
A, B, C = (TOKENIZER.token_id(one) for one in "abc")
EOS = TOKENIZER.eos_token_id
ROWS = [{"prompt": "a", "completion": "b c d e"}, {"text": "f g h"}, {"ids": [A, B, C]},
        {"prompt_ids": [A, B], "completion_ids": [C, C], "weights": [1.0, 0.0]},
        {"prompt": "h", "completion": "h"}]


def make(model=None, rows=ROWS, **options):
    defaults = dict(per_device_train_batch_size=2, learning_rate=0.1, num_train_epochs=4.0, seed=1)
    return SFTTrainer(model or FakeModel(TOKENIZER.vocab_size), SFTConfig(**defaults | options),
                      rows, processing_class=TOKENIZER)


@pytest.mark.parametrize("row, prompt, completion", [
    ({"prompt": "a", "completion": "b c"}, [A], [B, C, EOS]),
    ({"text": "a b"}, [A], [B, EOS]), ({"ids": [A, B, C]}, [A], [B, C]),
    ({"prompt_ids": [A], "completion_ids": [B]}, [A], [B]),
    ({"prompt_ids": [A, B], "completion": "c"}, [A, B], [C, EOS])])
def test_rows(row, prompt, completion):
    example = encode_row(row, TOKENIZER)
    assert example.prompt_ids.tolist() == prompt
    assert example.completion_ids.tolist() == completion


@pytest.mark.parametrize("row, words", [
    ({"prompt": "a"}, "row has neither 'completion'"), ({"completion": "a"}, "neither 'prompt'"),
    ({"ids": [A]}, "no token to learn"), ({"prompt": "", "completion": "a"}, "empty prompt"),
    ({"prompt_ids": [A], "completion_ids": [B], "weights": [1.0, 1.0]}, "weights must be 1"),
    ({"prompt": "a", "completion": "xyz"}, "'xyz'")])
def test_bad_rows_are_named(row, words):
    with pytest.raises(ValueError, match=words):
        encode_row(row, TOKENIZER)


def test_text_needs_a_tokenizer_and_long_rows_are_refused():
    with pytest.raises(ValueError, match="processing_class"):
        encode_row({"text": "a b"}, None)
    with pytest.raises(ValueError, match="row 0 has 6 tokens, max_length is 5"):
        make(max_length=5)
    with pytest.raises(ValueError, match="row 0 has 65 tokens, the model's context is 64"):
        make(rows=[{"ids": [A] * 65}])
    with pytest.raises(ValueError, match="empty"):
        make(rows=[])


def test_long_rows_are_dropped_or_cut_where_asked():
    rows = [*ROWS, {"prompt_ids": [A] * 5, "completion_ids": [B]},
            {"prompt_ids": [A], "completion_ids": [B] * 9, "weights": [0.0] * 4 + [1.0] * 5}]
    dropped = make(rows=rows, max_length=5, truncation_mode="drop")
    assert (dropped.dropped, dropped.shortened) == (3, 0)
    assert [len(one) for one in dropped.examples] == [4, 3, 4, 3]
    cut = make(rows=rows, max_length=5, truncation_mode="keep_start")
    assert (cut.dropped, cut.shortened) == (2, 1)
    assert cut.examples[0].completion_ids.tolist() == [B, C, C + 1, C + 2]
    assert [len(one) for one in cut.examples] == [5, 4, 3, 4, 3]
    longer = make(rows=rows[-1:], max_length=6, truncation_mode="keep_start").examples[0]
    assert longer.weights.tolist() == [0, 0, 0, 0, 1] and len(longer.completion_ids) == 5
    assert len(make(rows=[{"ids": [A] * 90}], truncation_mode="keep_start").examples[0]) == 64
    seen = SFTTrainer(FakeModel(TOKENIZER.vocab_size), SFTConfig(
        max_length=5, truncation_mode="drop"), ROWS, rows, processing_class=TOKENIZER)
    assert (seen.dropped, len(seen.eval_examples)) == (1, 4)  # rows of evaluation are not counted
    with pytest.raises(ValueError, match="all its 7 rows are too long"):
        make(rows=rows, max_length=2, truncation_mode="drop")


def test_prompts_are_learned_where_asked():
    weighted = {"prompt_ids": [A, B], "completion_ids": [C, C], "weights": [1.0, 0.0]}
    for row, masked, whole in (({"prompt": "a b", "completion": "c"}, [A, B], [B, C, EOS]),
                               ({"text": "a b"}, [A], [B, EOS]), (weighted, [A, B], [B, C, C])):
        for only in (None, True):
            assert encode_row(row, TOKENIZER, "row", only).prompt_ids.tolist() == masked
        example = encode_row(row, TOKENIZER, "row", False)
        assert example.prompt_ids.tolist() == [A] and example.completion_ids.tolist() == whole
    assert example.weights.tolist() == [1.0, 1.0, 0.0]
    assert make(completion_only_loss=False, rows=[weighted]).examples[0].weights.shape == (3,)


def turn(role, content):
    return {"role": role, "content": content}


TALK = [turn("user", "a"), turn("assistant", "<think> b </think> c"), turn("user", "d"),
        turn("assistant", "<think> e </think> f")]


def test_every_turn_of_a_conversation_is_learned_behind_its_own_prompt():
    """The template leaves earlier reasoning out of the prompt; the turn itself is learned whole."""
    trainer = make(rows=[{"messages": TALK, "weights": None}, {"prompt": "a", "completion": "b"}])
    texts = [(TOKENIZER.decode(one.prompt_ids), TOKENIZER.decode(one.completion_ids))
             for one in trainer.examples]
    assert texts == [("User: a Assistant:", "<think> b </think> c"),
                     ("User: a Assistant: c User: d Assistant:", "<think> e </think> f"),
                     ("a", "b")]
    assert all(one.completion_ids[-1] == EOS for one in trainer.examples)
    [whole] = make(rows=[{"messages": TALK}], assistant_only_loss=False).examples
    assert whole.prompt_ids.tolist() == [TOKENIZER.token_id("User:")]
    assert TOKENIZER.decode(whole.completion_ids) \
        == "a Assistant: c User: d Assistant: <think> e </think> f"


def test_a_completion_may_be_a_message():
    row = {"prompt": TALK[:1], "completion": TALK[1:2]}
    assert encode_row(row, TOKENIZER).completion_ids.tolist() \
        == [*TOKENIZER.encode("<think> b </think> c"), EOS]


def test_a_thinking_that_the_template_opens_is_opened_once():
    class Prefilled(WordTokenizer):
        def apply_chat_template(self, messages):
            return [*super().apply_chat_template(messages), self.token_id("<think>")]

    tokenizer = Prefilled([*"abcdefgh"])
    for said in ("<think> b </think> c", "b </think> c"):
        example = encode_row({"prompt": TALK[:1], "completion": said}, tokenizer)
        assert tokenizer.decode(example.prompt_ids).endswith("Assistant: <think>")
        assert tokenizer.decode(example.completion_ids) == "b </think> c"
    plain = {"prompt": "a <think>", "completion": "<think> b"}
    assert tokenizer.decode(encode_row(plain, tokenizer).completion_ids) == "<think> b"


@pytest.mark.parametrize("row, words", [
    ({"messages": TALK[:1]}, "row 0: messages hold no turn of the assistant"),
    ({"messages": TALK[1:]}, "row 0: messages begin with the assistant"),
    ({"prompt": "a", "completion": TALK[:1]}, "row 0: completion is neither text nor one message")])
def test_conversations_without_a_lesson(row, words):
    with pytest.raises(ValueError, match=words):
        make(rows=[row])


def test_packing_fills_updates_with_bins():
    """Bins of 8 tokens from rows of 6, 4, 3, 4, 3: one epoch sees every row once, three bins."""
    trainer = make(packing=True, max_length=8, per_device_train_batch_size=1, num_train_epochs=2)
    assert trainer.bins == [[0], [1, 3], [2, 4]] and trainer.total_steps == 6
    steps = trainer.train()
    assert sorted(one["processed_tokens"] for one in steps[:3]) == [6, 6, 8]
    assert [one["epoch"] for one in steps] == [i / 3 for i in range(1, 7)]
    plain = make(max_length=8, per_device_train_batch_size=5, num_train_epochs=1)
    packed = make(packing=True, max_length=8, per_device_train_batch_size=3, num_train_epochs=1)
    assert packed.train()[0]["num_tokens"] == plain.train()[0]["num_tokens"]
    assert packed.log_history[0]["loss"] == pytest.approx(plain.log_history[0]["loss"])


def test_a_packed_run_resumes_to_the_same_bits():
    def run(**options):
        return make(packing=True, max_length=8, per_device_train_batch_size=2, **options)
    whole, first, second = run(), run(), run()
    whole.train()
    for _ in range(3):
        next(first)
    second.load_state_dict(first.state_dict())
    second.train()
    assert second.model.table.tobytes() == whole.model.table.tobytes()
    with pytest.raises(ConfigError, match="packing: True -> False"):
        make(max_length=8).load_state_dict(first.state_dict())


@pytest.mark.parametrize("options, words", [
    ({"packing": True}, "max_length is the size of a bin, packing needs it"),
    ({"packing_strategy": "wrapped"}, "'bfd_split' and 'wrapped' cut samples, it is 'wrapped'"),
    ({"truncation_mode": "keep_end"}, "truncation_mode must be"), ({"max_length": 1}, "max_length")])
def test_options_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        SFTConfig(**options)


def test_steps_and_learning():
    trainer = make()
    assert trainer.total_steps == 10
    used = []
    gradient = trainer.model.sft_gradient

    def counted(prompts, completions, **options):
        used.extend(tuple(one) for one in completions)
        return gradient(prompts, completions, **options)
    trainer.model.sft_gradient = counted
    history = trainer.train()
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    assert len(used) == 20 and all(used.count(one) == 4 for one in set(used))
    assert trainer.num_tokens == 4 * (5 + 3 + 2 + 2 + 2)


def test_weights_reach_the_loss():
    rows = [{"prompt_ids": [A], "completion_ids": [B, C], "weights": [1.0, 0.0]}]
    trainer = make(rows=rows, per_device_train_batch_size=1)
    before = trainer.model.table.copy()
    next(trainer)
    assert (trainer.model.table[A] != before[A]).any()
    assert (trainer.model.table[B] == before[B]).all()


@pytest.mark.parametrize("stop_at", [1, 4])
def test_resume_ends_in_the_same_bits(stop_at, tmp_path):
    options = dict(lr_scheduler_type="cosine", min_lr_rate=0.1, warmup_steps=2)
    whole = make(**options)
    whole.train()
    first = make(output_dir=str(tmp_path), save_steps=stop_at, **options)
    for _ in range(stop_at):
        next(first)
    second = make(FakeModel(TOKENIZER.vocab_size, seed=5), output_dir=str(tmp_path), **options)
    second.train(resume_from_checkpoint=True)
    assert second.model.table.tobytes() == whole.model.table.tobytes()
    with pytest.raises(ConfigError, match="another train_dataset"):
        make(rows=ROWS[:3], output_dir=str(tmp_path),
             **options).train(resume_from_checkpoint=True)


def test_recomputation_reaches_the_engine_and_may_change_in_a_resume(tmp_path):
    whole = make()
    whole.train()
    first = make(output_dir=str(tmp_path), save_steps=1)
    next(first)
    second = make(output_dir=str(tmp_path), gradient_checkpointing=True)
    gradient, seen = second.model.sft_gradient, []

    def watched(*arguments, **options):
        seen.append(options["recompute"])
        return gradient(*arguments, **options)
    second.model.sft_gradient = watched
    second.train(resume_from_checkpoint=True)
    assert seen == [True] * 9
    assert second.model.table.tobytes() == whole.model.table.tobytes()


def test_evaluate_is_the_weighted_mean():
    trainer = make()
    trainer.eval_examples = [encode_row(row, TOKENIZER) for row in ROWS]
    result = trainer.evaluate()
    logp = [trainer.model.logprobs([e.prompt_ids], [e.completion_ids])[0]
            for e in trainer.eval_examples]
    logp[3] = logp[3][:1]  # its second token has weight 0
    flat = np.concatenate(logp).astype(np.float64)
    assert result["eval_loss"] == pytest.approx(-flat.mean())
    assert result["eval_num_tokens"] == len(flat) == 13
    trainer.eval_examples = [encode_row({**ROWS[0], "weights": [0.0] * len(
        trainer.eval_examples[0].completion_ids)}, TOKENIZER)]
    with pytest.raises(ValueError, match="no token whose weight is not 0"):
        trainer.evaluate()


def test_a_callback_that_is_no_function_is_refused():
    """TRL's are objects of other methods: none of them would be called."""
    with pytest.raises(TypeError, match=r"callbacks holds a TrainerCallback.*f\(trainer, metrics\)"):
        SFTTrainer(FakeModel(TOKENIZER.vocab_size), SFTConfig(), ROWS, processing_class=TOKENIZER,
                   callbacks=[type("TrainerCallback", (), {})()])


def test_callbacks_see_each_step():
    seen = []
    trainer = make(max_steps=3)
    trainer.callbacks.append(lambda t, metrics: seen.append((t is trainer, metrics["step"])))
    trainer.train()
    assert seen == [(True, 1), (True, 2), (True, 3)]


def test_distill_counts_both_costs():
    done = distill(FakeModel(TOKENIZER.vocab_size), ROWS, SFTConfig(max_steps=5), TOKENIZER,
                   Cost(1000, 3000, 500, 2.0))
    costs = done.costs()
    assert done.trainer.step == 5
    for key, more in (("loss_tokens", 1000), ("processed_tokens", 3000)):
        assert costs["with_teacher"][key] == costs["without_teacher"][key] + more
    assert costs["without_teacher"]["processed_tokens"] > costs["without_teacher"]["loss_tokens"]
    assert costs["without_teacher"]["sampled_tokens"] == 0
    assert costs["with_teacher"]["sampled_tokens"] == 500
    unknown = distill(FakeModel(TOKENIZER.vocab_size), ROWS, SFTConfig(max_steps=1), TOKENIZER).costs()
    assert unknown["with_teacher"] is None and unknown["without_teacher"]["loss_tokens"] > 0
