"""Rewards from worker processes: the same run as without, verdicts counted, failures left out."""

import json
import math
import os
import signal
import threading
import time

import judges
import numpy as np
import pytest
from fakes import FakeModel
from test_pool import children
from tiny_run import without_time
from toy_grpo import ROWS, TOKENIZER, brevity, make, weights

from r1grpo.advantage import group_advantages
from r1grpo.commands.inputs import open_rewards
from r1grpo.judging import FailureWindow, RewardError, Scores, VerifierFailure
from r1grpo.rejection import rejection_sample
from r1grpo.rewards import Pooled
from r1grpo.scoring import Rewards
from r1grpo.verifiers import Verdict


@pytest.fixture(autouse=True)
def nothing_left():
    before = children()
    yield
    until = time.monotonic() + 10.0  # the end of a pool object follows that of its thread
    while children() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert children() == before


def finished(trainer):
    trainer.train()
    return weights(trainer), [without_time(one) for one in trainer.log_history]


def in_process(prompts, completions, completion_ids, wish, **columns):
    """judges.wish for all completions at once."""
    return [judges.wish([p], [c], [i], wish=[w])[0]
            for p, c, i, w in zip(prompts, completions, completion_ids, wish, strict=True)]


@pytest.mark.parametrize("options", [{}, {"filter_zero_std_samples": True}, {"stop_strings": ("g",)}])
def test_a_run_does_not_depend_on_where_or_when_verdicts_are_given(options):
    in_process.__name__ = "wish"
    want = finished(make(rewards=[in_process, brevity], max_steps=4, **options))
    for workers, seconds in ((1, 0.0), (3, 0.003)):
        pooled = Pooled(judges.wish, seconds=seconds)
        assert finished(make(rewards=[pooled, brevity], max_steps=4, verifier_workers=workers,
                             **options)) == want


def test_figures():
    trainer = make(rewards=Pooled(judges.wish), max_steps=2)
    first = next(trainer)
    given = [one for one in first if one.startswith("verdicts/wish/")]
    assert sum(first[one] for one in given) == 16 and first["verdicts/failed"] == 0
    assert {one.rpartition("/")[2] for one in given} <= {"correct", "wrong", "missing", "truncated"}
    done = trainer.batch.completions
    short = [reason for text, reason in zip(done.texts, done.finish_reasons) if len(text) < 3]
    assert first.get("verdicts/wish/truncated", 0) + first.get("verdicts/wish/missing", 0) == len(
        [i for i in range(16) if trainer.batch.reasons["wish"][i] in ("truncated", "missing")]) <= len(short)
    assert first["verdicts/wait_time"] >= 0.0 and 0.0 <= first["verdicts/hidden_share"] <= 1.0
    for i, row in enumerate(trainer.completion_rows()):
        assert row["verdicts"] == {"wish": trainer.batch.reasons["wish"][i]}
        assert row["rewards"]["wish"] == (row["verdicts"]["wish"] == "correct")
    plain = make(rewards=brevity)
    assert not [one for one in next(plain) if one.startswith("verdicts")]
    assert "verdicts" not in next(plain.completion_rows())


def test_completions_are_asked_about_while_others_are_sampled():
    trainer = make(rewards=Pooled(judges.wish), max_steps=1, max_completion_length=60,
                   per_device_train_batch_size=32)
    trainer.try_rewards()
    pool, begun = trainer.rewards.pool, []
    submit = pool.submit

    def noted(*args, **kwargs):
        begun.append(sum(map(len, session.ids_now())))
        return submit(*args, **kwargs)
    pool.submit = noted
    sessions = trainer.model.session

    def watched(*args, **kwargs):
        nonlocal session
        session = sessions(*args, **kwargs)
        session.ids_now = lambda: [session.ids(i) for i in range(len(session._shown))]
        return session
    session = None
    trainer.model.session = watched
    next(trainer)
    total = sum(map(len, trainer.batch.completions.completion_ids))
    assert len(begun) == 64 and begun == sorted(begun) and begun[0] < total == begun[-1]


def test_what_a_pooled_function_is_told():
    trainer = make(rewards=[Pooled(judges.words_seen, bonus=0.5)], max_steps=1)
    next(trainer)
    done = trainer.batch.completions
    want = [0.5 + len(ids) / 16 + (reason == "length")
            for ids, reason in zip(done.completion_ids, done.finish_reasons)]
    assert trainer.batch.parts[:, 0].tolist() == want and trainer.batch.reasons == {}


