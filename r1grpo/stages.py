"""stages.py - the stages of the pipeline, in order: the table, and what each one does.

    base ---- RL (accuracy, format) -----------------> r1_zero
    base ---- SFT on r1_zero's readable samples -----> cold_start
    cold_start ---- RL (+ language) -----------------> reasoning_rl
    base ---- SFT on reasoning_rl's samples 3:1 -----> rejection_sft      (base again, not the last)
    rejection_sft + scalar head ---------------------> helpful, safety    (reward models)
    rejection_sft ---- RL (+ preference at the end) -> r1
    student_base ---- SFT on the same rows ----------> distilled
    student_base ---- RL alone ----------------------> student_rl_only

DeepSeek-R1 (arXiv 2501.12948v2, figure 2, section 3; Nature 645, 2025). The reward of r1 is a plain
sum (eq. 8 to 10): rule on reasoning prompts, reward model + format on general ones, language on
both. A stage is a function of the run and its parent's model; what it needs of earlier stages it
reads from the run. Knows nothing about files or resuming: run.py does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .config import SFTConfig
from .grpo import Dataset, GRPOTrainer
from .measure import held_out_args, held_out_rows, samples_planned
from .model import Model
from .model_config import ModelConfig
from .recipe import Recipe, RLStage, SFTStage, with_seed
from .reward_model import ModelReward, RewardTrainer
from .rewards import accuracy_reward, format_reward, language_reward
from .run import Run
from .rundir import read_jsonl
from .scoring import RewardFunction
from .sft import SFTTrainer
from .sources import (HELPFUL, SAFETY, cold_start_rows, corpus_row, general_problems, judged_rows,
                      prompt_rows, stage3_rows, train_problems, training_row)
from .tasks.corpus import documents
from .work import Row, Rows, Selection

RULE = (accuracy_reward, format_reward)
RULE_FIGURES = ("pass@1", "format", "language_consistency")  # the first rewards, as evaluated
Trained = tuple[Model, int]  # the model of a stage, and the updates that its weights took
Plan = dict[str, int]  # phase -> sequences it samples or trains on, for the progress bar


@dataclass(frozen=True)
class Stage:
    """A checkpoint of the run: what it starts from, what made its data, how it is made."""

    name: str
    parent: str | None
    data_from: tuple[str, ...]
    template: str
    make: Callable[[Run, Model | None], Trained]
    plan: Callable[[Recipe], Plan]
    is_policy: bool = True  # a reward model is measured by its accuracy on held-out judgements


# ---- pieces -------------------------------------------------------------------------------------


def _fine_tune(run: Run, phase: str, model: Model, options: SFTConfig, rows: Rows) -> Trained:
    trainer = SFTTrainer(model, with_seed(options, run.seed(phase)), rows)
    return model, run.train(phase, trainer)


def _pretrain(run: Run, stage: str, config: ModelConfig, options: SFTConfig) -> Trained:
    """A new model on the corpus; both base models learn from the same file."""
    def make(entry: dict[str, Any]) -> Rows:
        corpus = run.recipe.corpus
        return [corpus_row(one) for one in documents(corpus.documents, run.seed("corpus"),
                                                     corpus.style)]
    rows = [training_row(row, run.tokenizer) for row in run.data(f"{stage}/corpus", "corpus", make)]
    return _fine_tune(run, stage, run.new_model(config, stage), options, rows)


def _reinforce(run: Run, phase: str, model: Model, spec: RLStage, template: str, dataset: Dataset,
               rewards: Sequence[RewardFunction], first: int = 0, **changes: Any
               ) -> tuple[int, Selection]:
    """RL with the checkpoint chosen on validation problems among those after `first` updates, where
    there are few and every rollout is looked at; returns its step and how it was chosen: by the
    stage's rule rewards, weighted as in training. `changes` are options of the trainer."""
    options = with_seed(spec.grpo, run.seed(phase.partition("/")[0]), **{
        "stop_token_ids": run.tokenizer.stop_token_ids(template),
        "output_dir": str(run.state_path(phase)), **changes})
    trainer = GRPOTrainer(model, rewards, options, dataset, processing_class=run.tokenizer)
    weights = spec.grpo.reward_weights or (1.0,) * len(rewards)
    selection = Selection(held_out_rows(run.recipe, "validation", template),
                          held_out_args(run.recipe, "validation", template, run.tokenizer),
                          dict(zip(RULE_FIGURES, weights)), spec.eval_steps, run.tokenizer, first,
                          then=spec.grpo.updates_per_rollout if first else None)
    return run.train(phase, trainer, selection), selection


