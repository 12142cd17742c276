"""GRPOTrainer: the flow of a step, dynamic sampling, faulty rewards."""

import json

import numpy as np
import pytest
from toy_grpo import ROWS, TOKENIZER, brevity, make, weights, wish_share

from r1grpo.flops import forward_flops
from r1grpo.rewards import DenseRepetitionPenalty
from r1grpo.scoring import RewardError, Rewards
from r1grpo.tokenizer import WordTokenizer
from r1grpo.verifiers import Verdict


def test_it_learns():
    rows = [{"prompt": p, "wish": "e"} for p in "abcd"]
    trainer = make(rows=rows, max_steps=60, learning_rate=0.2, num_generations=8,
                   per_device_train_batch_size=16)
    history = trainer.train()
    assert len(history) == 60 and trainer.step == 60
    assert np.mean([h["reward"] for h in history[-6:]]) > \
        3 * np.mean([h["reward"] for h in history[:6]])


def test_a_step_is_one_update_and_a_rollout_is_used_once():
    trainer = make(steps_per_generation=4, per_device_train_batch_size=4, max_steps=4)
    seen = [(step["step"], trainer.batch.step) for step in trainer]
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0)]
    calls = trainer.model.calls
    assert [len(c["completion_ids"]) for c in calls] == [4] * 4
    used = sorted(tuple(ids) for c in calls for ids in c["completion_ids"])
    assert used == sorted(tuple(ids) for ids in trainer.batch.completions.completion_ids)
    assert all(c["total_tokens"] == 1.0 and c["recompute"] is False for c in calls)
    for call in calls:  # loss_type grpo: 1 / (completions of the update * tokens)
        assert call["weights"] == pytest.approx([1 / (4 * len(o)) for o in call["completion_ids"]])
    # the split is random, not the order of the rollout
    first = [tuple(ids) for ids in calls[0]["completion_ids"]]
    assert first != [tuple(ids) for ids in trainer.batch.completions.completion_ids[:4]]


