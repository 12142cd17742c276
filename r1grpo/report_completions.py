"""report_completions.py - what models wrote, in the report: the same problems before and after, and
token by token. Everything of a completion is escaped before it is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .report_parts import NOT_RUN, esc, number, stage_name

SAMPLE_STAGES = ("base", "r1_zero", "r1")


def pick_completions(rows: Iterable[dict[str, Any]]) -> tuple[list[dict], list[dict]]:
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


def _mark_up(text: str) -> str:
    """Escaped completion with its thinking dimmed and its answer set off. Tags are looked for in
    the escaped text, so nothing that a model writes can open one of ours."""
    head, end, rest = esc(text).partition("&lt;/think&gt;")
    if "&lt;think&gt;" not in head:
        head, rest = "", head + end + rest
    answer = r"&lt;answer&gt;.*?(?:&lt;/answer&gt;|$)|\\boxed\{.*?\}"
    rest = re.sub(answer, r"<b>\g<0></b>", rest, count=1, flags=re.S)
    return (f'<span class="think">{head}{end}</span>' if head else "") + rest


def _verdicts(row: Mapping[str, Any]) -> str:
    shown = [f"{esc(name)} {number(value)}" for name, value in (row.get("rewards") or {}).items()]
    return " · ".join(shown + [f"ended by {esc(row.get('finish_reason', '?'))}"])


def samples_section(problems: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    if not problems:
        return NOT_RUN
    blocks = []
    for by_stage in problems:
        prompt = by_stage["r1"].get("prompt", "")
        columns = "".join(
            f'<div><h4>{stage_name(stage)}</h4><p class="text">'
            f'{_mark_up(by_stage[stage].get("completion", ""))}</p>'
            f'<p class="note">{_verdicts(by_stage[stage])}</p></div>' for stage in SAMPLE_STAGES)
        blocks.append(f'<article><p class="prompt">{esc(prompt)}</p>'
                      f'<div class="three">{columns}</div></article>')
    return ("".join(blocks) + '<p class="note">First sample of the first evaluated problems in '
            "each language, not picked for success. Thinking is dimmed.</p>")


def _token_texts(row: Mapping[str, Any]) -> list[str]:
    """The row's own `tokens`, else its words when they match the ids one to one (an end token may
    have no word), else the ids."""
    ids, words = row.get("completion_ids") or [], str(row.get("completion", "")).split()
    if row.get("tokens"):
        return [str(token) for token in row["tokens"]]
    if len(words) == len(ids) - 1:
        words.append("⏎")
    return words if len(words) == len(ids) else [str(token) for token in ids]


def inspector_section(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="none">no log-probs were stored</p>'
    blocks = []
    for row in rows:
        tokens = "".join(
            f'<span class="t{min(int(-2 * logp), 9)}" title="log p {logp:.3f}">'
            f"{esc(token)}</span> "
            for token, logp in zip(_token_texts(row), row["logprobs"]))
        place = f"step {row['step']}" if row.get("step") is not None else "evaluation"
        blocks.append(f"<details><summary>{stage_name(str(row.get('stage', '')))}, {esc(place)}: "
                      f"{esc(row.get('prompt', ''))}</summary>"
                      f'<p class="text tokens">{tokens}</p>'
                      f'<p class="note">{_verdicts(row)}</p></details>')
    scale = "".join(f'<span class="t{i}">{-i / 2:g}</span>' for i in range(10))
    return (f'<p class="note tokens">log p of each token when it was drawn: {scale}</p>'
            + "".join(blocks).replace("<details>", "<details open>", 1))