def _prompts(run: Run, stage: str, count: int, template: str) -> Rows:
    """Reasoning prompts of an RL stage, kept in data/STAGE_prompts.jsonl."""
    return run.data(f"{stage}/prompts", f"{stage}_prompts", lambda entry: prompt_rows(
        train_problems(run.recipe, count, f"{stage}/prompts"), template))


def _drawn(run: Run, phase: str) -> Callable[[int], None]:
    """What sampling calls between batches: moves the bar, stops if asked to."""
    def pause(samples: int) -> None:
        run.advance(phase, samples)
        run.safe_point()
    return pause


def _need(model: Model | None) -> Model:
    assert model is not None  # the stage has a parent in the table
    return model


# ---- the stages ---------------------------------------------------------------------------------


def make_base(run: Run, parent: Model | None) -> Trained:
    """Pre-training of the base model on the corpus."""
    return _pretrain(run, "base", run.recipe.model, run.recipe.base)


def make_r1_zero(run: Run, parent: Model | None) -> Trained:
    """RL on the base model with rule rewards alone, in the plain template."""
    spec, model = run.recipe.r1_zero, _need(parent)
    rows = _prompts(run, "r1_zero", spec.problems, "zero")
    step, _ = _reinforce(run, "r1_zero", model, spec, "zero", rows, RULE)
    return model, step


def make_cold_start(run: Run, parent: Model | None) -> Trained:
    """SFT of the base model on R1-Zero's right samples, rewritten to be readable."""
    phase = "cold_start/samples"
    rows = run.data(phase, "cold_start", lambda entry: cold_start_rows(
        run.recipe, run.load("r1_zero", frozen=True), run.tokenizer, entry, _drawn(run, phase)))
    _require_rows("cold_start", "r1_zero", rows)
    return _fine_tune(run, "cold_start", _need(parent), run.recipe.cold_start.sft, rows)


def make_reasoning_rl(run: Run, parent: Model | None) -> Trained:
    """RL on the cold start with the chat template and the language reward."""
    spec, model = run.recipe.reasoning_rl, _need(parent)
    rows = _prompts(run, "reasoning_rl", spec.problems, "r1")
    step, _ = _reinforce(run, "reasoning_rl", model, spec, "r1", rows, (*RULE, language_reward))
    return model, step


def make_rejection_sft(run: Run, parent: Model | None) -> Trained:
    """SFT of the base model on reasoning_rl's kept samples and general rows."""
    phase = "rejection_sft/samples"
    rows = run.data(phase, "stage3", lambda entry: stage3_rows(
        run.recipe, run.load("reasoning_rl", frozen=True), run.tokenizer, entry, _drawn(run, phase)))
    _require_rows("rejection_sft", "reasoning_rl", rows)
    return _fine_tune(run, "rejection_sft", _need(parent), run.recipe.rejection_sft.sft, rows)


def judged(run: Run, kind: str, split: str, phase: str, entry: dict[str, Any]) -> Rows:
    """Judged responses of the base model and of rejection_sft, which answers well more often."""
    sources = {name: run.load(name, frozen=True) for name in ("base", "rejection_sft")}
    return judged_rows(run.recipe, kind, split, sources, run.tokenizer, entry, _drawn(run, phase))


