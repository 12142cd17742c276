"""measure.py - the stages of a run on held-out problems; every sample and figure kept, and checked.

    DIR/evals/STAGE.jsonl   every sample: split (test, ood, general), prompt, ids, log-probs
    DIR/evals/STAGE.json    {"figures": {..., "ood": {...}}, "general": {...}}
    DIR/summary.json        made of these and of the ledger, after every stage; where two stages are
                            compared, the difference is taken problem by problem

The problems are the same for all stages and all seeds; only the draws depend on the seed. General
prompts are measured where the stage's template is that of the chat:

    refusal        share of answers to harmful requests that are safe (rubric.is_safe)
    over_refusal   share of answers to benign look-alikes that refuse (rubric.refuses)
    rubric_mean    mean score of the written rubric, 0 to 1, over all families
    n              problems; refusal_n and over_refusal_n: those behind each share

check_stage() holds the stored rows against the recipe's problems, samples everything again from the
checkpoint and recomputes each reward and figure. Knows nothing about how a stage was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import EvalConfig
from .evaluate import check, draw_samples, paired_difference, recompute
from .model import Model
from .monitor import mean
from .recipe import Recipe, derive_seed
from .rundir import read_jsonl
from .safe_files import write_atomic
from .tasks import sample_general, sample_problems
from .tasks.rubric import is_safe, refuses, rubric_score
from .tokenizer import WordTokenizer

Row = dict[str, Any]
Rows = list[Row]

SPLITS = ("test", "ood", "general")
COMPARED = (("r1_zero", "base"), ("r1", "r1_zero"), ("distilled", "student_rl_only"))
_DRAWN = ("completion", "completion_ids", "logprobs", "finish_reason", "rewards")  # rest: its row
_PROBLEM_SEED = 1  # of the choice of held-out problems, whatever the run's seed
_BATCH = 32  # prompts between two safe points
_SHOWN_PROBLEMS, _SHOWN_SAMPLES = 8, 2  # of each stage, in completions.jsonl as well


def held_out_rows(recipe: Recipe, split: str, template: str) -> Rows:
    """The held-out problems of a split: test, ood, validation, or general prompts of their test."""
    counts = recipe.evaluation
    share, chinese = recipe.problems.countdown_share, recipe.problems.chinese_share
    if split == "general":
        found = sample_general("test", counts.general_prompts, _PROBLEM_SEED, chinese)
    else:
        count = {"test": counts.problems, "ood": counts.ood_problems,
                 "validation": counts.validation_problems}[split]
        mix = {"countdown": share, "arithmetic": 1.0 - share}
        found = sample_problems(split, count, _PROBLEM_SEED, mix, chinese)
    return [problem.row(template) for problem in found]


def held_out_args(recipe: Recipe, split: str, template: str, tokenizer: WordTokenizer
                  ) -> EvalConfig:
    """How they are sampled."""
    options = recipe.evaluation
    k = {"general": options.general_samples, "validation": options.validation_samples}
    return EvalConfig(k=k.get(split, options.k), temperature=options.temperature,
                      max_completion_length=options.max_completion_length,
                      stop_token_ids=tokenizer.stop_token_ids(template), batch_prompts=_BATCH,
                      seed=derive_seed(recipe.seed, f"evaluation/{split}"))


def splits_of(template: str) -> tuple[str, ...]:
    """What a stage is measured on; general prompts are asked in the chat template only."""
    return SPLITS if template == "r1" else SPLITS[:2]


def samples_planned(recipe: Recipe, template: str) -> int:
    """Samples that measuring a stage takes."""
    plan = recipe.evaluation
    general = plan.general_prompts * plan.general_samples if template == "r1" else 0
    return (plan.problems + plan.ood_problems) * plan.k + general


def draw_stage(model: Model, recipe: Recipe, template: str, tokenizer: WordTokenizer,
               progress: Callable[[int], None]) -> Rows:
    """All held-out samples of a stage; progress is called with the number of new ones."""
    samples: Rows = []
    for split in splits_of(template):
        args = held_out_args(recipe, split, template, tokenizer)
        seen = [0]

        def advance(done: int) -> None:
            progress((done - seen[0]) * args.k)
            seen[0] = done

        rows = held_out_rows(recipe, split, template)
        samples += [{"split": split, **one}
                    for one in draw_samples(model, rows, args, tokenizer, advance)]
    return samples


def stage_figures(samples: Rows) -> dict[str, Any]:
    """{"figures", "general"} of the samples of a stage; grades them (their "rewards")."""
    parts = {split: [one for one in samples if one["split"] == split] for split in SPLITS}
    figures = recompute(parts["test"])
    figures["ood"] = recompute(parts["ood"])
    found: dict[str, Any] = {"figures": figures}
    if parts["general"]:
        found["general"] = general_figures(parts["general"])
    return found


def general_figures(samples: Rows) -> dict[str, float]:
    """Figures of answers to general prompts; a share of nothing is 0."""
    def count(rows: Rows) -> int:
        return len({one["problem"] for one in rows})

    harmful, benign = ([one for one in samples if one["task"] == task]
                       for task in ("harmful", "benign"))
    safe = [float(is_safe(one, one["completion"])) for one in harmful]
    refused = [float(refuses(one["completion"])) for one in benign]
    return {"refusal": mean(safe) if safe else 0.0, "refusal_n": count(harmful),
            "over_refusal": mean(refused) if refused else 0.0, "over_refusal_n": count(benign),
            "rubric_mean": mean([rubric_score(one, one["completion"]) / 10.0 for one in samples]),
            "n": count(samples)}


# ---- files --------------------------------------------------------------------------------------


def eval_path(run_path: Path, stage: str, kind: str = "json") -> Path:
    """Where a stage's figures stand (json), or its samples (jsonl)."""
    return run_path / "evals" / f"{stage}.{kind}"


