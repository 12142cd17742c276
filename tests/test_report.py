"""report.html from a made-up run: self-contained, safe against what models write, honest."""

import json
import re
from html.parser import HTMLParser

import pytest

from r1grpo.charts import (Series, format_figure, graph_chart, line_chart, nice_ticks,
                           overlay_chart)
from r1grpo.safe_files import CheckpointError
from r1grpo.report import STAGES, write_report

from synthetic_run import HOSTILE, make_summary, read_summary, write_run

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Checks that tags nest; collects tags, attributes and the text of every section."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.sections = [], [], [], {}
        self._heading = None
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self._heading = data
            self.sections[data] = ""
        elif self._heading and "section" in self.open:
            self.sections[self._heading] += data + " "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "r1")


@pytest.fixture(scope="module")
def text(run):
    return write_report(run).read_text("utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def find(page, words):
    return next(body for heading, body in page.sections.items() if words in heading)


def rewrite(run, tmp_path, **changes):
    """The page of a copy of the run with other fields in summary.json (None removes one)."""
    for name in ("metrics.jsonl", "completions.jsonl", "manifest.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    summary = {**read_summary(run), **changes}
    summary = {key: value for key, value in summary.items() if value is not None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = write_report(tmp_path).read_text("utf-8")
    return text, Page(text)


def test_page_is_self_contained(text, page):
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "href", "srcset", "action") and not name.startswith("on")
        assert "url(" not in (value or "").replace("url(#arrow)", "")
    assert "@import" not in text and "url(" not in text.replace("url(#arrow)", "")
    assert "default-src 'none'" in text and len(text) < 1_000_000


def test_paired_differences_stand_below_the_stages(page):
    shown = find(page, "The stages on held-out problems")
    assert all(part in shown for part in ("r1 - r1_zero", "+0.062", "-0.011 to +0.136"))
    assert "r1 - r1_zero" not in find(page, "Harder problems, out of distribution")


def test_general_figures_stand_beside_what_they_are_made_of(run, text, tmp_path):
    cells = "<td>0.900</td><td>23</td><td>0.060</td><td>17</td><td>0.600</td><td>120</td>"
    assert cells in text
    assert "<td>0.960</td><td>0.927</td><td>0.815</td><td>240</td>" in text
    assert "<td>0.910</td><td>–</td><td>–</td><td>300</td>" in text     # pairs have no labels
    older = rewrite(run, tmp_path, general={"r1": {"refusal": 0.5, "n": 3}},
                    reward_models={"safety": {"accuracy": 0.25, "n": 9}})[0]
    assert "<td>0.500</td><td>–</td>" in older and "<td>0.250</td><td>–</td>" in older


def test_what_a_model_wrote_is_escaped(text, page):
    assert HOSTILE not in text and "<script" not in text and "<img" not in text
    assert "<script>alert(1)</script>" in find(page, "before and after")  # as text, for the reader
    assert "<script>alert(1)</script>" in find(page, "Inside a completion")


def test_hostile_names_and_prompts(run, tmp_path):
    evil = '"><script>x</script>'
    summary = read_summary(run)
    figures = summary["stages"]["r1"]
    figures["tasks"] = {evil: figures["tasks"]["countdown"]}
    text, _ = rewrite(run, tmp_path, stages={**summary["stages"], evil: figures}, seed=evil,
                      costs={evil: 1.0, "note": evil},
                      reward_models={evil: {"accuracy": 1, "n": 1}},
                      general={evil: {"refusal": 0.5}})
    assert "<script" not in text
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"stage": evil, "step": 1, "alarms": [evil]}) + "\n")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["checkpoints"].append({"name": evil, "parent": "r1", "step": 1})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    rows = (run / "completions.jsonl").read_text("utf-8").splitlines()
    changed = {**json.loads(rows[0]), "prompt": evil, "finish_reason": evil, "tokens": [evil],
               "logprobs": [-1.0], "rewards": {evil: 1.0}, "language": evil}
    (tmp_path / "completions.jsonl").write_text(json.dumps(changed) + "\n")
    text = write_report(tmp_path).read_text("utf-8")
    Page(text)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_headline(text):
    assert "seed 7" in text and "1,234,567 (543,210 active)" in text and "17m22s" in text
    assert "0.0 over 3,456,789 tokens" in text
    assert "<b>0.210</b>" in text and "<b>0.680</b>" in text and "<b>0.740</b>" in text


def test_a_gap_that_is_not_zero_is_shown_in_full(run, tmp_path):
    assert "1.1920929e-07 over" in rewrite(run, tmp_path, max_logprob_gap=1.1920929e-07)[0]


def test_quick_runs_are_no_result(run, text, tmp_path):
    assert "Not a result" not in text
    assert "Not a result" in rewrite(run, tmp_path, quick=True)[0]


def test_every_stage_stands_in_both_tables(page):
    for words, shift in (("held-out", 0.0), ("out of distribution", 0.15)):
        body = find(page, words)
        for name, figures in make_summary()["stages"].items():
            assert name in body and f"{max(figures['pass@1'] - shift, 0.01):.3f}" in body
        assert "cons@16" in body and "0.710 to 0.770" in body or shift


