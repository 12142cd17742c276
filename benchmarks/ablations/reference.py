"""reference.py - a finished run of the pipeline, as the ablations read it: recipe, checkpoints, prompts,
stored samples, and the name of what a stage is compared with. Writes nothing."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from r1grpo.config import ConfigError
from r1grpo.measure import eval_path
from r1grpo.model import Model
from r1grpo.recipe import Recipe, derive_seed, read_recipe
from r1grpo.rundir import read_jsonl
from r1grpo.sources import prompt_rows, train_problems
from r1grpo.tasks import make_tokenizer

Row = dict[str, Any]


class Reference:
    """A run directory whose stages are all there."""

    def __init__(self, path: Path) -> None:
        if not (path / "summary.json").is_file():
            raise ConfigError(f"{path} is no finished run of the pipeline: it has no summary.json")
        self.path = path
        self.recipe: Recipe = read_recipe(path / "config.toml")
        self.tokenizer = make_tokenizer()

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def stream(self, name: str) -> int:
        """The seed of a random stream of the run: an arm with its stage's name draws as that stage."""
        return derive_seed(self.recipe.seed, name)

    def load(self, stage: str, frozen: bool = False) -> Model:
        return Model.from_pretrained(self.path / stage, frozen=frozen)

    def samples(self, stage: str) -> list[Row]:
        """The stage's graded samples of the test problems."""
        return [row for row in read_jsonl(eval_path(self.path, stage, "jsonl")) if row["split"] == "test"]

    def weights(self, stage: str, rewards: int) -> tuple[float, ...]:
        """The weights of a stage's first rewards."""
        return (getattr(self.recipe, stage).grpo.reward_weights or (1.0,) * rewards)[:rewards]

    def prompts(self, stage: str, template: str) -> list[Row]:
        """The reasoning prompts that the stage learned from."""
        spec = getattr(self.recipe, stage)
        return prompt_rows(train_problems(self.recipe, spec.problems, f"{stage}/prompts"), template)

    @cached_property
    def phases(self) -> dict[str, Any]:
        """What the ledger says of every phase."""
        return json.loads((self.path / "work" / "ledger.json").read_bytes())["phases"]

    def student_options(self) -> dict[str, Any]:
        """Learning rate and reward scaling that the student's sweep chose."""
        tried = [entry for phase, entry in self.phases.items() if phase.startswith("student_rl_only/sweep")]
        best = max(tried, key=lambda entry: entry["reward"])
        return {key: best[key] for key in ("learning_rate", "scale_rewards")}
