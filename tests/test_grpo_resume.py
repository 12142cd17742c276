"""GRPOTrainer stopped and gone on with: the same bits, verdicts replayed, other runs refused."""

import json
import random

import numpy as np
import pytest
from fakes import FakeModel
from tiny_run import without_time
from toy_grpo import ROWS, TOKENIZER, brevity, make, weights, wish_share

from r1grpo.config import ConfigError
from r1grpo.judging import Scores
from r1grpo.scoring import VerdictLog


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_resume_ends_in_the_same_bits(stop_at, tmp_path):
    options = dict(beta=0.05, sync_ref_model=True, ref_model_sync_steps=3,
                   lr_scheduler_type="cosine", filter_zero_std_samples=True,
                   ref_model_mixup_alpha=0.5, max_completion_length=((0, 6), (4, 8)))
    whole = make(**options)
    whole.train()
    first = make(output_dir=str(tmp_path), save_steps=stop_at, **options)
    for step in first:
        if step["step"] == stop_at:
            break
    second = make(FakeModel(TOKENIZER.vocab_size, seed=9), output_dir=str(tmp_path), **options)
    history = second.train(resume_from_checkpoint=True)
    assert history[0]["step"] == stop_at + 1
    assert weights(second) == weights(whole)
    for counter in ("num_tokens", "processed_tokens", "sampled_tokens", "gap_tokens"):
        assert getattr(second, counter) == getattr(whole, counter) > 0
    assert [without_time(h) for h in history] == \
        [without_time(h) for h in whole.log_history[stop_at:]]


def test_a_rollout_interrupted_before_its_first_update_is_gone_on_with(tmp_path):
    """Sampled before the stop, trained on behind it: the same figures too, of its work as well."""
    whole = make(beta=0.05)
    whole.train()
    first = make(beta=0.05, output_dir=str(tmp_path))
    gradient = first.model.policy_gradient

    def interrupted(*args, **kwargs):
        if first.step == 2:
            raise KeyboardInterrupt
        return gradient(*args, **kwargs)
    first.model.policy_gradient = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert first.step == 2 and first.batch.position == 0
    second = make(FakeModel(TOKENIZER.vocab_size, seed=9), beta=0.05, output_dir=str(tmp_path))
    history = second.train(resume_from_checkpoint=True)
    assert [without_time(h) for h in history] == [without_time(h) for h in whole.log_history[2:]]


@pytest.mark.parametrize("option, before, after", [
    ("max_steps", 8, 12), ("num_train_epochs", 1.0, 2.0)])
def test_a_run_can_be_made_longer_where_no_learning_rate_depends_on_it(option, before, after,
                                                                       tmp_path):
    first = make(output_dir=str(tmp_path / "constant"), **{option: before})
    next(first)
    first.save_checkpoint()
    make(output_dir=str(tmp_path / "constant"), **{option: after}).load_checkpoint()
    decaying = dict(lr_scheduler_type="linear", output_dir=str(tmp_path / "linear"))
    first = make(**decaying, **{option: before})
    next(first)
    first.save_checkpoint()
    with pytest.raises(ConfigError, match=f"{option}: {before} -> {after}"):
        make(**decaying, **{option: after}).load_checkpoint()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    first = make(output_dir=str(tmp_path))
    next(first)
    first.save_checkpoint()
    with pytest.raises(ConfigError, match="epsilon: 0.2 -> 0.3"):
        make(output_dir=str(tmp_path), epsilon=0.3).train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="another train_dataset"):
        make(output_dir=str(tmp_path), rows=ROWS[:-1]).train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        make(output_dir=str(tmp_path / "empty")).train(resume_from_checkpoint=True)


