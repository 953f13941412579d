"""The plots: what is counted, and that nothing untrusted leaves its place in them."""

from __future__ import annotations

import base64
import importlib.util
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from payloads import payloads
from view_trees import Growth, walks, write_store

from treewright.agent.view.chart import Chart, Series, draw_png, draw_svg, marks
from treewright.agent.view.charts_report import write_report
from treewright.agent.view.plots import make_charts, plots_json, wilson
from treewright.agent.view.reading import Filters
from treewright.envs.errors import TreewrightError
from treewright.envs.types import Effect
from treewright.search.store import TreeStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TreeStore]:
    with TreeStore.open(write_store(tmp_path / "t.sqlite", walks(4)), read_only=True) as opened:
        yield opened


def named(store: TreeStore, filters: Any = None) -> dict[str, Any]:
    return {chart.name: chart for chart in make_charts(store, filters)[0]}


def test_success_rises_at_the_tokens_of_the_first_solved_leaf(tmp_path: Path) -> None:
    grown = Growth()
    first = [grown.draft("ab", grown.seen(1), share=0.5), grown.draft("cdef", grown.seen(1, True, 0.0), share=0.5)]
    grown.apply(0, first)  # 3 + 5 tokens
    grown.apply(1, [grown.draft("g", grown.seen(2, True, 1.0), share=1.0)])  # 2 more
    grown.tree.chosen = 3
    other = Growth(attempt=1)
    other.apply(0, [other.draft("x", other.seen(1, True, 0.0), share=1.0)])
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown, other]), read_only=True) as store:
        charts = named(store)
    (series,) = charts["success_tokens"].series
    assert list(zip(series.x, series.y, strict=True)) == [(0.0, 0.0), (10.0, 0.5), (10.0, 0.5)]
    assert charts["depth"].series[0].y == [2, 3, 1] and charts["depth"].series[1].y == [0, 2, 1]
    assert charts["branching"].series[0].y == [1.5, 1.0]


def test_counts_agree_with_the_loaded_trees(store: TreeStore) -> None:
    trees = [store.load(row.tree_id) for row in store.trees()]
    charts = named(store)
    assert sum(charts["depth"].series[0].y) == sum(map(len, trees))
    assert sum(charts["depth"].series[1].y) == sum(len(t.leaves()) for t in trees)
    effects = dict(zip(charts["effects"].ticks, charts["effects"].series[0].y, strict=True))
    for effect in Effect:
        assert effects[effect.value] == sum(
            t.effect[i] is effect for t in trees for i in range(1, len(t)) if t.observation[i] is not None
        )
    for series in charts["success_tokens"].series:
        mine = [t for t in trees if t.header.policy_version == series.name]
        solved = sum(any(t.outcome_of(i) >= 1 - 1e-6 for i in t.leaves()) for t in mine)
        assert math.isclose(series.y[-1], solved / len(mine)) and series.y == sorted(series.y)


def test_calibration_averages_returns_by_share(tmp_path: Path) -> None:
    grown = Growth()
    grown.apply(0, [grown.draft("a", grown.seen(1), 0.62, share=1.0)])
    ends = [
        grown.draft("b", grown.seen(2, True, 1.0), 0.9, share=0.75),
        grown.draft("c", grown.seen(2, True), 0.1, share=0.25),
    ]
    grown.apply(1, ends)
    with TreeStore.open(write_store(tmp_path / "t.sqlite", [grown]), read_only=True) as store:
        (series,) = named(store)["calibration"].series
    assert np.allclose(series.x, [0.1, 0.62, 0.9]) and np.allclose(series.y, [0.0, 0.75, 1.0])


def test_filters_and_the_limit_of_nodes_hold(store: TreeStore) -> None:
    _, note, rows = make_charts(store, Filters(run="first"))
    assert {row.run for row in rows} == {"first"} and note.startswith("4 finished trees")
    _, note, rows = make_charts(store, most_nodes=1)
    assert len(rows) == 1 and "7 older ones were left out" in note


def test_unfinished_trees_are_not_counted(tmp_path: Path) -> None:
    path = write_store(tmp_path / "t.sqlite", [Growth().grow(3)], finish=False)
    with TreeStore.open(path, read_only=True) as store:
        assert plots_json(store)["plots"] == []
        with pytest.raises(TreewrightError, match="no finished tree"):
            write_report(store, tmp_path / "r")


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_is_well_formed_svg_whatever_its_names(dark: bool) -> None:
    for text in payloads(60):
        series = [Series(text, [0, 1, 2], [0.1, 0.7, 0.2], kind, [0.1]) for kind in ("line", "step", "bars", "points")]
        root = ET.fromstring(draw_svg(Chart("c", text, text, text, series, text, [text, text, text]), dark))
        tags = {node.tag.rpartition("}")[2] for node in root.iter()}
        assert tags <= {"svg", "title", "text", "path", "rect", "circle"}
        assert not [k for node in root.iter() for k in node.attrib if k.startswith("on") or "href" in k or k == "style"]


def test_the_report_shows_a_table_and_charts_for_day_and_night(store: TreeStore, tmp_path: Path) -> None:
    html = write_report(store, tmp_path / "r").read_text()
    assert html.count("<svg") == 10 and "walker-2" in html and "<script" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    for plot in plots_json(store)["plots"]:
        assert base64.b64decode(plot["light"]).startswith(b"<svg") and base64.b64decode(plot["dark"]).startswith(
            b"<svg"
        )


def test_png_is_written_or_what_to_install_is_said(store: TreeStore, tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(TreewrightError, match=r"treewright\[plot\]"):
            write_report(store, tmp_path / "r", png=True)
        return
    write_report(store, tmp_path / "r", png=True)
    found = {p.stem for p in (tmp_path / "r").glob("*.png")}
    assert found == {"success_tokens", "depth", "branching", "calibration", "effects"}
    chart = Chart("x", "$bad$ <b>", "x", "y", [Series("$a_{", [0, 1], [1, 2]), Series("b", [0], [1], "points")], "")
    draw_png(chart, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_axis_marks_are_round_and_inside() -> None:
    assert marks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert marks(-0.6, 8.6) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert marks(0, 0) == [0]


def test_the_error_bar_is_half_of_the_wilson_interval() -> None:
    assert math.isclose(wilson(0.5, 100), 0.0961, abs_tol=1e-3) and 0 < wilson(0.0, 10) < 0.15