@pytest.mark.parametrize("fault, reason", [("e", None), ("f", "error"), ("g", "error"), ("h", "error"),
                                           ("a", "crash")])
def test_what_failed_is_left_out_of_its_group(fault, reason):
    rows = [{**row, "fault": fault} for row in ROWS]
    trainer = make(rewards=[Pooled(judges.faulty_wish), brevity], rows=rows, max_steps=1,
                   verifier_failures=1.0, num_generations=8, per_device_train_batch_size=16)
    trainer._tried = True
    step = next(trainer)
    batch = trainer.batch
    hit = np.array([text.startswith(fault) for text in batch.completions.texts])
    assert hit.any() and not hit.all()
    total = trainer.rewards.total(batch.parts)
    if reason is None:  # it does not apply: the other part counts
        assert batch.reasons == {} and np.isnan(batch.parts[hit, 0]).all()
        assert (np.isnan(batch.parts[hit, 1]) == np.isnan(total[hit])).all()
        return
    assert [one == reason for one in batch.reasons["faulty_wish"]] == hit.tolist()
    assert step["verdicts/failed"] == step[f"verdicts/faulty_wish/{reason}"] == hit.sum()
    assert np.isnan(batch.parts[hit]).all() and not np.isnan(total[~hit]).any()
    assert (batch.advantages[hit] == 0.0).all()
    for g in range(4):  # the advantages of the others are those of a smaller group
        group = np.arange(8 * g, 8 * g + 8)
        rest = group[~hit[group]]
        np.testing.assert_array_equal(batch.advantages[rest], group_advantages(total[rest], len(rest)))


def test_failures_stop_the_run_and_it_can_go_on(tmp_path):
    trainer = make(rewards=Pooled(judges.late_crash), output_dir=str(tmp_path), verifier_failures=0.02)
    trainer._tried = True
    trainer.save_checkpoint()
    before = weights(trainer)
    with pytest.raises(VerifierFailure, match=r"verifiers failed on \d+ completions of the last \d groups of "
                       r"4, more than verifier_failures = 0.02 of 50 groups; now crash \d+ "
                       r"\(late_crash: crash: signal SIGSEGV\)"):
        trainer.train()
    assert trainer.step == 0 and weights(trainer) == before
    assert not (tmp_path / "verdicts.jsonl").exists()  # they are asked for anew
    again = make(FakeModel(TOKENIZER.vocab_size, seed=9), rewards=Pooled(judges.late_crash),
                 output_dir=str(tmp_path), verifier_failures=1.0, verifier_deadline=9.0, max_steps=2)
    again._tried = True
    again.train(resume_from_checkpoint=True)
    assert again.step == 2


def test_the_failure_window():
    def scores(*failed):
        return Scores(np.zeros((len(failed), 1)), {"f": ["timeout" if one else "wrong" for one in failed]},
                      ("f: timeout: no result in 5 s",))
    window = FailureWindow(0.05)
    for _ in range(60):
        window = window.add(scores(0, 0, 0, 0), 4)
    assert window.counts == [0] * 50
    for _ in range(10):  # 5 % of 50 groups of 4 are 10
        window = window.add(scores(0, 1, 0, 0), 4)
    kept = FailureWindow(0.05, json.loads(json.dumps(window.counts)))
    for one in (window, kept):
        with pytest.raises(VerifierFailure, match="on 11 completions of the last 50 groups of 4, more than "
                           "verifier_failures = 0.05 of 50 groups; now timeout 1 "):
            one.add(scores(1, 0, 0, 0), 4)
    assert sum(window.add(scores(0, 0, 0, 0), 4).counts) == 10
    with pytest.raises(VerifierFailure):
        FailureWindow(0.05).add(scores(*[1] * 12), 4)
    for _ in range(50):
        window = window.add(scores(0, 0, 0, 0), 4)
    assert sum(window.counts) == 0


