"""charts.py - the few SVG pictures that reports and notebooks need, as strings.

    line_chart       one figure over steps, several segments side by side
    overlay_chart    several figures over the same x, which may be logarithmic
    interval_chart   one value with its interval a row
    graph_chart      which box came from which, solid and dashed arrows

Every y axis starts at 0. Colours are CSS variables with a fallback, so that a page may switch to
dark; sizes are those of the viewBox and scale with the page. All text is escaped. Knows nothing of
runs or files.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLORS = ("#2f6db3", "#c9701d", "#2e8b6b", "#7d5aa8", "#7a828c")  # CSS --c0 ... --c4
INK, MUTED, GRID, PAPER = "#1d2329", "#68717b", "#e2e5e9", "#ffffff"


def _paint(kind: str, name: str, fallback: str) -> str:
    return f"{kind}:var(--{name},{fallback})"


def _color(kind: str, index: int) -> str:
    return _paint(kind, f"c{index}", COLORS[index])


def _text(x: float, y: float, words: str, size: float = 11, anchor: str = "start",
          ink: str = "muted", bold: bool = False) -> str:
    color = _paint("fill", ink, INK if ink == "ink" else MUTED)
    weight = ";font-weight:600" if bold else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'style="{color}{weight}">{html.escape(words)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, extra: str = "") -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'style="{_paint("stroke", "grid", GRID)};{extra}"/>')


def _svg(width: float, height: float, label: str, body: Sequence[str]) -> str:
    return (f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}" '
            'xmlns="http://www.w3.org/2000/svg" '
            'style="width:100%;height:auto;font-family:system-ui,sans-serif">'
            + "".join(body) + "</svg>")


def nice_ticks(top: float, most: int = 4) -> list[float]:
    """0 and up to `most` round numbers (1, 2 or 5 times a power of ten), the last one >= top."""
    if not top > 0:
        top = 1.0
    power = 10.0 ** math.floor(math.log10(top / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if m * power * most >= top * (1 - 1e-9))
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def format_figure(value: float) -> str:
    """Short and plain: 0.482, 31.4, 1,250."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Series:
    """One line: its name, points (x, y) in order of x, colour; `dots` marks every point."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dots: bool = False


def line_chart(title: str, segments: Sequence[Series], top: float | None = None) -> str:
    """Segments drawn one after the other along x, each with its own x from where the last ended.

    Boundaries between segments are marked and named. `top` fixes the y range (1.0 for shares).
    """
    width, height, left, right, up, down = 440.0, 220.0, 46.0, 12.0, 44.0, 28.0
    segments = [s for s in segments if s.points]
    body = [_text(0, 14, title, 13, ink="ink", bold=True)]
    if not segments:
        body.append(_text(width / 2, height / 2, "not measured", 12, "middle"))
        return _svg(width, height, title, body)
    spans = [max(s.points[-1][0], 1.0) for s in segments]
    ticks = nice_ticks(top or max(y for s in segments for _, y in s.points))
    across, deep = width - left - right, height - up - down

    def place_y(y: float) -> float:
        return up + deep * (1 - min(max(y, 0.0), ticks[-1]) / ticks[-1])

    for tick in ticks:
        body += [_line(left, place_y(tick), width - right, place_y(tick)),
                 _text(left - 6, place_y(tick) + 4, format_figure(tick), anchor="end")]
    start = 0.0
    for segment, span in zip(segments, spans):
        x0, x1 = (left + across * s / sum(spans) for s in (start, start + span))
        places = [(x0 + (x1 - x0) * x / span, place_y(y)) for x, y in segment.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        if start:
            body.append(_line(x0, up - 16, x0, height - down,
                              _paint("stroke", "muted", MUTED) + ";stroke-dasharray:3 3"))
        if len(segments) > 1 and x1 - x0 > 6.2 * len(segment.name):
            body.append(_text(x0 + 4, up - 8, segment.name, 10.5))
        body.append(f'<polyline points="{path}" style="fill:none;{_color("stroke", segment.color)};'
                    'stroke-width:1.6;stroke-linejoin:round"/>')
        for (x, y), (step, value) in zip(places, segment.points):
            seen = _color("fill", segment.color) if segment.dots else "fill:transparent"
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="{seen}"><title>'
                        f"{html.escape(segment.name)}, step {step:g}: {format_figure(value)}"
                        "</title></circle>")
        body.append(_text(x1, height - down + 16, f"{segment.points[-1][0]:g}", anchor="end"))
        start += span
    body.append(_text(left, height - down + 16, "0"))
    return _svg(width, height, title, body)


def overlay_chart(title: str, series: Sequence[Series], top: float | None = None,
                  log_x: bool = False) -> str:
    """Lines over one x axis, named at the side. log_x: x above 0, on a logarithmic axis whose ticks are
    the first line's points; else from 0 on."""
    width, height, left, right, up, down = 600.0, 240.0, 46.0, 150.0, 30.0, 28.0
    series = [one for one in series if one.points]
    body = [_text(0, 14, title, 13, ink="ink", bold=True)]
    if not series:
        return _svg(width, height, title, [*body, _text(width / 2, height / 2, "not measured", 12, "middle")])
    xs = [x for one in series for x, _ in one.points]
    scale = math.log if log_x else float
    low, high = (scale(min(xs)) if log_x else 0.0), scale(max(xs))
    ticks = nice_ticks(top or max(y for one in series for _, y in one.points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (width - left - right) * (scale(x) - low) / ((high - low) or 1.0),
                height - down - (height - up - down) * y / ticks[-1])

    for tick in ticks:
        y = place(max(xs), tick)[1]
        body += [_line(left, y, width - right, y), _text(left - 6, y + 4, format_figure(tick), anchor="end")]
    for x in [x for x, _ in series[0].points] if log_x else nice_ticks(max(xs), 5):
        if x <= max(xs):
            body.append(_text(place(x, 0.0)[0], height - down + 16, format_figure(x), anchor="middle"))
    for number, one in enumerate(series):
        places = [place(*point) for point in one.points]
        body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" '
                    f'style="fill:none;{_color("stroke", one.color)};stroke-width:1.6"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="'
                 f'{_color("fill", one.color) if one.dots else "fill:transparent"}"><title>'
                 f"{html.escape(one.name)}, {format_figure(at)}: {format_figure(value)}</title></circle>"
                 for (x, y), (at, value) in zip(places, one.points)]
        y = up + 8 + 17 * number
        body += [f'<rect x="{width - right + 12:.1f}" y="{y - 5:.1f}" width="14" height="4" '
                 f'style="{_color("fill", one.color)}"/>',
                 _text(width - right + 32, y + 1, one.name, 11, ink="ink")]
    return _svg(width, height, title, body)