def test_flops_of_a_step():
    """Forward and backward of the update's sequences; before the first of a rollout, sampling, and
    the reference's forward pass over all of it. A prompt counts once for all its completions."""
    def parts(trainer, chosen):
        done = trainer.batch.completions
        return ([i // done.group_size for i in chosen], [len(done.completion_ids[i]) for i in chosen])

    def passes(groups, completions):
        spans, seen = [], set()
        for p, n in zip(groups, completions):
            prompt = len(trainer.batch.completions.prompt_ids[p])
            spans.append((prompt, n) if p in seen else (0, prompt + n))
            seen.add(p)
        return forward_flops(trainer.model.config, spans, sum(completions))
    trainer = make(beta=0.1)
    for position, metrics in zip(range(2), trainer):
        done, config = trainer.batch.completions, trainer.model.config
        split = trainer.batch.mini_batches(trainer.args.seed, trainer.args.steps_per_generation)
        want = 3 * passes(*parts(trainer, split[position]))
        if position == 0:
            groups, lengths = parts(trainer, range(len(done)))
            spans = [(0, len(p)) for p in done.prompt_ids]
            spans += [(len(done.prompt_ids[p]), n - 1) for p, n in zip(groups, lengths)]
            want += passes(groups, lengths) + forward_flops(config, spans, sum(lengths))
        assert metrics["flops"] == want


def test_completions_of_a_prompt_share_it_in_every_mini_batch():
    trainer = make(max_steps=2)
    trainer.train()
    size = trainer.batch.completions.group_size
    split = trainer.batch.mini_batches(trainer.args.seed, trainer.args.steps_per_generation)
    for call, chosen in zip(trainer.model.calls, split):
        assert call["groups"] == [i // size for i in chosen]
        assert len(set(call["groups"])) < len(chosen)


def test_metrics_and_gap():
    trainer = make(rewards=[wish_share, brevity], reward_weights=(2.0, 1.0), beta=0.1,
                   sync_ref_model=True, ref_model_sync_steps=3)
    first, second = next(trainer), next(trainer)
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/wish_share/mean",
                 "rewards/brevity/std", "completions/mean_length", "completions/clipped_ratio",
                 "kl", "entropy", "clip_ratio/region_mean", "grad_norm", "learning_rate",
                 "num_tokens", "step_time", "tokens_per_second", "peak_share", "epoch",
                 "sampling/importance_sampling_ratio/max"):
        assert name in first, name
    assert first["max_logprob_gap"] == 0.0 and first["kl"] == 0.0
    assert first["sampling/importance_sampling_ratio/min"] == 1.0
    assert first["sampling/importance_sampling_ratio/max"] == 1.0
    assert "max_logprob_gap" not in second
    assert second["sampling/importance_sampling_ratio/max"] != 1.0 and second["kl"] > 0.0
    assert trainer.max_logprob_gap == 0.0 and trainer.gap_tokens == first["gap_tokens"] > 0
    parts = trainer.batch.parts
    assert np.isnan(parts[:, 1]).any() and np.isfinite(parts[:, 0]).all()
    total = trainer.rewards.total(parts)
    assert total == pytest.approx(2 * parts[:, 0] + np.nan_to_num(parts[:, 1]))


def test_one_weight_changed_in_between_makes_the_gap_nonzero():
    trainer = make()

    def meddling(prompts, completions, completion_ids, **columns):
        if trainer._tried:
            trainer.model.table[TOKENIZER.token_id("a"), 0] += 0.5
        return [0.0] * len(completions)
    trainer.rewards = Rewards(meddling)
    next(trainer)
    assert trainer.max_logprob_gap > 0.0


def test_reference_is_refreshed_by_hard_copy():
    trainer = make(beta=0.1, sync_ref_model=True, ref_model_sync_steps=3, max_steps=6)
    before = trainer.reference.table.copy()
    for step in trainer:
        if step["step"] == 2:
            assert np.array_equal(trainer.reference.table, before)
        if step["step"] in (3, 6):
            assert np.array_equal(trainer.reference.table, trainer.model.table)
    assert make(beta=0.0).reference is None


def test_the_reference_scores_a_rollout_once_and_again_when_it_moves():
    trainer = make(beta=0.1, steps_per_generation=4, per_device_train_batch_size=4, max_steps=8,
                   sync_ref_model=True, ref_model_sync_steps=6)  # in the middle of a rollout
    gradient, logprobs, scored = trainer.model.policy_gradient, trainer.reference.logprobs, []

    def counted(prompts, completions, **options):
        scored.append((trainer.step, len(completions)))
        return logprobs(prompts, completions, **options)

    def compared(prompts, completions, ref_logprobs, **options):
        want = logprobs(prompts, completions)  # of the reference as it is now
        assert [a.tobytes() for a in ref_logprobs] == [a.tobytes() for a in want]
        return gradient(prompts, completions, ref_logprobs=ref_logprobs, **options)
    trainer.reference.logprobs, trainer.model.policy_gradient = counted, compared
    trainer.train()
    assert scored == [(0, 16), (4, 16), (6, 16)]


def test_reference_is_refreshed_softly():
    """TRL's ref_model_mixup_alpha: the policy's share."""
    trainer = make(beta=0.1, sync_ref_model=True, ref_model_sync_steps=2, max_steps=2,
                   ref_model_mixup_alpha=0.75)
    before = trainer.reference.table.copy()
    trainer.train()
    mixed = 0.75 * trainer.model.table + 0.25 * before
    np.testing.assert_allclose(trainer.reference.table, mixed, rtol=1e-6)
    assert not np.array_equal(before, trainer.model.table)


def test_the_limit_of_a_rollout_is_that_of_its_first_step():
    trainer = make(max_completion_length=((0, 3), (3, 5)), stop_token_ids=(), loss_type="dr_grpo",
                   max_steps=6)
    lengths = [(trainer.batch.step, {len(one) for one in trainer.batch.completions.completion_ids})
               for _ in trainer]
    assert lengths == [(0, {3}), (0, {3}), (2, {3}), (2, {3}), (4, {5}), (4, {5})]
    assert [call["weights"][0] for call in trainer.model.calls] == \
        pytest.approx([1 / 24] * 4 + [1 / 40] * 2)  # dr_grpo divides by the limit that held


def test_iterations_go_through_the_mini_batches_again():
    trainer = make(num_iterations=3, max_steps=7)
    assert trainer.args.updates_per_rollout == 6
    steps = [trainer.batch.step for _ in trainer]
    assert steps == [0] * 6 + [6]
    parts = [[tuple(ids) for ids in call["completion_ids"]] for call in trainer.model.calls]
    assert parts[0] == parts[2] == parts[4] != parts[1] == parts[3] == parts[5]
    assert make(max_steps=None, num_iterations=3).total_steps == \
        3 * make(max_steps=None).total_steps


def test_options_of_the_loss_reach_the_model():
    trainer = make(loss_type="cispo", epsilon_high=1.5, max_steps=2, beta=0.1, kl_estimator="k2",
                   use_bias_correction_kl=True)
    trainer.train()
    call = trainer.model.calls[-1]
    assert {key: call[key] for key in ("loss", "epsilon_high", "delta", "kl_estimator",
                                       "importance_sampling_level", "use_bias_correction_kl")} == {
        "loss": "cispo", "epsilon_high": 1.5, "delta": None, "kl_estimator": "k2",
        "importance_sampling_level": "token", "use_bias_correction_kl": True}
    tokens = sum(map(len, call["completion_ids"]))
    assert call["weights"] == pytest.approx([1 / tokens] * 8)
    assert trainer.log_history[-1]["clip_ratio/low_mean"] == 0.0
    trainer = make(loss_type="gspo", delta=4.0, max_steps=1)
    trainer.train()
    call = trainer.model.calls[-1]
    assert (call["loss"], call["importance_sampling_level"], call["delta"]) == \
        ("clip", "sequence", 4.0)
    assert trainer.log_history[0]["sampling/importance_sampling_ratio/max"] == 1.0


def test_the_trial_meets_every_reward_model_of_the_first_and_the_last_dataset():
    early = [{"prompt": "a", "wish": "e", "reward_model": "rule"}] * 3
    late = [*early, {"prompt": "b", "wish": "f", "reward_model": "helpful"},
            {"prompt": "c", "wish": "f", "reward_model": "safety"}]
    asked = []

    def reward(prompts, completions, completion_ids, reward_model, **columns):
        asked.append(list(dict.fromkeys(reward_model)))
        if "safety" in reward_model:
            raise ValueError("no such reward model")
        return [0.0] * len(completions)

    trainer = make(rewards=reward, rows=lambda step: late if step >= 6 else early)
    with pytest.raises(ValueError, match="no such reward model"):
        next(trainer)
    assert asked == [["rule", "helpful", "safety"]] and trainer.step == 0


def test_dynamic_sampling_draws_for_missing_groups_only():
    rows = [{"prompt": p, "wish": p} for p in "abcd"]

    def only_two(prompts, completions, completion_ids, wish, **columns):
        return [0.0 if w in "ab" else float(i % 2) for i, w in enumerate(wish)]
    trainer = make(rewards=only_two, rows=rows, filter_zero_std_samples=True,
                   max_num_gen_batches=8, shuffle_dataset=False)
    assert trainer.args.prompts_per_rollout == 4
    generate, numbers, lengths = trainer.model.generate, [], []

    def counted(*args, **kwargs):
        numbers.append(kwargs["sample_ids"])
        done = generate(*args, **kwargs)
        lengths.append(sum(map(len, done.completion_ids)))
        return done
    trainer.model.generate = counted
    next(trainer)
    assert numbers == [None, [0, 1, 2, 3], [4, 5], [6, 7]]  # the trial, then three draws
    assert [r["wish"] for r in trainer.batch.rows] == ["c", "d", "c", "d"]
    used = sum(map(len, trainer.batch.completions.completion_ids))
    assert trainer.sampled_tokens == sum(lengths[1:]) > used  # the dropped groups cost as much
    next(trainer)  # the second update of the rollout samples nothing
    assert trainer.sampled_tokens == sum(lengths[1:]) and trainer.num_tokens == used
    assert trainer.processed_tokens == used + 16  # a prompt of one token to each of 16 completions
    assert trainer.batch.cursor == 8 and (trainer.batch.advantages != 0).all()
    bounded = make(rewards=only_two, rows=rows[:2], filter_zero_std_samples=True,
                   max_num_gen_batches=3)
    metrics = next(bounded)
    assert bounded.batch.cursor == 12 and len(bounded.batch.completions) == 16
    assert (bounded.batch.advantages == 0).all() and metrics["frac_reward_zero_std"] == 1.0


def test_the_next_rollout_takes_the_next_prompts():
    trainer = make(shuffle_dataset=False, steps_per_generation=1)
    seen = [trainer.batch.indices for _ in trainer]
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]] * 2


