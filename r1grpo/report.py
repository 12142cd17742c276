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

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1grpo.charts import Series, format_figure, graph_chart, interval_chart, line_chart
from r1grpo.monitor import format_seconds
from r1grpo.report_style import STYLE
from r1grpo.rundir import read_jsonl
from r1grpo.safe_files import CheckpointError, write_atomic

STAGES = {"base": 4, "r1_zero": 0, "cold_start": 1, "reasoning_rl": 1, "rejection_sft": 2, "r1": 2,
          "student_base": 4, "distilled": 3, "student_rl_only": 3}  # name -> colour of charts.py
RL_STAGES = ("r1_zero", "reasoning_rl", "r1")
SAMPLE_STAGES = ("base", "r1_zero", "r1")
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
               "processed_tokens": "tokens through forward and backward, prompts included",
               "sampled_tokens": "tokens sampled, unused and validation ones included"}
NOT_RUN = '<p class="none">not run</p>'


def write_report(run_dir: str | Path) -> Path:
    """Write RUN_DIR/report.html from the files of the run; returns its path."""
    run_dir = Path(run_dir)
    summary = _read_json(run_dir / "summary.json", required=True)
    manifest = _read_json(run_dir / "manifest.json")
    metrics = _read_rows(run_dir / "metrics.jsonl")
    samples, inspected = _pick_completions(_read_rows(run_dir / "completions.jsonl"))
    rows = [row for row in metrics if isinstance(row.get("step"), (int, float))]
    sections = (
        ("Where each checkpoint comes from", _pipeline(manifest, summary)),
        ("Curves of reinforcement learning", _curves(rows)),
        ("The stages on held-out problems", _stages(summary, None)),
        ("Harder problems, out of distribution", _stages(summary, "ood")),
        ("Task by task", _tasks(summary)),
        ("The same problems before and after", _samples(samples)),
        ("Different tasks and scale: compare directions, not numbers", _deepseek(summary)),
        ("General prompts and reward models", _general(summary)),
        ("Distillation and costs", _costs(summary)),
        ("Alarms", _alarms(rows)),
        ("Inside a completion", _inspector(inspected)))
    title = f"R1 at small size, seed {_esc(summary.get('seed', '?'))}"
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


def _pick_completions(rows: Iterable[dict[str, Any]]) -> tuple[list[dict], list[dict]]:
    """In one pass: the first evaluated sample of each stage on the first problems that all of
    SAMPLE_STAGES met (two a language; nobody chose them for being right), and a dozen rows with
    log-probs, spread over the stages."""
    first: dict[str, dict[str, dict]] = {}
    with_logprobs: dict[str, list[dict]] = {}
    for row in rows:
        stage = row.get("stage", "")
        if row.get("eval") and stage in SAMPLE_STAGES:
            first.setdefault(str(row.get("problem_key")), {}).setdefault(stage, row)
        kept = with_logprobs.setdefault(stage, [])
        if row.get("logprobs") and len(kept) < 12:
            kept.append(row)
    chosen: dict[str, list[dict]] = {}
    for by_stage in first.values():
        same_language = chosen.setdefault(str(next(iter(by_stage.values())).get("language")), [])
        if len(by_stage) == len(SAMPLE_STAGES) and len(same_language) < 2:
            same_language.append(by_stage)
    turns = [kept[i] for i in range(12) for kept in with_logprobs.values() if i < len(kept)]
    return [problem for same in chosen.values() for problem in same], turns[:12]


# ---- small pieces -------------------------------------------------------------------------------


def _esc(value: Any) -> str:
    return html.escape(str(value))