def _make_reward_model(kind: str) -> Callable[[Run, Model | None], Trained]:
    def make(run: Run, parent: Model | None) -> Trained:
        phase = f"{kind}/samples"
        rows = run.data(phase, f"{kind}_rows",
                        lambda entry: judged(run, kind, "train", phase, entry))
        _require_rows(kind, "rejection_sft", rows)
        model = _need(parent).add_score_head(run.seed(f"{kind}/head"))
        trainer = RewardTrainer(model, with_seed(getattr(run.recipe.reward_models, kind),
                                                 run.seed(kind)), rows,
                                processing_class=run.tokenizer)
        return model, run.train(kind, trainer)
    return make


def held_out_accuracy(run: Run, kind: str, model: Model, rows: Rows) -> dict[str, float]:
    """A reward model on judged responses to held-out prompts."""
    options = getattr(run.recipe.reward_models, kind)
    return RewardTrainer(model, options, rows[:1], rows, run.tokenizer).evaluate()


def make_r1(run: Run, parent: Model | None) -> Trained:
    """The last RL: reasoning prompts, and near its end general ones with the learned rewards."""
    spec, model = run.recipe.r1, _need(parent)
    reasoning = _prompts(run, "r1", spec.problems, "r1")
    general = run.data("r1/general_prompts", "r1_general_prompts", lambda entry: prompt_rows(
        general_problems(run.recipe, "train", spec.general_prompts, run.seed("r1/general")), "r1"))
    share = round(len(general) * (1.0 - spec.general_rows) / spec.general_rows)
    mixed = [reasoning[i % len(reasoning)] for i in range(share)] + general
    first = spec.first_general_update
    rewards = (*RULE, language_reward,
               ModelReward(run.load(HELPFUL, frozen=True).score, run.tokenizer, "summary", HELPFUL),
               ModelReward(run.load(SAFETY, frozen=True).score, run.tokenizer, "whole", SAFETY))

    def dataset(step: int) -> Sequence[Row]:
        return mixed if step >= first else reasoning

    # a checkpoint from before the general prompts would not be r1, however good at reasoning
    step, _ = _reinforce(run, "r1", model, spec, "r1", dataset, rewards,
                         first if first < spec.total else 0)
    return model, step


def make_student_base(run: Run, parent: Model | None) -> Trained:
    """Pre-training of the smaller model."""
    return _pretrain(run, "student_base", run.recipe.student, run.recipe.student_base)


def make_distilled(run: Run, parent: Model | None) -> Trained:
    """SFT of the student's base on the rows of rejection_sft."""
    path = run.data_path("stage3")  # rejection_sft's rows
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: rejection_sft wrote it and the student learns "
                                f"from it; make the run again in another directory")
    rows = list(read_jsonl(path))
    run.finish("distilled/rows", skipped=True)
    return _fine_tune(run, "distilled", _need(parent), run.recipe.distilled, rows)


def make_student_rl_only(run: Run, parent: Model | None) -> Trained:
    """Short runs over learning rates and reward scalings, the best on validation (the first of
    equals) once more from the start in full length."""
    spec, model = run.recipe.student_rl_only, _need(parent)
    rows = _prompts(run, "student_rl_only", spec.problems, "zero")
    tried: list[tuple[float, dict[str, Any]]] = []
    for number, (rate, scale) in enumerate(product(spec.learning_rates, spec.scalings)):
        phase = f"student_rl_only/sweep-{number}"
        options = {"learning_rate": rate, "scale_rewards": scale}
        _, chosen = _reinforce(run, phase, model.clone(), spec, "zero", rows, RULE,
                               max_steps=spec.sweep_updates, **options)
        run.ledger.phases[phase] |= {**options, **chosen.figures}
        tried.append((chosen.reward, options))
    best = max(tried, key=lambda one: one[0])[1]
    step, _ = _reinforce(run, "student_rl_only", model, spec, "zero", rows, RULE, **best)
    return model, step


def _require_rows(stage: str, source: str, rows: Rows) -> None:
    if not rows:
        raise ValueError(f"{stage}: no sample of {source} was good enough to learn from; it was "
                         f"trained too briefly")


# ---- the table ----------------------------------------------------------------------------------