def test_resume_replays_verdicts_and_asks_for_none(tmp_path):
    rows = [{**row, "fault": "a"} for row in ROWS]
    options = dict(rewards=[Pooled(judges.faulty_wish), brevity], rows=rows, verifier_failures=1.0)

    def tried(trainer):
        trainer._tried = True
        return trainer
    whole = tried(make(**options))
    whole.train()
    first = tried(make(output_dir=str(tmp_path), **options))
    for step in first:
        if step["step"] == 3:
            first.save_checkpoint()
        if step["step"] == 6:
            break
    second = tried(make(FakeModel(TOKENIZER.vocab_size, seed=9), output_dir=str(tmp_path), **options))
    second.load_checkpoint()
    assert second.batch.reasons == whole.batch.reasons or second.batch.step != whole.batch.step
    assert second.batch.failures.counts
    submit, asked = second.rewards.pool.submit, []
    second.rewards.pool.submit = lambda *args, **kwargs: asked.append(second.step) or submit(*args, **kwargs)
    history = second.train()
    assert weights(second) == weights(whole) and set(asked) == {6}
    assert [without_time(one) for one in history] == [without_time(one) for one in whole.log_history[3:]]
    assert second.batch.failures.counts == whole.batch.failures.counts


def test_ctrl_c_while_verdicts_are_waited_for():
    trainer = make(rewards=Pooled(judges.wish, seconds=600.0), verifier_deadline=600.0)
    trainer._tried = True
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(trainer)
    assert not trainer.rewards.pool._processes and trainer.step == 0
    assert weights(trainer) == weights(make())


def test_a_faulty_verifier_is_named_at_the_trial():
    with pytest.raises(RewardError, match="a verifier failed at its trial: broken: error: OSError: no such "
                       "compiler"):
        next(make(rewards=Pooled(judges.broken)))
    with pytest.raises(RewardError, match="'wish' is Pooled, so its columns must be plain data .* wish.*: "
                       "Object of type set"):
        next(make(rewards=Pooled(judges.wish), rows=[{"prompt": "a", "wish": {"e"}}]))
    with pytest.raises(ValueError, match="put it at the top level of a file"):
        Pooled(lambda **columns: [1.0])


def test_verdicts_of_a_function_in_this_process():
    def verdict(prompts, completions, completion_ids, **columns):
        return [Verdict(True, "correct"), Verdict(False, "timeout", "slow"), None,
                Verdict(False, "wrong", share=0.25)]
    trainer = make()
    done = trainer._sample([trainer._prompt(ROWS[0], "")], 4, 0, range(1))
    scores = Rewards([verdict, brevity]).score(ROWS[:1], done)
    assert scores.parts[0, 0] == 1.0 and np.isnan(scores.parts[1]).all() and scores.parts[3, 0] == 0.25
    assert math.isnan(scores.parts[2, 0]) and scores.parts[2, 1] == 1.0 or len(done.completion_ids[2]) > 6
    assert scores.reasons == {"verdict": ["correct", "timeout", None, "wrong"]}
    assert scores.details == ("verdict: timeout: slow",) and scores.failed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("share", [math.inf, math.nan, "half"])
def test_a_share_is_a_reward_and_as_such_a_finite_number(share):
    def verdict(prompts, completions, completion_ids, **columns):
        return [Verdict(False, "wrong", share=share)] * len(completions)
    trainer = make()
    done = trainer._sample([trainer._prompt(ROWS[0], "")], 4, 0, range(1))
    with pytest.raises(RewardError, match="'verdict' returned a list whose value 0 is"):
        Rewards(verdict).score(ROWS[:1], done)


def test_rejection_asks_the_pool_too():
    model = FakeModel(TOKENIZER.vocab_size)
    kept = [rejection_sample(model, ROWS, correct=correct, processing_class=TOKENIZER).rows
            for correct in (in_process, Pooled(judges.wish))]
    assert kept[0] == kept[1] != []


def test_a_pooled_function_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from r1grpo.rewards import Pooled\n\n@Pooled\ndef ends(prompts, completions, completion_ids, wish, **_):\n"
        "    return [float(completions[0].endswith(wish[0]))]\n")
    [ends] = open_rewards([f"{tmp_path}/mine.py:ends"])
    trainer = make(rewards=ends, max_steps=1)
    next(trainer)
    done = trainer.batch.completions
    want = [float(text.endswith(trainer.batch.rows[i // 4]["wish"])) for i, text in enumerate(done.texts)]
    assert trainer.batch.parts[:, 0].tolist() == want
