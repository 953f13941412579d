"""A report on a store as one HTML file: charts of its finished trees, and a table by suite and policy version.

write_report(store, "report", png=True)         # report/report.html and one PNG for each chart
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treewright.agent.view.chart import draw_png, draw_svg
from treewright.agent.view.curves import make_curves
from treewright.agent.view.page import render_report
from treewright.agent.view.plots import NODES, make_charts, wilson
from treewright.agent.view.reading import Filters
from treewright.envs.whole import write_whole
from treewright.search.store import TreeRow, TreeStore

__all__ = ["write_report"]


def write_report(
    store: TreeStore, folder: str | Path, filters: Filters | None = None, png: bool = False, most_nodes: int = NODES
) -> Path:
    """Writes FOLDER/report.html, which needs nothing else, and with `png` one picture for each chart.

    Raises TreewrightError if no finished tree matches, or where matplotlib is missing and PNG is asked for.
    """
    charts, note, rows = make_charts(store, filters, most_nodes)
    curves, updates = make_curves(store)
    charts = [*curves, *charts]
    target = Path(folder) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    if png:
        for chart in charts:
            draw_png(chart, target.with_name(f"{chart.name}.png"))
    figures = [(c.caption, draw_svg(c), draw_svg(c, dark=True)) for c in charts]
    page = render_report(f"report on {store.title}", note, _table(rows), figures, _updates(updates))
    return write_whole(target, page)


UPDATES = ("run", "trees of", "step", "success", "loss", "KL", "entropy", "sampler gap", "tokens a second")


def _updates(updates: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    names = ("loss", "kl", "entropy", "sampler_gap", "tokens_per_s")
    body = []
    for row in updates:
        known = [x for x in row["success"].values() if x is not None]
        mean = sum(known) / len(known) if known else math.nan
        numbers = [math.nan if row[name] is None else row[name] for name in names]
        body.append((row["run"], row["trees"] or row["recipe"], row["step"] or 0.0, mean, *numbers))
    return UPDATES, body


HEADER = ("suite", "weights", "trees", "success", "± 95 %", "tokens a tree", "steps a tree", "exact")


def _table(rows: Sequence[TreeRow]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    groups: dict[tuple[str, str], list[TreeRow]] = defaultdict(list)
    for row in rows:
        groups[row.suite, row.policy_version].append(row)
    body = []
    for (suite, version), mine in sorted(groups.items()):
        n, known = len(mine), [r.success for r in mine if r.success is not None]
        rate = sum(known) / len(known) if known else math.nan
        tokens = sum(r.spent.policy_tokens + r.spent.closing_tokens for r in mine) / n
        steps = sum(r.spent.env_steps + r.spent.closing_steps for r in mine) / n
        exact = sum(bool(r.exact) for r in mine) / n
        body.append((suite, version, n, rate, wilson(rate, len(known) or 1), tokens, steps, exact))
    return HEADER, body
