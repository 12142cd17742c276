"""arms.py - what is changed in each arm, and the stage of the run that it is compared with.

    arm                  changed                                              compared with
    repetition_penalty   r1_zero's RL with 0.5 x the share of repeated 8-grams taken off    r1_zero
    no_language          reasoning_rl without the language reward                            reasoning_rl
    no_cold_start        reasoning_rl on the base model itself, in the template that it knows reasoning_rl
    no_cold_start_chat   the same in the chat template, which the base has never seen        reasoning_rl
    reward_model         r1_zero's RL rewarded by a model that learned what right answers
                         look like from 3,200 judged samples; the last weights              r1_zero
    band                 r1_zero's RL on those of its prompts that the base solves with a
                         rate of 0.2 to 0.625, of 8 samples each                             r1_zero
    cosine_length        the cosine reward instead of accuracy in r1_zero's RL               r1_zero
    cap_64               r1_zero's RL with completions of at most 64 tokens, measured at 256 r1_zero
    reinforce            r1_zero's RL with the rollout's mean reward as the only baseline    r1_zero
    small                a dense model of 2 layers of width 48, pre-trained and reinforced
                         as the student was                                                  student_rl_only
    sft_N_kept, sft_N_all   student_base on N samples of reasoning_rl, the right, well-formed and
                         readable ones, or all as they come                                  distilled

An arm is a function of the reference and its own JSON object, which it may add to; it returns the model
and the template that it is asked with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from r1grpo.config import EvalConfig
from r1grpo.evaluate import draw_samples, recompute
from r1grpo.model import Model
from r1grpo.recipe import with_seed
from r1grpo.reward_model import ModelReward, RewardTrainer
from r1grpo.rewards import (accuracy_reward, format_reward, get_cosine_scaled_reward,
                            get_repetition_penalty_reward, language_reward)
from r1grpo.rundir import read_jsonl
from r1grpo.scoring import RewardFunction
from r1grpo.sources import prompt_rows, train_problems, training_row
from r1grpo.tasks.trace import is_readable
from r1grpo.tokenizer import is_wellformed, split_thinking

from .learning import Reinforce, draw_test, fine_tune, reinforce
from .reference import Reference, Row

Arm = Callable[[Reference, dict[str, Any]], tuple[Model, str]]
RULE = (accuracy_reward, format_reward)
BAND = (0.2, 0.625)  # Light-R1's, the default of `r1grpo curate`
SFT_ROWS = (300, 1200, 4800)


def _r1_zero(ref: Reference, found: dict[str, Any], rewards: Sequence[RewardFunction] = RULE,
             more_weights: tuple[float, ...] = (), **changes: Any) -> tuple[Model, str]:
    """R1-Zero's RL on the base, with changes. The first two rewards have the stage's weights."""
    model = ref.load("base")
    found["curve"] = reinforce(ref, "r1_zero", "zero", model, rewards,
                               (*ref.weights("r1_zero", 2), *more_weights), **changes)
    return model, "zero"


def no_language(ref: Reference, found: dict[str, Any]) -> tuple[Model, str]:
    model = ref.load("cold_start")
    found["curve"] = reinforce(ref, "reasoning_rl", "r1", model, RULE, ref.weights("reasoning_rl", 2))
    return model, "r1"


def no_cold_start(ref: Reference, found: dict[str, Any], template: str) -> tuple[Model, str]:
    model = ref.load("base")
    found["curve"] = reinforce(ref, "reasoning_rl", template, model, (*RULE, language_reward),
                               ref.weights("reasoning_rl", 3))
    return model, template


def reward_model(ref: Reference, found: dict[str, Any]) -> tuple[Model, str]:
    model = ref.load("base")
    judged = _sampled(ref, model, "reward_model", 800, 4)
    recompute(judged)
    rows = [{"prompt_ids": one["prompt_ids"], "completion": one["completion"],
             "finish_reason": one["finish_reason"], "label": int(one["rewards"]["accuracy"] == 1.0)}
            for one in judged]
    held, learned = rows[:600], rows[600:]  # whole problems: 4 samples each
    options = with_seed(ref.recipe.reward_models.safety, ref.stream("ablations/reward_model"),
                        kind="pointwise", part="whole", num_train_epochs=3.0)
    trainer = RewardTrainer(model.add_score_head(ref.stream("ablations/head")), options, learned, held,
                            ref.tokenizer)
    for _ in trainer:
        pass
    found["held_out"] = trainer.evaluate()
    judge = ModelReward(trainer.model.score, ref.tokenizer, "whole", "learned")
    prompts = [{key: value for key, value in row.items() if key != "reward_model"}
               for row in ref.prompts("r1_zero", "zero")]
    return _r1_zero(ref, found, (judge, format_reward), rows=prompts, select=False)


def band(ref: Reference, found: dict[str, Any]) -> tuple[Model, str]:
    prompts = ref.prompts("r1_zero", "zero")
    samples = draw_samples(ref.load("base", frozen=True), prompts, _sampling(ref, "band", 8), ref.tokenizer)
    recompute(samples)
    right = [0] * len(prompts)
    for one in samples:
        right[one["problem"]] += one["rewards"]["accuracy"] == 1.0
    low, high = BAND
    kept = [row for row, r in zip(prompts, right) if low <= r / 8 <= high]
    found["data"] = {"prompts": len(prompts), "kept": len(kept), "never": right.count(0),
                     "always": right.count(8)}
    return _r1_zero(ref, found, rows=kept)


def cosine_length(ref: Reference, found: dict[str, Any]) -> tuple[Model, str]:
    cosine = get_cosine_scaled_reward(max_len=ref.recipe.evaluation.max_completion_length)
    return _r1_zero(ref, found, (cosine, format_reward))


def small(ref: Reference, found: dict[str, Any]) -> tuple[Model, str]:
    config = dataclasses.replace(ref.recipe.student, hidden_size=48, intermediate_size=128,
                                 num_hidden_layers=2)
    model = Model(config, seed=ref.stream("ablations/small"))
    found["parameters"] = int(sum(value.size for value in model.state_dict().values()))
    rows = [training_row(row, ref.tokenizer) for row in read_jsonl(ref.path / "data" / "corpus.jsonl")]
    fine_tune(model, ref.recipe.student_base, ref.stream("student_base"), rows)
    found["before"] = recompute(draw_test(ref, model, "zero"))["pass@1"]
    found["curve"] = reinforce(ref, "student_rl_only", "zero", model, RULE,
                               ref.weights("student_rl_only", 2), **ref.student_options())
    return model, "zero"


def sft(ref: Reference, found: dict[str, Any], count: int, filtered: bool) -> tuple[Model, str]:
    rows = [{"prompt_ids": one["prompt_ids"], "completion_ids": one["completion_ids"]}
            for one in _taught(ref) if not filtered or _is_good(one)]
    if len(rows) < count:
        raise ValueError(f"{len(rows)} of reasoning_rl's samples can be used, {count} are asked for")
    model = ref.load("student_base")
    fine_tune(model, ref.recipe.distilled, ref.stream("distilled"), rows[:count])
    return model, "r1"


@cache
def _taught(ref: Reference) -> list[Row]:
    """Graded samples of reasoning_rl that the six arms of SFT learn from."""
    samples = _sampled(ref, ref.load("reasoning_rl", frozen=True), "sft", 6000, 2, template="r1")
    recompute(samples)
    return samples


def _is_good(one: Row) -> bool:
    """Right, and what rejection_sft's data must be (sources.py)."""
    text = one["completion"]
    return one["rewards"]["accuracy"] == 1.0 and is_wellformed(text, "r1") \
        and is_readable(split_thinking(text)[0], one["language"])