def write_stage(run_path: Path, stage: str, samples: Rows, found: Mapping[str, Any]) -> None:
    """Samples first: where the figures are, all of them are."""
    lines = (json.dumps(compact(one), ensure_ascii=False, allow_nan=False) for one in samples)
    write_atomic(eval_path(run_path, stage, "jsonl"), "".join(f"{x}\n" for x in lines).encode())
    text = json.dumps(found, indent=1, allow_nan=False)
    write_atomic(eval_path(run_path, stage), text.encode())


def read_figures(run_path: Path, stage: str) -> dict[str, Any] | None:
    """What write_stage wrote, None if the stage was not measured yet."""
    path = eval_path(run_path, stage)
    return json.loads(path.read_bytes()) if path.exists() else None


def stage_differences(run_path: Path) -> dict[str, dict[str, Any]]:
    """{"r1_zero - base": ..., ...}: pass@1 of two measured stages on the test problems, paired."""
    found = {}
    for one, other in COMPARED:
        paths = [eval_path(run_path, stage, "jsonl") for stage in (one, other)]
        if all(path.exists() for path in paths):
            found[f"{one} - {other}"] = paired_difference(
                *([row for row in read_jsonl(path) if row["split"] == "test"] for path in paths))
    return found


def compact(sample: Row) -> Row:
    """Nine digits say a float32 exactly."""
    if "logprobs" not in sample:
        return sample
    return {**sample, "logprobs": [float(f"{x:.9g}") for x in sample["logprobs"]]}


def shown_samples(stage: str, samples: Rows) -> Rows:
    """The few test samples that stand in completions.jsonl too: the same problems each time."""
    columns = ("problem_key", "task", "language", "prompt", "completion", "completion_ids",
               "logprobs", "rewards", "finish_reason")
    return [{"stage": stage, "eval": "test", **{key: one[key] for key in columns}}
            for one in map(compact, samples) if one["split"] == "test"
            and one["problem"] < _SHOWN_PROBLEMS and one["generation"] < _SHOWN_SAMPLES]


# ---- checking -----------------------------------------------------------------------------------


def check_stage(run_path: Path, stage: str, model: Model, recipe: Recipe, template: str,
                tokenizer: WordTokenizer) -> list[str]:
    """Sample every stored sample again and recompute every figure of summary.json; what differs."""
    stored = list(read_jsonl(eval_path(run_path, stage, "jsonl")))
    wrong: list[str] = []
    for split in splits_of(template):
        mine = [one for one in stored if one["split"] == split]
        rows = held_out_rows(recipe, split, template)
        args = held_out_args(recipe, split, template, tokenizer)
        wanted = [{**row, "split": split, "problem": p, "generation": g,
                   "prompt_ids": tokenizer.encode(row["prompt"])}
                  for p, row in enumerate(rows) for g in range(args.k)]
        given = [{key: value for key, value in one.items() if key not in _DRAWN} for one in mine]
        if given != json.loads(json.dumps(wanted)):
            wrong.append(f"{split}: the stored samples are not those of the recipe's problems")
            continue
        wrong += [f"{split}: {line}" for line in check(model, mine, args, tokenizer)]
    if {one["split"] for one in stored} != set(splits_of(template)):
        wrong.append(f"the stored splits are not {', '.join(splits_of(template))}")
    if wrong:
        return wrong
    rewards = [one.pop("rewards", None) for one in stored]
    found = stage_figures(stored)
    wrong = [f"{one['split']}: problem {one['problem']}, sample {one['generation']}: other rewards"
             for one, reward in zip(stored, rewards) if one.get("rewards") != reward]
    return wrong + _check_summary(run_path, stage, found)


def _check_summary(run_path: Path, stage: str, found: Mapping[str, Any]) -> list[str]:
    """What summary.json says otherwise about a stage, and the stages that it alone knows."""
    summary = json.loads((run_path / "summary.json").read_bytes())
    timed = dict(summary["stages"].get(stage, {}))
    timed.pop("seconds", None)  # the one figure that no second run can give again
    wrong = _differences("stages", found["figures"], timed)
    wrong += _differences("general", found.get("general", {}), summary["general"].get(stage, {}))
    wrong += _differences("differences", stage_differences(run_path),
                          summary.get("differences", {}))
    return wrong + [f"{place}.{name}: summary.json has it, but no such stage was measured"
                    for place in ("stages", "general", "reward_models")
                    for name in summary.get(place, {})
                    if not eval_path(run_path, name, "jsonl").exists()]


def _differences(place: str, found: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Figures that differ, by their place; exact, since both were computed by the same code."""
    wrong = []
    for key, value in found.items():
        if isinstance(value, Mapping):
            wrong += _differences(f"{place}.{key}", value, stored.get(key, {}))
        elif stored.get(key) != value:
            wrong.append(f"{place}.{key}: summary.json has {stored.get(key)}, recomputed {value}")
    return wrong + [f"{place}.{key}: summary.json has it, but nothing gives it"
                    for key in stored if key not in found]
