"""Metrics against hand-computed figures, each alarm on and off, resume, and the progress bar."""

import io
import math
import warnings

import numpy as np
import pytest

from r1grpo.monitor import (AlarmLimits, Monitor, MonitorWarning, Progress, format_seconds,
                            rollout_metrics, std, token_metrics)


def test_rollout_metrics_by_hand():
    figures = rollout_metrics(
        rewards=[1.0, 0.0, 1.0, 1.0], group_size=2, lengths=[2, 4, 3, 9],
        parts={"accuracy": [1.0, 0.0, 1.0, None], "style": [None] * 4},
        finish_reasons=["stop", "stop", "stop", "length"],
        completion_ids=[[1, 2], [1, 2, 3, 4], [5, 6, 7], [5, 6, 7]])
    assert figures == {
        "reward": 0.75, "reward_std": math.sqrt(0.5) / 2, "frac_reward_zero_std": 0.5,
        "rewards/accuracy/mean": 2 / 3, "rewards/accuracy/std": pytest.approx(math.sqrt(1 / 3)),
        "completions/mean_length": 4.5, "completions/min_length": 2.0,
        "completions/max_length": 9.0, "completions/mean_terminated_length": 3.0,
        "completions/min_terminated_length": 2.0, "completions/max_terminated_length": 4.0,
        "completions/clipped_ratio": 0.25, "completions/duplicate_ratio": 0.25}


def test_equal_rewards_have_no_deviation_at_all():
    """0.1 three times: mean 0.10000000000000002 would give a deviation above zero."""
    assert std([0.1, 0.1, 0.1]) == 0.0 and std([0.7]) == 0.0 and std([0.0, 1e-9]) > 0
    figures = rollout_metrics([0.1] * 3, {}, 3, [1] * 3, ["length"] * 3)
    assert figures["reward_std"] == 0.0 and figures["frac_reward_zero_std"] == 1.0
    assert "completions/mean_terminated_length" not in figures


def test_order_of_completions_does_not_matter_to_the_last_bit():
    rng = np.random.default_rng(0)
    values = list(rng.standard_normal(64) * 10.0 ** rng.integers(-8, 8, 64))
    args = ([1] * 64, ["stop"] * 64)
    one = rollout_metrics(values, {"f": values}, 1, *args)
    assert one == rollout_metrics(values[::-1], {"f": values[::-1]}, 1, *args)


@pytest.mark.parametrize("change, match", [
    ({"group_size": 3}, "4 completions are no groups of 3"), ({"group_size": 0}, "groups of 0"),
    ({"lengths": [1]}, "lengths has 1 values, expected 4"),
    ({"parts": {"accuracy": [1.0]}}, "accuracy has 1 values, expected 4")])
def test_rollout_metrics_bad_input(change, match):
    good = {"rewards": [0.0] * 4, "parts": {}, "group_size": 2, "lengths": [1] * 4,
            "finish_reasons": ["stop"] * 4}
    with pytest.raises(ValueError, match=match):
        rollout_metrics(**{**good, **change})