def _rl_plan(name: str) -> Callable[[Recipe], Plan]:
    def plan(recipe: Recipe) -> Plan:
        spec: RLStage = getattr(recipe, name)
        return {f"{name}/prompts": 0, name: _updates(spec, spec.grpo.max_steps or 0)}
    return plan


def _updates(spec: RLStage, updates: int) -> int:
    return 2 * updates * spec.grpo.per_device_train_batch_size  # sampled, then trained on


def _sft_plan(name: str) -> Callable[[Recipe], Plan]:
    def plan(recipe: Recipe) -> Plan:
        spec: SFTStage = getattr(recipe, name)
        return {f"{name}/samples": spec.problems * spec.samples,
                name: _rows_planned(spec, spec.sft)}
    return plan


def _rows_planned(spec: SFTStage, options: SFTConfig) -> int:
    """A guess: half of what could be kept is."""
    kept = spec.problems * spec.per_problem // 2 + spec.written
    return int(options.num_train_epochs * kept / (1.0 - spec.general_share))


def _judge_plan(kind: str) -> Callable[[Recipe], Plan]:
    def plan(recipe: Recipe) -> Plan:
        spec = recipe.reward_models
        samples = 2 * spec.samples * getattr(spec, f"{kind}_prompts")
        return {f"{kind}/samples": samples, kind: 2 * samples}
    return plan


def _pretrain_plan(name: str) -> Callable[[Recipe], Plan]:
    return lambda recipe: {f"{name}/corpus": 0, name: int(
        recipe.corpus.documents * getattr(recipe, name).num_train_epochs)}


def _student_rl_plan(recipe: Recipe) -> Plan:
    spec = recipe.student_rl_only
    sweep = range(len(spec.learning_rates) * len(spec.scalings))
    return {"student_rl_only/prompts": 0,
            **{f"student_rl_only/sweep-{i}": _updates(spec, spec.sweep_updates) for i in sweep},
            "student_rl_only": _updates(spec, spec.grpo.max_steps or 0)}


STAGES = (
    Stage("base", None, (), "zero", make_base, _pretrain_plan("base")),
    Stage("r1_zero", "base", (), "zero", make_r1_zero, _rl_plan("r1_zero")),
    Stage("cold_start", "base", ("r1_zero",), "r1", make_cold_start, _sft_plan("cold_start")),
    Stage("reasoning_rl", "cold_start", (), "r1", make_reasoning_rl, _rl_plan("reasoning_rl")),
    Stage("rejection_sft", "base", ("reasoning_rl",), "r1", make_rejection_sft,
          _sft_plan("rejection_sft")),
    Stage(HELPFUL, "rejection_sft", ("base",), "r1", _make_reward_model(HELPFUL),
          _judge_plan(HELPFUL), is_policy=False),
    Stage(SAFETY, "rejection_sft", ("base",), "r1", _make_reward_model(SAFETY),
          _judge_plan(SAFETY), is_policy=False),
    Stage("r1", "rejection_sft", (HELPFUL, SAFETY), "r1", make_r1, lambda recipe: {
        "r1/general_prompts": 0, **_rl_plan("r1")(recipe)}),
    Stage("student_base", None, (), "zero", make_student_base, _pretrain_plan("student_base")),
    Stage("distilled", "student_base", ("reasoning_rl",), "r1", make_distilled,
          lambda recipe: {"distilled/rows": 0, "distilled": _rows_planned(recipe.rejection_sft,
                                                                        recipe.distilled)}),
    Stage("student_rl_only", "student_base", (), "zero", make_student_rl_only, _student_rl_plan))


def run_plan(recipe: Recipe) -> Mapping[str, int]:
    """Every phase of a run in order with its number of sequences."""
    plan: Plan = {}
    for stage in STAGES:
        plan |= stage.plan(recipe)
        spec = recipe.reward_models
        plan[f"{stage.name}/evaluation"] = (samples_planned(recipe, stage.template)
                                            if stage.is_policy
                                            else 2 * spec.samples * spec.test_prompts)
    return plan
