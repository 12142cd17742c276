"""report.py - report.html, one self-contained page about a run.

A view of summary.json, metrics.jsonl, completions.jsonl and manifest.json: every figure on the page
stands in one of these files, nothing is smoothed or recomputed. What a run did not do reads "not
run". No script, no network: styles and pictures are inside, and a content policy in the page
forbids the rest. Text that a model wrote is escaped wherever it goes.

DeepSeek's own figures are shown for their directions only. Sources: DeepSeek-R1, arXiv 2501.12948
(v1: Tables 2, 5, 6; v2: Table 3, section 2.2). Which of our figures stands beside which of theirs
is our choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .charts import Series, graph_chart, interval_chart, line_chart
from .monitor import format_seconds
from .report_completions import SAMPLE_STAGES, inspector_section, pick_completions, samples_section
from .report_parts import NOT_RUN, STAGES, esc, number, rate, stage_name, table
from .report_style import STYLE
from .rundir import read_jsonl
from .safe_files import CheckpointError, write_atomic

RL_STAGES = ("r1_zero", "reasoning_rl", "r1")
CURVES = (("reward", "reward", None), ("eval/pass@1", "pass@1 on validation problems", 1.0),
          ("completions/mean_length", "response length, tokens", None),
          ("completions/reflection", "reflection words (“wait”) a response", None),
          ("language_consistency", "language consistency", 1.0),
          ("kl", "KL to the reference", None), ("entropy", "entropy, nats a token", None),
          ("clip_ratio/region_mean", "share of tokens clipped", None))
COLUMNS = (("pass@1", "pass@1", ".3f"), ("pass@1_ci", "95 % interval", ""),
           ("pass@k", "pass@k", ".3f"), ("cons@k", "cons@k", ".3f"),
           ("wellformed_accuracy", "right if well-formed", ".3f"), ("mean_tokens", "tokens", ".1f"),
           ("truncated", "cut off", ".3f"), ("format", "format", ".3f"),
           ("language_consistency", "language consist.", ".3f"), ("no_words", "no words", ".3f"),
           ("reflection_per_response", "reflection words", ".2f"), ("seconds", "time", ""))
DEEPSEEK = (  # benchmark, R1-Zero, Dev1, Dev2, Dev3, R1: v2, Table 3
    ("AIME 2024, pass@1", 77.9, 59.0, 74.0, 78.1, 79.8),
    ("MATH-500", 95.9, 94.2, 95.9, 95.4, 97.3), ("CNMO 2024", 88.1, 58.0, 73.9, 77.3, 78.8),
    ("LiveCodeBench", 50.0, 57.5, 63.5, 64.6, 65.9), ("GPQA Diamond", 75.8, 66.1, 70.7, 71.2, 71.5),
    ("IF-Eval", 46.6, 71.7, 72.0, 78.1, 83.3), ("AlpacaEval 2.0", 24.7, 50.1, 55.8, 62.1, 87.6))
DIRECTIONS = (  # claim, (their figure, from, to), (our stage and key, from), (..., to)
    ("RL alone lifts the base model", ("AIME 2024; 71.0 in v1", 15.6, 77.9), ("base", "pass@1"),
     ("r1_zero", "pass@1")),
    ("A majority vote beats one sample of R1-Zero", ("AIME 2024, vote", 77.9, 86.7),
     ("r1_zero", "pass@1"), ("r1_zero", "cons@k")),
    ("The cold start (Dev1) reasons worse than R1-Zero", ("AIME 2024", 77.9, 59.0),
     ("r1_zero", "pass@1"), ("cold_start", "pass@1")),
    ("Reasoning RL (Dev2) wins it back", ("AIME 2024", 59.0, 74.0), ("cold_start", "pass@1"),
     ("reasoning_rl", "pass@1")),
    ("Rejection-sampled SFT (Dev3) goes beyond it", ("AIME 2024", 74.0, 78.1),
     ("reasoning_rl", "pass@1"), ("rejection_sft", "pass@1")),
    ("The last RL stage adds to it", ("AIME 2024", 78.1, 79.8), ("rejection_sft", "pass@1"),
     ("r1", "pass@1")),
    ("R1 ends above R1-Zero", ("AIME 2024", 77.9, 79.8), ("r1_zero", "pass@1"), ("r1", "pass@1")),
    ("The last RL stage lifts preference", ("AlpacaEval 2.0", 62.1, 87.6),
     ("rejection_sft", "rubric_mean"), ("r1", "rubric_mean")),
    ("A distilled student beats the same student by RL alone", ("AIME 2024, 32B", 47.0, 72.6),
     ("student_rl_only", "pass@1"), ("distilled", "pass@1")))
COST_LABELS = {"loss_tokens": "tokens in the loss",
               "processed_tokens": "tokens trained on, prompts included",
               "sampled_tokens": "tokens sampled, unused and validation ones included"}


def write_report(run_dir: str | Path) -> Path:
    """Write RUN_DIR/report.html from the files of the run; returns its path."""
    run_dir = Path(run_dir)
    if not (run_dir / "summary.json").is_file():
        raise CheckpointError(f"{run_dir} has no summary.json: a report is of a run of `r1grpo pipeline`",
                              run_dir / "summary.json")
    summary = _read_json(run_dir / "summary.json", required=True)
    manifest = _read_json(run_dir / "manifest.json")
    metrics = _read_rows(run_dir / "metrics.jsonl")
    samples, inspected = pick_completions(_read_rows(run_dir / "completions.jsonl"))
    rows = [row for row in metrics if isinstance(row.get("step"), (int, float))]
    sections = (
        ("Where each checkpoint comes from", _pipeline(manifest, summary)),
        ("Curves of reinforcement learning", _curves(rows)),
        ("The stages on held-out problems", _stages(summary, None)),
        ("Harder problems, out of distribution", _stages(summary, "ood")),
        ("Task by task", _tasks(summary)),
        ("The same problems before and after", samples_section(samples)),
        ("Different tasks and scale: compare directions, not numbers", _deepseek(summary)),
        ("General prompts and reward models", _general(summary)),
        ("Distillation and costs", _costs(summary)),
        ("Alarms", _alarms(rows)),
        ("Inside a completion", inspector_section(inspected)))
    title = f"R1 at small size, seed {esc(summary.get('seed', '?'))}"
    body = "".join(f"<section><h2>{heading}</h2>{content}</section>"
                   for heading, content in sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    page = (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<style>{STYLE}</style></head><body><main>{_head(title, summary)}{body}"
            "<footer>Written by r1grpo from summary.json, metrics.jsonl, completions.jsonl and "
            "manifest.json.</footer></main></body></html>\n")
    path = run_dir / "report.html"
    write_atomic(path, page.encode())
    return path


# ---- reading ------------------------------------------------------------------------------------


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    if not path.exists() and not required:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path, error.errno) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}", path) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object", path)
    return content


def _read_rows(path: Path) -> Iterable[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else ()


def _figure(summary: Mapping[str, Any], stage: str, key: str) -> float | None:
    place = "general" if key == "rubric_mean" else "stages"
    return summary.get(place, {}).get(stage, {}).get(key)


def _by_stage(found: Mapping[str, Any]) -> list[str]:
    return [name for name in STAGES if name in found] + [n for n in found if n not in STAGES]


# ---- sections -----------------------------------------------------------------------------------


def _head(title: str, summary: Mapping[str, Any]) -> str:
    parameters = summary.get("parameters", {})
    gap, seconds = summary.get("max_logprob_gap"), summary.get("wall_seconds")
    steps = [(name, _figure(summary, name, "pass@1")) for name in SAMPLE_STAGES]
    headline = "".join(
        f'<div class="big"><b>{rate(value)}</b><span>{stage_name(name)}</span></div>'
        for name, value in steps)
    facts = (
        ("seed", summary.get("seed", "–")),
        ("parameters", f"{parameters['total']:,} ({parameters['active']:,} active)"
         if {"total", "active"} <= parameters.keys() else "–"),
        ("wall time", format_seconds(seconds) if seconds is not None else "–"),
        ("max_logprob_gap", f"{gap!r} over {summary.get('gap_tokens', 0):,} tokens"
         if gap is not None else "–"))
    listed = "".join(f"<div><dt>{name}</dt><dd>{esc(value)}</dd></div>" for name, value in facts)
    quick = ('<p class="banner"><b>Not a result.</b> This was a quick run: it shows that the '
             "pipeline works, its figures mean nothing.</p>") if summary.get("quick") else ""
    return (f"<header>{quick}<h1>{title}</h1><p>pass@1 on held-out problems, before and after "
            f'reinforcement learning</p><div class="bigs">{headline}</div><dl>{listed}</dl>'
            "</header>")


def _pipeline(manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    entries = manifest.get("checkpoints", [])
    if not entries:
        return NOT_RUN
    scores = {entry["name"]: _figure(summary, entry["name"], "pass@1") for entry in entries}
    chart = graph_chart("checkpoints and their parents",
                        {entry["name"]: entry.get("parent") for entry in entries},
                        {entry["name"]: entry.get("data_from", ()) for entry in entries},
                        {name: f"pass@1 {rate(score)}" for name, score in scores.items()},
                        STAGES)
    return (f'<div class="wide"><div class="graph">{chart}</div></div><p class="note">Solid: the '
            "weights it started from. Dashed: the checkpoint whose samples it learned from.</p>")


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    stages = [stage for stage in RL_STAGES if any(row.get("stage") == stage for row in rows)]
    if not stages:
        return NOT_RUN
    charts = []
    for key, title, top in CURVES:
        segments = [Series(stage, [(row["step"], row[key]) for row in rows
                                   if row.get("stage") == stage and row.get(key) is not None],
                           STAGES[stage], dots=key.startswith("eval/")) for stage in stages]
        charts.append(f"<figure>{line_chart(title, segments, top)}</figure>")
    missing = [stage for stage in RL_STAGES if stage not in stages]
    note = f" Not run: {', '.join(missing)}." if missing else ""
    return (f'<p class="legend">{" ".join(map(stage_name, stages))}</p>'
            f'<div class="charts">{"".join(charts)}</div><p class="note">By update, as logged, '
            "unsmoothed; a dashed line is where a stage ends and the next checkpoint of the "
            f"graph above begins.{note}</p>")


def _stages(summary: Mapping[str, Any], part: str | None) -> str:
    """The table of stages (part None) or of their `ood` figures."""
    stages = summary.get("stages", {})
    found = {name: figures if part is None else figures.get(part)
             for name, figures in stages.items()}
    found = {name: figures for name, figures in found.items() if figures}
    if not found:
        return NOT_RUN
    drawn = [(name, found[name]["pass@1"], found[name].get("pass@1_ci"), STAGES.get(name, 4))
             for name in _by_stage(found) if found[name].get("pass@1") is not None]
    ks = sorted({int(figures["k"]) for figures in found.values() if figures.get("k")})
    k = "/".join(map(str, ks)) or "k"
    head = ["stage"] + [label.replace("@k", f"@{k}") for _, label, _ in COLUMNS]
    rows = []
    for name in _by_stage(stages) + [n for n in STAGES if n not in stages]:
        figures = found.get(name)
        if not figures:
            rows.append([stage_name(name), '<span class="none">not run</span>']
                        + [""] * (len(COLUMNS) - 1))
            continue
        rows.append([stage_name(name)] + [_stage_cell(figures, key, form)
                                           for key, _, form in COLUMNS])
    return (f'<div class="intervals">{interval_chart("pass@1 with 95 % interval", drawn)}</div>'
            f"{table(head, rows)}{'' if part else _differences(summary)}")


def _differences(summary: Mapping[str, Any]) -> str:
    found = summary.get("differences") or {}
    if not found:
        return ""
    return table(["pass@1, paired by problem", "difference", "95 % interval", "problems"],
                 ([esc(name), f"{one['difference']:+.3f}",
                   f"{one['interval'][0]:+.3f} to {one['interval'][1]:+.3f}", number(one["n"])]
                  for name, one in found.items()))


def _stage_cell(figures: Mapping[str, Any], key: str, form: str) -> str:
    value = figures.get(f"pass@{figures.get('k', 16)}" if key == "pass@k" else key)
    if value is None:
        return "–"
    if key == "pass@1_ci":
        return f"{value[0]:.3f} to {value[1]:.3f}"
    return format_seconds(value) if key == "seconds" else f"{value:{form}}"


def _tasks(summary: Mapping[str, Any]) -> str:
    found = {name: figures["tasks"] for name, figures in summary.get("stages", {}).items()
             if figures.get("tasks")}
    if not found:
        return NOT_RUN
    tasks = sorted({task for by_task in found.values() for task in by_task})
    return table(["stage, pass@1"] + [esc(task) for task in tasks],
                 ([stage_name(name)] + [rate(found[name].get(task, {}).get("pass@1"))
                                        for task in tasks] for name in _by_stage(found)))


def _deepseek(summary: Mapping[str, Any]) -> str:
    rows = []
    for claim, (bench, before, after), left, right in DIRECTIONS:
        ours = [_figure(summary, *left), _figure(summary, *right)]
        cells = [claim, f"{before} → {after} <small>{bench}</small>"]
        if None in ours:
            rows.append(cells + ['<span class="none">not run</span>', ""])
            continue
        agrees = (ours[1] > ours[0]) - (ours[1] < ours[0]) == (after > before) - (after < before)
        mark = ('<span class="yes">✓ agrees</span>' if agrees
                else '<span class="no">✗ disagrees</span>')
        if left[1] == right[1] == "pass@1":
            one, two = (_figure(summary, side[0], "pass@1_ci") for side in (left, right))
            if one and two and max(one[0], two[0]) <= min(one[1], two[1]):
                mark += " <small>intervals overlap</small>"
        shown = f"{rate(ours[0])} → {rate(ours[1])} <small>{esc(right[1])}</small>"
        rows.append(cells + [shown, mark])
    theirs = table(["DeepSeek-R1, Table 3", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"],
                   ([name, *map(str, figures)] for name, *figures in DEEPSEEK))
    return (table(["direction", "DeepSeek", "this run", ""], rows)
            + '<p class="note">Their models are several hundred thousand times larger, their tasks '
            "are others. Dev1, Dev2, Dev3 are the counterparts of cold_start, reasoning_rl, "
            "rejection_sft.</p>" + theirs)


def _general(summary: Mapping[str, Any]) -> str:
    general, models = summary.get("general") or {}, summary.get("reward_models") or {}
    tables = []
    if general:
        keys = (("refusal", "refusal_n", "refuses harmful"),
                ("over_refusal", "over_refusal_n", "refuses harmless"),
                ("rubric_mean", "n", "rubric mean"))
        head = ["stage"] + [cell for *_, label in keys for cell in (label, "prompts")]
        tables.append(table(head, (
            [stage_name(name)] + [cell for key, n, _ in keys for cell in (
                rate(general[name].get(key)), number(general[name].get(n)))]
            for name in _by_stage(general))))
    if models:
        tables.append(table(["reward model", "held-out accuracy", "balanced over labels",
                             "share of the larger label", "pairs or rows"],
                            ([esc(name), *(rate(figures.get(key)) for key in (
                                "accuracy", "balanced_accuracy", "base_rate")),
                              number(figures.get("n"))] for name, figures in models.items())))
    return "".join(tables) or NOT_RUN


def _costs(summary: Mapping[str, Any]) -> str:
    students = [name for name in ("student_base", "distilled", "student_rl_only")
                if _figure(summary, name, "pass@1") is not None]
    costs = summary.get("costs") or {}
    tables = []
    if students:
        drawn = [(name, _figure(summary, name, "pass@1"), _figure(summary, name, "pass@1_ci"),
                  STAGES[name]) for name in students]
        chart = interval_chart("students, pass@1 with interval", drawn)
        tables.append(f'<div class="intervals">{chart}</div>')
    if costs:
        flat = [(name, value) for name, value in costs.items() if not isinstance(value, dict)]
        flat += [(f"{name}: {COST_LABELS.get(part, part)}", value) for name, group in costs.items()
                 if isinstance(group, dict) for part, value in group.items()]
        tables.append(table(["cost", "figure"], (
            [esc(name.replace("_", " ")),
             number(value) if isinstance(value, (int, float)) else esc(value)]
            for name, value in flat)))
    return "".join(tables) or NOT_RUN


def _alarms(rows: Sequence[Mapping[str, Any]]) -> str:
    steps: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name in row.get("alarms") or ():
            steps.setdefault((str(row.get("stage")), str(name)), []).append(f"{row['step']:g}")
    if not rows:
        return NOT_RUN
    if not steps:
        return "<p>None.</p>"
    return table(["stage", "alarm", "set in at step"],
                 ([stage_name(stage), esc(name), ", ".join(at)]
                  for (stage, name), at in steps.items()))
