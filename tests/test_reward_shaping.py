"""Length and repetition rewards against equations written here again, published values, properties."""

import math
from fractions import Fraction

import numpy as np
import pytest

from r1grpo.rewards import (DenseRepetitionPenalty, get_cosine_scaled_reward,
                            get_group_length_reward, get_length_scaled_reward,
                            get_repetition_penalty_reward, get_soft_overlong_punishment)
from r1grpo.verifiers import Verdict


def told(prompts, completions, completion_ids, right, **columns):
    """Whether a completion is right, as a column says."""
    return list(right)


def ask(reward, lengths, right, **columns):
    n = len(lengths)
    return reward(prompts=["p"] * n, completions=["c"] * n, completion_ids=[[1] * k for k in lengths],
                  right=right, **columns)


# ---- cosine and scaled --------------------------------------------------------------------------


def test_cosine_has_the_published_values():
    """Lmax 16384 without the margin: the curve alone."""
    reward = get_cosine_scaled_reward(16384, exceed_value=None, correct=told)
    lengths = [0, 4096, 8192, 16384]
    assert ask(reward, lengths, [1.0] * 4) == pytest.approx([2, 1.853553, 1.5, 1.0], abs=1e-6)
    assert ask(reward, lengths, [0.0] * 4) == pytest.approx([-10, -8.535534, -5, 0], abs=1e-6)


@pytest.mark.parametrize("values", [(-10.0, 0.0, 1.0, 2.0), (-10.0, 0.0, 5.0, 6.0), (-1.0, -0.5, 0.5, 1.0)])
def test_cosine_against_its_equation_its_bounds_and_its_clamp(values):
    low_wrong, high_wrong, low_right, high_right = values
    reward = get_cosine_scaled_reward(100, *values, exceed_value=None, correct=told)
    lengths = list(range(0, 300, 7))
    right = ask(reward, lengths, [1.0] * len(lengths))
    wrong = ask(reward, lengths, [0.0] * len(lengths))
    for n, up, down in zip(lengths, right, wrong, strict=True):
        half = math.sin(math.pi * min(n, 100) / 200) ** 2  # (1 - cos x) / 2
        assert up == pytest.approx(high_right + (low_right - high_right) * half)
        assert down == pytest.approx(low_wrong + (high_wrong - low_wrong) * half)
    assert right == sorted(right, reverse=True) and wrong == sorted(wrong)
    assert right[-1] == low_right and wrong[-1] == high_wrong  # behind the limit: no way back
    assert max(wrong) <= 0.0 < min(right)


def test_the_bonus_for_being_short_is_clipped_for_right_answers_alone():
    plain, clipped = (get_cosine_scaled_reward(100, exceed_value=None, correct=told, clip_correct=clip)
                      for clip in (None, 1.25))
    lengths = list(range(0, 120))
    right, wrong = ([ask(one, lengths, [kind] * 120) for one in (plain, clipped)] for kind in (1.0, 0.0))
    assert right[1] == [min(one, 1.25) for one in right[0]] and wrong[0] == wrong[1]
    assert right[1][:60] == [1.25] * 60 and right[1][67:] == right[0][67:] and right[1][100] == 1.0
    low = get_cosine_scaled_reward(100, -10.0, 0.0, -1.0, 1.0, None, correct=told, clip_correct=-0.5)
    assert ask(low, [0, 100, 100], [1.0, 1.0, 0.0]) == [-0.5, -1.0, 0.0]
    late = get_cosine_scaled_reward(100, correct=told, clip_correct=1.25)
    assert ask(late, [83, 84], [1.0, 1.0])[1] == -10.0


