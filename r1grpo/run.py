"""run.py - what every stage of a pipeline run needs: its directory, seeds, models, data, training.

    DIR/data/NAME.jsonl        data that a stage made for training, with problem keys
    DIR/work/STAGE/PHASE/      the state of a trainer every few updates, removed with its stage
    DIR/samples/PHASE.jsonl    every sample that an RL stage was rewarded for (r1grpo audit)
    DIR/evals/                 held-out samples and figures (measure.py)
    (manifest, logs and stage checkpoints: rundir.py; safe points and training: work.py)

A stage is made of phases: data to be made, a trainer to be run. Data that was made is found on
disk, what was not is made again. Everything in it is a function of the recipe. Knows nothing about
which stages there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .grpo import GRPOTrainer
from .model import Model
from .model_config import ModelConfig
from .recipe import Recipe, derive_seed, recipe_hash
from .rundir import RunDir, read_jsonl
from .safe_files import remove_stray_temps, write_atomic
from .tasks import make_tokenizer
from .toml import to_toml
from .trainer import Trainer
from .work import CONFIG, Row, Rows, Selection, StopRequest, Work, run_facts

COMMAND = "r1grpo pipeline"


class Run(Work):
    """A pipeline run in work."""

    def __init__(self, recipe: Recipe, rundir: RunDir, stop: StopRequest, resumed: bool) -> None:
        super().__init__(rundir, stop, resumed, f"{COMMAND} --out {rundir.path} --resume")
        self.recipe = recipe
        self.tokenizer = make_tokenizer()
        for name in ("data", "evals"):
            (self.path / name).mkdir(exist_ok=True)
            remove_stray_temps(self.path / name)
        write_atomic(self.path / CONFIG, to_toml(recipe).encode())

    @staticmethod
    def open(recipe: Recipe, path: Path, resume: bool) -> RunDir:
        """The locked directory of a run of this recipe; refuses what cannot be one."""
        facts = {**run_facts(recipe.seed, "float32"), "quick": recipe.quick}
        return RunDir(path, recipe_hash(recipe), facts, resume, COMMAND)

    # ---- small things ----

    def seed(self, purpose: str) -> int:
        """The seed of one random stream, by the name of what it is for."""
        return derive_seed(self.recipe.seed, purpose)

    def new_model(self, config: ModelConfig, purpose: str) -> Model:
        """A random model, drawn from the seed of that purpose."""
        return Model(config, seed=self.seed(purpose))

    def load(self, stage: str, frozen: bool = False) -> Model:
        """The model of a finished stage."""
        checkpoint = self.rundir.load_stage(stage)
        if checkpoint is None:
            raise ValueError(f"stage {stage!r} has no checkpoint yet")
        config = json.loads((checkpoint.path / "config.json").read_bytes())
        model = Model(ModelConfig.from_dict(config), seed=None, frozen=frozen)
        model.load_state_dict(checkpoint.arrays)
        return model

    def save(self, stage: str, model: Model, template: str, parent: str | None, step: int,
             data_from: Sequence[str]) -> None:
        """Make a stage final: a folder that Model.from_pretrained loads, tokenizer included."""
        files = {"config.json": json.dumps(model.config.to_dict(), indent=2).encode() + b"\n",
                 "tokenizer.json": self.tokenizer.to_json().encode()}
        meta = {"stage": stage, "template": template, "step": step}
        self.rundir.save_stage(stage, model.state_dict(), meta, parent, step, data_from, files,
                               seconds=self.ledger.total("seconds", stage))

    def state_path(self, phase: str) -> Path:
        """DIR/work/STAGE/PHASE; a stage's main phase has the stage's name."""
        return self.path / "work" / (phase if "/" in phase else f"{phase}/train")

    def clear_work(self, stage: str) -> None:
        """Remove the states of a finished stage; the samples that it was rewarded for stay, in
        DIR/samples/PHASE.jsonl."""
        work, kept = self.path / "work", self.path / "samples"
        for file in sorted((work / stage).glob("**/samples.jsonl")):
            kept.mkdir(exist_ok=True)
            file.replace(kept / f"{'-'.join(file.parent.relative_to(work).parts)}.jsonl")
        shutil.rmtree(work / stage, ignore_errors=True)

    # ---- data ----

    def data_path(self, name: str) -> Path:
        """DIR/data/NAME.jsonl."""
        return self.path / "data" / f"{name}.jsonl"

    def data(self, phase: str, name: str, make: Callable[[dict[str, Any]], Sequence[Row]]) -> Rows:
        """The rows of DIR/data/NAME.jsonl, made first where the file is not there. make gets the
        phase's entry in the ledger for counts. Rows are always those of the file."""
        path = self.data_path(name)
        skipped = path.exists()
        if not skipped:
            with self.ledger.timing(phase) as entry:
                lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                         for row in make(entry)]
            write_atomic(path, "".join(lines).encode())
        self.finish(phase, skipped)
        self.safe_point()
        return list(read_jsonl(path))

    # ---- training ----

    def train(self, phase: str, trainer: Trainer, selection: Selection | None = None) -> int:
        """Run a trainer to its end, or on from its newest state; returns the step of the weights
        that its model holds then (the selected ones where there is a selection)."""
        rl = isinstance(trainer, GRPOTrainer)
        save_steps = self.recipe.save_steps if rl else self.recipe.sft_save_steps
        return self.run_trainer(phase, trainer, self.state_path(phase), save_steps, selection)