def test_truncated_completions_can_be_masked():
    for mask in (False, True):
        trainer = make(mask_truncated_completions=mask, loss_type="dapo", steps_per_generation=1,
                       per_device_train_batch_size=16)
        next(trainer)
        w, done = trainer.model.calls[0]["weights"], trainer.batch.completions
        cut = np.array([why == "length" for why in done.finish_reasons])
        assert cut.any() and not cut.all()
        assert (w[cut] == 0).all() == mask and (w[~cut] > 0).all()
        lengths = np.array([len(one) for one in done.completion_ids])
        assert w[~cut][0] == pytest.approx(1 / lengths[~cut if mask else slice(None)].sum())


def test_an_update_of_masked_completions_only_is_no_accident():
    trainer = make(mask_truncated_completions=True, stop_token_ids=(), max_completion_length=3)
    before = weights(trainer)
    metrics = next(trainer)
    assert metrics["loss"] == 0.0 and metrics["gap_tokens"] == 0 and metrics["grad_norm"] == 0.0
    assert weights(trainer) == before


def test_curriculum():
    early, late = ROWS[:2], ROWS[4:]
    trainer = make(rows=lambda step: early if step < 4 else late)
    for step in trainer:
        allowed = early if step["step"] <= 4 else late
        assert all(row in allowed for row in trainer.batch.rows)


