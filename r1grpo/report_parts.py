"""report_parts.py - what sections of the report are made of: stages, cells, tables, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from .charts import format_figure

STAGES = {"base": 4, "r1_zero": 0, "cold_start": 1, "reasoning_rl": 1, "rejection_sft": 2, "r1": 2,
          "student_base": 4, "distilled": 3, "student_rl_only": 3}  # name -> colour of charts.py
NOT_RUN = '<p class="none">not run</p>'


def esc(value: Any) -> str:
    """Text that a page shows and never obeys."""
    return html.escape(str(value))


def number(value: Any) -> str:
    """A figure in few characters; a dash for what is none."""
    return format_figure(float(value)) if isinstance(value, (int, float)) else "–"


def rate(value: float | None) -> str:
    """A share with three decimals; a dash for what is not there."""
    return "–" if value is None else f"{value:.3f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the first column names the row."""
    lines = "".join(f"<tr><th scope=row>{row[0]}</th>"
                    + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    columns = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    return (f'<div class="wide"><table><thead><tr>{columns}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>")


def stage_name(name: str) -> str:
    """A stage's name behind its colour."""
    return f'<span class="dot c{STAGES.get(name, 4)}"></span>{esc(name)}'