def test_where_a_length_curve_begins_and_ends():
    """Against exact values: no token, one, the last before the margin, exactly the longest, one more."""
    for limit in (1, 2, 17, 10 ** 6):
        bare = get_cosine_scaled_reward(limit, exceed_value=None, correct=told)
        line = get_length_scaled_reward(limit, 0.5, exceed_value=None, correct=told)
        for reward, zero, longest in ((bare, (2.0, -10.0), (1.0, 0.0)), (line, (0.5, -1.0), (0.0, 0.0))):
            assert ask(reward, [0, 0], [1.0, 0.0]) == list(zero)
            assert ask(reward, [limit] * 2, [1.0, 0.0]) == ask(reward, [limit + 1] * 2, [1.0, 0.0]) == list(longest)
        margin = get_cosine_scaled_reward(limit, margin=1, correct=told)
        assert ask(margin, [limit - 1, limit, limit + 1], [1.0] * 3) == [-10.0] * 3
        if limit > 2:
            assert 1.0 <= ask(margin, [limit - 2], [1.0])[0] < 2.0
    one = ask(get_cosine_scaled_reward(4, exceed_value=None, correct=told), [1], [1.0])[0]
    assert one == pytest.approx(1.5 + math.sqrt(2) / 4, rel=1e-15)
    soft = get_soft_overlong_punishment(3, 3)
    assert ask(soft, [0, 1, 2, 3, 4], None) == [0.0, -1 / 3, -2 / 3, -1.0, -1.0]


def test_the_margin_of_sixteen_tokens():
    reward = get_cosine_scaled_reward(100, correct=told)
    values = ask(reward, [83, 84, 100, 500], [1.0] * 4)
    assert values[0] > 1.0 and values[1:] == [-10.0] * 3
    assert ask(get_length_scaled_reward(100, correct=told), [83, 84], [0.0] * 2) == \
        pytest.approx([-0.17, 0.0])


@pytest.mark.parametrize("k", [0.0, 0.25, 1.0])
def test_length_scaled(k):
    reward = get_length_scaled_reward(64, k, exceed_value=None, correct=told)
    for n in range(0, 90, 5):
        c = min(n, 64) / 64
        assert ask(reward, [n, n], [1.0, 0.0]) == pytest.approx(
            [k + c - 2 * k * c - c * c + k * c * c, -1 + c])
    assert ask(reward, [0, 64, 80], [1.0] * 3) == pytest.approx([k, 0, 0])


def test_no_verdict_no_reward_and_partial_credit_is_not_right():
    columns = {"num_generations": 3}
    for reward in (get_cosine_scaled_reward(100, correct=told), get_length_scaled_reward(100, correct=told),
                   get_group_length_reward(correct=told)):
        assert ask(reward, [10] * 3, [None, 0.0, 1.0], **columns)[0] is None
        partial, wrong = ask(reward, [10, 10, 20], [0.9, 0.0, 1.0], **columns)[:2]
        assert partial == wrong


def test_a_verdict_that_is_no_number_is_refused():
    for reward in (get_cosine_scaled_reward(100, correct=told), get_length_scaled_reward(100, correct=told),
                   get_group_length_reward(correct=told)):
        with pytest.raises(ValueError, match="value 1 of what `correct` returned is NaN"):
            ask(reward, [10, 10], [1.0, math.nan], num_generations=2)


def test_verdicts_are_read_and_a_failure_stays_one():
    failure = Verdict(False, "timeout")
    given = [Verdict(True, "correct"), Verdict(False, "wrong"), failure]
    assert ask(get_cosine_scaled_reward(100, correct=told), [0, 0, 0], given) == [2.0, -10.0, failure]
    grouped = ask(get_group_length_reward(correct=told), [10, 20, 900], given, num_generations=3)
    assert grouped == [0.5, -0.5, failure]


def test_rows_of_a_data_set_by_default():
    reward = get_cosine_scaled_reward(100, exceed_value=None)
    call = dict(prompts=["p"] * 3, completions=["<answer>4</answer>", "<answer>5</answer>", "4"],
                completion_ids=[[1] * 50] * 3)
    assert reward(**call, answer=["4", "4", None]) == pytest.approx([1.5, -5.0, None])


# ---- soft overlong, group -----------------------------------------------------------------------


def test_soft_overlong_has_the_published_values():
    reward = get_soft_overlong_punishment()
    assert ask(reward, [0, 16384, 17408, 18432, 20480, 20481], None) == [0, 0, -0.25, -0.5, -1, -1]
    assert ask(get_soft_overlong_punishment(100, 0), [100, 101], None) == [0, -1]
    falling = ask(get_soft_overlong_punishment(50, 20), range(80), None)
    assert falling == sorted(falling, reverse=True) and set(falling[:31]) == {0.0}


