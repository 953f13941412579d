"""Every estimator on every growth schedule of the enumerable world: bias, cosine, scale, variance; and the speed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from treewright.training.check.mdp import GROUP, BiasReport, measure, small_mdp
from treewright.training.check.mdp_growth import SCHEDULES, grow
from treewright.training.credit import ESTIMATORS, Credit, InexactTree, TreeArrays, split_loo, variants

__all__ = ["big_batch", "main", "markdown", "seconds_per_batch"]

Reports = dict[tuple[str, str], BiasReport]
UNITS = {
    "relative_bias": "1",
    "over_noise": "standard errors",
    "cosine": "1",
    "scale": "1",
    "variance_per_token": "tokens",
    "tokens_per_tree": "tokens",
}


def main(
    quick: bool = False,
    json_path: Path | str | None = None,
    plot_path: Path | str | None = None,
    *,
    trees: int | None = None,
    schedules: Sequence[str] | None = None,
    nodes: int = 1_000_000,
    seed: int = 1,
) -> dict[str, Any]:
    """Measures, prints a table, writes JSON and a plot where asked, and returns {"figures", "quick", "trees"}.

    quick      8,000 trees per schedule instead of 64,000, and only SPLIT-LOO's speed; under a minute on two cores
    plot_path  a picture of all cells; needs matplotlib, without it a message says so
    trees, schedules, nodes  override the sizes
    """
    console = Console(emoji=False)
    trees = trees or (8_000 if quick else 64_000)
    reports = _measure_all(schedules or list(SCHEDULES), trees, seed, console)
    timed = ["split_loo"] if quick else list(ESTIMATORS)
    batch = big_batch(nodes)
    speed = {name: seconds_per_batch(ESTIMATORS[name], batch) for name in track(timed, "speed", console=console)}
    _print(console, reports, speed, trees, len(batch), quick)
    result = {"figures": _figures(reports, speed, nodes), "quick": quick, "trees": trees}
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
    if plot_path:
        _plot(reports, Path(plot_path), console)
    return result


def _contenders() -> dict[str, Callable[[TreeArrays], Credit]]:
    """Every estimator but `split_fitted`, split_loo with other baselines; and the variants with one rule broken."""
    known: dict[str, Callable[[TreeArrays], Credit]] = {
        **{name: function for name, function in ESTIMATORS.items() if not name.startswith("split_")},
        "split_loo": partial(split_loo, allow_biased=True),
    }
    return known | {name: getattr(variants, name) for name in variants.__all__}


def _measure_all(schedules: Sequence[str], trees: int, seed: int, console: Console) -> Reports:
    world, reports = small_mdp(), {}
    for schedule in track(schedules, "bias", console=console):
        grown = grow(schedule, trees, seed, world)
        for name, estimator in _contenders().items():
            try:
                reports[name, schedule] = measure(world, grown, estimator(grown.arrays))
            except InexactTree:
                continue  # a variant of SPLIT-LOO is only of interest where SPLIT-LOO itself is exact
    return reports


def big_batch(nodes: int, *, size: int = 1000, deepest: int = 64, seed: int = 0) -> TreeArrays:
    """About `nodes` nodes in trees of `size` nodes, at most `deepest` deep, in groups of 8; for timing."""
    rng = np.random.default_rng(seed)
    parent, depth = np.full(size, -1), np.zeros(size, dtype=int)
    for i in range(1, size):
        p = i - 1 if rng.random() < 0.6 else int(rng.integers(i))
        p = p if depth[p] < deepest else 0
        parent[i], depth[i] = p, depth[p] + 1
    count = max(1, nodes // size)
    tree = np.repeat(np.arange(count), size)
    shifted = np.where(np.tile(parent, count) < 0, -1, np.tile(parent, count) + tree * size)
    return TreeArrays.of(
        shifted,
        tree=tree,
        group=tree // GROUP,
        reward=rng.normal(size=len(tree)),
        state_key=rng.integers(0, 50, len(tree)),
        n_tokens=rng.integers(1, 50, len(tree)),
    )


def seconds_per_batch(estimator: Callable[[TreeArrays], Credit], batch: TreeArrays, repeats: int = 5) -> float:
    """The best wall time of several runs, after one that is not counted."""
    estimator(batch)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        estimator(batch)
        best = min(best, time.perf_counter() - start)
    return best


def _figures(reports: Reports, speed: dict[str, float], nodes: int) -> dict[str, dict[str, Any]]:
    """Names: bias_ESTIMATOR_SCHEDULE_over_noise, QUANTITY_ESTIMATOR_SCHEDULE, ESTIMATOR_s_1e6; only finite values."""
    values: dict[str, tuple[float, str]] = {}
    for (name, schedule), report in reports.items():
        for quantity, unit in UNITS.items():
            key = f"bias_{name}_{schedule}_over_noise" if quantity == "over_noise" else f"{quantity}_{name}_{schedule}"
            values[key] = (getattr(report, quantity), unit)
    if ("grpo", "best_first") in reports:
        values["bias_leaf_rows_best_first_over_noise"] = values["bias_grpo_best_first_over_noise"]
    for name, seconds in speed.items():
        values[f"{name}_s_1e6"] = (seconds * 1e6 / nodes, "s")
    return {key: {"value": v, "unit": unit} for key, (v, unit) in values.items() if math.isfinite(v)}


def markdown(figures: Mapping[str, Mapping[str, Any]], schedules: Sequence[str]) -> str:
    """Two Markdown tables out of a run's figures: relative bias of every cell, and SPLIT-LOO by schedule."""

    def number(quantity: str, name: str, schedule: str) -> float:
        key = f"bias_{name}_{schedule}_over_noise" if quantity == "over_noise" else f"{quantity}_{name}_{schedule}"
        return float(figures[key]["value"]) if key in figures else math.nan

    def cell(name: str, schedule: str) -> str:
        bias, noise = number("relative_bias", name, schedule), number("over_noise", name, schedule)
        star = "\\*" if noise < 3 else ""
        return "–" if math.isnan(bias) else f"{bias:.2f}{star}"

    lines = ["| estimator | " + " | ".join(s.replace("_", " ") for s in schedules) + " |"]
    lines.append("|---|" + "---:|" * len(schedules))
    for name in _contenders():
        lines.append(f"| {name} | " + " | ".join(cell(name, s) for s in schedules) + " |")
    columns = ("relative_bias", "over_noise", "cosine", "scale", "tokens_per_tree", "variance_per_token")
    lines += [
        "",
        "| schedule | relative bias | over noise | cosine | scale | tokens per tree | variance per token | gain |",
    ]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    base = number("variance_per_token", "split_loo", "chains")
    for s in schedules:
        row = [number(c, "split_loo", s) for c in columns]
        digits = (3, 1, 3, 2, 1, 1)
        numbers = " | ".join(f"{x:.{d}f}" for x, d in zip(row, digits, strict=True))
        lines.append(f"| {s.replace('_', ' ')} | {numbers} | {base / row[-1]:.2f} |")
    return "\n".join(lines)