@pytest.mark.parametrize("returned, words", [
    ([1.0], "returned 1 values for 2"), (1.0, "returned float"), (["x", 1.0], "value 0 is 'x'"),
    ([float("nan"), 1.0], "value 0 is nan"), ([1.0, float("inf")], "value 1 is inf")])
def test_faulty_rewards_are_named_before_the_first_update(returned, words):
    def faulty(prompts, completions, completion_ids, **columns):
        return returned
    trainer = make(rewards=faulty)
    before = weights(trainer)
    with pytest.raises(RewardError, match=words) as caught:
        trainer.train()
    assert "'faulty'" in str(caught.value) and weights(trainer) == before and trainer.step == 0


def test_an_exception_in_a_reward_says_where():
    def boom(prompts, completions):
        return []
    with pytest.raises(TypeError) as caught:
        next(make(rewards=boom))
    assert "'boom'" in caught.value.__notes__[0] and "wish" in caught.value.__notes__[0]


def test_bad_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="row 1 has neither 'prompt' nor 'prompt_ids'"):
        make(rows=[{"prompt": "a"}, {"question": "b"}])
    with pytest.raises(ValueError, match="row 0: its prompt has 3 tokens, max_prompt_length is 2"):
        make(rows=[{"prompt": "a b c"}], max_prompt_length=2)
    with pytest.raises(ValueError, match="empty prompt"):
        make(rows=[{"prompt": ""}])
    with pytest.raises(ValueError, match="train_dataset is empty"):
        make(rows=[])
    with pytest.raises(RewardError, match="column 'completions'"):
        next(make(rows=[{"prompt": "a", "completions": 1}]))
    with pytest.raises(RewardError, match="one name"):
        make(rewards=[wish_share, wish_share])
    with pytest.raises(RewardError, match="reward_weights needs 1"):
        make(reward_weights=(1.0, 2.0))


def test_evaluate_repeats_its_draws():
    trainer = make()
    trainer.eval_dataset = ROWS[:2]
    first = trainer.evaluate()
    assert first == trainer.evaluate() and "eval_reward" in first
    trainer.train()
    assert trainer.evaluate() != first