def test_token_metrics_by_hand():
    old = [np.zeros(5, np.float32), np.zeros(3, np.float32), np.zeros(0, np.float32)]
    new = [np.log([1.0, 1.25, 1.15, 0.5, 0.6]), np.log([0.7, 2.0, 3.0]), np.zeros(0)]
    figures = token_metrics(new, old, [1.0, -1.0, 1.0], epsilon=0.2, epsilon_high=0.22)
    # A > 0: only 1.25 is above 1.22, 0.5 and 0.6 go on; A < 0: only 0.7 is below 0.8
    assert figures["clip_ratio/high_mean"] == 1 / 8 and figures["clip_ratio/low_mean"] == 1 / 8
    assert figures["clip_ratio/region_mean"] == 2 / 8
    assert figures["clip_ratio/high_max"] == 1 / 5 and figures["clip_ratio/low_min"] == 0.0
    assert figures["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(3))
    assert figures["sampling/importance_sampling_ratio/max"] == pytest.approx(3.0)
    assert figures["sampling/importance_sampling_ratio/min"] == pytest.approx(0.5)


def test_masked_tokens_do_not_count_even_when_they_are_nan():
    new, old = [np.array([0.0, np.nan])], [np.array([0.0, 1.0])]
    figures = token_metrics(new, old, [1.0], 0.2, mask=[np.array([1, 0])])
    assert figures["sampling/sampling_logp_difference/max"] == 0.0
    assert token_metrics(new, old, [1.0], 0.2, mask=[np.array([0, 0])]) == {}


def run_monitor(rows, stage="r1_zero", **limits):
    written = []
    monitor = Monitor(stage, written.append, AlarmLimits(**limits))
    names = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        for step, row in enumerate(rows, 1):
            names += [(alarm.name, alarm.step) for alarm in monitor.log_step(step, row)]
    return names, written


@pytest.mark.parametrize("calm, bad, name", [
    ({"completions/clipped_ratio": 0.3}, {"completions/clipped_ratio": 0.31}, "truncation"),
    ({"frac_reward_zero_std": 0.8}, {"frac_reward_zero_std": 0.9}, "zero_variance"),
    ({"completions/duplicate_ratio": 0.5}, {"completions/duplicate_ratio": 0.6}, "duplicates"),
    ({"max_logprob_gap": 0.0}, {"max_logprob_gap": 1e-30}, "logprob_gap"),
    ({"reward": 0.5}, {"reward": float("nan")}, "not_finite"),
    ({"kl": 0.5}, {"kl": float("inf")}, "not_finite"),
    ({"entropy": 0.5}, {"entropy": 0.04}, "entropy_collapse"),
    ({"reward": 0.5}, {"reward": 0.7}, "reward_jump"),
    ({"completions/mean_length": 50}, {"completions/mean_length": 101}, "length_drift"),
    ({"completions/mean_length": 50}, {"completions/mean_length": 24}, "length_drift")])
def test_each_alarm_sets_in_once(calm, bad, name):
    assert run_monitor([calm] * 40)[0] == []
    names, written = run_monitor([calm] * 10 + [bad, bad] + [calm] * 10 + [bad])
    assert names[0] == (name, 11) and (name, 12) not in names
    assert names[-1] == (name, 11 if name in ("truncation", "zero_variance", "duplicates") else 23)
    assert written[10]["alarms"] == [name] and "alarms" not in written[9]


@pytest.mark.parametrize("key, name", [("completions/clipped_ratio", "truncation"),
                                       ("completions/duplicate_ratio", "duplicates")])
def test_a_share_that_swings_gives_another_alarm_only_when_it_is_clearly_worse(key, name):
    rows = [{key: share} for share in (0.6, 0.2, 0.6, 0.2, 0.7, 0.75, 0.85, 0.9, 0.2, 0.9)]
    assert run_monitor(rows)[0] == [(name, 1), (name, 7)]


def test_growth_as_in_r1_zero_is_no_alarm():
    rows = [{"reward": 0.2 + 0.01 * i, "completions/mean_length": 20 * 1.03 ** i,
             "entropy": 0.5 * 0.98 ** i} for i in range(60)]
    assert run_monitor(rows)[0] == []


def test_noise_gives_no_alarm_in_a_thousand_steps():
    rng = np.random.default_rng(0)
    rows = [{"reward": 0.5 + 0.02 * rng.standard_normal(), "entropy": 0.4 + 0.02 * rng.random(),
             "completions/mean_length": 50 + 3 * rng.standard_normal()} for _ in range(1000)]
    assert run_monitor(rows)[0] == []


def test_rows_are_json_and_tokens_add_up():
    _, written = run_monitor([{"num_tokens": 10, "kl": np.float32(0.5), "reward": float("nan")},
                              {"num_tokens": 5, "kl": None}])
    assert written == [
        {"stage": "r1_zero", "step": 1, "num_tokens": 10, "kl": 0.5, "reward": None,
         "alarms": ["not_finite"]},
        {"stage": "r1_zero", "step": 2, "num_tokens": 15, "kl": None}]


def test_warning_names_alarm_stage_and_step():
    monitor = Monitor("r1", lambda row: None)
    with pytest.warns(MonitorWarning, match=r"truncation \(r1, step 7\): 50% are cut off"):
        monitor.log_step(7, {"completions/clipped_ratio": 0.5})


def test_resumed_monitor_writes_the_same_rows():
    rng = np.random.default_rng(1)
    rows = [{"reward": float(rng.random()), "entropy": 0.5 * 0.9 ** i, "num_tokens": 7,
             "max_logprob_gap": float(i % 4 == 0), "completions/clipped_ratio": float(rng.random()),
             "completions/mean_length": float(rng.integers(10, 60))} for i in range(40)]
    whole = run_monitor(rows)[1]
    assert sum("alarms" in row for row in whole) > 5
    for cut in (1, 9, 25):
        written = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MonitorWarning)
            first = Monitor("r1_zero", written.append)
            for step, row in enumerate(rows[:cut], 1):
                first.log_step(step, row)
            second = Monitor("r1_zero", written.append)
            second.load_state_dict(first.state_dict())
            for step, row in enumerate(rows[cut:], cut + 1):
                second.log_step(step, row)
        assert written == whole


def test_progress_prints_few_plain_lines():
    out = io.StringIO()
    with Progress(200, "r1_zero", file=out) as bar:
        for i in range(200):
            bar.update(peak_share=0.634, reward=i / 200)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and lines[0].startswith("r1_zero 20/200  10%")
    assert "0s left" in lines[-1] and lines[-1].endswith("  reward 0.995  63 % of peak")


def test_progress_resumes_where_it_was():
    out = io.StringIO()
    with Progress(4, "r1", done=2, file=out) as bar:
        bar.update()
        bar.update()
    assert [line.split("%")[0] for line in out.getvalue().splitlines()] == [
        "r1 3/4  75", "r1 4/4 100"]


def test_progress_draws_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress(3, "r1", file=out) as bar:
        for _ in range(3):
            bar.update(peak_share=0.634, reward=0.25)
    assert "3/3" in out.getvalue() and "reward=0.25, 63 % of peak" in out.getvalue() and "\r" in out.getvalue()


def test_format_seconds():
    assert [format_seconds(s) for s in (0, 59.4, 59.6, 75, 3675)] == [
        "0s", "59s", "1m00s", "1m15s", "1h01m"]