def _print(console: Console, reports: Reports, speed: dict[str, float], trees: int, nodes: int, quick: bool) -> None:
    schedules = list(dict.fromkeys(schedule for _, schedule in reports))
    how = "quick run, " if quick else ""
    console.print(f"relative bias; * = within 3 standard errors ({how}{trees:,} trees per schedule)")
    table = Table()
    for column in ("estimator", *schedules):
        table.add_column(column.replace("_", " "), justify="left" if column == "estimator" else "right")
    for name in _contenders():
        table.add_row(name, *(_cell(reports.get((name, schedule))) for schedule in schedules))
    console.print(table)

    console.print("split_loo by schedule; gain = variance per token of chains / of the schedule")
    own = Table()
    for column in ("schedule", "bias / noise", "cosine", "scale", "tokens per tree", "variance per token", "gain"):
        own.add_column(column, justify="left" if column == "schedule" else "right")
    base = reports.get(("split_loo", "chains"))
    for schedule in schedules:
        r = reports["split_loo", schedule]
        gain = f"{base.variance_per_token / r.variance_per_token:.2f}" if base else "–"
        numbers = (r.over_noise, r.cosine, r.scale, r.tokens_per_tree, r.variance_per_token)
        own.add_row(schedule, *(f"{x:.2f}" for x in numbers), gain)
    console.print(own)
    console.print(f"seconds for {nodes:,} nodes: " + ", ".join(f"{name} {s:.2f}" for name, s in speed.items()))


def _cell(report: BiasReport | None) -> str:
    if report is None:
        return "–"
    return f"{report.relative_bias:.2f}{'*' if report.over_noise < 3 else ''}"


def _plot(reports: Reports, path: Path, console: Console) -> None:
    try:
        make_figure = import_module("matplotlib.figure").Figure
    except ImportError:
        console.print("no plot: matplotlib is not installed; type: pip install 'treewright[plot]'")
        return
    names, schedules = (list(dict.fromkeys(key[i] for key in reports)) for i in (0, 1))
    figure = make_figure(figsize=(1.1 * len(schedules) + 3, 0.4 * len(names) + 2), layout="constrained")
    axes = figure.add_subplot()
    bias = [[reports[n, s].relative_bias if (n, s) in reports else math.nan for s in schedules] for n in names]
    image = axes.imshow(np.log10(np.maximum(bias, 1e-3)), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(schedules)), schedules, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (name, schedule), report in reports.items():
        axes.text(schedules.index(schedule), names.index(name), _cell(report), ha="center", va="center", color="white")
    figure.colorbar(image, label="log10 of the relative bias (* = within 3 standard errors)")
    figure.savefig(path)