def test_group_length_is_of_the_group():
    reward = get_group_length_reward(correct=told)
    values = ask(reward, [10, 20, 30, 7, 7, 7], [1, 1, 1, 0, 1, 0], num_generations=3)
    assert values == [0.5, 0.0, -0.5, 0.0, 0.0, 0.0]
    assert ask(reward, [10, 20, 30], [0, 0, 0], num_generations=3) == [0.0, 0.0, -0.5]
    # equal lengths everywhere but in another group: groups do not see each other
    assert ask(reward, [5, 5, 90, 90], [1] * 4, num_generations=2) == [0.0] * 4
    # who has no verdict stretches nothing
    assert ask(reward, [10, 20, 900], [1, 1, None], num_generations=3) == [0.5, -0.5, None]
    # one alone, all of one token or of none, nobody with a verdict
    assert ask(reward, [9], [1], num_generations=1) == [0.0]
    assert ask(reward, [1, 1, 0, 0], [1, 0, 1, 0], num_generations=2) == [0.0] * 4
    assert ask(reward, [0, 1], [1, 1], num_generations=2) == [0.5, -0.5]
    assert ask(reward, [5, 9], [None, None], num_generations=2) == [None, None]


def test_group_length_against_fractions():
    rng = np.random.default_rng(3)
    for size in (1, 2, 5, 16):
        lengths, right = rng.integers(0, 12, 4 * size).tolist(), rng.integers(0, 2, 4 * size).tolist()
        want = []
        for first in range(0, 4 * size, size):
            group = lengths[first:first + size]
            for length, is_right in zip(group, right[first:first + size], strict=True):
                m = Fraction(1, 2) - Fraction(length - min(group), max(group) - min(group)) \
                    if max(group) > min(group) else Fraction(0)
                want.append(float(m if is_right else min(m, Fraction(0))))
        assert ask(get_group_length_reward(correct=told), lengths, right, num_generations=size) == \
            pytest.approx(want, abs=1e-15)


# ---- repetition ---------------------------------------------------------------------------------


def sparse(said, n, most):
    seen, again, total = [], 0, 0
    for i in range(len(said) - n + 1):
        total += 1
        again += said[i:i + n] in seen
        seen.append(said[i:i + n])
    return most * again / total if total else 0.0


def test_sparse_by_hand():
    reward = get_repetition_penalty_reward(2, -1.0)
    assert reward(completions=["a b", "a", "", "A b a B", [{"role": "assistant", "content": "x x x"}]],
                  completion_ids=[[]] * 5) == pytest.approx([0.0, 0.0, 0.0, -1 / 3, -0.5])
    by_ids = get_repetition_penalty_reward(2, -1.0, "tokens")
    assert by_ids(completions=[""] * 2, completion_ids=[[1, 2, 3, 4], [5] * 5]) == [0.0, -0.75]


def test_sparse_against_counting():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5):
        ids = [rng.integers(0, 4, k).tolist() for k in (0, 1, n - 1, n, n + 1, 40)]
        words = [" ".join("aBcD"[i] for i in one) for one in ids]
        want = [sparse(one, n, -2.0) for one in ids]
        got = get_repetition_penalty_reward(n, -2.0)(completions=words, completion_ids=ids)
        assert got == pytest.approx(want) and all(-2.0 <= one <= 0.0 for one in got)
        assert get_repetition_penalty_reward(n, -2.0, "tokens")(
            completions=words, completion_ids=ids) == pytest.approx(want)


def dense(ids, n, penalty, discount):
    """(p, R) by looking at every pair of places."""
    T = len(ids)
    paid = [0.0] * T
    for start in range(T - n + 1):
        if any(ids[start:start + n] == ids[before:before + n] for before in range(start)):
            for t in range(start, start + n):
                paid[t] = penalty
    return paid, [math.fsum(discount ** (s - t) * paid[s] for s in range(t, T)) for t in range(T)]


