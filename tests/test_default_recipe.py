"""docs/default_recipe.md says what the presets and the embedded recipe hold, and misses nothing.

    python tests/test_default_recipe.py      rewrites the values in the document
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1grpo.config import GRPOConfig, RewardConfig, SFTConfig
from r1grpo.recipe import Recipe

DOCUMENT = Path(__file__).parents[1] / "docs" / "default_recipe.md"
CLAIM = re.compile(r"(?<!`)`([A-Za-z_][\w.()]*) = ([^`]+)`(?!`)")
PRESETS = {"GRPOConfig": GRPOConfig, "SFTConfig": SFTConfig, "RewardConfig": RewardConfig}
STAGES = {  # a stage's options: the preset they are read against
    "r1_zero.grpo": GRPOConfig.r1_zero(), "reasoning_rl.grpo": GRPOConfig.r1_stage1(),
    "r1.grpo": GRPOConfig.r1_stage2(), "student_rl_only.grpo": GRPOConfig.r1_zero(),
    "cold_start.sft": SFTConfig.r1(), "rejection_sft.sft": SFTConfig.r1(),
    "distilled": SFTConfig.distill(), "reward_models.helpful": RewardConfig(),
    "reward_models.safety": RewardConfig(kind="pointwise")}


def table_rows() -> list[str]:
    return [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
            if line.startswith("| ")]


def claims() -> list[tuple[str, str]]:
    """(place, value as written) of every piece of code that claims a value."""
    return [found for row in table_rows() for found in CLAIM.findall(row)]


def value_at(place: str) -> Any:
    """The value of `r1_zero.grpo.beta` or `GRPOConfig.r1_zero().beta`."""
    first, *path = place.split(".")
    preset = PRESETS.get(first.removesuffix("()"))
    if preset is None:
        here: Any = Recipe()
        path = [first, *path]
    elif first.endswith("()"):
        here = preset()
    else:
        here, path = getattr(preset, path[0].removesuffix("()"))(), path[1:]
    for name in path:
        here = getattr(here, name)
    return here


def differences(mine: Any, other: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(mine):
        if getattr(mine, field.name) != getattr(other, field.name):
            yield field.name, getattr(mine, field.name)


def test_every_value_is_the_codes() -> None:
    found = claims()
    assert len(found) > 150
    assert {place: written for place, written in found} == {
        place: repr(value_at(place)) for place, _ in found}


def test_rows_are_whole_and_name_a_reason() -> None:
    for row in table_rows():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4 and all(cells), row


def test_every_published_number_has_a_row() -> None:
    named = {place for place, _ in claims()}
    for preset, base in (("GRPOConfig.r1_zero()", GRPOConfig()),
                         ("GRPOConfig.r1_stage1()", GRPOConfig.r1_zero()),
                         ("GRPOConfig.r1_stage2()", GRPOConfig.r1_zero()),
                         ("SFTConfig.r1()", SFTConfig()),
                         ("SFTConfig.distill()", SFTConfig.r1())):
        kind, name = preset.removesuffix("()").split(".")
        for option, _ in differences(getattr(PRESETS[kind], name)(), base):
            assert f"{preset}.{option}" in named


@pytest.mark.parametrize("stage", STAGES)
def test_every_difference_from_the_paper_has_a_row(stage: str) -> None:
    """The other RL stages need no row of their own where they do what R1-Zero's row says."""
    named, zero = {place for place, _ in claims()}, Recipe().r1_zero.grpo
    for option, value in differences(value_at(stage), STAGES[stage]):
        inherited = (stage.endswith(".grpo") and getattr(zero, option) == value
                     and f"r1_zero.grpo.{option}" in named)
        assert inherited or f"{stage}.{option}" in named, (
            f"docs/default_recipe.md has no row for {stage}.{option} = {value!r}")


def test_the_unpublished_clip_is_said() -> None:
    [row] = [row for row in table_rows() if "GRPOConfig.r1_zero().epsilon =" in row]
    assert "R1-Zero's clip is not published" in row


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text("\n".join(
        CLAIM.sub(lambda found: f"`{found[1]} = {value_at(found[1])!r}`", line)
        if line.startswith("| ") else line for line in text.split("\n")), encoding="utf-8")
