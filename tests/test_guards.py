"""Guards against reward hacking: what they measure, when they are an alarm, that they teach nothing."""

import json
import warnings

import numpy as np
import pytest
from toy_grpo import ROWS, make, weights, wish_share

from r1grpo.guards import audited_samples, guard_metrics
from r1grpo.monitor import AlarmLimits, Monitor, MonitorWarning
from r1grpo.scoring import RewardError
from r1grpo.verifiers import Verdict

NAN = float("nan")


def passing(prompts, completions, completion_ids, **columns):
    return [float("e" in text) for text in completions]


class Strict:
    """An audit that remembers whom it was asked about."""

    __name__ = "strict"

    def __init__(self, value=0.0):
        self.value, self.asked = value, []

    def __call__(self, prompts, completions, completion_ids, num_generations, **columns):
        self.asked.append(len(completions))
        assert num_generations == 1
        return [self.value] * len(completions)


# ---- figures ------------------------------------------------------------------------------------


def test_figures_by_hand():
    verifier = np.array([1.0, 1.0, 0.0, NAN, 1.0, 0.0, 2.0])
    audits = np.array([[1, 1], [1, 0], [0, NAN], [1, 1], [NAN, NAN], [NAN, NAN], [0, 1]], float)
    canary = np.array([False] * 4 + [True, True, True])
    found = guard_metrics(verifier, audits, canary, [None, True, False, False, None, None, None])
    # audited: 0, 1, 2; the verifier passes 0 and 1, all audits 0 alone; a canary is no evidence of either
    assert found == {"audit/samples": 3, "audit/passed": 1 / 3, "audit/gap": pytest.approx(1 / 3),
                     "canary/samples": 3, "canary/rewarded": pytest.approx(2 / 3),
                     "hack_signs": pytest.approx(1 / 3)}


def test_figures_that_nothing_applies_to_are_left_out():
    nobody = np.zeros(2, bool)
    assert guard_metrics(np.ones(2), np.zeros((2, 0)), nobody, [None, None]) == {}
    assert guard_metrics(np.ones(2), np.full((2, 1), NAN), nobody, [None] * 2) == {"audit/samples": 0}


def test_who_is_audited_is_a_function_of_the_key():
    first = audited_samples(10_000, 0.05, 3, 7, 0)
    assert first == audited_samples(10_000, 0.05, 3, 7, 0) and 400 < len(first) < 600
    others = [audited_samples(10_000, 0.05, *key) for key in ((4, 7, 0), (3, 8, 0), (3, 7, 1))]
    assert all(len(set(first) & set(one)) < 60 for one in others)
    assert audited_samples(9, 1.0, 0) == list(range(9)) and audited_samples(9, 0.0, 0) == []


# ---- in a run -----------------------------------------------------------------------------------


def test_guards_change_no_bit(tmp_path):
    audit = Strict()
    plain = make(rewards=[passing])
    audited = make(rewards=[passing], audits=audit, audit_share=0.5, output_dir=str(tmp_path))
    plain.train(), audited.train()
    assert weights(plain) == weights(audited)
    rows = [one for one in audited.log_history if "audit/samples" in one]
    assert len(rows) == 4 and len(audited.log_history) == 8  # once a rollout
    assert sum(audit.asked[1:]) == sum(one["audit/samples"] for one in rows)
    for one in rows:
        assert one["audit/passed"] == 0.0 and one["rewards/audit_strict/mean"] == 0.0
    assert np.mean([one["audit/gap"] for one in rows]) > 0.1
    shared = {k: v for k, v in audited.log_history[0].items() if "audit" not in k}
    assert {k for k in plain.log_history[0]} == set(shared)
    kept = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    audits = [row[1] for one in kept for row in one["rewards"]]
    assert audits.count(0.0) == sum(audit.asked[1:]) and audits.count(None) == 64 - audits.count(0.0)


def test_an_audits_verdict_is_replayed(tmp_path):
    first = make(rewards=[passing], audits=Strict(), audit_share=0.5, output_dir=str(tmp_path))
    first.save_checkpoint()
    before = next(first)
    again = Strict(1.0)  # would say otherwise
    second = make(rewards=[passing], audits=again, audit_share=0.5, output_dir=str(tmp_path))
    second.load_checkpoint()
    assert next(second)["audit/passed"] == before["audit/passed"] == 0.0
    assert len(again.asked) == 1  # the trial