def _number(value: Any) -> str:
    return format_figure(float(value)) if isinstance(value, (int, float)) else "–"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first column names the row."""
    lines = "".join(f"<tr><th scope=row>{row[0]}</th>"
                    + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    columns = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    return (f'<div class="wide"><table><thead><tr>{columns}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>")


def _stage_name(name: str) -> str:
    return f'<span class="dot c{STAGES.get(name, 4)}"></span>{_esc(name)}'


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
        f'<div class="big"><b>{_rate(value)}</b><span>{_stage_name(name)}</span></div>'
        for name, value in steps)
    facts = (
        ("seed", summary.get("seed", "–")),
        ("parameters", f"{parameters['total']:,} ({parameters['active']:,} active)"
         if {"total", "active"} <= parameters.keys() else "–"),
        ("wall time", format_seconds(seconds) if seconds is not None else "–"),
        ("max_logprob_gap", f"{gap!r} over {summary.get('gap_tokens', 0):,} tokens"
         if gap is not None else "–"))
    listed = "".join(f"<div><dt>{name}</dt><dd>{_esc(value)}</dd></div>" for name, value in facts)
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
                        {name: f"pass@1 {_rate(score)}" for name, score in scores.items()},
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
    return (f'<p class="legend">{" ".join(map(_stage_name, stages))}</p>'
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
            rows.append([_stage_name(name), '<span class="none">not run</span>']
                        + [""] * (len(COLUMNS) - 1))
            continue
        rows.append([_stage_name(name)] + [_stage_cell(figures, key, form)
                                           for key, _, form in COLUMNS])
    return (f'<div class="intervals">{interval_chart("pass@1 with 95 % interval", drawn)}</div>'
            f"{_table(head, rows)}{'' if part else _differences(summary)}")


def _differences(summary: Mapping[str, Any]) -> str:
    found = summary.get("differences") or {}
    if not found:
        return ""
    return _table(["pass@1, paired by problem", "difference", "95 % interval", "problems"],
                  ([_esc(name), f"{one['difference']:+.3f}",
                    f"{one['interval'][0]:+.3f} to {one['interval'][1]:+.3f}", _number(one["n"])]
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
    return _table(["stage, pass@1"] + [_esc(task) for task in tasks],
                  ([_stage_name(name)] + [_rate(found[name].get(task, {}).get("pass@1"))
                                          for task in tasks] for name in _by_stage(found)))


def _mark_up(text: str) -> str:
    """Escaped completion with its thinking dimmed and its answer set off. Tags are looked for in
    the escaped text, so nothing that a model writes can open one of ours."""
    head, end, rest = _esc(text).partition("&lt;/think&gt;")
    if "&lt;think&gt;" not in head:
        head, rest = "", head + end + rest
    answer = r"&lt;answer&gt;.*?(?:&lt;/answer&gt;|$)|\\boxed\{.*?\}"
    rest = re.sub(answer, r"<b>\g<0></b>", rest, count=1, flags=re.S)
    return (f'<span class="think">{head}{end}</span>' if head else "") + rest


def _verdicts(row: Mapping[str, Any]) -> str:
    shown = [f"{_esc(name)} {_number(value)}" for name, value in (row.get("rewards") or {}).items()]
    return " · ".join(shown + [f"ended by {_esc(row.get('finish_reason', '?'))}"])


def _samples(problems: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    if not problems:
        return NOT_RUN
    blocks = []
    for by_stage in problems:
        prompt = by_stage["r1"].get("prompt", "")
        columns = "".join(
            f'<div><h4>{_stage_name(stage)}</h4><p class="text">'
            f'{_mark_up(by_stage[stage].get("completion", ""))}</p>'
            f'<p class="note">{_verdicts(by_stage[stage])}</p></div>' for stage in SAMPLE_STAGES)
        blocks.append(f'<article><p class="prompt">{_esc(prompt)}</p>'
                      f'<div class="three">{columns}</div></article>')
    return ("".join(blocks) + '<p class="note">First sample of the first evaluated problems in '
            "each language, not picked for success. Thinking is dimmed.</p>")


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
        shown = f"{_rate(ours[0])} → {_rate(ours[1])} <small>{_esc(right[1])}</small>"
        rows.append(cells + [shown, mark])
    theirs = _table(["DeepSeek-R1, Table 3", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"],
                    ([name, *map(str, figures)] for name, *figures in DEEPSEEK))
    return (_table(["direction", "DeepSeek", "this run", ""], rows)
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
        tables.append(_table(head, (
            [_stage_name(name)] + [cell for key, n, _ in keys for cell in (
                _rate(general[name].get(key)), _number(general[name].get(n)))]
            for name in _by_stage(general))))
    if models:
        tables.append(_table(["reward model", "held-out accuracy", "balanced over labels",
                              "share of the larger label", "pairs or rows"],
                             ([_esc(name), *(_rate(figures.get(key)) for key in (
                                 "accuracy", "balanced_accuracy", "base_rate")),
                               _number(figures.get("n"))] for name, figures in models.items())))
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
        tables.append(_table(["cost", "figure"], ([_esc(name.replace("_", " ")),
                                                   _number(value) if isinstance(value, (int, float))
                                                   else _esc(value)] for name, value in flat)))
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
    return _table(["stage", "alarm", "set in at step"],
                  ([_stage_name(stage), _esc(name), ", ".join(at)]
                   for (stage, name), at in steps.items()))


def _token_texts(row: Mapping[str, Any]) -> list[str]:
    """The row's own `tokens`, else its words when they match the ids one to one (an end token may
    have no word), else the ids."""
    ids, words = row.get("completion_ids") or [], str(row.get("completion", "")).split()
    if row.get("tokens"):
        return [str(token) for token in row["tokens"]]
    if len(words) == len(ids) - 1:
        words.append("⏎")
    return words if len(words) == len(ids) else [str(token) for token in ids]


def _inspector(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="none">no log-probs were stored</p>'
    blocks = []
    for row in rows:
        tokens = "".join(
            f'<span class="t{min(int(-2 * logp), 9)}" title="log p {logp:.3f}">'
            f"{_esc(token)}</span> "
            for token, logp in zip(_token_texts(row), row["logprobs"]))
        place = f"step {row['step']}" if row.get("step") is not None else "evaluation"
        blocks.append(f"<details><summary>{_stage_name(str(row.get('stage', '')))}, {_esc(place)}: "
                      f"{_esc(row.get('prompt', ''))}</summary>"
                      f'<p class="text tokens">{tokens}</p>'
                      f'<p class="note">{_verdicts(row)}</p></details>')
    scale = "".join(f'<span class="t{i}">{-i / 2:g}</span>' for i in range(10))
    return (f'<p class="note tokens">log p of each token when it was drawn: {scale}</p>'
            + "".join(blocks).replace("<details>", "<details open>", 1))