def _sampling(ref: Reference, purpose: str, k: int, template: str = "zero") -> EvalConfig:
    return EvalConfig(k=k, max_completion_length=ref.recipe.evaluation.max_completion_length,
                      stop_token_ids=ref.tokenizer.stop_token_ids(template), batch_prompts=128,
                      seed=ref.stream(f"ablations/{purpose}"))


def _sampled(ref: Reference, model: Model, purpose: str, problems: int, k: int,
             template: str = "zero") -> list[Row]:
    """k samples of train problems of the recipe's mix."""
    rows = prompt_rows(train_problems(ref.recipe, problems, f"ablations/{purpose}"), template)
    return draw_samples(model, rows, _sampling(ref, purpose, k, template), ref.tokenizer)


ARMS: dict[str, Arm] = {
    "no_language": no_language, "no_cold_start": partial(no_cold_start, template="zero"),
    "no_cold_start_chat": partial(no_cold_start, template="r1"),
    "reinforce": partial(_r1_zero, trainer_class=Reinforce),
    "repetition_penalty": partial(_r1_zero, rewards=(*RULE, get_repetition_penalty_reward(
        8, -1.0, unit="tokens")), more_weights=(0.5,)),
    "cosine_length": cosine_length, "cap_64": partial(_r1_zero, max_completion_length=64),
    "band": band, "reward_model": reward_model,
    **{f"sft_{count}_{name}": partial(sft, count=count, filtered=name == "kept")
       for count in SFT_ROWS for name in ("kept", "all")},
    "small": small}
