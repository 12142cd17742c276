"""pipeline.py - the whole R1 recipe in one call: the stages in order, measured, resumable.

    run_pipeline("runs/r1-seed0")                  everything, from the corpus to report.html
    run_pipeline("runs/r1-seed0", resume=True)     on to the same bits after a stop or a kill

DIR gets manifest.json, config.toml, metrics.jsonl, completions.jsonl, data/, evals/, a folder for
each stage's checkpoint, summary.json (after every stage) and report.html. A stage that the manifest
has is not made again; an evaluation that is on disk neither. Knows nothing about the command line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from .measure import (draw_stage, read_figures, shown_samples, stage_differences, stage_figures,
                      write_stage)
from .model import Model
from .monitor import Progress
from .recipe import Recipe
from .report import write_report
from .run import Run
from .rundir import Manifest
from .sources import HELPFUL, SAFETY
from .stages import STAGES, Stage, held_out_accuracy, judged, run_plan
from .work import Meter, StopRequest

# what the stage-3 rows took: the student's teacher
_TEACHER = ("base", "r1_zero", "cold_start", "reasoning_rl", "rejection_sft/samples")

_LAST_STEP = sys.maxsize
_KEPT = ("sampled", "kept", "dropped")


def run_pipeline(path: str | Path, recipe: Recipe | None = None, resume: bool = False,
                 file: TextIO | None = None) -> dict[str, Any]:
    """Run, or go on with, the pipeline in a directory; returns the summary. Raises Stopped (a
    KeyboardInterrupt) when asked to stop, CheckpointError for a directory that cannot be used."""
    recipe = recipe or Recipe()
    for config in (recipe.model, recipe.student):
        Model(config, seed=None)  # a config that cannot be raises here, before anything is written
    path = Path(path)
    with Run.open(recipe, path, resume) as rundir, StopRequest() as stop:
        run = Run(recipe, rundir, stop, resume)
        plan = dict(run_plan(recipe))
        with Progress(sum(plan.values()), "base", file=file or sys.stderr) as bar:
            run.meter = Meter(plan, bar)
            for stage in STAGES:
                _make(run, stage)
                _measure(run, stage)
                rundir.write_json("summary.json", summarize(run))
            write_report(path)
            rundir.finish()
        return summarize(run)


def _make(run: Run, stage: Stage) -> None:
    """Train a stage and record its checkpoint, unless that was done."""
    done = run.rundir.manifest.find(stage.name) is not None
    if not done:
        parent = run.load(stage.parent) if stage.parent else None
        model, step = stage.make(run, parent)
        run.save(stage.name, model, stage.template, stage.parent, step, stage.data_from)
    run.clear_work(stage.name)
    for phase in stage.plan(run.recipe):
        run.finish(phase, skipped=done)


def _measure(run: Run, stage: Stage) -> None:
    """Measure a stage on held-out prompts, unless that was done."""
    phase = f"{stage.name}/evaluation"
    done = read_figures(run.path, stage.name) is not None
    if not done:
        model = run.load(stage.name, frozen=stage.is_policy)  # a trainer measures the others
        if run.resumed:  # rows of an evaluation that was cut off
            run.rundir.completions.truncate_to(_LAST_STEP, stage.name)
        with run.ledger.timing(phase) as entry:
            if stage.is_policy:
                def pause(count: int) -> None:
                    run.advance(phase, count)
                    run.safe_point()

                samples = draw_stage(model, run.recipe, stage.template, run.tokenizer, pause)
                found = stage_figures(samples)
                for row in shown_samples(stage.name, samples):
                    run.rundir.completions.append(row)
            else:
                samples = judged(run, stage.name, "test", phase, entry)
                found = {"figures": held_out_accuracy(run, stage.name, model, samples)}
        run.rundir.commit()
        write_stage(run.path, stage.name, samples, found)
    run.finish(phase, skipped=done)
    run.safe_point()


# ---- the summary --------------------------------------------------------------------------------


def summarize(run: Run) -> dict[str, Any]:
    """summary.json of what is done so far."""
    ledger, recipe = run.ledger, run.recipe
    found = {stage.name: figures for stage in STAGES
             if (figures := read_figures(run.path, stage.name)) is not None}
    sizes = Model(recipe.model, seed=None).num_parameters()
    return {
        "seed": recipe.seed,
        "wall_seconds": ledger.wall_seconds,
        "parameters": {**sizes, "student": Model(recipe.student, seed=None
                                                 ).num_parameters()["total"]},
        "quick": recipe.quick,
        "stages": {name: {**one["figures"], "seconds": ledger.total("seconds", name)}
                   for name, one in found.items() if name not in (HELPFUL, SAFETY)},
        "differences": stage_differences(run.path),
        "max_logprob_gap": max((entry["max_logprob_gap"] for entry in ledger.phases.values()
                                if "max_logprob_gap" in entry), default=0.0),
        "gap_tokens": ledger.total("gap_tokens"),
        "general": {name: one["general"] for name, one in found.items() if "general" in one},
        "reward_models": {name: found[name]["figures"] for name in (HELPFUL, SAFETY)
                          if name in found},
        "data": {phase.partition("/")[0]: {key: entry[key] for key in _KEPT}
                 for phase, entry in ledger.phases.items() if "kept" in entry},
        "sweep": [{key: entry[key] for key in ("learning_rate", "scale_rewards", "pass@1")}
                  for entry in ledger.phases.values() if "scale_rewards" in entry],
        "costs": _costs(run, found.keys()),
    }


def _costs(run: Run, done: Any) -> dict[str, dict[str, float]]:
    """Tokens and seconds of both students, the distilled one with and without its teacher's."""
    students = ("student_base", "distilled", "student_rl_only")
    costs = {name: run.ledger.cost(name) for name in students if name in done}
    if "distilled" in costs:
        teacher = run.ledger.cost(*_TEACHER)
        costs["teacher"] = teacher
        costs["distilled_with_teacher"] = {key: value + teacher[key]
                                           for key, value in costs["distilled"].items()}
    return costs


def parents(path: str | Path) -> dict[str, str | None]:
    """The graph of checkpoints of a run: name -> the checkpoint that its training started from."""
    manifest = Manifest.load(Path(path) / "manifest.json")
    return {entry["name"]: entry["parent"] for entry in manifest.checkpoints}