def test_completion_rows_are_json():
    trainer = make(rewards=[wish_share, brevity])
    next(trainer)
    rows = [json.loads(json.dumps(row)) for row in trainer.completion_rows()]
    assert len(rows) == 16
    assert rows[5]["completion"] == trainer.batch.completions.texts[5]
    assert set(rows[5]["rewards"]) == {"wish_share", "brevity"}
    assert len(rows[5]["logprobs"]) == len(rows[5]["completion_ids"])


def test_a_dense_reward_pays_at_its_tokens_and_in_no_total():
    dense = DenseRepetitionPenalty(1, -0.5, 0.9)
    plain, both = make(reward_weights=(1.0,)), make(rewards=[wish_share, dense],
                                                    reward_weights=(1.0, 2.0))
    first, second = next(plain), next(both)
    assert first["reward"] == second["reward"] and both.batch.advantages.tobytes() == \
        plain.batch.advantages.tobytes()
    paid = [dense(completion_ids=[ids])[0] for ids in both.batch.completions.completion_ids]
    assert second["rewards/dense_repetition_penalty/mean"] == pytest.approx(np.mean(paid)) and min(paid) < 0
    [call], [other] = both.model.calls, plain.model.calls
    for ids, given, one in zip(call["completion_ids"], call["advantages"], other["advantages"]):
        assert given == pytest.approx(one + 2.0 * dense.returns(ids.tolist()), abs=1e-6)
        assert given.shape == (len(ids),) and given.dtype == np.float32
    with pytest.raises(RewardError, match="dense rewards alone"):
        make(rewards=dense)


def test_a_dense_reward_pays_where_it_applies_alone():
    """Not where a row names other rewards, nor where a verifier failed: then nothing is known."""
    def verdict(prompts, completions, completion_ids, **columns):
        failed = len(completions) == 8  # not at the trial
        return [Verdict(False, "error" if failed else "wrong")] + [Verdict(True, "correct")] * (len(completions) - 1)
    dense = DenseRepetitionPenalty(1, -0.5, 0.9)
    rows = [ROWS[0], {**ROWS[1], "reward_funcs": ["verdict"]}]
    trainer = make(rewards=[verdict, dense], rows=rows, reward_weights=(1.0, 1.0), verifier_failures=1.0,
                   steps_per_generation=1)
    next(trainer)
    [call], reasons = trainer.model.calls, trainer.batch.reasons["verdict"]
    unpaid = [i for i, reason in enumerate(reasons) if reason == "error" or trainer.batch.indices[i // 4] == 1]
    assert len(unpaid) in (4, 5) and 0 in unpaid
    for i, (ids, given) in enumerate(zip(call["completion_ids"], call["advantages"])):
        returned = dense.returns(ids.tolist()) * (i not in unpaid)
        assert given == pytest.approx(trainer.batch.advantages[i] + returned, abs=1e-6)
    assert any(dense.returns(call["completion_ids"][i].tolist()).any() for i in unpaid)


def test_rows_of_verl_as_they_are():
    """Their column reward_model holds an object, ours a name."""
    judge = {"style": "rule", "ground_truth": "e"}
    seen = []

    def reward(prompts, completions, completion_ids, reward_model, **columns):
        seen.append(reward_model)
        return [float(one["ground_truth"] in text)
                for one, text in zip(reward_model, completions, strict=True)]
    make(rewards=reward, rows=[{"prompt": p, "reward_model": judge} for p in "abcd"],
         max_steps=1).train()
    assert [len(one) for one in seen] == [2, 16] and seen[0][0] == judge


def test_stop_strings_and_saving(tmp_path):
    trainer = make(stop_strings=("Q",), max_completion_length=40, stop_token_ids=())
    next(trainer)
    for text, why in zip(trainer.batch.completions.texts, trainer.batch.completions.finish_reasons):
        assert text.endswith("Q") == (why == "stop")
    assert "stop" in trainer.batch.completions.finish_reasons
    trainer.save_model(tmp_path)
    assert np.array_equal(np.load(tmp_path / "table.npy"), trainer.model.table)
    assert WordTokenizer.load(tmp_path).words == TOKENIZER.words