def test_an_audit_is_in_no_total_whatever_applies():
    """Where no reward applies there is none, and groups that differ for an audit alone are all the same."""
    def none(prompts, completions, completion_ids, **columns):
        return [None] * len(completions)

    def differs(prompts, completions, completion_ids, **columns):
        return [float(len(ids) % 2) for ids in completion_ids]

    def same(prompts, completions, completion_ids, **columns):
        return [1.0] * len(completions)
    trainer = make(rewards=[none], audits=[differs], audit_share=1.0)
    step = next(trainer)
    assert "reward" not in step and not trainer.batch.advantages.any()
    assert not np.isnan(trainer.batch.parts[:, 1]).any()
    assert np.isnan(trainer.rewards.total(trainer.batch.parts)).all()
    for how in ("sum_then_normalize", "normalize_then_sum"):
        trainer = make(rewards=[same], audits=[differs], audit_share=1.0, max_num_gen_batches=3,
                       filter_zero_std_samples=True, multi_objective_aggregation=how)
        next(trainer)
        assert trainer.batch.cursor == 3 * trainer.args.prompts_per_rollout


def test_an_audit_that_fails_leaves_nobody_out():
    def shaky(prompts, completions, completion_ids, **columns):
        return [Verdict(False, "timeout" if i % 2 else "wrong") for i in range(len(completions))]
    plain, audited = make(rewards=[passing]), make(rewards=[passing], audits=[shaky], audit_share=1.0)
    plain_step, step = next(plain), next(audited)
    assert step["reward"] == plain_step["reward"] and step["audit/samples"] == 8
    assert audited.batch.reasons["audit_shaky"][:2] == ["wrong", None]
    assert step["verdicts/failed"] == 0


