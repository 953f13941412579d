"""Training curves of the runs of a store, from their metrics.jsonl, and which trees each update was trained on.

The file is read again whenever it is asked for, so that the viewer shows a run that goes on.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from treewright.agent.view.chart import Chart, Series, draw_svg
from treewright.agent.view.report import clean
from treewright.search.store import TreeStore
from treewright.search.store.models import trees
from treewright.search.store.values import unescape
from treewright.training.track import FILE, read_metrics

__all__ = ["curves_json", "curves_size", "make_curves", "metric_files", "updates_of"]

RUNS, SHOWN = 500, 6
DRAWN = (
    ("loss", "loss", "the surrogate, mean over the optimizer steps of an update; it need not fall while success rises"),
    ("entropy", "entropy", "of the predictions of trained tokens, in nats"),
    ("kl", "KL", "of the new policy from the one before the update, k3 estimate, in nats"),
    ("reference_kl", "KL from the reference", "k3 estimate, in nats"),
    ("sampler_gap", "sampler gap", "largest difference of log-probs between sampler and trainer, in nats"),
    ("grad_norm", "gradient norm", "before clipping"),
    ("tokens_per_s", "tokens a second", "unique tokens trained on, over the whole time of the update"),
)


def metric_files(store: TreeStore) -> dict[str, Path]:
    """Where the numbers of the store's runs are: beside the store, in the run's folder beside that one, in runs/NAME.

    The rounds of a loop, NAME/0, NAME/1, …, are one run.
    """
    with store.snapshot() as connection:
        names = [unescape(run) for run in connection.execute(select(trees.c.run).distinct().limit(RUNS)).scalars()]
    bases = list(dict.fromkeys(name.partition("/")[0] for name in names))
    home = None if "://" in store.name else Path(store.name).resolve().parent
    out: dict[str, Path] = {}
    for base in bases:
        if not base or base in (".", "..") or "\0" in base or "\\" in base:
            continue  # names out of a store are not trusted with a path
        places = [Path("runs") / base]
        if home is not None:
            beside = [home] if home.name == base or len(bases) == 1 else []
            places = [*beside, home.parent / base, *places]
        found = next((place / FILE for place in places if (place / FILE).is_file()), None)
        if found is not None:
            out[base] = found
    return out


def curves_size(store: TreeStore) -> int:
    """Bytes of all metrics: another number, another curve."""
    return sum(path.stat().st_size for path in metric_files(store).values())


def updates_of(rows: Iterable[Mapping[str, Any]], run: str) -> list[dict[str, Any]]:
    """The updates of a run for a table, the last line of each: numbers, and the run whose trees it was trained on."""
    out: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in rows:
        iteration = row.get("iteration")
        nth = iteration if isinstance(iteration, int) and iteration > 0 else None
        told = row.get("success")
        success = told if isinstance(told, dict) else {}
        out[row.get("step"), row.get("recipe")] = {
            "run": run,
            "step": _number(row.get("step")),
            "iteration": nth,
            "recipe": clean(str(row.get("recipe", "")))[:60],
            "success": {clean(str(suite))[:60]: _number(rate) for suite, rate in success.items()},
            "trees": None if nth is None else f"{run}/{nth - 1}",
            **{name: _number(row.get(name)) for name, _, _ in DRAWN if name != "tokens_per_s"},
            "tokens_per_s": _rate(row),
        }  # fmt: skip
    return list(out.values())


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _rate(row: Mapping[str, Any]) -> float | None:
    tokens, seconds = _number(row.get("tokens")), _number(row.get("seconds"))
    return tokens / seconds if tokens is not None and seconds else None


def make_curves(store: TreeStore) -> tuple[list[Chart], list[dict[str, Any]]]:
    """The charts, a curve for each run, and the updates, oldest first. Both are empty where nothing was trained."""
    updates = {run: updates_of(read_metrics(path), run) for run, path in metric_files(store).items()}
    updates = {run: rows for run, rows in updates.items() if rows}
    every = [row for rows in updates.values() for row in rows]
    shown = list(updates.items())[:SHOWN]
    suites = list(dict.fromkeys(suite for row in every for suite in row["success"]))
    curves = [
        _series(rows, lambda row, s=suite: row["success"].get(s), f"{run} · {suite}" if len(shown) > 1 else suite)
        for run, rows in shown for suite in suites
    ]  # fmt: skip
    charts = [_chart("success", "Success in training", "success", "by suite, of the trees trained on", curves, True)]
    for name, title, caption in DRAWN:
        curves = [_series(rows, lambda row, n=name: row[n], run) for run, rows in shown]
        charts.append(_chart(f"train_{name}", f"{title[0].upper()}{title[1:]}", title, caption, curves))
    return [c for c in charts if c.series], every


def _series(rows: Sequence[Mapping[str, Any]], value: Any, name: str) -> Series | None:
    points = [(row["step"], value(row)) for row in rows if row["step"] is not None and value(row) is not None]
    return Series(name, [x for x, _ in points], [y for _, y in points]) if points else None


def _chart(
    name: str, title: str, unit: str, caption: str, curves: Sequence[Series | None], share: bool = False
) -> Chart:
    found = [c for c in curves if c is not None][:SHOWN]
    return Chart(name, title, "optimizer steps", unit, found, f"{title}: {caption}.", share=share)


def curves_json(store: TreeStore) -> dict[str, Any]:
    """The charts as SVG in base64, light and dark, and the updates with the trees of each."""
    charts, updates = make_curves(store)
    plots = [
        {
            "title": c.title,
            "caption": c.caption,
            **{
                "dark" if dark else "light": base64.b64encode(draw_svg(c, dark).encode()).decode()
                for dark in (False, True)
            },
        }
        for c in charts
    ]
    return {"plots": plots, "updates": updates}