def interval_chart(title: str, rows: Sequence[tuple[str, float, Sequence[float] | None, int]],
                   top: float = 1.0) -> str:
    """A row a (name, value, interval or None, colour): a dot on a line from 0 to `top`."""
    width, row, right, up = 600.0, 26.0, 124.0, 10.0
    left = max(118.0, 12.0 + 6.6 * max((len(name) for name, *_ in rows), default=0))
    height = up + row * len(rows) + 24
    ticks, body = nice_ticks(top, 5), []

    def place(value: float) -> float:
        return left + (width - left - right) * value / ticks[-1]

    for tick in ticks:
        body += [_line(place(tick), up, place(tick), height - 22),
                 _text(place(tick), height - 7, format_figure(tick), anchor="middle")]
    for i, (name, value, interval, color) in enumerate(rows):
        y = up + row * (i + 0.5)
        body.append(_text(left - 12, y + 4, name, 12.5, "end", "ink"))
        shown = f"{value:.3f}"
        if interval:
            low, high = interval
            body.append(f'<line x1="{place(low):.1f}" y1="{y:.1f}" x2="{place(high):.1f}" '
                        f'y2="{y:.1f}" style="{_color("stroke", color)};stroke-width:3;'
                        'stroke-linecap:round;opacity:.45"/>')
            shown += f"  [{low:.2f}, {high:.2f}]"
        body.append(f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="4.5" '
                    f'style="{_color("fill", color)}"/>')
        body.append(_text(width - right + 8, y + 4, shown, 11, ink="ink"))
    return _svg(width, height, title, body)


def _lay_out(parents: Mapping[str, str | None],
             data_from: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Column: longest way from a root. A first child keeps its parent's lane, others open one."""
    places: dict[str, tuple[int, int]] = {}
    lanes, continued = 0, set()
    for name, parent in parents.items():
        sources = [s for s in (parent, *data_from.get(name, ())) if s in places]
        column = max((places[s][0] + 1 for s in sources), default=0)
        if parent in places and parent not in continued:
            lane = places[parent][1]
            continued.add(parent)
        else:
            lane, lanes = lanes, lanes + 1
        places[name] = (column, lane)
    return places


def graph_chart(title: str, parents: Mapping[str, str | None],
                data_from: Mapping[str, Sequence[str]], notes: Mapping[str, str],
                colors: Mapping[str, int]) -> str:
    """Boxes named by `parents` (name -> parent, parents first); solid arrows are weights, dashed
    ones data. `notes` is a second line in a box."""
    places = _lay_out(parents, data_from)
    box_w, box_h, step_x, step_y, pad = 112.0, 42.0, 138.0, 72.0, 4.0
    width = pad * 2 + step_x * max(c for c, _ in places.values()) + box_w
    height = pad * 2 + step_y * max(lane for _, lane in places.values()) + box_h

    def corner(name: str) -> tuple[float, float]:
        return pad + step_x * places[name][0], pad + step_y * places[name][1]

    arrow = (f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
             f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
             f'style="{_paint("fill", "muted", MUTED)}"/></marker></defs>')
    stroke = f'fill:none;{_paint("stroke", "muted", MUTED)};stroke-width:1.3'
    body = [arrow]
    for name, parent in parents.items():
        x, y = corner(name)
        for source in (parent, *data_from.get(name, ())):
            if source not in places:
                continue
            sx, sy = corner(source)
            if source == parent and sy == y:
                way = f"M{sx + box_w:.1f} {sy + box_h / 2:.1f}H{x - 2:.1f}"
            elif source == parent:
                way = f"M{sx + 22:.1f} {sy + box_h:.1f}V{y + box_h / 2:.1f}H{x - 2:.1f}"
            else:
                x1 = sx + box_w * 0.6 + 12 * (abs(places[name][1] - places[source][1]) - 1)
                x2 = x + box_w * 0.4
                turn = y - (step_y - box_h) / 2
                way = f"M{x1:.1f} {sy + box_h:.1f}V{turn:.1f}H{x2:.1f}V{y - 2:.1f}"
            dash = "" if source == parent else ";stroke-dasharray:4 3"
            body.append(f'<path d="{way}" style="{stroke}{dash}" marker-end="url(#arrow)"/>')
    for name in parents:
        x, y = corner(name)
        body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{box_w}" height="{box_h}" rx="6" style="'
                    f'{_paint("fill", "paper", PAPER)};{_color("stroke", colors.get(name, 4))};'
                    'stroke-width:1.5"/>')
        body.append(_text(x + box_w / 2, y + 18, name, 12, "middle", "ink", bold=True))
        body.append(_text(x + box_w / 2, y + 33, notes.get(name, ""), 10.5, "middle"))
    return _svg(width, height, title, body)