def test_dense_against_every_pair_of_places():
    rng = np.random.default_rng(1)
    for n in (1, 2, 4):
        for T in (0, 1, n, 12, 30):
            ids = rng.integers(0, 3, T).tolist()
            reward = DenseRepetitionPenalty(n, -0.05, 0.9)
            paid, returned = dense(ids, n, -0.05, 0.9)
            assert reward.penalties(ids).tolist() == paid
            assert reward.returns(ids) == pytest.approx(returned, abs=1e-15)
            assert reward(completion_ids=[ids]) == pytest.approx([sum(paid)])


def test_dense_spares_the_first_occurrence_and_what_stands_behind():
    ids = [1, 2, 3, 9, 1, 2, 3, 8]
    reward = DenseRepetitionPenalty(3, -1.0, 0.5)
    assert reward.penalties(ids).tolist() == [0, 0, 0, 0, -1, -1, -1, 0]
    assert reward.returns(ids).tolist() == [-0.109375, -0.21875, -0.4375, -0.875, -1.75, -1.5, -1, 0]
    loop = DenseRepetitionPenalty(2, -1.0, only_start=True)
    assert loop.penalties([5] * 8).tolist() == [0, -1, -1, 0, 0, 0, 0, 0]  # once for one long loop
    assert DenseRepetitionPenalty(2, -1.0).penalties([5] * 8).tolist() == [0] + [-1] * 7


def test_dense_discount_bounds_what_a_loop_can_cost():
    reward = DenseRepetitionPenalty()
    returned = reward.returns([7] * 3000)
    assert returned.min() >= -0.05 / (1 - 0.99) and returned.max() <= 0.0
    assert reward.returns(list(range(3000))).tolist() == [0.0] * 3000


def test_as_trl_has_them():
    """Where the meaning is TRL's, so are the values."""
    theirs = pytest.importorskip("trl.rewards.other_rewards")
    rng = np.random.default_rng(2)
    ids = [rng.integers(0, 5, n).tolist() for n in (0, 1, 2, 3, 10, 49, 50, 51, 60, 61, 90)]
    for limit, cache in ((60, 10), (60, 0), (60, 60)):
        assert get_soft_overlong_punishment(limit, cache)(ids) == \
            theirs.get_soft_overlong_punishment(limit, cache)(ids)
    assert get_repetition_penalty_reward(2, -0.7, "tokens")([""] * len(ids), ids) == pytest.approx(
        theirs.get_repetition_penalty_reward(2, -0.7)(ids))


@pytest.mark.parametrize("make", [
    lambda: get_cosine_scaled_reward(0), lambda: get_cosine_scaled_reward(10, max_value_wrong=1.0),
    lambda: get_cosine_scaled_reward(10, min_value_wrong=-math.inf),
    lambda: get_cosine_scaled_reward(10, exceed_value=math.nan),
    lambda: get_cosine_scaled_reward(10, clip_correct=2.5), lambda: get_cosine_scaled_reward(10, clip_correct=math.nan),
    lambda: get_length_scaled_reward(10, exceed_value=math.inf), lambda: get_length_scaled_reward(10, math.nan),
    lambda: get_repetition_penalty_reward(3, math.nan), lambda: DenseRepetitionPenalty(3, -math.inf),
    lambda: DenseRepetitionPenalty(3, discount=math.nan), lambda: get_cosine_scaled_reward(math.nan),
    lambda: get_cosine_scaled_reward(10, margin=-1), lambda: get_length_scaled_reward(0),
    lambda: get_length_scaled_reward(10, 1.5), lambda: get_soft_overlong_punishment(10, 11),
    lambda: get_soft_overlong_punishment(10, -1), lambda: get_repetition_penalty_reward(0),
    lambda: get_repetition_penalty_reward(3, 0.5), lambda: get_repetition_penalty_reward(3, -1, "lines"),
    lambda: DenseRepetitionPenalty(0), lambda: DenseRepetitionPenalty(3, 0.0),
    lambda: DenseRepetitionPenalty(3, discount=1.5)])
def test_values_that_cannot_be_are_named(make):
    with pytest.raises(ValueError, match="is |must"):
        make()
