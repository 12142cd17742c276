"""The ablations: an arm without a change is the stage itself, an arm leaves one file and is not run twice,
tables are views of the files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import write_recipe

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks/ is no part of the package

from benchmarks.ablations.__main__ import main
from benchmarks.ablations.arms import ARMS, RULE
from benchmarks.ablations.figures import arm_figures, by_budget, by_votes
from benchmarks.ablations.learning import Reinforce, reinforce, draw_test
from benchmarks.ablations.reference import Reference
from benchmarks.ablations.tables import ABLATIONS, sections
from r1grpo.config import ConfigError
from r1grpo.pipeline import run_pipeline
from r1grpo.recipe import read_recipe

pytestmark = pytest.mark.filterwarnings("ignore::r1grpo.monitor.MonitorWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    recipe = read_recipe(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml"))
    with open(os.devnull, "w") as nowhere:
        run_pipeline(path, recipe, file=nowhere)
    return path


def test_an_arm_without_a_change_is_the_stage(finished: Path) -> None:
    ref = Reference(finished)
    model, weights = ref.load("base"), ref.recipe.r1_zero.grpo.reward_weights
    reinforce(ref, "r1_zero", "zero", model, RULE, weights or (1.0, 1.0))
    samples, stored = draw_test(ref, model, "zero"), ref.samples("r1_zero")
    assert [one["completion_ids"] for one in samples] == [one["completion_ids"] for one in stored]
    assert arm_figures(samples) == arm_figures(stored)


def test_reinforce_compares_with_the_whole_rollout(finished: Path) -> None:
    seen = []

    class Seen(Reinforce):
        def _compare(self, parts: Any) -> Any:
            seen.append((self.rewards.total(parts), super()._compare(parts)))
            return seen[-1][1]

    def first_id(completion_ids: Any, **_: Any) -> list[float]:
        return [float(ids[0] % 7) for ids in completion_ids]

    ref = Reference(finished)
    reinforce(ref, "r1_zero", "zero", ref.load("base"), (first_id,), (1.0,), trainer_class=Seen, max_steps=2)
    for rewards, advantages in seen:
        assert rewards.std() > 0.1
        np.testing.assert_allclose(advantages, rewards - rewards.mean(), atol=1e-6)


def test_an_arm_leaves_one_file_and_the_tables_are_made_of_them(finished: Path, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(finished), "--out", str(tmp_path / "out"), "--only", "no_language", "--only", "reinforce"]
    main(command)
    capsys.readouterr()
    files = {path.stem: json.loads(path.read_bytes()) for path in (tmp_path / "out" / "seed0").iterdir()}
    assert {"base", "r1_zero", "no_language", "reinforce"} <= files.keys()
    assert files["reinforce"]["curve"]["reward"] and len(files["reinforce"]["right"]) == 6
    main(command)
    assert capsys.readouterr().out == ""
    text = "\n".join(sections(tmp_path / "out", tmp_path / "docs"))
    assert "### Without the language reward" in text and "REINFORCE" in text and "not run" not in text
    assert "GRPO - REINFORCE, pass@1 paired" in text and "cons@16 against the thinking budget" in text
    for picture in (tmp_path / "docs" / "img" / "ablations").iterdir():
        assert picture.read_text().startswith("<svg") and f"ablations/{picture.name}" in text


def test_budgets_and_votes_end_in_the_stored_figures(finished: Path) -> None:
    samples = Reference(finished).samples("r1_zero")
    whole = arm_figures(samples)["figures"]
    assert by_budget(samples)["pass@1"][-1] == [256, whole["pass@1"]]
    assert by_votes(samples)[-1] == [16, whole["cons@k"]]
    short = {budget: value for budget, value in by_budget(
        [{**one, "completion_ids": list(range(100))} for one in samples])["pass@1"]}
    assert short[96] == 0.0 and short[128] == whole["pass@1"]


def test_every_row_of_the_tables_is_an_arm_or_a_stage() -> None:
    stages = {"base", "r1_zero", "cold_start", "reasoning_rl", "rejection_sft", "r1", "student_base",
              "distilled", "student_rl_only"}
    rows = {arm for one in ABLATIONS for arm in one.rows.values()}
    assert rows <= stages | ARMS.keys() and ARMS.keys() <= rows
    for one in ABLATIONS:
        assert {arm for pair in one.pairs for arm in pair} <= set(one.rows.values()), one.name


def test_a_run_that_is_not_finished_and_too_few_samples_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run of the pipeline"):
        Reference(tmp_path)
    with pytest.raises(ValueError, match="of reasoning_rl's samples can be used, 300 are asked for"):
        ARMS["sft_300_kept"](Reference(finished), {})
