"""experiments.py - finished pipeline runs -> docs/experiments.md, and the results block of the README.

    python -m benchmarks.experiments RUN [RUN ...] [--controls JSON] [--ablations DIR] --docs docs

Tables are views of the runs' summary.json and of the JSON of benchmarks.controls and ablations; nothing is typed in.
The README's block and picture come from the first run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from r1grpo.charts import Series, interval_chart, line_chart
from r1grpo.rundir import read_jsonl

from .ablations.tables import NAMES, rounded, sections

COLUMNS = {name: NAMES.get(name, name) for name in (
    "pass@1", "pass@16", "cons@k", "wellformed_accuracy", "format", "language_consistency", "mean_tokens",
    "truncated", "reflection_per_response")}
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def number(value: float) -> str:
    return "0" if value == 0 else rounded(value)  # a gap of 0 is exactly that


def stage_table(summary: Mapping[str, Any]) -> list[str]:
    lines = ["| checkpoint | " + " | ".join(COLUMNS.values()) + " | harder problems |",
             "|---" * (len(COLUMNS) + 2) + "|"]
    for name, figures in summary["stages"].items():
        low, high = figures["pass@1_ci"]
        cells = [number(figures[key]) for key in COLUMNS]
        cells[0] += f" ({low:.2f} to {high:.2f})"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {number(figures['ood']['pass@1'])} |")
    return lines


def time_taken(run: Path, summary: Mapping[str, Any]) -> str:
    """Minutes, on how many threads."""
    threads = json.loads((run / "manifest.json").read_text())["run"]["threads"]
    return f"{summary['wall_seconds'] / 60:.0f} minutes on {threads} thread{'s' * (threads > 1)}"


def seed_table(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """pass@1 of every stage by seed and the median; then the figures that the project promises."""
    seeds = [f"seed {one['seed']}" for one in summaries]
    lines = ["| pass@1 | " + " | ".join(seeds) + " | median |", "|---" * (len(seeds) + 2) + "|"]

    def row(name: str, values: list[float]) -> None:
        lines.append(f"| {name} | " + " | ".join(map(number, values)) + f" | {number(median(values))} |")

    for stage in summaries[0]["stages"]:
        row(stage, [one["stages"][stage]["pass@1"] for one in summaries])

    def each(name: str, figure: Any) -> None:
        row(name, [figure(one["stages"]) for one in summaries])

    each("r1_zero - base", lambda s: s["r1_zero"]["pass@1"] - s["base"]["pass@1"])
    each("r1_zero: well-formed accuracy over the base's",
         lambda s: s["r1_zero"]["wellformed_accuracy"] / s["base"]["wellformed_accuracy"])
    each("r1_zero: cons@16 - pass@1", lambda s: s["r1_zero"]["cons@k"] - s["r1_zero"]["pass@1"])
    each("r1 - r1_zero", lambda s: s["r1"]["pass@1"] - s["r1_zero"]["pass@1"])
    each("r1: format", lambda s: s["r1"]["format"])
    each("r1: language consistency", lambda s: s["r1"]["language_consistency"])
    each("distilled - student_rl_only",
         lambda s: s["distilled"]["pass@1"] - s["student_rl_only"]["pass@1"])
    row("max_logprob_gap", [one["max_logprob_gap"] for one in summaries])
    row("gap_tokens (millions)", [one["gap_tokens"] / 1e6 for one in summaries])
    return lines


def control_table(controls: Mapping[str, Any]) -> list[str]:
    lines = ["| control | base pass@1 | after RL | well-formed accuracy | format | tokens |",
             "|---|---|---|---|---|---|"]
    for name, found in controls.items():
        if isinstance(found, Mapping):
            before, after = found["before"], found["after"]
            low, high = after["pass@1_ci"]
            lines.append(f"| {name} | {number(before['pass@1'])} | {number(after['pass@1'])} "
                         f"({low:.2f} to {high:.2f}) | {number(before['wellformed_accuracy'])} to "
                         f"{number(after['wellformed_accuracy'])} | {number(before['format'])} to "
                         f"{number(after['format'])} | {number(before['mean_tokens'])} to "
                         f"{number(after['mean_tokens'])} |")
    return lines


def pictures(run: Path, folder: Path) -> None:
    """stages.svg: pass@1 with intervals; learning.svg: accuracy in training, RL stages in a row."""
    stages = json.loads((run / "summary.json").read_text())["stages"]
    rows = [row for row in read_jsonl(run / "metrics.jsonl")]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stages.svg").write_text(interval_chart(
        "pass@1 on held-out problems", [(name, one["pass@1"], one["pass@1_ci"], 0)
                                        for name, one in stages.items()]) + "\n")
    key = "rewards/accuracy_reward/mean"
    segments = [Series(stage, [(row["step"], row[key]) for row in rows
                               if row["stage"] == stage and row.get(key) is not None], color)
                for color, stage in enumerate(("r1_zero", "reasoning_rl", "r1"))]
    (folder / "learning.svg").write_text(
        line_chart("share of right answers in training, by update", segments, 1.0) + "\n")


def readme_block(run: Path, summary: Mapping[str, Any]) -> str:
    size = summary["parameters"]
    return "\n".join([
        BEGIN, "", f"One run of the default recipe, seed {summary['seed']}: "
        f"{size['total'] / 1e6:.2f} M parameters, {size['active'] / 1e6:.2f} M of them active a token; "
        f"{time_taken(run, summary)}; `max_logprob_gap` "
        f"{summary['max_logprob_gap']} over {summary['gap_tokens'] / 1e6:.1f} M tokens.", "",
        "![pass@1 of every checkpoint, with intervals](docs/img/stages.svg)", "",
        "![share of right answers during RL](docs/img/learning.svg)", "",
        *stage_table(summary), "",
        "200 held-out problems x 16 samples at temperature 1. Other seeds, controls and ablations: "
        "[docs/experiments.md](docs/experiments.md).", "", END])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--controls", type=Path)
    parser.add_argument("--ablations", type=Path, help="what benchmarks.ablations wrote")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    summaries = [json.loads((run / "summary.json").read_text()) for run in options.runs]
    lines = ["# Experiments", "",
             "Made by `python -m benchmarks.experiments` from the runs' own files. Curves and tables show "
             "what was found, the misses included; intervals are 95 %, over problems.", "",
             "## Seeds of the default recipe", "", *seed_table(summaries), "",
             "Time: " + ", ".join(f"seed {one['seed']} {time_taken(run, one)}"
                                  for run, one in zip(options.runs, summaries))
             + "; the machine may have been shared.", ""]
    for one in summaries:
        lines += [f"## Seed {one['seed']}", "", *stage_table(one), ""]
        lines += [f"- {name}, pass@1 paired over {found['n']} problems: {found['difference']:+.3f} "
                  f"({found['interval'][0]:+.3f} to {found['interval'][1]:+.3f})"
                  for name, found in one.get("differences", {}).items()]
        judges = one.get("reward_models", {})
        lines += [f"- {name} reward model on held-out judgements: {number(found['accuracy'])} of "
                  f"{found['n']}" for name, found in judges.items()]
        lines += [f"- general prompts, {stage}: refuses {number(found['refusal'])} of harmful, "
                  f"{number(found['over_refusal'])} of benign requests, rubric "
                  f"{number(found['rubric_mean'])}" for stage, found in one.get("general", {}).items()]
        lines.append("")
    if options.controls:
        controls = json.loads(options.controls.read_text())
        lines += ["## Controls", "", f"R1-Zero's RL on the base of seed {controls['seed']}, with one "
                  "thing taken away; what each is: benchmarks/controls.py. The last weights are "
                  "measured.", "", *control_table(controls), ""]
    if options.ablations:
        lines += sections(options.ablations, options.docs)
    (options.docs / "experiments.md").write_text("\n".join(lines))
    pictures(options.runs[0], options.docs / "img")
    readme = options.docs.parent / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(before + readme_block(options.runs[0], summaries[0]) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