def test_verdicts_are_replayed(tmp_path):
    """A reward that is never the same twice: killed before its update, resumed, same bits."""
    def fickle(prompts, completions, completion_ids, **columns):
        asked.append(len(completions))
        return [random.SystemRandom().random() for _ in completions]
    asked = []
    first = make(rewards=fickle, output_dir=str(tmp_path))
    first.save_checkpoint()
    next(first)
    with (tmp_path / "verdicts.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "att')  # torn by the kill
    second = make(rewards=fickle, output_dir=str(tmp_path))
    second.load_checkpoint()
    asked.clear()
    next(second)
    assert asked == [2]  # only the trial
    assert weights(second) == weights(first)
    second.train()
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    steps = [json.loads(one)["step"] for one in lines]
    assert steps == [0, 2, 4, 6]  # the torn line is gone
    third = make(rewards=fickle, output_dir=str(tmp_path))  # a new run: asks anew
    next(third)
    assert weights(third) != weights(first)
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 1


def test_a_resume_with_other_reward_functions_is_refused(tmp_path):
    """Others, another order, other weights, another audit: by the checkpoint, and nothing is changed."""
    two = [wish_share, brevity]
    first = make(rewards=two, audits=[brevity], reward_weights=[1.0, 0.5], output_dir=str(tmp_path))
    next(first)
    first.save_checkpoint()
    said = "wish_share 1, brevity 0.5, audit_brevity 0 -> "
    for now, given in ((f"{said}wish_share 1, audit_brevity 0", dict(rewards=[wish_share], audits=[brevity])),
                       (f"{said}brevity 1, wish_share 0.5, audit_brevity 0",
                        dict(rewards=two[::-1], audits=[brevity], reward_weights=[1.0, 0.5])),
                       (f"{said}wish_share 1, brevity 0.5, audit_wish_share 0",
                        dict(rewards=two, audits=[wish_share], reward_weights=[1.0, 0.5])),
                       (f"{said}wish_share 1, brevity 0.5$",
                        dict(rewards=two, reward_weights=[1.0, 0.5]))):
        other = make(output_dir=str(tmp_path), **given)
        other.args.reward_weights = first.args.reward_weights  # which the options would refuse first
        with pytest.raises(ConfigError, match=now):
            other.load_checkpoint()
        assert other.batch is None and other.step == 0
    state = first.state_dict()
    del state["meta"]["rewards"]  # as older versions wrote it
    make(rewards=two, audits=[brevity], reward_weights=[1.0, 0.5]).load_state_dict(state)


def test_verdicts_of_other_reward_functions_are_refused(tmp_path):
    """Those of updates behind the checkpoint too: the log stays as it is, lines without names are taken."""
    log = tmp_path / "verdicts.jsonl"
    first = make(output_dir=str(tmp_path))
    first.save_checkpoint()
    next(make(rewards=brevity, output_dir=str(tmp_path)))
    written = log.read_bytes()
    second = make(output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"verdicts.jsonl: .* those of brevity, this .* of wish_share"):
        second.load_checkpoint()
    assert log.read_bytes() == written
    next(first)
    [line] = map(json.loads, log.read_text().splitlines())
    assert line.pop("names") == ["wish_share"]
    log.write_text(json.dumps(line) + "\n")  # as older versions wrote it
    second.load_checkpoint()
    next(second)
    assert weights(second) == weights(first) and len(log.read_text().splitlines()) == 1


def test_verdict_log_keeps_none(tmp_path):
    trainer = make()
    next(trainer)
    done, parts = trainer.batch.completions, np.array([[np.nan, 0.1 + 0.2]] * 16)
    reasons = {"verifier": ["timeout", "wrong", None, "correct"] * 4}
    VerdictLog(tmp_path / "v.jsonl", ["verifier"]).write(4, 0, done, Scores(parts, reasons))
    log = VerdictLog(tmp_path / "v.jsonl", ["verifier"])
    assert log.recall(4, 0, done) is None and not log.foresees(4, 0)
    log.load()
    found = log.recall(4, 0, done)
    assert np.array_equal(found.parts, parts, equal_nan=True) and found.reasons == reasons
    assert log.recall(5, 0, done) is None and log.recall(4, 0, done.select([0])) is None
    assert log.foresees(4, 0) and not log.foresees(4, 1) and not log.foresees(5, 0)


def test_interrupt_anywhere_then_go_on():
    whole = make()
    whole.train()
    countdown = [5]

    def interrupting(prompts, completions, completion_ids, wish, **columns):
        countdown[0] -= 1
        if countdown[0] == 1:
            raise KeyboardInterrupt
        return wish_share(prompts, completions, completion_ids, wish)
    trainer = make(rewards=interrupting)
    gradient, broken = trainer.model.policy_gradient, []

    def interrupted_gradient(*args, **kwargs):
        loss = gradient(*args, **kwargs)
        if trainer.step == 3 and not broken:
            broken.append(1)
            raise KeyboardInterrupt
        return loss
    trainer.model.policy_gradient = interrupted_gradient
    caught = 0
    while trainer.step < 8:
        try:
            trainer.train()
        except KeyboardInterrupt:
            caught += 1
    assert caught == 2 and weights(trainer) == weights(whole)


def test_ctrl_c_waits_for_the_end_of_an_update_and_saves(tmp_path):
    import os
    import signal
    trainer = make(output_dir=str(tmp_path))
    update = trainer.model.update

    def update_under_fire(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return update(*args, **kwargs)
    trainer.model.update = update_under_fire
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 1 and len(trainer.log_history) == 1
    again = make(FakeModel(TOKENIZER.vocab_size, seed=9), output_dir=str(tmp_path))
    again.load_checkpoint()
    assert again.step == 1 and weights(again) == weights(trainer)