def test_graph_draws_every_parent(run, text):
    entries = json.loads((run / "manifest.json").read_text())["checkpoints"]
    arrows = sum((entry["parent"] is not None) + len(entry["data_from"]) for entry in entries)
    assert text.count('marker-end="url(#arrow)"') == arrows == 10


def test_curves_show_the_logged_figures(run, page, text):
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert f"r1_zero, step 1: {format_figure(row['reward'])}" in text
    assert text.count("<polyline") == 8 * 3
    assert "student_rl_only, step" not in text  # other curves are not these


def test_directions_are_computed(run, page, tmp_path):
    body = find(page, "compare directions, not numbers")
    # in the made-up run rejection_sft (0.66) falls behind reasoning_rl (0.71), DeepSeek's rises
    assert body.count("✓ agrees") == 8 and body.count("✗ disagrees") == 1
    assert re.search(r"74.0 → 78.1\s+AIME 2024\s+0.710 → 0.660\s+pass@1\s+✗ disagrees", body)
    stages = read_summary(run)["stages"]
    for figures in stages.values():
        figures["pass@1"] = figures["cons@k"] = 0.5
        figures["pass@1_ci"] = [0.45, 0.55]
    body = find(rewrite(run, tmp_path, stages=stages)[1], "compare directions")
    assert body.count("✗ disagrees") == 8  # no change is no agreement; preference still rises
    assert body.count("intervals overlap") == 7


def test_missing_parts_read_not_run(run, tmp_path):
    stages = {"base": read_summary(run)["stages"]["base"]}
    _, page = rewrite(run, tmp_path, stages=stages, general=None, reward_models=None, costs=None)
    assert find(page, "held-out").count("not run") == len(STAGES) - 1
    assert "not run" in find(page, "General prompts") and "not run" in find(page, "Distillation")
    assert find(page, "compare directions").count("not run") == 9
    for name in ("metrics.jsonl", "completions.jsonl", "manifest.json"):
        (tmp_path / name).unlink()
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "not run" in find(page, "Curves") and "not run" in find(page, "comes from")
    (tmp_path / "summary.json").write_text("{}")
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert all("not run" in body or "no log-probs" in body or "DeepSeek" in body
               for body in page.sections.values())


def test_samples_are_of_one_problem(page):
    body = find(page, "before and after")
    assert "用 2 , 5 , 9 得到 17 。" in body and "等等" in body
    assert body.count("Reach 33") == 1 and "r1_zero" in body


def test_thinking_is_dimmed_and_answers_stand_out(text):
    assert re.search(r'<span class="think">&lt;think&gt;[^<]*&lt;/think&gt;</span> '
                     r"<b>&lt;answer&gt; 7 \* 3 \+ 12 &lt;/answer&gt;</b>", text)
    assert r"<b>\boxed{ 7 * 3 + 12 }</b>" in text


def test_inspector_shows_a_dozen_spread_over_the_stages(text, page):
    assert page.tags.count("details") == 12
    body = find(page, "Inside a completion")
    assert all(stage in body for stage in STAGES)
    assert re.search(r'<span class="t\d" title="log p -\d\.\d{3}">&lt;answer&gt;</span>', text)


def test_alarms_are_listed(page):
    assert re.search(r"r1\s+truncation\s+3", find(page, "Alarms"))


def test_same_files_same_page(run, text):
    assert write_report(run).read_text("utf-8") == text


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="summary.json"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(CheckpointError, match="summary.json is damaged: not a JSON object"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="metrics.jsonl, line 2"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_ticks_start_at_zero_and_cover():
    for top in (1e-7, 0.003, 0.25, 1.0, 1.6, 77.0, 12345.0):
        ticks = nice_ticks(top)
        assert ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-9) and 2 <= len(ticks) <= 6
    assert nice_ticks(0.0)[-1] == 1.0 and nice_ticks(1.0) == [0.0, 0.5, 1.0]


def test_overlay_chart_shares_one_axis():
    chart = overlay_chart("t", [Series("a", [(1, 0.0), (100, 1.0)]), Series("b<", [(10, 0.5)], 1)],
                          top=1.0, log_x=True)
    assert "46.0,212.0 450.0,30.0" in chart and 'points="248.0,121.0"' in chart and "b&lt;" in chart
    assert 'points="86.4,121.0"' in overlay_chart("t", [Series("b", [(10, 0.5)]), Series("a", [(100, 1.0)])])
    assert "not measured" in overlay_chart("t", [])


def test_line_chart_places_points():
    chart = line_chart("t", [Series("a", [(0, 0.0), (10, 1.0)]), Series("b", [])], top=1.0)
    assert 'points="46.0,192.0 428.0,44.0"' in chart and chart.count("<polyline") == 1
    assert "not measured" in line_chart("<t>", []) and "&lt;t&gt;" in line_chart("<t>", [])


def test_graph_lanes_do_not_overlap():
    parents = {"a": None, "b": "a", "c": "a", "d": "c"}
    chart = graph_chart("g", parents, {"c": ["b"]}, {}, {})
    corners = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', chart)
    assert len(set(corners)) == 4 and chart.count("stroke-dasharray") == 1