def test_canaries_are_not_learned_from():
    rows = [*ROWS[:3], {"prompt": "d", "wish": "f", "canary": True}]
    trainer = make(rewards=[passing], rows=rows, shuffle_dataset=False, max_steps=2)
    steps = trainer.train()
    assert steps[0]["canary/samples"] == 4 and 0.0 <= steps[0]["canary/rewarded"] <= 1.0
    assert "canary/samples" not in steps[1]
    batch = trainer.batch
    canary = [bool(batch.rows[i // 4].get("canary")) for i in range(16)]
    assert canary == [False] * 12 + [True] * 4 and not batch.advantages[12:].any()
    assert steps[0]["rewards/passing/mean"] == np.mean(batch.parts[:12, 0])
    assert not np.isnan(batch.parts).any()  # what they were given is kept
    for part, call in zip(batch.mini_batches(trainer.args.seed, 2), trainer.model.calls, strict=True):
        assert [w == 0 for w in call["weights"]] == [canary[i] for i in part]


def test_a_planted_hole_is_noticed_by_the_canaries_while_it_is_learned():
    """A verifier that passes whatever says h twice: the policy finds it, and so do the canaries, at the
    latest when one completion in ten uses it."""
    def holed(prompts, completions, completion_ids, wish, **columns):
        return [float(w in text or text.count("h") > 1) for text, w in zip(completions, wish, strict=True)]
    rows = [{"prompt": p, "wish": "nothing says this"} for p in "abc"]
    trainer = make(rewards=[holed], rows=[*rows, {**rows[0], "prompt": "d", "canary": True}], max_steps=120,
                   learning_rate=0.3, num_generations=8, per_device_train_batch_size=32, steps_per_generation=1)
    monitor, noticed, used = Monitor("grpo", lambda row: None), None, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        for step in trainer:
            used.append(step["rewards/holed/mean"])
            if any(one.name == "canary" for one in monitor.log_step(step["step"], step)):
                noticed = noticed or step["step"]
    assert noticed is not None and max(used[:noticed - 1], default=0.0) < 0.1 < 0.5 < used[-1]


def test_canaries_count_as_groups_with_nothing_to_compare():
    rows = [{"prompt": "a", "wish": "e", "canary": True}, {"prompt": "b", "wish": "f"}]
    trainer = make(rewards=[wish_share], rows=rows, filter_zero_std_samples=True, max_num_gen_batches=4,
                   shuffle_dataset=False, max_steps=1)
    next(trainer)
    assert not all(row.get("canary") for row in trainer.batch.rows) and trainer.batch.cursor > 4


def test_code_is_looked_through():
    def code(prompts, completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]
    trainer = make(rewards=[code])
    sample = trainer._sample

    def writing(*args, **kwargs):
        done = sample(*args, **kwargs)
        done.texts[:4] = ["```python\nimport sys\nsys.exit(0)\n```", "```python\nprint(4)\n```", "no", "code"]
        return done
    trainer._sample = writing
    assert next(trainer)["hack_signs"] == 0.5


def test_audits_are_checked_and_cannot_be_asked_for_by_a_row():
    with pytest.raises(RewardError, match="two audits have one name"):
        make(rewards=[passing], audits=[Strict(), Strict()])
    with pytest.raises(RewardError, match="none of passing"):
        next(make(rewards=[passing], audits=[Strict()],
                  rows=[{"prompt": "a", "reward_funcs": ["audit_strict"]}]))
    with pytest.raises(ValueError, match="audit_share"):
        make(audit_share=1.5)


# ---- alarms -------------------------------------------------------------------------------------


def alarms(rows):
    monitor, names = Monitor("grpo", lambda row: None, AlarmLimits()), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        for step, row in enumerate(rows, 1):
            names += [(one.name, step) for one in monitor.log_step(step, row)]
    return names


def series(rng, count, reward, kept, samples=8):
    """Rollouts of four updates, of which the first is audited: the verifier passes a share `reward` of the
    samples, the audit a share `kept` of these."""
    rows = []
    for i in range(count):
        at = i / max(count - 1, 1)
        r = float(np.clip(reward(at) + 0.03 * rng.standard_normal(), 0, 1))
        right = rng.binomial(samples, r)
        passed = rng.binomial(right, kept(at))
        rows.append({"reward": r, "audit/passed": passed / samples, "audit/gap": (right - passed) / samples})
        rows += [{"reward": r}] * 3
    return rows


def test_the_picture_of_the_paper_is_an_alarm():
    """The reward rises, what it stands for falls: within two windows."""
    rng = np.random.default_rng(0)
    rows = series(rng, 40, lambda at: 0.5 + 0.2 * at, lambda at: 1.0 - 0.8 * at, 16)
    names = dict(alarms(rows))
    assert "audit_falls" in names and names["audit_falls"] <= 160


def test_progress_and_noise_are_none():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        steady = series(rng, 1000, lambda at: 0.5, lambda at: 0.97)
        assert [one for one, _ in alarms(steady) if one.startswith("audit")] == []
        both_rise = series(rng, 100, lambda at: 0.3 + 0.5 * at, lambda at: 0.97)
        assert [one for one, _ in alarms(both_rise) if one.startswith("audit")] == []


def test_a_lasting_gap_is_an_alarm_once():
    rng = np.random.default_rng(1)
    rows = series(rng, 60, lambda at: 0.7, lambda at: 0.5, 16)
    found = [one for one in alarms(rows) if one[0].startswith("audit")]
    assert [name for name, _ in found] == ["audit_gap"] and found[0][1] <= 85


@pytest.mark.parametrize("key, name, quiet, loud", [
    ("canary/rewarded", "canary", 0.0, 0.01), ("hack_signs", "hacking", 0.02, 0.021)])
def test_canaries_and_signs_are_alarms_at_once_and_not_at_every_rollout(key, name, quiet, loud):
    calm, bad = [{key: quiet}, {}, {}, {}] * 10, [{key: loud}, {}, {}, {}] * 10
    assert alarms(calm) == []
    assert alarms(calm + bad) == [(name, 41)]
    assert alarms(calm + bad + [{key: loud + 0.3}])[1:] == [(name, 81)]


def test_alarms_survive_a_resume():
    rng = np.random.default_rng(0)
    rows = series(rng, 40, lambda at: 0.5 + 0.2 * at, lambda at: 1.0 - 0.8 * at, 16)
    whole, first, second = [], [], []
    one, two = (Monitor("grpo", out.append) for out in (whole, first))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        for step, row in enumerate(rows, 1):
            one.log_step(step, row)
            if step <= 70:
                two.log_step(step, row)
        state = json.loads(json.dumps(two.state_dict()))
        three = Monitor("grpo", second.append)
        three.load_state_dict(state)
        for step, row in enumerate(rows[70:], 71):
            three.log_step(step, row)
    assert first + second == whole
